"""Every setting: its unit, its default, why it is so, and where the number comes from.

Rule 1: one frozen value, made once at start. Nothing reads the environment or a file later.
Rule 2: each field is a flag (``--stall-timeout``), an environment variable (``RAWSTREAM_STALL_TIMEOUT``) and a key
        of a TOML file (``stall_timeout``), in that order of precedence. This table is the only list of them.
Rule 3: a bound that a user sets is obeyed as it stands, or refused; it is never quietly changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rawstream.settings.tables import UpstreamSettings, UserSettings, table_faults
from rawstream.settings.values import MAY_BE_ZERO, combined_faults, fault

__all__ = ["FIELDS", "KiB", "MiB", "Settings", "UpstreamSettings", "UserSettings", "check", "faults"]

KiB: Final = 1024
MiB: Final = 1024 * 1024


def _setting(default: Any, group: str, unit: str, help: str, *, secret: bool = False) -> Any:
    return dataclasses.field(
        default=default, repr=not secret, metadata={"group": group, "unit": unit, "help": help, "secret": secret}
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All of it. ``unit`` is one of: bytes, seconds, count, tokens, ratio, text, flag, url, path."""

    # --- where to listen
    host: str = _setting("127.0.0.1", "Listening", "text", "Address to listen on.")
    port: int = _setting(8000, "Listening", "count", "TCP port; 0 picks a free one.")
    uds: str | None = _setting(None, "Listening", "path", "Listen on this Unix socket instead of TCP.")
    workers: int = _setting(1, "Listening", "count", "Server processes that share the port.")
    backlog: int = _setting(1024, "Listening", "count", "Connections the kernel may hold before we accept them.")
    loop: str = _setting("auto", "Listening", "text", "Event loop: auto (uvloop where it is there), uvloop or asyncio.")

    admin: str | None = _setting(
        None,
        "Listening",
        "text",
        "HOST:PORT that answers /debug/* and /metrics, to whoever reaches it; default: the main port does, to "
        "loopback peers only.",
    )

    # --- TLS
    ssl_certfile: str | None = _setting(
        None, "TLS", "path", "Speak https, with this PEM file: the certificate, then the rest of its chain."
    )
    ssl_keyfile: str | None = _setting(
        None, "TLS", "path", "PEM file of the certificate's key, where it is not in the same file."
    )

    # --- who may ask
    user_header: str | None = _setting(
        None,
        "Users",
        "text",
        "Header in which a trusted proxy names the user; from anybody else it is not believed.",
    )
    trusted_proxies: str | None = _setting(
        None,
        "Users",
        "text",
        "Addresses and networks whose X-Forwarded-For, -Proto and -Host and user header are believed: "
        "127.0.0.1,10.0.0.0/8; unix: whoever connects to --uds.",
    )
    allowed_hosts: str | None = _setting(
        None,
        "Users",
        "text",
        "Names under which browsers may reach this server: chat.example.com,*.example.org. Without it any, but on a "
        "server that listens on loopback only, local ones.",
    )
    cors_origins: str | None = _setting(
        None,
        "Users",
        "text",
        "Origins of pages elsewhere that may ask: https://app.example.com,…; * for any. Without it none.",
    )
    redis: str | None = _setting(
        None,
        "Users",
        "url",
        "Redis that all processes share (redis://127.0.0.1:6379/0): token budgets, and answers that can be resumed at any "
        "of them. Needs rawstream[redis].",
        secret=True,
    )

    # --- where tokens come from
    source: str | None = _setting(
        None, "Source", "text", "Your own source, as module:function; default: the built-in mock."
    )
    upstream: str | None = _setting(
        None, "Source", "url", "OpenAI-compatible upstream, up to and with /v1 (http://127.0.0.1:9301/v1)."
    )
    upstream_api_key: str | None = _setting(
        None, "Source", "text", "Key sent to the upstream as 'Authorization: Bearer …'.", secret=True
    )
    upstream_model: str | None = _setting(
        None, "Source", "text", "Model to ask the upstream for when the client names none."
    )
    upstream_ca: str | None = _setting(
        None,
        "Source",
        "path",
        "PEM file of certificate authorities to trust for https upstreams (default: the system's).",
    )
    upstream_connect_timeout: float = _setting(
        5.0, "Source", "seconds", "Time to connect to the upstream, TLS included."
    )
    upstream_first_token_timeout: float = _setting(
        120.0,
        "Source",
        "seconds",
        "Time from the request until the upstream's first event (long prompts are slow).",
    )
    upstream_idle_timeout: float = _setting(
        60.0,
        "Source",
        "seconds",
        "Longest silence between two events of the upstream (nginx proxy_read_timeout: 60 s). Its pings do not count.",
    )
    upstream_rcvbuf: int = _setting(
        16 * KiB,
        "Source",
        "bytes",
        "SO_RCVBUF of upstream connections, set before connect; 0 leaves it to the kernel (which then takes megabytes).",
    )
    upstream_read_limit: int = _setting(
        8 * KiB, "Source", "bytes", "One read of an upstream connection; reading pauses once half of it is held."
    )
    upstream_max_event: int = _setting(MiB, "Source", "bytes", "Longest single event taken from the upstream.")
    upstream_pool: int = _setting(100, "Source", "count", "Idle keep-alive connections kept to the upstream.")
    upstream_pool_idle: float = _setting(
        4.0,
        "Source",
        "seconds",
        "Drop an idle upstream connection after this (llama.cpp closes one after 5 s, and after a streamed answer at once).",
    )
    upstream_retries: int = _setting(
        3,
        "Source",
        "count",
        "Further attempts after an upstream could not be reached, or answered with 429 or 5xx, before the first token; "
        "0: answer at once.",
    )
    upstream_retry_wait: float = _setting(
        30.0,
        "Source",
        "seconds",
        "Longest single wait before going back to the same upstream; the nth wait is a random part of 2^n s (full jitter).",
    )
    upstream_retry_budget: float = _setting(
        0.2,
        "Source",
        "ratio",
        "Retries per request at one upstream on average (Finagle, linkerd: 0.2), plus 10 at once and one each 5 s.",
    )
    upstream_breaker_failures: int = _setting(
        5,
        "Source",
        "count",
        "Requests that failed in a row after which an upstream is left alone (Envoy, consecutive 5xx: 5); 0: never.",
    )
    upstream_breaker_pause: float = _setting(
        5.0, "Source", "seconds", "How long it is left alone; then one request tries it."
    )
    upstreams: tuple[UpstreamSettings, ...] = ()
    """Several upstreams, from the TOML file's ``[[upstreams]]``. Neither a flag nor a variable."""
    users: tuple[UserSettings, ...] = ()
    """Who may ask, from ``[[users]]``; none: everybody."""

    # --- flow control
    write_high: int = _setting(
        2 * KiB,
        "Flow control",
        "bytes",
        "High-water mark of the transport buffer: above it the source is not asked for more. asyncio's default is 64 KiB; "
        "4 KiB costs 5 KiB more memory per stalled stream, and is no faster.",
    )
    write_low: int = _setting(
        512,
        "Flow control",
        "bytes",
        "Low-water mark: below it the source is asked again. uvloop's default is 16 bytes.",
    )
    notsent_lowat: int = _setting(
        4 * KiB,
        "Flow control",
        "bytes",
        "TCP_NOTSENT_LOWAT: unsent bytes the kernel takes from us per connection; 0 leaves the kernel's default (unlimited).",
    )
    sndbuf: int = _setting(
        0, "Flow control", "bytes", "SO_SNDBUF of client connections; 0 leaves it to the kernel's own tuning."
    )
    write_size: int = _setting(
        2 * KiB,
        "Flow control",
        "bytes",
        "Ready tokens are joined into writes of about this size (4 KiB writes cost 5 KiB more memory per stalled stream).",
    )
    hold: float = _setting(
        0.0001,
        "Flow control",
        "seconds",
        "Longest time one stream keeps the event loop before others get their turn.",
    )
    stall_timeout: float = _setting(
        30.0,
        "Flow control",
        "seconds",
        "A client that takes nothing for this long while data waits for it is cut, and its source closed.",
    )
    heartbeat: float = _setting(
        15.0,
        "Flow control",
        "seconds",
        "Send a heartbeat after this much silence on the wire (load balancers cut at 30 to 60 s); 0 sends none.",
    )
    flush_timeout: float = _setting(
        1.0,
        "Flow control",
        "seconds",
        "How long the end of an answer may take to leave before the connection is cut.",
    )
    half_close: str = _setting(
        "leave",
        "Flow control",
        "text",
        "What a client's FIN means during a stream: leave (it has gone) or continue (it still reads).",
    )
    stream_timeout: float = _setting(1800.0, "Flow control", "seconds", "Longest life of one stream.")

    # --- resuming
    resume_grace: float = _setting(
        30.0,
        "Resuming",
        "seconds",
        "How long an answer of /stream and /api/chat waits for its reader to come back; 0 ends it when he leaves. A "
        "request says otherwise by on_disconnect.",
    )
    replay_window: int = _setting(
        MiB,
        "Resuming",
        "bytes",
        "Events of one answer that are kept for who comes back; while nobody reads, its source is paused when they fill it.",
    )
    replay_keep: float = _setting(
        300.0, "Resuming", "seconds", "How long an answer that has ended is kept for who comes back."
    )
    replay_flush: float = _setting(
        0.02,
        "Resuming",
        "seconds",
        "With --redis: how often the events of this process's answers are published for the others, and theirs read.",
    )
    replay_total: int = _setting(
        64 * MiB,
        "Resuming",
        "bytes",
        "Events kept in all; past it the oldest answers go, and new ones cannot be resumed.",
    )

    # --- requests
    max_head: int = _setting(16 * KiB, "Requests", "bytes", "Longest request head (431).")
    max_request_line: int = _setting(8 * KiB, "Requests", "bytes", "Longest request line (414).")
    max_fields: int = _setting(100, "Requests", "count", "Most header fields in a request (431).")
    max_body: int = _setting(8 * MiB, "Requests", "bytes", "Longest request body (413).")
    head_timeout: float = _setting(
        10.0, "Requests", "seconds", "Time for a request head (408; nothing if nothing came)."
    )
    body_timeout: float = _setting(30.0, "Requests", "seconds", "Time for a whole request body to arrive (408).")
    keepalive_timeout: float = _setting(
        75.0,
        "Requests",
        "seconds",
        "Close a connection that has been idle this long between requests (nginx: 75 s).",
    )
    http2: bool | None = _setting(
        None,
        "Requests",
        "flag",
        "Speak HTTP/2 to clients that want it (ALPN over TLS, prior knowledge without); default: yes.",
    )
    http2_streams: int = _setting(
        100, "Requests", "count", "Streams at a time on one HTTP/2 connection (its SETTINGS_MAX_CONCURRENT_STREAMS)."
    )
    surplus: int = _setting(
        16 * KiB,
        "Requests",
        "bytes",
        "Bytes kept for the next request while a stream runs; a client that sends more is cut.",
    )

    # --- limits
    max_connections: int = _setting(
        10_000, "Limits", "count", "Most open connections; never more than half the descriptor limit."
    )
    max_streams: int = _setting(
        10_000, "Limits", "count", "Most streams at once; the next one gets 503 and Retry-After."
    )
    max_buffered_bytes: int = _setting(
        100 * MiB,
        "Limits",
        "bytes",
        "Bytes buffered in all streams together. Past it new streams are refused, at 1.1 times it sources are paused, "
        "at 1.25 times it the largest stalled stream is cut.",
    )

    # --- life cycle
    drain_timeout: float = _setting(
        20.0,
        "Life cycle",
        "seconds",
        "After SIGTERM: how long running streams may go on before they are ended.",
    )
    cancel_timeout: float = _setting(
        2.0,
        "Life cycle",
        "seconds",
        "After the drain: how long ended streams may take to leave before connections are cut.",
    )
    log_format: str = _setting("text", "Life cycle", "text", "Log lines as text or as json.")
    log_level: str = _setting(
        "info", "Life cycle", "text", "debug, info, warning or error. Every stream's end is one info line."
    )

    otel: bool | None = _setting(
        None,
        "Life cycle",
        "flag",
        "Send traces to an OpenTelemetry collector; default: where OTEL_EXPORTER_OTLP_ENDPOINT names one. Needs "
        "rawstream[otel].",
    )

    # --- the lab
    lab: bool | None = _setting(
        None,
        "Lab",
        "flag",
        "The lab and its wrong disciplines; default: on when listening on loopback only, and no users are configured.",
    )
    lab_memory: int = _setting(
        1024 * MiB, "Lab", "bytes", "Memory that all streams of the wrong disciplines may take together."
    )
    lab_overrun: float = _setting(
        60.0, "Lab", "seconds", "How long /chat-broken goes on generating for a client that has left."
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def loopback_only(self) -> bool:
        """True when no other machine can reach the listening socket."""
        return self.uds is not None or self.host in ("127.0.0.1", "::1", "localhost") or self.host.startswith("127.")

    @property
    def has_users(self) -> bool:
        """False: everybody may ask."""
        return bool(self.users) or self.user_header is not None

    @property
    def lab_enabled(self) -> bool:
        return self.loopback_only and not self.has_users if self.lab is None else self.lab


FIELDS: Final[dict[str, dataclasses.Field[Any]]] = {
    field.name: field for field in dataclasses.fields(Settings) if "unit" in field.metadata
}
"""All settings that are flags, variables and keys: every field but the tables."""


def check(settings: Settings) -> None:
    """Raise ValueError, naming the setting, when a value makes no sense."""
    for message in faults(vars(settings)):
        raise ValueError(message)


def faults(values: Mapping[str, Any]) -> Iterator[str]:
    """What makes no sense among values for all the fields of ``Settings``; each message names its settings."""
    sound = True
    for name, field in FIELDS.items():
        value = values[name]
        said = fault(name, value, field.metadata["unit"], may_be_zero=name in MAY_BE_ZERO)
        if said is not None:
            sound = False
            yield f"{name} {said}"
    if not sound:
        return
    yield from combined_faults(values)
    yield from table_faults(values)

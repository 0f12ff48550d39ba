"""What a peer is: a command that listens, the paths it answers, and why it may be missing.

Rule 1: a peer is one small file in this folder with ``PEERS = (Peer(...), ...)`` and its handler. At
        import it needs nothing but this module; its framework is imported inside the handler, in the
        private environment.
Rule 2: a peer listens on ``BENCH_HOST`` (127.0.0.1), port ``ctx.port``, with ONE worker, without an access
        log.
Rule 3: start it with ``Popen(peer.command(ctx), env={**os.environ, **ctx.env}, cwd=ctx.workdir)`` and make
        ``ctx`` with ``make_context()``: its ``env`` carries PYTHONPATH. ``command()`` may write a
        configuration file into ``ctx.workdir``. A peer may be a small process tree (granian, nginx):
        count, and stop, the whole tree. It is ready when its port accepts. SIGTERM ends it, but some wait
        for open streams: SIGKILL the tree after a while. Its output goes to a file, not into a pipe that
        nobody reads (LiteLLM logs each request).

What every *server* and *floor* answers
    ``POST chat`` ``{"prompt": "...", "mock": {"tokens": N|null, "tokens_per_second": R|null, "batch": B,
    "suspend": bool, "first_token_seconds": S}, "joined": bool}`` (``content-type: application/json``) with SSE:
    ``data: {"token": "..."}\\n\\n`` per token, then ``data: [DONE]\\n\\n``. ``tokens: null`` is endless,
    ``tokens_per_second: null`` is as fast as it is pulled. Defaults: 200 tokens, 50/s, batch 1 (at most
    1009). A source yields the tokens of a batch together; a handler writes them one by one, an event each, as its
    documentation has it, or with ``joined`` in one write, which its author has to think of himself. (rawstream joins
    by itself, and does not know the word.) Readers must accept any spacing inside the JSON, and comment lines
    (sse-starlette sends ``: ping`` every 15 s). ``GET stats`` -> ``{"pulled": tokens, "opened": sources,
    "closed": sources}`` since the start.

What the mock yields
    Token i (from 0) of every stream of every peer, whatever the prompt, is ``TOKENS[i % len(TOKENS)]`` of
    ``_source.py`` (the same in ``_source.mjs`` and ``go/source.go``). Paced tokens follow an absolute
    schedule: batch k is due at ``open + first_token_seconds + k * batch / tokens_per_second``; a late pull
    is answered at once. ``suspend`` gives way to the event loop once per pull of an unpaced source.

Events: with ``BENCH_EVENTS_FILE`` in ``ctx.env`` each source appends lines to that file (O_APPEND, one
write each)::

    open <id> <monotonic_ns>
    close <id> <monotonic_ns> <tokens pulled>

    The clock is CLOCK_MONOTONIC (``time.monotonic_ns()``) in all languages. The id is what follows the
    last ``#`` in the prompt (``"hello #17"`` -> ``17``), else the peer's running number from 1. No
    datagrams: Node has none.

rawstream gets the very same source, by ``--source bench.peers._source:for_rawstream`` (its own mock shares
    timers between streams, which would be worth 2 µs per paced token and is no merit of the server). So
    events and tokens are as above; its counters are those of ``/debug/streams``. ``rawstream-mock`` is the
    built-in mock.

A peer of kind *tls* is a server that speaks https (``tls=True``, as ``rawstream-tls`` does): it answers what a server
    answers, and takes part only where TLS is the question. Its certificate is made on the spot, and nobody verifies it.

A peer that speaks HTTP/2 says so (``http2=True``): with prior knowledge (RFC 9113 §3.3) on a plain port, where TLS is
    by ALPN ("h2"). One of kind *http2* takes part only where HTTP/2 is the question: its port may speak nothing else.

What every *gateway* answers
    ``POST completions``, forwarded to ``ctx.upstream_url`` (scheme, host, port; a trailing ``/v1`` is
    allowed), path ``/v1/chat/completions``. A gateway has no source, so no stats.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
ENV_DIR: Final = HERE.parent / ".peers"
"""The private environment that ``python -m bench peers --install`` makes."""
ANY_KEY: Final = "sk-bench"
"""What clients send to peers that do not look at it."""


@dataclass(frozen=True)
class PeerContext:
    """Where one peer runs."""

    port: int
    upstream_url: str | None
    """Gateways only: ``http://127.0.0.1:9301``."""
    python: str
    """The private environment's Python; it need not exist yet (then ``missing`` says so)."""
    env_dir: Path
    node: str | None
    go: str | None
    """The Go compiler, for the report's version; the peers need only the built programs."""
    workdir: Path
    """An existing folder for configuration files, and the process's working directory."""
    env: dict[str, str] = field(default_factory=dict)
    """What the process needs beside the harness's own environment."""

    @property
    def host(self) -> str:
        """Address to listen on."""
        return self.env.get("BENCH_HOST") or os.environ.get("BENCH_HOST") or "127.0.0.1"

    @property
    def upstream(self) -> str:
        """``upstream_url`` without a trailing ``/`` or ``/v1``; ValueError when there is none."""
        if self.upstream_url is None:
            raise ValueError("a gateway needs an upstream_url")
        return self.upstream_url.rstrip("/").removesuffix("/v1")


@dataclass(frozen=True)
class Peer:
    """One server of the comparison."""

    name: str
    kind: str
    """server | gateway | floor | tls | http2 | rawstream (``rawstream-gateway`` too: it has a ``completions`` path)."""
    command: Callable[[PeerContext], list[str]]
    paths: Mapping[str, str]
    """``{"chat": "/chat", "stats": "/stats"}``, ``text`` where it has one; gateways ``completions``."""
    version: Callable[[PeerContext], str]
    missing: Callable[[PeerContext], str | None]
    """Why it cannot run here, or None."""
    stats: str | None = "/stats"
    """Where its counters are; None when it has none."""
    notes: str = ""
    """How it is configured, and whose documentation it follows."""
    tls: bool = False
    """Its port speaks https."""
    http2: bool = False
    """Its port speaks HTTP/2, 100 streams at a time on a connection."""
    key: str = ANY_KEY
    """The API key that its clients send."""


BACKLOG: Final = 2048
"""Connections the kernel may hold, wherever a peer lets us say so (uvicorn's default)."""

SERVER_PATHS: Final[Mapping[str, str]] = {"chat": "/chat", "stats": "/stats"}
GATEWAY_PATHS: Final[Mapping[str, str]] = {"completions": "/v1/chat/completions"}


def make_context(
    port: int, workdir: Path, *, upstream_url: str | None = None, env: Mapping[str, str] | None = None
) -> PeerContext:
    """The context of this machine's private environment; ``env`` is added to what every peer needs."""
    return PeerContext(
        port=port,
        upstream_url=upstream_url,
        python=str(ENV_DIR / "venv" / "bin" / "python"),
        env_dir=ENV_DIR,
        node=shutil.which("node"),
        go=shutil.which("go"),
        workdir=workdir,
        env={
            "PYTHONPATH": str(ROOT),
            "NODE_PATH": str(ENV_DIR / "node_modules"),
            "NODE_ENV": "production",
            # LiteLLM would fetch its table of prices at each start.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            **(env or {}),
        },
    )


# --- what the peers' files share


def never_missing(ctx: PeerContext) -> str | None:
    """For peers that need nothing but the harness's own Python."""
    return None


def python_version(ctx: PeerContext) -> str:
    return f"Python {sys.version.split()[0]}"


def installed_version(ctx: PeerContext, package: str, venv: str = "venv") -> str | None:
    """Version of a Python package in a private environment, from its metadata; None when it is not there."""
    wanted = package.lower().replace("-", "_")
    for info in (ctx.env_dir / venv).glob("lib/python*/site-packages/*.dist-info"):
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        if name.lower().replace("-", "_") == wanted:
            return version
    return None


def python_packages(
    *packages: str,
) -> tuple[Callable[[PeerContext], str], Callable[[PeerContext], str | None]]:
    """``version`` and ``missing`` of a peer that needs these packages in the private environment."""

    def version(ctx: PeerContext) -> str:
        return ", ".join(f"{package} {installed_version(ctx, package) or '?'}" for package in packages)

    def missing(ctx: PeerContext) -> str | None:
        absent = [package for package in packages if installed_version(ctx, package) is None]
        if not absent:
            return None
        return f"{', '.join(absent)} not installed (python -m bench peers --install)"

    return version, missing


def output_of(*argv: str) -> str:
    """Standard output and error of a short command, stripped; '' when it cannot run."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).strip()

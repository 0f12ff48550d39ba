"""Every error rawstream raises, arranged by whose fault it is.

Rule 1: the class says whose fault it was (client, upstream, source, limit, misuse, ourselves); "they left" and
        "we closed" are never the same class.
Rule 2: each error carries the HTTP status that answers it before the commit point, the machine-readable
        ``code`` that tells it in-stream after it, and the ``outcome`` it ends a stream with.
Rule 3: the message is fit for a client's eyes. What only the operator may see goes into ``detail``.
"""

from __future__ import annotations

from typing import ClassVar, Final

_LONGEST_DETAIL: Final = 4000
"""Characters: a traceback of some depth. An exception's text may be as long as what a client sent."""


def _cut(detail: str) -> str:
    half = _LONGEST_DETAIL // 2
    return f"{detail[:half]} […{len(detail) - 2 * half} characters…] {detail[-half:]}"


class RawstreamError(Exception):
    """The root. ``str(error)`` may be shown to clients; ``detail`` is for the log alone."""

    status: int = 500
    code: str = "internal_error"
    outcome: ClassVar[str] = "source_failed"
    retry_after: float | None = None
    """Seconds after which trying again makes sense (sent as ``Retry-After``); None: say nothing."""
    should_retry: bool | None = None
    """Sent as ``x-should-retry``, which SDKs obey above all else; None: say nothing."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        detail: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.detail = detail if detail is None or len(detail) <= _LONGEST_DETAIL else _cut(detail)
        if status is not None:
            self.status = status
        if code is not None:
            self.code = code
        if retry_after is not None:
            self.retry_after = retry_after


# --- the client ---------------------------------------------------------------------------------------------


class ClientError(RawstreamError):
    """The client did it."""

    status = 400
    code = "bad_request"
    outcome = "client_misbehaved"


class BadRequest(ClientError):
    """The request is well-framed HTTP, but asks for something that makes no sense."""


class Unauthorized(ClientError):
    """Nobody knows who asks: there is no key, or not one that is known."""

    status = 401
    code = "invalid_api_key"


class ModelNotFound(ClientError):
    """No upstream serves the model that was asked for."""

    status = 404
    code = "model_not_found"


class ModelNotAllowed(ClientError):
    """The user may not use the model that it asks for."""

    status = 403
    code = "model_not_allowed"


class ProtocolViolation(ClientError):
    """The bytes are not HTTP as RFC 9112 has it. The connection closes after the answer."""

    code = "protocol_violation"


class ClientDisconnected(ClientError):
    """They left: the peer closed or reset the connection."""

    status = 499
    code = "client_disconnected"
    outcome = "client_left"


class ClientStalled(ClientError):
    """Too slow: the peer took nothing for ``stall_timeout`` seconds while data waited for it."""

    status = 408
    code = "client_stalled"
    outcome = "client_stalled"


class ClientMisbehaved(ClientError):
    """The peer broke the rules of an open stream (for instance, sent more than we keep for later)."""

    code = "client_misbehaved"


# --- the token source ---------------------------------------------------------------------------------------


class SourceError(RawstreamError):
    """The token source did it."""

    code = "source_failed"
    outcome = "source_failed"


class SourceFailed(SourceError):
    """A source of our own raised."""


class UpstreamFailed(SourceError):
    """The upstream refused, broke its protocol, or ended without its terminal event."""

    status = 502
    code = "upstream_failed"
    outcome = "upstream_failed"


class UpstreamUnreachable(UpstreamFailed):
    """The upstream could not be reached, or closed before it answered: no generation of ours runs there."""

    lasting: bool = False
    """It does not get better by itself (a certificate that is not trusted)."""


class UpstreamComplained(UpstreamFailed):
    """The upstream told an error of its own inside its answer: it lives, and may be right."""


class UpstreamUnavailable(UpstreamFailed):
    """No upstream is asked now: each of them failed too often, too lately. Says when the next one is tried."""

    status = 503
    code = "upstream_unavailable"
    should_retry = False


class UpstreamIdle(SourceError):
    """The upstream kept silent past a deadline."""

    status = 504
    code = "upstream_idle"
    outcome = "upstream_idle"


class UpstreamRejected(UpstreamFailed):
    """The upstream answered with an error status of its own, which is relayed with its body."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        body: bytes | None = None,
        retry_after: float | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        detail: str | None = None,
    ) -> None:
        super().__init__(message, status=status, retry_after=retry_after, detail=detail)
        self.body = body
        """The upstream's own JSON error body, relayed untouched; None: make one."""
        self.headers = headers
        """Headers relayed with it (``retry-after``, ``retry-after-ms``, ``x-should-retry``)."""


# --- limits -------------------------------------------------------------------------------------------------


class LimitReached(RawstreamError):
    """A limit that the operator set."""

    status = 503
    code = "overloaded"
    outcome = "budget"
    retry_after: float | None = 1.0


class TooManyStreams(LimitReached):
    """``max_streams`` are open already."""

    code = "too_many_streams"


class MemoryExhausted(LimitReached):
    """More is buffered, in all, than ``max_buffered_bytes`` allows."""

    code = "memory_exhausted"


class RateLimited(LimitReached):
    """The user asks for more in a minute than it may."""

    status = 429
    code = "rate_limit_exceeded"


class BudgetSpent(LimitReached):
    """The user's token budget is spent. Trying again does not help, and says so."""

    status = 429
    code = "insufficient_quota"
    retry_after = None
    should_retry = False


class StreamDeadline(LimitReached):
    """The stream ran for longer than ``stream_timeout``."""

    status = 504
    code = "stream_deadline"
    outcome = "deadline"
    retry_after = None


# --- ourselves ----------------------------------------------------------------------------------------------


class ServerShutdown(RawstreamError):
    """We closed: the server is going away."""

    status = 503
    code = "shutdown"
    outcome = "shutdown"
    retry_after = 1.0


class StreamStopped(RawstreamError):
    """We closed: somebody asked for this stream to stop."""

    status = 200
    code = "stopped"
    outcome = "stopped"


# --- misuse of this library ---------------------------------------------------------------------------------


class MisuseError(RawstreamError):
    """The calling code broke a contract of ours; the message names the mistake."""

    code = "misuse"


class ConcurrentWrite(MisuseError):
    """Two producers write to one response. There must be one."""


class SettingsError(RawstreamError):
    """A setting is unknown, or its value makes no sense; the message names the setting and where it came from."""

    code = "settings"

"""The nouns: what a token, a request, a source, a response, a dialect and an outcome are.

Rule 1: this module knows nothing else of rawstream; everything else may know it.
Rule 2: a source is pulled. Asking for the next item *is* the demand, ``aclose()`` *is* the cancellation.
Rule 3: a response gives permission (``wait_writable``) before anything is produced for it.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, NoReturn, Protocol, TypeAlias, runtime_checkable

import msgspec


class Outcome(enum.StrEnum):
    """How a stream ended. Exactly one per stream: the log's word, the metric's label, the test's assertion."""

    COMPLETED = "completed"
    CLIENT_LEFT = "client_left"
    CLIENT_STALLED = "client_stalled"
    CLIENT_MISBEHAVED = "client_misbehaved"
    SOURCE_FAILED = "source_failed"
    UPSTREAM_FAILED = "upstream_failed"
    UPSTREAM_IDLE = "upstream_idle"
    BUDGET = "budget"
    DEADLINE = "deadline"
    SHUTDOWN = "shutdown"
    STOPPED = "stopped"


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts as the OpenAI wire has them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class DataPart(msgspec.Struct, frozen=True):
    """Something beside the text that a source tells the page (progress, a citation): AI SDK's ``data-NAME`` parts."""

    name: str
    """Letters, digits, ``-`` and ``_``."""
    value: Any
    """Anything JSON can hold."""
    transient: bool = True
    """Transient parts are shown as they come and are not kept in the message."""


class Token(msgspec.Struct, frozen=True, gc=False):
    """One step of an answer. Sources of one's own yield plain ``str``; an upstream yields these, losing nothing."""

    text: str = ""
    """Text of choice ``index``; may be empty (a role chunk, a tool call, a finish)."""
    raw: bytes | None = None
    """The upstream's own event: its JSON, one line, untouched. None for a source of our own."""
    finish_reason: str | None = None
    usage: Usage | None = None
    index: int = 0
    """Which choice (OpenAI's ``n``) this belongs to."""
    data: DataPart | None = None
    """Told to clients whose dialect has a place for it; others do not see it."""


TokenItem: TypeAlias = str | Token
SourceItem: TypeAlias = str | Token | Sequence[str | Token]
"""What a source may yield: a string, a token, or several of them that became ready together."""


class _NoSignals:
    """The signals of a request that nobody can signal: none."""

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> NoReturn:
        raise StopAsyncIteration


NO_SIGNALS: Final = _NoSignals()
"""A source that takes none may put these in place of its request's: who signals it is told so from the start."""


def _never() -> bool:
    return False


class Request(msgspec.Struct):
    """What a source is asked for."""

    messages: list[dict[str, Any]]
    """The conversation in OpenAI's shape, untouched."""
    max_tokens: int | None = None
    model: str | None = None
    user: str | None = None
    extra: dict[str, Any] = {}
    """Every body field that rawstream does not know, untouched (``temperature``, ``tools``, ``mock`` …)."""
    id: str = ""
    """The stream's id (secret where no users are configured)."""
    signals: AsyncIterator[Any] = NO_SIGNALS
    """What the client sends beside the stream (``POST /streams/{id}/signal``), each as decoded JSON, in order. Ends
    when the stream does. One reader."""
    is_committed: Callable[[], bool] = _never
    """Has the client been told 200 already? Then nothing may be tried a second time."""
    trace: Trace | None = None
    """Where it is a part of something that is followed through several systems."""

    @property
    def prompt(self) -> str:
        """The text of the last user message; '' when there is none."""
        for message in reversed(self.messages):
            if message.get("role") == "user":
                content = message.get("content")
                if isinstance(content, str):
                    return content
                if isinstance(content, list):
                    return "".join(
                        str(part.get("text", ""))
                        for part in content
                        if isinstance(part, dict) and part.get("type") == "text"
                    )
                return ""
        return ""


class SourceStatistics(msgspec.Struct, frozen=True, gc=False):
    """What a running token stream holds, as of now."""

    buffered: int = 0
    """Bytes taken from the upstream's socket and not yet handed on."""
    peak_buffered: int = 0


@runtime_checkable
class TokenStream(Protocol):
    """One running generation: what an async generator is, and nothing more. It may offer ``statistics()`` too."""

    def __aiter__(self) -> AsyncIterator[SourceItem]: ...

    async def __anext__(self) -> SourceItem:
        """The next item. Cancel-safe: cancelling it cancels the generation."""
        ...

    async def aclose(self) -> None:
        """Stop the generation; its resources are released when this returns. Idempotent."""
        ...


@runtime_checkable
class MeasuredTokenStream(TokenStream, Protocol):
    """A token stream that can say what it holds."""

    def statistics(self) -> SourceStatistics: ...


@runtime_checkable
class Source(Protocol):
    """Where tokens come from. ``sources.as_source`` makes one of any async generator function or iterable."""

    name: str

    def tokens(self, request: Request) -> TokenStream:
        """Start a generation. Does no work (and no I/O) before the first ``__anext__``."""
        ...

    async def aclose(self) -> None:
        """Release what all generations share (a connection pool, a thread)."""
        ...


@runtime_checkable
class CompletionSource(Source, Protocol):
    """A source that can also give a whole answer as the OpenAI wire's JSON, so that nothing is lost in a relay."""

    async def complete(self, request: Request) -> bytes: ...

    async def models(self) -> bytes:
        """The body of ``GET /v1/models``."""
        ...


Headers: TypeAlias = Sequence[tuple[str, str]]


class Response(Protocol):
    """The one small protocol through which an answer is written, the same over HTTP/1.1, TLS and HTTP/2."""

    def start(self, status: int, headers: Headers) -> None:
        """Set the head. It leaves with the first write (or with ``finish``)."""
        ...

    @property
    def room(self) -> int:
        """Bytes that may be written now before permission ends; 0 when there is none."""
        ...

    async def wait_writable(self) -> None:
        """Wait for permission. Returns at once when there is room; raises when the client is gone."""
        ...

    def write_nowait(self, data: bytes) -> bool:
        """Write whole frames. Never blocks; raises when the client is gone or a producer already waits.

        False: the permission that was given is used up by this, however many bytes it was for.
        """
        ...

    async def drain(self) -> None:
        """Wait until the transport has gone below its low-water mark."""
        ...

    async def finish(self, last: bytes = b"") -> None:
        """Write ``last`` and the clean end of the body in one write, and flush, with a deadline."""
        ...

    async def cut(self, last: bytes = b"") -> None:
        """Write ``last``, flush with a deadline, then ``abort()``: the end of a failing stream."""
        ...

    def abort(self) -> None:
        """Cut the framing short at once: the client must see that the answer is not whole."""
        ...


class Dialect(Protocol):
    """Turns tokens into the bytes that one kind of client understands. One instance per stream; no I/O, no clock."""

    name: str
    heartbeat: bytes
    """Bytes to send after silence, valid between any two frames; b'' where the client survives none."""
    headers: Headers

    def head(self) -> bytes:
        """Frames that come before the first token (may be b'')."""
        ...

    def encode(self, items: Sequence[TokenItem]) -> bytes:
        """The frames of these tokens, joined; b'' when none of them has anything to show."""
        ...

    def error(self, message: str, code: str) -> bytes:
        """The in-stream error event; b'' where the dialect has none. Never followed by ``terminal``."""
        ...

    def terminal(self, finish_reason: str | None = None, reason: str | None = None) -> bytes:
        """The frames that say: this answer is whole. ``finish_reason`` overrides what the tokens said.

        ``reason``: a machine-readable word on why it ended where it did (an error's ``code``: a spent budget's).
        """
        ...

    def stopped(self, reason: str) -> bytes:
        """The frames that end an answer which was stopped on purpose. Take the place of ``terminal``."""
        ...


class StreamRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one stream: the line in the log."""

    id: str
    request_id: str
    path: str
    dialect: str
    outcome: Outcome
    ended_by: str
    """'client', 'source', 'upstream', 'server' or 'operator'."""
    status: int
    tokens: int
    """Generated: taken from the source."""
    delivered: int
    """Of these, taken by the client's kernel. The rest was abandoned."""
    bytes: int
    writes: int
    seconds: float
    first_token_seconds: float | None
    seconds_source: float
    seconds_client: float
    seconds_network: float
    user: str | None = None
    """Who asked; None: nobody was named."""
    detail: str | None = None


class Observer(Protocol):
    """Told about streams as they start and end. Must return quickly and never raise."""

    def stream_started(self, stream_id: str, path: str, dialect: str) -> None: ...

    def stream_ended(self, record: StreamRecord) -> None: ...


class Trace(Protocol):
    """One request, followed through several systems. Its methods return quickly and never raise."""

    def upstream_asked(self, host: str, port: int, model: str | None) -> Headers:
        """An upstream is about to be asked for ``model``, once per attempt: the header fields to send along."""
        ...

    def watch(self, tokens: TokenStream) -> TokenStream:
        """The stream to take tokens from instead of ``tokens``."""
        ...

    def answered(self, body: bytes) -> None:
        """The whole answer of a request that is not streamed: OpenAI's JSON."""
        ...

    def ended(self, outcome: Outcome, record: StreamRecord | None) -> None:
        """It is over. ``record``: what became of its stream, where it was one. Once."""
        ...


class Tracing(Protocol):
    """Where requests are followed to. Returns quickly and never raises."""

    def begin(self, request: Request, path: str, sent: Headers) -> Trace:
        """A request begins to be answered. ``sent``: its valid ``traceparent`` and ``tracestate``, if it has them."""
        ...

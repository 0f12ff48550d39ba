"""One request and its answer over HTTP/1.1.

Rule 1: an answer is begun once. Before its head has left, anything can still be answered; after it, the body ends
        cleanly or is cut, and nothing else.
Rule 2: permission is the transport's: there is room while the gate is open. The wait is ``StreamWriter.drain()``.
Rule 3: ``Connection: close`` is never sent with a chunked body: some clients then take a cut for the end.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from email.utils import formatdate
from time import time
from typing import Any, Final

import msgspec

from rawstream.errors import MisuseError, ProtocolViolation, RawstreamError
from rawstream.flow.gate import GateState
from rawstream.limits.users import User
from rawstream.model import Headers
from rawstream.server.channel import Channel
from rawstream.server.ids import random_id
from rawstream.wire.chunks import frame_chunk
from rawstream.wire.codec import Codec
from rawstream.wire.guard import body_too_large
from rawstream.wire.http1 import END_OF_BODY, RequestHead

_OPEN: Final = GateState.OPEN
_REQUEST_ID_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+=")
_JSON_HEADERS: Final = (
    ("content-type", "application/json"),
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
)
_SKIP_BODY_UP_TO: Final = 64 * 1024
"""An unread request body of at most this many bytes is skipped, so that the connection can be kept."""


class _Date:
    """The ``Date`` header, made once a second."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def __call__(self) -> str:
        second = int(time())
        if second != self._second:
            self._second = second
            self._text = formatdate(second, usegmt=True)
        return self._text


http_date = _Date()


def request_id(head: RequestHead) -> str:
    """The client's own ``x-request-id`` when it is harmless (1 to 128 visible characters), else a fresh one."""
    given = head.header("x-request-id")
    if given is not None and 0 < len(given) <= 128 and _REQUEST_ID_CHARACTERS.issuperset(given):
        return given
    return random_id(8)


Refusal = Callable[[RawstreamError], tuple[list[tuple[str, str]], bytes]]
"""Headers and body that tell an error to the clients of one path."""


def plain_refusal(error: RawstreamError) -> tuple[list[tuple[str, str]], bytes]:
    """``{"error": message, "code": code}``: what every endpoint but OpenAI's answers with."""
    body = msgspec.json.encode({"error": str(error), "code": error.code})
    return error_headers(error), body


def error_headers(error: RawstreamError) -> list[tuple[str, str]]:
    """``content-type``; ``retry-after`` in whole seconds and ``x-should-retry`` where they make sense."""
    headers = [("content-type", "application/json")]
    if error.retry_after is not None:
        headers.append(("retry-after", str(max(1, round(error.retry_after)))))
    if error.should_retry is not None:
        headers.append(("x-should-retry", "true" if error.should_retry else "false"))
    return headers


def error_answer(codec: Codec, error: ProtocolViolation) -> bytes:
    """The whole answer to bytes that never became a request; the connection closes after it."""
    refused, body = plain_refusal(error)
    headers = [("date", http_date()), *refused, ("content-length", str(len(body)))]
    return codec.response_head(error.status, headers) + codec.end(body)


class Exchange:
    """Request head and body, and the ``model.Response`` of the answer."""

    __slots__ = (
        "_connection",
        "_frame",
        "_head_bytes",
        "added",
        "close_after",
        "content",
        "finished",
        "head",
        "id",
        "params",
        "path",
        "refusal",
        "resumable",
        "started",
        "status",
        "stream_id",
        "user",
    )

    def __init__(self, connection: Channel, head: RequestHead) -> None:
        self._connection = connection
        self.head = head
        self.path = head.path
        """The path as the routes spell it, once known."""
        self.refusal: Refusal = plain_refusal
        self.params: dict[str, str] | None = None
        """The ``{name}`` segments of the path."""
        self.content = b""
        """The request body, once read."""
        self.id = request_id(head)
        """The request's id, told to the client as ``x-request-id`` and written in the log."""
        self.stream_id: str | None = None
        self.resumable: str | None = None
        """Of what was to be resumable, and is less than that: ``no``, or ``local`` (at this process alone)."""
        self.user: User | None = None
        """Who asks; None where no users are configured."""
        self.added: Headers = ()
        """Headers of whatever the answer will be, an error too."""
        self.started = False
        """Has ``start`` been called?"""
        self.status = 0
        """Of the answer, once it was started."""
        self.finished = False
        self.close_after = False
        self._frame: Callable[[bytes], bytes] = connection.codec.frame
        self._head_bytes = b""

    def param(self, name: str) -> str:
        """A ``{name}`` segment of the path."""
        return "" if self.params is None else self.params.get(name, "")

    @property
    def connection(self) -> Channel:
        return self._connection

    # --- the request -------------------------------------------------------------------------------------

    async def body(self, most: int | None = None) -> bytes:
        """The whole request body. Raises ``ProtocolViolation`` (413, 408, 400) or what lost the connection.

        ``most``: bytes, where the path takes less than ``max_body``.
        """
        connection = self._connection
        codec = connection.codec
        if not self.head.has_body:
            return b""
        if most is not None and (self.head.content_length or 0) > most:
            raise body_too_large(most)
        if self.head.expects_continue and not codec.buffered:
            connection.write(codec.continue_100())
        parts: list[bytes] = []
        size = 0
        waited = False
        try:
            while True:
                data = codec.next_body()
                if data is END_OF_BODY:
                    return b"".join(parts)
                if data is None:
                    if not waited:
                        waited = True
                        connection.expect_body()
                    codec.receive(await connection.read_some())
                elif isinstance(data, bytes):
                    parts.append(data)
                    size += len(data)
                    if most is not None and size > most:
                        raise body_too_large(most)
        finally:
            if waited:
                connection.clear_deadline()

    # --- the response: model.Response --------------------------------------------------------------------

    def start(self, status: int, headers: Headers) -> None:
        """Set the head; it leaves with the first write. Once."""
        if self.started:
            raise MisuseError("the answer was started twice")
        self.started = True
        self.status = status
        all_headers: list[tuple[str, str]] = [("date", http_date()), ("x-request-id", self.id), *headers]
        if self.added:
            all_headers.extend(self.added)
        if self.stream_id is not None:
            all_headers.append(("x-stream-id", self.stream_id))
            if self.resumable is not None:
                all_headers.append(("x-resumable", self.resumable))
        if self.close_after:
            all_headers.append(("connection", "close"))
        codec = self._connection.codec
        self._head_bytes = codec.response_head(status, all_headers)
        # What ``codec.frame`` would come to for each token of a stream.
        self._frame = frame_chunk if codec.framing == "chunked" else codec.frame

    @property
    def user_name(self) -> str | None:
        """Who asks; None where no users are configured."""
        return None if self.user is None else self.user.name

    @property
    def room(self) -> int:
        return self._connection.room

    def wait_writable(self) -> Coroutine[Any, Any, None]:
        """Wait for permission. Cancel-safe. Raises why the connection was lost."""
        return self._connection.writer.drain()

    def drain(self) -> Coroutine[Any, Any, None]:
        return self._connection.writer.drain()

    def forget_request(self) -> None:
        """A stream begins: what its request said is not needed any more, and may be large."""
        self.head = self.head.without_fields()
        self.params = None
        self.content = b""

    def write_nowait(self, data: bytes) -> bool:
        connection = self._connection
        if connection.gate.state is not _OPEN:  # while it is open nobody waits
            connection.gate.check()
        framed = self._frame(data)
        if self._head_bytes:
            framed = self._head_bytes + framed
            self._head_bytes = b""
        connection.write(framed)
        return connection.gate.state is _OPEN

    async def finish(self, last: bytes = b"") -> None:
        """Write ``last`` and the end of the body in one write; wait until the kernel has all of it."""
        connection = self._connection
        connection.gate.check()
        end = self._head_bytes + connection.codec.end(last)
        self._head_bytes = b""
        connection.write(end)
        self.finished = True
        await connection.flush()

    async def cut(self, last: bytes = b"") -> None:
        """Write ``last``, flush for at most ``flush_timeout``, and end the body so that it is seen to be cut."""
        connection = self._connection
        if connection.gate.reason is None:
            if last:
                self.write_nowait(last)
            connection.streaming = False
            try:
                await connection.flush(timeout=connection.host.settings.flush_timeout)
                connection.cut_in_a_moment(self.abort)
                return
            except RawstreamError:
                pass  # it is cut already
        self.abort()

    def abort(self) -> None:
        connection = self._connection
        if connection.gate.reason is None and connection.codec.framing == "close":
            connection.reset()
        else:
            connection.transport.abort()

    # --- whole answers -----------------------------------------------------------------------------------

    async def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """A whole answer with ``Content-Length``, in one write. HEAD gets the head alone."""
        length = () if status in (204, 304) else (("content-length", str(len(body))),)
        if self.head.has_body and not self.close_after:
            await self._skip_body()
        self.start(status, [*headers, *length])
        await self.finish(body)

    async def respond_json(self, body: bytes, status: int = 200) -> None:
        await self.respond(status, _JSON_HEADERS, body)

    async def refuse(self, error: RawstreamError, headers: Headers = ()) -> None:
        """Answer with an error, when nothing has been answered yet. Closes after what was not HTTP."""
        if isinstance(error, ProtocolViolation):
            self.close_after = True
        told, body = self.refusal(error)
        await self.respond(error.status, [*told, *headers], body)

    def complete(self) -> bool:
        """After the answer. True when the connection can serve another request."""
        return self.finished and self._connection.gate.reason is None and self._connection.codec.next_cycle()

    async def _skip_body(self) -> None:
        """Read what is left of a small request body that nobody wanted, so that the connection can be kept."""
        length = self.head.content_length
        if length is not None and length <= _SKIP_BODY_UP_TO and not self.head.expects_continue:
            try:
                await self.body()
            except ProtocolViolation:
                self.close_after = True

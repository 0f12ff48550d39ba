"""The server's half of one HTTP/1.1 connection (RFC 9110, RFC 9112): bytes in, requests out, and back. No I/O.

Rule 1: the guard reads the raw head; h11 is the judge of what follows from it: which framing an answer gets, what
        must be sent to say so, and whether the connection lives on. It is asked once for each shape of exchange
        (``verdict.py``).
Rule 2: a body's bytes do not pass through h11. Request bodies are decoded here, and chunks are framed here (0.1 µs
        instead of 2.4); a test compares whole answers with h11's own bytes.
Rule 3: never ``Connection: close`` on a chunked or close-delimited stream: some clients would then take a cut stream
        for a whole one. There the closing of the socket says it.
Rule 4: a fault is final. After a ProtocolViolation the codec takes no more input; one answer may still be sent,
        and it closes the connection.
Rule 5: nothing is kept that is not needed: an idle codec holds no head and no buffer.

One cycle: ``receive`` … ``next_head`` … ``next_body`` until END_OF_BODY … ``response_head`` … ``frame`` … ``end`` …
``next_cycle``. Bytes of a next request that came early wait in the buffer (``buffered``); bounding that is up to the
caller, who decides when to read.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from rawstream.errors import ClientDisconnected, MisuseError, ProtocolViolation
from rawstream.wire.chunks import END_OF_BODY, ChunkDecoder, EndOfBody, frame_chunk
from rawstream.wire.guard import TOKEN, HeadLimits, RequestHead, first_fault, read_head
from rawstream.wire.verdict import CONTINUE, Framing, Shape, verdict

__all__ = ["END_OF_BODY", "NEED_DATA", "EndOfBody", "Framing", "RequestHead", "ServerCodec"]

NEED_DATA: Final = None
"""What ``next_head`` and ``next_body`` return when more bytes must be received first."""

_TELLING: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""Bytes that may complete a line, or a fault, of an incomplete head."""
_TELLING_FIRST: Final = re.compile(rb"[^\x20-\x7e]")
"""The same within the request line."""
_LINE: Final = re.compile(rf"{TOKEN}+: [\t\x20-\x7e\x80-\xff]*\r\n")


class Phase(enum.Enum):
    """Where the present exchange stands."""

    IDLE = "idle"
    REQUEST = "request"
    ANSWER = "answer"
    DONE = "done"


class _Field(NamedTuple):
    line: bytes
    role: Literal["", "length", "close", "keep"]


class ServerCodec:
    """The server role of one HTTP/1.1 connection."""

    __slots__ = (
        "_body",
        "_broken",
        "_buffer",
        "_end",
        "_eof",
        "_expects_continue",
        "_framing",
        "_keep_alive",
        "_left",
        "_limits",
        "_may_skip_line",
        "_method",
        "_reusable",
        "_scanned",
        "_version",
        "phase",
    )

    def __init__(self, *, max_head: int, max_request_line: int, max_fields: int, max_body: int) -> None:
        """The limits, in bytes (``max_fields``: in fields), as ``HeadLimits`` explains them."""
        self._limits = _limits(max_head, max_request_line, max_fields, max_body)
        self.phase = Phase.IDLE
        self._buffer = bytearray()
        self._scanned = 0
        self._eof = False
        self._broken: ProtocolViolation | None = None
        self._may_skip_line = True
        self._method = ""
        self._body: int | ChunkDecoder | None = None
        """What is left of the request's body: bytes, or a decoder; None: nothing."""
        self._version = "1.1"
        self._left = 0
        """Bytes that an answer of known length still owes."""
        self._end = b""
        self._reusable = False
        self._expects_continue = False
        self._keep_alive = True
        self._framing: Framing = "none"

    # --- the request --------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Keep bytes from the peer; ``b""`` says that it will send no more. Parses nothing."""
        if not data:
            self._eof = True
        elif self._broken is None:
            self._buffer += data

    @property
    def buffered(self) -> int:
        """Bytes received and not consumed yet."""
        return len(self._buffer)

    @property
    def at_eof(self) -> bool:
        """The peer will send no more, and all that it sent has been consumed."""
        return self._eof and not self._buffer

    @property
    def body_complete(self) -> bool:
        """No more bytes of the present request are on their way. False after a fault: then nobody can tell."""
        return self._body is None and self._broken is None

    def next_head(self) -> RequestHead | None:
        """The next request's head; None when more bytes are needed, or at the peer's end between two requests.

        Raises ProtocolViolation (with the status to answer), ClientDisconnected when the peer's end comes within a
        head, MisuseError while a request is still being answered (call ``next_cycle``).
        """
        if self._broken is not None:
            raise self._broken
        if self.phase is not Phase.IDLE:
            raise MisuseError("next_head() before the present request is over: call end() and next_cycle() first")
        buffer = self._buffer
        if self._may_skip_line and buffer.startswith(b"\r\n"):
            del buffer[:2]  # RFC 9112 §2.2: some clients send one after a body
            self._may_skip_line = False
            self._scanned = 0
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3)) + 4
        if end < 4 or end > self._limits.max_head:
            self._judge_incomplete_head()
            return NEED_DATA
        raw = bytes(buffer[:end])
        try:
            head = read_head(raw, self._limits)
        except ProtocolViolation as violation:
            if raw.startswith(b"HEAD "):
                self._method = "HEAD"  # so that the refusal comes without a body
            raise self._break(violation) from None
        del buffer[:end]
        self._scanned = 0
        self._may_skip_line = True
        self._expects_continue = head.expects_continue
        self._keep_alive = head.keep_alive
        if head.has_body:
            self._body = ChunkDecoder(self._limits.max_body) if head.chunked else head.content_length
        self._method = head.method
        self._version = head.version
        self.phase = Phase.REQUEST
        return head

    def next_body(self) -> bytes | EndOfBody | None:
        """Some of the body (all that has been received of it), None when more bytes are needed, END_OF_BODY at its end.

        Raises ProtocolViolation for a malformed body (400, or 413 over ``max_body``), ClientDisconnected when the
        peer's end comes before the body's.
        """
        if self._broken is not None:
            raise self._broken
        body = self._body
        if body is None:
            return END_OF_BODY
        data: bytes | EndOfBody | None = None
        if isinstance(body, int):
            data = bytes(self._buffer[:body])
            del self._buffer[:body]
            self._body = body - len(data)
            if self._body == 0:
                self._body = None
        else:
            try:
                data = body.take(self._buffer)
            except ProtocolViolation as violation:
                raise self._break(violation) from None
            if data is END_OF_BODY:
                self._body = None
        if data:
            return data
        if self._eof:
            raise ClientDisconnected("the client left before its request was complete")
        return NEED_DATA

    # --- the response -------------------------------------------------------------------------------------------

    def continue_100(self) -> bytes:
        """The ``100 Continue`` that the client waits for (RFC 9110 §10.1.1); ``b""`` when it waits for none."""
        if not self._expects_continue or self._body is None or self.phase is not Phase.REQUEST:
            return b""
        self._expects_continue = False
        return CONTINUE

    def response_head(self, status: int, headers: Sequence[tuple[str, str]], *, head_only: bool = False) -> bytes:
        """The head of the answer, in the framing that ``framing`` then names.

        A ``content-length`` among ``headers`` delimits the body by length; without one it is chunked on HTTP/1.1 and
        delimited by closing on HTTP/1.0. ``connection: close`` among them closes the connection after the answer.
        An answer that begins before the request has been read to its end closes it too. ``head_only``: the caller knows
        that the request is HEAD, so no body follows (none ever does for HEAD, 204 and 304).

        Raises ValueError, naming the header, for one that cannot be sent as it is; MisuseError when it is not the
        time for a response head.
        """
        if self.phase in (Phase.ANSWER, Phase.DONE):
            raise MisuseError("the answer has begun already")
        lines: list[bytes] = []
        length: str | None = None
        read = self.body_complete
        if not read or not self._method:
            self._keep_alive = False
        for name, value in headers:
            field = _one_off(name, value) if name in _VARYING else _field(name, value)
            if not field.role:
                lines.append(field.line)
            elif field.role == "length":
                length = value
            elif field.role == "close":
                self._keep_alive = False
        if head_only and self._method != "HEAD":
            raise MisuseError(f"head_only in the answer to a {self._method or 'broken'} request")
        if status == 204:
            length = None  # RFC 9110 §8.6
        if self._broken is not None and self._method != "HEAD":
            self._method = ""
        said = verdict(Shape(self._method, self._version, self._keep_alive, read, status, length is not None))
        if length is not None:
            self._left = int(length) if length.isascii() and length.isdigit() else -1
            if self._left < 0:
                raise ValueError(f"content-length must be a number of bytes, not {length!r}")
            lines.append(b"content-length: %d\r\n" % self._left)
        self._framing, self._end, self._reusable = said.framing, said.end, said.reusable
        self.phase = Phase.ANSWER
        return said.head + b"".join(lines) + b"\r\n"

    @property
    def framing(self) -> Framing:
        """How the body of the answer is delimited; ``none``: it has no body, or has not begun."""
        return self._framing

    def frame(self, data: bytes) -> bytes:
        """``data`` in the framing of the answer; ``b""`` when it has no body.

        Raises MisuseError for more data than the announced length.
        """
        framing = self._framing
        if framing == "chunked":
            return frame_chunk(data)
        if framing == "length":
            self._left -= len(data)
            if self._left < 0:
                raise MisuseError(f"the answer is {-self._left} bytes longer than its content-length")
            return data
        return data if framing == "close" else b""

    def end(self, last: bytes = b"") -> bytes:
        """``last`` and the end of the body, to be written together.

        Raises MisuseError when the answer has not begun, has ended, or is shorter than it was announced to be.
        """
        if self.phase is not Phase.ANSWER:
            raise MisuseError("there is no answer to end: it has not begun, or has ended")
        data = self.frame(last)
        if self._framing == "length" and self._left:
            raise MisuseError(f"the answer is {self._left} bytes shorter than its content-length")
        self._framing = "none"
        self.phase = Phase.DONE
        return data + self._end

    def next_cycle(self) -> bool:
        """After ``end``: make ready for the next request. False: the connection cannot serve another one."""
        if self.phase is not Phase.DONE or not self._reusable or not self.body_complete:
            return False
        self.phase = Phase.IDLE
        self._method = ""
        return True

    # --- what both need -----------------------------------------------------------------------------------------

    def _judge_incomplete_head(self) -> None:
        """Judge what there is of a head that is not complete, or too long. Returns when it may become a good one."""
        buffer, limits = self._buffer, self._limits
        in_first_line = b"\n" not in buffer
        longest = limits.max_request_line if in_first_line else limits.max_head
        telling = _TELLING_FIRST if in_first_line else _TELLING
        if len(buffer) > min(longest, limits.max_head) or telling.search(buffer, max(0, self._scanned - 1)):
            fault = first_fault(bytes(buffer[: limits.max_head + 1]), limits)
            if fault is not None:
                raise self._break(fault)
        self._scanned = len(buffer)
        if self._eof and buffer:
            raise ClientDisconnected("the client left before its request was complete")

    def _break(self, violation: ProtocolViolation) -> ProtocolViolation:
        self._broken = violation
        self._buffer.clear()
        return violation


@functools.lru_cache(maxsize=16)
def _limits(max_head: int, max_request_line: int, max_fields: int, max_body: int) -> HeadLimits:
    """One object for all the connections of a server."""
    return HeadLimits(max_head, max_request_line, max_fields, max_body)


_VARYING: Final = frozenset({"x-request-id", "x-stream-id"})
"""Headers whose value is another one each time: remembering their lines would push the others out."""


def _one_off(name: str, value: str) -> _Field:
    """One line of a response head, and what it decides. Raises ValueError when it cannot be sent as it is."""
    text = f"{name}: {value}\r\n"
    if not _LINE.fullmatch(text):
        raise ValueError(
            f"the header {name!r} cannot be sent: its name is no token, or its value holds CR, LF, NUL, "
            "another control character, or one beyond latin-1"
        )
    line = text.encode("latin-1")
    lower = name.lower()
    if lower == "transfer-encoding":
        raise ValueError("the header 'transfer-encoding' is the codec's own: framing follows from content-length")
    if lower == "content-length":
        return _Field(line, "length")
    if lower == "connection":
        if value.lower() not in ("close", "keep-alive"):
            raise ValueError(f"the header 'connection' can be close or keep-alive, not {value!r}")
        return _Field(line, "close" if value.lower() == "close" else "keep")
    return _Field(line, "")


_field: Final = functools.lru_cache(maxsize=512)(_one_off)
"""``_one_off``, remembered: most lines repeat from answer to answer."""

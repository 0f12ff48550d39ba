"""The client's half of one HTTP/1.1 connection (RFC 9110, RFC 9112): a request out, a response in. No I/O.

Rule 1: h11 writes the request's head and judges the connection's life (keep-alive or not, order of things). The raw
        response head is read here first, strictly; h11 is told what decides, in a head of our own.
Rule 2: body bytes do not pass through h11 (10 µs per chunk). They are decoded here, many chunks in a few steps.
Rule 3: whatever is not HTTP/1.x to the letter is ``UpstreamFailed``: a lenient reader is what smuggling needs.
Rule 4: a body says how it ended. Cut before its own end: ``UpstreamFailed``. Ended by the closing of the connection:
        ``self_delimited`` is false, and only the caller, who knows the content, can tell whether it is whole.

One cycle: ``request`` … ``receive_head`` until it gives a head … ``decode`` until ``ended`` … ``next_cycle``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import ClassVar, Final, Literal, TypeAlias

import h11
import msgspec

from rawstream.errors import MisuseError, UpstreamFailed
from rawstream.wire.guard import TOKEN

MAX_HEAD: Final = 32 * 1024
"""Bytes of a whole response head, the empty line included."""
MAX_FIELDS: Final = 100
MAX_LINE: Final = 16 + 256 + 2
"""Bytes of a chunk's size line: 16 digits, an extension of 256 bytes, CRLF."""
MAX_TRAILERS: Final = 8 * 1024

Framing: TypeAlias = Literal["chunked", "length", "close", "none"]

_STATUS_LINE: Final = r"HTTP/(1\.[01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?\r\n"
_FIELD_LINE: Final = rf"{TOKEN}+:[\t\x20-\x7e\x80-\xff]*\r\n"
_HEAD: Final = re.compile(rf"{_STATUS_LINE}((?:{TOKEN}++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+)\r\n")
_START: Final = b"HTTP/1."
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,16}")
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e]*)?\r\n")
_SIZE_LINE_SO_FAR: Final = re.compile(rb"[0-9A-Fa-f]{0,16}(?:(?<=[0-9A-Fa-f])(?:;[\t\x20-\x7e]*)?\r?)?")
_TRAILER: Final = re.compile(_FIELD_LINE.encode())
_CUT: Final = "the upstream cut its stream"


class ResponseHead(msgspec.Struct, frozen=True, gc=False):
    """A final response head that may be acted upon."""

    status: int
    headers: tuple[tuple[str, str], ...]
    """Names in lower case; values decoded as latin-1, without surrounding white space."""
    framing: Framing
    length: int
    """Bytes of the body where the framing is ``length``; else 0."""
    version: str

    def header(self, name: str) -> str | None:
        """The value of the field called ``name`` (lower case), repeated ones joined with ``", "``; None: not sent."""
        values = [value for key, value in self.headers if key == name]
        return ", ".join(values) if values else None


def read_head(raw: bytes, method: str) -> ResponseHead:
    """Read a whole response head (RFC 9112 §4–§6), the answer to a request of this ``method``.

    Raises UpstreamFailed when it is not one that may be acted upon.
    """
    match = _HEAD.fullmatch(raw.decode("latin-1"))
    if match is None:
        raise UpstreamFailed("the upstream's answer is not well-formed HTTP/1.1")
    version, status_text, block = match.groups()
    lines = block.split("\r\n")
    lines.pop()
    if len(lines) > MAX_FIELDS:
        raise UpstreamFailed(f"the upstream's answer has more than {MAX_FIELDS} header fields")
    headers = []
    for line in lines:
        name, _, value = line.partition(":")
        headers.append((name.lower(), value.strip(" \t")))
    status = int(status_text)
    framing, length = _framing(headers, version)
    if method == "HEAD" or status in (204, 304) or status < 200:
        framing, length = "none", 0
    return ResponseHead(status, tuple(headers), framing, length, version)


def _framing(headers: Sequence[tuple[str, str]], version: str) -> tuple[Framing, int]:
    """How the body is delimited (RFC 9112 §6.3)."""
    codings = [value for name, value in headers if name == "transfer-encoding"]
    lengths = [value for name, value in headers if name == "content-length"]
    if codings:
        if lengths or version != "1.1":
            raise UpstreamFailed("the upstream's answer contradicts itself about its length")
        if len(codings) > 1 or codings[0].lower() != "chunked":
            raise UpstreamFailed("the upstream uses a transfer coding other than chunked")
        return "chunked", 0
    if not lengths:
        return "close", 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise UpstreamFailed("the upstream's Content-Length is not one plain number")
    return "length", int(lengths[0])


# --- bodies -------------------------------------------------------------------------------------------------


class _Sizes(dict[bytes, int]):
    """Chunk sizes by their text, so that a common one costs a look-up. -1: not a plain size."""

    _MOST: Final = 4096

    def __missing__(self, text: bytes) -> int:
        size = int(text, 16) if _SIZE.fullmatch(text) else -1
        if len(self) < self._MOST and len(text) <= 4:
            self[text] = size
        return size


_SIZES: Final = _Sizes()


class LengthBody:
    """A body of announced length."""

    __slots__ = ("_left", "ended", "surplus")
    fault: ClassVar[None] = None

    def __init__(self, length: int) -> None:
        self._left = length
        self.ended = length == 0
        self.surplus = False
        """Did bytes come after the end? Then nobody knows what the connection's next bytes are."""

    @property
    def buffered(self) -> int:
        return 0

    def decode(self, data: bytes) -> bytes:
        """The body's part of ``data``."""
        if len(data) > self._left:
            self.surplus = True
            data = data[: self._left]
        self._left -= len(data)
        self.ended = self._left == 0
        return data

    def eof(self) -> None:
        """The connection ended. Raises UpstreamFailed when that was before the body's end."""
        if not self.ended:
            raise UpstreamFailed(_CUT, detail=f"{self._left} bytes of the announced length are missing")


class CloseBody:
    """A body that lasts as long as the connection."""

    __slots__ = ("ended", "surplus")
    fault: ClassVar[None] = None

    def __init__(self) -> None:
        self.ended = False
        self.surplus = False

    @property
    def buffered(self) -> int:
        return 0

    def decode(self, data: bytes) -> bytes:
        return data

    def eof(self) -> None:
        self.ended = True


class ChunkedBody:
    """A body in the chunked coding (RFC 9112 §7.1). Strict; extensions and trailers are checked and dropped.

    Theory of operation: an event stream comes as many small chunks whose data holds no CRLF. Between two chunks a
    split at CRLF therefore gives sizes and data in turn; when every size is its data's length, they *are* the chunks.
    Whatever else there is goes element by element.
    """

    __slots__ = ("_closing", "_left", "_tail", "_trailers", "ended", "fault", "surplus")

    def __init__(self) -> None:
        self._left = 0
        """Bytes of the present chunk's data that are still to come."""
        self._closing = False
        """Is the CRLF after a chunk's data due?"""
        self._trailers = -1
        """Bytes that trailers may still take; -1: not there yet."""
        self._tail = b""
        """The start of an unfinished element: a size line, a CRLF, a trailer."""
        self.fault: UpstreamFailed | None = None
        """What was wrong after good data: the data is given out first, this is to be raised next."""
        self.ended = False
        self.surplus = False

    @property
    def buffered(self) -> int:
        """Bytes taken that belong to an unfinished element."""
        return len(self._tail)

    def decode(self, data: bytes) -> bytes:
        """The data of the chunks in ``data``, joined. Raises UpstreamFailed for bad framing.

        Good data that came before a fault is given out first; ``fault`` is then set.
        """
        pieces: list[bytes] = []
        try:
            self._take(self._tail + data if self._tail else data, pieces)
        except UpstreamFailed as fault:
            self.fault = fault
            if not pieces:
                raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _take(self, data: bytes, pieces: list[bytes]) -> None:
        """Decode element by element, or many chunks at once; keep the start of an unfinished element."""
        self._tail = b""
        tried = False
        while data and not self.ended and not self._tail:
            if self._left:
                pieces.append(data[: self._left])
                data = data[self._left :]
                self._left -= len(pieces[-1])
                self._closing = not self._left
            elif self._closing:
                if not b"\r\n".startswith(data[:2]):
                    raise UpstreamFailed("the upstream's chunk is not followed by CRLF")
                self._closing = len(data) < 2
                self._tail = data if self._closing else b""
                data = data[2:]
            elif self._trailers >= 0:
                data = self._trailer(data)
            elif tried:
                data = self._size(data)
            else:
                tried = True
                data = _whole_chunks(data, pieces)
        if self.ended and data:
            self.surplus = True

    def eof(self) -> None:
        """The connection ended. Raises UpstreamFailed when that was before the last chunk."""
        if self.fault is not None:
            raise self.fault
        if not self.ended:
            raise UpstreamFailed(_CUT, detail="the connection ended before the last chunk")

    def _size(self, data: bytes) -> bytes:
        end = data.find(b"\n", 0, MAX_LINE) + 1
        if not end:
            if len(data) >= MAX_LINE or not _SIZE_LINE_SO_FAR.fullmatch(data):
                raise UpstreamFailed("the upstream's chunk size is malformed")
            self._tail = data
            return b""
        match = _SIZE_LINE.fullmatch(data, 0, end)
        if match is None:
            raise UpstreamFailed("the upstream's chunk size is malformed")
        self._left = int(match.group(1), 16)
        if not self._left:
            self._trailers = MAX_TRAILERS
        return data[end:]

    def _trailer(self, data: bytes) -> bytes:
        end = data.find(b"\n", 0, self._trailers) + 1
        if not end:
            if len(data) >= self._trailers:
                raise UpstreamFailed("the upstream's trailers are too long")
            self._tail = data
            return b""
        if end == 2 and data[0] == 13:
            self.ended = True
        elif not _TRAILER.fullmatch(data, 0, end):
            raise UpstreamFailed("the upstream's trailers are malformed")
        self._trailers -= end
        return data[end:]


def _whole_chunks(data: bytes, pieces: list[bytes]) -> bytes:
    """Add the data of the whole chunks at the front of ``data`` to ``pieces``, if all are plain; return the rest."""
    parts = data.split(b"\r\n")
    pairs = (len(parts) - 1) // 2
    sizes = [_SIZES[text] for text in parts[0 : 2 * pairs : 2]]
    chunks = parts[1 : 2 * pairs : 2]
    if 0 in sizes or sizes != list(map(len, chunks)):
        return data
    pieces += chunks
    return b"\r\n".join(parts[2 * pairs :])


Body: TypeAlias = LengthBody | CloseBody | ChunkedBody


# --- the connection -----------------------------------------------------------------------------------------


class ClientCodec:
    """The client role of one HTTP/1.1 connection, over any number of request cycles."""

    __slots__ = ("_answered", "_head", "_method", "_under_way", "body")

    def __init__(self) -> None:
        self._method = ""
        self._head = bytearray()
        self._under_way = False
        self._answered: ResponseHead | None = None
        self.body: Body = LengthBody(0)
        """The present response's body: feed ``body.decode`` once the head is there."""

    @property
    def receiving_head(self) -> bool:
        """Has any byte of a response head that is not whole yet been taken?"""
        return bool(self._head)

    def request(self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes) -> bytes:
        """The bytes of a whole request. Raises MisuseError when they would not be one request."""
        if self._under_way:
            raise MisuseError("a request is under way on this connection")
        head = _request_head(method, target, tuple(headers))
        self._method = method
        self._under_way = True
        if body or method == "POST":
            return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
        return head + b"\r\n"

    def receive_head(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        """Take bytes; give the final response's head and the bytes after it, or None while it is not whole.

        Interim (1xx) responses are passed over. Raises UpstreamFailed.
        """
        searched = max(0, len(self._head) - 3)
        self._head += data
        while True:
            if not _START.startswith(self._head[: len(_START)]):
                raise UpstreamFailed("the upstream's answer is not HTTP/1.1")
            end = self._head.find(b"\r\n\r\n", searched, MAX_HEAD) + 4
            searched = 0
            if end == 3:
                if len(self._head) >= MAX_HEAD:
                    raise UpstreamFailed(f"the head of the upstream's answer is longer than {MAX_HEAD} bytes")
                return None
            raw = bytes(self._head[:end])
            del self._head[:end]
            head = read_head(raw, self._method)
            if head.status == 101:
                raise UpstreamFailed("the upstream switched protocols, which nobody asked for")
            if head.status >= 200:
                rest = bytes(self._head)
                self._head = bytearray()
                self._answered = head
                self.body = _body_of(head)
                return head, rest
            if not self._head:
                return None

    def next_cycle(self) -> bool:
        """After the end of a response: may the connection take another request? If so, it is ready for it."""
        if not self.body.ended or self.body.surplus or isinstance(self.body, CloseBody):
            return False
        head = self._answered
        if head is None:
            return False
        connection = tuple(value for name, value in head.headers if name == "connection")
        if not _goes_on(self._method, head.version, head.status, connection, head.framing):
            return False
        self._answered = None
        self._under_way = False
        return True


@functools.lru_cache(maxsize=64)
def _request_head(method: str, target: str, headers: tuple[tuple[str, str], ...]) -> bytes:
    """A request's head as h11 writes it, but for its length and its end. The same one is sent again and again."""
    try:
        request = h11.Request(method=method, target=target, headers=list(headers))
        head = h11.Connection(h11.CLIENT).send(request) or b""
    except h11.LocalProtocolError as error:
        # h11's message may quote a header's value, and one of them is the key.
        raise MisuseError("the request to the upstream would not be valid HTTP") from error.with_traceback(None)
    return head[:-2]


@functools.lru_cache(maxsize=256)
def _goes_on(method: str, version: str, status: int, connection: tuple[str, ...], framing: str) -> bool:
    """May the connection take another request after this exchange? h11's word, asked once for each shape of it.

    To h11 a body that is delimited by itself is empty. It has no cause to object: the line is ours, and a
    ``Connection`` value passed a stricter reading than its own.
    """
    judge = h11.Connection(h11.CLIENT)
    judge.send(h11.Request(method=method, target="/", headers=[("host", "h")]))
    judge.send(h11.EndOfMessage())
    lines = [f"HTTP/{version} {status} ", *(f"connection: {value}" for value in connection)]
    if framing in ("chunked", "length"):
        lines.append("content-length: 0")
    judge.receive_data("\r\n".join([*lines, "\r\n"]).encode("latin-1"))
    judge.next_event()
    ended = isinstance(judge.next_event(), h11.EndOfMessage)
    return ended and judge.their_state is h11.DONE and judge.our_state is h11.DONE


def _body_of(head: ResponseHead) -> Body:
    if head.framing == "chunked":
        return ChunkedBody()
    if head.framing == "close":
        return CloseBody()
    return LengthBody(head.length)

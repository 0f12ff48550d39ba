"""The client's half of one HTTP/1.1 connection (RFC 9110, RFC 9112): a request out, a response in. No I/O.

Rule 1: h11 writes the request's head and judges the connection's life (keep-alive or not, order of things). The raw
        response head is read here first, strictly; h11 is told what decides, in a head of our own.
Rule 2: whatever is not HTTP/1.x to the letter is ``UpstreamFailed``: a lenient reader is what smuggling needs.
Rule 3: body bytes do not pass through h11; ``http1_bodies`` decodes them, and says how a body ended.

One cycle: ``request`` … ``receive_head`` until it gives a head … ``decode`` until ``ended`` … ``next_cycle``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import h11
import msgspec

from rawstream.errors import MisuseError, UpstreamFailed
from rawstream.wire.guard import TOKEN
from rawstream.wire.http1_bodies import Body, ChunkedBody, CloseBody, LengthBody

MAX_HEAD: Final = 32 * 1024
"""Bytes of a whole response head, the empty line included."""
MAX_FIELDS: Final = 100

Framing: TypeAlias = Literal["chunked", "length", "close", "none"]

_STATUS_LINE: Final = r"HTTP/(1\.[01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?\r\n"
_HEAD: Final = re.compile(rf"{_STATUS_LINE}((?:{TOKEN}++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+)\r\n")
_START: Final = b"HTTP/1."
_LENGTH: Final = re.compile(r"[0-9]{1,18}")


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
        found: str | None = None
        for key, value in self.headers:
            if key == name:
                found = value if found is None else f"{found}, {value}"
        return found


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

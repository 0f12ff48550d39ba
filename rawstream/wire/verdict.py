"""What h11 says about one shape of exchange: asked once, remembered.

Rule 1: h11 is the judge of heads, framing, ends and whether a connection lives on. Its verdict follows from the shape
        of the exchange alone (method, version, who asked to close, whether the body was read, status, whether a
        length is known), so it need not be asked twice.
Rule 2: nothing that varies within a shape (header values, the length, the data) goes through here.

Theory of operation: a cycle of ``h11.Connection`` costs 28 µs, a third of a short request; a look-up costs 0.2 µs. A
test plays random exchanges against a live ``h11.Connection`` and compares every byte.
"""

from __future__ import annotations

import functools
import http
from typing import Final, Literal, NamedTuple, TypeAlias

import h11

Framing: TypeAlias = Literal["chunked", "length", "close", "none"]


class Shape(NamedTuple):
    """All that h11's verdict depends on."""

    method: str
    """``""``: the bytes never became a request."""
    version: str
    keep_alive: bool
    """Nobody asked to close: neither the request nor the answer."""
    body_read: bool
    """The request was read to its end before the answer began."""
    status: int
    has_length: bool


class Verdict(NamedTuple):
    """What to send, and what it means."""

    head: bytes
    """Status line and the fields that decide about framing and the connection, but for ``content-length``."""
    framing: Framing
    end: bytes
    """What ends the body."""
    reusable: bool
    """May the connection serve another request?"""


_END_OF_MESSAGE: Final = h11.EndOfMessage()
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
"""RFC 9110 §15.2.1, as h11 writes it; a test compares."""


def _reason(status: int) -> bytes:
    try:
        return http.HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""


@functools.lru_cache(maxsize=1024)
def verdict(shape: Shape) -> Verdict:
    """Play the exchange with h11. Raises ValueError for a status that no answer can have."""
    connection = h11.Connection(h11.SERVER)
    if shape.method:
        close = "" if shape.keep_alive else "connection: close\r\n"
        body = "" if shape.body_read else "transfer-encoding: chunked\r\n"
        request = f"{shape.method} / HTTP/{shape.version}\r\nhost: h\r\n{close}{body}\r\n"
        connection.receive_data(request.encode("ascii"))
        connection.next_event()
        if shape.body_read:
            connection.next_event()
    headers = [("content-length", "0")] if shape.has_length else []
    if not shape.keep_alive:
        headers.append(("connection", "close"))
    try:
        response = h11.Response(status_code=shape.status, headers=headers, reason=_reason(shape.status))
        head = connection.send(response) or b""
    except h11.LocalProtocolError as error:
        raise ValueError(f"{shape.status} cannot be the status of an answer: {error}") from error
    framing: Framing = "close"
    if shape.method == "HEAD" or shape.status in (204, 304):
        framing = "none"
    elif shape.has_length:
        framing = "length"
    elif b"chunked" in head:
        framing = "chunked"
    lines = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(b"content-length")]
    if framing in ("close", "chunked"):
        # Some clients would take a cut stream for a whole one. There the closing of the socket says it.
        lines = [line for line in lines if line.lower() != b"connection: close"]
    end = connection.send(_END_OF_MESSAGE) or b""
    reusable = connection.our_state is h11.DONE and connection.their_state is h11.DONE
    return Verdict(b"".join(line + b"\r\n" for line in lines), framing, end, reusable)

"""A request of HTTP/2 as HTTP/1.1 would have put it, so that one guard looks at all requests (RFC 9113 §8).

Rule 1: what HTTP/2 itself forbids (§8.2, §8.3) is malformed, and costs the stream: names in capitals, fields of
        HTTP/1.1's connections, pseudo-header fields that are missing, twice, unknown, or behind others. No byte that
        ends a line or a word of HTTP/1.1 gets past here.
Rule 2: what remains is HTTP's, and ``guard.read_head`` answers it with a status.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from rawstream.errors import ProtocolViolation
from rawstream.wire.guard import HeadLimits, RequestHead, read_head
from rawstream.wire.http2_frames import Http2Violation

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE: Final = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_WORD: Final = re.compile(rb"[\x21-\x7e]*")
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
CONNECTION_FIELDS: Final = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"proxy-connection"}
)
"""Fields of HTTP/1.1's connections, which have no place here (§8.2.2)."""

Fields = Iterable[tuple[bytes, bytes]]


def read_request(fields: Fields, limits: HeadLimits, *, ended: bool) -> RequestHead:
    """The head of a request; ``ended``: nothing follows it.

    Raises Http2Violation for what is malformed, and other ProtocolViolations for what is to be answered.
    """
    pseudo: dict[bytes, bytes] = {}
    lines: list[bytes] = []
    cookies: list[bytes] = []
    host: bytes | None = None
    for name, value in fields:
        if name[:1] == b":":
            if lines or cookies or host is not None:
                raise _malformed("a pseudo-header field behind others")
            if name in pseudo or name not in _PSEUDO:
                raise _malformed("a pseudo-header field that is not one, or comes twice")
            if not _WORD.fullmatch(value):
                raise _malformed("a pseudo-header field that is not one word")
            pseudo[name] = value
            continue
        check_field(name, value)
        if name == b"cookie":
            cookies.append(value)  # §8.2.3: it may come in pieces
        elif name != b"host":
            lines.append(name + b": " + value)
        elif host is None:
            host = value
        else:
            raise _malformed("two host fields")
    method = pseudo.get(b":method", b"")
    if method == b"CONNECT":
        raise ProtocolViolation("there are no tunnels here", status=501, code="not_implemented")
    path = pseudo.get(b":path", b"")
    if not method or not path or b":scheme" not in pseudo:
        raise _malformed("a request without its method, scheme or path")
    if path[:1] != b"/" and not (path == b"*" and method == b"OPTIONS"):
        raise _malformed("a path that does not begin with a slash")
    authority = pseudo.get(b":authority", host)
    if host is not None and host != authority:
        raise _malformed("a host that is not the authority")
    if cookies:
        lines.append(b"cookie: " + b"; ".join(cookies))
    if authority is not None:
        lines.insert(0, b"host: " + authority)
    raw = b"\r\n".join([b"%b %b HTTP/1.1" % (method, path), *lines, b"", b""])
    head = read_head(raw, limits)
    if ended and head.content_length:
        raise _malformed("a body that is announced and does not come")
    return msgspec.structs.replace(head, version="2", has_body=not ended and head.content_length != 0)


def check_field(name: bytes, value: bytes) -> None:
    """Raises Http2Violation for a field that is malformed (§8.2.1, §8.2.2), in a head or in trailers."""
    if not _NAME.fullmatch(name):
        raise _malformed("a field whose name is not a token in lower case")
    if not _VALUE.fullmatch(value):
        raise _malformed("a field whose value holds what it may not")
    if name in CONNECTION_FIELDS or (name == b"te" and value.lower() != b"trailers"):
        raise _malformed("a field of HTTP/1.1's connections")


def refused(fields: Fields) -> RequestHead:
    """A head for the refusal of a request, whatever it says."""
    return RequestHead(
        method="HEAD" if (b":method", b"HEAD") in [(name, value) for name, value in fields] else "GET",
        target="",
        path="",
        query="",
        host=None,
        version="2",
        headers=(),
        keep_alive=True,
        has_body=False,
        content_length=None,
        expects_continue=False,
        chunked=False,
    )


def _malformed(what: str) -> Http2Violation:
    return Http2Violation("malformed", f"the request is malformed: {what}")

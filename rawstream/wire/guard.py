"""The guard in front of h11: what a request head must look like before anybody acts on it (RFC 9110, RFC 9112).

Rule 1: a good head costs one regular expression; only a bad one is looked at line by line, to name what is wrong.
Rule 2: the first fault in the order of the bytes is the one that is told, so that the answer never depends on how
        the network happened to cut the head into pieces.
Rule 3: where RFC 9112 lets a recipient be lenient, the guard is not (bare LF, obs-fold, equal duplicates of
        Content-Length): lenience that differs from hop to hop is what request smuggling is made of.
Rule 4: functions here are pure. Counting and keeping bytes is the codec's job (``http1.py``).

h11 0.16 alone lets through: Content-Length beside Transfer-Encoding, obs-fold, control characters in values, bare LF,
any HTTP/x.y, any Host, and a head of any size that arrives in one read. After the guard it never sees any of these.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from rawstream.errors import ProtocolViolation

TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
"""One character of a token (RFC 9110 §5.6.2), as a pattern."""
MAX_METHOD: Final = 32
"""Longest method, in bytes. The longest registered one, UPDATEREDIRECTREF, has 17."""

_HEAD: Final = re.compile(
    rf"({TOKEN}{{1,{MAX_METHOD}}}) ([\x21-\x7e]+) HTTP/(1\.[01])\r\n"
    rf"((?:{TOKEN}++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+)\r\n"
)
_FIELD_LINE: Final = re.compile(rf"{TOKEN}++:[\t\x20-\x7e\x80-\xff]*+\r\n".encode())
_METHOD: Final = re.compile(rf"{TOKEN}+".encode())
_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n|\Z)|(?<!\r)\n")
_NOT_IN_REQUEST_LINE: Final = re.compile(rb"[\t\x80-\xff]")
_LENGTH: Final = re.compile(r"[0-9]{1,19}")
_HOST: Final = re.compile(
    r"(?:\[[0-9A-Fa-f:.]{2,45}\]|(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})++)(?::[0-9]{0,5})?"
)
_ABSOLUTE: Final = re.compile(r"https?://([^/?#]*)(/[^?#]*)?(?:\?([^#]*))?", re.IGNORECASE)


class HeadLimits(msgspec.Struct, frozen=True, gc=False):
    """What one request may cost. Shared by all connections of a server."""

    max_head: int
    """Bytes of a whole head, the empty line included (431)."""
    max_request_line: int
    """Bytes of the request line without its CRLF (414)."""
    max_fields: int
    """Field lines (431)."""
    max_body: int
    """Bytes of the decoded body (413)."""


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """A request head that the guard has let through."""

    method: str
    target: str
    """As sent."""
    path: str
    """Raw: not percent-decoded, without the query; absolute-form is reduced to its path; ``*`` for ``OPTIONS *``."""
    query: str
    """Raw, without the ``?``."""
    host: str | None
    """The authority: the target's own in absolute-form, else the Host field. None only on HTTP/1.0."""
    version: str
    """``1.0`` or ``1.1``."""
    headers: tuple[tuple[str, str], ...]
    """Names in lower case; values decoded as latin-1, without surrounding white space."""
    keep_alive: bool
    """May the connection serve another request after this one (RFC 9112 §9.3)? Never on HTTP/1.0."""
    has_body: bool
    content_length: int | None
    """Bytes, as announced; None when nothing was announced (no body, or chunked)."""
    expects_continue: bool
    """The client waits for ``100 Continue`` before it sends the body (RFC 9110 §10.1.1)."""
    chunked: bool

    def without_fields(self) -> RequestHead:
        """The same without its fields, target and query: what is still needed while a long answer runs."""
        return msgspec.structs.replace(self, headers=(), target="", query="")

    def header(self, name: str) -> str | None:
        """The value of the field called ``name`` (lower case), repeated ones joined with ``", "``; None: not sent."""
        found: str | None = None
        for key, value in self.headers:
            if key == name:
                found = value if found is None else f"{found}, {value}"
        return found


def read_head(raw: bytes, limits: HeadLimits) -> RequestHead:
    """Read a whole head, from the request line through the empty line (RFC 9112 §2–§3, §6).

    Raises ProtocolViolation, with the status to answer, when it is not one that may be acted upon.
    """
    match = _HEAD.fullmatch(raw.decode("latin-1"))
    if match is None or match.start(4) - 2 > limits.max_request_line or len(raw) > limits.max_head:
        raise first_fault(raw, limits) or _bad("the request head is malformed")
    method, target, version, block = match.groups()
    lines = block.split("\r\n")
    lines.pop()
    if len(lines) > limits.max_fields:
        raise _too_many_fields(limits)
    headers: list[tuple[str, str]] = []
    for line in lines:
        name, _, value = line.partition(":")
        headers.append((name.lower(), value.strip(" \t")))
    fields = dict(headers)
    if len(fields) != len(headers):
        fields = _joined(headers)
    host = _host(fields.get("host"), version)
    chunked, length = _framing(fields, version, limits)
    if target[0] == "/" and method != "CONNECT" and "#" not in target:
        path, _, query = target.partition("?")
    else:
        path, query, host = _unusual_target(method, target, host)
    has_body = chunked or (length is not None and length > 0)
    return RequestHead(
        method,
        target,
        path,
        query,
        host,
        version,
        tuple(headers),
        version == "1.1" and not ("connection" in fields and _asks_to_close(fields["connection"])),
        has_body,
        length,
        "expect" in fields and _expectation(fields["expect"]) and has_body and version == "1.1",
        chunked,
    )


def first_fault(raw: bytes, limits: HeadLimits) -> ProtocolViolation | None:
    """What is wrong first, in the order of the bytes, with a head that may not be complete yet; None: nothing so far.

    Looks no further than ``limits.max_head`` bytes, at most ``limits.max_fields`` lines.
    """
    if raw[:1] == b"\x16":
        return _bad("this port speaks plain HTTP, and these bytes begin a TLS handshake")
    window = raw[: limits.max_head]
    line = window[: limits.max_request_line + 2]
    start = line.find(b"\n") + 1
    fault = _request_line_fault(line[:start] if start else line, complete=start > 0)
    if fault is not None:
        return fault
    if not start and len(line) == limits.max_request_line + 2:
        return ProtocolViolation(
            f"the request line is longer than {limits.max_request_line} bytes", status=414, code="uri_too_long"
        )
    count = 0
    while start:
        end = window.find(b"\n", start) + 1
        line = window[start:end] if end else window[start:]
        fault = _control_fault(line)
        if fault is None and end:
            if line == b"\r\n":
                return None
            count += 1
            fault = _too_many_fields(limits) if count > limits.max_fields else field_fault(line)
        if fault is not None:
            return fault
        start = end
    if len(raw) > limits.max_head:
        return ProtocolViolation(
            f"the request head is longer than {limits.max_head} bytes", status=431, code="head_too_large"
        )
    return None


def field_fault(line: bytes) -> ProtocolViolation | None:
    """What is wrong with one field line that ends in LF (RFC 9112 §5); None: nothing. For trailers too."""
    fault = _control_fault(line)
    if fault is not None or _FIELD_LINE.fullmatch(line):
        return fault
    name, colon, _ = line.partition(b":")
    if line[:1] in (b" ", b"\t"):
        return _bad("a field line begins with white space (obsolete line folding is not accepted)")
    if not colon:
        return _bad("a field line has no colon")
    if not name:
        return _bad("a field has an empty name")
    if name[-1:] in (b" ", b"\t"):
        return _bad("there is white space between a field's name and its colon")
    return _bad("a field's name is not a token")


def _request_line_fault(line: bytes, *, complete: bool) -> ProtocolViolation | None:
    fault = _control_fault(line)
    if fault is not None:
        return fault
    if _NOT_IN_REQUEST_LINE.search(line):
        return _bad("the request line holds a tab, or bytes that are not ASCII")
    if not complete:
        return None
    words = line[:-2].split(b" ")
    if words == [b""]:
        return _bad("there is an empty line where a request line should be")
    if not _METHOD.fullmatch(words[0]):
        return _bad("the method is not a token")
    if len(words[0]) > MAX_METHOD:
        return ProtocolViolation("there is no method with a name this long", status=501, code="not_implemented")
    if len(words) != 3 or not words[1]:
        return _bad("the request line is not a method, a target and a version with one space between them")
    if not _VERSION.fullmatch(words[2]):
        return _bad("the request line does not end in HTTP/1.1")
    if words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        return ProtocolViolation("only HTTP/1.1 and HTTP/1.0 are spoken here", status=505, code="version_not_supported")
    return None


def _control_fault(line: bytes) -> ProtocolViolation | None:
    match = _CONTROL.search(line)
    if match is None:
        return None
    names = {b"\r": "a CR without its LF", b"\n": "a LF without its CR", b"\0": "a NUL"}
    return _bad(f"the request head holds {names.get(match.group(), 'a control character')}")


def _framing(fields: Mapping[str, str], version: str, limits: HeadLimits) -> tuple[bool, int | None]:
    """Is the body chunked, and how long was it announced to be (RFC 9112 §6)?"""
    coding = fields.get("transfer-encoding")
    length = fields.get("content-length")
    if coding is not None:
        if length is not None:
            raise _bad("Content-Length and Transfer-Encoding contradict each other")
        if version != "1.1":
            raise _bad("HTTP/1.0 has no Transfer-Encoding")
        if coding.lower() != "chunked":
            raise ProtocolViolation(
                "the only transfer coding understood here is chunked, once", status=501, code="not_implemented"
            )
        return True, None
    if length is None:
        return False, None
    if not _LENGTH.fullmatch(length):
        raise _bad("Content-Length is not one plain decimal number")
    if int(length) > limits.max_body:
        raise body_too_large(limits.max_body)
    return False, int(length)


def body_too_large(max_body: int) -> ProtocolViolation:
    """The answer to a body of more than ``max_body`` bytes."""
    return ProtocolViolation(f"the body is longer than {max_body} bytes", status=413, code="body_too_large")


@functools.lru_cache(maxsize=64)
def _is_authority(value: str) -> bool:
    return _HOST.fullmatch(value) is not None


def _host(value: str | None, version: str) -> str | None:
    if value is None:
        if version == "1.1":
            raise _bad("the Host field is missing")
    elif len(value) > 300 or not _is_authority(value):
        raise _bad("the Host field is not one host with an optional port")
    return value


def _unusual_target(method: str, target: str, host: str | None) -> tuple[str, str, str | None]:
    """Path, query and host of a target that is not in origin-form (RFC 9112 §3.2.2–§3.2.4)."""
    if method == "CONNECT":
        raise ProtocolViolation("there are no tunnels here", status=501, code="not_implemented")
    if target == "*":
        if method != "OPTIONS":
            raise _bad("only OPTIONS may ask for *")
        return "*", "", host
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise _bad("the target is neither a path nor an absolute http URI")
    authority, path, query = match.groups()
    if len(authority) > 300 or not _is_authority(authority):
        raise _bad("the target's authority is not one host with an optional port")
    if path is None:
        path = "*" if method == "OPTIONS" and query is None else "/"
    return path, query or "", authority


def _asks_to_close(connection: str) -> bool:
    return "close" in [option.strip(" \t") for option in connection.lower().split(",")]


def _expectation(value: str) -> bool:
    if value.lower() != "100-continue":
        raise ProtocolViolation(
            "the only expectation understood here is 100-continue", status=417, code="expectation_failed"
        )
    return True


def _joined(headers: list[tuple[str, str]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in headers:
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _too_many_fields(limits: HeadLimits) -> ProtocolViolation:
    return ProtocolViolation(
        f"the request has more than {limits.max_fields} header fields", status=431, code="head_too_large"
    )


def _bad(message: str) -> ProtocolViolation:
    return ProtocolViolation(message)

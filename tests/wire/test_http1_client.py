"""The client role of HTTP/1.1, without I/O: what is sent, what is accepted, and where a body ends."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawstream.errors import MisuseError, UpstreamFailed
from rawstream.wire.http1_bodies import CloseBody
from rawstream.wire.http1_client import (
    MAX_FIELDS,
    MAX_HEAD,
    ClientCodec,
    ResponseHead,
)

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def asked(method: str = "POST") -> ClientCodec:
    """A codec that has sent a request."""
    codec = ClientCodec()
    codec.request(method, "/v1/x", [("host", "h")], b"{}" if method == "POST" else b"")
    return codec


def answer(raw: bytes, method: str = "POST") -> tuple[ResponseHead, bytes]:
    found = asked(method).receive_head(raw)
    assert found is not None
    return found


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """``data`` in pieces, cut at these places."""
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[a:b] for a, b in pairwise(places)]


# --- requests


def test_a_request_is_what_h11_writes() -> None:
    raw = ClientCodec().request("POST", "/v1/x?y=1", [("host", "h"), ("accept", "a/b")], b"body")
    assert raw == b"POST /v1/x?y=1 HTTP/1.1\r\nhost: h\r\naccept: a/b\r\ncontent-length: 4\r\n\r\nbody"
    assert b"content-length: 0" in ClientCodec().request("POST", "/", [("host", "h")], b"")
    assert b"content-length" not in ClientCodec().request("GET", "/", [("host", "h")], b"")


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\0b"])
def test_a_header_that_would_be_two_is_refused_and_not_quoted(value: str) -> None:
    with pytest.raises(MisuseError) as caught:
        ClientCodec().request("GET", "/", [("host", "h"), ("authorization", value)], b"")
    assert value not in str(caught.value)
    with pytest.raises(MisuseError):
        ClientCodec().request("GET", "/a b\r\n", [("host", "h")], b"")


# --- heads


def test_a_head_gives_status_lower_case_names_and_the_bytes_behind_it() -> None:
    head, rest = answer(OK + b"Content-Length: 5\r\nX-Empty:\r\nVia: a\r\nVIA: b\r\n\r\nhel")
    assert (head.status, head.framing, head.length, rest) == (200, "length", 5, b"hel")
    assert head.header("x-empty") == ""
    assert head.header("via") == "a, b"
    assert head.header("absent") is None


def test_an_interim_answer_alone_is_no_answer_yet() -> None:
    codec = asked()
    assert codec.receive_head(b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n") is None
    found = codec.receive_head(OK + b"Content-Length: 0\r\n\r\n")
    assert found is not None
    assert found[0].status == 200


@given(st.lists(st.integers(min_value=0), max_size=8))
def test_a_head_is_the_same_however_it_is_cut(places: list[int]) -> None:
    raw = b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK + b"Content-Type: a\r\nContent-Length: 3\r\n\r\n"
    codec = asked()
    found = [codec.receive_head(piece) for piece in cut(raw, places)]
    assert found[:-1] == [None] * (len(found) - 1)
    last = found[-1]
    assert last is not None
    assert (last[0].status, last[0].length, last[1]) == (200, 3, b"")


@pytest.mark.parametrize(
    ("raw", "method", "framing"),
    [
        (OK + b"Content-Length: 3\r\n\r\n", "POST", "length"),
        (CHUNKED, "POST", "chunked"),
        (OK + b"transfer-encoding: Chunked\r\n\r\n", "POST", "chunked"),
        (OK + b"\r\n", "POST", "close"),
        (b"HTTP/1.0 200 OK\r\n\r\n", "POST", "close"),
        (b"HTTP/1.1 204 \r\n\r\n", "POST", "none"),
        (b"HTTP/1.1 304\r\nContent-Length: 3\r\n\r\n", "GET", "none"),
        (OK + b"Content-Length: 3\r\n\r\n", "HEAD", "none"),
    ],
)
def test_the_framing_is_as_the_rfc_has_it(raw: bytes, method: str, framing: str) -> None:
    """RFC 9112 §6.3."""
    head, _ = answer(raw, method)
    assert head.framing == framing


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01",
        b"hello",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 600 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 200 O\0K\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        OK + b"A: b\n\r\n\r\n",
        OK + b"A : b\r\n\r\n",
        OK + b" A: b\r\n\r\n",
        OK + b": b\r\n\r\n",
        OK + b"A: b\r\n c\r\n\r\n",
        OK + b"A: \x01\r\n\r\n",
        OK + b"A: b\rC: d\r\n\r\n",
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
        OK + b"Content-Length: 5, 5\r\n\r\n",
        OK + b"Content-Length: +5\r\n\r\n",
        OK + b"Content-Length: 1_0\r\n\r\n",
        OK + b"Content-Length: 0x5\r\n\r\n",
        OK + b"Content-Length:\r\n\r\n",
        OK + b"Content-Length: " + b"9" * 25 + b"\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: identity\r\n\r\n",
        OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n",
        OK + b"A: " + b"b" * MAX_HEAD,
        OK + b"A: " + b"b" * MAX_HEAD + b"\r\n\r\n",
    ],
)
def test_what_is_not_http_to_the_letter_is_refused(raw: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        asked().receive_head(raw)


def test_heads_at_the_limits_pass() -> None:
    head, _ = answer(OK + b"A: b\r\n" * MAX_FIELDS + b"\r\n")
    assert len(head.headers) == MAX_FIELDS
    start, end = OK + b"A: ", b"\r\n\r\n"
    head, _ = answer(start + b"b" * (MAX_HEAD - len(start) - len(end)) + end)
    assert head.status == 200


def test_what_cannot_become_a_head_is_refused_before_it_is_whole() -> None:
    codec = asked()
    assert codec.receive_head(b"HT") is None
    with pytest.raises(UpstreamFailed):
        codec.receive_head(b"ML")


def test_a_head_that_has_begun_is_known_to_have_begun() -> None:
    """So a connection that ends there was cut, where one that ends before it was merely closed."""
    codec = asked()
    assert not codec.receiving_head
    assert codec.receive_head(OK[:-4]) is None
    assert codec.receiving_head
    assert codec.receive_head(OK[-4:] + b"Content-Length: 0\r\n\r\n") is not None
    assert not codec.receiving_head


_field_bytes = st.lists(st.sampled_from([9, *range(0x20, 0x7F), *range(0x80, 0x100)]), max_size=40).map(bytes)


@given(
    st.lists(st.one_of(_field_bytes, st.sampled_from([b"close", b"keep-alive", b", ,", b"upgrade"])), max_size=4),
    st.sampled_from([b"1.0", b"1.1"]),
    st.sampled_from([200, 204, 304, 404, 500, 599]),
    st.sampled_from([b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n", b""]),
    st.sampled_from(["GET", "HEAD", "POST"]),
)
def test_whatever_the_connection_field_says_a_head_that_passes_here_passes_h11_too(
    values: list[bytes], version: bytes, status: int, framing: bytes, method: str
) -> None:
    """It is told of every head that is accepted, and must find nothing wrong with one."""
    version = b"1.1" if framing.startswith(b"T") else version
    fields = b"".join(b"Connection:" + value + b"\r\n" for value in values)
    head, rest = answer(b"HTTP/%b %d \r\n" % (version, status) + fields + framing + b"\r\n", method)
    assert (head.status, rest) == (status, b"")


# --- the life of a connection


def test_a_connection_that_has_not_answered_is_not_made_ready() -> None:
    """Neither before its first answer nor twice after one: it would be taken from the pool in the wrong state."""
    codec = asked()
    assert not codec.next_cycle()
    assert codec.receive_head(OK + b"Content-Length: 0\r\n\r\n") is not None
    assert codec.next_cycle()
    assert not codec.next_cycle()


@pytest.mark.parametrize(
    ("head", "body", "again"),
    [
        (CHUNKED, b"2\r\nok\r\n0\r\n\r\n", True),
        (OK + b"Content-Length: 2\r\n\r\n", b"ok", True),
        (b"HTTP/1.1 204 \r\n\r\n", b"", True),
        (CHUNKED, b"2\r\nok\r\n0\r\n\r\nEVIL!", False),
        (OK + b"Content-Length: 2\r\n\r\n", b"okay", False),
        (CHUNKED, b"2\r\nok\r\n", False),
        (OK + b"Content-Length: 2\r\nConnection: close\r\n\r\n", b"ok", False),
        (OK + b"Content-Length: 2\r\nConnection: x, Close\r\n\r\n", b"ok", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n", b"ok", False),
        (OK + b"\r\n", b"ok", False),
    ],
)
def test_a_connection_is_used_again_only_after_a_whole_answer_with_nothing_behind_it(
    head: bytes, body: bytes, again: bool
) -> None:
    codec = asked()
    found = codec.receive_head(head)
    assert found is not None
    codec.body.decode(body)
    if isinstance(codec.body, CloseBody):
        codec.body.eof()
    assert codec.next_cycle() is again
    if again:
        assert codec.request("GET", "/2", [("host", "h")], b"").startswith(b"GET /2 ")
        second = codec.receive_head(OK + b"Content-Length: 0\r\n\r\n")
        assert second is not None
        assert codec.next_cycle()


def test_one_request_at_a_time() -> None:
    """A second request before the first one's answer is the caller's mistake, and says so."""
    codec = ClientCodec()
    codec.request("GET", "/", [("host", "h")], b"")
    with pytest.raises(MisuseError, match="under way"):
        codec.request("GET", "/", [("host", "h")], b"")


def test_there_is_no_next_request_before_an_answer() -> None:
    """Nothing has been answered: the connection cannot go on to another exchange."""
    assert not ClientCodec().next_cycle()

"""The guard: which request heads may be acted upon, and what is said about the others."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawstream.errors import ProtocolViolation
from rawstream.wire.guard import HeadLimits, RequestHead, field_fault, first_fault, read_head

LIMITS = HeadLimits(max_head=16384, max_request_line=8192, max_fields=100, max_body=8 * 1024 * 1024)


def head(*lines: str, request: str = "GET / HTTP/1.1", host: bool = True) -> bytes:
    """A head with CRLF line ends."""
    fields = ["Host: example.org", *lines] if host else list(lines)
    return "\r\n".join([request, *fields, "", ""]).encode("latin-1")


def read(raw: bytes) -> RequestHead:
    return read_head(raw, LIMITS)


def refusal(raw: bytes, limits: HeadLimits = LIMITS) -> ProtocolViolation:
    with pytest.raises(ProtocolViolation) as caught:
        read_head(raw, limits)
    return caught.value


def test_a_plain_request_is_read_field_by_field() -> None:
    """Names arrive in lower case, values without white space around them, path and query apart."""
    found = read(head("Accept:*/* \t", "X-Empty:", "x-a: 1", "X-A:2", request="GET /a%20b?c=d?e HTTP/1.1"))
    assert (found.method, found.target, found.version) == ("GET", "/a%20b?c=d?e", "1.1")
    assert (found.path, found.query, found.host) == ("/a%20b", "c=d?e", "example.org")
    assert found.headers == (
        ("host", "example.org"), ("accept", "*/*"), ("x-empty", ""), ("x-a", "1"), ("x-a", "2"),
    )  # fmt: skip
    assert found.header("x-a") == "1, 2"
    assert found.header("x-empty") == ""
    assert found.header("missing") is None
    assert found.keep_alive
    assert (found.has_body, found.content_length, found.chunked, found.expects_continue) == (False, None, False, False)


def test_bytes_beyond_ascii_in_a_value_are_kept_as_latin_1() -> None:
    """obs-text is opaque data (RFC 9110 §5.5)."""
    assert read(head("x-name: J\xf6rg")).header("x-name") == "J\xf6rg"


@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        ("http://other.org/x?y=z", "/x", "y=z", "other.org"),
        ("HTTPS://other.org:8443/x", "/x", "", "other.org:8443"),
        ("http://[::1]:80", "/", "", "[::1]:80"),
        ("http://other.org?q", "/", "q", "other.org"),
        ("//double/slash", "//double/slash", "", "example.org"),
    ],
)
def test_the_authority_of_an_absolute_target_replaces_the_host_field(
    target: str, path: str, query: str, host: str
) -> None:
    """RFC 9112 §3.2.2."""
    found = read(head(request=f"GET {target} HTTP/1.1"))
    assert (found.path, found.query, found.host) == (path, query, host)


@pytest.mark.parametrize("target", ["*", "http://other.org"])
def test_options_may_ask_for_the_server_as_a_whole(target: str) -> None:
    """RFC 9112 §3.2.4; through a proxy it is an absolute-form without a path."""
    assert read(head(request=f"OPTIONS {target} HTTP/1.1")).path == "*"


@pytest.mark.parametrize("host", ["h", "127.0.0.1:8000", "[::1]", "[fe80::1]:8", "a-b.c_d:", "x%2Dy"])
def test_every_form_of_host_is_accepted(host: str) -> None:
    """A name, an IPv4 or bracketed IPv6 address, and a port that may be empty (RFC 3986 §3.2)."""
    assert read(head(f"Host: {host}", host=False)).host == host


def test_http_1_0_needs_no_host_and_closes() -> None:
    """keep-alive on HTTP/1.0 is not honoured."""
    found = read(head("Connection: keep-alive", request="GET / HTTP/1.0", host=False))
    assert (found.version, found.host, found.keep_alive) == ("1.0", None, False)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Connection: keep-alive"], True),
        (["Connection: close"], False),
        (["Connection: upgrade , CLOSE"], False),
        (["Connection: x", "Connection: close"], False),
        (["Connection: closed"], True),
    ],
)
def test_the_connection_closes_when_any_connection_option_says_so(lines: list[str], expected: bool) -> None:
    """RFC 9112 §9.3."""
    assert read(head(*lines)).keep_alive is expected


def test_a_body_is_announced_by_length_or_as_chunked() -> None:
    """RFC 9112 §6.3."""
    sized = read(head("Content-Length: 0060", request="POST / HTTP/1.1"))
    assert (sized.has_body, sized.content_length, sized.chunked) == (True, 60, False)
    chunked = read(head("Transfer-Encoding: Chunked", request="POST / HTTP/1.1"))
    assert (chunked.has_body, chunked.content_length, chunked.chunked) == (True, None, True)
    empty = read(head("Content-Length: 0", request="POST / HTTP/1.1"))
    assert (empty.has_body, empty.content_length) == (False, 0)


@pytest.mark.parametrize(
    ("request_line", "lines", "expected"),
    [
        ("POST / HTTP/1.1", ["Content-Length: 5", "Expect: 100-Continue"], True),
        ("POST / HTTP/1.1", ["Expect: 100-continue"], False),
        ("POST / HTTP/1.0", ["Content-Length: 5", "Expect: 100-continue"], False),
    ],
)
def test_only_a_request_with_a_body_on_http_1_1_waits_for_100(
    request_line: str, lines: list[str], expected: bool
) -> None:
    """RFC 9110 §10.1.1: on HTTP/1.0 the expectation is ignored."""
    assert read(head(*lines, request=request_line)).expects_continue is expected


REFUSED = [
    # request line
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "TLS"),
    (b"\r\nGET / HTTP/1.1\r\n\r\n", 400, "empty line"),
    (head(request="GET /"), 400, "with one space between"),
    (head(request="GET"), 400, "with one space between"),
    (head(request="GET  HTTP/1.1"), 400, "with one space between"),
    (head(request="GET  / HTTP/1.1"), 400, "with one space between"),
    (head(request="GET /a b HTTP/1.1"), 400, "with one space between"),
    (head(request=" GET / HTTP/1.1"), 400, "method"),
    (head(request="G[T / HTTP/1.1"), 400, "method"),
    (head(request="M" * 33 + " / HTTP/1.1"), 501, "method"),
    (head(request="GET / http/1.1"), 400, "HTTP/1.1"),
    (head(request="GET / HTTP/1.10"), 400, "HTTP/1.1"),
    (head(request="GET / HTTP/0.9"), 505, "spoken here"),
    (head(request="GET / HTTP/1.2"), 505, "spoken here"),
    (head(request="GET / HTTP/9.9"), 505, "spoken here"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "spoken here"),
    (head(request="GET /\xe9 HTTP/1.1"), 400, "ASCII"),
    (head(request="GET\t/ HTTP/1.1"), 400, "tab"),
    (head(request="GET /\0 HTTP/1.1"), 400, "NUL"),
    (head(request="GET /\x7f HTTP/1.1"), 400, "control"),
    (head(request="GET /" + "a" * 8192 + " HTTP/1.1"), 414, "8192"),
    # targets
    (head(request="GET * HTTP/1.1"), 400, "OPTIONS"),
    (head(request="CONNECT example.org:443 HTTP/1.1"), 501, "tunnels"),
    (head(request="CONNECT / HTTP/1.1"), 501, "tunnels"),
    (head(request="GET example.org:443 HTTP/1.1"), 400, "target"),
    (head(request="GET ftp://example.org/ HTTP/1.1"), 400, "target"),
    (head(request="GET /a#b HTTP/1.1"), 400, "target"),
    (head(request="GET http://h/a#b HTTP/1.1"), 400, "target"),
    (head(request="GET http://user@h/ HTTP/1.1"), 400, "authority"),
    (head(request="GET http:///x HTTP/1.1"), 400, "authority"),
    (head(request="GET http://" + "h" * 301 + "/ HTTP/1.1"), 400, "authority"),
    # lines
    (b"GET / HTTP/1.1\nHost: h\r\n\r\n", 400, "LF without"),
    (b"GET / HTTP/1.1\r\nHost: h\n\r\n\r\n", 400, "LF without"),
    (b"GET / HTTP/1.1\r\nHost: h\r\n\n\r\n\r\n", 400, "LF without"),
    (head("x: a\rb"), 400, "CR without"),
    (head("x: a\0b"), 400, "NUL"),
    (head("x: a\x01b"), 400, "control"),
    (head("x: a", " folded"), 400, "folding"),
    (b"GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400, "folding"),
    (head("\tx: a"), 400, "folding"),
    (head("x : a"), 400, "white space between"),
    (head("x"), 400, "colon"),
    (head(": a"), 400, "empty name"),
    (head("x(y): a"), 400, "token"),
    (head("x\xe9: a"), 400, "token"),
    # host
    (head(host=False), 400, "missing"),
    (head("Host: other"), 400, "Host"),
    (head("Host: example.org"), 400, "Host"),
    (head("Host: a, b", host=False), 400, "Host"),
    (head("Host: user@h", host=False), 400, "Host"),
    (head("Host: h/path", host=False), 400, "Host"),
    (head("Host: http://h", host=False), 400, "Host"),
    (head("Host:", host=False), 400, "Host"),
    (head("Host: h:80x", host=False), 400, "Host"),
    (head("Host: h:123456", host=False), 400, "Host"),
    (head("Host: a b", host=False), 400, "Host"),
    (head("Host: " + "h" * 301, host=False), 400, "Host"),
    (head("Host: a,b", request="GET / HTTP/1.0", host=False), 400, "Host"),
    # framing
    *((head(f"Content-Length: {value}"), 400, "Content-Length")
      for value in ("abc", "-1", "+5", "0x5", "1_0", "5 5", "", "9" * 25, "5, 10", "5, 5", "\xb2", "1.0")),
    (head("Content-Length: 5", "Content-Length: 10"), 400, "Content-Length"),
    (head("Content-Length: 5", "Content-Length: 5"), 400, "Content-Length"),
    (head("Content-Length: 1000000000000"), 413, "8388608"),
    (head("Content-Length: 8388609"), 413, "8388608"),
    (head("Content-Length: 5", "Transfer-Encoding: chunked"), 400, "contradict"),
    (head("Transfer-Encoding: chunked", request="POST / HTTP/1.0"), 400, "HTTP/1.0"),
    *((head(f"Transfer-Encoding: {value}"), 501, "chunked")
      for value in ("chunked, identity", "chunked, gzip", "xchunked", "gzip", "chunked, chunked", "identity", "")),
    (head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 501, "chunked"),
    (head("Expect: the-unexpected", "Content-Length: 5"), 417, "100-continue"),
    (head("Expect: 100-continue, x", "Content-Length: 5"), 417, "100-continue"),
    # sizes
    (head(*["x: y"] * 100), 431, "100"),
    (head("x: " + "y" * 16384), 431, "16384"),
    (b"GET / HTTP/1.1\r\n\r\nHost: h\r\n\r\n", 400, "malformed"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "status", "words"), REFUSED)
def test_a_bad_head_is_refused_with_the_right_status_and_says_why(raw: bytes, status: int, words: str) -> None:
    """RFC 9112, and the stricter reading where it leaves a choice; the message names the fault."""
    fault = refusal(raw)
    assert fault.status == status
    assert words in str(fault)
    assert fault.outcome == "client_misbehaved"


def test_the_limits_themselves_are_allowed() -> None:
    """A request line, a head, a number of fields and a body of exactly the limit pass."""
    request = "GET /" + "a" * 20 + " HTTP/1.1"
    raw = head("x: y", request=request)
    at = HeadLimits(max_head=len(raw), max_request_line=len(request), max_fields=2, max_body=5)
    assert read_head(raw, at).method == "GET"
    assert read_head(head("Content-Length: 5"), at).content_length == 5
    assert refusal(raw, HeadLimits(len(raw) - 1, len(request), 2, 5)).status == 431
    assert refusal(raw, HeadLimits(len(raw), len(request) - 1, 2, 5)).status == 414
    assert refusal(raw, HeadLimits(len(raw), len(request), 1, 5)).status == 431


def test_a_head_limit_below_that_of_the_request_line_holds() -> None:
    """The smaller of two limits decides."""
    assert refusal(head(), HeadLimits(10, 8192, 100, 5)).status == 431


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"", None),
        (b"G", None),
        (b"GET /x", None),
        (b"GET / HTTP/1.1\r", None),
        (b"GET / HTTP/1.1\r\nHo", None),
        (b"GET / HTTP/1.1\r\nHost: h\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r", None),
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", None),
        (b"\x16", 400),
        (b"\x80", 400),
        (b"GET /\n", 400),
        (b"GET /\rx", 400),
        (b"GET /\r\n", 400),
        (b"GET /" + b"a" * 8188, None),
        (b"GET /" + b"a" * 8189, 414),
        (b"GET / HTTP/1.1\r\nx: \0", 400),
        (b"GET / HTTP/1.1\r\nx: y\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 101, 431),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 16384, 431),
    ],
)
def test_an_incomplete_head_is_refused_as_soon_as_it_cannot_become_good(raw: bytes, status: int | None) -> None:
    """A peer that has already failed is not waited for."""
    fault = first_fault(raw, LIMITS)
    assert (fault.status if fault else None) == status


@pytest.mark.parametrize(("line", "bad"), [(b"x: y\r\n", False), (b"x: y\n", True), (b"x: \0\r\n", True)])
def test_one_field_line_can_be_judged_alone(line: bytes, bad: bool) -> None:
    """Trailers go through the same guard."""
    assert (field_fault(line) is not None) is bad


PIECES = st.sampled_from(
    [
        b"GET",
        b" ",
        b"/",
        b"HTTP/1.1",
        b"\r\n",
        b"\r\n",
        b"\r",
        b"\n",
        b"\0",
        b"\t",
        b":",
        b"a",
        b"\xe9",
        b"Host: h",
        b"x: y",
    ]
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(PIECES, max_size=8).map(b"".join),
    st.integers(0, 33),
    st.integers(0, 6),
)
def test_the_fast_reading_and_the_slow_one_agree(inserted: bytes, at: int, removed: int) -> None:
    """A head that passes has no fault line by line, and one that fails has one, whatever was done to it."""
    good = b"GET / HTTP/1.1\r\nHost: h\r\nx: y\r\n\r\n"
    raw = good[:at] + inserted + good[at + removed :] + b"\r\n\r\n"
    raw = raw[: raw.index(b"\r\n\r\n") + 4]
    fault = first_fault(raw, LIMITS)
    try:
        told: ProtocolViolation | None = None
        read(raw)
    except ProtocolViolation as violation:
        told = violation
    if fault is None and told is not None:
        assert any(word in str(told) for word in ("Host", "target", "OPTIONS"))  # what only the whole head shows
    else:
        assert str(told) == str(fault)


def test_a_long_answer_keeps_no_fields_of_its_request() -> None:
    """What may be large and is not needed any more can be left behind; what decides about the answer stays."""
    head = read_head(b"GET /x?y HTTP/1.1\r\nhost: h\r\n\r\n", LIMITS)
    short = head.without_fields()
    assert (short.method, short.path, short.keep_alive) == (head.method, head.path, head.keep_alive)
    assert short.headers == ()
    assert short.query == short.target == ""

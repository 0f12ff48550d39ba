"""The server's half of an HTTP/1.1 connection: requests in, answers out, in whatever pieces they arrive."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterable

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawstream.errors import ClientDisconnected, ClientError, MisuseError, ProtocolViolation
from rawstream.wire.http1 import END_OF_BODY, NEED_DATA, RequestHead, ServerCodec

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /chat HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /chat HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
MAX_HEAD = 16384


def codec(*received: bytes, max_body: int = 1000) -> ServerCodec:
    made = ServerCodec(max_head=MAX_HEAD, max_request_line=8192, max_fields=100, max_body=max_body)
    for data in received:
        made.receive(data)
    return made


def asked(*received: bytes) -> ServerCodec:
    """A codec that has read a request with its body."""
    made = codec(*received)
    assert made.next_head() is not None
    assert body(made) is not None
    return made


def body(made: ServerCodec) -> bytes | None:
    """The whole body; None when it is not complete."""
    data = b""
    while True:
        event = made.next_body()
        if event is END_OF_BODY:
            return data
        if event is NEED_DATA:
            return None
        assert isinstance(event, bytes)
        data += event


def fields(head: bytes) -> list[tuple[str, str]]:
    """The fields of a response head, names in lower case, sorted."""
    lines = head.decode("latin-1").split("\r\n")
    assert lines[-2:] == ["", ""]
    return sorted((name.lower(), value) for name, _, value in (line.partition(": ") for line in lines[1:-2]))


def client(method: str = "GET") -> h11.Connection:
    """Another implementation that has just sent a request."""
    made = h11.Connection(h11.CLIENT)
    made.send(h11.Request(method=method, target="/", headers=[("host", "h")]))
    made.send(h11.EndOfMessage())
    return made


def understood(made: h11.Connection, wire: bytes, *, closed: bool = False) -> tuple[int, bytes]:
    """What that other implementation makes of an answer: status and body. Fails when it is not complete."""
    made.receive_data(wire)
    if closed:
        made.receive_data(b"")
    status, data = 0, b""
    while True:
        event = made.next_event()
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            data += bytes(event.data)
        else:
            assert isinstance(event, h11.EndOfMessage)
            return status, data


# --- requests -----------------------------------------------------------------------------------------------------


def test_a_request_arrives_whole() -> None:
    """Head, body, end; then nothing until the next cycle."""
    made = codec(POST)
    head = made.next_head()
    assert isinstance(head, RequestHead)
    assert (head.method, head.path, head.content_length) == ("POST", "/chat", 5)
    assert not made.body_complete
    assert made.next_body() == b"hello"
    assert made.body_complete
    assert made.next_body() is END_OF_BODY
    assert made.next_body() is END_OF_BODY
    assert made.buffered == 0


def test_nothing_is_asked_for_in_vain() -> None:
    """Without bytes there is no head; at the peer's end between requests neither, and ``at_eof`` says why."""
    made = codec()
    assert made.next_head() is None
    assert not made.at_eof
    made.receive(b"")
    assert made.next_head() is None
    assert made.at_eof


@pytest.mark.parametrize("received", [b"\r", b"GET", GET[:-1]])
def test_a_peer_that_leaves_within_a_head_has_left(received: bytes) -> None:
    """Not a violation: an end is nobody's bad grammar."""
    with pytest.raises(ClientDisconnected):
        codec(received, b"").next_head()


@pytest.mark.parametrize("received", [POST[:-1], CHUNKED, CHUNKED + b"5\r\nhel", CHUNKED + b"5\r\nhello\r\n0\r\n"])
def test_a_peer_that_leaves_within_a_body_has_left(received: bytes) -> None:
    """What had arrived is handed out first."""
    made = codec(received, b"")
    assert made.next_head() is not None
    with pytest.raises(ClientDisconnected):
        body(made)


def test_a_half_closed_peer_gets_its_complete_request_served() -> None:
    """The end after a complete request harms nothing."""
    made = asked(POST, b"")
    assert made.at_eof
    made.response_head(200, [("content-length", "0")])
    made.end()
    assert made.next_cycle()
    assert made.next_head() is None


def test_pipelined_requests_wait_their_turn() -> None:
    """Two coalesced requests are two; the second waits, counted, until the first is answered."""
    made = codec(POST + CHUNKED + b"3\r\nabc\r\n0\r\n\r\n" + GET)
    for expected in (b"hello", b"abc", b""):
        assert made.next_head() is not None
        with pytest.raises(MisuseError):
            made.next_head()
        assert body(made) == expected
        made.response_head(200, [])
        made.end()
        assert made.next_cycle()
    assert made.buffered == 0


def test_one_empty_line_before_a_request_is_skipped() -> None:
    """RFC 9112 §2.2: one, before each request; two are not."""
    made = asked(b"\r\n" + GET + b"\r\n" + GET + b"\r\n\r\n" + GET)
    made.response_head(204, [])
    made.end()
    assert made.next_cycle()
    assert made.next_head() is not None
    made.response_head(204, [])
    made.end()
    assert made.next_cycle()
    with pytest.raises(ProtocolViolation, match="empty line"):
        made.next_head()


def test_a_body_is_handed_out_as_it_comes() -> None:
    """All that has been received, no more than that, and never bytes of the next request."""
    made = codec(POST[:-3])
    made.next_head()
    assert made.next_body() == b"he"
    assert made.next_body() is NEED_DATA
    made.receive(b"lloGET")
    assert made.next_body() == b"llo"
    assert made.next_body() is END_OF_BODY
    assert made.buffered == 3


HUGE = b"a" * 100_000

FAULTS: list[tuple[int, bytes, set[int]]] = [
    (1, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}),
    (1, b"\x80\xff\x00\x01garbage", {400}),
    (2, b"GET /\r\n", {400}),
    (2, b"GET / http/1.1\r\nHost: h\r\n\r\n", {400}),
    (2, b"GET / HTTP/9.9\r\nHost: h\r\n\r\n", {505}),
    (2, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {505}),
    (3, HUGE, {414}),
    (3, HUGE + b" / HTTP/1.1\r\nHost: h\r\n\r\n", {414}),
    (3, b"GET /" + HUGE + b" HTTP/1.1\r\nHost: h\r\n\r\n", {414}),
    (3, b"GET / HTTP/1.1\r\nHost: h\r\nx: " + HUGE + b"\r\n\r\n", {431}),
    (3, b"GET / HTTP/1.1\r\nHost: h\r\n" + b"x: y\r\n" * 10_000 + b"\r\n", {431}),
    (3, b"GET / HTTP/1.1\r\nHost: h\r\nx: " + b"a" * 1_000_000, {431}),
    (4, b"GET / HTTP/1.1\r\n\r\n", {400}),
    (4, b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", {400}),
    (4, b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", {400}),
    (4, b"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", {400}),
    (4, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", {400}),
    (6, b"GET * HTTP/1.1\r\nHost: h\r\n\r\n", {400}),
    (6, b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", {501}),
    (7, b"GET /\0 HTTP/1.1\r\nHost: h\r\n\r\n", {400}),
    (7, b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", {400}),
    (7, b"GET /\xc0\xae HTTP/1.1\r\nHost: h\r\n\r\n", {400}),
    *((8, b"GET / HTTP/1.1\r\nHost: h\r\n" + line + b"\r\n\r\n", {400})
      for line in (b"x: a\r\n b", b"x : a", b"x: a\rb", b"x: a\0", b"x: \x01", b"x\xe9: a", b": a", b"x")),
    (8, b"GET / HTTP/1.1\r\n Host: h\r\n\r\n", {400}),
    (9, b"GET / HTTP/1.1\nHost: h\n\n", {400}),
    (9, b"GET / HTTP/1.1\r\nHost: h\n\n", {400}),
    *((10, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: " + value + b"\r\n\r\n", {400})
      for value in (b"abc", b"-1", b"+5", b"0x5", b"1_0", b"5 5", b"", b"9" * 25)),
    (11, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 10\r\n\r\n", {400}),
    (11, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 10\r\n\r\n", {400}),
    (11, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", {400}),
    (12, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", {400}),
    *((13, b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: " + value + b"\r\n\r\n", {400, 501})
      for value in (b"chunked, identity", b"chunked, gzip", b"xchunked", b"chunked, chunked", b"gzip")),
    (13, b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", {400}),
    *((14, CHUNKED + line, {400})
      for line in (b"zz\r\n", b"0x5\r\n", b"+5\r\n", b"-5\r\n", b"5 \r\n", b"1_0\r\n", b"\r\n", b"1" * 17 + b"\r\n",
                   b"5\r\nhello0\r\n\r\n", b"5\nhello\n0\n\n")),
    (15, CHUNKED + b"5;" + b"a" * 65536 + b"\r\nhello\r\n0\r\n\r\n", {400, 413, 431}),
    (15, CHUNKED + b"0\r\nx: " + b"a" * 1_000_000 + b"\r\n\r\n", {400, 413, 431}),
    (16, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000000\r\n\r\n", {413}),
    (16, CHUNKED + b"3e8\r\n" + b"a" * 1000 + b"\r\n1\r\n", {413}),
    (17, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: more\r\n\r\n", {417}),
]  # fmt: skip


@pytest.mark.parametrize("size", [10**9, 4096, 1])
@pytest.mark.parametrize(("row", "wire", "statuses"), FAULTS)
def test_a_bad_input_gets_its_answer_and_the_connection_closes(
    row: int, wire: bytes, statuses: set[int], size: int
) -> None:
    """Row by row, in one read, in pages, in single bytes: the same status, little kept, and one last answer."""
    made = codec()
    status = None
    for start in range(0, len(wire), size):
        made.receive(wire[start : start + size])
        assert made.buffered <= MAX_HEAD + min(size, len(wire))
        try:
            if made.next_body() is END_OF_BODY and made.next_head() is None:
                continue
            body(made)
        except ProtocolViolation as violation:
            status = violation.status
            break
    assert status in statuses
    assert made.buffered == 0
    assert not made.body_complete
    for again in (made.next_head, made.next_body):
        with pytest.raises(ProtocolViolation):
            again()
    made.receive(GET)
    assert made.buffered == 0
    answer = made.response_head(status or 0, [("content-length", "2")])
    assert ("connection", "close") in fields(answer)
    assert understood(client(), answer + made.end(b"no")) == (status, b"no")
    assert not made.next_cycle()


def test_a_head_request_is_refused_without_a_body() -> None:
    """Even when its head is too bad to be acted upon: the method is known."""
    made = codec(b"HEAD / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    with pytest.raises(ProtocolViolation):
        made.next_head()
    answer = made.response_head(400, [("content-length", "2")], head_only=True)
    assert made.end(b"no") == b""
    assert understood(client("HEAD"), answer) == (400, b"")
    assert not made.next_cycle()


def test_a_body_fault_is_told_after_the_data_before_it() -> None:
    """The same for every cutting of the bytes."""
    made = codec(CHUNKED + b"5\r\nhello\r\nzz\r\n")
    made.next_head()
    assert made.next_body() == b"hello"
    with pytest.raises(ProtocolViolation):
        made.next_body()


Event = tuple[str, object]


def events(pieces: Iterable[bytes]) -> list[Event]:
    """What a server sees of a connection, answering each request when it is complete; bodies joined."""
    made = codec()
    seen: list[Event] = []
    data: bytes | None = None
    for piece in pieces:
        made.receive(piece)
        try:
            while True:
                if data is None:
                    head = made.next_head()
                    if head is None:
                        break
                    seen.append(("head", head))
                    data = b""
                event = made.next_body()
                if isinstance(event, bytes):
                    data += event
                elif event is END_OF_BODY:
                    seen.append(("body", data))
                    data = None
                    made.response_head(200, [])
                    made.end()
                    if not made.next_cycle():
                        return [*seen, ("closed", None)]
                else:
                    break
        except ClientError as error:
            return [*seen, ("data", data), (type(error).__name__, error.status)]
    return [*seen, ("data", data), ("left", made.buffered)]


PARTS = st.sampled_from(
    [GET, POST, CHUNKED + b"3;x=y\r\nabc\r\n0\r\nx: y\r\n\r\n", CHUNKED, b"\r\n", b"\r\n" + GET,
     b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\n", b"\0",
     b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n", b"GET / HTTP/1.1\r\n x: y\r\n", b"x\xe9", b"zz\r\n"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_cutting_of_a_connection_gives_the_same_events(data: st.DataObject) -> None:
    """One read, single bytes, or anything between, good requests and bad ones."""
    wire = b"".join(data.draw(st.lists(PARTS, min_size=1, max_size=4)))
    whole = events([wire, b""])
    assert events([wire[at : at + 1] for at in range(len(wire))] + [b""]) == whole
    cuts = sorted(data.draw(st.lists(st.integers(1, len(wire)), max_size=5, unique=True)))
    edges = [0, *cuts, len(wire)]
    pieces = [wire[start:end] for start, end in itertools.pairwise(edges) if start < end]
    assert events([*pieces, b""]) == whole


def test_a_drip_of_bytes_is_not_read_over_and_over() -> None:
    """A head of single bytes is judged line by line, not byte by byte: its cost stays linear."""
    made = codec(b"GET / HTTP/1.1\r\nx: ")
    assert made.next_head() is None
    for _ in range(10_000):
        made.receive(b"\xe9")
        assert made.next_head() is None
    made.receive(b"\r\nHost: h\r\n\r\n")
    assert made.next_head() is not None


# --- 100-continue -------------------------------------------------------------------------------------------------

EXPECT = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"


def test_a_client_that_waits_is_told_to_continue_once() -> None:
    """RFC 9110 §10.1.1: the interim response, then the body, then the answer, on a connection that lives on."""
    made = codec(EXPECT)
    head = made.next_head()
    assert head is not None
    assert head.expects_continue
    assert made.continue_100() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert made.continue_100() == b""
    made.receive(b"hello")
    assert body(made) == b"hello"
    assert ("connection", "close") not in fields(made.response_head(200, [("content-length", "0")]))
    made.end()
    assert made.next_cycle()


def test_a_client_that_does_not_wait_is_told_nothing() -> None:
    """No expectation, a body that is here already, or an answer that has begun."""
    plain = codec(POST)
    plain.next_head()
    assert plain.continue_100() == b""
    here = codec(EXPECT + b"hello")
    here.next_head()
    body(here)
    assert here.continue_100() == b""
    begun = codec(EXPECT)
    begun.next_head()
    begun.response_head(417, [("content-length", "0")])
    assert begun.continue_100() == b""


def test_an_answer_before_the_body_closes_the_connection() -> None:
    """Nobody can tell then whether the next bytes are a body or a request."""
    made = codec(EXPECT)
    made.next_head()
    assert ("connection", "close") in fields(made.response_head(401, [("content-length", "0")]))
    made.end()
    assert not made.next_cycle()


def test_an_answer_to_no_request_closes_the_connection() -> None:
    """A head that does not arrive in time is answered too."""
    made = codec(GET[:-1])
    assert made.next_head() is None
    assert ("connection", "close") in fields(made.response_head(408, [("content-length", "0")]))
    made.end()
    assert not made.next_cycle()


# --- responses ----------------------------------------------------------------------------------------------------

HEADERS = [("content-type", "text/plain"), ("X-Name", "J\xf6rg"), ("empty", ""), ("x", "a\tb")]


def test_without_a_length_an_answer_is_chunked() -> None:
    """HTTP/1.1, keep-alive: the end is in the framing."""
    made = asked(GET)
    head = made.response_head(200, HEADERS)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert made.framing == "chunked"
    assert made.frame(b"") == b""
    wire = head + made.frame(b"hello ") + made.end(b"world")
    assert wire.endswith(b"\r\n\r\n6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n")
    assert understood(client(), wire) == (200, b"hello world")
    assert made.next_cycle()


def test_with_a_length_an_answer_is_delimited_by_it() -> None:
    """Data passes through unchanged."""
    made = asked(GET)
    head = made.response_head(404, [*HEADERS, ("Content-Length", "7")])
    assert head.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert made.framing == "length"
    wire = head + made.frame(b"not") + made.end(b" her")
    assert understood(client(), wire) == (404, b"not her")
    assert made.next_cycle()


def test_on_http_1_0_an_answer_ends_with_the_connection() -> None:
    """No chunks (RFC 9112 §6.1), and no ``connection: close`` on a stream."""
    made = asked(b"GET / HTTP/1.0\r\n\r\n")
    head = made.response_head(200, HEADERS)
    assert made.framing == "close"
    assert fields(head) == sorted((name.lower(), value) for name, value in HEADERS)
    wire = head + made.frame(b"hello ") + made.end(b"world")
    assert wire.endswith(b"\r\n\r\nhello world")
    assert understood(client(), wire, closed=True) == (200, b"hello world")
    assert not made.next_cycle()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", 200), (GET, 204), (GET, 304), (b"HEAD / HTTP/1.0\r\n\r\n", 200)],
)
@pytest.mark.parametrize("length", [True, False])
def test_some_answers_have_no_body(request_bytes: bytes, status: int, length: bool) -> None:
    """HEAD, 204, 304: whatever is framed comes out as nothing, and the connection lives on (on HTTP/1.1)."""
    made = asked(request_bytes)
    head = made.response_head(status, [("content-length", "5")] if length else [])
    assert made.framing == "none"
    assert made.frame(b"hello") == b""
    assert made.end(b"hello") == b""
    assert (("content-length", "5") in fields(head)) is (length and status != 204)
    assert made.next_cycle() is (b"1.1" in request_bytes)


def test_head_only_answers_head_only() -> None:
    """The caller may say that it knows; it must be right."""
    made = asked(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
    made.response_head(200, [], head_only=True)
    assert made.framing == "none"
    with pytest.raises(MisuseError, match="GET"):
        asked(GET).response_head(200, [], head_only=True)


CLOSE = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(("request_bytes", "asks"), [(CLOSE, []), (GET, [("connection", "Close")])])
def test_close_is_announced_only_where_the_end_is_visible_without_it(
    request_bytes: bytes, asks: list[tuple[str, str]]
) -> None:
    """On a chunked stream it would make some clients take a cut for the end; the connection closes all the same."""
    chunked = asked(request_bytes)
    assert fields(chunked.response_head(200, asks)) == [("transfer-encoding", "chunked")]
    chunked.end(b"x")
    assert not chunked.next_cycle()
    sized = asked(request_bytes)
    assert ("connection", "close") in fields(sized.response_head(200, [*asks, ("content-length", "0")]))
    sized.end()
    assert not sized.next_cycle()


def test_keep_alive_need_not_be_said() -> None:
    """It is the default of HTTP/1.1."""
    made = asked(GET)
    assert fields(made.response_head(200, [("connection", "keep-alive")])) == [("transfer-encoding", "chunked")]
    made.end()
    assert made.next_cycle()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-id", "a\r\nset-cookie: b"), ("x-id", "a\nb"), ("x-id", "a\rb"), ("x-id", "a\0b"), ("x-id", "a\x7fb"),
        ("x-id", "\u20ac"), ("x id", "a"), ("", "a"), ("x-id:", "a"), ("x\r\ny", "a"), ("transfer-encoding", "gzip"),
        ("connection", "upgrade"), ("content-length", "abc"), ("content-length", "-1"),
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_sent_is_refused_by_name(name: str, value: str) -> None:
    """Nothing reflected from a client or an upstream can add a header; an honest answer may still follow."""
    made = asked(GET)
    with pytest.raises(ValueError) as caught:
        made.response_head(200, [("content-type", "text/plain"), (name, value)])
    assert repr(name)[1:-1] in str(caught.value)
    assert made.response_head(500, []).startswith(b"HTTP/1.1 500 Internal Server Error\r\n")


def test_a_status_without_a_name_is_sent_without_one() -> None:
    """The reason phrase is optional (RFC 9112 §4); an impossible status is not."""
    assert asked(GET).response_head(299, []).startswith(b"HTTP/1.1 299 \r\n")
    with pytest.raises(ValueError, match="1000"):
        asked(GET).response_head(1000, [])


def test_an_announced_length_is_kept() -> None:
    """More or less data than announced is the caller's mistake, and an error."""
    long = asked(GET)
    long.response_head(200, [("content-length", "3")])
    with pytest.raises(MisuseError, match="1 bytes longer"):
        long.frame(b"four")
    short = asked(GET)
    short.response_head(200, [("content-length", "3")])
    with pytest.raises(MisuseError, match="1 bytes shorter"):
        short.end(b"no")
    assert not short.next_cycle()


def test_answers_come_in_order_or_not_at_all() -> None:
    """No second head, no second end, no end without a head, no next cycle within an answer."""
    made = asked(GET)
    with pytest.raises(MisuseError):
        made.end()
    made = asked(GET)
    made.response_head(200, [])
    assert not made.next_cycle()
    with pytest.raises(MisuseError):
        made.response_head(200, [])
    made = asked(GET)
    made.response_head(200, [])
    made.end()
    with pytest.raises(MisuseError):
        made.end()


HEADER = st.tuples(
    st.from_regex(r"\Ax-[a-zA-Z0-9!#$%&'*+.^_`|~-]{1,10}\Z"),
    st.from_regex(r"\A([!-~\x80-\x84\x86-\x9f\xa1-\xff]([ \t!-~]{0,9}[!-~])?)?\Z"),
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(HEADER, max_size=5),
    st.sampled_from([200, 204, 304, 404, 503]),
    st.sampled_from(["GET", "HEAD"]),
    st.sampled_from(["1.0", "1.1"]),
    st.booleans(),
    st.lists(st.binary(max_size=30), min_size=1, max_size=5),
    st.booleans(),
)
def test_every_answer_is_the_one_h11_would_have_written(
    headers: list[tuple[str, str]],
    status: int,
    method: str,
    version: str,
    close: bool,
    pieces: list[bytes],
    sized: bool,
) -> None:
    """The same fields and the very same bytes of body, but for ``connection: close`` on streams."""
    request = f"{method} / HTTP/{version}\r\nHost: h\r\n{'Connection: close' if close else 'x: y'}\r\n\r\n".encode()
    made = asked(request)
    reference = h11.Connection(h11.SERVER)
    reference.receive_data(request)
    reference.next_event()
    reference.next_event()
    has_body = method != "HEAD" and status not in (204, 304)
    if sized and status != 204:
        headers = [*headers, ("content-length", str(sum(map(len, pieces))))]
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    expected = reference.send(h11.Response(status_code=status, headers=encoded))
    got = fields(made.response_head(status, headers))
    if made.framing in ("chunked", "close"):
        assert ("connection", "close") not in got
        got += [("connection", "close")] if close or version == "1.0" else []
    assert sorted(got) == fields(expected)
    for piece in pieces[:-1]:
        assert made.frame(piece) == (reference.send(h11.Data(piece)) if has_body else b"")
    last = reference.send(h11.Data(pieces[-1])) if has_body else b""
    assert made.end(pieces[-1]) == last + reference.send(h11.EndOfMessage())
    alive = reference.our_state is h11.DONE and reference.their_state is h11.DONE
    assert made.next_cycle() is alive


def test_an_idle_codec_is_small() -> None:
    """At most 3 KiB of Python memory with h11's connection, after a request as before the first."""
    request = POST.replace(b"Host", b"Cookie: " + b"c" * 4096 + b"\r\nHost")

    def idle() -> ServerCodec:
        made = asked(request)
        made.response_head(200, [("content-length", "5")])
        made.end(b"hello")
        assert made.next_cycle()
        return made

    idle()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = [idle() for _ in range(100)]
        used = (tracemalloc.get_traced_memory()[0] - before) / len(kept)
    finally:
        tracemalloc.stop()
    assert used <= 3 * 1024

"""HTTP/2 without a socket: what a client may say, what it costs whom, and what is said back (RFC 9113)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived
from h2.events import Event as H2Event
from h2.settings import SettingCodes
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from rawstream.errors import ProtocolViolation
from rawstream.wire.guard import HeadLimits
from rawstream.wire.http2 import Began, Body, Complete, Gone, Happening, Http2, Limits, Opened, Refused, Reset
from rawstream.wire.http2_frames import MAX_BLOCK, MAX_FRAME, PREFACE, REASONS, Frames, Http2Violation, Patience
from rawstream.wire.http2_request import read_request

HEAD = HeadLimits(max_head=16 * 1024, max_request_line=8 * 1024, max_fields=100, max_body=1 << 20)
GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"localhost"), (b":path", b"/healthz")]
POST = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"localhost"), (b":path", b"/chat")]

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED = 1, 4, 8


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def broken_by(steps: Iterable[object]) -> tuple[Http2Violation | None, int]:
    """Take steps until one breaks the rules: how, and how many were taken before."""
    taken = 0
    try:
        for _ in steps:
            taken += 1
    except Http2Violation as violation:
        return violation, taken
    return None, taken


class Peer:
    """A client that says whatever it is told to."""

    def __init__(self, *, streams: int = 10, settings: bytes = b"", head: HeadLimits = HEAD) -> None:
        self.server = Http2(Limits(head, streams), 0.0)
        self.encoder = Encoder()
        self.now = 0.0
        self.client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.hear(PREFACE + frame(SETTINGS, 0, 0, settings))

    def hear(self, data: bytes) -> list[Happening]:
        return self.server.receive(data, self.now)

    def block(self, fields: Sequence[tuple[bytes, bytes]]) -> bytes:
        encoded: bytes = self.encoder.encode(fields)
        return encoded

    def ask(
        self, stream: int, fields: Sequence[tuple[bytes, bytes]] = GET, *, end: bool = True, more: bytes = b""
    ) -> list[Happening]:
        flags = END_HEADERS | (END_STREAM if end else 0)
        return self.hear(frame(HEADERS, flags, stream, self.block(fields)) + more)

    def began(self, stream: int, fields: Sequence[tuple[bytes, bytes]] = GET, *, end: bool = True) -> Began:
        (first, *_) = self.ask(stream, fields, end=end)
        assert isinstance(first, Began)
        return first

    def said(self) -> list[tuple[int, int, int, bytes]]:
        """Frames that the server has to say: (kind, flags, stream, payload)."""
        return split(self.server.to_send())

    def cut(self, data: bytes) -> tuple[str, ErrorCodes]:
        """Why the connection ends at ``data``, as counted and as told; it is told once."""
        self.server.to_send()
        with pytest.raises(Http2Violation) as caught:
            self.hear(data)
        assert caught.value.reason in REASONS
        (told,) = [payload for kind, _, _, payload in self.said() if kind == GOAWAY]
        return caught.value.reason, ErrorCodes(struct.unpack_from(">L", told, 4)[0])


def split(data: bytes) -> list[tuple[int, int, int, bytes]]:
    frames = []
    while data:
        high, low, kind, flags, stream = struct.unpack_from(">HBBBL", data)
        size = high << 8 | low
        frames.append((kind, flags, stream, data[9 : 9 + size]))
        data = data[9 + size :]
    return frames


# --- requests


def test_a_request_becomes_what_http_1_1_would_have_made_of_it() -> None:
    began, complete = Peer().ask(1, [*GET, (b"accept", b"*/*"), (b"cookie", b"a=1"), (b"cookie", b"b=2")])
    assert isinstance(began, Began)
    assert began.fault is None
    assert (began.head.method, began.head.path, began.head.host) == ("GET", "/healthz", "localhost")
    assert (began.head.version, began.head.has_body) == ("2", False)
    assert (began.head.header("accept"), began.head.header("cookie")) == ("*/*", "a=1; b=2")
    assert complete == Complete(1)


def test_a_host_field_stands_in_for_the_authority() -> None:
    fields = [GET[0], GET[1], GET[3], (b"host", b"localhost")]
    assert Peer().began(1, fields).head.host == "localhost"
    assert Peer().began(1, [*GET, (b"host", b"localhost")]).head.host == "localhost"


@pytest.mark.parametrize(
    "fields",
    [
        [*GET, (b":path", b"/")],
        [*GET, (b":protocol", b"websocket")],
        [*GET, (b":status", b"200")],
        [GET[0], (b"accept", b"*/*"), *GET[1:]],
        [GET[0], (b"cookie", b"a=1"), *GET[1:]],
        [GET[0], (b"host", b"localhost"), *GET[1:]],
        GET[1:],
        GET[:3],
        [GET[0], *GET[2:]],
        [*GET[:3], (b":path", b"")],
        [*GET[:3], (b":path", b"*")],
        [*GET[:3], (b":path", b"http://localhost/")],
        [*GET[:3], (b":path", b"/ HTTP/1.1\r\nx-user: root\r\nx:")],
        [*GET, (b"Accept", b"*/*")],
        [*GET, (b"", b"*/*")],
        [*GET, (b"a b", b"*/*")],
        [*GET, (b"x", b"a\r\nx-user: root")],
        [*GET, (b"x", b"a\0b")],
        [*GET, (b"x", b" a")],
        [*GET, (b"x", b"a\t")],
        [*GET, (b"connection", b"close")],
        [*GET, (b"transfer-encoding", b"chunked")],
        [*GET, (b"upgrade", b"h2c")],
        [*GET, (b"keep-alive", b"1")],
        [*GET, (b"proxy-connection", b"close")],
        [*GET, (b"te", b"gzip")],
        [*GET, (b"host", b"elsewhere")],
        [*GET, (b"host", b"localhost"), (b"host", b"localhost")],
        [*POST, (b"content-length", b"5")],
    ],
)
def test_a_malformed_request_costs_its_stream_and_no_other(fields: list[tuple[bytes, bytes]]) -> None:
    """§8.1.1: PROTOCOL_ERROR on the stream. Nothing of it gets to where requests are answered."""
    peer = Peer()
    peer.began(1, POST, end=False)
    peer.server.to_send()
    (refused,) = peer.ask(3, fields)
    assert isinstance(refused, Refused)
    assert refused.fault.reason == "malformed"
    assert peer.said() == [(RST_STREAM, 0, 3, struct.pack(">L", ErrorCodes.PROTOCOL_ERROR))]
    assert peer.server.is_open(1)
    assert peer.began(5).fault is None


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([(b":method", b"CONNECT"), (b":authority", b"localhost:80")], 501),
        ([*GET[:3], (b":path", b"/" + b"a" * 9000)], 414),
        ([*GET, (b"x", b"a" * 17_000)], 431),
        ([*GET, *[(b"x", b"a")] * 101], 431),
        ([*GET[:2], (b":authority", b"a@b"), GET[3]], 400),
        ([*GET[:2], GET[3]], 400),
        ([*POST, (b"content-length", b"9999999")], 413),
        ([*POST, (b"content-length", b"five")], 400),
    ],
)
def test_what_http_itself_forbids_is_answered_with_its_status(fields: list[tuple[bytes, bytes]], status: int) -> None:
    """As over HTTP/1.1, by the same guard."""
    began = Peer().began(1, fields, end=False) if status != 400 or fields[0][1] == b"GET" else None
    if began is not None:
        assert began.fault is not None
        assert began.fault.status == status


def test_a_refused_head_still_says_whether_it_was_head() -> None:
    fields = [(b":method", b"HEAD"), *GET[1:], *[(b"x", b"a")] * 101]
    began = Peer().began(1, fields)
    assert (began.fault is not None, began.head.method) == (True, "HEAD")


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=24)), max_size=6))
def test_no_field_smuggles_another_one(fields: list[tuple[bytes, bytes]]) -> None:
    """Whatever bytes it holds: as many fields come out as went in, or it is refused."""
    try:
        head = read_request([*GET, *fields], HEAD, ended=False)
    except ProtocolViolation:
        return
    assert len(head.headers) <= len(fields) + 1
    assert (head.method, head.path, head.host) == ("GET", "/healthz", "localhost")


# --- bodies


def test_a_body_comes_in_pieces_and_its_window_is_given_back_as_it_is_read() -> None:
    """The connection's at once, the stream's when it is read (§5.2)."""
    peer = Peer()
    peer.began(1, [*POST, (b"content-length", b"32768")], end=False)
    peer.server.to_send()
    (first,) = peer.hear(frame(DATA, 0, 1, b"a" * MAX_FRAME))
    assert first == Body(1, b"a" * MAX_FRAME)
    assert peer.said() == [(WINDOW_UPDATE, 0, 0, struct.pack(">L", MAX_FRAME))]
    peer.server.consumed(1, 1000)
    assert peer.said() == []
    peer.server.consumed(1, MAX_FRAME - 1000)
    assert peer.said() == [(WINDOW_UPDATE, 0, 1, struct.pack(">L", MAX_FRAME))]
    second, complete = peer.hear(frame(DATA, END_STREAM, 1, b"b" * MAX_FRAME))
    assert (second, complete) == (Body(1, b"b" * MAX_FRAME), Complete(1))
    peer.server.consumed(1, MAX_FRAME)  # too late to be of use: nobody sends on it any more
    peer.server.consumed(99, MAX_FRAME)


def test_who_is_not_read_may_send_one_window_and_no_more() -> None:
    peer = Peer()
    peer.began(1, POST, end=False)
    for _ in range(3):
        peer.hear(frame(DATA, 0, 1, b"a" * MAX_FRAME))
    peer.hear(frame(DATA, 0, 1, b"a" * (MAX_FRAME - 1)))
    assert peer.cut(frame(DATA, 0, 1, b"a")) == ("window", ErrorCodes.FLOW_CONTROL_ERROR)


def test_padding_is_given_back_though_nobody_reads_it() -> None:
    peer = Peer()
    peer.began(1, POST, end=False)
    peer.server.to_send()
    for _ in range(64):
        (body,) = peer.hear(frame(DATA, PADDED, 1, b"\xff" + b"a" + b"\0" * 255))
        assert body == Body(1, b"a")
    assert {stream for kind, _, stream, _ in peer.said() if kind == WINDOW_UPDATE} == {0, 1}


def test_padding_of_a_stream_that_is_given_up_in_the_same_bytes_breaks_nothing() -> None:
    """h2 has closed the stream by the time its padding is counted; the others on the connection do not notice."""
    peer = Peer()
    peer.began(1, POST, end=False)
    padded = frame(DATA, PADDED, 1, b"\xff" + b"a" * 64 + bytes(255))
    happened = peer.hear(padded * 70 + frame(RST_STREAM, 0, 1, struct.pack(">L", 8)))
    assert happened[-1] == Reset(1)
    assert len(happened) == 71
    peer.began(3)


@pytest.mark.parametrize("size", [4, 6])
def test_a_body_of_another_length_than_announced_ends_the_connection(size: int) -> None:
    """h2 knows no smaller way; RFC 9113 §5.4 leaves it to us."""
    peer = Peer()
    peer.began(1, [*POST, (b"content-length", b"5")], end=False)
    assert peer.cut(frame(DATA, END_STREAM, 1, b"a" * size)) == ("framing", ErrorCodes.PROTOCOL_ERROR)


def test_trailers_end_a_request_and_are_not_used() -> None:
    peer = Peer()
    peer.began(1, POST, end=False)
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, peer.block([(b"x-checksum", b"1")]))
    assert peer.hear(frame(DATA, 0, 1, b"abc") + trailers) == [Body(1, b"abc"), Complete(1)]


@pytest.mark.parametrize("field", [(b":path", b"/"), (b"Upper", b"a"), (b"connection", b"close")])
def test_malformed_trailers_cost_the_stream(field: tuple[bytes, bytes]) -> None:
    peer = Peer()
    peer.began(1, POST, end=False)
    (refused,) = peer.hear(frame(HEADERS, END_HEADERS | END_STREAM, 1, peer.block([field])))
    assert isinstance(refused, Refused)
    assert not peer.server.is_open(1)


def test_trailers_that_come_before_the_announced_length_cost_the_stream() -> None:
    peer = Peer()
    peer.began(1, [*POST, (b"content-length", b"5")], end=False)
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, peer.block([(b"x", b"1")]))
    (body, refused) = peer.hear(frame(DATA, 0, 1, b"abc") + trailers)
    assert body == Body(1, b"abc")
    assert isinstance(refused, Refused)


# --- answers


def test_an_answer_is_a_head_and_data_and_an_end() -> None:
    peer = Peer()
    peer.began(1)
    peer.server.to_send()
    peer.server.head(1, 200, [("Content-Type", "text/plain"), ("connection", "close")])
    ((kind, flags, stream, _),) = peer.said()
    assert (kind, flags, stream) == (HEADERS, END_HEADERS, 1)
    assert split(peer.server.data(1, b"abc", end=False)) == [(DATA, 0, 1, b"abc")]
    assert split(peer.server.data(1, b"", end=True)) == [(DATA, END_STREAM, 1, b"")]
    assert not peer.server.is_open(1)
    peer.server.head(1, 200, [])
    peer.server.reset(1, ErrorCodes.CANCEL)
    assert peer.said() == []
    assert peer.server.room(1) == 0


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20))
def test_data_is_framed_as_h2_frames_it(parts: list[bytes]) -> None:
    """Frame by frame the same bytes, and the same windows after each."""
    ours, theirs = Peer(), Peer()
    for peer in (ours, theirs):
        peer.began(1)
        peer.server.head(1, 200, [])
        peer.server.to_send()
    h2 = theirs.server._h2
    for part in parts:
        h2.send_data(1, part)
        assert ours.server.data(1, part, end=False) == h2.data_to_send()
        assert ours.server.window == h2.outbound_flow_control_window
        assert ours.server.room(1) == min(MAX_FRAME, h2.local_flow_control_window(1))


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 70_000), st.randoms())
def test_no_more_is_written_than_either_window_allows(steps: list[int], initial: int, random: object) -> None:
    """Against h2's own client, which raises when it is sent too much; with windows that change while data flows."""
    peer = Peer(settings=struct.pack(">HL", SettingCodes.INITIAL_WINDOW_SIZE, initial))
    client = H2Connection(H2Configuration(client_side=True))
    server = Http2(Limits(HEAD, 10), 0.0)
    client.initiate_connection()
    client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: initial})
    for stream in (1, 3):
        client.send_headers(stream, [(name.decode(), value.decode()) for name, value in GET], end_stream=True)
    server.receive(client.data_to_send(), 0.0)
    for stream in (1, 3):
        server.head(stream, 200, [])
    client.receive_data(server.to_send())
    got = sent = 0
    for step in steps:
        if step == 0:
            client.increment_flow_control_window(1000, 1)
        elif step == 1:
            client.increment_flow_control_window(1000)
        elif step == 2:
            initial = (initial * 7 + 13) % 70_000
            client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: initial})
        server.receive(client.data_to_send(), float(sent))
        out = server.to_send()
        for stream in (1, 3):
            if room := server.room(stream):
                out += server.data(stream, b"a" * min(room, 5000), end=False)
                sent += min(room, 5000)
        events: list[H2Event] = client.receive_data(out)
        got += sum(len(event.data or b"") for event in events if isinstance(event, DataReceived))
    assert got == sent
    assert peer.server.window == 65_535


def test_a_window_that_was_made_smaller_is_negative_and_the_end_still_goes() -> None:
    """§6.9.2."""
    peer = Peer()
    peer.began(1)
    peer.server.head(1, 200, [])
    peer.server.to_send()
    peer.server.data(1, b"a" * 1000, end=False)
    assert peer.hear(frame(SETTINGS, 0, 0, struct.pack(">HL", SettingCodes.INITIAL_WINDOW_SIZE, 10))) == [Opened(0)]
    assert peer.server.stream_window(1) == -990
    assert peer.server.room(1) == 0
    assert peer.server.data(1, b"", end=True)[-9:] == frame(DATA, END_STREAM, 1)
    assert peer.server.stream_window(99) == 0


def test_a_window_update_says_whose() -> None:
    peer = Peer()
    peer.began(1)
    update = struct.pack(">L", 5)
    assert peer.hear(frame(WINDOW_UPDATE, 0, 1, update) + frame(WINDOW_UPDATE, 0, 0, update)) == [Opened(1), Opened(0)]


def test_the_peers_header_table_is_not_used_beyond_4_kib() -> None:
    """It may offer gigabytes, which would be ours to keep."""
    peer = Peer(settings=struct.pack(">HL", SettingCodes.HEADER_TABLE_SIZE, 1 << 30))
    assert peer.server._h2.encoder.header_table_size == 4096
    peer.hear(frame(SETTINGS, 0, 0, struct.pack(">HL", SettingCodes.HEADER_TABLE_SIZE, 100)))
    assert peer.server._h2.encoder.header_table_size == 100


def test_limits_are_announced() -> None:
    said = dict(struct.iter_unpack(">HL", split(Http2(Limits(HEAD, 7), 0.0).to_send())[0][3]))
    assert said[SettingCodes.MAX_CONCURRENT_STREAMS] == 7
    assert said[SettingCodes.MAX_HEADER_LIST_SIZE] == HEAD.max_head


# --- ends


def test_a_reset_ends_one_stream() -> None:
    peer = Peer()
    peer.began(1)
    peer.began(3)
    assert peer.hear(frame(RST_STREAM, 0, 1, struct.pack(">L", 8))) == [Reset(1)]
    assert (peer.server.is_open(1), peer.server.is_open(3)) == (False, True)
    assert peer.hear(frame(RST_STREAM, 0, 1, struct.pack(">L", 8))) == []


def test_a_stream_too_many_is_refused_and_may_be_tried_again() -> None:
    """§5.1.2, §8.7: REFUSED_STREAM says that nothing was done."""
    peer = Peer(streams=2)
    peer.began(1)
    peer.began(3)
    peer.server.to_send()
    (refused,) = peer.ask(5)
    assert isinstance(refused, Refused)
    assert refused.fault.reason == "too_many_streams"
    assert peer.said() == [(RST_STREAM, 0, 5, struct.pack(">L", ErrorCodes.REFUSED_STREAM))]
    peer.server.head(1, 204, [])
    peer.server.data(1, b"", end=True)
    assert peer.began(7).fault is None


def test_goodbye_lets_what_has_begun_go_on() -> None:
    peer = Peer()
    peer.began(1)
    assert peer.hear(frame(GOAWAY, 0, 0, struct.pack(">LL", 0, 0) + b"debug")) == [Gone(False)]
    assert peer.hear(frame(GOAWAY, 0, 0, struct.pack(">LL", 0, 0))) == []
    peer.server.head(1, 200, [])
    assert peer.server.data(1, b"abc", end=True)


def test_goodbye_with_an_error_says_so() -> None:
    assert Peer().hear(frame(GOAWAY, 0, 0, struct.pack(">LL", 0, 2))) == [Gone(True)]


def test_our_own_goodbye_names_the_last_stream() -> None:
    peer = Peer()
    peer.began(5)
    assert split(peer.server.farewell()) == [(GOAWAY, 0, 0, struct.pack(">LL", 5, 0))]


def test_a_window_opened_too_far_costs_the_stream_or_the_connection_it_was_of() -> None:
    peer = Peer()
    peer.began(1)
    peer.server.to_send()
    (refused,) = peer.hear(frame(WINDOW_UPDATE, 0, 1, struct.pack(">L", 2**31 - 1)))
    assert isinstance(refused, Refused)
    assert refused.fault.reason == "window"
    assert peer.said() == [(RST_STREAM, 0, 1, struct.pack(">L", ErrorCodes.FLOW_CONTROL_ERROR))]
    assert peer.cut(frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", 2**31 - 1))) == (
        "window",
        ErrorCodes.FLOW_CONTROL_ERROR,
    )


def test_data_for_a_stream_that_was_given_up_is_thrown_away() -> None:
    peer = Peer()
    peer.began(1, POST, end=False)
    peer.server.head(1, 200, [])
    peer.server.data(1, b"", end=True)
    peer.server.to_send()
    assert peer.hear(frame(DATA, 0, 1, b"late")) == []
    peer.server.reset(1, ErrorCodes.NO_ERROR)
    assert peer.hear(frame(DATA, 0, 1, b"later")) == []
    assert (RST_STREAM, 0, 1) in [said[:3] for said in peer.said()]


# --- what is not HTTP/2, and what is too much of it


@pytest.mark.parametrize(
    ("data", "reason", "told"),
    [
        (frame(DATA, 0, 0, b"a"), "framing", ErrorCodes.PROTOCOL_ERROR),
        (frame(DATA, 0, 1, b"a"), "framing", ErrorCodes.PROTOCOL_ERROR),
        (frame(DATA, 0, 1)[:9].replace(b"\0\0\0", b"\xff\xff\xff", 1), "framing", ErrorCodes.FRAME_SIZE_ERROR),
        (frame(HEADERS, END_HEADERS, 2), "framing", ErrorCodes.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff"), "framing", ErrorCodes.PROTOCOL_ERROR),
        (frame(HEADERS, 0, 1) + frame(PING, 0, 0, b"12345678"), "framing", ErrorCodes.PROTOCOL_ERROR),
        (frame(CONTINUATION, END_HEADERS, 1), "framing", ErrorCodes.PROTOCOL_ERROR),
        (frame(PING, 0, 0, b"1"), "framing", ErrorCodes.FRAME_SIZE_ERROR),
        (frame(PUSH, END_HEADERS, 1, b"\0\0\0\2"), "framing", ErrorCodes.PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 0, b"12345"), "framing", ErrorCodes.FRAME_SIZE_ERROR),
        (frame(GOAWAY, 0, 1, bytes(8)), "framing", ErrorCodes.PROTOCOL_ERROR),
        (frame(GOAWAY, 0, 0, b"1"), "framing", ErrorCodes.FRAME_SIZE_ERROR),
    ],
)
def test_what_is_not_http_2_ends_the_connection_and_is_told(data: bytes, reason: str, told: ErrorCodes) -> None:
    assert Peer().cut(data) == (reason, told)


def test_a_connection_begins_with_its_preface_and_settings() -> None:
    with pytest.raises(Http2Violation):
        Http2(Limits(HEAD, 10), 0.0).receive(b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n", 0.0)
    for first in (frame(PING, 0, 0, bytes(8)), frame(SETTINGS, 1, 0)):
        with pytest.raises(Http2Violation) as caught:
            Http2(Limits(HEAD, 10), 0.0).receive(PREFACE + first, 0.0)
        assert caught.value.reason == "preface"


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (frame(PING, 0, 0, bytes(8)), "pings"),
        (frame(PING, 1, 0, bytes(8)), "pings"),
        (frame(SETTINGS, 0, 0), "settings"),
        (frame(SETTINGS, 1, 0), "settings"),
        (frame(PRIORITY, 0, 1, bytes(5)), "priorities"),
        (frame(0x40, 0, 1, b"whatever"), "unknown"),
        (frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", 1)), "window"),
        (frame(DATA, 0, 1), "data"),
        (frame(DATA, 0, 1, b"a"), "data"),
        (frame(DATA, PADDED, 1, b"\x01\0"), "data"),
    ],
)
def test_what_costs_the_peer_nothing_is_bounded(one: bytes, reason: str) -> None:
    """A thousand at once, a hundred a second: then it is told to calm down."""
    peer = Peer()
    peer.began(1, POST, end=False)
    for _ in range(190):
        peer.hear(one)
    peer.now = 60.0
    assert peer.cut(one * 5000) == (reason, ErrorCodes.ENHANCE_YOUR_CALM)


def test_ten_thousand_rapid_resets_end_after_less_than_a_hundred() -> None:
    """CVE-2023-44487: a stream that is taken back at once costs more than its request."""
    peer = Peer()
    caught, taken = broken_by(
        peer.ask(number, more=frame(RST_STREAM, 0, number, struct.pack(">L", 8))) for number in range(1, 20_000, 2)
    )
    assert caught is not None
    assert caught.reason == "resets"
    assert taken < 100


def test_resets_that_the_peer_makes_us_send_are_bounded_as_well() -> None:
    """CVE-2025-8671."""
    peer = Peer()
    caught, taken = broken_by(
        peer.ask(number, more=frame(WINDOW_UPDATE, 0, number, struct.pack(">L", 2**31 - 1)))
        for number in range(1, 20_000, 2)
    )
    assert caught is not None
    assert caught.reason == "resets"
    assert taken < 100


def test_malformed_requests_without_end_are_bounded() -> None:
    peer = Peer()
    caught, _ = broken_by(peer.ask(number, GET[1:]) for number in range(1, 2_000, 2))
    assert caught is not None
    assert caught.reason == "requests"


def test_who_is_served_may_ask_for_ever() -> None:
    """And who gives back the windows of what it was sent, frame by frame, is not cut for it."""
    peer = Peer()
    update = struct.pack(">L", 10)
    for number in range(1, 4_000, 2):
        peer.began(number)
        peer.server.head(number, 200, [])
        peer.server.data(number, b"0123456789", end=False)
        peer.server.data(number, b"", end=True)
        peer.server.to_send()
        peer.hear(frame(WINDOW_UPDATE, 0, 0, update) + frame(WINDOW_UPDATE, 0, number, update))
    assert len(peer.server._h2._closed_streams) <= 256


def test_a_header_block_without_end_is_cut_before_it_is_kept() -> None:
    """CONTINUATION flood: 64 KiB of one block and no more, in few large frames or in many small ones."""
    peer = Peer()
    begin = frame(HEADERS, 0, 1, b"a" * 1000)
    assert peer.cut(begin + frame(CONTINUATION, 0, 1, b"a" * MAX_FRAME) * 4) == (
        "continuation",
        ErrorCodes.ENHANCE_YOUR_CALM,
    )
    assert Peer().cut(begin + frame(CONTINUATION, 0, 1) * 3000)[0] == "continuation"


def test_an_hpack_bomb_does_not_go_off() -> None:
    """A few bytes that stand for a long list: nobody makes more of it than 64 KiB."""
    peer = Peer()
    peer.ask(1, [*GET, (b"x", b"a" * 3900)])
    bomb = peer.block([*GET, (b"x", b"a" * 3900)])
    assert peer.cut(frame(HEADERS, END_HEADERS, 3, bomb + bomb[-1:] * (MAX_BLOCK // 1000))) == (
        "header_list",
        ErrorCodes.ENHANCE_YOUR_CALM,
    )


def test_after_the_end_nothing_more_is_said() -> None:
    """Whoever still answers, or reads a body, does so in vain."""
    peer = Peer()
    peer.began(1, POST, end=False)
    peer.cut(frame(DATA, 0, 0, b"a"))
    peer.server.head(1, 200, [])
    peer.server.consumed(1, 1 << 20)
    peer.server.reset(1, ErrorCodes.CANCEL)
    assert peer.server.room(1) == 0
    assert peer.said() == []


# --- frames as they pass


@given(
    st.lists(st.tuples(st.sampled_from([DATA, HEADERS, PING, 0x40]), st.binary(max_size=40)), max_size=8),
    st.lists(st.integers(1, 60), min_size=1, max_size=20),
)
def test_bytes_pass_as_they_came_however_they_are_cut(kinds: list[tuple[int, bytes]], cuts: list[int]) -> None:
    """Except goodbyes, of which one is heard."""
    rest = b"".join(frame(kind, END_HEADERS, 1, payload) for kind, payload in kinds)
    goodbye = frame(GOAWAY, 0, 0, struct.pack(">LL", 3, 7) + b"!")
    wanted = PREFACE + frame(SETTINGS, 0, 0) + rest
    data = PREFACE + frame(SETTINGS, 0, 0) + goodbye + rest
    frames = Frames(Patience(0.0, 10))
    passed = b""
    at = number = 0
    while at < len(data):
        size = cuts[number % len(cuts)]
        passed += frames.look(data[at : at + size], 0.0)
        at += size
        number += 1
    assert passed == wanted
    assert frames.goodbye == 7


@given(st.binary(max_size=400), st.integers(1, 50))
def test_no_bytes_raise_anything_but_a_violation(junk: bytes, cut: int) -> None:
    peer = Peer()
    peer.began(1, POST, end=False)
    violation, _ = broken_by(peer.hear(junk[at : at + cut]) for at in range(0, len(junk), cut))
    assert violation is None or violation.reason in REASONS


@given(
    st.lists(
        st.tuples(st.integers(0, 11), st.integers(0, 255), st.sampled_from([0, 1, 3, 5, 2]), st.binary(max_size=30)),
        max_size=12,
    )
)
def test_no_frames_raise_anything_but_a_violation(frames: list[tuple[int, int, int, bytes]]) -> None:
    peer = Peer()
    peer.began(1, POST, end=False)
    violation, _ = broken_by(peer.hear(frame(*one)) for one in frames)
    assert violation is None or violation.reason in REASONS


def test_patience_comes_back_with_time_and_never_beyond_its_beginning() -> None:
    patience = Patience(0.0, 0)
    patience.spend("pings", 1000, 0.0)
    with pytest.raises(Http2Violation):
        patience.spend("pings", 1, 0.0)
    patience = Patience(0.0, 0)
    patience.spend("pings", 1000, 0.0)
    patience.spend("pings", 100, 1.0)
    patience.spend("pings", 1000, 1000.0)
    assert patience.left == 0
    patience.earn(1e9)
    assert patience.left == 4 * Patience.START

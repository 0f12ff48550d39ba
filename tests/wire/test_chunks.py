"""Chunked framing: decoded whatever the cuts, refused when malformed, framed as h11 frames it."""

from __future__ import annotations

import itertools

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawstream.errors import ProtocolViolation
from rawstream.wire.chunks import END_OF_BODY, MAX_EXTENSION, MAX_TRAILERS, ChunkDecoder

Result = tuple[bytes, int | None, bytes]


def decode(wire: bytes, cuts: list[int], max_body: int = 1000) -> Result:
    """Feed ``wire`` cut at ``cuts``: (data, the refusal's status or None, what was left in the buffer)."""
    decoder = ChunkDecoder(max_body)
    buffer = bytearray()
    data = b""
    edges = [0, *sorted(cuts), len(wire)]
    for start, end in itertools.pairwise(edges):
        buffer += wire[start:end]
        while True:
            try:
                event = decoder.take(buffer)
            except ProtocolViolation as violation:
                return data, violation.status, b""
            if event is None:
                break
            if event is END_OF_BODY:
                return data, None, bytes(buffer) + wire[end:]
            assert isinstance(event, bytes)
            data += event
    return data, -1, bytes(buffer)


def both(wire: bytes, max_body: int = 1000) -> Result:
    """The result in one piece, which must be that of single bytes."""
    whole = decode(wire, [], max_body)
    assert decode(wire, list(range(1, len(wire))), max_body)[:2] == whole[:2]
    return whole


@pytest.mark.parametrize(
    ("wire", "data"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"5\r\nhello\r\n1\r\n!\r\n000\r\n\r\n", b"hello!"),
        (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
        (b"0000000000000001\r\nx\r\n0\r\n\r\n", b"x"),
        (b'1;a\r\nx\r\n1;a=b;c="d\\" ;e"\r\ny\r\n0 ; z = 1\r\n\r\n', b"xy"),
        (b"1;" + b"a" * (MAX_EXTENSION - 1) + b"\r\nx\r\n0\r\n\r\n", b"x"),
        (b"1\r\nx\r\n0\r\nx-sum: 1\r\nx: y\r\n\r\n", b"x"),
    ],
)
def test_a_chunked_body_is_decoded_and_what_follows_stays(wire: bytes, data: bytes) -> None:
    """RFC 9112 §7.1; extensions and trailers are checked and dropped."""
    assert both(wire) == (data, None, b"")
    assert decode(wire + b"GET / HTTP/1.1\r\n", []) == (data, None, b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "line",
    [
        b"zz\r\n", b"0x5\r\n", b"+5\r\n", b"-5\r\n", b"5 \r\n", b"5\t\r\n", b" 5\r\n", b"1_0\r\n", b"\r\n",
        b"5;\r\n", b"5;=\r\n", b"5;a=\r\n", b'5;a="b\r\n', b"5;a\0\r\n", b"5;a\xe9\r\n", b"00000000000000005\r\n",
        b"5\nhello\r\n", b"5\rhello\r\n", b"5;a\n", b";a\r\n", b"5 x\r\n", b"5,\r\n", b"\xb2\r\n",
        b"1;" + b"a" * MAX_EXTENSION + b"\r\n", b"1;" + b"a" * 65536 + b"\r\n",
    ],
)  # fmt: skip
def test_a_malformed_size_line_is_refused(line: bytes) -> None:
    """1*HEXDIG up to 16 digits, well-formed extensions up to their limit, CRLF; nothing else."""
    assert both(b"1\r\nx\r\n" + line + b"hello\r\n0\r\n\r\n") == (b"x", 400, b"")


@pytest.mark.parametrize("start", [b"z", b"5x", b"0" * 17, b"5\rx", b"1;" + b"a" * 273])
def test_a_size_line_that_cannot_become_good_is_not_waited_for(start: bytes) -> None:
    """The refusal comes with the bytes that earn it."""
    assert both(start)[1] == 400


@pytest.mark.parametrize("ending", [b"xx", b"\n\n", b"\rx", b"0\r\n\r\n"])
def test_data_must_be_followed_by_crlf(ending: bytes) -> None:
    """Data before the fault is handed out; then the fault is told."""
    assert both(b"5\r\nhello" + ending) == (b"hello", 400, b"")


def test_the_body_limit_holds_for_all_chunks_together() -> None:
    """413 when the size that is too much is announced, before its data."""
    assert both(b"5\r\nhello\r\n5\r\nhello\r\n0\r\n\r\n", max_body=10) == (b"hellohello", None, b"")
    assert both(b"5\r\nhello\r\n6\r\n", max_body=10) == (b"hello", 413, b"")
    assert both(b"ffffffffffffffff\r\n", max_body=10) == (b"", 413, b"")


@pytest.mark.parametrize(
    ("trailers", "status"),
    [
        (b"x: " + b"y" * (MAX_TRAILERS - 7) + b"\r\n\r\n", None),
        (b"x: " + b"y" * (MAX_TRAILERS - 6) + b"\r\n\r\n", 431),
        (b"x: y\r\n" * 2000, 431),
        (b"y" * MAX_TRAILERS, 431),
        (b"x : y\r\n\r\n", 400),
        (b"x\r\n\r\n", 400),
        (b"x: y\n\r\n", 400),
        (b"\n", 400),
        (b"x: \0\r\n\r\n", 400),
        (b" x: y\r\n\r\n", 400),
    ],
)
def test_trailers_are_bounded_and_guarded(trailers: bytes, status: int | None) -> None:
    """At most 8 KiB with the empty line, every line by the rules of a field line."""
    assert both(b"0\r\n" + trailers)[1] == status


def test_an_unfinished_body_needs_more() -> None:
    """None says so, at every place where a body can be cut."""
    wire = b"2;a\r\nhi\r\n0\r\nx: y\r\n\r\n"
    for cut in range(len(wire)):
        assert decode(wire[:cut], [])[1] == -1


def test_a_finished_decoder_stays_finished() -> None:
    """END_OF_BODY again, and nothing more is taken."""
    decoder, buffer = ChunkDecoder(10), bytearray(b"0\r\n\r\nrest")
    assert decoder.take(buffer) is END_OF_BODY
    assert decoder.take(buffer) is END_OF_BODY
    assert buffer == b"rest"


CHUNK = st.binary(min_size=1, max_size=20).map(lambda data: b"%X;n=v\r\n%b\r\n" % (len(data), data))
JUNK = st.sampled_from([b"", b"", b"\r", b"\n", b"0\r\n\r\n", b"g", b"5 \r\n", b"\0", b"\r\n"])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_cutting_gives_the_same_events(data: st.DataObject) -> None:
    """Good and bad bodies alike: the same data, then the same end or the same refusal."""
    parts = data.draw(st.lists(st.one_of(CHUNK, CHUNK, JUNK), max_size=6))
    wire = b"".join(parts) + data.draw(st.sampled_from([b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"0\r\nx\r\n\r\n", b""]))
    cuts = data.draw(st.lists(st.integers(0, len(wire)), max_size=8))
    assert decode(wire, cuts, 50)[:2] == decode(wire, [], 50)[:2]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6))
def test_what_h11_writes_is_decoded(pieces: list[bytes]) -> None:
    """Another implementation's chunks, decoded."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="POST", target="/", headers=[("host", "h"), ("transfer-encoding", "chunked")]))
    wire = b"".join(client.send(h11.Data(piece)) for piece in pieces) + client.send(h11.EndOfMessage())
    assert decode(wire, []) == (b"".join(pieces), None, b"")

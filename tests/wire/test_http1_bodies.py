"""Response bodies in the client's role: what is decoded, what is refused, and where a body ends."""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawstream.errors import UpstreamFailed
from rawstream.wire.http1_bodies import MAX_TRAILERS, ChunkedBody, CloseBody, LengthBody

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """``data`` in pieces, cut at these places."""
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[a:b] for a, b in pairwise(places)]


# --- chunked bodies


def feed(pieces: list[bytes], body: ChunkedBody | None = None) -> tuple[bytes, ChunkedBody]:
    body = body or ChunkedBody()
    data = b"".join(body.decode(piece) for piece in pieces)
    if body.fault is not None:
        raise body.fault
    return data, body


_chunks = st.lists(
    st.one_of(st.binary(min_size=1, max_size=40), st.sampled_from([b"\r\n", b"0\r\n\r\n", b"a\r\nb", b"data: x\n\n"])),
    max_size=12,
)


@given(_chunks, st.lists(st.integers(min_value=0), max_size=6), st.booleans(), st.sampled_from([b"", b"T: u\r\n"]))
def test_a_chunked_body_is_the_same_however_it_is_cut_and_the_same_as_h11s(
    chunks: list[bytes], places: list[int], upper: bool, trailer: bytes
) -> None:
    size = "%X" if upper else "%x"
    raw = b"".join((size % len(chunk)).encode() + b"\r\n" + chunk + b"\r\n" for chunk in chunks)
    raw += b"0\r\n" + trailer + b"\r\n"
    data, body = feed(cut(raw, places))
    assert data == b"".join(chunks)
    assert body.ended
    assert not body.surplus

    judge = h11.Connection(h11.CLIENT)
    judge.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    judge.send(h11.EndOfMessage())
    judge.receive_data(CHUNKED + raw)
    judge.next_event()
    expected = b""
    while isinstance(event := judge.next_event(), h11.Data):
        expected += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert data == expected


@given(st.binary(max_size=200), st.lists(st.integers(min_value=0), max_size=4))
def test_arbitrary_bytes_are_refused_or_decoded_the_same_however_they_are_cut(raw: bytes, places: list[int]) -> None:
    def outcome(pieces: list[bytes]) -> tuple[bytes, bool, bool]:
        body = ChunkedBody()
        data = b""
        try:
            for piece in pieces:
                data += body.decode(piece)
                if body.fault is not None:
                    raise body.fault
        except UpstreamFailed:
            return data, False, True
        return data, body.ended, False

    assert outcome([raw]) == outcome(cut(raw, places))


@pytest.mark.parametrize(
    "raw",
    [
        b"zz\r\n",
        b"0x5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"-5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b" 5\r\nhello\r\n",
        b"1_0\r\n",
        b"\r\n",
        b"1" * 17 + b"\r\n",
        b"5\nhello\r\n",
        b"5\r\nhelloX\r\n",
        b"5\r\nhello\n",
        b"5\r\nhello\r\r",
        b"5;" + b"a" * 300 + b"\r\nhello\r\n",
        b"5;\x00\r\nhello\r\n",
        b"0\r\nbad trailer\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * (MAX_TRAILERS // 6 + 1) + b"\r\n",
        b"0\r\nA: " + b"b" * MAX_TRAILERS,
        b"0\r\n\n",
    ],
)
def test_bad_chunk_framing_is_refused_whether_or_not_good_chunks_came_before(raw: bytes) -> None:
    for before in (b"", b"2\r\nok\r\n"):
        body = ChunkedBody()
        with pytest.raises(UpstreamFailed):
            feed([before + raw], body)
        with pytest.raises(UpstreamFailed):
            feed([bytes([byte]) for byte in before + raw])


def test_good_chunks_before_a_fault_are_given_out_before_it_is_raised() -> None:
    body = ChunkedBody()
    assert body.decode(b"2\r\nok\r\nzz\r\n") == b"ok"
    assert body.fault is not None
    with pytest.raises(UpstreamFailed):
        body.eof()


def test_a_chunk_extension_is_dropped_and_bytes_after_the_end_are_noticed() -> None:
    data, body = feed([b"5;a=b\r\nhello\r\n0\r\n\r\nEVIL!"])
    assert (data, body.ended, body.surplus) == (b"hello", True, True)
    data, body = feed([b"0\r\n\r\n"])
    body.eof()
    body.decode(b"x")
    assert body.surplus


@pytest.mark.parametrize(
    "raw", [b"", b"5", b"5\r\n", b"5\r\nhel", b"5\r\nhello", b"5\r\nhello\r\n", b"0\r\n", b"0\r\n\r"]
)
def test_a_chunked_body_cut_anywhere_before_its_end_is_a_cut(raw: bytes) -> None:
    _, body = feed([raw])
    assert not body.ended
    with pytest.raises(UpstreamFailed, match="cut"):
        body.eof()


def test_an_unfinished_element_is_counted_as_buffered() -> None:
    _, body = feed([b"1", b"f"])
    assert body.buffered == 2


@pytest.mark.parametrize("body", [LengthBody(9), CloseBody()])
def test_a_body_without_elements_buffers_nothing(body: LengthBody | CloseBody) -> None:
    """Every byte is given out as it comes."""
    assert body.decode(b"some") == b"some"
    assert body.buffered == 0


# --- other bodies


def test_a_body_of_announced_length_ends_there_and_nowhere_else() -> None:
    body = LengthBody(5)
    assert body.decode(b"hel") == b"hel"
    with pytest.raises(UpstreamFailed, match="cut"):
        body.eof()
    assert body.decode(b"lo!!") == b"lo"
    assert (body.ended, body.surplus) == (True, True)
    body.eof()


def test_a_body_that_the_closing_delimits_ends_with_the_connection() -> None:
    body = CloseBody()
    assert body.decode(b"all") == b"all"
    assert not body.ended
    body.eof()
    assert body.ended

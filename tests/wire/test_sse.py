"""Server-sent events: nothing can be injected, nothing depends on the splits, nothing grows without bound."""

from __future__ import annotations

import base64
import itertools
import json
import re
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawstream.wire.sse import Event, EventTooLong, Parser, comment, encode_event, utf8

CORPUS: list[dict[str, Any]] = json.loads((Path(__file__).parent.parent / "corpora" / "sse_wpt.json").read_text())
# Two cases test that a browser refuses another media type; their bytes are not an event stream.
CASES = [case for case in CORPUS if not case.get("fail")]

any_text = st.text(st.characters(exclude_categories=()))
one_line = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=()))

Seen = list[tuple[str, str, str]]


def seen(events: Iterable[Event]) -> Seen:
    return [(event.event, event.text, event.id) for event in events]


def feed_all(parser: Parser, chunks: Iterable[bytes]) -> Seen:
    return [item for chunk in chunks for item in seen(parser.feed(chunk))]


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def reference(data: bytes) -> Seen:
    """The specification's algorithm, word for word, on the whole stream at once: slow and plain."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    lines = re.split("\r\n|\r|\n", text)[:-1]
    found: Seen = []
    buffer, kind, last_id = "", "", ""
    for line in lines:
        if line == "":
            if buffer:
                found.append((kind or "message", buffer[:-1], last_id))
            buffer, kind = "", ""
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value[1:] if value.startswith(" ") else value
            if name == "data":
                buffer += value + "\n"
            elif name == "event":
                kind = value
            elif name == "id" and "\0" not in value:
                last_id = value
    return found


# --- encoding -----------------------------------------------------------------------------------------------


@given(data=any_text, event=st.none() | one_line, id=st.none() | one_line, retry=st.none() | st.integers(0, 10**9))
def test_whatever_is_encoded_arrives_as_exactly_one_event(
    data: str, event: str | None, id: str | None, retry: int | None
) -> None:
    """Rule 1: one call, one event, with this data, its line ends normalised to LF."""
    parser = Parser()
    frame = encode_event(data, event=event, id=id, retry=retry) + b"data: next\n\n"
    (first, second) = parser.feed(frame)
    expected = utf8(data).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert (first.data, first.event) == (expected, utf8(event or "message").decode())
    assert first.id == utf8(id or "").decode()
    assert (second.data, second.event) == (b"next", "message")
    assert parser.retry == retry


@pytest.mark.parametrize("field", ["id", "event"])
@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\r\nb", "a\0b", "\n"])
def test_line_ends_and_nul_are_refused_in_id_and_event(field: str, bad: str) -> None:
    """Rule 1: a value that would start another line is an error, not another line."""
    with pytest.raises(ValueError, match=field):
        encode_event("x", **{field: bad})  # type: ignore[arg-type]  # the field's name is a parameter of this test


def test_a_negative_retry_is_refused() -> None:
    """A reconnection time is 0 or more milliseconds."""
    with pytest.raises(ValueError, match="retry"):
        encode_event("x", retry=-1)


def test_the_bytes_of_an_event() -> None:
    """Fields come in this order, each with one space after its colon, all ended by LF alone."""
    assert (
        encode_event("a\r\nb\rc", event="tick", id="7", retry=10)
        == b"id: 7\nevent: tick\nretry: 10\ndata: a\ndata: b\ndata: c\n\n"
    )
    assert encode_event("") == b"data: \n\n"


@given(any_text)
def test_a_comment_dispatches_nothing(text: str) -> None:
    """Whatever a comment says, no event comes of it, and the next event is whole."""
    events = Parser().feed(comment(text) + b"data: x\n\n")
    assert seen(events) == [("message", "x", "")]


def test_what_utf8_has_no_bytes_for_is_replaced() -> None:
    """Lone surrogates become U+FFFD, halves that belong together one character."""
    assert utf8("a\ud800b") == "a\ufffdb".encode()
    assert utf8("\ud83d\ude00") == "😀".encode()


# --- the corpus ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_web_platform_tests_pass_in_every_split(case: dict[str, Any]) -> None:
    """Whole, in two pieces cut anywhere, and byte by byte: the same events."""
    data = base64.b64decode(case["bytes_b64"])
    expected = [(event["type"], event["data"], event["lastEventId"]) for event in case["events"]]
    for chunks in [[data], bytewise(data), *([data[:at], data[at:]] for at in range(1, len(data)))]:
        parser = Parser()
        assert feed_all(parser, chunks) == expected
        if "retry" in case:
            assert parser.retry == case["retry"]


# --- parsing ------------------------------------------------------------------------------------------------

FRAGMENTS = [
    *(b"data: ", b"data", b":", b"id", b"id: 7", b"event: e", b"retry: 5", b": hb\n\n", b"data: {}\n\n"),
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\n\ndata: "),
    *(b" ", b"x", b"\0", b"\xef\xbb\xbf", "é".encode(), b"\xe2\x82", b"\xff"),
]
streams = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map(b"".join)


@given(stream=streams, cuts=st.lists(st.integers(0, 200), max_size=6))
def test_parsing_is_the_specifications_however_the_bytes_are_split(stream: bytes, cuts: list[int]) -> None:
    """Rule 2, against a transcript of the algorithm; the lean variant gives the same data."""
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[start:end] for start, end in itertools.pairwise(places)]
    expected = reference(stream)
    assert feed_all(Parser(), chunks) == expected
    assert feed_all(Parser(), bytewise(stream)) == expected
    lean = Parser()
    data = [payload for chunk in chunks for payload in lean.feed_data(chunk)]
    assert [payload.decode("utf-8", "replace") for payload in data] == [text for _, text, _ in expected]


def test_a_comment_after_a_sticky_id_dispatches_nothing() -> None:
    """Ids stay, but an event needs data: a heartbeat after an id is no empty event."""
    assert seen(Parser().feed(b"id: 1\ndata: a\n\n: hb\n\n\n: hb\n\ndata: b\n\n")) == [
        ("message", "a", "1"),
        ("message", "b", "1"),
    ]


def test_an_id_without_data_still_counts_for_the_next_reconnect() -> None:
    """``last_id`` moves at the blank line, not before, with data or without."""
    parser = Parser()
    assert parser.feed(b"id: 9\n") == []
    assert parser.last_id == ""
    assert parser.feed(b"\n") == []
    assert parser.last_id == "9"
    assert seen(parser.feed(b"data: plain\n\n")) == [("message", "plain", "9")]


def test_the_unfinished_last_block_is_kept_back_and_counted() -> None:
    """Rule 3; and ``buffered`` says how many bytes wait for the rest."""
    parser = Parser()
    assert seen(parser.feed(b"data: a\n\ndata: b")) == [("message", "a", "")]
    assert parser.buffered == len(b"data: b")
    assert parser.feed(b"\n") == []
    assert parser.buffered == len(b"b\n")
    assert seen(parser.feed(b"\n")) == [("message", "b", "")]
    assert parser.buffered == 0


def test_an_event_is_dispatched_at_its_blank_line_even_when_that_is_a_bare_cr() -> None:
    """Nothing waits for the LF that may follow a CR."""
    parser = Parser()
    assert seen(parser.feed(b"data: a\r\r")) == [("message", "a", "")]
    assert parser.feed(b"") == []
    assert seen(parser.feed(b"\ndata: b\r\n\r")) == [("message", "b", "")]


@pytest.mark.parametrize("value", ["", "-5", "+5", "5.0", "5 ", "0x5", "\u0665", "9" * 16])
def test_a_retry_that_is_not_a_sane_number_is_ignored(value: str) -> None:
    """ASCII digits only, and no more of them than a time can have."""
    parser = Parser()
    parser.feed(f"retry: {value}\n\n".encode())
    assert parser.retry is None


def test_plain_events_never_take_the_careful_path() -> None:
    """What upstreams send all day is split in one step, with CRLF too, and with an event cut in two between feeds."""

    class Plain(Parser):
        __slots__ = ("careful",)

        def _careful(self, data: bytes) -> list[Event]:
            assert b"\n" not in data, "a whole line went the slow way"
            return super()._careful(data)

    events = [b'data: {"n":%d}\n\n' % n for n in range(40)]
    for stream in (b"".join(events), b"".join(events).replace(b"\n", b"\r\n")):
        middle = len(stream) // 2 + 3
        for parse in (Plain().feed, Plain().feed_data):
            assert len(parse(stream[:middle])) + len(parse(stream[middle:])) == 40


# --- bounds -------------------------------------------------------------------------------------------------

LIMIT = 100


@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + b"x" * 101 + b"\n\n",
        b"data:" + b"x" * 101 + b"\n\n",
        b"data: ok\n\ndata: " + b"x" * 101 + b"\n\n",
        b"data: " + b"x" * 50 + b"\ndata: " + b"x" * 50 + b"\n\n",
        b"data\n" * 102 + b"\n",
        b"x" * 107 + b"\n\n",
        b": " + b"x" * 105 + b"\n\n",
    ],
)
def test_an_event_longer_than_the_limit_is_an_error_in_every_split(stream: bytes) -> None:
    """One line or many, data or not; and the parser stays dead and empty afterwards."""
    for chunks in [[stream], bytewise(stream), *([stream[:at], stream[at:]] for at in range(1, len(stream)))]:
        parser = Parser(LIMIT)
        with pytest.raises(EventTooLong, match="100 bytes"):
            feed_all(parser, chunks)
        assert parser.buffered == 0
        with pytest.raises(EventTooLong):
            parser.feed(b"data: x\n\n")


@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + b"x" * 100 + b"\n\n",
        b"data:" + b"x" * 100 + b"\n\n",
        b"data: " + b"x" * 49 + b"\ndata: " + b"x" * 50 + b"\n\n",
        (b"data: " + b"x" * 90 + b"\n\n") * 10,
        b": " + b"x" * 104 + b"\ndata: y\n\n",
    ],
)
def test_an_event_as_long_as_the_limit_passes_in_every_split(stream: bytes) -> None:
    """The limit is on each event, not on what one feed brings."""
    expected = reference(stream)
    for chunks in [[stream], bytewise(stream), *([stream[:at], stream[at:]] for at in range(1, len(stream)))]:
        assert feed_all(Parser(LIMIT), chunks) == expected


@pytest.mark.parametrize("field", [b"id", b"event"])
def test_an_id_or_event_name_has_a_limit_of_its_own(field: bytes) -> None:
    """They outlive their event, so a megabyte of them is not kept."""
    with pytest.raises(EventTooLong):
        Parser().feed(field + b": " + b"x" * 5000 + b"\n")


def endless_line() -> Iterator[bytes]:
    yield b"data: "
    while True:
        yield b"x" * 4096


def endless_event() -> Iterator[bytes]:
    while True:
        yield b"data: y\n" * 512


def endless_empty_lines() -> Iterator[bytes]:
    while True:
        yield b"data\n" * 800


@pytest.mark.parametrize("endless", [endless_line, endless_event, endless_empty_lines])
def test_memory_is_bounded_whatever_never_ends(endless: Callable[[], Iterator[bytes]]) -> None:
    """An endless line, an endless event: cut at the limit, at a small multiple of it in memory."""
    limit = 128 * 1024
    parser = Parser(limit)
    tracemalloc.start()
    try:
        with pytest.raises(EventTooLong):
            feed_all(parser, endless())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Twice: a bytearray that grows is copied. The rest is one feed's lines.
    assert peak < 2 * limit + 100 * 1024

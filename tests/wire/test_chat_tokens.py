"""The /chat and EventSource dialects, byte for byte."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawstream.model import Dialect, Token
from rawstream.wire.chat_tokens import ChatTokens
from rawstream.wire.event_source import EventSource, retry_of
from rawstream.wire.sse import Parser


def test_the_bytes_of_a_chat_stream() -> None:
    """Clients in the field match on these bytes, the spaces too."""
    dialect: Dialect = ChatTokens()
    assert dialect.head() == b""
    assert dialect.encode(["hé"]) == 'data: {"token": "hé"}\n\n'.encode()
    assert dialect.encode(["a", "\n", '"']) == (
        b'data: {"token": "a"}\n\ndata: {"token": "\\n"}\n\ndata: {"token": "\\""}\n\n'
    )
    assert dialect.heartbeat == b": hb\n\n"
    assert dialect.error("it broke", "upstream_idle") == b'data: {"error": "it broke", "code": "upstream_idle"}\n\n'
    assert dialect.terminal() == dialect.terminal("length") == b"data: [DONE]\n\n"


def test_an_answer_that_ends_early_says_why() -> None:
    """It is whole, and the event before its end says what ended it; in an EventSource it has no id."""
    told = b'data: {"finish_reason": "length", "code": "insufficient_quota"}\n\n'
    assert ChatTokens().terminal("length", "insufficient_quota") == told + b"data: [DONE]\n\n"
    assert EventSource("7f").terminal("length", "insufficient_quota") == (
        b"retry: 2000\n" + told + b"id: 7f.end\ndata: [DONE]\n\n"
    )
    assert b'"finish_reason": "stop", "code": "x"' in ChatTokens().terminal(reason="x")


def test_the_headers_of_an_event_stream() -> None:
    """As every client and proxy needs them; the same for both dialects."""
    expected = {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache, no-transform",
        "x-accel-buffering": "no",
    }
    assert dict(ChatTokens().headers) == dict(EventSource("s").headers) == expected


@pytest.mark.parametrize("items", [[], [""], [Token("")], [Token("x", index=1)], ["", Token("", finish_reason="stop")]])
def test_what_shows_no_text_sends_nothing(items: list[str | Token]) -> None:
    """Empty texts, other choices and finishes are not events here."""
    assert ChatTokens().encode(items) == EventSource("s").encode(items) == b""


@given(st.lists(st.text()))
def test_every_text_arrives_as_its_own_event(words: list[str]) -> None:
    """Whatever the tokens hold, a reader gets them back one by one, in order."""
    expected = [word for word in words if word]
    for dialect in (ChatTokens(), EventSource("s")):
        events = Parser().feed(dialect.encode(words))
        assert [json.loads(event.data)["token"] for event in events] == expected


def test_an_error_cannot_be_injected_into() -> None:
    """A message with line ends and quotes is one event still."""
    (event,) = Parser().feed(ChatTokens().error('a\n\ndata: [DONE]\n\n"', "x\r\ny"))
    assert json.loads(event.data) == {"error": 'a\n\ndata: [DONE]\n\n"', "code": "x\r\ny"}


def test_the_bytes_of_an_event_source_stream() -> None:
    """Every token has an id, counted from 1; the first event says when to reconnect; the end has an id of its own."""
    dialect: Dialect = EventSource("7f", retry_ms=500)
    assert dialect.head() == b""
    assert dialect.encode(["a", "b"]) == (
        b'retry: 500\nid: 7f.1\ndata: {"token": "a"}\n\nid: 7f.2\ndata: {"token": "b"}\n\n'
    )
    assert dialect.encode([Token("c")]) == b'id: 7f.3\ndata: {"token": "c"}\n\n'
    assert dialect.heartbeat == b": hb\n"
    assert dialect.error("no", "source_failed") == b'data: {"error": "no", "code": "source_failed"}\n\n'
    assert dialect.terminal("stop") == dialect.stopped("by hand") == b"id: 7f.end\ndata: [DONE]\n\n"


def test_the_first_event_carries_retry_whichever_it_is() -> None:
    """Also when that is the end, or a failure; two seconds unless told otherwise."""
    assert EventSource("s").terminal() == b"retry: 2000\nid: s.end\ndata: [DONE]\n\n"
    assert EventSource("s").error("m", "c").startswith(b"retry: 2000\ndata: {")


def test_the_number_of_tokens_sent_is_known() -> None:
    """``sent`` is the number in the last id."""
    dialect = EventSource("s")
    dialect.encode(["a", "", "b"])
    assert dialect.sent == 2


def test_an_event_source_refuses_what_would_break_its_ids() -> None:
    """A stream id with a line end, a time before now."""
    with pytest.raises(ValueError, match="id"):
        EventSource("a\nb")
    with pytest.raises(ValueError, match="retry_ms"):
        EventSource("a", retry_ms=-1)


def test_a_stopped_answer_is_whole() -> None:
    """Who stopped it knows what it lacks."""
    assert ChatTokens().stopped("by hand") == b"data: [DONE]\n\n"


def test_streams_are_told_times_of_their_own_to_come_back_after() -> None:
    """1 to 3 s, spread evenly, always the same for one stream."""
    times = [retry_of(f"{number:032x}") for number in range(2000)]
    assert retry_of("7f") == retry_of("7f")
    assert 1000 <= min(times) < 1020
    assert 2980 < max(times) <= 3000
    assert 1950 < sum(times) / len(times) < 2050

"""A source of our own, held to ``max_tokens`` and ``stop``: it is asked for nothing more, and closed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from rawstream.errors import BadRequest
from rawstream.model import MeasuredTokenStream, Request, Source, SourceItem, SourceStatistics, Token, TokenStream
from rawstream.sources.iterables import as_source
from rawstream.sources.limited import limited


class Watched:
    """A function that gives ``items`` one by one, and notes what is asked of it."""

    def __init__(self, *items: SourceItem) -> None:
        self.items = items
        self.given = 0
        self.closed = 0
        self.asked: Request | None = None

    async def tokens(self, request: Request) -> AsyncGenerator[SourceItem, None]:
        self.asked = request
        try:
            for item in self.items:
                self.given += 1
                yield item
        finally:
            self.closed += 1


def ask(max_tokens: int | None = None, **extra: Any) -> Request:
    return Request([{"role": "user", "content": "hi"}], max_tokens=max_tokens, extra=extra)


def source_of(watched: Watched) -> Source:
    async def tokens(request: Request) -> AsyncGenerator[SourceItem, None]:
        async with aclosing(watched.tokens(request)) as items:
            async for item in items:
                yield item

    return as_source(tokens)


async def collect(watched: Watched, request: Request) -> list[SourceItem]:
    stream = limited(source_of(watched), request).tokens(request)
    return [item async for item in stream]


def test_a_request_without_limits_gets_the_source_itself() -> None:
    """So that nothing costs more than it did."""
    source = source_of(Watched())
    for request in (ask(), ask(stop=None), ask(stop=[]), ask(n=2)):
        assert limited(source, request) is source


def test_a_source_that_speaks_openais_wire_is_left_alone() -> None:
    """Its model knows how to stop, and what it is given is not judged here."""

    class Relay:
        name = "relay"

        def tokens(self, request: Request) -> TokenStream:
            raise AssertionError

        async def aclose(self) -> None: ...

        async def complete(self, request: Request) -> bytes:
            raise AssertionError

        async def models(self) -> bytes:
            raise AssertionError

    relay, request = Relay(), ask(5, stop=["a"] * 9, max_completion_tokens=3)
    assert limited(relay, request) is relay
    assert request.max_tokens == 5


def test_what_makes_no_sense_is_refused_before_anything_begins() -> None:
    """As a 400, not as a failing stream."""
    with pytest.raises(BadRequest, match="stop"):
        limited(source_of(Watched()), ask(stop=5))


async def test_the_source_sees_the_limit_and_is_asked_for_no_token_more() -> None:
    """By either name; and it is closed when the answer is over."""
    watched = Watched("a", "b", "c", "d")
    assert await collect(watched, ask(max_completion_tokens=3)) == ["a", "b", Token("c", finish_reason="length")]
    assert (watched.given, watched.closed) == (3, 1)
    assert watched.asked is not None
    assert watched.asked.max_tokens == 3


async def test_a_sequence_ends_the_source() -> None:
    """Each item is answered by one, so that nobody waits for a token that is there."""
    watched = Watched("a", ["b E", "N"], "D", "never")
    assert await collect(watched, ask(stop="END")) == ["a", [Token("b ")], Token("", finish_reason="stop")]
    assert (watched.given, watched.closed) == (3, 1)


async def test_what_is_held_back_is_an_empty_item_and_comes_at_the_end() -> None:
    """A source that never waits cannot hold the loop by it."""
    watched = Watched("E", ["N"], ["D", "!"])
    assert await collect(watched, ask(stop=["ENDE"])) == ["", "", [Token("END!")]]
    assert await collect(Watched("E"), ask(stop=["END"])) == ["", [Token("E")]]


async def test_it_can_be_closed_and_measured_as_the_stream_underneath() -> None:
    """Closing reaches the source, twice as well as once."""
    watched = Watched("a", "b")
    request = ask(5)
    source = limited(source_of(watched), request)
    stream = source.tokens(request)
    assert await anext(aiter(stream)) == "a"
    await stream.aclose()
    await stream.aclose()
    assert watched.closed == 1
    assert isinstance(stream, MeasuredTokenStream)
    assert stream.statistics() == SourceStatistics()
    await source.aclose()


async def test_what_the_source_holds_is_shown() -> None:
    """Through the limits."""

    class Holding:
        def __aiter__(self) -> Holding:
            return self

        async def __anext__(self) -> SourceItem:
            raise StopAsyncIteration

        async def aclose(self) -> None: ...

        def statistics(self) -> SourceStatistics:
            return SourceStatistics(7, 9)

    class Source:
        name = "holding"

        def tokens(self, request: Request) -> TokenStream:
            return Holding()

        async def aclose(self) -> None: ...

    request = ask(5)
    stream = limited(Source(), request).tokens(request)
    assert isinstance(stream, MeasuredTokenStream)
    assert stream.statistics() == SourceStatistics(7, 9)

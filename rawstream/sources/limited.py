"""A source of our own, held to what its client asked for: ``max_tokens`` (or ``max_completion_tokens``) and ``stop``.

Rule 1: a source that speaks OpenAI's wire itself is left alone: its model knows how to stop.
Rule 2: one item is taken for each that is asked for, and given at once: batches stay batches, and nothing waits here
        but the begin of a stop sequence.
Rule 3: once the answer is over the source is closed, and asked for nothing more.
"""

from __future__ import annotations

from typing import Final

from rawstream.model import CompletionSource, Request, Source, SourceItem, SourceStatistics, Token, TokenStream
from rawstream.wire.answer_limits import LimitedAnswer, Limits, limits_of

_FIELDS: Final = frozenset({"max_completion_tokens", "stop"})


def limited(source: Source, request: Request) -> Source:
    """``source``, or one for this ``request`` that ends where it says. Raises BadRequest."""
    if request.max_tokens is None and _FIELDS.isdisjoint(request.extra):
        return source
    if isinstance(source, CompletionSource):
        return source
    limits = limits_of(request)
    if limits is None:
        return source
    request.max_tokens = limits.max_tokens
    return LimitedSource(source, limits)


class LimitedSource:
    """A source for one request."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self.name = source.name
        self._source = source
        self._limits = limits

    def tokens(self, request: Request) -> LimitedStream:
        """The generation, with its limits."""
        return LimitedStream(self._source.tokens(request), self._limits)

    async def aclose(self) -> None:
        """Nothing: the source is its owner's."""


class LimitedStream:
    """A token stream that ends where its client asked it to."""

    __slots__ = ("_answer", "_stream")

    def __init__(self, stream: TokenStream, limits: Limits) -> None:
        self._stream = stream
        self._answer = LimitedAnswer(limits)

    def __aiter__(self) -> LimitedStream:
        return self

    async def __anext__(self) -> SourceItem:
        """The next item; ``""`` when all of it is held back. Cancel-safe as the source is."""
        if self._answer.over:
            await self._stream.aclose()
            raise StopAsyncIteration
        try:
            item = await self._stream.__anext__()
        except StopAsyncIteration:
            if held := self._answer.end():
                return held
            raise
        if item.__class__ is str and self._answer.passes(item):
            return item
        if isinstance(item, str | Token):
            taken = self._answer.take((item,))
            return taken[0] if taken else ""
        return self._answer.take(item) or ""

    async def aclose(self) -> None:
        """Close the source's stream. Idempotent."""
        await self._stream.aclose()

    def statistics(self) -> SourceStatistics:
        """What the source's stream holds."""
        inner = getattr(self._stream, "statistics", None)
        return SourceStatistics() if inner is None else inner()

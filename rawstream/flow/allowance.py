"""An allowance: what a stream may still be given of its user's budget, looked at before its source is asked.

Rule 1: the source is not asked for anything that was not leased. A batch that it makes in one step is its own size,
        so that a stream may go over by what one batch has more than was left, and by no more.
Rule 2: permission to write comes first. A stream whose client takes nothing leases nothing.
Rule 3: what an upstream says beside text (thoughts, tool calls) is paid for too, whether or not its client is shown it.
Rule 4: a stream without a budget knows nothing of this, and one with a budget pays a comparison for each step.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from rawstream.flow.meter import Meter
from rawstream.model import SourceItem, SourceStatistics, Token, TokenStream


class Lease(Protocol):
    """Tokens that were set aside for one stream."""

    @property
    def granted(self) -> int:
        """Tokens that may be given out, in all."""
        ...

    async def more(self) -> None:
        """Set aside at least one more. Raises LimitReached when there are none."""
        ...


class AllowedTokens:
    """A token stream that is not read on when its tokens have used the lease up."""

    __slots__ = ("_lease", "_meter", "_next", "_stream")

    def __init__(self, stream: TokenStream, lease: Lease, meter: Meter) -> None:
        """``meter`` counts the tokens of ``stream``; nothing between the two may hold any back when more are asked."""
        self._stream = stream
        self._next = stream.__anext__
        self._lease = lease
        self._meter = meter

    @property
    def used(self) -> int:
        """Tokens so far."""
        return self._meter.tokens

    def __aiter__(self) -> AllowedTokens:
        return self

    def __anext__(self) -> Coroutine[Any, Any, SourceItem]:
        """The next item. Raises LimitReached too. Cancel-safe as the stream underneath is."""
        # What the stream underneath gives is given on: no coroutine of our own for each token.
        return self._next() if self._meter.tokens < self._lease.granted else self._leased()

    async def _leased(self) -> SourceItem:
        while self.used >= self._lease.granted:
            await self._lease.more()
        return await self._next()

    async def aclose(self) -> None:
        """Close the stream underneath. Idempotent."""
        await self._stream.aclose()

    def statistics(self) -> SourceStatistics:
        """What the stream underneath holds."""
        inner = getattr(self._stream, "statistics", None)
        return SourceStatistics() if inner is None else inner()


class AllowedEvents(AllowedTokens):
    """The same for an upstream's stream, whose events may hold something else than text."""

    __slots__ = ("_beside",)

    def __init__(self, stream: TokenStream, lease: Lease, meter: Meter) -> None:
        super().__init__(stream, lease, meter)
        self._beside = -1
        """Events with neither text nor an end: thoughts, tool calls. The first one is the answer's role."""

    @property
    def used(self) -> int:
        """Tokens of text, and events beside it, so far."""
        return self._meter.tokens + max(0, self._beside)

    async def __anext__(self) -> SourceItem:
        item = await (self._next() if self.used < self._lease.granted else self._leased())
        for token in (item,) if isinstance(item, str | Token) else item:
            if token.__class__ is Token and not token.text and token.finish_reason is None and token.usage is None:
                self._beside += 1
        return item

"""An allowance: what a stream may still be given of its user's budget, as a permission beside the response's.

Rule 1: the source is not asked for a token that was not leased. A batch that a source makes in one step is its own
        size, so that a stream may go over by what one batch has more than was left.
Rule 2: room is bytes, and leases are tokens: ``least`` bytes are the fewest that one token's frame can have.
Rule 3: a stream without a budget knows nothing of this: its sink is the delivery itself.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from rawstream.flow.pump import Meter, Sink


class Lease(Protocol):
    """Tokens that were set aside for one stream."""

    @property
    def granted(self) -> int:
        """Tokens that may be given out, in all."""
        ...

    async def more(self) -> None:
        """Set aside at least one more. Raises LimitReached when there are none."""
        ...


class AllowanceSink:
    """A sink that has room for as many tokens as were leased."""

    __slots__ = ("_lease", "_least", "_meter", "_sink")

    def __init__(self, sink: Sink, lease: Lease, meter: Meter, least: int) -> None:
        """``meter`` counts the tokens of the stream that ``sink`` belongs to; ``least``: bytes of one's frame."""
        self._sink = sink
        self._lease = lease
        self._meter = meter
        self._least = least

    @property
    def room(self) -> int:
        """Bytes: the sink's, and no more than the tokens left are certain to fill."""
        left = self._lease.granted - self._meter.tokens
        return min(self._sink.room, left * self._least) if left > 0 else 0

    async def wait_room(self) -> int:
        """Lease more when nothing is left, then wait for room. Raises LimitReached, and what the sink raises.

        Cancel-safe.
        """
        lease, meter = self._lease, self._meter
        while meter.tokens >= lease.granted:
            await lease.more()
            # A ledger in memory gives without waiting, and the caller takes this for its turn's end.
            await asyncio.sleep(0)
        room = self._sink.room
        if room <= 0:
            room = await self._sink.wait_room()
        return min(room, (lease.granted - meter.tokens) * self._least)

    def put_nowait(self, frames: bytes, now: float) -> bool:
        """As the sink's; False too when what was leased is used up."""
        return self._sink.put_nowait(frames, now) and self._meter.tokens < self._lease.granted

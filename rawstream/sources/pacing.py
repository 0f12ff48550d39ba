"""Pacing: many generations wait for their next token's moment, and share one timer per millisecond.

Rule 1: all waits that fall into the same millisecond are woken by one timer of the loop. A thousand streams
        at 50 tokens per second are 50,000 waits a second, but at most 1,000 timers.
Rule 2: a wait ends at the first tick after its moment: never early, and at most a tick late (plus what the
        loop itself is late).
Rule 3: what waits longer than a second sleeps by itself, so that a cancelled wait leaves nothing for long.

``next_due`` is the arithmetic. It keeps to absolute times, so that small delays do not add up, and it starts
afresh after a pause, so that a generation that nobody pulled does not catch up in a burst.
"""

from __future__ import annotations

import asyncio
from typing import Final

TICKS_PER_SECOND: Final = 1000
"""uvloop's clock has millisecond steps; finer ticks would be an illusion there."""

LONG_WAIT: Final = 1.0
"""Seconds from which a wait gets a timer of its own."""

JITTER: Final = 0.02
"""Seconds that a pull may be late through the loop's own doing, which is made up for. More is a pause."""


def next_due(due: float, interval: float, now: float) -> float:
    """When the next token is due, given when the last one was. All in seconds of the loop's clock.

    Late by no more than ``JITTER``: an ``interval`` after the last one was due, so nothing drifts. Later than
    that: nobody asked for a while, so nothing was generated; the next token takes its ``interval`` from now.
    """
    following = due + interval
    return following if now - following <= JITTER else now + interval


class Pacer:
    """Wakes the waits of one event loop, a millisecond's worth at a time. Not thread-safe."""

    __slots__ = ("_ticks", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._ticks: dict[int, list[asyncio.Future[None]]] = {}

    def at(self, when: float) -> asyncio.Future[None]:
        """A future that is done at ``when`` (the loop's clock, seconds) or a tick later. May be cancelled."""
        future: asyncio.Future[None] = self.loop.create_future()
        tick = int(when * TICKS_PER_SECOND) + 1
        waiting = self._ticks.get(tick)
        if waiting is None:
            self._ticks[tick] = [future]
            self.loop.call_at(tick / TICKS_PER_SECOND, self._wake, tick)
        else:
            waiting.append(future)
        return future

    def _wake(self, tick: int) -> None:
        for future in self._ticks.pop(tick):
            if not future.done():
                future.set_result(None)

    async def wait_until(self, when: float) -> None:
        """Sleep until ``when`` (seconds of the loop's clock). Safe to cancel."""
        wait = when - self.loop.time()
        if wait > LONG_WAIT:
            await asyncio.sleep(wait)
        elif wait > 0:
            await self.at(when)

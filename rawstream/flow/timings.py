"""How long things take, over all streams of a process: plain counts, cheap enough for every write.

Rule 1: a histogram is a list of integers. Nothing is computed until somebody asks (``server/metrics.py``).
Rule 2: what the source took and what this server added are different figures. Added is the time from the moment that
        a stream got the loop, with the news that a token is made of, to the write of it: what parses an upstream's
        answer counts, and so does the time that earlier tokens of the same turn took. It is also how long the stream
        held the loop.
Rule 3: whoever asks changes nothing: two who ask see the same.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

# vLLM's, which dashboards know.
FIRST_TOKEN: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
INTER_TOKEN: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
WHOLE: Final = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 300.0, 1800.0)
SHORT: Final = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5,
)  # fmt: skip
"""For what this server does itself: 10 µs to some seconds."""


class Histogram:
    """Observations by upper bound, the last bucket open. Seconds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """``times`` observations of ``value``."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class Lately:
    """The largest of the values that came lately: for ``EVERY`` seconds at least, and twice as many at most.

    It forgets by the clock and not by being looked at, so that everybody who looks once in ``EVERY`` seconds sees
    each value that matters.
    """

    EVERY: Final = 60.0
    """Prometheus looks once a minute where nobody says otherwise."""

    __slots__ = ("_before", "largest", "turns_at")

    def __init__(self) -> None:
        self.largest = 0.0
        """Of the present interval."""
        self._before = 0.0
        self.turns_at = 0.0
        """When the next interval begins."""

    def add(self, value: float, now: float) -> None:
        """One more value, at ``now`` (monotonic seconds)."""
        if now >= self.turns_at:
            self._turn(now)
        if value > self.largest:
            self.largest = value

    def look(self, now: float) -> float:
        """The largest value lately; 0 when there was none."""
        if now >= self.turns_at:
            self._turn(now)
        return max(self.largest, self._before)

    def _turn(self, now: float) -> None:
        """A new interval begins. The one before it still counts; what is older does not."""
        follows = now < self.turns_at + self.EVERY
        self._before = self.largest if follows else 0.0
        self.largest = 0.0
        self.turns_at = self.turns_at + self.EVERY if follows else now + self.EVERY


class Timings:
    """Those of one process."""

    __slots__ = ("added", "cancel", "first_token", "held", "inter_token", "whole")

    def __init__(self) -> None:
        self.first_token = Histogram(FIRST_TOKEN)
        """From the admission of a stream to the write of its first token."""
        self.inter_token = Histogram(INTER_TOKEN)
        """Between the writes of two tokens; those that are written together share the time since the last write."""
        self.added = Histogram(SHORT)
        """From the moment that a stream got the loop to the write of what it had then."""
        self.whole = Histogram(WHOLE)
        """A stream's life."""
        self.cancel = Histogram(SHORT)
        """From the news that a client has gone, or that a stream must end, until its source was closed."""
        self.held = Lately()
        """How long one stream held the loop, up to a write."""

    def wrote(self, now: float, held: float, since: float, count: int) -> None:
        """A stream wrote ``count`` tokens at ``now``, having held the loop for ``held`` seconds.

        ``since``: seconds since its last write of tokens. (Written out: it runs for each write of each stream.)
        """
        seen = self.added
        seen.counts[bisect_left(SHORT, held)] += 1
        seen.total += held
        lately = self.held
        if held > lately.largest or now >= lately.turns_at:
            lately.add(held, now)
        seen = self.inter_token
        seen.counts[bisect_left(INTER_TOKEN, since / count)] += count
        seen.total += since

    def began(self, now: float, held: float, since: float, count: int) -> None:
        """The same of a stream's first tokens; ``since`` its admission."""
        self.added.add(held)
        self.held.add(held, now)
        self.first_token.add(since)
        self.inter_token.add(0.0, count - 1)

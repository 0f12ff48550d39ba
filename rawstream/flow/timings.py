"""How long things take, over all streams of a process: plain counts, cheap enough for every write.

Rule 1: a histogram is a list of integers. Nothing is computed until somebody asks (``server/metrics.py``).
Rule 2: what the source took and what this server added are different figures. Added is the time from the moment a
        stream got the loop with a token in hand to the write of it; it is also how long the stream held the loop.
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
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
)  # fmt: skip
"""For what this server does itself: 10 µs to a second."""


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


class Timings:
    """Those of one process."""

    __slots__ = ("added", "cancel", "first_token", "inter_token", "longest_hold", "whole")

    def __init__(self) -> None:
        self.first_token = Histogram(FIRST_TOKEN)
        """From the admission of a stream to the write of its first token."""
        self.inter_token = Histogram(INTER_TOKEN)
        """Between the writes of two tokens; those that are written together share the time since the last write."""
        self.added = Histogram(SHORT)
        """From the moment that the first token of a write was at hand to the write."""
        self.whole = Histogram(WHOLE)
        """A stream's life."""
        self.cancel = Histogram(SHORT)
        """From the news that a client has gone, or that a stream must end, until its source was closed."""
        self.longest_hold = 0.0
        """Longest time that one stream held the loop, since it was last asked for."""

    def take_longest_hold(self) -> float:
        """The longest hold since the last call."""
        longest, self.longest_hold = self.longest_hold, 0.0
        return longest

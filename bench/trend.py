"""Is it rising, or level? And the other arithmetic of series and repeats. Pure: numbers in, numbers out.

The rule (it stands in every report): look at the second half of the run only, so that filling the buffers once is
not held against anybody. Draw the robust line through it (Theil-Sen: the median of the slopes between all pairs of
samples). The series RISES when that line climbs, over the second half, by more than 1 MiB and more than 3 % of its
median there; otherwise it is LEVEL. A run that the harness had to stop because the server passed the memory guard
rises by definition.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

Series = Sequence[tuple[float, float]]

LEAST_BYTES: Final = 1024 * 1024
LEAST_SHARE: Final = 0.03
RULE: Final = (
    "“rising”: over the second half of the run the Theil–Sen line climbs by more than 1 MiB and more than 3 % of the "
    "median; otherwise “level”. A server stopped at the memory guard is “rising”."
)


@dataclass(frozen=True)
class Trend:
    """What became of a series in its second half."""

    rising: bool
    per_second: float
    """Slope of the robust line, in the series' unit per second."""
    median: float

    @property
    def word(self) -> str:
        return "rising" if self.rising else "level"


def slope(series: Series) -> float:
    """Theil-Sen slope; 0 for fewer than two samples."""
    if len(series) > 200:  # all pairs are quadratic; 200 points say as much
        step = len(series) / 200
        series = [series[int(i * step)] for i in range(200)]
    slopes = [(y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(series) for x2, y2 in series[i + 1 :] if x2 > x1]
    return statistics.median(slopes) if slopes else 0.0


def second_half(series: Series) -> Series:
    if not series:
        return series
    middle = (series[0][0] + series[-1][0]) / 2
    return [point for point in series if point[0] >= middle]


def trend(series: Series, *, least: float = LEAST_BYTES, share: float = LEAST_SHARE) -> Trend:
    """Apply the rule to a series of (seconds, bytes)."""
    half = second_half(series)
    if len(half) < 2:
        return Trend(False, 0.0, half[0][1] if half else 0.0)
    per_second = slope(half)
    climbed = per_second * (half[-1][0] - half[0][0])
    median = statistics.median(y for _, y in half)
    return Trend(climbed > max(least, share * median), per_second, median)


def plateau(series: Series) -> float:
    """Median of the last quarter: the level that was reached."""
    if not series:
        return 0.0
    begin = series[0][0] + 0.75 * (series[-1][0] - series[0][0])
    return statistics.median(y for x, y in series if x >= begin)


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which a share `q` of the sorted values lies (nearest rank); 0.0 for none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


@dataclass(frozen=True)
class Spread:
    """A median with its range over the repeats."""

    median: float
    least: float
    most: float
    count: int


def spread(values: Sequence[float]) -> Spread | None:
    return Spread(statistics.median(values), min(values), max(values), len(values)) if values else None

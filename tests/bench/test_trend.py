"""The rule that decides "rising" or "level", and the arithmetic of repeats."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from bench.trend import plateau, quantile, second_half, slope, spread, trend

MIB = 1024 * 1024


def line(per_second: float, start: float = 40 * MIB, seconds: int = 60) -> list[tuple[float, float]]:
    return [(float(t), start + per_second * t) for t in range(seconds)]


def test_a_steady_climb_rises() -> None:
    """A megabyte per second is rising, and its slope is found."""
    seen = trend(line(MIB))
    assert seen.rising
    assert seen.word == "rising"
    assert abs(seen.per_second - MIB) < 1


def test_a_flat_series_is_level() -> None:
    assert trend(line(0)).word == "level"


def test_filling_the_buffers_once_is_not_rising() -> None:
    """Half a gigabyte in the first third of the run, and flat from there on, is level."""
    series = [(float(t), 40 * MIB + min(t, 20) * 25.0 * MIB) for t in range(60)]
    assert trend(series).word == "level"


def test_noise_is_not_rising() -> None:
    """An allocator that goes up and down by 4 MiB is level; one spike does not change that."""
    chance = random.Random(7)
    series = [(float(t), 100 * MIB + chance.uniform(-4, 4) * MIB) for t in range(120)]
    series[110] = (110.0, 300.0 * MIB)
    assert trend(series).word == "level"


def test_a_climb_under_noise_rises() -> None:
    chance = random.Random(7)
    series = [(float(t), (100 + 0.5 * t + chance.uniform(-4, 4)) * MIB) for t in range(120)]
    assert trend(series).rising


def test_less_than_a_mebibyte_is_not_rising() -> None:
    """A small server may warm up a little more in its second half."""
    assert not trend(line(MIB / 60, start=10 * MIB)).rising


@given(st.lists(st.floats(0, 1e10), max_size=60))
def test_any_series_has_a_verdict(values: list[float]) -> None:
    """No series breaks the rule, however short."""
    series = [(float(i), value) for i, value in enumerate(values)]
    seen = trend(series)
    assert seen.word in ("rising", "level")
    assert len(second_half(series)) <= len(series)
    plateau(series)
    slope(series)


def test_quantiles_and_spreads_of_nothing() -> None:
    assert quantile([], 0.99) == 0.0
    assert spread([]) is None


def test_a_spread_is_median_and_range() -> None:
    found = spread([3.0, 1.0, 2.0])
    assert found is not None
    assert (found.median, found.least, found.most, found.count) == (2.0, 1.0, 3.0, 3)


def test_quantile_is_the_nearest_rank() -> None:
    assert quantile(list(range(100)), 0.99) == 99
    assert quantile([5.0], 0.5) == 5.0

"""Timings: each write is counted once, in the right bucket; the longest hold is the same for whoever asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from hypothesis import given
from hypothesis import strategies as st

from rawstream.flow.meter import Meter
from rawstream.flow.pump import Delivery, produce
from rawstream.flow.timings import FIRST_TOKEN, INTER_TOKEN, SHORT, WHOLE, Histogram, Lately, Timings
from rawstream.model import SourceItem, Token
from tests.support.flow import Clock, FakeResponse, Plain

seconds = st.floats(0, 1e6)


# --- histograms --------------------------------------------------------------------------------------------------


def test_the_buckets_are_those_that_dashboards_know() -> None:
    """vLLM's: a dashboard that was made for it finds the same bounds here."""
    assert FIRST_TOKEN[:4] == (0.001, 0.005, 0.01, 0.02)
    assert INTER_TOKEN[:4] == (0.01, 0.025, 0.05, 0.075)
    for bounds in (FIRST_TOKEN, INTER_TOKEN, WHOLE, SHORT):
        assert list(bounds) == sorted(set(bounds))


@given(st.lists(st.tuples(seconds, st.integers(1, 5))))
def test_each_observation_is_in_the_first_bucket_that_holds_it(values: list[tuple[float, int]]) -> None:
    seen = Histogram((0.1, 1.0, 10.0))
    for value, times in values:
        seen.add(value, times)
    for index, bound in enumerate((0.1, 1.0, 10.0, float("inf"))):
        assert sum(seen.counts[: index + 1]) == sum(times for value, times in values if value <= bound)
    assert abs(seen.total - sum(value * times for value, times in values)) <= 1e-6 * max(1.0, seen.total)


# --- the longest lately ------------------------------------------------------------------------------------------


def test_the_longest_is_kept_for_a_minute_and_forgotten_after_two() -> None:
    lately = Lately()
    lately.add(0.2, 100.0)
    lately.add(0.5, 101.0)
    lately.add(0.1, 102.0)
    assert lately.look(102.0) == 0.5
    assert lately.look(161.0) == 0.5, "it came less than a minute ago"
    assert lately.look(219.9) == 0.5, "the interval before still counts"
    assert lately.look(220.0) == 0.0


def test_who_looks_takes_nothing_from_others() -> None:
    """Two Prometheus servers see the same."""
    lately = Lately()
    lately.add(0.5, 100.0)
    assert [lately.look(now) for now in (100.0, 100.0, 130.0, 159.0, 161.0, 161.0)] == [0.5] * 6


def test_what_was_long_ago_is_not_lately_though_nobody_looked() -> None:
    lately = Lately()
    lately.add(9.0, 0.0)
    assert lately.look(1000.0) == 0.0
    lately.add(0.1, 1001.0)
    lately.add(0.2, 5000.0)
    assert lately.look(5000.0) == 0.2


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.001, 40)), min_size=1))
def test_each_value_is_seen_for_a_minute_and_none_for_longer_than_two(steps: list[tuple[float, float]]) -> None:
    lately, now = Lately(), 0.0
    values: list[tuple[float, float]] = []
    for pause, value in steps:
        now += pause
        lately.add(value, now)
        values.append((now, value))
    for later in (0.0, 30.0, 59.0, 61.0, 100.0, 125.0):
        seen = lately.look(now + later)
        must = [value for at, value in values if now + later - at < 60]
        may = [value for at, value in values if now + later - at <= 120]
        assert max(must, default=0.0) <= seen <= max(may, default=0.0)


# --- of streams --------------------------------------------------------------------------------------------------


async def timed(tokens: AsyncGenerator[SourceItem, None], clock: Clock, *, write_size: int = 2048) -> Timings:
    """What is counted of one stream under ``clock``."""
    timings = Timings()
    meter = Meter(clock.now)
    delivery = Delivery(FakeResponse(), Plain(), meter, (), None, timings)
    async with aclosing(tokens):
        last = await produce(tokens, Plain(), delivery, meter, write_size=write_size, hold=1.0, clock=clock)
        await delivery.finish(last)
    delivery.settle()
    return timings


async def test_the_first_token_counts_from_the_admission_and_the_others_from_each_other() -> None:
    clock = Clock()

    async def tokens() -> AsyncGenerator[SourceItem, None]:
        for pause in (3.0, 0.06, 0.06):
            await asyncio.sleep(0)
            clock.now += pause
            yield "x"
        await asyncio.sleep(0)

    timings = await timed(tokens(), clock)
    assert (sum(timings.first_token.counts), round(timings.first_token.total, 6)) == (1, 3.0)
    assert timings.inter_token.counts[INTER_TOKEN.index(0.075)] == sum(timings.inter_token.counts) == 2
    assert round(timings.inter_token.total, 6) == 0.12


async def test_tokens_that_are_written_together_share_the_time() -> None:
    clock = Clock()

    async def tokens() -> AsyncGenerator[SourceItem, None]:
        yield ["a", "b", "c"]
        await asyncio.sleep(0)
        clock.now += 0.4
        yield ["d", "e", "f", "g"]
        await asyncio.sleep(0)

    timings = await timed(tokens(), clock)
    assert sum(timings.first_token.counts) == 1
    assert timings.inter_token.counts[0] == 2, "b and c came with the first"
    assert timings.inter_token.counts[INTER_TOKEN.index(0.1)] == 4
    assert round(timings.inter_token.total, 6) == 0.4


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.01, 0.02, 0.03, 0.03, 0.6, 100.0]), st.integers(0, 3), st.booleans()),
        min_size=1,
    ),
    st.integers(1, 5),
)
def test_however_tokens_come_each_is_counted_in_its_bucket(writes: list[tuple[float, int, bool]], first: int) -> None:
    """The short way of counting what is usual comes to what the long way does, whenever somebody looks."""
    timings, expected = Timings(), Histogram(INTER_TOKEN)
    meter = Meter(0.0)
    now = last = meter.held_since = 5.0
    meter.tokens = first
    meter.time_write(timings, now)
    meter.writes += 1
    expected.add(0.0, first - 1)
    holds = 1
    for pause, count, looked in writes:
        now = meter.held_since = now + pause
        meter.tokens += count
        meter.time_write(timings, now)
        meter.writes += 1
        if count:
            expected.add((now - last) / count, count)
            last = now
            holds += 1
        if looked:
            meter.settle(timings)
            assert timings.inter_token.counts == expected.counts
    meter.settle(timings)
    assert timings.inter_token.counts == expected.counts
    assert abs(timings.inter_token.total - expected.total) < 1e-6 * max(1.0, expected.total)
    assert timings.added.counts == [holds, *[0] * len(SHORT)]
    assert sum(timings.first_token.counts) == 1


async def test_what_a_source_does_once_it_is_woken_is_added_and_held_and_no_waiting() -> None:
    """A source that blocks the loop shows, wherever in its step it does that; its waiting does not count."""
    clock = Clock()

    async def tokens() -> AsyncGenerator[SourceItem, None]:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            clock.now += 7.0
            waiting.set_result(None)

        asyncio.get_running_loop().call_soon(wake)
        await waiting
        clock.now += 0.5  # it parses, or sleeps as it must not
        yield "x"
        await asyncio.sleep(0)

    timings = await timed(tokens(), clock)
    assert round(timings.added.total, 6) == 0.5
    assert round(timings.held.look(clock.now), 6) == 0.5
    assert round(timings.first_token.total, 6) == 7.5


async def test_a_blocking_source_that_is_cancelled_and_goes_on_is_no_ones_wait_either() -> None:
    """It may answer its cancellation with a token: that turn began with the cancellation."""
    clock = Clock()
    asked = asyncio.Event()

    async def tokens() -> AsyncGenerator[SourceItem, None]:
        try:
            asked.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            clock.now += 0.25
            yield "x"
        await asyncio.sleep(0)

    task = asyncio.create_task(timed(tokens(), clock))
    await asked.wait()
    task.cancel()
    timings = await task
    assert round(timings.added.total, 6) == 0.25


async def test_events_without_text_are_no_tokens_and_count_nothing() -> None:
    async def tokens() -> AsyncGenerator[SourceItem, None]:
        yield Token(text="")
        await asyncio.sleep(0)
        yield Token(text="")

    timings = await timed(tokens(), Clock())
    assert sum(timings.first_token.counts) == sum(timings.added.counts) == 0


async def test_without_timings_nothing_is_counted() -> None:
    """A delivery that nobody measures works all the same."""
    meter = Meter(0.0)
    delivery = Delivery(FakeResponse(), Plain(), meter, ())
    assert delivery.put_nowait(b"x", 1.0)
    await delivery.finish(b"y")
    delivery.settle()
    assert meter.tokens_written == 0

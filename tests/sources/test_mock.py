"""The mock source: what it promises about its text, its pace, its ends, and its refusals."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest

from rawstream.errors import BadRequest, SourceFailed
from rawstream.model import Request, Source, SourceItem, Token
from rawstream.sources import mock_text
from rawstream.sources.mock import MockSource
from rawstream.sources.pacing import JITTER, TICKS_PER_SECOND, Pacer, next_due
from tests.support.timeless import TimelessLoop, timeless

TICK = 1.01 / TICKS_PER_SECOND
"""Seconds that a token may be late by the pacer's own doing."""


def ask(prompt: str = "hello", *, max_tokens: int | None = None, **mock: Any) -> Request:
    return Request(messages=[{"role": "user", "content": prompt}], max_tokens=max_tokens, extra={"mock": mock})


def quick(prompt: str = "hello", *, max_tokens: int | None = None, **mock: Any) -> Request:
    return ask(prompt, max_tokens=max_tokens, **{"tokens_per_second": None, **mock})


def flat(items: list[SourceItem]) -> list[str]:
    """The texts, whatever they came in."""
    texts: list[str] = []
    for item in items:
        for token in [item] if isinstance(item, str | Token) else item:
            texts.append(token if isinstance(token, str) else token.text)
    return texts


async def collect(request: Request, source: MockSource | None = None) -> list[SourceItem]:
    return [item async for item in (source or MockSource()).tokens(request)]


# --- the text


async def test_the_same_prompt_and_seed_give_the_same_tokens_and_another_seed_gives_others() -> None:
    first = await collect(quick("why", seed=7))
    assert await collect(quick("why", seed=7)) == first
    assert any([await collect(quick("why", seed=seed)) != first for seed in range(8, 12)])
    assert any([await collect(quick(prompt, seed=7)) != first for prompt in ("how", "when", "who")])


async def test_the_answer_is_readable_text_that_begins_with_a_sentence() -> None:
    text = "".join(flat(await collect(quick("hello"))))
    assert text[0].isupper()
    assert "  " not in text
    assert text.count(".") > 3


def test_the_text_is_words_with_their_spaces_and_holds_a_few_characters_beyond_ascii() -> None:
    assert 200 < len(mock_text.TOKENS) < 2000
    assert all(token.strip() for token in mock_text.TOKENS)
    assert 0 < sum(not token.isascii() for token in mock_text.TOKENS) < 10


async def test_batches_cut_the_same_text_into_other_pieces() -> None:
    single = flat(await collect(quick(tokens=2500)))
    batches = await collect(quick(tokens=2500, batch=64))
    assert flat(batches) == single
    assert len(batches) == 40
    assert {len(flat([batch])) for batch in batches[:-1]} == {64}


async def test_without_options_about_200_tokens_come_at_50_per_second() -> None:
    source = MockSource()
    request = Request(messages=[{"role": "user", "content": "hello"}])
    loop = asyncio.get_running_loop()
    began = loop.time()
    stream = source.tokens(request)
    for _ in range(5):
        await asyncio.wait_for(anext(stream), 2)
    assert 0.09 < loop.time() - began < 0.5
    await stream.aclose()
    assert len(flat(await collect(quick()))) == 200


@pytest.mark.parametrize(
    ("asked", "capped", "expected"), [(20, 5, 5), (5, 20, 5), (None, 7, 7), (0, None, 0), (3, 0, 0)]
)
@pytest.mark.parametrize("batch", [1, 4])
async def test_max_tokens_caps_and_the_last_token_says_so(
    asked: int | None, capped: int | None, expected: int, batch: int
) -> None:
    items = await collect(quick(max_tokens=capped, tokens=asked, batch=batch))
    assert len(flat(items)) == expected
    last = items[-1] if items else None
    final = last if isinstance(last, str | Token | None) else last[-1]
    cut = capped is not None and expected == capped and capped > 0
    assert (isinstance(final, Token) and final.finish_reason == "length") == cut


# --- ends


async def test_fail_after_raises_after_exactly_that_many_tokens() -> None:
    for batch in (1, 3):
        stream = MockSource().tokens(quick(tokens=None, fail_after=7, batch=batch))
        seen: list[SourceItem] = []
        while len(flat(seen)) < 7:
            seen.append(await anext(stream))
        assert len(flat(seen)) == 7
        with pytest.raises(SourceFailed):
            await anext(stream)


async def test_a_failure_beyond_the_last_token_does_not_happen() -> None:
    assert len(flat(await collect(quick(tokens=5, fail_after=6)))) == 5


async def test_nothing_runs_before_the_first_token_is_asked_for_and_everything_is_counted() -> None:
    source = MockSource()
    idle = source.tokens(quick())
    assert source.statistics().opened == 0
    await idle.aclose()
    stream = source.tokens(quick(tokens=None))
    for _ in range(3):
        await anext(stream)
    assert (source.statistics().tokens, source.statistics().running) == (3, 1)
    await stream.aclose()
    done = source.statistics()
    assert (done.opened, done.closed, done.running, done.peak_running) == (1, 1, 0, 1)


async def test_cancelling_a_waiting_generation_ends_it_at_once() -> None:
    source = MockSource()
    stream = source.tokens(ask(first_token_seconds=3600))
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert source.statistics().running == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 1)
    assert source.statistics().running == 0


# --- refusals


@pytest.mark.parametrize(
    ("mock", "named"),
    [
        ({"tokens": -1}, "tokens"),
        ({"tokens": "many"}, "tokens"),
        ({"tokens": 1.5}, "tokens"),
        ({"tokens": True}, "tokens"),
        ({"tokens": 10**30}, "tokens"),
        ({"tokens_per_second": 0}, "tokens_per_second"),
        ({"tokens_per_second": -3}, "tokens_per_second"),
        ({"tokens_per_second": float("nan")}, "tokens_per_second"),
        ({"tokens_per_second": float("inf")}, "tokens_per_second"),
        ({"batch": 0}, "batch"),
        ({"batch": 10**9}, "batch"),
        ({"suspend": 1}, "suspend"),
        ({"seed": [1]}, "seed"),
        ({"first_token_seconds": -1}, "first_token_seconds"),
        ({"fail_after": -1}, "fail_after"),
        ({"speed": 5}, "speed"),
        (None, "mock"),
        ("fast", "mock"),
        ([], "mock"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name_before_anything_starts(mock: Any, named: str) -> None:
    request = Request(messages=[], extra={"mock": mock})
    with pytest.raises(BadRequest, match=named):
        MockSource().tokens(request)


def test_the_mock_is_a_source() -> None:
    assert isinstance(MockSource(), Source)


# --- the pace


def test_the_schedule_keeps_absolute_times_through_small_delays() -> None:
    assert next_due(10.0, 0.02, 10.001) == 10.02
    assert next_due(10.0, 0.02, 10.02 + JITTER / 2) == 10.02


def test_the_schedule_starts_afresh_after_a_pause_instead_of_catching_up() -> None:
    assert next_due(10.0, 0.02, 15.0) == pytest.approx(15.02)


def test_a_paused_generation_resumes_at_its_pace_and_not_in_a_burst() -> None:
    """Nothing was made while nobody asked: the first token after the pause takes its interval, as the others do."""

    async def arrivals() -> list[float]:
        loop = asyncio.get_running_loop()
        stream = MockSource().tokens(ask(tokens=None, tokens_per_second=100))
        await anext(stream)
        await asyncio.sleep(0.2)  # the pause itself, twenty tokens long
        began, times = loop.time(), []
        for _ in range(5):
            await anext(stream)
            times.append(loop.time() - began)
        await stream.aclose()
        return times

    assert timeless(arrivals()) == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05], abs=TICK)


@pytest.mark.parametrize("rate", [7, 250, 1000 / 3])
def test_a_pace_does_not_drift(rate: float) -> None:
    """The last of many tokens comes when the rate says, to a tick, though each of them is late by part of one."""

    async def took() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert len(flat(await collect(ask(tokens=1000, tokens_per_second=rate)))) == 1000
        return loop.time() - began

    assert timeless(took()) == pytest.approx(1000 / rate, abs=TICK)


async def test_a_pace_is_kept_on_a_real_clock(loop_kind: str) -> None:
    """On either loop no token comes before its time."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await collect(ask(tokens=25, tokens_per_second=250))
    assert loop.time() - began > 0.1 - 2 * TICK


@pytest.mark.parametrize(("late", "then"), [(0.0, 1.08), (JITTER, 1.08), (0.3, 1.08), (5.0, 6.08)])
def test_the_first_token_comes_after_its_own_delay(late: float, then: float) -> None:
    """A loop that is held up makes it late by just that: it does not cost the next token's interval as well."""

    async def arrivals() -> list[float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, TimelessLoop)
        stream = MockSource().tokens(ask(first_token_seconds=0.08, tokens_per_second=1))
        loop.call_at(loop.time() + 0.0799, loop.hold_up, late)
        began, times = loop.time(), []
        for _ in range(2):
            await anext(stream)
            times.append(loop.time() - began)
        await stream.aclose()
        return times

    assert timeless(arrivals()) == pytest.approx([0.08 + late, then], abs=TICK)


async def test_a_generation_that_suspends_gives_way_once_per_token() -> None:
    turns = 0
    running = True

    async def count() -> None:
        nonlocal turns
        while running:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.ensure_future(count())
    await asyncio.sleep(0)
    turns = 0
    await collect(quick(tokens=50, suspend=True))
    assert turns >= 49
    turns = 0
    await collect(quick(tokens=50))
    assert turns <= 1
    running = False
    await counter


async def test_waits_of_one_millisecond_share_one_timer_and_none_ends_early(loop_kind: str) -> None:
    loop = asyncio.get_running_loop()
    pacer = Pacer(loop)
    base = loop.time() + 0.02
    waits = [(base + at / 100_000, pacer.at(base + at / 100_000)) for at in range(200)]
    assert len(pacer._ticks) <= 4
    for when, wait in waits:
        await asyncio.wait_for(wait, 2)
        assert loop.time() >= when
    assert not pacer._ticks


async def test_a_cancelled_wait_harms_nobody_else() -> None:
    loop = asyncio.get_running_loop()
    pacer = Pacer(loop)
    gone, stays = pacer.at(loop.time() + 0.01), pacer.at(loop.time() + 0.01)
    gone.cancel()
    await asyncio.wait_for(stays, 1)


async def test_an_idle_generation_costs_less_than_a_kibibyte() -> None:
    source = MockSource()
    warm = source.tokens(quick(tokens=None))
    await anext(warm)
    tracemalloc.start()
    try:
        streams = [source.tokens(quick(tokens=None)) for _ in range(200)]
        for stream in streams:
            await anext(stream)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held / 200 < 1024, f"{held / 200:.0f} bytes per generation"
    for stream in [*streams, warm]:
        await stream.aclose()


# --- several choices


def by_choice(items: list[SourceItem]) -> dict[int, list[Token]]:
    """The tokens of each choice."""
    found: dict[int, list[Token]] = {}
    for item in items:
        for one in [item] if isinstance(item, str | Token) else item:
            token = Token(one) if isinstance(one, str) else one
            found.setdefault(token.index, []).append(token)
    return found


@pytest.mark.parametrize("batch", [1, 4])
async def test_n_choices_come_side_by_side(batch: int) -> None:
    """The first is what it would be alone; the others are other texts, as long, and end alike."""
    source = MockSource()
    request = quick("why", max_tokens=7, batch=batch)
    alone = flat(await collect(request))
    request.extra["n"] = 3
    items = await collect(request, source)
    choices = by_choice(items)
    assert [token.text for token in choices[0]] == alone
    assert sorted(choices) == [0, 1, 2]
    assert len({"".join(token.text for token in tokens) for tokens in choices.values()}) == 3
    for tokens in choices.values():
        assert [token.finish_reason for token in tokens] == [None] * 6 + ["length"]
        assert not tokens[0].text.startswith(" ")
    assert len(items) == -(-7 // batch)
    assert source.statistics().tokens == 21


async def test_choices_fail_and_are_closed_together() -> None:
    """One generation is behind them."""
    source = MockSource()
    request = quick(fail_after=2)
    request.extra["n"] = 2
    with pytest.raises(SourceFailed):
        await collect(request, source)
    open_one = source.tokens(request)
    await anext(open_one)
    await open_one.aclose()
    assert source.statistics().running == 0


@pytest.mark.parametrize("n", [0, 9, "2", 1.5])
def test_a_number_of_choices_that_makes_no_sense_is_refused(n: object) -> None:
    """By name, before anything begins."""
    request = quick()
    request.extra["n"] = n
    with pytest.raises(BadRequest, match=r"^n must be"):
        MockSource().tokens(request)

"""The mailbox of a stream: bounded, in order, one reader, and nothing is lost by a wait that is cancelled."""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest

from rawstream.errors import MisuseError
from rawstream.flow.signals import MOST_UNREAD, Signals, leave
from tests.support.flow import PATIENCE, turns


async def in_time(wait: Coroutine[Any, Any, Any]) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await wait


async def rest(signals: Signals) -> list[Any]:
    async with asyncio.timeout(PATIENCE):
        return [signal async for signal in signals]


async def test_signals_are_read_in_the_order_they_were_sent() -> None:
    signals = Signals()
    sent: list[Any] = [1, None, {"a": []}, "x"]
    for value in sent:
        assert signals.put(value)
    assert len(signals) == 4
    signals.close()
    assert await rest(signals) == sent
    assert len(signals) == 0


async def test_a_reader_waits_until_there_is_a_signal() -> None:
    signals = Signals()
    reader = asyncio.create_task(signals.__anext__())
    await turns()
    assert not reader.done()
    signals.put("now")
    async with asyncio.timeout(PATIENCE):
        assert await reader == "now"


async def test_the_sixty_fifth_unread_signal_is_refused_and_reading_one_makes_room() -> None:
    signals = Signals()
    assert [signals.put(n) for n in range(MOST_UNREAD + 1)] == [True] * 64 + [False]
    assert await in_time(signals.__anext__()) == 0
    assert signals.put("room again")
    assert not signals.put("full again")


async def test_the_iteration_ends_with_the_stream_for_a_reader_that_waits_and_for_one_that_comes_later() -> None:
    signals = Signals()
    reader = asyncio.create_task(rest(signals))
    await turns()
    signals.close()
    signals.close()
    async with asyncio.timeout(PATIENCE):
        assert await reader == []
    assert await rest(signals) == []
    assert not signals.put("too late")
    assert len(signals) == 0


async def test_a_second_reader_is_told_that_there_can_be_only_one() -> None:
    signals = Signals()
    reader = asyncio.create_task(signals.__anext__())
    await turns()
    with pytest.raises(MisuseError, match="one reader"):
        await in_time(signals.__anext__())
    signals.put("for the first")
    async with asyncio.timeout(PATIENCE):
        assert await reader == "for the first"


async def test_readers_may_follow_one_another() -> None:
    """One that has gone leaves its place."""
    signals = Signals()
    for value in ("a", "b"):
        reader = asyncio.create_task(signals.__anext__())
        await turns()
        signals.put(value)
        async with asyncio.timeout(PATIENCE):
            assert await reader == value


async def test_a_cancelled_wait_loses_no_signal() -> None:
    """Neither when nothing has come yet, nor when it came in the same turn of the loop as the cancellation."""
    signals = Signals()
    for sent_first in (False, True):
        reader = asyncio.create_task(signals.__anext__())
        await turns()
        if sent_first:
            signals.put("kept")
        reader.cancel()
        if not sent_first:
            signals.put("kept")
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(PATIENCE):
                await reader
        assert await in_time(signals.__anext__()) == "kept"
    assert len(signals) == 0


async def test_a_signal_that_another_reader_took_first_is_waited_for_again() -> None:
    """Between the waking and the step of a reader, somebody else may have read."""
    signals = Signals()
    reader = asyncio.create_task(signals.__anext__())
    await turns()
    signals.put("first")
    assert await in_time(signals.__anext__()) == "first"
    await turns()
    assert not reader.done()
    signals.put("second")
    async with asyncio.timeout(PATIENCE):
        assert await reader == "second"


def test_an_unused_mailbox_holds_nothing_and_can_be_referred_to_weakly() -> None:
    signals = Signals()
    assert sys.getsizeof(signals) < 100
    assert (signals._unread, signals._more) == (None, None)
    assert weakref.ref(signals)() is signals


async def test_a_mailbox_that_was_emptied_holds_nothing_again() -> None:
    signals = Signals()
    signals.put("x")
    await in_time(signals.__anext__())
    assert (signals._unread, signals._more) == (None, None)


def test_who_leaves_a_signal_is_told_what_became_of_it() -> None:
    signals = Signals()
    assert [leave(signals, number) for number in range(MOST_UNREAD + 1)] == ["put"] * MOST_UNREAD + ["full"]
    signals.close()
    assert leave(signals, "late") == "ended"
    assert leave(None, "nobody") == "none"

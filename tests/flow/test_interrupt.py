"""Ending a running stream from outside: one reason, seen wherever the stream waits."""

from __future__ import annotations

import asyncio

import pytest

from rawstream.errors import ClientDisconnected, MisuseError, RawstreamError, ServerShutdown, SourceFailed
from rawstream.flow.interrupt import Interruption
from tests.support.flow import PATIENCE, turns

STOP = ServerShutdown("going away")


async def outcome_of(task: asyncio.Task[None]) -> BaseException | None:
    await asyncio.wait([task], timeout=PATIENCE)
    assert task.done()
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def test_work_that_nobody_interrupts_is_left_alone() -> None:
    interruption = Interruption()
    async with interruption:
        await asyncio.sleep(0)
    assert interruption.reason is None
    with pytest.raises(ValueError, match="mine"):
        async with Interruption():
            raise ValueError("mine")


async def test_work_that_waits_is_ended_with_the_reason_and_cleans_up_first() -> None:
    interruption = Interruption()
    cleaned = asyncio.Event()

    async def work() -> None:
        async with interruption:
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.set()

    task = asyncio.create_task(work())
    await turns()
    assert interruption.interrupt(STOP)
    assert await outcome_of(task) is STOP
    assert cleaned.is_set()
    assert task.cancelling() == 0


async def test_the_first_reason_wins() -> None:
    interruption = Interruption()

    async def work() -> None:
        async with interruption:
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await turns()
    assert interruption.interrupt(STOP)
    assert not interruption.interrupt(ClientDisconnected("left"))
    assert await outcome_of(task) is STOP


async def test_an_interruption_before_the_work_keeps_it_from_beginning() -> None:
    interruption = Interruption()
    assert not interruption.interrupt(STOP)
    with pytest.raises(ServerShutdown):
        async with interruption:
            pytest.fail("it began")


async def test_an_interruption_after_the_work_changes_nothing() -> None:
    interruption = Interruption()
    async with interruption:
        pass
    assert not interruption.interrupt(STOP)
    await asyncio.sleep(0)


async def test_work_that_ends_in_the_same_moment_is_interrupted_all_the_same() -> None:
    """The cancellation that is on its way is taken back: it must not hit what comes after."""
    interruption = Interruption()

    async def work() -> None:
        async with interruption:
            interruption.interrupt(STOP)

    task = asyncio.create_task(work())
    assert await outcome_of(task) is STOP
    assert task.cancelling() == 0


async def test_work_that_makes_an_error_of_its_cancellation_ends_with_the_reason_and_tells_of_the_error() -> None:
    interruption = Interruption()

    async def work() -> None:
        async with interruption:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise SourceFailed("I was cancelled") from None

    task = asyncio.create_task(work())
    await turns()
    interruption.interrupt(STOP)
    error = await outcome_of(task)
    assert error is STOP
    assert isinstance(error.__cause__, SourceFailed)


async def test_work_that_raises_the_reason_itself_raises_it_once() -> None:
    """The gate raises the reason that the interruption has: it has no other error for its cause."""
    interruption = Interruption()
    reason: RawstreamError = ClientDisconnected("left")

    async def work() -> None:
        async with interruption:
            interruption.interrupt(reason)
            raise reason

    error = await outcome_of(asyncio.create_task(work()))
    assert error is reason
    assert error.__cause__ is None


async def test_a_cancellation_that_is_not_ours_passes_untouched() -> None:
    interruption = Interruption()

    async def work() -> None:
        async with interruption:
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await turns()
    task.cancel()
    assert isinstance(await outcome_of(task), asyncio.CancelledError)
    assert interruption.reason is None


@pytest.mark.parametrize("swallow", [False, True], ids=["waiting", "swallowing"])
async def test_when_both_come_the_cancellation_is_not_lost(swallow: bool) -> None:
    """The whole server goes down while a stream is being stopped: the task must still end as cancelled."""
    interruption = Interruption()

    async def work() -> None:
        async with interruption:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not swallow:
                    raise

    task = asyncio.create_task(work())
    await turns()
    interruption.interrupt(STOP)
    task.cancel()
    assert isinstance(await outcome_of(task), asyncio.CancelledError)


async def test_an_interruption_needs_a_task() -> None:
    """A loop callback has no task that could be cancelled, and hears of it."""
    told: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def outside() -> None:
        try:
            Interruption().__aenter__().send(None)
        except BaseException as error:
            told.set_result(error)

    asyncio.get_running_loop().call_soon(outside)
    async with asyncio.timeout(PATIENCE):
        assert isinstance(await told, MisuseError)

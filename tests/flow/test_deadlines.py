"""Deadlines: many of them, one timer, and nothing left of those that are over."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawstream.flow.deadlines import NEVER, Deadline, DeadlineHeap, Sweeper, _rest_of, finish_within
from tests.support.flow import PATIENCE


def nothing() -> None:
    pass


class Bench:
    """A heap, the times at which it wanted to be looked at, and what fired."""

    def __init__(self) -> None:
        self.wanted: list[float] = []
        self.heap = DeadlineHeap(self.wanted.append)
        self.fired: list[str] = []

    def deadline(self, name: str) -> Deadline:
        return Deadline(self.heap, lambda: self.fired.append(name))


def test_what_is_due_fires_once_in_the_order_of_its_time() -> None:
    bench = Bench()
    for name, at in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        bench.deadline(name).set(at)
    assert bench.heap.run(2.0) == 3.0
    assert bench.fired == ["a", "b"]
    assert bench.heap.run(3.0) == NEVER
    assert bench.heap.run(9.0) == NEVER
    assert bench.fired == ["a", "b", "c"]


def test_a_deadline_that_is_moved_on_fires_at_its_last_time_alone() -> None:
    """Moving on costs an attribute: the heap keeps its one entry, and looks again when that is due."""
    bench = Bench()
    deadline = bench.deadline("a")
    for at in (1.0, 2.0, 3.0):
        deadline.set(at)
    assert len(bench.heap) == 1
    assert bench.heap.run(1.0) == 3.0
    assert bench.fired == []
    bench.heap.run(3.0)
    assert bench.fired == ["a"]


def test_a_deadline_that_is_brought_forward_fires_at_its_earlier_time_alone() -> None:
    bench = Bench()
    deadline = bench.deadline("a")
    deadline.set(5.0)
    deadline.set(2.0)
    assert bench.wanted == [5.0, 2.0]
    bench.heap.run(2.0)
    assert bench.fired == ["a"]
    assert bench.heap.run(5.0) == NEVER
    assert bench.fired == ["a"]
    assert len(bench.heap) == 0


def test_a_deadline_brought_forward_and_moved_back_fires_once() -> None:
    """Two entries of one deadline at the same moment are still one deadline."""
    bench = Bench()
    deadline = bench.deadline("a")
    deadline.set(5.0)
    deadline.set(3.0)
    deadline.set(5.0)
    assert bench.heap.run(3.0) == 5.0
    bench.heap.run(5.0)
    assert bench.fired == ["a"]
    assert len(bench.heap) == 0


def test_a_cleared_deadline_does_not_fire_and_can_be_set_again() -> None:
    bench = Bench()
    deadline = bench.deadline("a")
    deadline.set(1.0)
    deadline.clear()
    assert bench.heap.run(1.0) == NEVER
    assert bench.fired == []
    deadline.set(2.0)
    bench.heap.run(2.0)
    assert bench.fired == ["a"]


def test_a_closed_deadline_never_fires_and_lets_go_of_its_callback() -> None:
    bench = Bench()

    class Callback:
        def __call__(self) -> None:
            bench.fired.append("a")

    callback = Callback()
    gone = weakref.ref(callback)
    deadline = Deadline(bench.heap, callback)
    deadline.set(1.0)
    deadline.close()
    deadline.close()
    del callback
    assert gone() is None
    deadline.set(1.0)
    bench.heap.run(2.0)
    assert bench.fired == []
    assert deadline.at == NEVER


def test_a_deadline_closed_before_it_was_ever_set_leaves_nothing() -> None:
    bench = Bench()
    bench.deadline("a").close()
    assert len(bench.heap) == 0


def test_a_callback_may_close_and_set_deadlines() -> None:
    bench = Bench()
    other = bench.deadline("other")

    def callback() -> None:
        bench.fired.append("again")
        other.close()
        if len(bench.fired) < 3:
            again.set(float(len(bench.fired)) + 1)

    again = Deadline(bench.heap, callback)
    again.set(1.0)
    other.set(1.0)
    assert bench.heap.run(1.0) == 2.0
    bench.heap.run(9.0)
    assert bench.fired == ["again"] * 3


def test_a_callback_that_closes_its_own_deadline_is_not_called_again() -> None:
    bench = Bench()

    def callback() -> None:
        bench.fired.append("once")
        deadline.close()

    deadline = Deadline(bench.heap, callback)
    deadline.set(1.0)
    bench.heap.run(1.0)
    assert bench.heap.run(2.0) == NEVER
    assert bench.fired == ["once"]


def test_a_callback_that_raises_keeps_no_other_from_running_and_is_heard_of() -> None:
    bench = Bench()

    def fail(name: str) -> Callable[[], None]:
        def callback() -> None:
            raise RuntimeError(name)

        return callback

    Deadline(bench.heap, fail("first")).set(1.0)
    Deadline(bench.heap, fail("second")).set(1.5)
    bench.deadline("a").set(2.0)
    with pytest.raises(RuntimeError, match="first"):
        bench.heap.run(3.0)
    assert bench.fired == ["a"]


def test_dead_entries_never_outnumber_the_living_for_long() -> None:
    """Ten thousand deadlines that come and go leave a heap the size of those that stayed."""
    bench = Bench()
    kept = [bench.deadline("kept") for _ in range(100)]
    for number, deadline in enumerate(kept):
        deadline.set(1000.0 + number)
    for number in range(10_000):
        passing = bench.deadline("passing")
        passing.set(500.0 + number % 7)
        passing.close()
        assert len(bench.heap) <= 2 * len(kept) + 64 + 2
    bench.heap.run(2000.0)
    assert bench.fired == ["kept"] * 100


def test_a_deadline_that_is_brought_forward_over_and_over_leaves_one_living_entry() -> None:
    """Each time leaves a dead entry behind, and dead ones are counted right, or they would pile up."""
    bench = Bench()
    deadline = bench.deadline("a")
    for number in range(10_000):
        deadline.set(20_000.0 - number)
        assert len(bench.heap) <= 2 + 64 + 2
    bench.heap.run(NEVER)
    assert bench.fired == ["a"]
    assert bench.heap._dead == 0


MOMENTS = st.integers(0, 40).map(float)
DOINGS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 5), MOMENTS),
        st.tuples(st.just("clear"), st.integers(0, 5), st.just(0.0)),
        st.tuples(st.just("close"), st.integers(0, 5), st.just(0.0)),
        st.tuples(st.just("run"), st.just(0), st.integers(1, 5).map(float)),
    ),
    max_size=200,
)


@given(DOINGS, st.integers(0, 3))
def test_any_sequence_does_what_a_naive_table_of_times_does(doings: list[tuple[str, int, float]], few: int) -> None:
    """Whatever is set, moved, cleared and closed in whatever order: what fires, and when, is what a dict would say."""
    bench = Bench()
    bench.heap._FEW = few  # type: ignore[misc]  # compaction is for big heaps; here small ones must meet it too
    names = "abcdef"
    deadlines = [bench.deadline(name) for name in names]
    naive: dict[int, float] = {}
    closed: set[int] = set()
    now = 0.0
    for what, which, value in doings:
        match what:
            case "set":
                deadlines[which].set(now + value)
                if which not in closed:
                    naive[which] = now + value
            case "clear":
                deadlines[which].clear()
                naive.pop(which, None)
            case "close":
                deadlines[which].close()
                closed.add(which)
                naive.pop(which, None)
            case _:
                now += value
                bench.fired.clear()
                look_at = bench.heap.run(now)
                due = {which for which, at in naive.items() if at <= now}
                assert sorted(bench.fired) == sorted(names[which] for which in due)
                for done in due:
                    del naive[done]
                assert look_at <= min(naive.values(), default=NEVER)
                assert look_at > now
        living = sum(1 for deadline in deadlines if deadline._entry)
        assert len(bench.heap) == living + bench.heap._dead
        assert bench.heap._dead <= max(few, living) + 1


# --- the sweeper: the heap on a loop -------------------------------------------------------------------------------


async def test_deadlines_fire_on_the_loop_with_one_timer(loop_kind: str) -> None:
    loop = asyncio.get_running_loop()
    sweeper = Sweeper.of(loop)
    assert Sweeper.of(loop) is sweeper
    fired: list[str] = []
    done = asyncio.Event()
    now = loop.time()
    late, early = sweeper.deadline(done.set), sweeper.deadline(lambda: fired.append("early"))
    late.set(now + 0.03)
    middle = sweeper.deadline(lambda: fired.append("middle"))
    early.set(now + 0.01)  # earlier than the timer that is set: it is moved
    middle.set(now + 0.02)  # later: the timer stays
    async with asyncio.timeout(PATIENCE):
        await done.wait()
    assert fired == ["early", "middle"]
    assert sweeper.entries == 0


async def test_a_callback_may_set_its_deadline_again(loop_kind: str) -> None:
    """A deadline that looks again and again needs one timer at a time."""
    loop = asyncio.get_running_loop()
    sweeper = Sweeper.of(loop)
    looks: list[float] = []
    done = asyncio.Event()

    def look() -> None:
        looks.append(loop.time())
        if len(looks) < 3:
            again.set(loop.time() + 0.005)
        else:
            done.set()

    again = sweeper.deadline(look)
    again.set(loop.time() + 0.005)
    async with asyncio.timeout(PATIENCE):
        await done.wait()
    assert looks[2] - looks[0] >= 0.005


async def test_a_sweeper_goes_on_after_a_callback_that_raised(loop_kind: str) -> None:
    """The error reaches the loop's handler, and the deadlines after it are kept."""
    loop = asyncio.get_running_loop()
    heard: list[object] = []
    loop.set_exception_handler(lambda _, context: heard.append(context.get("exception")))
    sweeper = Sweeper.of(loop)
    done = asyncio.Event()

    def fail() -> None:
        raise RuntimeError("broken")

    failing, later = sweeper.deadline(fail), sweeper.deadline(done.set)
    failing.set(loop.time())
    later.set(loop.time() + 0.01)
    async with asyncio.timeout(PATIENCE):
        await done.wait()
    assert [str(error) for error in heard] == ["broken"]


def test_a_sweeper_does_not_keep_its_loop_and_does_nothing_without_it() -> None:
    loop = asyncio.new_event_loop()
    sweeper = Sweeper(loop)
    gone = weakref.ref(loop)
    loop.close()
    del loop
    gc.collect()
    assert gone() is None
    sweeper.deadline(nothing).set(1.0)
    sweeper._run()
    assert sweeper.entries == 1


# --- ends with a deadline -----------------------------------------------------------------------------------


async def test_an_end_that_need_not_wait_needs_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what every stream that ended well comes to, and a timer costs more than all else of it."""

    def no_timer(seconds: float) -> asyncio.Timeout:
        raise AssertionError("nothing waits")

    monkeypatch.setattr(asyncio, "timeout", no_timer)
    done: list[str] = []

    async def end() -> None:
        done.append("ended")

    await finish_within(1, end())
    assert done == ["ended"]


async def test_an_end_that_waits_is_awaited_to_its_last_step(loop_kind: str) -> None:
    steps: list[int] = []

    async def end() -> None:
        for step in range(3):
            await asyncio.sleep(0 if step else 0.001)
            steps.append(step)

    await finish_within(PATIENCE, end())
    assert steps == [0, 1, 2]


async def test_an_end_that_takes_too_long_is_cancelled_and_may_clean_up(loop_kind: str) -> None:
    cleaned = False

    async def end() -> None:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned = True

    with pytest.raises(TimeoutError):
        await finish_within(0.01, end())
    assert cleaned


async def test_cancelling_the_wait_for_an_end_cancels_it(loop_kind: str) -> None:
    waits, cancelled = asyncio.Event(), asyncio.Event()

    async def end() -> None:
        waits.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    task = asyncio.ensure_future(finish_within(PATIENCE, end()))
    async with asyncio.timeout(PATIENCE):
        await waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert cancelled.is_set()


@pytest.mark.parametrize("waits", [False, True])
async def test_what_an_end_raises_is_raised(waits: bool) -> None:
    async def end() -> None:
        if waits:
            await asyncio.sleep(0)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await finish_within(PATIENCE, end())


async def test_an_end_that_takes_its_cancellation_for_its_end_has_ended() -> None:
    """As ``asyncio.timeout`` has it: who comes to an end then has come to an end."""
    told: list[str] = []

    async def end() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append("cancelled")

    async with asyncio.timeout(PATIENCE):
        await finish_within(0.001, end())
    assert told == ["cancelled"]


def test_an_end_that_is_dropped_while_it_waits_cleans_up() -> None:
    """As when its event loop is closed over it: the generator below is closed too."""
    cleaned: list[str] = []

    class Forever:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def end() -> None:
        try:
            while True:
                await Forever()
        finally:
            cleaned.append("closed")

    async def drop() -> None:
        waiting = end().__await__()
        rest = _rest_of(waiting, next(waiting))
        next(rest)
        rest.close()

    with asyncio.Runner() as runner:
        runner.run(drop())
    assert cleaned == ["closed"]

"""One sweeper for all deadlines of an event loop.

Rule 1: setting a deadline later costs an attribute, not a timer. ``asyncio.timeout()`` costs 2.5–5.6 µs, which is
        more than everything else that happens to a token.
Rule 2: the arithmetic (``DeadlineHeap``) takes ``now`` as an argument and knows no loop; ``Sweeper`` is the shell.
Rule 3: a deadline that is closed is forgotten soon: dead entries never outnumber the living for long.

Theory of operation: each deadline has at most one *valid* entry in a heap, at a time that is at or before the
moment it is due. When that time comes and the deadline has meanwhile moved on, the entry is put back at the new
time. So a deadline that moves forward with every token costs one heap operation per *period*, not per token.
"""

from __future__ import annotations

import asyncio
import heapq
import weakref
from collections.abc import Awaitable, Callable, Generator
from types import coroutine
from typing import Any, Final

NEVER: Final = float("inf")


def _closed() -> None:
    """In place of the callback of a deadline that is closed."""


class Deadline:
    """A moment at which ``callback`` runs, unless it is moved or cleared before. Times are ``loop.time()`` seconds."""

    __slots__ = ("_callback", "_entry", "_heap", "_queued_at", "at")

    def __init__(self, heap: DeadlineHeap, callback: Callable[[], None]) -> None:
        self._heap = heap
        self._callback = callback
        self._entry = 0  # number of the one valid entry in the heap; 0: there is none
        self._queued_at = NEVER
        self.at = NEVER

    def set(self, at: float) -> None:
        """Due at ``at``. Replaces what was set before. Does nothing once closed."""
        if self._callback is _closed:
            return
        self.at = at
        if at < self._queued_at:
            self._heap.push(self, at)

    def clear(self) -> None:
        """Not due at any time, until set again."""
        self.at = NEVER

    def close(self) -> None:
        """Never again. Drops the callback, so that what it refers to is free. Idempotent."""
        if self._callback is _closed:
            return
        self._callback = _closed
        self.at = NEVER
        self._heap.forget(self)


class DeadlineHeap:
    """The arithmetic: which deadlines are due, and when to look next."""

    _FEW: Final = 64

    def __init__(self, wanted: Callable[[float], None]) -> None:
        """``wanted(at)`` is called when the next look must happen earlier than was last said."""
        self._entries: list[tuple[float, int, Deadline]] = []
        self._sequence = 0
        self._dead = 0
        self._wanted = wanted

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, deadline: Deadline, at: float) -> None:
        replaced = deadline._entry
        self._sequence += 1
        deadline._entry = self._sequence
        deadline._queued_at = at
        heapq.heappush(self._entries, (at, self._sequence, deadline))
        if replaced:
            self._bury()
        if self._entries[0][2] is deadline:
            self._wanted(at)

    def forget(self, deadline: Deadline) -> None:
        if deadline._entry:
            deadline._entry = 0
            deadline._queued_at = NEVER
            self._bury()

    def _bury(self) -> None:
        """One entry more is dead. When most are, keep only the living."""
        self._dead += 1
        if self._dead > self._FEW and self._dead * 2 > len(self._entries):
            self._entries = [entry for entry in self._entries if entry[2]._entry == entry[1]]
            heapq.heapify(self._entries)
            self._dead = 0

    def run(self, now: float) -> float:
        """Run the callbacks of all that is due at ``now``. Returns when to look next (NEVER: nothing is set).

        A callback that raises does not keep the others from running: the first error is raised at the end.
        """
        failure: Exception | None = None
        while self._entries and self._entries[0][0] <= now:
            _, entry, deadline = heapq.heappop(self._entries)
            if deadline._entry != entry:
                self._dead -= 1
                continue
            deadline._entry = 0
            deadline._queued_at = NEVER
            if deadline.at > now:
                if deadline.at != NEVER:
                    self.push(deadline, deadline.at)
                continue
            deadline.at = NEVER
            try:
                deadline._callback()
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return self._entries[0][0] if self._entries else NEVER


class Sweeper:
    """Runs one heap on one event loop, with one timer."""

    _of_loop: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Sweeper]] = weakref.WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._heap = DeadlineHeap(self._schedule)
        self._timer: asyncio.Handle | None = None
        self._timer_at = NEVER  # kept here: uvloop's handle for what is due at once has no when()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Sweeper:
        """The sweeper of this loop; made at the first call."""
        sweeper = cls._of_loop.get(loop)
        if sweeper is None:
            sweeper = cls._of_loop[loop] = cls(loop)
        return sweeper

    def deadline(self, callback: Callable[[], None]) -> Deadline:
        """A new deadline, not set yet. ``callback`` runs on the loop, takes nothing, and must not block."""
        return Deadline(self._heap, callback)

    @property
    def entries(self) -> int:
        """Entries held, dead ones included: for tests that nothing is left behind."""
        return len(self._heap)

    def _schedule(self, at: float) -> None:
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        loop = self._loop()
        if loop is not None:
            self._timer = loop.call_at(at, self._run)
            self._timer_at = at

    def _run(self) -> None:
        self._timer = None
        loop = self._loop()
        if loop is None:
            return
        # A timer may fire a clock tick early; looking a millisecond ahead saves a second look.
        try:
            self._heap.run(loop.time() + 0.001)
        finally:
            if self._heap._entries:
                self._schedule(self._heap._entries[0][0])


async def finish_within(seconds: float, ending: Awaitable[None]) -> None:
    """Await ``ending``, and when it has to wait, for ``seconds`` at most: what does not wait needs no timer.

    Raises TimeoutError, and what ``ending`` does. Cancelling it cancels ``ending``.
    """
    steps = ending.__await__()
    try:
        awaited = next(steps)
    except StopIteration:
        return
    async with asyncio.timeout(seconds):
        await _rest_of(steps, awaited)


@coroutine
def _rest_of(steps: Generator[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    """Await the rest of what has run up to its first wait, which is for ``awaited``."""
    while True:
        try:
            yield awaited
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as error:
            try:
                awaited = steps.throw(error)
            except StopIteration:
                return
        else:
            try:
                awaited = next(steps)
            except StopIteration:
                return

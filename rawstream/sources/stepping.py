"""Stepping a blocking iterator in a thread of its own, one item per demand.

Rule 1: one thread per stream, started with the first demand and ended with the stream. Whatever the user's
        code makes (a file, a database cursor) is made, stepped and closed in that one thread.
Rule 2: the thread does nothing that was not asked for. An item is taken when it is demanded, never ahead.
Rule 3: the loop never waits for a blocked thread. When a stream ends while the thread is inside the user's
        code, the loop goes on at once, and the thread closes the iterator when that code returns.
Rule 4: the threads are daemons, so that one that never returns cannot hold up the end of the process.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeAlias

CLOSE_WAIT: Final = 1.0
"""Seconds that closing waits for the user's ``close()``: a file is closed once its stream has ended."""

_Job: TypeAlias = tuple[asyncio.Future[Any], Callable[[], Any]]


class Stepper:
    """Runs one stream's blocking calls, one by one, in one thread. Made and used on the event loop."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._busy = False
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._closers: list[Callable[[], Any]] = []
        self._thread = threading.Thread(target=self._work, name=f"rawstream-source-{name}", daemon=True)
        self._thread.start()

    async def call(self, function: Callable[[], Any]) -> Any:
        """What ``function()`` returns or raises, called in the thread.

        Cancelling is safe and immediate: the call itself runs on, and its result is dropped.
        """
        future = self._loop.create_future()
        self._busy = True
        self._jobs.put((future, function))
        return await future

    def on_close(self, closer: Callable[[], Any]) -> None:
        """Have ``closer()`` called in the thread as its last act."""
        self._closers.append(closer)

    async def aclose(self) -> None:
        """End the thread. Waits for the user's ``close()``, ``CLOSE_WAIT`` at most, unless the thread is blocked.

        Raises what ``close()`` raised. Cancelling it is safe: the thread ends all the same. Idempotent.
        """
        self._jobs.put(None)
        if self._busy:
            self._closed.add_done_callback(_forget)
        else:
            await asyncio.wait([self._closed], timeout=CLOSE_WAIT)
            if self._closed.done():
                self._closed.result()

    def _work(self) -> None:
        """The thread."""
        while (job := self._jobs.get()) is not None:
            future, function = job
            try:
                result, error = function(), None
            except BaseException as caught:
                result, error = None, caught
            self._tell(future, result, error)
            del job, future, function, result, error
        try:
            for closer in self._closers:
                closer()
        except BaseException as caught:
            self._tell(self._closed, None, caught)
        else:
            self._tell(self._closed, None, None)

    def _tell(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, future, result, error)
        except RuntimeError:
            # The loop is closed: the stream, and whoever waited for this, are gone.
            if not self._loop.is_closed():
                raise

    def _settle(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        """Back on the loop."""
        self._busy = False
        if future.done():
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, StopIteration):
            # A future refuses a StopIteration; from a plain call it is a mistake of the user's anyway.
            future.set_exception(RuntimeError("the source raised StopIteration"))
        else:
            future.set_exception(error)


def _forget(closed: asyncio.Future[None]) -> None:
    """Nobody waits for the closing any more; its exception counts as seen."""
    if not closed.cancelled():
        closed.exception()

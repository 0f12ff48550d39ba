"""Ending a running stream from outside, with one typed reason.

Rule 1: the first reason wins, and it is what the stream's own code sees raised, wherever it waits: in the source,
        in ``drain()``, in the flush at the end.
Rule 2: a cancellation that is not ours (the whole server goes down) passes through untouched.

Theory of operation: the waiting task is cancelled, so that a generator that is being awaited runs its ``finally``
at once; on the way out the ``CancelledError`` is turned into the reason, as ``asyncio.timeout()`` does it, but
without a timer of its own.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from types import TracebackType

from rawstream.errors import MisuseError, RawstreamError


class Interruption:
    """``async with interruption:`` around the work that ``interrupt(reason)`` may end. Use once."""

    __slots__ = ("_cancels_before", "_task", "at", "reason")

    def __init__(self) -> None:
        self.reason: RawstreamError | None = None
        self.at = 0.0
        """When it came (monotonic seconds)."""
        self._task: asyncio.Task[object] | None = None
        self._cancels_before = 0

    def interrupt(self, reason: RawstreamError) -> bool:
        """End the work with ``reason``. False when it was interrupted before, or is over."""
        if self.reason is not None:
            return False
        self.reason = reason
        self.at = monotonic()
        if self._task is None:
            return False
        self._task.cancel(reason.code)
        return True

    async def __aenter__(self) -> Interruption:
        """Raises the reason when the interruption came before the work began."""
        if self.reason is not None:
            raise self.reason
        task = asyncio.current_task()
        if task is None:
            raise MisuseError("an interruption needs a task to interrupt")
        self._task = task
        self._cancels_before = task.cancelling()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        reason = self.reason
        if task is None or reason is None:
            return
        if not isinstance(error, asyncio.CancelledError):
            # Our cancellation may still be on its way (or the source turned it into an error of its own).
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                pass
        if task.uncancel() > self._cancels_before:
            if not isinstance(error, asyncio.CancelledError):
                raise asyncio.CancelledError
            return
        if error is not reason:
            raise reason from (None if isinstance(error, asyncio.CancelledError) else error)

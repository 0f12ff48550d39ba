"""The write side of one connection: may we write, must we wait, or has the client gone?

Rule 1: everything that moves the gate is in ``TRANSITIONS``; a pair that is not there is a bug, and raises.
Rule 2: LOST is final, and it *raises*. asyncio never calls ``resume_writing()`` on a lost transport, so whoever
        waits there must be woken by the loss itself; and plain ``drain()`` returns normally after ``abort()``.
Rule 3: the first reason for a loss is the reason. "They left", "too slow" and "we closed" stay different.
Rule 4: one producer per response. A second one that waits, or writes while one waits, is told of its mistake.

Theory of operation: the transport calls ``pause_writing()`` above its high-water mark and ``resume_writing()`` at
its low-water mark; the protocol passes both on to here. ``StreamWriter.drain()`` ends in ``wait_open()``.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from typing import Final

from rawstream.errors import ConcurrentWrite, RawstreamError


class GateState(enum.Enum):
    OPEN = "open"
    PAUSED = "paused"
    LOST = "lost"


class GateEvent(enum.Enum):
    PAUSE = "pause"
    RESUME = "resume"
    LOSE = "lose"


OPEN: Final = GateState.OPEN
PAUSED: Final = GateState.PAUSED
LOST: Final = GateState.LOST

TRANSITIONS: Final[Mapping[tuple[GateState, GateEvent], GateState]] = {
    (OPEN, GateEvent.PAUSE): PAUSED,
    (PAUSED, GateEvent.RESUME): OPEN,
    (OPEN, GateEvent.LOSE): LOST,
    (PAUSED, GateEvent.LOSE): LOST,
    # A transport may still report marks, or a second reason, after the loss. Nothing follows from them.
    (LOST, GateEvent.PAUSE): LOST,
    (LOST, GateEvent.RESUME): LOST,
    (LOST, GateEvent.LOSE): LOST,
}


class Gate:
    """Three states and at most one waiter."""

    __slots__ = ("_waiter", "reason", "state")

    def __init__(self) -> None:
        self.state: GateState = OPEN
        self.reason: RawstreamError | None = None
        """Why the gate is LOST; None while it is not."""
        self._waiter: asyncio.Future[None] | None = None

    def _move(self, event: GateEvent) -> None:
        self.state = TRANSITIONS[self.state, event]

    def pause(self) -> None:
        """The transport is above its high-water mark."""
        self._move(GateEvent.PAUSE)

    def resume(self) -> None:
        """The transport is at or below its low-water mark."""
        self._move(GateEvent.RESUME)
        if self.state is OPEN:
            self._wake()

    def lose(self, reason: RawstreamError) -> None:
        """The connection is gone. Whoever waits is woken and gets ``reason`` raised."""
        if self.reason is None:
            self.reason = reason
        self._move(GateEvent.LOSE)
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    @property
    def waiting(self) -> bool:
        """Does a producer wait here?"""
        return self._waiter is not None

    def check(self) -> None:
        """Raise the reason when the connection is lost, and ``ConcurrentWrite`` when another producer waits."""
        if self.reason is not None:
            raise self.reason
        if self._waiter is not None:
            raise ConcurrentWrite("write while another producer waits for this response: one producer per response")

    async def wait_open(self) -> None:
        """Wait while PAUSED; return at once while OPEN.

        Raises the reason of the loss when the gate is, or becomes, LOST; ``ConcurrentWrite`` when somebody waits
        already. Cancel-safe: a cancelled wait leaves nothing behind.
        """
        self.check()
        while self.state is PAUSED:
            waiter = self._waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            finally:
                if self._waiter is waiter:
                    self._waiter = None
        if self.reason is not None:
            raise self.reason

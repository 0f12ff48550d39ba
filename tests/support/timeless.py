"""An event loop whose time passes only when everybody waits: hours take no time, and figures are exact.

Rule 1: nothing outside may be waited for, since the clock would run ahead of it. Timers and tasks only.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumping(selectors.SelectSelector):
    """Instead of waiting, it moves the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits for something that will never come"
        self.now += max(0.0, timeout)
        return super().select(0)


class TimelessLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Jumping()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    def hold_up(self, seconds: float) -> None:
        """What a callback does to the loop that takes ``seconds``: time passes, and nothing else runs."""
        self._clock.now += seconds


def timeless(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` on such a loop."""
    with asyncio.Runner(loop_factory=TimelessLoop) as runner:
        return runner.run(main)

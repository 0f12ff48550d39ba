"""How fast a counter rises, from the looks that were taken at it."""

from __future__ import annotations

from collections import deque
from typing import Final

_OVER: Final = 1.0
"""Seconds over which a rate is taken."""


class Pace:
    """One counter."""

    __slots__ = ("_looks",)

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()

    def look(self, now: float, count: int) -> float:
        """Per second, as of ``now``."""
        looks = self._looks
        looks.append((now, count))
        while len(looks) > 2 and now - looks[1][0] >= _OVER:
            looks.popleft()
        then, before = looks[0]
        return round((count - before) / (now - then), 1) if now > then else 0.0

"""Waiting for what another process does: by asking, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_ASK_EVERY = 0.01


def eventually(what: Callable[[], T], *, within: float = 5.0, why: str = "") -> T:
    """The first true value of ``what()``; AssertionError when there is none ``within`` so many seconds.

    For what no event tells: the levels in another process, as ``/proc`` and ``/debug/streams`` show them.
    """
    until = time.monotonic() + within
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"not within {within:g} s: {why or what} (last: {value!r})")
        time.sleep(_ASK_EVERY)

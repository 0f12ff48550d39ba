"""When to leave an upstream alone, and how often to go back to it. Pure: the time is an argument.

Rule 1: the breaker opens after a number of requests in a row that failed, and lets one through after a pause: the
        probe. While the probe is on its way nobody else goes, for a pause: then there is another one, so that a slow
        answer holds up nobody for longer.
Rule 2: only what was begun since the breaker last changed counts. Streams that were cut when the upstream went away
        say nothing about the one that came back.
Rule 3: a request counts once, however often it was tried: one that is its own fault must not take the upstream from
        all others.
Rule 4: the budget makes retries a fraction of the requests, however many of them fail.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Final


class State(enum.Enum):
    CLOSED = "closed"
    """Requests go through."""
    OPEN = "open"
    """Nobody goes, until the pause is over."""
    HALF_OPEN = "half open"
    """The probe is on its way."""


class Event(enum.Enum):
    TRIPPED = "tripped"
    """The last failure in a row that is borne has come."""
    PROBED = "probed"
    PROBE_WELL = "probe well"
    PROBE_FAILED = "probe failed"
    PROBE_LOST = "probe lost"
    """It ended without telling anything: its client left."""


TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = {
    (State.CLOSED, Event.TRIPPED): State.OPEN,
    (State.OPEN, Event.PROBED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.PROBE_WELL): State.CLOSED,
    (State.HALF_OPEN, Event.PROBE_FAILED): State.OPEN,
    (State.HALF_OPEN, Event.PROBE_LOST): State.OPEN,
}

PROBE_WAIT: Final = 1.0
"""Seconds after which to ask again, at most, while a probe is on its way."""


class Breaker:
    """The circuit breaker of one upstream. Times are seconds of any one steady clock."""

    def __init__(self, failures: int, pause: float) -> None:
        """Opens after ``failures`` in a row (0: never), for ``pause`` seconds, which is between two probes too."""
        self.state = State.CLOSED
        self.openings = 0
        self._most = failures
        self._pause = pause
        self._failures = 0
        self._until = -math.inf
        """Nobody goes before, except while it is closed."""
        self._epoch = 0

    def admit(self, now: float) -> int | None:
        """A permit for one attempt, to be handed back with its end; None: leave the upstream alone."""
        if self.state is State.CLOSED:
            return self._epoch
        if now < self._until:
            return None
        self._until = now + self._pause
        if self.state is State.OPEN:
            self._enter(Event.PROBED)
        return self._epoch

    def wait(self, now: float) -> float:
        """Seconds until ``admit`` may say yes; 0: now."""
        if self.state is State.CLOSED:
            return 0.0
        left = max(0.0, self._until - now)
        return left if self.state is State.OPEN else min(PROBE_WAIT, left)

    def answered(self, permit: int) -> None:
        """The attempt's answer has begun. Enough for a probe: its whole answer may take half an hour."""
        if permit == self._epoch and self.state is State.HALF_OPEN:
            self._failures = 0
            self._enter(Event.PROBE_WELL)

    def well(self, permit: int) -> None:
        """The attempt ended well."""
        self.answered(permit)
        if permit == self._epoch:
            self._failures = 0

    def failed(self, permit: int, now: float, *, again: bool = False) -> None:
        """The attempt failed through the upstream's fault. ``again``: it was not its request's first one there."""
        if permit != self._epoch or not self._most or (again and self.state is State.CLOSED):
            return
        self._failures += 1
        if self.state is State.HALF_OPEN:
            self._until = now + self._pause
            self._enter(Event.PROBE_FAILED)
        elif self._failures >= self._most:
            self._until = now + self._pause
            self.openings += 1
            self._enter(Event.TRIPPED)

    def lost(self, permit: int) -> None:
        """The attempt ended and told nothing about the upstream."""
        if permit == self._epoch and self.state is State.HALF_OPEN:
            self._until = -math.inf
            self._enter(Event.PROBE_LOST)

    def _enter(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]
        self._epoch += 1


class RetryBudget:
    """A token bucket: each request puts ``ratio`` of a retry in, each retry takes one out.

    It holds ``BURST`` at most, and at first, and gains one each ``FLOOR`` seconds, so that a server with few requests
    may retry too. In all: retries ≤ BURST + ratio * requests + seconds / FLOOR.
    """

    BURST: Final = 10.0
    FLOOR: Final = 5.0

    def __init__(self, ratio: float, now: float) -> None:
        self._ratio = ratio
        self._held = self.BURST
        self._at = now

    def request(self) -> None:
        """A request goes to the upstream for the first time."""
        self._held = min(self.BURST, self._held + self._ratio)

    def take(self, now: float) -> bool:
        """May it be tried once more?"""
        self._held = min(self.BURST, self._held + (now - self._at) / self.FLOOR)
        self._at = now
        if self._held < 1.0:
            return False
        self._held -= 1.0
        return True

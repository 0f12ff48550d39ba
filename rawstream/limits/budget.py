"""Token budgets: what a user may still be given, counted as the tokens pass.

Rule 1: reserve before, refund after. A stream takes a lease on some tokens before it asks its source for any, more
        when they are used up, and gives back what it did not use. So many streams of one user together never go over.
Rule 2: near the end leases shrink (an eighth of what is left, at least one token), so that one stream does not sit
        on tokens that another is refused.
Rule 3: a window begins with the first token after the last one ended, and lasts its seconds. What is refunded after
        its window has ended is gone with it.
Rule 4: arithmetic only: time is an argument. A ledger in Redis does the same sums, there (``redis_ledger.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final, NamedTuple, Protocol

from rawstream.errors import BudgetSpent, LimitReached, RateLimited

MINUTE: Final = 60.0
DAY: Final = 86_400.0
_SHARE: Final = 8
_FEW: Final = 1024
"""Windows from which on those that have ended are thrown away now and then."""
BLOCK: Final = 256
"""Tokens that a stream asks for at a time."""


class Cap(NamedTuple):
    """So many tokens (or requests) in so many seconds."""

    tokens: int
    seconds: float
    what: str = "tokens"

    def spent(self, left: float) -> LimitReached:
        """The refusal; ``left`` seconds until the window ends. A day's budget is not worth trying again."""
        if self.seconds > MINUTE:
            return BudgetSpent(f"the budget of {self.tokens} {self.what} is spent; it is renewed in {left:.0f} s")
        return RateLimited(
            f"{self.tokens} {self.what} a minute are used up; try again in {left:.0f} s", retry_after=left
        )


class Reservation(NamedTuple):
    """Tokens taken out of a user's windows, and which windows these were."""

    tokens: int
    windows: tuple[int | str, ...]
    """The ledger's own names for them."""


def share(left: int, wanted: int) -> int:
    """How many of ``left`` tokens one lease gets that asks for ``wanted``; 0 when none are left."""
    return max(0, min(wanted, max(1, left // _SHARE), left))


class Ledger(Protocol):
    """Where what users have used is written down."""

    async def reserve(self, user: str, caps: tuple[Cap, ...], wanted: int) -> Reservation:
        """Take up to ``wanted`` tokens, at least one. Raises what ``Cap.spent`` makes when there are none."""
        ...

    async def settle(self, user: str, caps: tuple[Cap, ...], reservation: Reservation, used: int) -> None:
        """Of ``reservation`` ``used`` tokens were used (perhaps more than it had): refund the rest, or charge it."""
        ...

    async def used(self, user: str, caps: tuple[Cap, ...]) -> list[int]:
        """Tokens used and reserved in the present window of each cap."""
        ...


class _Window:
    __slots__ = ("ends", "number", "used")

    def __init__(self, number: int, ends: float) -> None:
        self.number = number
        self.ends = ends
        self.used = 0


class MemoryLedger:
    """For one process: what is written here is gone when it ends."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._windows: dict[tuple[str, float], _Window] = {}
        self._number = 0
        self._sweep_at = _FEW

    def _window(self, user: str, cap: Cap, now: float) -> _Window:
        key = (user, cap.seconds)
        window = self._windows.get(key)
        if window is None or now >= window.ends:
            if len(self._windows) >= self._sweep_at:
                self._windows = {at: one for at, one in self._windows.items() if now < one.ends}
                self._sweep_at = max(_FEW, 2 * len(self._windows))
            self._number += 1
            window = self._windows[key] = _Window(self._number, now + cap.seconds)
        return window

    async def reserve(self, user: str, caps: tuple[Cap, ...], wanted: int) -> Reservation:
        now = self._clock()
        windows = [self._window(user, cap, now) for cap in caps]
        tokens = wanted
        for cap, window in zip(caps, windows, strict=True):
            tokens = min(tokens, share(cap.tokens - window.used, wanted))
            if tokens <= 0:
                raise cap.spent(window.ends - now)
        for window in windows:
            window.used += tokens
        return Reservation(tokens, tuple(window.number for window in windows))

    async def settle(self, user: str, caps: tuple[Cap, ...], reservation: Reservation, used: int) -> None:
        for cap, number in zip(caps, reservation.windows, strict=True):
            window = self._windows.get((user, cap.seconds))
            if window is not None and window.number == number:
                window.used += used - reservation.tokens

    async def used(self, user: str, caps: tuple[Cap, ...]) -> list[int]:
        now = self._clock()
        found = [self._windows.get((user, cap.seconds)) for cap in caps]
        return [0 if window is None or now >= window.ends else window.used for window in found]


class Lease:
    """What one stream may use: reserved before, refunded after."""

    __slots__ = ("_caps", "_ledger", "_reservations", "_user", "granted")

    def __init__(self, ledger: Ledger, user: str, caps: tuple[Cap, ...]) -> None:
        self._ledger = ledger
        self._user = user
        self._caps = caps
        self._reservations: list[Reservation] = []
        self.granted = 0
        """Tokens that may be given out, in all."""

    async def more(self, wanted: int = BLOCK) -> None:
        """Reserve some more tokens, up to ``wanted``. Raises BudgetSpent or RateLimited when there are none."""
        reservation = await self._ledger.reserve(self._user, self._caps, wanted)
        self._reservations.append(reservation)
        self.granted += reservation.tokens
        if len(self._reservations) > 1:
            self._reservations = _joined(self._reservations)

    async def close(self, used: int) -> None:
        """The stream is over and has used ``used`` tokens. What it used beyond the lease is charged all the same."""
        reservations, self._reservations = self._reservations, []
        for at, reservation in enumerate(reservations, start=1):
            of_this = used if at == len(reservations) else min(used, reservation.tokens)
            used -= of_this
            await self._ledger.settle(self._user, self._caps, reservation, of_this)


def _joined(reservations: list[Reservation]) -> list[Reservation]:
    """Those of the same windows as one: a long stream keeps few of them."""
    *before, last, new = reservations
    if last.windows == new.windows:
        return [*before, Reservation(last.tokens + new.tokens, new.windows)]
    return reservations

"""Who ended a stream, and the counts over all streams that have ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rawstream.model import Outcome
from rawstream.settings.tables import ANYBODY

ENDED_BY: Final = {
    Outcome.COMPLETED: "source",
    Outcome.CLIENT_LEFT: "client",
    Outcome.CLIENT_STALLED: "client",
    Outcome.CLIENT_MISBEHAVED: "client",
    Outcome.SOURCE_FAILED: "source",
    Outcome.UPSTREAM_FAILED: "upstream",
    Outcome.UPSTREAM_IDLE: "upstream",
    Outcome.BUDGET: "server",
    Outcome.DEADLINE: "server",
    Outcome.SHUTDOWN: "server",
    Outcome.STOPPED: "operator",
}


OTHER: Final = "other"
"""Whom the users are counted under whom the configuration does not name."""


class UserTotals:
    """One user's, over all answers that have ended."""

    __slots__ = ("delivered", "refusals", "tokens")

    def __init__(self) -> None:
        self.tokens = 0
        """Generated."""
        self.delivered = 0
        """Of these, taken by the client's kernel. The rest was abandoned."""
        self.refusals: dict[str, int] = {}
        """Requests that a limit of the user's refused, by the error's code."""

    def spent(self, tokens: int, delivered: int) -> None:
        """One answer more has ended."""
        self.tokens += tokens
        self.delivered += delivered

    def refused(self, code: str) -> None:
        self.refusals[code] = self.refusals.get(code, 0) + 1


class Totals:
    """Counts over all streams that have ended."""

    __slots__ = ("bytes", "delivered", "outcomes", "tokens", "users", "waiting")

    def __init__(self, users: Iterable[str] = ()) -> None:
        """``users``: the names in the configuration."""
        self.users = {OTHER if name == ANYBODY else name: UserTotals() for name in users}
        self.tokens = 0
        self.delivered = 0
        self.bytes = 0
        self.waiting = {"source": 0.0, "client": 0.0, "network": 0.0}
        """Seconds waited, by whom for."""
        self.outcomes: dict[str, int] = {outcome.value: 0 for outcome in Outcome}

    def of_user(self, name: str) -> UserTotals:
        """The counts of the user of that name, or of all whom the configuration does not name."""
        found = self.users.get(name) or self.users.get(OTHER)
        if found is None:
            found = self.users[OTHER] = UserTotals()
        return found

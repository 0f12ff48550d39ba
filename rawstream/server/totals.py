"""Who ended a stream, and the counts over all streams that have ended."""

from __future__ import annotations

from typing import Final

from rawstream.model import Outcome

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


class Totals:
    """Counts over all streams that have ended."""

    __slots__ = ("bytes", "delivered", "outcomes", "tokens", "waiting")

    def __init__(self) -> None:
        self.tokens = 0
        self.delivered = 0
        self.bytes = 0
        self.waiting = {"source": 0.0, "client": 0.0, "network": 0.0}
        """Seconds waited, by whom for."""
        self.outcomes: dict[str, int] = {outcome.value: 0 for outcome in Outcome}

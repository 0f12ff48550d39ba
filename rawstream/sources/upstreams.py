"""One upstream with what is known of its health, and the settings that hold for it.

Rule 1: every attempt has a permit of the breaker, and hands it back with how it ended.
Rule 2: a change of the breaker is one line in the log.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, NamedTuple

import msgspec

from rawstream.errors import SettingsError
from rawstream.model import Request
from rawstream.settings import Settings, UpstreamSettings
from rawstream.sources import attempts
from rawstream.sources.breaker import Breaker, RetryBudget, State
from rawstream.sources.upstream import UpstreamSource

log = logging.getLogger("rawstream")


class Permit(NamedTuple):
    """For one attempt."""

    of_breaker: int
    again: bool
    """Has its request been there before?"""


@dataclasses.dataclass
class UpstreamCounters:
    """What one upstream was asked for and how it went, in plain numbers since the start."""

    requests: int = 0
    """Requests that went to it at least once."""
    attempts: int = 0
    failures: int = 0
    """Attempts and streams that failed through its fault."""
    retries: int = 0
    """Times a request came back to it."""
    fallbacks: int = 0
    """Requests that came to it because another upstream failed."""
    openings: int = 0
    """Times the breaker opened."""
    budget_refusals: int = 0


class Upstream:
    """One upstream with what is known of its health."""

    def __init__(self, own: UpstreamSettings, settings: Settings, now: float) -> None:
        """Raises SettingsError, naming the upstream, when its URL or its certificates are unusable."""
        self.name = own.name
        self.own = own
        self.timeout = own.first_token_timeout or settings.upstream_first_token_timeout
        try:
            self.source = UpstreamSource(settings_of(own, settings), own.name)
        except SettingsError as error:
            raise error if not settings.upstreams else SettingsError(f"upstream {own.name!r}: {error}") from None
        self.breaker = Breaker(settings.upstream_breaker_failures, settings.upstream_breaker_pause)
        self.budget = RetryBudget(settings.upstream_retry_budget, now)
        self.counters = UpstreamCounters()
        self._pause = settings.upstream_breaker_pause

    def asked(self, request: Request) -> Request:
        """The request as this upstream gets it."""
        model = self.own.model
        return request if model is None else msgspec.structs.replace(request, model=model)

    def admit(self, now: float, *, again: bool = False) -> Permit | None:
        """A permit for one attempt of a request, which may come ``again``; None: leave it alone for now."""
        state = self.breaker.state
        permit = self.breaker.admit(now)
        if self.breaker.state is not state:
            log.warning("upstream %s: its pause is over; one request tries it", self.name)
        return None if permit is None else Permit(permit, again)

    def answered(self, permit: Permit) -> None:
        """The answer to an attempt has begun."""
        state = self.breaker.state
        if state is not State.CLOSED:
            self.breaker.answered(permit.of_breaker)
            self._tell_closed(state)

    def ended(self, permit: Permit, now: float, error: BaseException | None) -> None:
        """An attempt, or the stream that came of it, ended like this; None: it was whole."""
        state = self.breaker.state
        failed = attempts.is_failure(error) if error is not None else False
        if failed is None:
            self.breaker.lost(permit.of_breaker)
        elif failed:
            assert error is not None
            self.counters.failures += 1
            self.breaker.failed(permit.of_breaker, now, again=permit.again)
            if self.breaker.state is State.OPEN and state is not State.OPEN:
                self.counters.openings = self.breaker.openings
                log.warning(
                    "upstream %s: left alone for %g s after %s; the last: %s",
                    self.name,
                    self._pause,
                    "failures in a row" if state is State.CLOSED else "it failed again",
                    attempts.cause(error),
                )
        else:
            self.breaker.well(permit.of_breaker)
            self._tell_closed(state)

    def _tell_closed(self, before: State) -> None:
        if self.breaker.state is State.CLOSED and before is not State.CLOSED:
            log.warning("upstream %s: it answers again", self.name)


def settings_of(own: UpstreamSettings, settings: Settings) -> Settings:
    """The settings that hold for one upstream."""
    changes: dict[str, Any] = {
        "upstream_connect_timeout": own.connect_timeout,
        "upstream_first_token_timeout": own.first_token_timeout,
        "upstream_idle_timeout": own.idle_timeout,
        "upstream_ca": own.ca,
    }
    return dataclasses.replace(
        settings,
        **{name: value for name, value in changes.items() if value is not None},
        upstreams=(),
        upstream=own.url,
        upstream_api_key=own.api_key,
        upstream_model=own.model or settings.upstream_model,
    )


def upstreams_of(settings: Settings) -> tuple[UpstreamSettings, ...]:
    """The upstreams that the settings name: several, or ``upstream`` alone."""
    if settings.upstreams or settings.upstream is None:
        return settings.upstreams
    return (UpstreamSettings(name="upstream", url=settings.upstream, api_key=settings.upstream_api_key),)

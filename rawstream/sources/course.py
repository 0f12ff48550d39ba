"""The attempts of one request: where it went, how that ended, and where it goes next.

Rule 1: an upstream that was not tried yet is gone to at once; going back to one waits, and takes from its budget.
Rule 2: nobody waits for what cannot help: longer than the request has left, or for an upstream that is left alone.
Rule 3: each further attempt is one line in the log, with the cause in our words.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

from rawstream.errors import RawstreamError, UpstreamUnavailable, UpstreamUnreachable
from rawstream.settings import Settings
from rawstream.sources import attempts
from rawstream.sources.upstreams import Permit, Upstream

log = logging.getLogger("rawstream")


class Course:
    """The attempts of one request so far, and where the next one goes."""

    def __init__(
        self, order: Sequence[Upstream], settings: Settings, clock: Callable[[], float], random: Callable[[], float]
    ) -> None:
        self._untried = list(order)
        self._tried: dict[Upstream, float] = {}
        """Each with the moment before which it does not want to be asked again."""
        self._trail: list[tuple[str, RawstreamError]] = []
        self._returns = 0
        self._withheld = False
        """Was there an attempt that a budget did not allow?"""
        self._most = 1 + settings.upstream_retries
        self._longest = settings.upstream_retry_wait
        self._clock = clock
        self._random = random

    def first(self) -> tuple[Upstream, Permit]:
        """Where to go first, with its permit. Raises UpstreamUnavailable when all are left alone."""
        now = self._clock()
        for upstream in self._untried:
            permit = upstream.admit(now)
            if permit is not None:
                self._begin(upstream)
                return upstream, permit
        soonest = min(upstream.breaker.wait(now) for upstream in self._untried)
        raise UpstreamUnavailable(
            "no upstream for this model is well at the moment",
            retry_after=float(max(1, math.ceil(soonest))),
            detail="left alone after failures: " + ", ".join(upstream.name for upstream in self._untried),
        )

    def admit(self, upstream: Upstream) -> Permit | None:
        """A permit for where ``next`` said to go; None: it is left alone by now."""
        return upstream.admit(self._clock(), again=upstream in self._tried)

    def failed(self, upstream: Upstream, error: RawstreamError) -> None:
        """The attempt there ended so."""
        self._trail.append((upstream.name, error))
        asked = attempts.retry_after(error, time.time())
        # To the end, so that whoever waits longest is the first of equals.
        self._tried.pop(upstream, None)
        if not (isinstance(error, UpstreamUnreachable) and error.lasting):
            self._tried[upstream] = self._clock() + (asked or 0.0)

    def next(self, left: float) -> tuple[Upstream, float] | None:
        """Where to go next, and after how many seconds, of which ``left`` remain in all; None: nowhere."""
        if len(self._trail) >= self._most or left <= 0:
            return None
        now = self._clock()
        for upstream in self._untried:
            if upstream.breaker.wait(now) <= 0:
                self._begin(upstream)
                upstream.counters.fallbacks += 1
                self._tell("falling back to %s", upstream.name)
                return upstream, 0.0
        jitter = attempts.full_jitter(self._returns, self._longest, self._random)
        for upstream, ready in sorted(self._tried.items(), key=lambda item: item[1]):
            least = max(0.0, ready - now)
            wait = max(least, jitter)
            if least > self._longest or wait >= left or upstream.breaker.wait(now) > wait:
                continue
            if not upstream.budget.take(now):
                upstream.counters.budget_refusals += 1
                self._withheld = True
                self._tell("%s is not tried again: its retry budget is spent", upstream.name)
                continue
            self._returns += 1
            upstream.counters.attempts += 1
            upstream.counters.retries += 1
            self._tell("trying %s again in %.3g s", upstream.name, wait)
            return upstream, wait
        return None

    def verdict(self) -> RawstreamError:
        """What the client is told. The course ends here."""
        trail, self._trail = self._trail, []  # an error's traceback leads here, and must not lead back to it
        error = attempts.final_error(trail, time.time())
        if self._withheld:
            # Its SDK would do what the budget is there to prevent.
            error.should_retry = False
        return error

    def _begin(self, upstream: Upstream) -> None:
        self._untried.remove(upstream)
        upstream.budget.request()
        upstream.counters.requests += 1
        upstream.counters.attempts += 1

    def _tell(self, what: str, *values: object) -> None:
        name, error = self._trail[-1]
        log.warning(
            f"upstream %s: %s; {what} (attempt %d of %d)",
            name,
            attempts.cause(error),
            *values,
            len(self._trail) + 1,
            self._most,
        )

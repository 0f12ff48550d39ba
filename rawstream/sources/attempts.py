"""Which upstreams a request may go to, whether it goes once more, and what is told in the end. Pure.

Rule 1: tried again is what no generation can have come of: not reached, 429, 5xx. Never what broke off midway, and
        never what the upstream says is not worth it (``x-should-retry: false``).
Rule 2: waits are random over their whole length (full jitter), so that many who failed together do not come back
        together. What the upstream asks for (``Retry-After``) is the least of them.
Rule 3: whoever hears of a failure after several attempts is told so, and that more of them would not help.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final

from rawstream.errors import (
    RawstreamError,
    UpstreamComplained,
    UpstreamFailed,
    UpstreamIdle,
    UpstreamRejected,
    UpstreamUnreachable,
)
from rawstream.settings.tables import pattern_of

_LONGEST_SAID: Final = 200
_NUMBER: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


# --- by model -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _pattern(written: str) -> re.Pattern[str]:
    return re.compile(pattern_of(written), re.DOTALL)


def rank(models: Sequence[str], name: str) -> int | None:
    """How closely ``models`` name it: 0 by its name, 1 by a pattern, 2 by ``*``; None: not at all."""
    if name in models:
        return 0
    if any(written != "*" and "*" in written and _pattern(written).fullmatch(name) for written in models):
        return 1
    return 2 if "*" in models else None


def closest(offers: Sequence[Sequence[str]], name: str) -> list[int]:
    """Indexes of those that name it most closely: a name goes before a pattern, and ``*`` comes last."""
    if len(offers) == 1:
        return [] if rank(offers[0], name) is None else [0]
    ranks = [rank(models, name) for models in offers]
    best = min((found for found in ranks if found is not None), default=None)
    return [] if best is None else [index for index, found in enumerate(ranks) if found == best]


def weighted_order(weights: Sequence[float], random: Callable[[], float]) -> list[int]:
    """Indexes in random order: each comes first with a probability in proportion to its weight; zeros come last.

    ``random`` gives numbers in [0, 1). (Efraimidis and Spirakis, 2006: sort by exponential variates.)
    """
    keys = [-math.log(1.0 - random()) / weight if weight > 0 else math.inf for weight in weights]
    return sorted(range(len(weights)), key=keys.__getitem__)


# --- once more? ---------------------------------------------------------------------------------------------


def is_retryable(error: BaseException) -> bool:
    """May the request go out again after this?"""
    if isinstance(error, UpstreamRejected):
        refused = any(name == "x-should-retry" and value == "false" for name, value in error.headers)
        return (error.status == 429 or error.status >= 500) and not refused
    return isinstance(error, UpstreamUnreachable)


def is_failure(error: BaseException) -> bool | None:
    """Does this end of an attempt speak against the upstream? False: it is well. None: nothing follows from it."""
    if isinstance(error, UpstreamRejected):
        return error.status >= 500
    if isinstance(error, UpstreamComplained):
        return None
    return True if isinstance(error, UpstreamFailed | UpstreamIdle) else None


def full_jitter(nth: int, longest: float, random: Callable[[], float]) -> float:
    """Seconds to wait before going back for the ``nth`` time (from 0): anything in [0, min(2**nth, longest)]."""
    return random() * min(2.0 ** min(nth, 64), longest)


def retry_after(error: BaseException, now: float) -> float | None:
    """Seconds that the upstream asks to wait: ``retry-after-ms``, ``Retry-After`` as seconds or as a date.

    ``now`` is the time of day (seconds since 1970). None: it asks for nothing that can be understood.
    RFC 9110 section 10.2.3.
    """
    told = dict(error.headers) if isinstance(error, UpstreamRejected) else {}
    milliseconds, written = told.get("retry-after-ms", "").strip(), told.get("retry-after", "").strip()
    if _NUMBER.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    if _NUMBER.fullmatch(written):
        return float(written)
    try:
        return max(0.0, parsedate_to_datetime(written).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


# --- what is told -------------------------------------------------------------------------------------------


def cause(error: BaseException) -> str:
    """An attempt's end in a few words for the log: nothing of what the upstream wrote, which may be anything."""
    if isinstance(error, UpstreamRejected):
        return f"status {error.status}"
    if isinstance(error, UpstreamComplained):
        return "an error told in its stream"
    return str(error)


def final_error(trail: Sequence[tuple[str, RawstreamError]], now: float) -> RawstreamError:
    """What the client is told after these attempts, (upstream, error) each: the last cause, and how many there were.

    One attempt alone is told as it was. Upstreams' names are for the log alone (``detail``).
    """
    last = trail[-1][1]
    if len(trail) == 1:
        return last
    message = f"the upstream failed after {len(trail)} attempts; the last: {last}"
    detail = "; ".join(f"{name}: {_said(error)}" for name, error in trail)
    error: RawstreamError
    if isinstance(last, UpstreamRejected):
        headers = tuple(header for header in last.headers if header[0] != "x-should-retry")
        error = UpstreamRejected(
            message, status=last.status, retry_after=retry_after(last, now), headers=headers, detail=detail
        )
    elif isinstance(last, UpstreamIdle):
        error = UpstreamIdle(message, status=last.status, code=last.code, detail=detail)
    else:
        error = UpstreamFailed(message, status=last.status, code=last.code, detail=detail)
    error.should_retry = False
    return error


def _said(error: RawstreamError) -> str:
    said = cause(error) + (f" ({error.detail})" if error.detail else "")
    return said if len(said) <= _LONGEST_SAID else said[:_LONGEST_SAID] + "…"

"""What is counted that is no stream's own: answers by status, and refusals by reason.

Rule 1: the values of a label are a closed set, known at the start: what is not in it counts as ``other``.
Rule 2: every value is there from the start, at 0: a rate over what has just begun is then right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rawstream.errors import LimitReached, RawstreamError

OTHER: Final = "other"
REASONS: Final = (
    "too_many_streams",
    "memory_exhausted",
    "rate_limit_exceeded",
    "insufficient_quota",
    "invalid_api_key",
    "model_not_allowed",
    "upstream_unavailable",
    "shutdown",
    OTHER,
)
"""Why a request was refused though it made sense: the codes of the errors that told so."""
_CLASSES: Final = ("2xx", "3xx", "4xx", "5xx")


def by_reason(codes: Mapping[str, int]) -> dict[str, int]:
    """Counts by an error's code as counts by reason."""
    counts = dict.fromkeys(REASONS, 0)
    for code, count in codes.items():
        counts[code if code in counts else OTHER] += count
    return counts


class Counts:
    """Those of one process."""

    __slots__ = ("answers", "refusals")

    def __init__(self) -> None:
        self.answers = dict.fromkeys(_CLASSES, 0)
        """Requests whose answer is over, by the class of its status."""
        self.refusals = dict.fromkeys(REASONS, 0)

    def answered(self, status: int) -> None:
        """A request is over; ``status`` is that of its answer, 0 when its client left before there was any."""
        if status:
            self.answers[_CLASSES[status // 100 - 2]] += 1

    def refused(self, error: RawstreamError) -> None:
        """A request was answered with ``error`` before it came to anything. One that made no sense does not count."""
        if error.code in self.refusals:
            self.refusals[error.code] += 1
        elif isinstance(error, LimitReached):
            self.refusals[OTHER] += 1

"""Answers that are not streamed, while they are made: admitted as streams are, and ended as they are."""

from __future__ import annotations

from rawstream.errors import RawstreamError
from rawstream.flow.interrupt import Interruption
from rawstream.limits.admission import Admission


class WholeAnswers:
    """Those under way in one process."""

    __slots__ = ("_admission", "_stopping", "_under_way")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._under_way: set[Interruption] = set()
        self._stopping: RawstreamError | None = None

    def __len__(self) -> int:
        return len(self._under_way)

    def enter(self, interruption: Interruption) -> None:
        """One more. Raises what admission raises, and the reason of the end once ``end_all`` was called."""
        if self._stopping is not None:
            raise self._stopping
        self._admission.enter()
        self._under_way.add(interruption)

    def leave(self, interruption: Interruption) -> None:
        """It is over."""
        self._under_way.discard(interruption)
        self._admission.leave()

    def end_all(self, reason: RawstreamError) -> None:
        """End them all for ``reason``, and let no other one begin."""
        self._stopping = reason
        for interruption in list(self._under_way):
            interruption.interrupt(reason)

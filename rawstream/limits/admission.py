"""Who is let in: streams, connections, memory. Counting only; nothing here waits.

Rule 1: what was entered is left exactly once, however it ends; the counts are 0 when nothing runs.
Rule 2: memory is relieved in a stated order: refuse new streams, then pause sources, then cut the largest stalled
        stream. Each step has its own mark, and is undone when the level falls below it again.
"""

from __future__ import annotations

import enum
from typing import Final

from rawstream.errors import MemoryExhausted, TooManyStreams

PAUSE_AT: Final = 1.1
CUT_AT: Final = 1.25


class Relief(enum.IntEnum):
    """What the memory level asks for. Each step includes the ones before it."""

    NONE = 0
    REFUSE = 1
    PAUSE = 2
    CUT = 3


def relief(buffered: int, limit: int) -> Relief:
    """The step that ``buffered`` bytes ask for, under a limit of ``limit`` bytes."""
    if buffered >= limit * CUT_AT:
        return Relief.CUT
    if buffered >= limit * PAUSE_AT:
        return Relief.PAUSE
    if buffered >= limit:
        return Relief.REFUSE
    return Relief.NONE


class Admission:
    """Counts streams against a limit, and remembers the memory level."""

    __slots__ = ("max_streams", "opened", "peak", "refused", "relief", "streams")

    def __init__(self, max_streams: int) -> None:
        self.max_streams = max_streams
        self.streams = 0
        self.peak = 0
        self.opened = 0
        self.refused = 0
        self.relief = Relief.NONE

    def enter(self) -> None:
        """One stream more. Raises ``TooManyStreams`` or ``MemoryExhausted``; then nothing was entered."""
        if self.streams >= self.max_streams:
            self.refused += 1
            raise TooManyStreams(f"{self.max_streams} streams are open, which is the most this server takes; try again")
        if self.relief >= Relief.REFUSE:
            self.refused += 1
            raise MemoryExhausted("too much is buffered for slow readers at the moment; try again")
        self.streams += 1
        self.opened += 1
        self.peak = max(self.peak, self.streams)

    def leave(self) -> None:
        """One stream less."""
        if self.streams <= 0:
            raise RuntimeError("a stream left that never entered")
        self.streams -= 1

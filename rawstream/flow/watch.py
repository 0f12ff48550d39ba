"""The clocks of one stream: silence (heartbeat), a client that takes nothing (stall), and a whole life.

Rule 1: arithmetic only. ``now`` is an argument; who sleeps and who acts is somebody else's business.
Rule 2: stalled means: bytes wait for the client, and it took *none* for ``stall_timeout`` seconds. A slow reader
        that takes something is not stalled, however slow.
Rule 3: a heartbeat answers silence on the wire, whatever the cause; while paused it cannot be sent, and is not owed.
"""

from __future__ import annotations

import enum

NEVER = float("inf")


class Finding(enum.Enum):
    FINE = "fine"
    SILENT = "silent"
    STALLED = "stalled"
    TOO_LONG = "too_long"


class StreamWatch:
    """All times in seconds on one monotonic clock."""

    __slots__ = ("_end", "_heartbeat", "_stall_timeout", "_taken", "_taken_at", "last_write")

    def __init__(self, now: float, *, heartbeat: float, stall_timeout: float, stream_timeout: float) -> None:
        """``heartbeat`` 0 means none."""
        self.last_write = now
        self._heartbeat = heartbeat or NEVER
        self._stall_timeout = stall_timeout
        self._end = now + stream_timeout
        self._taken = -1
        self._taken_at = now

    def look(self, now: float, *, taken: int, waiting: int) -> Finding:
        """What is wrong at ``now``, when the client has taken ``taken`` bytes in all and ``waiting`` wait for it?"""
        if now >= self._end:
            return Finding.TOO_LONG
        if waiting == 0 or taken != self._taken:
            self._taken = taken
            self._taken_at = now
        elif now - self._taken_at >= self._stall_timeout:
            return Finding.STALLED
        return Finding.SILENT if now - self.last_write >= self._heartbeat else Finding.FINE

    def next_look(self, now: float) -> float:
        """When to look again: often enough to see a stall within 1.25 times its timeout."""
        beat = self.last_write + self._heartbeat
        if beat <= now:  # it was due, and could not be sent
            beat = now + self._heartbeat
        return min(self._end, beat, now + self._stall_timeout / 4)

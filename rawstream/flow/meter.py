"""What one stream counts: tokens, bytes, writes, and for whom it waited.

Rule 1: plain numbers, and nothing that refers to anything: a meter outlives its stream at no cost.
Rule 2: what is usual costs least. A write that did not hold the loop for long (``QUICK_HOLD``) is in the first bucket
        of its histogram, and a token that came at its stream's usual pace in the same bucket as those before: both are
        brought there when somebody looks (``settle``), with all sums.
"""

from __future__ import annotations

from bisect import bisect_left
from math import inf

from rawstream.flow.timings import INTER_TOKEN, QUICK_HOLD, SHORT, Timings


class Meter:
    """The counters of one stream. Seconds and bytes."""

    __slots__ = (
        "bytes",
        "client_seconds",
        "committed",
        "first_write_at",
        "gap_above",
        "gap_bucket",
        "gap_other",
        "gap_up_to",
        "held_seconds",
        "held_since",
        "last_token_at",
        "source_seconds",
        "started_at",
        "timed_until",
        "tokens",
        "tokens_timed",
        "tokens_written",
        "waiting_for",
        "waiting_since",
        "writes",
        "writes_timed",
    )

    def __init__(self, now: float) -> None:
        self.started_at = now
        self.committed = False
        """Has the head left, by token or heartbeat? After that a failure can be told in-stream only."""
        self.tokens = 0
        """Tokens taken from the source that had something to show."""
        self.tokens_written = 0
        """Of these, how many were written; up to date after each write."""
        self.held_since = now
        """When the stream got the loop last: what it writes next came then, or later."""
        self.last_token_at = now
        """When tokens were written last."""
        self.tokens_timed = 0
        """Of the tokens written, those that the timings know of; the others were usual."""
        self.writes_timed = 0
        """The same of the writes; those without a token are none of theirs."""
        self.gap_bucket = 0
        """Where in the histogram its usual tokens are: those that come ``gap_above`` to ``gap_up_to`` seconds apart."""
        self.gap_above = -1.0
        self.gap_up_to = INTER_TOKEN[0]
        self.gap_other = -1
        """Where the last unusual one is."""
        self.timed_until = now
        """When the last token was written whose time is in their sums."""
        self.held_seconds = 0.0
        """How long the loop was held for writes that are not in their sums."""
        self.bytes = 0
        """Bytes of frames written."""
        self.writes = 0
        self.first_write_at: float | None = None
        """When the first token was written."""
        self.waiting_for: str | None = None
        """'source', 'client' or None (running)."""
        self.waiting_since = now
        self.source_seconds = 0.0
        self.client_seconds = 0.0

    def is_committed(self) -> bool:
        return self.committed

    def wait(self, what: str, now: float) -> None:
        self.waiting_for = what
        self.waiting_since = now

    def waited(self, now: float) -> None:
        if self.waiting_for == "source":
            self.source_seconds += now - self.waiting_since
        elif self.waiting_for == "client":
            self.client_seconds += now - self.waiting_since
        self.waiting_for = None

    def seconds(self, now: float) -> tuple[float, float]:
        """Seconds waited for (source, client) so far, the wait that is on included."""
        waiting = now - self.waiting_since
        return (
            self.source_seconds + (waiting if self.waiting_for == "source" else 0.0),
            self.client_seconds + (waiting if self.waiting_for == "client" else 0.0),
        )

    def time_write(self, timings: Timings, now: float) -> None:
        """Count how long a write at ``now`` took, and its tokens. What is usual is left to ``settle``."""
        tokens = self.tokens
        written = self.tokens_written
        if tokens == written:
            self.writes_timed += 1  # the frames of something else
            return
        if written:
            gap = now - self.last_token_at
            if tokens - written > 1:
                gap /= tokens - written
            if not self.gap_above < gap <= self.gap_up_to:
                self._unusual(timings, gap, tokens - written)
        else:
            timings.first_token.add(now - self.started_at)
            self.tokens_timed = 1  # it follows no other
            self.timed_until = now
        held = now - self.held_since
        self.held_seconds += held
        if held > QUICK_HOLD:
            self.writes_timed += 1
            timings.added.counts[bisect_left(SHORT, held)] += 1
            lately = timings.held
            if held > lately.largest or now >= lately.turns_at:
                lately.add(held, now)
        self.tokens_written = tokens
        self.last_token_at = now

    def _unusual(self, timings: Timings, gap: float, count: int) -> None:
        """``count`` tokens came at another pace than the usual one; the second time in a row that is the usual one."""
        bucket = bisect_left(INTER_TOKEN, gap)
        if bucket != self.gap_other:
            self.gap_other = bucket
            self.tokens_timed += count
            timings.inter_token.counts[bucket] += count
            return
        self.settle(timings)
        self.gap_bucket = bucket
        self.gap_above = INTER_TOKEN[bucket - 1] if bucket else -1.0
        self.gap_up_to = INTER_TOKEN[bucket] if bucket < len(INTER_TOKEN) else inf

    def settle(self, timings: Timings) -> None:
        """Bring the timings up to date: usual writes and their tokens, and sums. Whenever they are looked at."""
        added, inter_token = timings.added, timings.inter_token
        added.counts[0] += self.writes - self.writes_timed
        added.total += self.held_seconds
        self.writes_timed = self.writes
        self.held_seconds = 0.0
        inter_token.counts[self.gap_bucket] += self.tokens_written - self.tokens_timed
        inter_token.total += self.last_token_at - self.timed_until
        self.tokens_timed = self.tokens_written
        self.timed_until = self.last_token_at

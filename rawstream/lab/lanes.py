"""A lane of the lab: readers of one discipline, and what is measured of them.

Rule 1: every figure is read from the streams' own counters, the transports, and the kernel, at the moment it is asked
        for. One is computed, for want of a counter: how many tokens the bytes make that ``/chat-whole`` has sent.
Rule 2: sums over the lane's readers; what cannot be measured on this system is null.
"""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

from rawstream.lab.pace import Pace
from rawstream.lab.readers import Reader
from rawstream.model import Outcome
from rawstream.server.stream import Stream

PATHS: Final = {"whole": "/chat-whole", "eager": "/chat-broken", "drain": "/chat-drain", "rawstream": "/chat"}
"""The disciplines, and where they are asked for."""

PLACES: Final = ("source", "transport", "kernel_unsent", "kernel_unacked", "client_kernel")
"""Where bytes can wait, in the order in which they pass."""


class Lane:
    """The readers of one discipline in one run."""

    def __init__(self, name: str, limits: dict[str, int | None]) -> None:
        self.name = name
        self.limits = limits
        """Bounds in bytes, by place, for all of its readers together; None: there is none."""
        self.readers: list[Reader] = []
        """All that there ever were, the ones that left included."""
        self.peak: dict[str, int | None] = dict.fromkeys((*PLACES, "read"), 0)
        self.left_at: float | None = None
        """When the readers left; None: they are there."""
        self.cancel_seconds: float | None = None
        """From the readers' leaving until the last source was closed."""
        self._paces = {"made": Pace(), "read": Pace()}

    # --- what happens to it ----------------------------------------------------------------------------------

    def leave(self) -> None:
        """All readers close their sockets, as closed tabs do."""
        if any(reader.open for reader in self.readers):
            self.left_at = monotonic()
            self.cancel_seconds = None
            for reader in self.readers:
                reader.close()

    def stream_ended(self, reader: Reader, outcome: str, now: float) -> None:
        """A stream of this lane is over: its source is closed."""
        reader.outcome = outcome
        if self.left_at is not None and not self.live():
            self.cancel_seconds = now - self.left_at

    # --- what is seen of it ----------------------------------------------------------------------------------

    def live(self) -> list[Stream]:
        """The streams that run."""
        return [reader.stream for reader in self.readers if reader.stream is not None and reader.outcome is None]

    @property
    def over(self) -> bool:
        """Every answer has ended, and its reader has all of it."""
        return all(reader.at_end or reader.counter.done or not reader.open for reader in self.readers)

    def tokens(self) -> dict[str, int]:
        """Tokens made, written (given to the transport) and read, in all."""
        made = written = 0
        for reader in self.readers:
            if reader.stream is not None:
                meter = reader.stream.meter
                made += meter.tokens
                written += meter.tokens if reader.stream.held is None else _written(reader.stream)
        return {"made": made, "written": written, "read": sum(reader.counter.tokens for reader in self.readers)}

    def bytes(self) -> dict[str, int | None]:
        """Bytes by place, and those read so far."""
        sums: dict[str, int | None] = dict.fromkeys(PLACES, 0)
        for reader in self.readers:
            for place, size in _held(reader).items():
                before = sums[place]
                sums[place] = None if size is None or before is None else before + size
        sums["client_kernel"] = sum(reader.waiting() for reader in self.readers)
        sums["read"] = sum(reader.counter.bytes for reader in self.readers)
        for place, size in sums.items():
            peak = self.peak[place]
            self.peak[place] = None if size is None or peak is None else max(peak, size)
        return sums

    def waiting_for(self, live: list[Stream]) -> str | None:
        """What most of its streams wait for."""
        waits = [stream.waiting_for() for stream in live]
        return max(set(waits), key=waits.count) if waits else None

    def state(self, live: list[Stream], waiting_for: str | None) -> str:
        """'running', 'waiting', 'cancelled', 'done' or 'capped'."""
        if live:
            return "waiting" if waiting_for in ("client", "network") else "running"
        outcomes = {reader.outcome for reader in self.readers if reader.outcome is not None}
        if not outcomes:
            return "running"
        if Outcome.BUDGET.value in outcomes:
            return "capped"
        return "done" if outcomes == {Outcome.COMPLETED.value} else "cancelled"

    def sample(self, now: float) -> dict[str, Any]:
        """All of it, as ``/lab/runs/{id}/events`` shows it."""
        tokens = self.tokens()
        sizes = self.bytes()
        live = self.live()
        waiting_for = self.waiting_for(live)
        shown: dict[str, Any] = {
            "lane": self.name,
            "readers": sum(reader.open for reader in self.readers),
            "state": self.state(live, waiting_for),
            "waiting_for": waiting_for,
            "tokens": tokens,
            "rate": {name: pace.look(now, tokens[name]) for name, pace in self._paces.items()},
            "bytes": sizes,
            "peak": dict(self.peak),
            "limits": self.limits,
            "cancel_seconds": self.cancel_seconds,
            "source_open": bool(live),
        }
        shown["why"] = self._why(shown)
        return shown

    def _why(self, shown: dict[str, Any]) -> str:
        tokens, sizes = shown["tokens"], shown["bytes"]
        ahead = tokens["made"] - tokens["read"]
        kernel = (sizes["kernel_unsent"] or 0) + (sizes["kernel_unacked"] or 0)
        state = shown["state"]
        gone = self.left_at is not None and shown["readers"] == 0
        if state == "capped":
            return f"cut at the lab's memory cap, {ahead:,} tokens ahead of its reader"
        if state == "done":
            return (
                "the answer is whole"
                if not ahead
                else f"all is written; {_size(kernel)} of it lie in the kernel, unread"
            )
        if state == "cancelled":
            if self.cancel_seconds is not None:
                return f"the source was closed {self.cancel_seconds * 1000:.3g} ms after the reader had left"
            outcomes = sorted({reader.outcome for reader in self.readers if reader.outcome is not None})
            return f"ended: {', '.join(outcomes)}"
        if gone:
            return "the reader has left and nobody noticed: tokens are still made, for nobody"
        if self.name == "whole" and tokens["read"] == 0:
            return f"nothing is sent before all is there: {tokens['made']:,} tokens are kept in memory"
        if self.name == "eager" and sizes["transport"] > 64 * 1024:
            return f"nobody waits: {_size(sizes['transport'])} in the transport buffer, {ahead:,} tokens ahead"
        if state == "waiting" and self.name == "drain":
            return f"drain() waits at last, {ahead:,} tokens ahead: {_size(kernel)} of them lie in the kernel"
        if state == "waiting":
            what = "network" if shown["waiting_for"] == "network" else "reader"
            return f"the source waits for the {what}, {ahead:,} tokens ahead of what was read"
        if shown["waiting_for"] == "source":
            return f"as fast as its source; {ahead:,} tokens ahead of what was read"
        return f"running, {ahead:,} tokens ahead of what was read"


def _held(reader: Reader) -> dict[str, int | None]:
    """Bytes on the server's side, by place. An answer that has ended may still lie in the transport and the kernel."""
    connection = reader.connection
    stream = reader.stream
    source = 0
    if stream is not None and reader.outcome is None:
        source = stream.source_buffered() + (0 if stream.held is None else stream.held())
    if connection is None or connection.gate.reason is not None:
        return {"source": source}
    queue = connection.kernel_queue()
    return {
        "source": source,
        "transport": connection.transport.get_write_buffer_size(),
        "kernel_unsent": None if queue is None else queue.unsent,
        "kernel_unacked": None if queue is None else queue.unacked,
    }


def _written(stream: Stream) -> int:
    """Tokens given to the transport by a stream that collects its answer first: its bytes, in tokens."""
    held = 0 if stream.held is None else stream.held()
    size = stream.meter.bytes
    return round(stream.meter.tokens * size / (held + size)) if size else 0


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 1024:.0f} KiB"

"""A generation that outlives its connection: tokens go into a replay log, and readers come and go.

Rule 1: the demand is the readers'. The source is asked for more when a reader that has everything so far has room for
        more; the fastest sets the pace. While nobody reads, it is asked until the window is full, and no further.
Rule 2: when the last reader leaves, the policy decides: cancelled at once, cancelled after a grace, or brought to its
        end. A stop ends it for everybody, at any time.
Rule 3: it ends once, in one outcome; its log is kept for those who come back.

A reader is an ordinary stream whose source is the log (``LogStream``): permission, stalls, heartbeats, deadlines and
the books are those of every other stream.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Protocol

from rawstream.errors import (
    BudgetSpent,
    ClientDisconnected,
    RateLimited,
    RawstreamError,
    ServerShutdown,
    SourceFailed,
    StreamDeadline,
    StreamStopped,
)
from rawstream.flow.interrupt import Interruption
from rawstream.flow.meter import Meter
from rawstream.flow.pump import produce
from rawstream.flow.signals import Signals
from rawstream.model import Dialect, Outcome, Request, TokenStream, Trace
from rawstream.replay.log import Log, Shelf
from rawstream.server.ids import random_id
from rawstream.server.leaving import OnDisconnect
from rawstream.server.log_stream import AwayReader, LogStream, Reader, Shorten
from rawstream.server.spending import Tab
from rawstream.settings import Settings

_CLOSING_GRACE: Final = 2.0
"""Seconds that a source may take to clean up."""


class Ended(Protocol):
    """Told when a generation is over."""

    async def __call__(self, generation: Generation) -> None: ...


class Generation:
    """One run of a source, and its log."""

    __slots__ = (
        "__weakref__", "_away", "_committed", "_demand", "_end_of_life", "_on_end", "_pausing", "_readers", "_seen",
        "_task", "_timer", "_tokens", "_waiting", "came_at", "dialect", "dialect_of", "ended_at", "error",
        "had_readers", "id", "interruption", "log", "meter", "nobody_returns", "outcome", "path", "policy",
        "public_id", "request_id", "seen", "settings", "signals", "tab", "trace",
    )  # fmt: skip

    def __init__(
        self,
        request: Request,
        open_source: Callable[[Request], TokenStream],
        dialect_of: Callable[[str], Dialect],
        settings: Settings,
        policy: OnDisconnect,
        *,
        on_end: Ended,
        shelf: Shelf | None = None,
        tab: Tab | None = None,
        path: str = "",
        request_id: str = "",
        pausing: asyncio.Event | None = None,
        trace: Trace | None = None,
        stream_id: str | None = None,
    ) -> None:
        """Nothing runs before ``start()``. What ``open_source`` and ``dialect_of`` raise leaves nothing to undo.

        ``path`` and ``request_id``: of the request that it was begun with; ``pausing``: when given and not set, the
        source waits whoever reads; ``trace``: where it is followed.
        """
        self.id = request.id = stream_id or random_id(16)
        """The secret id: who has it may resume and stop it, if it is the same user."""
        self.public_id = random_id(4)
        self.path = path
        self.request_id = request_id
        self.tab = tab
        self.trace = trace
        self.policy = policy
        self.settings = settings
        self.dialect_of = dialect_of
        self.log = Log(settings.replay_window if shelf is None else shelf)
        self.meter = Meter(monotonic())
        self.came_at = 0.0
        request.signals = signals = Signals()
        self.signals = weakref.ref(signals)
        request.is_committed = self.is_committed
        self.dialect = dialect_of(self.id)
        self.interruption = Interruption()
        self.outcome: Outcome | None = None
        """How it ended; None: it runs."""
        self.error: RawstreamError | None = None
        self.ended_at = 0.0
        self.seen = False
        """Has somebody been told how it ended?"""
        self.nobody_returns = False
        """Set where nobody can come back any more: a grace is none."""
        tokens = open_source(request)
        if tab is not None:
            tokens = tab.watch(tokens, self.meter)
        self._tokens: TokenStream | None = tokens if trace is None else trace.watch(tokens)
        self._on_end = on_end
        self._pausing = pausing
        self._readers: set[Reader] = set()
        self._away: set[AwayReader] = set()
        """Those of them in other processes."""
        self.had_readers = 0
        """Readers that came, in all."""
        self._waiting: set[LogStream] = set()
        """Readers that have all there is, and room for more."""
        self._seen = 0
        """How far any reader came that has left."""
        self._committed = False
        self._demand: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._end_of_life: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    # --- its life

    def start(self) -> None:
        """Let it run, on the running loop."""
        loop = asyncio.get_running_loop()
        timeout = self.settings.stream_timeout
        late = StreamDeadline(f"the stream ran for {timeout:g} s")
        self._end_of_life = loop.call_later(timeout, self.interruption.interrupt, late)
        self._task = loop.create_task(self._run(), name="generation")

    @property
    def user(self) -> str | None:
        """Whom it was made for; None: nobody was named."""
        return None if self.tab is None else self.tab.user.name

    @property
    def mailbox(self) -> Signals | None:
        """Where its source reads signals; None: it has let go of it, or never wanted any."""
        return self.signals()

    @property
    def running(self) -> bool:
        return self.outcome is None

    def stop(self, reason: StreamStopped) -> None:
        """End it for everybody."""
        self.interruption.interrupt(reason)

    @property
    def task(self) -> asyncio.Task[None] | None:
        """What runs it; None: it was not started, or is over."""
        return self._task

    async def ended(self) -> None:
        """Wait for its end. Cancel-safe."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        settings = self.settings
        error: RawstreamError | None = None
        last = b""
        # Dropped with this frame: the source's request refers to us, and nobody would free the two at once.
        tokens, self._tokens = self._tokens, None
        assert tokens is not None
        try:
            async with self.interruption:
                try:
                    last = await produce(
                        tokens,
                        self.dialect,
                        self,
                        self.meter,
                        write_size=settings.write_size,
                        hold=settings.hold,
                    )
                finally:
                    async with asyncio.timeout(_CLOSING_GRACE):
                        await tokens.aclose()
        except RawstreamError as reason:
            error = reason
        except asyncio.CancelledError:
            error = ServerShutdown("the server was aborted")
            raise
        except Exception as failure:
            error = SourceFailed(f"the source failed: {type(failure).__name__}", detail=repr(failure)[:500])
        finally:
            del tokens
            self._end(error, last)
            await self._on_end(self)
            self._task = None

    def _end(self, error: RawstreamError | None, last: bytes) -> None:
        for timer in (self._timer, self._end_of_life):
            if timer is not None:
                timer.cancel()
        self._timer = self._end_of_life = None
        if (mailbox := self.mailbox) is not None:
            mailbox.close()
        self.is_committed()
        self.error = error
        self.outcome = Outcome.COMPLETED if error is None else Outcome(error.outcome)
        self.ended_at = monotonic()
        if error is None:
            self._finish(last + self.dialect.terminal())
        elif isinstance(error, StreamStopped):
            self._finish(self.dialect.stopped(str(error)))
        elif self.tab is not None and self.tab.lease is not None and isinstance(error, BudgetSpent | RateLimited):
            self._finish(last + self.dialect.terminal("length", error.code))
        else:
            self.log.fail(error)
            error.__traceback__ = error.__context__ = error.__cause__ = None

    def _finish(self, last: bytes) -> None:
        self.log.finish(self._opening() + last, self._keep)

    def snapshot(self, now: float) -> dict[str, Any]:
        """What ``/debug/streams`` shows of it while nobody reads it."""
        meter = self.meter
        source, readers = meter.seconds(now)
        return {
            "id": self.public_id,
            "path": self.path,
            "dialect": self.dialect.name,
            "state": "no reader",
            "tokens": meter.tokens,
            "bytes": meter.bytes,
            "waiting_for": meter.waiting_for,
            "seconds": {"source": round(source, 3), "client": round(readers, 3), "network": 0.0},
            "age": round(now - meter.started_at, 3),
            "buffered": {"source": self.log.held, "transport": 0, "kernel_unsent": 0, "kernel_unacked": 0},
        }

    # --- what it writes to: flow.pump.Sink

    @property
    def room(self) -> int:
        """Bytes that may be put now: a write's for a reader that waits; without readers as the policy has it."""
        if self._pausing is not None and not self._pausing.is_set():
            return 0
        if self._waiting:
            return self.settings.write_high
        if self._away:
            return max(reader.may_have for reader in self._away) - self.log.end
        if self._readers or self.policy.kind == "cancel":
            return 0
        if self.policy.kind == "finish":
            return self.settings.write_high
        return max(0, self.log.window - (self.log.end - self._seen))

    async def wait_room(self) -> int:
        """Wait until a reader asks, or the last one has left. Cancel-safe."""
        meter, pausing = self.meter, self._pausing
        while (room := self.room) <= 0:
            meter.wait("client", monotonic())
            try:
                if pausing is not None and not pausing.is_set():
                    await pausing.wait()
                else:
                    self._demand = asyncio.get_running_loop().create_future()
                    await self._demand
            finally:
                meter.waited(monotonic())
                self._demand = None
        return room

    def put_nowait(self, frames: bytes, now: float) -> bool:
        meter = self.meter
        if meter.first_write_at is None:
            meter.first_write_at = now
            frames = self._opening() + frames
        meter.writes += 1
        meter.bytes += len(frames)
        self.came_at = meter.held_since
        self.log.append(frames, self._keep)
        pausing = self._pausing
        if self._waiting and (pausing is None or pausing.is_set()):
            return True
        return self.room > 0

    def _keep(self) -> int | None:
        """From where on the log lets go of nothing: what no reader has had, where one is still expected."""
        if self.policy.kind == "finish" and not self._readers:
            return None
        return self._furthest

    @property
    def _furthest(self) -> int:
        """How far any reader has come."""
        furthest = self._seen
        for reader in self._readers:
            if reader.position > furthest:
                furthest = reader.position
        return furthest

    def _opening(self) -> bytes:
        """The frames that come before the first token, once."""
        return b"" if self.log.events else self.dialect.head()

    def is_committed(self) -> bool:
        """Has any reader been told 200?"""
        if not self._committed:
            self._committed = any(reader.is_committed() for reader in self._readers)
        return self._committed

    # --- its readers

    def read_from(self, position: int, request: Request, shorten: Shorten | None = None) -> LogStream:
        """A new reader of what the log has from ``position`` on. It must be closed, whether or not it ever reads."""
        reader = LogStream(self, position, request.is_committed, shorten)
        self._come(reader)
        return reader

    def _come(self, reader: Reader) -> None:
        self._readers.add(reader)
        self.had_readers += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def comes(self, reader: AwayReader) -> None:
        """A reader in another process: whoever brings it moves its position, and calls ``wake`` then."""
        self._away.add(reader)
        self._come(reader)
        self.wake()

    @property
    def readers(self) -> int:
        return len(self._readers)

    @property
    def delivered(self) -> int:
        """Tokens that some reader was given, about: as many as its part of the bytes."""
        if not self.log.end:
            return 0
        return min(self.meter.tokens, round(self.meter.tokens * self._furthest / self.log.end))

    def asks(self, reader: LogStream) -> None:
        """``reader`` has all there is, and room for more."""
        self._waiting.add(reader)
        self.wake()

    def has_more(self, reader: LogStream) -> None:
        """There is something for ``reader`` that it was not passed."""
        self._waiting.discard(reader)

    def leaves(self, reader: Reader) -> None:
        """``reader`` is gone. Idempotent."""
        if reader not in self._readers:
            return
        self.is_committed()
        self._readers.discard(reader)
        self._waiting -= {reader}
        self._away -= {reader}
        self._seen = max(self._seen, reader.position)
        if not self._readers and self.running:
            self._left_alone()

    def last_call(self) -> None:
        """Nobody can come back any more: without a reader it ends, unless it is to be brought to its end."""
        self.nobody_returns = True
        if not self._readers and self.running:
            self._left_alone()

    def _left_alone(self) -> None:
        if self.policy.kind != "finish":
            left = ClientDisconnected("the last reader left")
            if self.policy.kind == "cancel" or self.nobody_returns:
                self.interruption.interrupt(left)
            else:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self.policy.seconds, self.interruption.interrupt, left)
        self.wake()

    def wake(self) -> None:
        """Look again whether there is room."""
        demand = self._demand
        if demand is not None and not demand.done():
            demand.set_result(None)

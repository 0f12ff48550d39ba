"""Runs of the lab: the same source and the same slow reader, by several disciplines side by side, in this process.

Rule 1: a run is bounded: in readers, in time, in memory (``lab_memory``), and in how many there are at once.
Rule 2: it goes over real sockets to this very server; its settings are those of its own connections alone.
Rule 3: whatever ends it, its sockets are closed and its streams are stopped, the eager ones too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any, Final, cast

import msgspec

from rawstream.errors import BadRequest, RawstreamError, StreamStopped
from rawstream.flow import kernel
from rawstream.flow.watch import StreamWatch
from rawstream.lab.lanes import PATHS, Lane
from rawstream.lab.readers import Reader
from rawstream.lab.registry import Registry
from rawstream.lab.run_spec import RunChange, RunSpec, TunedHost, tuned
from rawstream.limits.users import User
from rawstream.model import StreamRecord
from rawstream.server.app import App
from rawstream.server.connection import Connection
from rawstream.server.endpoints.events import resident
from rawstream.server.ids import random_id

MOST_RUNS: Final = 4
"""Runs at a time."""
ABANDONED: Final = 10.0
"""Seconds after which a run ends that somebody watched, and nobody does any more."""
_TICK: Final = 0.025
"""Seconds between two steps of the readers."""
_CONNECT: Final = 5.0
_MOST_RECONNECTS: Final = 20
_DRAIN_HIGH: Final = 64 * 1024


class Run:
    """One experiment under way. ``start()``, and then it ends by itself, or by ``close()``."""

    def __init__(self, app: App, spec: RunSpec, user: User | None = None) -> None:
        """``user``: for whom its readers ask."""
        self.id = random_id(8)
        self.spec = spec
        self.settings = tuned(app.settings, spec)
        self._app = app
        self._user = user
        self.lanes = {name: Lane(name, self._limits(name)) for name in dict.fromkeys(spec.lanes)}
        self.started_at = monotonic()
        self.over_at: float | None = None
        self.events: deque[dict[str, Any]] = deque(maxlen=30)
        self.read_rate = spec.read_rate
        self.stalled = False
        self._of: dict[Connection, tuple[Lane, Reader]] = {}
        self._running: dict[str, tuple[Lane, Reader]] = {}
        """By the stream's public id."""
        self._sampled: tuple[float, dict[str, Any]] | None = None
        self._watchers = 0
        self._unwatched_at: float | None = None
        """When the last watcher left; None while there is one, or none has come yet."""
        self._reconnects = 0
        self._states: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    def _limits(self, lane: str) -> dict[str, int | None]:
        # A mark, and the writes that cross it.
        write, lowat = self.settings.write_size, self.settings.notsent_lowat
        each: dict[str, int | None] = {
            "transport": {"drain": _DRAIN_HIGH + write, "eager": None}.get(lane, self.settings.write_high + write),
            "kernel": None if lane == "drain" or not lowat else lowat + 2 * write,
            "client_kernel": 2 * self.spec.rcvbuf or None,  # Linux doubles what it is asked for
        }
        return {place: None if size is None else size * self.spec.readers for place, size in each.items()}

    # --- its life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect all readers and send their requests. Raises BadRequest (503) when that cannot be done in time."""
        try:
            await self._connect_all()
        except (OSError, RawstreamError) as error:
            self.close()
            raise BadRequest(f"the lab's readers cannot connect: {error!r}", status=503, code="lab_failed") from None
        except BaseException:
            self.close()
            raise
        self._task = asyncio.get_running_loop().create_task(self._go_on(), name="lab run")

    async def _connect_all(self) -> None:
        connecting = [asyncio.ensure_future(self._connect(lane)) for lane in self.lanes.values()]
        try:
            async with asyncio.timeout(_CONNECT):
                await asyncio.gather(*connecting)
        finally:
            for task in connecting:
                task.cancel()

    async def _connect(self, lane: Lane) -> None:
        mock = {"tokens": self.spec.tokens, "tokens_per_second": self.spec.tokens_per_second}
        body = msgspec.json.encode({"prompt": "the lab", "mock": mock})
        path = PATHS[lane.name]
        if lane.name == "rawstream" and self.spec.credit is not None:
            path += f"?credit={self.spec.credit}"
        lane.left_at = lane.cancel_seconds = None
        for _ in range(self.spec.readers):
            reader = Reader(self._app, self.spec.rcvbuf)
            lane.readers.append(reader)
            await reader.connect()
            connection = cast(Connection, reader.connection)
            self._tune(connection)
            self._of[connection] = (lane, reader)
            reader.set_rate(self._rate(), partial(self._credit, reader))
            await reader.ask(path, body)
            if self.over_at is not None:  # it ended while this one connected
                _let_go(reader)
                raise BadRequest("this run is over", status=409, code="run_is_over")

    def _tune(self, connection: Connection) -> None:
        """From now on this connection has the run's settings."""
        settings = self.settings
        connection.host = TunedHost(self._app, settings)
        connection.user = self._user
        connection.use(settings)
        sock = connection.transport.get_extra_info("socket")
        if sock is not None and self.spec.notsent_lowat is not None and self._app.settings.uds is None:
            kernel.set_notsent_lowat(sock, settings.notsent_lowat)
        if sock is not None and settings.sndbuf:
            kernel.bound_send_side(sock, notsent_lowat=settings.notsent_lowat, sndbuf=settings.sndbuf)

    def _rate(self) -> float | None:
        return 0.0 if self.stalled else self.read_rate

    async def _go_on(self) -> None:
        try:
            before = monotonic()
            until = self.started_at + self.spec.seconds
            while before < until and not self._finished():
                await asyncio.sleep(_TICK)
                now = monotonic()
                for lane in self.lanes.values():
                    for reader in lane.readers:
                        reader.advance(now - before)
                        self._credit(reader)
                self.sample(now)
                before = now
        finally:
            self.close()

    def _finished(self) -> bool:
        """Is there nothing more to be seen? (A run whose readers have left can still be reconnected.)"""
        if self._app.draining:
            return True
        if self._unwatched_at is not None and monotonic() - self._unwatched_at > ABANDONED:
            self.note(None, "nobody watches any more")
            return True
        return all(lane.left_at is None and lane.over for lane in self.lanes.values())

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Somebody watches. When the last one has left (a browser that was killed says nothing), the run ends soon."""
        self._watchers += 1
        self._unwatched_at = None
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._unwatched_at = monotonic()

    def _credit(self, reader: Reader) -> None:
        """The reader says what it has read."""
        stream = reader.stream
        if stream is not None and stream.credit is not None and reader.outcome is None:
            stream.credit.grant(min(reader.counter.tokens, stream.meter.tokens), stream.meter.tokens)

    def close(self) -> None:
        """End it now. Idempotent."""
        if self.over_at is not None:
            return
        self._sampled = None  # the last one is to show the end
        self.sample()
        self.over_at = monotonic()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        for lane in self.lanes.values():
            for stream in lane.live():
                stream.interruption.interrupt(StreamStopped("the lab's run is over"))
            for reader in lane.readers:
                _let_go(reader)

    # --- what is done to it ----------------------------------------------------------------------------------

    async def change(self, change: RunChange) -> None:
        """Another rate, a stall, leaving, reconnecting. Raises BadRequest."""
        if self.over_at is not None:
            raise BadRequest("this run is over", status=409, code="run_is_over")
        if change.read_rate is not msgspec.UNSET:
            self.read_rate = change.read_rate
            self.stalled = False
            self.note(None, "the readers' rate is now " + _rate_text(self.read_rate))
        if change.stall is not None:
            self.stalled = change.stall
            self.note(None, "the readers stop reading" if change.stall else "the readers go on")
        for lane in self.lanes.values():
            for reader in lane.readers:
                reader.set_rate(self._rate(), partial(self._credit, reader))
        if change.leave or change.reconnect:
            if any(reader.open for lane in self.lanes.values() for reader in lane.readers):
                self.note(None, "the readers close their connections")
            for lane in self.lanes.values():
                lane.leave()
        if change.reconnect:
            self._reconnects += 1
            if self._reconnects > _MOST_RECONNECTS:
                raise BadRequest(f"a run reconnects at most {_MOST_RECONNECTS} times", status=409, code="run_is_over")
            try:
                await self._connect_all()
            except OSError as error:
                raise BadRequest(f"the readers cannot connect: {error}", status=503, code="lab_failed") from None
            self.note(None, "the readers connect anew")
        self._sampled = None  # what was seen before is not what is so now

    # --- what is seen of it ----------------------------------------------------------------------------------

    def note(self, lane: str | None, text: str) -> None:
        self.events.append({"at": round(monotonic() - self.started_at, 3), "lane": lane, "text": text})

    def sample(self, now: float | None = None) -> dict[str, Any]:
        """All lanes as of now (at most a tick ago)."""
        now = monotonic() if now is None else now
        if self._sampled is not None and (self.over_at is not None or now - self._sampled[0] < _TICK):
            return self._sampled[1]
        lanes = [lane.sample(now) for lane in self.lanes.values()]
        for shown in lanes:
            before, state = self._states.get(shown["lane"]), shown["state"]
            if before != state and state in ("cancelled", "done", "capped"):
                self.note(shown["lane"], shown["why"])
            self._states[shown["lane"]] = state
        shown = {
            "now": now,
            "elapsed": round(now - self.started_at, 3),
            "process": {"rss": resident()},
            "lanes": lanes,
            "events": list(self.events),
        }
        self._sampled = (now, shown)
        return shown

    def begun(self) -> dict[str, Any]:
        """The answer to ``POST /lab/runs``."""
        return {"id": self.id, "lanes": list(self.lanes), "seconds": self.spec.seconds}

    def state(self) -> dict[str, Any]:
        """The answer to ``GET /lab/runs/{id}``."""
        return {
            "id": self.id,
            "over": self.over_at is not None,
            "read_rate": self.read_rate,
            "stalled": self.stalled,
            "spec": msgspec.to_builtins(self.spec),
            **self.sample(),
        }

    # --- told by the server ----------------------------------------------------------------------------------

    def stream_started(self, stream_id: str) -> None:
        """A stream began. If it is one of ours, it is ours from its first moment."""
        for stream in self._app.streams:
            if stream.public_id == stream_id:
                connection = stream.exchange.connection
                found = self._of.get(connection) if isinstance(connection, Connection) else None
                if found is not None:
                    lane, reader = found
                    reader.stream = stream
                    stream.lane = lane.name
                    stream.settings = self.settings
                    stream.watch = StreamWatch(
                        stream.meter.started_at,
                        heartbeat=self.settings.heartbeat,
                        stall_timeout=self.settings.stall_timeout,
                        stream_timeout=self.settings.stream_timeout,
                    )
                    self._running[stream_id] = found
                return

    def stream_ended(self, record: StreamRecord) -> None:
        found = self._running.pop(record.id, None)
        if found is not None:
            lane, reader = found
            lane.stream_ended(reader, record.outcome.value, monotonic())


def _let_go(reader: Reader) -> None:
    """Close it. What was asked and has not begun must not begin: an eager one would go on."""
    connection = reader.connection
    if reader.stream is None and connection is not None and connection.gate.reason is None:
        connection.lose(StreamStopped("the lab's run is over"))
    reader.close()


def _rate_text(rate: float | None) -> str:
    if rate is None:
        return "whatever comes"
    return f"{rate:g} bytes/s" if rate else "0: they read nothing"


class Runs(Registry[Run]):
    """All runs of one server."""

    def __init__(self, app: App) -> None:
        super().__init__(MOST_RUNS)
        self._app = app

    async def start(self, spec: RunSpec, user: User | None = None) -> Run:
        """A run whose readers ask for ``user``. Raises TooManyStreams (503) and BadRequest."""
        return await self.begin(Run(self._app, spec, user))

"""Windows, live: many streams on one HTTP/2 connection to this very server, each of them read or not.

Rule 1: a run is bounded: in streams, in pace, in time, and in how many there are at once.
Rule 2: it goes over a real socket; a window that is shown is what the server may still send.
Rule 3: whatever ends it, its connection is closed and its streams are stopped. Nobody looks at a clock for it: its
        time, its last watcher and the server's GOAWAY each call ``close()``.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Annotated, Any, Final

import msgspec

from rawstream.errors import BadRequest, StreamStopped
from rawstream.lab.multiplexed import CONNECTION_WINDOW, Answer, Multiplexed
from rawstream.lab.pace import Pace
from rawstream.lab.readers import address_of, server_end, socket_for
from rawstream.lab.registry import Registry
from rawstream.lab.run_spec import TunedHost
from rawstream.lab.runs import ABANDONED
from rawstream.limits.users import User
from rawstream.model import StreamRecord
from rawstream.server.app import App
from rawstream.server.channel import Channel
from rawstream.server.http2 import Http2Connection
from rawstream.server.ids import random_id
from rawstream.server.stream import Stream
from rawstream.wire.http1 import RequestHead

MOST_RUNS: Final = 2
"""Runs at a time."""
MOST_ASKED: Final = 500
"""Streams that one run asks for in all."""
_CONNECT: Final = 5.0
_TICK: Final = 0.025
"""Seconds for which a sample is good."""
_SHARE: Final = 0.5
"""Half of a window is used before it is given back, so that one sees it move."""


class WindowSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /lab/windows``."""

    streams: Annotated[int, msgspec.Meta(ge=2, le=50)] = 16
    """The first of them is not read."""
    window: Annotated[int, msgspec.Meta(ge=1024, le=1024 * 1024)] = 16 * 1024
    """Bytes that each is granted."""
    tokens_per_second: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 100.0
    """Each source's pace."""
    seconds: Annotated[float, msgspec.Meta(gt=0, le=300)] = 60.0
    """How long the run takes at most."""


class WindowChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /lab/windows/{id}``."""

    read: bool
    """Is it read from now on? One that has ended is asked for anew where it is to be read."""
    stream: int | None = None
    """Its number in HTTP/2; None: all of them."""


class _Slot:
    """One of the run's streams, from the source to its reader."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.channel: Channel | None = None
        """The server's end of it, once it was asked."""
        self.stream: Stream | None = None
        """What answers it, once it runs; kept after its end, for its figures."""
        self.outcome: str | None = None
        """How that ended."""
        self._pace = Pace()

    @property
    def over(self) -> bool:
        return self.outcome is not None or self.answer.over

    def sample(self, now: float, granted: int) -> dict[str, Any]:
        """As of now; bytes."""
        answer, stream, channel = self.answer, self.stream, self.channel
        levels = None if channel is None or self.over else channel.levels()
        tokens = 0 if stream is None else stream.meter.tokens
        return {
            "stream": answer.number,
            "read": answer.reads,
            "granted": granted,
            "window": None if levels is None else levels.window,
            "tokens": tokens,
            "rate": self._pace.look(now, tokens),
            "arrived": answer.arrived,
            "held": 0 if channel is None or self.over else channel.transport.get_write_buffer_size(),
            "source": self._source(),
            "why": self.outcome or (f"answered {answer.status}" if answer.over else None),
        }

    def _source(self) -> str:
        if self.over:
            return "closed"
        if self.stream is None:
            return "starting"
        return "stopped" if self.stream.waiting_for() == "client" else "running"


class _Host(TunedHost):
    """The server as the run's connection sees it."""

    def __init__(self, app: App, run: WindowRun) -> None:
        super().__init__(app, app.settings)
        self._run = run

    def answer(self, channel: Channel, head: RequestHead) -> Coroutine[Any, Any, bool]:
        self._run.asked(channel)
        return super().answer(channel, head)


class WindowRun:
    """One connection under way. ``start()``, and then it ends by itself, or by ``close()``."""

    def __init__(self, app: App, spec: WindowSpec, user: User | None = None) -> None:
        """``user``: for whom its client asks. Raises BadRequest when this server has no such connections."""
        if app.settings.http2 is False:
            raise BadRequest("this server does not speak HTTP/2 (--no-http2)", status=409, code="no_http2")
        if spec.streams > app.settings.http2_streams:
            raise BadRequest(f"a connection has at most {app.settings.http2_streams} streams here (--http2-streams)")
        self.id = random_id(8)
        self.spec = spec
        self.over_at: float | None = None
        self.ended: str | None = None
        """Why, in words."""
        self.started_at = monotonic()
        self._app = app
        self._user = user
        self._client = Multiplexed(spec.window, lambda: None, share=_SHARE)
        self._slots: list[_Slot] = []
        self._by_number: dict[int, _Slot] = {}
        self._asked = 0
        self._connection: Http2Connection | None = None
        """The server's end."""
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[str] | None = None
        self._end: asyncio.TimerHandle | None = None
        self._watchers = 0
        self._unwatched: asyncio.TimerHandle | None = None
        """Ends it; runs while nobody watches."""
        self._sampled: tuple[float, dict[str, Any]] | None = None

    # --- its life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, and ask for all streams. Raises BadRequest (503) when that cannot be done in time."""
        try:
            async with asyncio.timeout(_CONNECT):
                connection = await self._connect()
        except OSError as error:
            self.close()
            raise BadRequest(f"the lab's client cannot connect: {error!r}", status=503, code="lab_failed") from None
        except BaseException:
            self.close()
            raise
        connection.host = _Host(self._app, self)
        self._connection = connection
        for number in range(self.spec.streams):
            slot = self._ask()
            if number == 0:
                self._client.read(slot.answer, False)
            self._slots.append(slot)
        loop = asyncio.get_running_loop()
        self._end = loop.call_later(self.spec.seconds, self.close, "its time is over")
        self._wait_for_a_watcher()

    async def _connect(self) -> Http2Connection:
        """The server's end of it. Raises OSError."""
        sock = socket_for(self._app)
        try:
            await asyncio.get_running_loop().sock_connect(sock, address_of(self._app))
            if sock.family == socket.AF_UNIX:
                reader, writer = await asyncio.open_unix_connection(sock=sock)
            else:
                tls = None if self._app.tls is None else _own_tls()
                name = None if tls is None else "localhost"
                reader, writer = await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=name)
        except BaseException:
            sock.close()
            raise
        self._writer = writer
        self._task = asyncio.create_task(self._client.go_on(reader, writer), name="windows")
        self._task.add_done_callback(self._cut)
        greeted = asyncio.create_task(self._client.greeted.wait())
        try:
            await asyncio.wait((greeted, self._task), return_when=asyncio.FIRST_COMPLETED)
        finally:
            greeted.cancel()
        end = server_end(self._app, writer.get_extra_info("socket"))
        if not isinstance(end, Http2Connection):
            raise ConnectionError("another process took the connection, or closed it")
        return end

    def _ask(self) -> _Slot:
        self._asked += 1
        slot = _Slot(self._client.ask(self.spec.tokens_per_second))
        self._by_number[slot.answer.number] = slot
        return slot

    def _cut(self, task: asyncio.Task[str]) -> None:
        """The client has read its last."""
        if not task.cancelled():
            error = task.exception()
            self.close(task.result() if error is None else f"the connection broke: {error}")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Somebody watches. When the last one has left (a browser that was killed says nothing), the run ends soon."""
        self._watchers += 1
        if self._unwatched is not None:
            self._unwatched.cancel()
        try:
            yield
        finally:
            self._watchers -= 1
            self._wait_for_a_watcher()

    def _wait_for_a_watcher(self) -> None:
        """A while, and no longer: whoever started it may have gone before the answer came."""
        if self._watchers or self.over_at is not None:
            return
        if self._unwatched is not None:
            self._unwatched.cancel()
        self._unwatched = asyncio.get_running_loop().call_later(ABANDONED, self.close, "nobody watches any more")

    def close(self, why: str = "it was stopped") -> None:
        """End it now. Idempotent."""
        if self.over_at is not None:
            return
        self._sampled = None  # the last one is to show the end
        self.sample()
        self.over_at = monotonic()
        self.ended = why
        for timer in (self._end, self._unwatched):
            if timer is not None:
                timer.cancel()
        if self._task is not None:
            self._task.cancel()
        for slot in self._slots:
            if slot.stream is not None and not slot.over:
                slot.stream.interruption.interrupt(StreamStopped("the lab's run is over"))
        if self._writer is not None:
            self._writer.transport.abort()

    # --- what is done to it ----------------------------------------------------------------------------------

    async def change(self, change: WindowChange) -> None:
        """One stream, or all, are read from now on, or not. Raises BadRequest."""
        if self.over_at is not None:
            raise BadRequest("this run is over", status=409, code="run_is_over")
        chosen = [slot for slot in self._slots if change.stream in (None, slot.answer.number)]
        if not chosen:
            raise BadRequest("this run has no such stream", status=404, code="no_such_stream")
        for slot in chosen:
            if not slot.over:
                self._client.read(slot.answer, change.read)
            elif change.read:
                self._ask_anew(slot)
        self._sampled = None  # what was seen before is not what is so now

    def _ask_anew(self, slot: _Slot) -> None:
        if self._asked >= MOST_ASKED:
            raise BadRequest(f"a run asks for at most {MOST_ASKED} streams", status=409, code="run_is_over")
        number = slot.answer.number
        del self._by_number[number], self._client.answers[number]
        self._slots[self._slots.index(slot)] = self._ask()

    # --- what is seen of it ----------------------------------------------------------------------------------

    def sample(self) -> dict[str, Any]:
        """All streams as of now (at most a tick ago); once it is over, as of its end."""
        now = monotonic()
        if self._sampled is not None and (self.over_at is not None or now - self._sampled[0] < _TICK):
            return self._sampled[1]
        window = None if self._connection is None else self._connection.levels(0).connection_window
        shown = {
            "now": now,
            "elapsed": round(now - self.started_at, 3),
            "connection": {"granted": CONNECTION_WINDOW, "window": window},
            "streams": [slot.sample(now, self.spec.window) for slot in self._slots],
        }
        self._sampled = (now, shown)
        return shown

    def begun(self) -> dict[str, Any]:
        """The answer to ``POST /lab/windows``."""
        return {"id": self.id, "streams": self.spec.streams, "seconds": self.spec.seconds}

    def state(self) -> dict[str, Any]:
        """The answer to ``GET /lab/windows/{id}``. Who asks again and again watches, too."""
        self._wait_for_a_watcher()
        over = self.over_at is not None
        return {
            "id": self.id,
            "over": over,
            "ended": self.ended,
            "spec": msgspec.to_builtins(self.spec),
        } | self.sample()

    # --- told by the server ----------------------------------------------------------------------------------

    def asked(self, channel: Channel) -> None:
        """A request of ours has arrived."""
        channel.user = self._user
        levels = channel.levels()
        slot = None if levels is None else self._by_number.get(levels.stream)
        if slot is not None:
            slot.channel = channel

    def stream_started(self, stream_id: str) -> None:
        """A stream began. If it is one of ours, it is ours from its first moment."""
        for stream in self._app.streams:
            if stream.public_id == stream_id:
                for slot in self._slots:
                    if slot.channel is stream.exchange.connection:
                        slot.stream = stream
                return

    def stream_ended(self, record: StreamRecord) -> None:
        for slot in self._slots:
            if slot.stream is not None and slot.stream.public_id == record.id:
                slot.outcome = record.outcome.value


def _own_tls() -> ssl.SSLContext:
    """For a connection to ourselves: whose certificate it is, is known."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


class WindowRuns(Registry[WindowRun]):
    """All of them."""

    def __init__(self, app: App) -> None:
        super().__init__(MOST_RUNS)
        self._app = app

    async def start(self, spec: WindowSpec, user: User | None = None) -> WindowRun:
        """A run whose client asks for ``user``. Raises TooManyStreams (503) and BadRequest."""
        return await self.begin(WindowRun(self._app, spec, user))

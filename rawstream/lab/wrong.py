"""The wrong disciplines, for study: ``/chat-broken``, ``/chat-whole``, ``/chat-drain``.

Rule 1: they share everything with ``/chat`` but the discipline: same source, same dialect, same connection.
Rule 2: a demonstration cannot take the machine down: together they may hold ``lab_memory`` bytes, and what goes on
        for a client that has left ends after ``lab_overrun`` seconds.

What each of them gets wrong:

* *broken* writes as fast as the source makes tokens, and asks nobody. A slow reader's share piles up in the
  transport buffer; when the reader leaves, generation goes on.
* *whole* says nothing before it has everything.
* *drain* does what most people believe is enough: ``await drain()`` after each write, with default buffers. The
  transport is bounded; the kernel is not, and takes megabytes more.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Final

from rawstream.errors import MemoryExhausted, RawstreamError
from rawstream.flow import kernel
from rawstream.flow.pump import produce
from rawstream.model import Dialect, TokenStream
from rawstream.server.app import App
from rawstream.server.endpoints.chat import ChatEndpoints
from rawstream.server.endpoints.events import require_own_origin
from rawstream.server.endpoints.operations import require_loopback
from rawstream.server.exchange import Exchange
from rawstream.server.stream import Stream
from rawstream.server.streams import Discipline

_UNBOUNDED: Final = 1 << 62
_DEFAULT_HIGH: Final = 64 * 1024


class WrongDisciplines:
    """An extension of the server: the three routes and their common memory cap."""

    def __init__(self) -> None:
        self._app: App | None = None
        self._chat: ChatEndpoints | None = None
        self._limit = 0

    def register(self, app: App) -> None:
        self._app = app
        self._chat = app.chat
        self._limit = app.settings.lab_memory
        router = app.router
        router.add("POST", "/chat-broken", self.broken, json=True, access="generate")
        router.add("POST", "/chat-whole", self.whole, json=True, access="generate")
        router.add("POST", "/chat-drain", self.drain, json=True, access="generate")

    async def broken(self, exchange: Exchange) -> None:
        await self._stream(exchange, self._eagerly)

    async def whole(self, exchange: Exchange) -> None:
        await self._stream(exchange, self._all_first)

    async def drain(self, exchange: Exchange) -> None:
        await self._stream(exchange, draining)

    async def _stream(self, exchange: Exchange, discipline: Discipline) -> None:
        assert self._chat is not None
        require_loopback(exchange)
        if exchange.head.header("origin") is not None:  # browsers say so with each POST: no foreign page may drive it
            require_own_origin(exchange)
        await self._chat.chat(exchange, discipline)

    def held(self) -> int:
        """Bytes that the lab's streams hold now."""
        assert self._app is not None
        return sum(stream.process_buffered() for stream in self._app.streams if stream.lab)

    def check_memory(self, stream: Stream) -> None:
        """End ``stream`` when the lab's streams hold more than they may."""
        if self.held() > self._limit:
            # Not raised: the source may be in the middle of a step, which only a cancellation ends properly.
            error = MemoryExhausted(f"the lab's streams hold more than lab_memory ({self._limit} bytes)")
            stream.interruption.interrupt(error)

    async def _eagerly(self, stream: Stream, tokens: TokenStream, dialect: Dialect) -> None:
        stream.lane = "eager"
        connection = stream.exchange.connection
        # It notices nothing: not a full buffer, and not that the client has left. But not for ever (rule 2), though its
        # source may never give another token.
        overrun = stream.settings.lab_overrun
        timers: list[asyncio.TimerHandle] = []

        def left(gone: RawstreamError) -> None:
            told = type(gone)(f"{gone}; generation went on for {overrun:.1f} s more")
            timers.append(connection.loop.call_later(overrun, stream.interruption.interrupt, told))

        connection.interrupt = left
        sink = _Eager(stream, self)
        settings = stream.settings
        try:
            last = await produce(
                tokens, dialect, sink, stream.meter, write_size=settings.write_size, hold=settings.hold
            )
            await stream.delivery.finish(last)
        finally:
            for timer in timers:
                timer.cancel()

    async def _all_first(self, stream: Stream, tokens: TokenStream, dialect: Dialect) -> None:
        stream.lane = "whole"
        sink = _Collecting(stream, self)
        stream.held = lambda: sink.size
        settings = stream.settings
        last = await produce(tokens, dialect, sink, stream.meter, write_size=settings.write_size, hold=settings.hold)
        body = b"".join([*sink.parts, last])
        sink.parts.clear()
        sink.size = len(body)
        delivery = stream.delivery
        for at in range(0, len(body), settings.write_size):
            await delivery.wait_room()
            piece = body[at : at + settings.write_size]
            delivery.put_nowait(piece, monotonic())
            sink.size -= len(piece)
        await delivery.finish(b"")


class _Eager:
    """A sink that always has room."""

    __slots__ = ("_checked_at", "_delivery", "_lab", "_stream")

    def __init__(self, stream: Stream, lab: WrongDisciplines) -> None:
        self._stream = stream
        self._delivery = stream.delivery
        self._lab = lab
        self._checked_at = 0.0

    @property
    def room(self) -> int:
        return _UNBOUNDED

    async def wait_room(self) -> int:
        return _UNBOUNDED

    def put_nowait(self, frames: bytes, now: float) -> bool:
        if self._stream.exchange.connection.gate.reason is not None:
            return True
        if now - self._checked_at > 0.05:
            self._checked_at = now
            self._lab.check_memory(self._stream)
        self._delivery.put_nowait(frames, now)
        return True


class _Collecting:
    """A sink that keeps everything."""

    __slots__ = ("_checked_at", "_lab", "_stream", "parts", "size")

    def __init__(self, stream: Stream, lab: WrongDisciplines) -> None:
        self._stream = stream
        self._lab = lab
        self._checked_at = 0.0
        self.parts: list[bytes] = []
        self.size = 0

    @property
    def room(self) -> int:
        return _UNBOUNDED

    async def wait_room(self) -> int:
        return _UNBOUNDED

    def put_nowait(self, frames: bytes, now: float) -> bool:
        if now - self._checked_at > 0.05:
            self._checked_at = now
            self._lab.check_memory(self._stream)
        self.parts.append(frames)
        self.size += len(frames)
        return True


async def draining(stream: Stream, tokens: TokenStream, dialect: Dialect) -> None:
    """``write()`` and ``await drain()``, with the buffers that asyncio and the kernel have by default."""
    stream.lane = "drain"
    connection = stream.exchange.connection
    settings = stream.settings
    connection.set_marks(_DEFAULT_HIGH)
    sock = connection.transport.get_extra_info("socket")
    tcp = sock is not None and kernel.tcp_info(sock) is not None
    if tcp:
        kernel.set_notsent_lowat(sock, 0)
    try:
        sink = _Draining(stream)
        last = await produce(tokens, dialect, sink, stream.meter, write_size=settings.write_size, hold=settings.hold)
        await stream.delivery.finish(last)
    finally:
        if connection.gate.reason is None:
            connection.set_marks()
            if tcp:
                kernel.set_notsent_lowat(sock, settings.notsent_lowat)


class _Draining:
    """A sink that awaits ``drain()`` after each write: permission comes after production."""

    __slots__ = ("_delivery", "_stream")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._delivery = stream.delivery

    @property
    def room(self) -> int:
        return 0  # always to be waited for: that is the discipline

    async def wait_room(self) -> int:
        await asyncio.sleep(0)
        meter = self._stream.meter
        meter.wait("client", monotonic())
        await self._stream.exchange.drain()
        meter.waited(monotonic())
        return 1  # one write, one drain()

    def put_nowait(self, frames: bytes, now: float) -> bool:
        return self._delivery.put_nowait(frames, now)

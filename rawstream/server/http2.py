"""HTTP/2 connections: many streams on one socket, each with its own backpressure.

Rule 1: a stream may write when its window, the connection's window and the socket's transport all have room. Whichever
        has none, the stream waits, and with it its source; the others do not notice.
Rule 2: what a stream could not write yet is bounded by the same marks as a whole HTTP/1.1 connection's, and lies with
        the stream; the connection itself holds one write's worth.
Rule 3: streams that have something to write take turns, a frame each.
Rule 4: control frames do not wait behind data, and are bounded: who makes us say too much is cut.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Final

from h2.errors import ErrorCodes

from rawstream.errors import ClientDisconnected, RawstreamError
from rawstream.server.channel import Host
from rawstream.server.http2_stream import Http2Stream, StreamTransport
from rawstream.server.link import Link
from rawstream.wire.guard import HeadLimits
from rawstream.wire.http2 import Began, Body, Complete, Gone, Http2, Http2Violation, Limits, Opened, Reset

_MOST_CONTROL: Final = 64 * 1024
"""Bytes of control frames and heads that may wait for a peer that does not read."""


class Http2Connection(Link):
    """A link that speaks HTTP/2."""

    __slots__ = ("_farewell", "_http2", "_queue", "_streams", "host", "operator", "predecessor", "task")

    def __init__(
        self,
        host: Host,
        loop: asyncio.AbstractEventLoop,
        accepted: socket.socket | None = None,
        *,
        operator: bool = False,
    ) -> None:
        super().__init__(host.settings, loop, accepted)
        self.host = host
        self.operator = operator
        self.predecessor: Link | None = None
        """Who had the transport before. Its StreamWriter would close the transport when nobody holds it any more."""
        self._streams: dict[int, Http2Stream] = {}
        self._queue: deque[StreamTransport] = deque()
        """Those that have something to write, in turn."""
        self._farewell = False
        settings = host.settings
        head = HeadLimits(settings.max_head, settings.max_request_line, settings.max_fields, settings.max_body)
        self._http2 = Http2(Limits(head, settings.http2_streams), monotonic())

    # --- what the transport tells us

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.host.connection_opened(self)
        self.task = self.loop.create_task(self._live(), name="http2")
        self._say()
        self._rest(self.settings.head_timeout)

    def data_received(self, data: bytes) -> None:
        if self.gate.reason is not None:
            return
        try:
            happened = self._http2.receive(data, monotonic())
        except Http2Violation as violation:
            self._say()
            self.host.broken(violation)
            self.lose(violation)
            return
        for one in happened:
            self._take(one)
        self._say()
        self._pump()

    def eof_received(self) -> bool:
        self.lose(ClientDisconnected("the client closed the connection"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for stream in list(self._streams.values()):
            transport = stream.lane
            transport.lost(exc)
        self._streams.clear()
        self._queue.clear()
        self.host.connection_closed(self)

    def _lost(self, reason: RawstreamError) -> None:
        super()._lost(reason)
        for stream in list(self._streams.values()):
            stream._lost(self.gate.reason or reason)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._pump()

    # --- what happens

    def _take(self, one: Began | Body | Complete | Opened | Reset | Gone) -> None:
        if isinstance(one, Began):
            self._begin(one)
        elif isinstance(one, Body):
            stream = self._streams.get(one.stream)
            # Padding, and what nobody waits for any more, is given back at once; the rest as it is read.
            self._http2.consumed(one.stream, one.size - (len(one.data) if stream is not None else 0))
            if stream is not None and one.data:
                stream.codec.arrived(one.data)
                stream.data_received(b"\0")
        elif isinstance(one, Complete):
            stream = self._streams.get(one.stream)
            if stream is not None:
                stream.codec.ended()
                stream.data_received(b"\0")
        elif isinstance(one, Opened):
            self._reopened(one.stream)
        elif isinstance(one, Reset):
            stream = self._streams.pop(one.stream, None)
            if stream is not None:
                stream._lost(ClientDisconnected("the client gave its stream up"))
                stream.lane.lost(None)
            self._rest_if_idle()
        else:
            self.lose(ClientDisconnected("the client closed the connection"))

    def _begin(self, began: Began) -> None:
        if self._farewell:
            self._http2.reset(began.stream, ErrorCodes.REFUSED_STREAM)
            return
        self.clear_deadline()
        stream = self._streams[began.stream] = Http2Stream(self, began.stream, began.head)
        stream.begin(began.head, began.fault)

    def _reopened(self, number: int) -> None:
        """There may be room on one stream, or on all."""
        for stream in [self._streams[number]] if number in self._streams else list(self._streams.values()):
            transport = stream.lane
            if transport.pending or transport.ending:
                self._queue_up(transport)

    # --- writing

    def begin_answer(self, number: int, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """The head of a stream's answer."""
        self._http2.head(number, status, headers)
        self._say()

    def consumed(self, number: int, size: int) -> None:
        """Bytes of a request's body were read."""
        self._http2.consumed(number, size)
        self._say()

    def has_something(self, lane: StreamTransport) -> None:
        """A stream has something to write, or its end to say."""
        self._queue_up(lane)
        self._pump()

    def _queue_up(self, lane: StreamTransport) -> None:
        if not lane.waits:
            lane.waits = True
            self._queue.append(lane)

    def _pump(self) -> None:
        """Write what there is room for, a frame from each stream in turn."""
        queue, http2 = self._queue, self._http2
        while queue:
            allowed = self.room
            if allowed <= 0:
                return  # the transport is full: ``resume_writing`` comes back here
            transport = queue.popleft()
            transport.waits = False
            pending = transport.pending
            room = min(http2.room(transport.number), max(allowed, self.settings.write_low))
            part = bytes(pending[:room])
            ends = transport.ending and len(part) == len(pending)
            if not part and not (ends and http2.is_open(transport.number)):
                continue  # no window: ``Opened`` comes back here
            del pending[: len(part)]
            http2.data(transport.number, part, end=ends)
            self.write(http2.to_send())
            if ends:
                self._over(transport)
            elif pending:
                transport.waits = True
                queue.append(transport)
            transport.judge()

    def _over(self, transport: StreamTransport) -> None:
        """A stream's answer is written. What its client still sends is of no interest (RFC 9113 §8.1)."""
        stream = self._streams.pop(transport.number, None)
        if stream is not None and not stream.codec.body_complete:
            self._http2.reset(transport.number, ErrorCodes.NO_ERROR)
            self._say()
        transport.lost(None)
        self._rest_if_idle()

    def give_up(self, number: int, code: ErrorCodes) -> None:
        """A stream of ours ends before its end."""
        if self._streams.pop(number, None) is not None:
            self._http2.reset(number, code)
            if self.gate.reason is None:
                self._say()
            self._rest_if_idle()

    def _say(self) -> None:
        """Control frames: they wait for nobody, and are bounded."""
        if frames := self._http2.to_send():
            if self.transport.get_write_buffer_size() > _MOST_CONTROL:
                self.lose(Http2Violation("the peer does not read what it makes us say"))
                return
            self.written += len(frames)
            self.transport.write(frames)

    # --- ends

    def _rest(self, seconds: float) -> None:
        self.set_deadline(monotonic() + seconds, self.close_if_idle)

    def _rest_if_idle(self) -> None:
        if not self._streams and self.gate.reason is None:
            if self._farewell or self.host.draining:
                self.close_if_idle()
            else:
                self._rest(self.settings.keepalive_timeout)

    def close_if_idle(self) -> None:
        """Nothing more begins (GOAWAY); when the last stream has ended, the connection does."""
        if self.gate.reason is not None:
            return
        if not self._farewell:
            self._farewell = True
            self.transport.write(self._http2.farewell())
        if not self._streams:
            self.clear_deadline()
            if self.transport.get_write_buffer_size():
                self.set_deadline(monotonic() + self.settings.flush_timeout, self.transport.abort)
            self.transport.close()

    async def _live(self) -> None:
        """Until it is closed. Cancelling it cuts it."""
        try:
            await self._get_close_waiter(self.writer)
        except asyncio.CancelledError:
            self.transport.abort()
            raise

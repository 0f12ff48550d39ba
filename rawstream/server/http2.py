"""HTTP/2 connections: many streams on one socket, each with its own backpressure.

Rule 1: a stream may write when its window, the connection's window and the socket's transport all have room. Whichever
        has none, the stream waits, and with it its source; the others do not notice.
Rule 2: what a stream could not write yet is bounded by the same marks as a whole HTTP/1.1 connection's, and lies with
        the stream; the connection itself holds one write's worth.
Rule 3: streams that have something to write take turns, a frame of at most ``_TURN`` bytes each. What they have in one
        turn of the loop leaves in one write.
Rule 4: control frames and heads do not wait behind data, and are bounded: who makes us say too much is cut.
Rule 5: who breaks the rules is told so (GOAWAY), and not heard any more.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Final

from h2.errors import ErrorCodes

from rawstream.errors import ClientDisconnected, ClientMisbehaved, RawstreamError
from rawstream.server.channel import Channel, Host, Http2Levels
from rawstream.server.http2_stream import Http2Stream, StreamTransport
from rawstream.server.link import Link
from rawstream.wire.guard import HeadLimits
from rawstream.wire.http2 import Began, Body, Gone, Happening, Http2, Limits, Opened, Refused, Reset
from rawstream.wire.http2_frames import Http2Violation

_MOST_CONTROL: Final = 64 * 1024
"""Bytes of control frames and heads that may wait for a peer that does not read."""
_MOST_UNHEARD: Final = 1024 * 1024
"""Bytes that are read and thrown away after the GOAWAY to one who broke the rules, so that it reaches him: closing with
bytes unread would reset the connection."""
_TURN: Final = 4 * 1024
"""Most bytes of one stream's frame while others wait."""


class Http2Connection(Link):
    """A link that speaks HTTP/2."""

    __slots__ = (
        "_due",
        "_farewell",
        "_http2",
        "_queue",
        "_streams",
        "_unheard",
        "host",
        "operator",
        "predecessor",
        "task",
    )

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
        self._due = False
        """Is ``_pump`` about to run?"""
        self._farewell = False
        """Nothing more begins."""
        self._unheard = 0
        settings = host.settings
        head = HeadLimits(settings.max_head, settings.max_request_line, settings.max_fields, settings.max_body)
        self._http2 = Http2(Limits(head, settings.http2_streams), monotonic())

    @classmethod
    def take_over(cls, host: Host, connection: Channel, first: bytes) -> None:
        """``connection`` began with ``first``, which is HTTP/2: spoken without having been asked (RFC 9113 §3.3)."""
        http2 = cls(host, connection.loop, connection.accepted, operator=connection.operator)
        http2.predecessor = connection
        connection.transport.set_protocol(http2)
        http2.connection_made(connection.transport)
        http2.data_received(first)

    # --- what the transport tells us

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.host.connection_opened(self)
        self.task = self.loop.create_task(self._live(), name="http2")
        self._rest(self.settings.head_timeout)
        self._pump()

    def data_received(self, data: bytes) -> None:
        if self.gate.reason is not None:
            self._unheard += len(data)
            if self._unheard > _MOST_UNHEARD:
                self.transport.abort()
            return
        try:
            for one in self._http2.receive(data, monotonic()):
                self._take(one)
        except Http2Violation as violation:
            self._break_off(violation)
            return
        self._pump()

    def eof_received(self) -> bool:
        if self.gate.reason is None:
            self.lose(ClientDisconnected("the client closed the connection"))
        else:
            self.transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for stream in list(self._streams.values()):
            stream.lane.lost(exc)
        self._streams.clear()
        self._queue.clear()
        self.host.connection_closed(self)

    def _lost(self, reason: RawstreamError) -> None:
        super()._lost(reason)
        for stream in list(self._streams.values()):
            stream.lost(self.gate.reason or reason)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._pump()

    # --- what happens

    def _take(self, one: Happening) -> None:
        if isinstance(one, Began):
            self._begin(one)
        elif isinstance(one, Opened):
            self._reopened(one.stream)
        elif isinstance(one, Gone):
            if one.error:
                self.lose(ClientDisconnected("the client closed the connection"))
            else:
                self._farewell = True
                self._rest_if_idle()
        elif isinstance(one, Refused):
            self.host.broken(one.fault)
            self._drop(one.stream, ClientMisbehaved(str(one.fault), detail=one.fault.detail))
        elif isinstance(one, Reset):
            self._drop(one.stream, ClientDisconnected("the client gave its stream up"))
        else:
            stream = self._streams.get(one.stream)
            if stream is None:
                return
            if isinstance(one, Body):
                stream.codec.arrived(one.data)
            else:
                stream.codec.ended()
            stream.news()

    def _begin(self, began: Began) -> None:
        if self._farewell:
            self._http2.reset(began.stream, ErrorCodes.REFUSED_STREAM)
            return
        self.clear_deadline()
        stream = self._streams[began.stream] = Http2Stream(self, began.stream, began.head)
        stream.begin(began.head, began.fault)

    def _drop(self, number: int, reason: RawstreamError) -> None:
        """A stream is over; the peer knows."""
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.lost(reason)
            stream.lane.lost(None)
            self._rest_if_idle()

    def _reopened(self, number: int) -> None:
        """There may be room on one stream, or on all."""
        if number:
            stream = self._streams.get(number)
            if stream is not None and stream.lane.pending:
                self._queue_up(stream.lane)
        else:
            for stream in self._streams.values():
                if stream.lane.pending:
                    self._queue_up(stream.lane)

    # --- writing

    def begin_answer(self, number: int, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """The head of a stream's answer."""
        self._http2.head(number, status, headers)
        self._pump_soon()

    def consumed(self, number: int, size: int) -> None:
        """Bytes of a request's body were read."""
        self._http2.consumed(number, size)
        self._pump_soon()

    def has_something(self, lane: StreamTransport) -> None:
        """A stream has something to write, or its end to say."""
        self._queue_up(lane)
        if not self._due:
            self._due = True
            self.loop.call_soon(self._pump)

    def levels(self, number: int) -> Http2Levels:
        """What the windows allow."""
        return Http2Levels(number, self._http2.stream_window(number), self._http2.window)

    def _pump_soon(self) -> None:
        """After this turn of the loop, so that all that it brings leaves together."""
        if not self._due:
            self._due = True
            self.loop.call_soon(self._pump)

    def _queue_up(self, lane: StreamTransport) -> None:
        if not lane.waits:
            lane.waits = True
            if lane.pending:
                self._queue.append(lane)
            else:
                self._queue.appendleft(lane)  # an end needs no window, and waits for nobody who does

    def _pump(self) -> None:
        """Write what must be said, and what there is room for, a frame from each stream in turn."""
        self._due = False
        if self.gate.reason is not None:
            return
        control = self._http2.to_send()
        if control and self.transport.get_write_buffer_size() + len(control) > _MOST_CONTROL:
            self.host.broken(Http2Violation("unread", "the peer does not read what it makes us say"))
            self.lose(ClientMisbehaved("the client does not read what it makes us say"))
            return
        frames = [control] if control else []
        served: list[StreamTransport] = []
        self._fill(frames, served)
        if frames:
            self.write(b"".join(frames) if len(frames) > 1 else frames[0])
        for lane in served:
            lane.judge()
            if lane.ended:
                self._over(lane)
        if self._queue and self.room > 0 and self._http2.window > 0:
            self._pump_soon()  # the kernel took it all

    def _fill(self, frames: list[bytes], served: list[StreamTransport]) -> None:
        queue, http2 = self._queue, self._http2
        allowed = self.room if queue else 0
        while queue and allowed > 0:
            lane = queue[0]
            pending = lane.pending
            room = http2.room(lane.number)
            if pending and not room and http2.window <= 0 and http2.is_open(lane.number):
                return  # nobody may: they keep their turns
            queue.popleft()
            lane.waits = False
            # Not less than the low-water mark: there would be no end of ever smaller frames.
            part = bytes(pending[: min(room, _TURN, max(allowed, self.settings.write_low))])
            ends = lane.ending and len(part) == len(pending)
            if not http2.is_open(lane.number) or not (part or ends):
                continue  # it is over, or its window is shut: ``Opened`` comes back for it
            del pending[: len(part)]
            lane.ended = ends
            frames.append(http2.data(lane.number, part, end=ends))
            allowed -= len(frames[-1])
            served.append(lane)
            if pending:
                lane.waits = True
                queue.append(lane)

    def _over(self, lane: StreamTransport) -> None:
        """A stream's answer is written. What its client still sends is of no interest (RFC 9113 §8.1)."""
        stream = self._streams.pop(lane.number, None)
        if stream is not None and not stream.codec.whole:
            self._http2.reset(lane.number, ErrorCodes.NO_ERROR)
            self._pump_soon()
        lane.lost(None)
        self._rest_if_idle()

    def give_up(self, number: int, code: ErrorCodes) -> None:
        """A stream of ours ends before its end."""
        if self._streams.pop(number, None) is not None:
            self._http2.reset(number, code)
            self._pump_soon()
            self._rest_if_idle()

    # --- ends

    def _break_off(self, violation: Http2Violation) -> None:
        """Say why, hear nothing more, and go: never longer than ``flush_timeout``."""
        self.host.broken(violation)
        self._lost(ClientMisbehaved(str(violation), detail=violation.detail))
        if self.transport.get_write_buffer_size() > _MOST_CONTROL:
            self.transport.abort()
            return
        self.transport.write(self._http2.to_send())
        self.set_deadline(monotonic() + self.settings.flush_timeout, self.transport.abort)
        self.transport.write_eof()

    def _rest(self, seconds: float) -> None:
        self.set_deadline(monotonic() + seconds, self.close_if_idle)

    def _rest_if_idle(self) -> None:
        if not self._streams and self.gate.reason is None:
            if self._farewell or self.host.draining:
                self._pump_soon()  # what was said last leaves first
                self.loop.call_soon(self.close_if_idle)
            else:
                self._rest(self.settings.keepalive_timeout)

    def close_if_idle(self) -> None:
        """Nothing more begins (GOAWAY); when the last stream has ended, the connection does."""
        if self.gate.reason is not None or self.transport.is_closing():
            return
        if not self._farewell:
            self._farewell = True
            self.write(self._http2.farewell())
        if not self._streams:
            self.set_deadline(monotonic() + self.settings.flush_timeout, self.transport.abort)
            self.transport.close()

    async def _live(self) -> None:
        """Until it is closed. Cancelling it cuts it."""
        try:
            await self._get_close_waiter(self.writer)
        except asyncio.CancelledError:
            self.transport.abort()
            raise

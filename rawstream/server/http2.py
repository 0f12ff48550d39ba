"""HTTP/2 connections: many streams on one socket, each with its own backpressure.

Rule 1: a stream may write when its window, the connection's window and the socket's transport all have room. Whichever
        has none, the stream waits, and with it its source; the others do not notice.
Rule 2: what a stream could not write yet is bounded by the same marks as a whole HTTP/1.1 connection's, and lies with
        the stream; the connection itself holds one write's worth.
Rule 3: streams that have something to write take turns, a frame each.
Rule 4: control frames do not wait behind data, and are bounded: who makes us say too much is cut.

Theory of operation: a stream is a ``Connection`` on a transport of its own (``StreamTransport``), whose ``write`` keeps
what cannot leave, and whose marks open and shut the gate. So an exchange and a pump do not know the difference.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

from h2.errors import ErrorCodes

from rawstream.errors import ClientDisconnected, ProtocolViolation, RawstreamError
from rawstream.flow import kernel
from rawstream.server.channel import Channel, Host
from rawstream.server.connection import BEFORE_THE_CUT
from rawstream.server.exchange import Exchange
from rawstream.server.link import Link
from rawstream.wire.chunks import END_OF_BODY, EndOfBody
from rawstream.wire.guard import HeadLimits
from rawstream.wire.http1 import NEED_DATA, RequestHead
from rawstream.wire.http2 import Began, Body, Complete, Gone, Http2, Http2Violation, Limits, Opened, Reset

_MOST_CONTROL: Final = 64 * 1024
"""Bytes of control frames and heads that may wait for a peer that does not read."""


class StreamTransport(asyncio.Transport):
    """Where one stream writes. Bytes that have no room yet wait here."""

    __slots__ = ("_closed", "_high", "_low", "_paused", "connection", "ending", "number", "pending", "stream", "waits")

    def __init__(self, connection: Http2Connection, number: int, stream: Http2Stream) -> None:
        self.connection = connection
        self.number = number
        self.stream = stream
        self.pending = bytearray()
        self.ending = False
        """Nothing follows what is pending: the stream ends with it."""
        self.waits = False
        """Is it in the queue of those that have something to write?"""
        self._closed = False
        self._paused = False
        self._high, self._low = connection.settings.write_high, connection.settings.write_low

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.connection.transport.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.stream

    # --- writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed:
            return
        self.pending += data
        self.connection.has_something(self)
        self.judge()

    def judge(self) -> None:
        """Tell the stream when it passes its marks."""
        size = len(self.pending)
        if not self._paused and size > self._high:
            self._paused = True
            self.stream.pause_writing()
        elif self._paused and size <= self._low:
            self._paused = False
            self.stream.resume_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.pending)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = self.connection.settings.write_high if high is None else high
        self._low = self._high // 4 if low is None else low
        self.judge()

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        """A stream's end is said with its last bytes."""

    # --- reading: a stream that is not read is not given back its window

    def pause_reading(self) -> None:
        """Nothing to do: the window does it."""

    def resume_reading(self) -> None:
        """Nothing to do: the window does it."""

    def is_reading(self) -> bool:
        return not self._closed

    # --- ends

    def is_closing(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._end(ErrorCodes.NO_ERROR)

    def abort(self) -> None:
        self._end(ErrorCodes.INTERNAL_ERROR)

    def _end(self, code: ErrorCodes) -> None:
        if not self._closed:
            self.connection.give_up(self.number, code)
            self.lost(None)

    def lost(self, error: Exception | None) -> None:
        """The stream is over, in whatever way."""
        if self._closed:
            return
        self._closed = True
        self.pending.clear()
        self.connection.loop.call_soon(self.stream.connection_lost, error)


class StreamCodec:
    """Implements ``wire.codec.Codec`` for one stream."""

    __slots__ = ("_body", "_continue", "_left", "_limit", "_over", "_transport", "_whole", "framing")

    def __init__(self, transport: StreamTransport, head: RequestHead, limit: int) -> None:
        """``limit``: most bytes of the request's body."""
        self._transport = transport
        self._body: deque[bytes] = deque()
        self._left = limit
        self._limit = limit
        self._whole = not head.has_body
        self._continue = head.expects_continue
        self._over = False
        self.framing = "http2"

    # --- the request

    def arrived(self, data: bytes) -> None:
        """Some of the request's body."""
        self._body.append(data)

    def ended(self) -> None:
        """All of the request is there."""
        self._whole = True

    def receive(self, data: bytes) -> None:
        """Bytes come as frames, and were taken when they came: this is the news that some did."""

    @property
    def buffered(self) -> int:
        return sum(map(len, self._body))

    @property
    def body_complete(self) -> bool:
        return self._whole and not self._body

    def next_body(self) -> bytes | EndOfBody | None:
        """As HTTP/1.1's. What is taken is given back to the peer as window."""
        if self._body:
            data = self._body.popleft()
            self._left -= len(data)
            if self._left < 0:
                raise ProtocolViolation(f"the body is longer than {self._limit} bytes", status=413)
            self._transport.connection.consumed(self._transport.number, len(data))
            return data
        return END_OF_BODY if self._whole else NEED_DATA

    def continue_100(self) -> bytes:
        if self._continue and not self._whole:
            self._continue = False
            self._transport.connection.begin_answer(self._transport.number, 100, (), end=False)
        return b""

    # --- the response

    def response_head(self, status: int, headers: Sequence[tuple[str, str]], *, head_only: bool = False) -> bytes:
        """Sends it at once, in order before all data; nothing is left to be written."""
        self._transport.connection.begin_answer(self._transport.number, status, headers, end=False)
        return b""

    def frame(self, data: bytes) -> bytes:
        return data

    def end(self, last: bytes = b"") -> bytes:
        self._over = True
        self._transport.ending = True
        return last

    def next_cycle(self) -> bool:
        """A stream serves one request; True: its answer is whole."""
        return self._over


class Http2Stream(Channel):
    """One stream: a connection that serves one request."""

    __slots__ = ("_codec", "_transport", "parent")

    def __init__(self, parent: Http2Connection, number: int, head: RequestHead) -> None:
        super().__init__(parent.host, parent.loop, operator=parent.operator)
        self.parent = parent
        self.secured = parent.secured
        self._transport = StreamTransport(parent, number, self)
        self._codec = StreamCodec(self._transport, head, self.settings.max_body)
        self.connection_made(self._transport)

    @property
    def codec(self) -> StreamCodec:
        return self._codec

    @property
    def lane(self) -> StreamTransport:
        """Its transport, as what it is."""
        return self._transport

    def begin(self, head: RequestHead, fault: ProtocolViolation | None) -> None:
        """Answer the request."""
        self.task = self.loop.create_task(self._answer(head, fault), name="stream")

    def unwritten(self) -> tuple[int, int]:
        """Of all that was written: bytes that had room to leave, and bytes that wait for it."""
        waiting = self.transport.get_write_buffer_size()
        return self.written - waiting, waiting

    @property
    def sock(self) -> kernel.SocketLike | None:
        """None: what the kernel says of the socket is not of one stream."""
        return None

    async def read_some(self) -> bytes:
        """News of the request's body; b'' at its end. Raises what a deadline set."""
        data = await self.reader.read(1 << 16)
        self._unread -= len(data)
        return data

    async def _answer(self, head: RequestHead, fault: ProtocolViolation | None) -> None:
        try:
            if fault is None:
                done = await self.host.answer(self, head)
            else:
                exchange = Exchange(self, head)
                await exchange.refuse(fault)
                done = exchange.complete()
        except RawstreamError:
            done = False
        if self._cut is not None and self.gate.reason is None:
            await self._until_closed(BEFORE_THE_CUT, self._cut)
        elif not done and self.gate.reason is None:
            self.transport.abort()
        self._deadline.close()


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
                self.has_something(transport, pump=False)

    # --- writing

    def begin_answer(self, number: int, status: int, headers: Sequence[tuple[str, str]], *, end: bool) -> None:
        """The head of a stream's answer."""
        self._http2.head(number, status, headers, end=end)
        self._say()

    def consumed(self, number: int, size: int) -> None:
        """Bytes of a request's body were read."""
        self._http2.consumed(number, size)
        self._say()

    def has_something(self, transport: StreamTransport, *, pump: bool = True) -> None:
        """A stream has something to write, or its end to say."""
        if not transport.waits:
            transport.waits = True
            self._queue.append(transport)
        if pump:
            self._pump()

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

"""One stream of an HTTP/2 connection, as a channel of its own: a transport, a codec, and whoever answers.

Rule 1: what a stream could not write yet lies with it, bounded by the same marks as a whole HTTP/1.1 connection's; they
        open and shut its gate. So an exchange, a pump and a replay do not know the difference.
Rule 2: the window that a request's body took is given back as the body is read (RFC 9113 §5.2): who uploads faster than
        it is wanted waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

from h2.errors import ErrorCodes

from rawstream.errors import ClientDisconnected, ProtocolViolation, RawstreamError
from rawstream.flow import kernel
from rawstream.server.channel import Channel, Host, Http2Levels
from rawstream.server.connection import BEFORE_THE_CUT
from rawstream.server.exchange import Exchange
from rawstream.server.link import SecuredTransport
from rawstream.settings import Settings
from rawstream.wire.chunks import END_OF_BODY, EndOfBody
from rawstream.wire.http1 import NEED_DATA, RequestHead

_BODY: Final = 1 << 16
"""Marks of arrived frames that are taken at a time."""


class Parent(Protocol):
    """What a stream needs of its connection."""

    host: Host
    loop: asyncio.AbstractEventLoop
    operator: bool
    secured: SecuredTransport | None
    settings: Settings
    transport: asyncio.Transport

    def has_something(self, lane: StreamTransport) -> None:
        """A stream has something to write, or its end to say."""
        ...

    def begin_answer(self, number: int, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """The head of a stream's answer."""
        ...

    def consumed(self, number: int, size: int) -> None:
        """Bytes of a request's body were read."""
        ...

    def give_up(self, number: int, code: ErrorCodes) -> None:
        """A stream of ours ends before its end."""
        ...

    def levels(self, number: int) -> Http2Levels:
        """What the windows allow."""
        ...


class StreamTransport(asyncio.Transport):
    """Where one stream writes. Bytes that have no room yet wait here."""

    __slots__ = (
        "_closed",
        "_high",
        "_low",
        "_paused",
        "connection",
        "ended",
        "ending",
        "number",
        "pending",
        "stream",
        "waits",
    )

    def __init__(self, connection: Parent, number: int, stream: Http2Stream) -> None:
        self.connection = connection
        self.number = number
        self.stream = stream
        self.pending = bytearray()
        self.ending = False
        """Nothing follows what is pending: the stream ends with it."""
        self.ended = False
        """It has ended: all was given to the connection."""
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
        self.framing = "http2" if head.method != "HEAD" else "none"

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
    def whole(self) -> bool:
        """Has all of the request come?"""
        return self._whole

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
            self._transport.connection.begin_answer(self._transport.number, 100, ())
        return b""

    # --- the response

    def response_head(self, status: int, headers: Sequence[tuple[str, str]], *, head_only: bool = False) -> bytes:
        """Sends it at once, in order before all data; nothing is left to be written."""
        if head_only or status in (204, 304):
            self.framing = "none"
        self._transport.connection.begin_answer(self._transport.number, status, headers)
        return b""

    def frame(self, data: bytes) -> bytes:
        return data if self.framing != "none" else b""

    def end(self, last: bytes = b"") -> bytes:
        self._over = True
        self._transport.ending = True
        return self.frame(last)

    def next_cycle(self) -> bool:
        """A stream serves one request; True: its answer is whole."""
        return self._over


class Http2Stream(Channel):
    """One stream: a connection that serves one request."""

    __slots__ = ("_codec", "_transport", "parent")

    def __init__(self, parent: Parent, number: int, head: RequestHead) -> None:
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

    def news(self) -> None:
        """More of the request has come, or its end."""
        self.data_received(b"\0")

    def lost(self, reason: RawstreamError) -> None:
        """The stream is gone, for ``reason``."""
        self._lost(reason)

    def levels(self) -> Http2Levels | None:
        return self.parent.levels(self._transport.number)

    def unwritten(self) -> tuple[int, int]:
        """Of all that was written: bytes that had room to leave, and bytes that wait for it."""
        waiting = self.transport.get_write_buffer_size()
        return self.written - waiting, waiting

    @property
    def sock(self) -> kernel.SocketLike | None:
        """None: what the kernel says of the socket is not of one stream."""
        return None

    async def read_some(self) -> bytes:
        """News of the request's body. Raises what a deadline set, and what ended the stream."""
        data = await self.reader.read(_BODY)
        if not data:  # its end comes as news: this is the stream's
            raise self.gate.reason or ClientDisconnected("the client gave its stream up")
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

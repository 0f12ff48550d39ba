"""Whatever opens and shuts on the way, no stream of HTTP/2 is forgotten: all that has room leaves, and no more."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from h2.settings import SettingCodes
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from rawstream.errors import ProtocolViolation
from rawstream.server.channel import Channel, ClientConnection
from rawstream.server.exchange import Exchange
from rawstream.server.http2 import Http2Connection
from rawstream.settings import Settings
from rawstream.wire.guard import RequestHead
from rawstream.wire.http2_frames import (
    DATA,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Http2Violation,
)

ENOUGH = 1 << 24
"""Bytes of window that nothing here uses up."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class Pipe(asyncio.Transport):
    """A transport with asyncio's own marks, before a kernel that holds ``kernel`` bytes until the test takes them."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.left = bytearray()
        """What the kernel has."""
        self.held = bytearray()
        self.protocol: Any = None
        self.paused = False
        self.closed = False
        self.high, self.low = 1 << 16, 1 << 14

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.held += data
        self._send()

    def take(self, count: int) -> bytes:
        taken = bytes(self.left[:count])
        del self.left[:count]
        if len(taken) < count and not self.kernel:
            taken = bytes(self.held[:count])
            del self.held[:count]
        self._send()
        return taken

    def _send(self) -> None:
        room = self.kernel - len(self.left)
        if room > 0:
            self.left += self.held[:room]
            del self.held[:room]
        self._judge()

    def _judge(self) -> None:
        if not self.paused and len(self.held) > self.high:
            self.paused = True
            self.protocol.pause_writing()
        elif self.paused and len(self.held) <= self.low:
            self.paused = False
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.held)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = 1 << 16 if high is None else high
        self.low = self.high // 4 if low is None else low
        if not self.paused:
            self._judge()

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        raise AssertionError("nothing here is a reason to cut the connection")


class Host:
    """Answers each request with writes of these sizes."""

    def __init__(self, sizes: list[int]) -> None:
        self.settings = Settings()
        self.draining = False
        self.sizes = sizes

    def connection_opened(self, connection: ClientConnection) -> None: ...

    def connection_closed(self, connection: ClientConnection) -> None: ...

    async def answer(self, channel: Channel, head: RequestHead) -> bool:
        exchange = Exchange(channel, head)
        exchange.start(200, ())
        for size in self.sizes:
            await exchange.wait_writable()
            exchange.write_nowait(bytes(size))
            if size % 2:
                await asyncio.sleep(0)
        await exchange.finish()
        return exchange.complete()

    def refusal(self, channel: Channel, error: ProtocolViolation) -> bytes:
        raise error

    def broken(self, violation: Http2Violation) -> None:
        raise violation


class Talk:
    """A client that says what it is told to, and the server's connection."""

    def __init__(self, sizes: list[int], kernel: int, window: int, connection_window: int) -> None:
        self.pipe = Pipe(kernel)
        self.connection = Http2Connection(Host(sizes), asyncio.get_running_loop())
        self.pipe.protocol = self.connection
        self.connection.connection_made(self.pipe)
        self.encoder = Encoder()
        self.begun = 0
        self.got: dict[int, int] = {}
        """Bytes that came, by stream; those that were given up are not in it."""
        self.ended: set[int] = set()
        self.kept = b""
        settings = frame(SETTINGS, 0, 0, struct.pack(">HL", SettingCodes.INITIAL_WINDOW_SIZE, window))
        self.connection.data_received(PREFACE + settings)
        if connection_window:
            self.say(WINDOW_UPDATE, 0, connection_window)

    def say(self, kind: int, stream: int, value: int) -> None:
        self.connection.data_received(frame(kind, 0, stream, struct.pack(">L", value)))

    def begin(self) -> None:
        stream = 2 * self.begun + 1
        self.begun += 1
        self.got[stream] = 0
        head = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/")]
        self.connection.data_received(frame(HEADERS, 5, stream, self.encoder.encode(head)))

    def hear(self, count: int) -> int:
        """Take so many bytes from the server; how many there were."""
        data = self.pipe.take(count)
        self.kept += data
        while len(self.kept) >= 9:
            high, low, kind, flags, stream = struct.unpack_from(">HBBBL", self.kept)
            end = 9 + (high << 8 | low)
            if len(self.kept) < end:
                break
            self.kept = self.kept[end:]
            assert kind in (DATA, HEADERS, SETTINGS), f"nothing here is a reason for a frame of kind {kind}"
            if kind == DATA and stream in self.got:
                self.got[stream] += end - 9
                if flags & 1:
                    self.ended.add(stream)
        return len(data)

    def running(self) -> list[int]:
        return [stream for stream in self.got if stream not in self.ended]

    def step(self, kind: str, amount: int) -> None:
        running = self.running()
        one = running[amount % len(running)] if running else 0
        if kind == "take":
            self.hear(amount)
        elif kind == "begin":
            self.begin()
        elif kind == "settings":
            value = struct.pack(">HL", SettingCodes.INITIAL_WINDOW_SIZE, amount)
            self.connection.data_received(frame(SETTINGS, 0, 0, value))
        elif kind == "all":
            self.say(WINDOW_UPDATE, 0, amount)
        elif one and kind == "one":
            self.say(WINDOW_UPDATE, one, amount)
        elif one and kind == "reset":
            self.say(RST_STREAM, one, 8)
            del self.got[one]

    async def to_the_end(self, last: str) -> None:
        """What is named last opens last: as long as anything comes, the server is not done."""
        for kind in sorted(("all", "settings", "one"), key=lambda kind: kind == last):
            if kind == "one" and last == "one":
                for stream in self.running():
                    self.say(WINDOW_UPDATE, stream, ENOUGH)
            elif kind == "all" or (kind == "settings" and last != "one"):
                self.step(kind, ENOUGH)
            quiet = 0
            while quiet < 20:
                await asyncio.sleep(0)
                quiet = 0 if self.hear(ENOUGH) else quiet + 1


KINDS = ("take", "take", "begin", "one", "one", "all", "all", "settings", "reset", "turn", "turn")
AMOUNTS = st.one_of(st.integers(1, 40), st.integers(1, 20_000))


@given(
    sizes=st.lists(st.integers(1, 9_000), min_size=1, max_size=8),
    kernel=st.one_of(st.just(0), st.integers(0, 20_000)),
    windows=st.tuples(st.one_of(st.integers(0, 100), st.integers(0, 70_000)), st.sampled_from((0, ENOUGH))),
    streams=st.integers(1, 6),
    steps=st.lists(st.tuples(st.sampled_from(KINDS), AMOUNTS), max_size=40),
    last=st.sampled_from(("one", "all", "settings")),
)
def test_all_that_was_written_comes_once_it_may(
    sizes: list[int], kernel: int, windows: tuple[int, int], streams: int, steps: list[tuple[str, int]], last: str
) -> None:
    """Windows opened by crumbs, made smaller, shut; a transport that pauses and resumes at any point between."""

    async def talk() -> None:
        talking = Talk(sizes, kernel, *windows)
        for _ in range(streams):
            talking.begin()
        for kind, amount in steps:
            if kind == "turn":
                await asyncio.sleep(0)
            else:
                talking.step(kind, amount)
        await talking.to_the_end(last)
        assert talking.got == dict.fromkeys(talking.got, sum(sizes))
        assert not talking.running()
        talking.pipe.closed = True
        talking.connection.connection_lost(None)
        await talking.connection.task

    asyncio.run(talk())

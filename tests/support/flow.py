"""What the tests of the flow stand on: a response that really pushes back, real sockets, counted sources.

Rule 1: the fake pauses and resumes by the same ``Gate`` as a connection; it has a capacity, and means it.
Rule 2: nobody sleeps to wait for a state. ``until`` looks again and again, and has a deadline.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from time import monotonic
from typing import Protocol

import rawstream
from rawstream.errors import ClientDisconnected, ProtocolViolation, RawstreamError
from rawstream.flow import kernel
from rawstream.flow.gate import Gate, GateState
from rawstream.flow.meter import Meter
from rawstream.flow.pump import Delivery, produce
from rawstream.model import Headers, Request, Response, SourceItem, StreamRecord, TokenItem, TokenStream
from rawstream.server.channel import Channel, ClientConnection
from rawstream.server.connection import Connection
from rawstream.server.exchange import Exchange
from rawstream.settings import Settings
from rawstream.wire.http1 import RequestHead
from rawstream.wire.http2_frames import Http2Violation

PATIENCE = 10.0
"""Seconds after which a test that waits has failed."""


async def until(holds: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
    """Wait until ``holds()``; AssertionError naming ``what`` after ``timeout`` seconds."""
    give_up = monotonic() + timeout
    while not holds():
        assert monotonic() < give_up, f"waited {timeout:g} s in vain until {what}"
        await asyncio.sleep(0.001)


async def turns(count: int = 20) -> None:
    """Let every other task have its chance to run, ``count`` times: after it, "blocked" means something."""
    for _ in range(count):
        await asyncio.sleep(0)


class Clock:
    """Time that passes only when a test says so. Seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Plain:
    """Frames that are easy to tell apart: ``<`` head, text, ``~`` heartbeat, ``!code`` error, ``>`` end, ``.`` stop."""

    name = "plain"
    heartbeat = b"~"
    headers: Headers = ()

    def head(self) -> bytes:
        return b"<"

    def encode(self, items: Sequence[TokenItem]) -> bytes:
        return "".join(item if isinstance(item, str) else item.text for item in items).encode()

    def error(self, message: str, code: str) -> bytes:
        return b"!" + code.encode()

    def terminal(self, finish_reason: str | None = None, reason: str | None = None) -> bytes:
        return b">" + (finish_reason or "").encode() + (reason or "").encode()

    def stopped(self, reason: str) -> bytes:
        return b"." + reason.encode()


class FakeResponse:
    """A ``model.Response`` in memory. Full at ``capacity`` bytes, or at ``writes`` writes, until somebody reads."""

    def __init__(self, *, capacity: int = 1 << 40, writes: int | None = None) -> None:
        self.capacity = capacity
        self.max_writes = writes
        self.gate = Gate()
        self.log: list[tuple[str, bytes]] = []
        """What was done: ``("write", frames)``, ``("finish", last)`` …, in order."""
        self._held: list[bytes] = []
        self._arrived = asyncio.Event()
        self.ended = False

    # --- the reader's side

    @property
    def buffered(self) -> int:
        return sum(map(len, self._held))

    @property
    def writes(self) -> list[bytes]:
        return [data for kind, data in self.log if kind == "write"]

    @property
    def body(self) -> bytes:
        """All bytes ever written."""
        return b"".join(data for _, data in self.log)

    def _full(self) -> bool:
        return self.buffered >= self.capacity or (self.max_writes is not None and len(self._held) >= self.max_writes)

    def read(self, n: int = 1 << 40) -> bytes:
        """Take at most ``n`` bytes; makes room."""
        held = b"".join(self._held)
        taken, rest = held[:n], held[n:]
        self._held = [rest] if rest else []
        self._made_room()
        return taken

    def take(self) -> bytes:
        """Take one write; makes room. b'' when there is none."""
        taken = self._held.pop(0) if self._held else b""
        self._made_room()
        return taken

    def _made_room(self) -> None:
        if not self._held:
            self._arrived.clear()
        if self.gate.state is GateState.PAUSED and not self._full():
            self.gate.resume()

    def lose(self, reason: RawstreamError) -> None:
        self.gate.lose(reason)
        self._arrived.set()

    async def arrived(self) -> None:
        """Wait until something was written that nobody has read, or the end."""
        async with asyncio.timeout(PATIENCE):
            await self._arrived.wait()

    async def blocked(self) -> None:
        """Wait until a producer waits for room."""
        await until(lambda: self.gate.waiting, "a producer waits for room")

    # --- model.Response

    def start(self, status: int, headers: Headers) -> None:
        self.log.append(("start", b""))

    @property
    def room(self) -> int:
        if self.gate.state is not GateState.OPEN:
            return 0
        return 1 if self.max_writes is not None else self.capacity - self.buffered

    async def wait_writable(self) -> None:
        await self.gate.wait_open()

    async def drain(self) -> None:
        await self.gate.wait_open()

    def _put(self, kind: str, data: bytes) -> None:
        self.gate.check()
        self.log.append((kind, data))
        if data:
            self._held.append(data)
        self._arrived.set()
        if self.gate.state is GateState.OPEN and self._full():
            self.gate.pause()

    def write_nowait(self, data: bytes) -> bool:
        self._put("write", data)
        return self.room > 0

    async def finish(self, last: bytes = b"") -> None:
        self._put("finish", last)
        self._end()

    async def cut(self, last: bytes = b"") -> None:
        self._put("cut", last)
        self._end()

    def abort(self) -> None:
        self.log.append(("abort", b""))
        self._end()

    def _end(self) -> None:
        self.ended = True
        self._arrived.set()


class Counted:
    """A source that counts: ``asked`` (items asked for), ``given`` (items given), ``closed`` (``finally`` ran)."""

    name = "counted"

    def __init__(self, items: Callable[[], AsyncGenerator[SourceItem, None]]) -> None:
        self._items = items
        self.asked = 0
        self.given = 0
        self.closed = asyncio.Event()
        self.running: list[AsyncGenerator[SourceItem, None]] = []
        """References to all generations, so that only ``aclose()`` can close them, and no garbage collector."""

    def tokens(self, request: Request | None = None) -> AsyncGenerator[SourceItem, None]:
        generation = self._count()
        self.running.append(generation)
        return generation

    async def _count(self) -> AsyncGenerator[SourceItem, None]:
        try:
            async with aclosing(self._items()) as items:
                self.asked += 1
                async for item in items:
                    self.given += 1
                    yield item
                    self.asked += 1
        finally:
            self.closed.set()

    async def aclose(self) -> None:
        """Nothing is shared."""

    async def was_closed(self) -> None:
        """Wait until a generation's ``finally`` has run."""
        async with asyncio.timeout(PATIENCE):
            await self.closed.wait()


async def repeat(item: SourceItem, times: int | None = None) -> AsyncGenerator[SourceItem, None]:
    """``item``, ``times`` times (None: for ever), never suspending."""
    count = 0
    while times is None or count < times:
        count += 1
        yield item


async def stream_to(response: Response, tokens: TokenStream, *, write_size: int = 2048, hold: float = 0.0001) -> Meter:
    """What a server does for one stream: produce, deliver, finish, and close the source whatever happens."""
    meter = Meter(monotonic())
    delivery = Delivery(response, Plain(), meter, ())
    async with aclosing(tokens):
        last = await produce(tokens, Plain(), delivery, meter, write_size=write_size, hold=hold)
        await delivery.finish(last)
    return meter


# --- links: one contract, in memory and over real sockets -------------------------------------------------------


class Link(Protocol):
    """A response, and the client at its other end."""

    response: Response
    gate: Gate
    bound: int
    """Bytes that may be taken from the source and not yet by the client's kernel, plus what that may take."""

    async def read(self) -> bytes:
        """Some bytes of the body; b'' at its end. Raises ConnectionError where it was cut."""
        ...

    async def leave(self) -> None:
        """The client goes away without a word."""
        ...


class FakeLink:
    bound = 4096 + 2048

    def __init__(self) -> None:
        self.fake = FakeResponse(capacity=4096)
        self.response: Response = self.fake
        self.gate = self.fake.gate

    async def read(self) -> bytes:
        await self.fake.arrived()
        data = self.fake.read(1024)
        if not data and not self.fake.ended:
            raise ConnectionResetError
        return data

    async def leave(self) -> None:
        self.fake.lose(ClientDisconnected("the client closed the connection"))


class _Host:
    """The least that a ``Connection`` can belong to: it hands its one exchange to the test."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.draining = False
        self.exchange: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()

    def connection_opened(self, connection: ClientConnection) -> None: ...

    def connection_closed(self, connection: ClientConnection) -> None: ...

    async def answer(self, connection: Channel, head: RequestHead) -> bool:
        exchange = Exchange(connection, head)
        exchange.close_after = True
        self.exchange.set_result(exchange)
        await self.over.wait()
        return False

    def refusal(self, connection: Channel, error: ProtocolViolation) -> bytes:
        raise error

    def broken(self, violation: Http2Violation) -> None:
        raise violation

    def speaks_http2(self, connection: Connection, first: bytes) -> None:
        raise AssertionError("no test of these speaks HTTP/2")


class Client:
    """A client of raw bytes, with a small receive buffer unless told otherwise. Every wait has a deadline."""

    def __init__(self, *, rcvbuf: int = 4096) -> None:
        self.sock = socket.socket()
        if rcvbuf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.sock.setblocking(False)
        self.received = b""

    async def connect(self, port: int) -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_connect(self.sock, ("127.0.0.1", port))

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def read(self, n: int = 4096) -> bytes:
        """Some bytes; b'' at the end."""
        async with asyncio.timeout(PATIENCE):
            data = await asyncio.get_running_loop().sock_recv(self.sock, n)
        self.received += data
        return data

    async def read_until(self, mark: bytes, count: int = 1) -> bytes:
        """All that was received, once ``mark`` is in it ``count`` times."""
        while self.received.count(mark) < count:
            assert await self.read(), f"ended without {mark!r}: {self.received[-200:]!r}"
        return self.received

    async def read_all(self) -> bytes:
        """All that was received, up to the end."""
        while await self.read():
            pass
        return self.received

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Go with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class SocketLink:
    """An ``Exchange`` over a real connection on the running loop; HTTP/1.0, so that the body is as it was written."""

    # 16 KiB are ours to hold; a receive buffer of 4 KiB (which Linux doubles) takes the rest.
    bound = 16 * 1024 + 2 * 4096

    def __init__(self, connection: Connection, exchange: Exchange, client: Client) -> None:
        self.connection = connection
        self.response: Response = exchange
        self.gate = connection.gate
        self.client = client
        self._in_body = False

    async def read(self) -> bytes:
        if not self._in_body:
            await self.client.read_until(b"\r\n\r\n")
            self._in_body = True
            body = self.client.received.partition(b"\r\n\r\n")[2]
            if body:
                return body
        return await self.client.read()

    async def leave(self) -> None:
        self.client.reset()


@asynccontextmanager
async def socket_link(settings: Settings | None = None) -> AsyncIterator[SocketLink]:
    """One client's request on a real connection, waiting for its answer."""
    loop = asyncio.get_running_loop()
    settings = settings or Settings()
    host = _Host(settings)
    listening = socket.create_server(("127.0.0.1", 0))
    client = Client()
    try:
        await client.connect(listening.getsockname()[1])
        accepted, _ = listening.accept()
        accepted.setblocking(False)
        kernel.bound_send_side(accepted, notsent_lowat=settings.notsent_lowat, sndbuf=settings.sndbuf)
        _, connection = await loop.connect_accepted_socket(lambda: Connection(host, loop, accepted), accepted)
        try:
            await client.send(b"GET / HTTP/1.0\r\n\r\n")
            async with asyncio.timeout(PATIENCE):
                exchange = await host.exchange
            yield SocketLink(connection, exchange, client)
        finally:
            host.over.set()
            connection.transport.abort()
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait([connection.task])
    finally:
        client.close()
        listening.close()


# --- a whole server ---------------------------------------------------------------------------------------------


class Recorder:
    """An observer that tells how streams ended."""

    def __init__(self) -> None:
        self._ended: asyncio.Queue[StreamRecord] = asyncio.Queue()

    def stream_started(self, stream_id: str, path: str, dialect: str) -> None: ...

    def stream_ended(self, record: StreamRecord) -> None:
        self._ended.put_nowait(record)

    async def ended(self) -> StreamRecord:
        """The next stream's end."""
        async with asyncio.timeout(PATIENCE):
            return await self._ended.get()


class Served:
    """A running server, how its streams ended, and clients for it."""

    def __init__(self, server: rawstream.Server, recorder: Recorder, stack: AsyncExitStack) -> None:
        self.server = server
        self.recorder = recorder
        self._stack = stack

    async def client(self, request: bytes = b"", *, rcvbuf: int = 4096) -> Client:
        client = Client(rcvbuf=rcvbuf)
        self._stack.callback(client.close)
        await client.connect(self.server.port)
        if request:
            await client.send(request)
        return client

    async def ended(self) -> StreamRecord:
        return await self.recorder.ended()

    @property
    def connection(self) -> Connection:
        """The only connection that is open."""
        (connection,) = self.server.app.connections
        assert isinstance(connection, Connection)
        return connection

    def outcomes(self) -> dict[str, int]:
        return {name: count for name, count in self.server.app.streams.totals.outcomes.items() if count}


def get(path: str, version: str = "1.1", *fields: str) -> bytes:
    lines = [f"GET {path} HTTP/{version}", "Host: localhost", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def post(path: str, body: str = '{"prompt":"hello"}', *fields: str) -> bytes:
    content = body.encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *fields]
    return ("\r\n".join(lines) + f"\r\nContent-Length: {len(content)}\r\n\r\n").encode() + content


@asynccontextmanager
async def serving(source: object, settings: Settings | None = None) -> AsyncIterator[Served]:
    """A server on a free port. Leaving aborts what runs, and shows that nothing is left."""
    recorder = Recorder()
    server = rawstream.Server(settings or Settings(port=0), source, observers=(recorder,))
    async with AsyncExitStack() as stack:
        await server.start()
        try:
            yield Served(server, recorder, stack)
        finally:
            server.hurry()
            await server.close(drain=0)
    app = server.app
    await until(lambda: not len(app.streams), "no stream is left")
    assert app.streams.admission.streams == 0
    await until(lambda: not app.connections, "no connection is left")

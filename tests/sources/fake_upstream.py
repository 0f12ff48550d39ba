"""A scripted upstream on a raw socket: whatever bytes, whenever, however it ends."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, TypeAlias

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CLOSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def delta(text: str | None, finish: str | None = None, index: int = 0) -> bytes:
    """One event of an answer."""
    content = {} if text is None else {"content": text}
    choice = {"index": index, "delta": content, "finish_reason": finish}
    return event({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


FINISH = delta(None, "stop")
DONE = b"data: [DONE]\n\n"
ANSWER = delta("Hello") + delta(" world") + FINISH + DONE


class Asked:
    """A request as it arrived."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.line = lines[0]
        self.headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        self.raw_head = head
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Peer:
    """The upstream's end of one connection."""

    def __init__(self, upstream: FakeUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._upstream = upstream
        self._reader = reader
        self.writer = writer

    async def request(self) -> Asked:
        """The next request; IncompleteReadError when the other side has closed."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        asked = Asked(head, b"")
        asked.body = await self._reader.readexactly(int(asked.headers.get("content-length", "0")))
        self._upstream.take(asked)
        return asked

    async def send(self, *pieces: bytes, apart: float = 0.0) -> None:
        """Send, each piece in a packet of its own if ``apart`` (seconds) is given."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            if apart:
                await asyncio.sleep(apart)

    async def closed(self) -> None:
        """Wait until the other side has closed."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            pass

    def reset(self) -> None:
        """Close with a RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def finish(self) -> None:
        """Close with a FIN."""
        self.writer.close()


Script: TypeAlias = Callable[[Peer], Awaitable[None]]


class FakeUpstream:
    """Runs ``script`` for each connection; closes the connection when it returns."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self.requests: list[Asked] = []
        self.connections = 0
        self._came = asyncio.Event()
        self.left = asyncio.Event()
        """Set when a script has returned."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FakeUpstream:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def take(self, asked: Asked) -> None:
        """A request has come whole."""
        self.requests.append(asked)
        self._came.set()

    async def until_asked(self, times: int = 1) -> None:
        """Return once that many requests have come."""
        async with asyncio.timeout(5):
            while len(self.requests) < times:
                self._came.clear()
                await self._came.wait()

    @property
    def url(self) -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._script(Peer(self, reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side went first, as many scripts want it
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._tasks.discard(task)
            self.left.set()
            if not writer.is_closing():
                writer.close()


def answering(*pieces: bytes) -> Script:
    """A script that answers each request with these bytes, and keeps the connection open."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(*pieces)

    return script


def answering_once(*pieces: bytes, apart: float = 0.0) -> Script:
    """A script that answers one request with these bytes, and closes the connection."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces, apart=apart)

    return script


def answering_and_waiting(*pieces: bytes) -> Script:
    """A script that answers one request with these bytes and then says nothing more."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)
        await peer.closed()

    return script

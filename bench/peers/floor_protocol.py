"""The floor of the loop itself: a bare uvloop ``Protocol`` that writes pre-framed bytes, pauses obeyed."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast

from bench.peers.contract import BACKLOG, SERVER_PATHS, Peer, PeerContext, never_missing, python_version


def _command(ctx: PeerContext) -> list[str]:
    return [sys.executable, "-m", "bench.peers.floor_protocol", ctx.host, str(ctx.port)]


PEERS = (
    Peer(
        name="floor-protocol",
        kind="floor",
        command=_command,
        paths=SERVER_PATHS,
        version=python_version,
        missing=never_missing,
        notes=(
            "A Protocol on uvloop, default write marks: transport.write() per event, a future to wait "
            "on while paused. Pre-framed bytes, no request parsing. A client that leaves cancels the stream's "
            "task."
        ),
    ),
)


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = b""
        self._resumed: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        self._resumed = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._resumed is not None:
            if not self._resumed.done():
                self._resumed.set_result(None)
            self._resumed = None

    def connection_lost(self, error: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._task is None:
            self._next()

    def _next(self) -> None:
        from bench.peers._floor import content_length, is_joined, numbers, stats_answer

        end = self._received.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        length = content_length(self._received[:end])
        if len(self._received) < end + length:
            return
        head, body = self._received[:end], self._received[end : end + length]
        self._received = self._received[end + length :]
        if head.startswith(b"GET /stats"):
            self._transport.write(stats_answer())
        else:
            self._task = asyncio.ensure_future(self._stream(*numbers(body), is_joined(body)))

    async def _stream(self, prompt: str, mock: dict[str, Any], joined: bool) -> None:
        from bench.peers._floor import END, FRAMES, HEAD
        from bench.peers._source import source

        write = self._transport.write
        write(HEAD)
        async for item in source(prompt, mock, FRAMES):
            for frame in (item,) if isinstance(item, bytes) else (b"".join(item),) if joined else item:
                write(frame)
                if self._resumed is not None:
                    await self._resumed
        write(END)
        self._task = None
        self._next()


async def main(host: str, port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, host, port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(sys.argv[1], int(sys.argv[2])))

"""The floor of the streams API: ``StreamWriter.drain()`` after each write of pre-framed bytes, on uvloop."""

from __future__ import annotations

import asyncio
import sys

from bench.peers.contract import BACKLOG, SERVER_PATHS, Peer, PeerContext, never_missing, python_version


def _command(ctx: PeerContext) -> list[str]:
    return [sys.executable, "-m", "bench.peers.floor_drain", ctx.host, str(ctx.port)]


PEERS = (
    Peer(
        name="floor-drain",
        kind="floor",
        command=_command,
        paths=SERVER_PATHS,
        version=python_version,
        missing=never_missing,
        notes=(
            "asyncio.start_server on uvloop; the loop of the asyncio documentation: write(), await drain(). "
            "Default write marks, pre-framed bytes, no request parsing; the tokens of a batch are always one "
            "write. It does not watch for a client that "
            "leaves: it notices at the next write."
        ),
    ),
)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    from bench.peers._floor import END, FRAMES, HEAD, content_length, numbers, stats_answer
    from bench.peers._source import source

    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(content_length(head))
            if head.startswith(b"GET /stats"):
                writer.write(stats_answer())
                await writer.drain()
                continue
            writer.write(HEAD)
            prompt, mock = numbers(body)
            async for item in source(prompt, mock, FRAMES):
                writer.write(item if isinstance(item, bytes) else b"".join(item))
                await writer.drain()
            writer.write(END)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError, RuntimeError):
        pass  # the client has gone; uvloop says RuntimeError when its transport is closed already
    finally:
        writer.close()


async def main(host: str, port: int) -> None:
    server = await asyncio.start_server(answer, host, port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(sys.argv[1], int(sys.argv[2])))

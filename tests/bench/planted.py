"""A small HTTP server with a planted fault, to see whether the harness finds it.

``python -m tests.bench.planted PORT FAULT``, the fault being one of: none · leak (keeps 64 KiB per token) ·
slow-cancel (closes its source 60 ms late) · drop (loses a token) · reorder (swaps two tokens) · double (sends a token
twice) · cut (ends the body without the terminal event) · early (says that it is complete too soon).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path

from bench.peers import Peer, PeerContext, nginx_http2
from bench.peers._source import frame, stats, tokens

_kept: list[bytes] = []
"""What each token of the leak leaves behind."""


def planted_peer(fault: str) -> Peer:
    """The description by which the harness starts this server."""
    return Peer(
        name=f"planted-{fault}",
        kind="server",
        command=lambda ctx: [sys.executable, "-m", "tests.bench.planted", str(ctx.port), fault],
        paths={"chat": "/chat", "stats": "/stats"},
        version=lambda ctx: "1",
        missing=lambda ctx: None,
    )


def behind_nginx(fault: str) -> Peer:
    """The same, and nginx speaks HTTP/2 before it."""
    planted, front = planted_peer(fault), nginx_http2.PEERS[0]

    def command(ctx: PeerContext) -> list[str]:
        return nginx_http2.in_front_of(ctx, lambda port: planted.command(replace(ctx, port=port)))

    return replace(front, name=f"planted-{fault}-http2", command=command)


def _chunk(text: str) -> bytes:
    data = text.encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes, fault: str) -> None:
    decoded = json.loads(body)
    mock = decoded["mock"]
    wrong = fault if not (mock.get("tokens") and mock["tokens"] <= 20) else "none"  # the warm-up goes well
    pulled = tokens(decoded["prompt"], mock)
    leaving = asyncio.ensure_future(reader.read(1))
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    sent = 0
    held: str | None = None
    try:
        while not leaving.done():
            following = asyncio.ensure_future(anext(pulled, None))
            await asyncio.wait({following, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                if wrong == "slow-cancel":
                    await asyncio.sleep(0.06)
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await following
                break
            item = following.result()
            if item is None or (wrong == "early" and sent == 30):
                break
            assert isinstance(item, str | list)
            text = frame(item)
            sent += 1
            if wrong == "leak":
                _kept.append(bytes(65536))
            if wrong == "drop" and sent == 40:
                continue
            if wrong == "reorder" and sent == 40:
                held = text
                continue
            if wrong == "cut" and sent == 40:
                return
            writer.write(_chunk(text + (held or "") + (text if wrong == "double" and sent == 40 else "")))
            held = None
            await writer.drain()
        writer.write(_chunk("data: [DONE]\n\n") + b"0\r\n\r\n")
    finally:
        await pulled.aclose()
        leaving.cancel()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: str) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            body = json.dumps(stats).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        else:
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            await _stream(reader, writer, await reader.readexactly(length), fault)
        await writer.drain()
    writer.close()


async def _main(port: int, fault: str) -> None:
    server = await asyncio.start_server(lambda r, w: _answer(r, w, fault), "127.0.0.1", port, backlog=512)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2]))

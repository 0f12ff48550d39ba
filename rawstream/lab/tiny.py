"""The whole idea in one file: it streams, stops pulling when the client stops, and cancels when the client leaves.

    python -m rawstream.lab.tiny 8001          then: curl -N 'http://127.0.0.1:8001/?prompt=hello'

Standard library and h11 only; copy it, and put your own generator in the place of ``tokens``. Of the README's thirteen
rules it keeps 1 (lost raises), 2 (it gives way), 3 (marks, TCP_NODELAY, TCP_NOTSENT_LOWAT), 4 (the end's flush has a
deadline), 5 (the source is closed, always), 6 (the client is read while its answer streams), 8 (a cut answer never
looks whole: HTTP/1.1 only), 11, 12 (line ends stay inside the JSON) and 13 (a task per connection). It leaves out 7
(who never reads is waited for, for ever), 9 (no heartbeats), 10 (the head comes early), keep-alive, limits and logs.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from urllib.parse import parse_qs, urlsplit

import h11

Source = Callable[[str], AsyncGenerator[str, None]]
HIGH, LOW, NOTSENT_LOWAT, SURPLUS = 2048, 512, 4096, 16384  # bytes
HEADERS = [("content-type", "text/event-stream"), ("cache-control", "no-cache"), ("x-accel-buffering", "no")]


async def tokens(prompt: str) -> AsyncGenerator[str, None]:
    """A stand-in for a model. Asking for the next token is the demand; ``aclose()`` is the cancellation."""
    for word in f"You said: {prompt}. That is all there is to it.".split():
        await asyncio.sleep(0.05)
        yield word + " "


async def request(reader: asyncio.StreamReader, http: h11.Connection) -> h11.Request | None:
    """The request, its body read and dropped; None: there came none, or too much of it."""
    head, size = None, 0
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(4096)
            size += len(data)
            if size > SURPLUS:
                return None
            http.receive_data(data)
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.EndOfMessage):
            return head
        elif not isinstance(event, h11.Data):
            return None  # closed before it was whole


async def stream(writer: asyncio.StreamWriter, http: h11.Connection, answer: AsyncGenerator[str, None]) -> None:
    """Permission first, then production: no token is made that nobody has room for."""
    async with aclosing(answer):
        writer.write(http.send(h11.Response(status_code=200, headers=HEADERS)) or b"")
        while True:
            await writer.drain()  # waits while the transport is above its mark ...
            if writer.transport.is_closing():  # ... and returns as if nothing were wrong when it is lost
                raise ConnectionResetError("the client has gone")
            try:
                token = await anext(answer)
            except StopAsyncIteration:
                break
            event = b"data: " + json.dumps({"token": token}).encode() + b"\n\n"
            writer.write(http.send(h11.Data(data=event)) or b"")  # one write, of bytes
            await asyncio.sleep(0)  # drain() alone does not give way, and the source may never wait
        writer.write(http.send(h11.Data(data=b"data: [DONE]\n\n")) or b"")
        writer.write(http.send(h11.EndOfMessage()) or b"")


async def left(reader: asyncio.StreamReader) -> None:
    """Return when the client has left, or sends what nobody asked for. Who does not read cannot see that."""
    size = 0
    while size <= SURPLUS and (data := await reader.read(4096)):
        size += len(data)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: Source = tokens) -> None:
    """One connection, one request, one answer."""
    writer.transport.set_write_buffer_limits(high=HIGH, low=LOW)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":  # the kernel's buffer, of which drain() knows nothing (25: Python < 3.12)
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, "TCP_NOTSENT_LOWAT", 25), NOTSENT_LOWAT)
    http, whole, tasks = h11.Connection(h11.SERVER), False, list[asyncio.Task[None]]()
    try:
        async with asyncio.timeout(10):
            head = await request(reader, http)
        if head is not None and head.http_version == b"1.1":
            prompt = parse_qs(urlsplit(head.target.decode()).query).get("prompt", [""])[0]
            tasks = [asyncio.create_task(stream(writer, http, source(prompt))), asyncio.create_task(left(reader))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            whole = tasks[0].done() and tasks[0].exception() is None
    except (h11.RemoteProtocolError, TimeoutError, ConnectionError):
        pass
    finally:
        for task in tasks:
            task.cancel()  # for the source: the client has left
        await asyncio.gather(*tasks, return_exceptions=True)
        if whole:
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(1):
                    writer.close()
                    await writer.wait_closed()
        writer.transport.abort()  # what is cut is cut: the chunked body has no end


async def main(port: int = 8001) -> None:
    _server = await asyncio.start_server(serve, "127.0.0.1", port)
    await asyncio.Event().wait()  # until Ctrl-C; serve_forever() would then wait for its clients


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*map(int, sys.argv[1:])))

"""Answers that are not streamed: bounded, cancelled and ended as streams are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from rawstream import Request, Server, Settings
from rawstream.server.endpoints import completions
from tests.support.flow import until

DEADLINE = 10.0


class Waiting:
    """A source whose answer never comes."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.closed = asyncio.Event()

    async def tokens(self, request: Request) -> AsyncIterator[str]:
        self.opened.set()
        try:
            await asyncio.Event().wait()
            yield "never"
        finally:
            self.closed.set()


def asked() -> bytes:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )


async def test_a_client_that_leaves_cancels_its_whole_answer() -> None:
    """Nobody reads it any more: the source is closed, and the count is back."""
    source = Waiting()
    async with asyncio.timeout(DEADLINE), Server(Settings(port=0), source.tokens) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(asked())
        await source.opened.wait()
        assert len(server.app.streams.whole) == 1
        writer.close()
        await source.closed.wait()
        await until(lambda: server.app.streams.admission.streams == 0, "the count is back")


async def test_the_end_of_the_server_is_told_to_whole_answers_too() -> None:
    """After the drain a whole answer gets 503, and its source is closed."""
    source = Waiting()
    async with asyncio.timeout(DEADLINE), Server(Settings(port=0), source.tokens) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(asked())
        await source.opened.wait()
        await server.close(drain=0)
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        assert source.closed.is_set()
        writer.close()


async def test_a_whole_answer_has_a_longest_time() -> None:
    """``stream_timeout`` bounds it as it bounds a stream."""
    source = Waiting()
    async with asyncio.timeout(DEADLINE), Server(Settings(port=0, stream_timeout=0.1), source.tokens) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(asked())
        assert (await reader.readline()).startswith(b"HTTP/1.1 504 ")
        writer.close()


async def test_a_whole_answer_has_a_largest_size() -> None:
    """An endless source cannot fill the memory through it."""

    async def endless() -> AsyncIterator[str]:
        while True:
            yield "x" * (completions.MAX_ANSWER // 4)

    async with asyncio.timeout(DEADLINE), Server(Settings(port=0), endless) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(asked())
        assert (await reader.readline()).startswith(b"HTTP/1.1 500 ")
        writer.close()

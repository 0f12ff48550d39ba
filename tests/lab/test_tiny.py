"""``lab/tiny.py`` keeps what its docstring says: the core's promises for the rules it covers, over real sockets."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rawstream.lab import tiny
from tests.support.flow import PATIENCE, Client, turns, until
from tests.support.raw import data_lines

KIB = 1024
Items = AsyncGenerator[str, None]


class Source:
    """Counts what is asked of it. ``closed`` is set by its ``finally``."""

    def __init__(self, size: int = 50, count: int | None = None, silent_after: int | None = None) -> None:
        self.made = 0
        self.closed = asyncio.Event()
        self.fails_after: int | None = None
        self._size = size
        self._count = count
        self._silent_after = silent_after

    async def __call__(self, prompt: str) -> Items:
        try:
            while self._count is None or self.made < self._count:
                if self.made == self._silent_after:
                    await asyncio.Event().wait()
                if self.made == self.fails_after:
                    raise RuntimeError("broken")
                self.made += 1
                yield prompt or "x" * self._size
        finally:
            self.closed.set()

    async def was_closed(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.closed.wait()


@asynccontextmanager
async def serving(source: tiny.Source) -> AsyncIterator[int]:
    """The port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await tiny.serve(reader, writer, source)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def asking(port: int, target: str = "/", *, rcvbuf: int = 4096, version: str = "1.1") -> AsyncIterator[Client]:
    client = Client(rcvbuf=rcvbuf)
    try:
        await client.connect(port)
        await client.send(f"GET {target} HTTP/{version}\r\nHost: test\r\n\r\n".encode())
        yield client
    finally:
        client.close()


def body(raw: bytes) -> tuple[bytes, bool]:
    """The chunked body in ``raw``, and whether it came to its end."""
    data, rest = b"", raw.partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return data, True
        data, rest = data + rest[:length], rest[length + 2 :]
    return data, False


async def still(source: Source) -> int:
    """Tokens made, once no more of them are."""
    before = -1
    while before != source.made or not before:
        before = source.made
        await turns(200)
        await asyncio.sleep(0.05)  # between two looks
    return before


async def test_an_answer_is_whole(loop_kind: str) -> None:
    """Tokens in order, ``[DONE]``, the clean end; line ends inside a token stay inside it."""
    source = Source(count=3)
    async with serving(source) as port, asking(port, "/?prompt=a%0A%0Adata:+%5BDONE%5D") as client:
        data, whole = body(await client.read_all())
    assert whole
    *events, last = data_lines(data)
    assert [json.loads(event)["token"] for event in events] == ["a\n\ndata: [DONE]"] * 3
    assert last == "[DONE]"
    assert source.closed.is_set()


async def test_a_stalled_client_stops_the_source_within_16_kib(loop_kind: str) -> None:
    """What was made and not read: at most 16 KiB of ours, and the client's receive buffer."""
    source = Source(size=50)
    async with serving(source) as port, asking(port) as client:
        made = await still(source)
        event = len(b'data: {"token": ""}\n\n') + 50 + len(b"4a\r\n\r\n")
        assert made * event <= 16 * KIB + 2 * 4096
        await client.read_until(b"data: ", made // 2)
        assert await still(source) > made
    await source.was_closed()


async def test_a_token_is_made_when_one_is_read(loop_kind: str) -> None:
    """Tokens larger than all buffers together: the source is never more than two ahead of its reader."""
    source = Source(size=96 * KIB)
    async with serving(source) as port, asking(port) as client:
        for reads in range(12):
            assert await still(source) - reads <= 2
            await client.read_until(b"data: ", reads + 1)
            while not client.received.endswith(b"\n\n\r\n"):
                if await client.read() == b"":
                    break
                if client.received.count(b"data: ") > reads + 1:
                    break


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
async def test_the_source_is_closed_before_its_next_token_when_the_client_leaves(loop_kind: str, how: str) -> None:
    """Also while the source waits for its model: nobody waits for a token to find out."""
    source = Source(silent_after=2)
    async with serving(source) as port, asking(port) as client:
        await client.read_until(b"data: ", 2)
        if how == "reset":
            client.reset()
        elif how == "close":
            client.close()
        else:
            client.sock.shutdown(1)
        await source.was_closed()
    assert source.made == 2


async def test_the_source_is_closed_when_a_stalled_client_leaves(loop_kind: str) -> None:
    """A client that leaves with its buffers full wakes whoever waits in ``drain()``."""
    source = Source()
    async with serving(source) as port, asking(port) as client:
        made = await still(source)
        client.reset()
        await source.was_closed()
    assert source.made <= made + 1


async def test_a_failing_source_cuts_the_answer(loop_kind: str) -> None:
    """No ``[DONE]``, and a chunked body without its end: nobody takes it for whole."""
    source = Source()
    source.fails_after = 3
    async with serving(source) as port, asking(port) as client:
        try:
            await client.read_all()
        except ConnectionResetError:
            pass
        data, whole = body(client.received)
    assert not whole
    assert b"[DONE]" not in data


async def test_a_client_that_sends_too_much_is_cut(loop_kind: str) -> None:
    """It is read while its answer streams, up to 16 KiB."""
    source = Source(silent_after=1)
    async with serving(source) as port, asking(port) as client:
        await client.read_until(b"data: ")
        await client.send(b"x" * (tiny.SURPLUS + 1))
        await source.was_closed()


@pytest.mark.parametrize("nonsense", [b"hello\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n", b"", b"x" * 20000])
async def test_what_is_no_request_is_closed(loop_kind: str, nonsense: bytes) -> None:
    source = Source()
    async with serving(source) as port:
        client = Client()
        try:
            await client.connect(port)
            await client.send(nonsense)
            client.sock.shutdown(1)
            try:
                assert await client.read_all() == b""
            except ConnectionResetError:
                pass
        finally:
            client.close()
    assert source.made == 0


async def test_it_runs_by_itself() -> None:
    """``python -m rawstream.lab.tiny PORT`` answers with the stand-in's tokens."""
    probe = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = probe.sockets[0].getsockname()[1]
    probe.close()
    process = await asyncio.create_subprocess_exec(sys.executable, str(Path(tiny.__file__)), str(port))
    try:

        async def answer() -> bytes:
            while True:
                try:
                    async with asking(port, "/?prompt=hello") as client:
                        return await client.read_all()
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)

        async with asyncio.timeout(PATIENCE):
            data, whole = body(await answer())
        assert whole
        assert b"hello" in data
    finally:
        process.terminate()
        await process.wait()


def test_it_has_at_most_120_lines_and_knows_nothing_of_rawstream() -> None:
    text = Path(tiny.__file__).read_text()
    assert len(text.splitlines()) <= 120
    assert "import rawstream" not in text
    assert "from rawstream" not in text


async def test_it_waits_in_drain_and_nowhere_else(loop_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for a stalled client is ``StreamWriter.drain()``; made a no-op, the source runs away."""
    source = Source(count=20_000)

    async def drain(self: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(asyncio.StreamWriter, "drain", drain)
    async with serving(source) as port, asking(port):
        await until(lambda: source.made > 5000, "the source has run away")

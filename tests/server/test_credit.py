"""Credit over HTTP: ``?credit=N`` and ``POST /streams/{id}/credit``, against a running server, and by the client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import rawstream
from rawstream.errors import MisuseError
from rawstream.model import Outcome, Request
from rawstream.settings import Settings
from rawstream.sources.mock import MockSource
from tests.support.flow import PATIENCE, Client, Counted, Served, get, post, repeat, serving, turns, until


def granted(served: Served) -> int:
    """Tokens made by the only stream."""
    (stream,) = served.server.app.streams
    return stream.meter.tokens


async def stream_id(client: Client) -> str:
    head = (await client.read_until(b"\r\n\r\n")).partition(b"\r\n\r\n")[0].decode().lower()
    return next(line.split(": ")[1] for line in head.split("\r\n") if line.startswith("x-stream-id"))


async def answer(served: Served, request: bytes) -> tuple[int, bytes]:
    client = await served.client(request)
    raw = await client.read_until(b"\r\n\r\n")
    return int(raw.split(b" ")[1]), raw


async def test_the_source_waits_for_what_the_client_says(loop_kind: str) -> None:
    """Nothing is lost, nothing is made early: 3 at first, then as many as were consumed more."""
    source = Counted(lambda: repeat("x"))
    async with serving(source) as served:
        client = await served.client(post("/chat?credit=3"), rcvbuf=0)
        stream = await stream_id(client)
        for consumed in (0, 1, 1, 3, 2):
            status, _ = await answer(served, post(f"/streams/{stream}/credit", json.dumps({"consumed": consumed})))
            assert status == 204
        await until(lambda: source.given == 6, "three more were made")
        await turns(100)
        assert source.given == 6
        (shown,) = served.server.app.streams
        assert shown.waiting_for() == "client"
        client.reset()
        assert (await served.ended()).outcome is Outcome.CLIENT_LEFT


async def test_a_client_that_gives_no_credit_meets_the_stall_deadline(loop_kind: str) -> None:
    """It may read all it was sent: what counts is that the source waits for it."""
    source = Counted(lambda: repeat("x"))
    async with serving(source, Settings(port=0, stall_timeout=0.3)) as served:
        client = await served.client(post("/chat?credit=5"), rcvbuf=0)
        with pytest.raises((AssertionError, ConnectionResetError)):
            await client.read_until(b"never")
        record = await served.ended()
    assert record.outcome is Outcome.CLIENT_STALLED
    assert record.tokens == source.given == 5
    assert 0.3 <= record.seconds < 3


async def test_a_client_that_consumes_slowly_is_not_stalled(loop_kind: str) -> None:
    async with serving(Counted(lambda: repeat("x")), Settings(port=0, stall_timeout=0.3)) as served:
        client = await served.client(post("/chat?credit=1"), rcvbuf=0)
        stream = await stream_id(client)
        for consumed in range(1, 6):
            await asyncio.sleep(0.15)  # half of what a stall takes
            status, _ = await answer(served, post(f"/streams/{stream}/credit", json.dumps({"consumed": consumed})))
            assert status == 204
        client.reset()
        assert (await served.ended()).outcome is Outcome.CLIENT_LEFT


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ('{"consumed": 2}', 400, "cannot have been consumed"),
        ('{"consumed": -1}', 400, ">= 0"),
        ('{"consumed": "1"}', 400, "int"),
        ("{}", 400, "consumed"),
        ("nonsense", 400, "body"),
    ],
)
async def test_what_makes_no_sense_is_refused_and_changes_nothing(body: str, status: int, told: str) -> None:
    source = Counted(lambda: repeat("x"))
    async with serving(source) as served:
        client = await served.client(post("/chat?credit=1"), rcvbuf=0)
        stream = await stream_id(client)
        refused = await served.client(post(f"/streams/{stream}/credit", body))
        raw = await refused.read_until(b"}")
        assert raw.startswith(f"HTTP/1.1 {status} ".encode())
        assert told.encode() in raw
        await turns(50)
        assert source.given == 1


async def test_credit_needs_a_stream_that_has_some() -> None:
    async with serving(Counted(lambda: repeat("x"))) as served:
        assert (await answer(served, post("/streams/nobody/credit", '{"consumed": 1}')))[0] == 404
        client = await served.client(post("/chat"))
        assert (await answer(served, post(f"/streams/{await stream_id(client)}/credit", '{"consumed": 1}')))[0] == 409


@pytest.mark.parametrize("credit", ["0", "-1", "1.5", "", "x", "1000001", "12345678", "²"])
async def test_a_credit_that_is_no_number_of_tokens_is_refused(credit: str) -> None:
    source = Counted(lambda: repeat("x"))
    async with serving(source) as served:
        target = "/chat?credit=" + "".join(f"%{byte:02X}" for byte in credit.encode())
        assert (await answer(served, post(target)))[0] == 400
    assert source.asked == 0


async def test_credit_is_no_part_of_what_a_source_is_asked() -> None:
    """``GET /stream?credit=…``: an upstream must not be sent a field that is ours."""
    asked: list[Request] = []

    def tokens(request: Request) -> list[str]:
        asked.append(request)
        return ["a"]

    async with serving(tokens) as served:
        client = await served.client(get("/stream?prompt=x&credit=5&temperature=1"))
        await client.read_until(b"[DONE]")
    assert asked[0].extra == {"temperature": 1}


@asynccontextmanager
async def stub(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """The URL of a server of few words; it waits for its handlers, and closes what they leave open."""
    running: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await serve(reader, writer)
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        if running:
            _, late = await asyncio.wait(running, timeout=PATIENCE)
            assert not late


# --- rawstream.stream(credit=N) ----------------------------------------------------------------------------------


@pytest.mark.parametrize("credit", [1, 2, 5, 64])
@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions"])
async def test_yields_and_reads_are_paired_over_the_network(loop_kind: str, path: str, credit: int) -> None:
    """Before each read the source has made at most ``credit`` tokens more than were read; none is lost."""
    source = MockSource()
    async with rawstream.Server(Settings(port=0), source) as server:
        asked: dict[str, Any] = {
            "messages": [{"role": "user", "content": "x"}],
            "stream": True,
            "mock": {"tokens": 150, "tokens_per_second": None},
        }
        read = 0
        async for event in rawstream.stream(server.url + path, json=asked, credit=credit):
            if event.text:
                assert source.statistics().tokens - read <= credit
                read += 1
    assert read == 150


async def test_leaving_in_the_middle_closes_everything(loop_kind: str) -> None:
    source = Counted(lambda: repeat("x"))
    async with serving(source) as served:
        async with rawstream.stream(served.server.url + "/chat", "x", credit=4) as events:
            async for _ in events:
                if source.given > 20:
                    break
        assert (await served.ended()).outcome is Outcome.CLIENT_LEFT


async def test_a_consumer_that_stops_is_cut_and_told(loop_kind: str) -> None:
    async with serving(Counted(lambda: repeat("x")), Settings(port=0, stall_timeout=0.3)) as served:
        async with rawstream.stream(served.server.url + "/chat", "x", credit=2) as events:
            await anext(events)
            assert (await served.ended()).outcome is Outcome.CLIENT_STALLED
            with pytest.raises(rawstream.StreamError) as told:
                async for _ in events:
                    pass
            assert told.value.code == "cut"


async def test_a_server_that_knows_no_credit_is_told_apart() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {}\n\n")
        await writer.drain()
        await reader.read()

    async with stub(serve) as url:
        with pytest.raises(rawstream.StreamError) as told:
            async for _ in rawstream.stream(f"{url}/chat", "x", credit=1):
                pass
    assert told.value.code == "no_credit"


@pytest.mark.parametrize(("path", "credit"), [("/chat", 0), ("/text", 1)])
def test_credit_that_makes_no_sense_is_a_mistake(path: str, credit: int) -> None:
    with pytest.raises(MisuseError):
        rawstream.stream(f"http://127.0.0.1:1{path}", "x", credit=credit)


@pytest.mark.parametrize(("status", "ends"), [(500, "credit"), (None, "credit")])
async def test_credit_that_cannot_be_told_is_an_error(status: int | None, ends: str) -> None:
    """A refusal, or no answer at all: the stream would wait for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST /prefix/streams/s/credit "):
            if status is not None:
                writer.write(b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % status)
                await writer.drain()
                await reader.read()
            return
        assert head.startswith(b"POST /prefix/chat?x=1&credit=1 ")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-stream-id: s\r\n\r\n")
        writer.write(b'data: {"token": "a"}\n\n')
        await writer.drain()
        await reader.read()

    async with stub(serve) as url:
        with pytest.raises(rawstream.StreamError) as told:
            async for _ in rawstream.stream(f"{url}/prefix/chat?x=1", "x", credit=1):
                pass
    assert told.value.code == ends

"""``POST /streams/{id}/signal``: what a client says beside its stream reaches the source, or the client is told."""

from __future__ import annotations

import asyncio
import gc
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rawstream.flow.pump import Delivery
from rawstream.flow.signals import MOST_UNREAD
from rawstream.model import Outcome, Request
from rawstream.server.endpoints.signals import MOST_BYTES
from rawstream.server.exchange import Exchange
from rawstream.server.stream import Stream
from rawstream.settings import Settings
from rawstream.sources.mock import MockSource
from rawstream.sources.router import RoutedSource
from tests.sources.fake_upstream import HEAD, FakeUpstream, answering_and_waiting, chunk, delta
from tests.support import raw
from tests.support.flow import PATIENCE, Client, Served, post, serving, turns, until
from tests.support.program import ROOT
from tests.support.server import ServerProcess
from tests.test_readme import example

Items = AsyncGenerator[str, None]


async def echo(request: Request) -> Items:
    """Says what it hears, as JSON."""
    yield "ready"
    async for signal in request.signals:
        yield json.dumps(signal)


class Kept:
    """A source that keeps its requests, and reads signals when it is told to."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.heard: list[Any] = []
        self.ended = asyncio.Event()
        self.read = asyncio.Event()

    async def tokens(self, request: Request) -> Items:
        self.requests.append(request)
        yield "ready"
        await self.read.wait()
        async for signal in request.signals:
            self.heard.append(signal)
            yield "heard"

    async def overhear(self, request: Request) -> Items:
        """As a source that has a task of its own for signals."""

        async def listen() -> None:
            async for signal in request.signals:
                self.heard.append(signal)
            self.ended.set()

        self.listener = asyncio.create_task(listen())
        yield "ready"
        yield "done"


async def begun(served: Served, path: str = "/chat", body: str = '{"prompt":"hello"}') -> tuple[Client, str]:
    """A client whose answer has begun, and its stream's id."""
    client = await served.client(post(path, body))
    head = (await client.read_until(b"\r\n\r\n")).partition(b"\r\n\r\n")[0].decode().lower()
    return client, next(line.split(": ")[1] for line in head.split("\r\n") if line.startswith("x-stream-id"))


async def asked(served: Served, request: bytes) -> tuple[int, dict[str, Any]]:
    client = await served.client(request)
    head, _, body = (await client.read_until(b"}")).partition(b"\r\n\r\n")
    client.close()
    return int(head.split(b" ")[1]), json.loads(body)


async def signal(served: Served, stream: str, value: object) -> int:
    return (await asked(served, post(f"/streams/{stream}/signal", json.dumps(value))))[0]


# --- what arrives ------------------------------------------------------------------------------------------------


async def test_a_signal_reaches_its_stream_decoded_and_in_order_and_no_other_stream(loop_kind: str) -> None:
    async with serving(echo) as served:
        mine, stream = await begun(served)
        other, _ = await begun(served)
        for value in ({"edit": ["é", 1.5]}, None, 7, "text"):
            answer = await asked(served, post(f"/streams/{stream}/signal", json.dumps(value)))
            assert answer == (202, {"status": "signalled"})
        await mine.read_until(b"data:", 5)
        said = [json.loads(line[6:])["token"] for line in mine.received.splitlines() if line.startswith(b"data: ")]
        assert [json.loads(token) for token in said[1:]] == [{"edit": ["é", 1.5]}, None, 7, "text"]
        await turns(50)
        assert other.received.count(b"data:") == 1


async def test_signals_that_nobody_reads_are_bounded_and_reading_makes_room(loop_kind: str) -> None:
    source = Kept()
    async with serving(source.tokens) as served:
        _, stream = await begun(served)
        assert [await signal(served, stream, number) for number in range(MOST_UNREAD)] == [202] * 64
        status, told = await asked(served, post(f"/streams/{stream}/signal", "64"))
        assert (status, told["code"]) == (429, "too_many_signals")
        source.read.set()
        await until(lambda: len(source.heard) == 64, "all were read")
        assert await signal(served, stream, "more") == 202
        await until(lambda: source.heard[-1] == "more", "the next one was read")
    assert source.heard == [*range(64), "more"]


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (post("/streams/nobody/signal", "1"), 404, "no_such_stream"),
        (post("/streams/STREAM/signal", ""), 400, "bad_request"),
        (post("/streams/STREAM/signal", "{"), 400, "bad_request"),
        (post("/streams/STREAM/signal", "[" * 200 + "]" * 200), 400, "bad_request"),
        (post("/streams/STREAM/signal", '"' + "x" * MOST_BYTES + '"'), 413, "body_too_large"),
        (
            b"POST /streams/STREAM/signal HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + b"8000\r\n" + b"1" * 0x8000 + b"\r\n" + b"8001\r\n" + b"1" * 0x8001,
            413,
            "body_too_large",
        ),
        (raw.post("/streams/STREAM/signal", 1, content_type="text/plain"), 415, "unsupported_media_type"),
        (
            raw.post("/streams/STREAM/signal", 1, content_type="application/x-www-form-urlencoded"),
            415,
            "unsupported_media_type",
        ),
    ],
    ids=["unknown", "empty", "malformed", "deep", "long", "long in chunks", "text", "form"],
)
async def test_what_cannot_be_taken_is_refused_and_says_why(request_: bytes, status: int, code: str) -> None:
    """A body that is too long is refused before it is read; what a foreign page can send without asking, is too."""
    async with serving(echo) as served:
        client, stream = await begun(served)
        got, told = await asked(served, request_.replace(b"STREAM", stream.encode()))
        assert (got, told["code"]) == (status, code)
        assert await signal(served, stream, "x" * (MOST_BYTES - 2)) == 202
        await client.read_until(b"xxx")
        assert client.received.count(b"data:") == 2, "only the good one arrived"


async def test_a_browser_that_asks_whether_a_foreign_page_may_signal_is_not_told_yes() -> None:
    async with serving(echo) as served:
        _, stream = await begun(served)
        for what in ("signal", "credit", "stop"):
            preflight = raw.request(
                "OPTIONS",
                f"/streams/{stream}/{what}",
                {
                    "Origin": "https://evil.example",
                    "Access-Control-Request-Method": "POST",
                    "Access-Control-Request-Headers": "content-type",
                },
            )
            client = await served.client(preflight)
            head = (await client.read_until(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 204 ")
            assert b"access-control" not in head


# --- who takes none -----------------------------------------------------------------------------------------------


async def no_request() -> Items:
    yield "ready"
    await asyncio.Event().wait()


async def let_go(request: Request) -> Items:
    del request
    yield "ready"
    await asyncio.Event().wait()


@pytest.mark.parametrize("source", [no_request, let_go, MockSource()], ids=["no request", "let go", "mock"])
async def test_where_nobody_can_read_signals_the_sender_is_told(source: object) -> None:
    async with serving(source) as served:
        body = '{"prompt": "hello", "mock": {"tokens": null, "tokens_per_second": 100}}'
        _, stream = await begun(served, body=body)
        status, told = await asked(served, post(f"/streams/{stream}/signal", "1"))
        assert (status, told["code"]) == (409, "no_signals")


async def test_an_upstream_takes_no_signals() -> None:
    """Neither before its first token, when a heartbeat has told the stream's id already, nor after it."""
    for pieces in ((HEAD,), (HEAD, chunk(delta("ready")))):
        async with FakeUpstream(answering_and_waiting(*pieces)) as upstream:
            settings = Settings(port=0, upstream=upstream.url, heartbeat=0.05)
            async with serving(RoutedSource(settings), settings) as served:
                _, stream = await begun(served)
                assert await signal(served, stream, 1) == 409


# --- the end ------------------------------------------------------------------------------------------------------


async def test_signals_end_with_the_stream_and_a_later_one_has_no_stream(loop_kind: str) -> None:
    source = Kept()
    async with serving(source.overhear) as served:
        client, stream = await begun(served)
        await client.read_until(b"[DONE]")
        async with asyncio.timeout(PATIENCE):
            await source.ended.wait()
        assert (await served.ended()).outcome is Outcome.COMPLETED
        assert await signal(served, stream, 1) == 404
    assert source.heard == []


async def test_a_client_that_leaves_ends_the_wait_for_its_signals(loop_kind: str) -> None:
    """The source waits in ``request.signals``: it is cancelled there, and its ``finally`` runs."""
    over = asyncio.Event()

    async def waits(request: Request) -> Items:
        try:
            yield "ready"
            async for _ in request.signals:
                yield "never"
        finally:
            over.set()

    async with serving(waits) as served:
        client, _ = await begun(served)
        client.reset()
        assert (await served.ended()).outcome is Outcome.CLIENT_LEFT
        assert over.is_set()


def serving_now() -> list[object]:
    """What serves streams, in all of this process."""
    return [thing for thing in gc.get_objects() if isinstance(thing, Stream | Exchange | Delivery)]


async def test_a_request_that_is_kept_keeps_nothing_of_its_stream_alive() -> None:
    """Counted without the collector's help: no cycle, and no way from the request to what served it."""
    source = Kept()
    gc.collect()
    gc.disable()
    others = serving_now()  # of other tests, whose errors pytest keeps
    before = set(map(id, others))
    try:
        async with serving(source.tokens) as served:
            client, stream = await begun(served)
            assert set(map(id, serving_now())) - before, "it would see what is left"
            assert await signal(served, stream, "x") == 202
            source.read.set()
            await client.read_until(b"heard")
            client.reset()
            await served.ended()
            await until(lambda: not served.server.app.connections, "the connection is gone")
            (request,) = source.requests
            assert (request.is_committed(), [signal async for signal in request.signals]) == (True, [])
            await until(lambda: not set(map(id, serving_now())) - before, "nothing of the stream is left")
    finally:
        gc.enable()


# --- has the client been told 200? -------------------------------------------------------------------------------


@asynccontextmanager
async def telling(heartbeat: float) -> AsyncIterator[tuple[Served, list[bool], asyncio.Event]]:
    """A server whose source notes whether the stream was committed: at first, when let on, and after a token."""
    noted: list[bool] = []
    on = asyncio.Event()

    async def notes(request: Request) -> Items:
        noted.append(request.is_committed())
        await on.wait()
        noted.append(request.is_committed())
        yield "token"
        noted.append(request.is_committed())

    async with serving(notes, Settings(port=0, heartbeat=heartbeat)) as served:
        yield served, noted, on


async def test_a_stream_is_committed_by_its_first_token(loop_kind: str) -> None:
    async with telling(0) as (served, noted, on):
        client = await served.client(post("/chat"))
        await until(lambda: noted, "the source was asked")
        await turns()
        on.set()
        await client.read_until(b"[DONE]")
    assert noted[:2] == [False, False]


async def test_a_stream_is_committed_by_a_heartbeat_too(loop_kind: str) -> None:
    async with telling(0.05) as (served, noted, on):
        client = await served.client(post("/chat"))
        await client.read_until(b": hb")
        on.set()
        await client.read_until(b"[DONE]")
    assert noted == [False, True, True]


async def test_an_answer_that_is_not_streamed_has_no_signals_and_is_never_committed() -> None:
    seen: list[object] = []

    async def notes(request: Request) -> Items:
        seen.extend([signal async for signal in request.signals])
        yield "token"
        seen.append(request.is_committed())

    async with serving(notes) as served:
        client = await served.client(post("/v1/chat/completions", '{"messages":[{"role":"user","content":"x"}]}'))
        assert b"token" in await client.read_until(b"total_tokens")
    assert seen == [False]


# --- stopping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "ending"),
    [
        ("/chat", {"prompt": "x"}, b"data: [DONE]\n\n"),
        ("/text", {"prompt": "x"}, b"ready"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": True}, b'"stop"}]'),
        (
            "/api/chat",
            {"id": "c", "messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "x"}]}]},
            b'data: {"type":"abort","reason":"the stream was stopped"}\n\ndata: [DONE]\n\n',
        ),
    ],
)
async def test_a_stop_ends_each_dialect_in_its_own_words_and_the_body_whole(
    path: str, body: dict[str, Any], ending: bytes, loop_kind: str
) -> None:
    async with serving(echo) as served:
        client, stream = await begun(served, path, json.dumps(body))
        await client.read_until(b"ready")
        assert (await asked(served, post(f"/streams/{stream}/stop", "")))[0] == 202
        await client.read_until(b"\r\n0\r\n\r\n")
        assert ending in client.received
        assert (await served.ended()).outcome is Outcome.STOPPED


async def test_stopping_twice_is_stopping_once(loop_kind: str) -> None:
    """While the source still cleans up it is 202 again; when the stream has gone it is 404."""
    cleaned = asyncio.Event()

    async def slow_to_go(request: Request) -> Items:
        try:
            async for token in echo(request):
                yield token
        finally:
            await cleaned.wait()

    async with serving(slow_to_go) as served:
        client, stream = await begun(served)
        for _ in range(3):
            assert await asked(served, post(f"/streams/{stream}/stop", "")) == (202, {"status": "stopping"})
        cleaned.set()
        await client.read_until(b"\r\n0\r\n\r\n")
        assert client.received.count(b"[DONE]") == 1
        assert (await served.ended()).outcome is Outcome.STOPPED
        assert (await asked(served, post(f"/streams/{stream}/stop", "")))[0] == 404
        assert served.outcomes() == {"stopped": 1}


# --- the README's example ----------------------------------------------------------------------------------------


def test_the_readmes_source_takes_another_prompt_in_mid_answer_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "steered.py").write_text(example("# steered.py"), encoding="utf-8")
    path = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}
    with ServerProcess("--source", "steered:tokens", env=path) as server:
        with raw.Client(server.port) as client:
            client.send(raw.post("/chat", {"prompt": "cats"}))
            stream = client.head().header("x-stream-id")
            client.until(b"cats 3, ")
            for value in ("ignored", {"prompt": 5}, {"prompt": "dogs"}):
                assert raw.ask(server.port, raw.post(f"/streams/{stream}/signal", value)).status == 202
            heard = client.until(b"dogs 1, ")
            assert heard.count(b"cats ") < 45, "the first answer was not finished first"
            client.until(b"dogs 3, ")
        server.assert_steady()  # the client has left: the generator is closed, and no task complains
        reply = raw.ask(server.port, raw.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}))
        assert reply.json()["choices"][0]["message"]["content"].startswith("x 1, x 2, ")

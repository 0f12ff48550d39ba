"""Request bodies as real clients send them: large, through the gateway, whole, in nobody's way, and not kept."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from rawstream.settings import MiB, Settings
from rawstream.sources.router import RoutedSource
from tests.sources.fake_upstream import ANSWER, HEAD, LAST_CHUNK, FakeUpstream, answering, chunk
from tests.support import raw
from tests.support.chaos import ChaosProcess
from tests.support.flow import Client, post, repeat, serving
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

IMAGE_BYTES = 6_000_000


def image() -> str:
    """A data URL of 8 million characters, as a page makes it of a photograph."""
    return "data:image/png;base64," + base64.b64encode(bytes(range(250)) * (IMAGE_BYTES // 250)).decode()


def with_image() -> dict[str, Any]:
    parts = [{"type": "text", "text": "What is this? é\u2028"}, {"type": "image_url", "image_url": {"url": image()}}]
    return {"messages": [{"role": "user", "content": parts}]}


def with_tools() -> dict[str, Any]:
    """200 functions, with the kinds of JSON that schemas hold."""
    tools = [
        {
            "type": "function",
            "function": {
                "name": f"tool_{number}",
                "description": f'Does "{number}".\nThen \u00e9 \U0001f600 \\ / stops.',
                "strict": number % 2 == 0,
                "parameters": {
                    "type": "object",
                    "properties": {
                        f"field_{at}": {"type": ["string", "null"], "enum": ["a", None, ""], "default": None}
                        for at in range(20)
                    },
                    "required": [],
                    "x-limits": [0, -1.5, 1e-7, 2**53, 12345678901234567890],
                    "additionalProperties": False,
                },
            },
        }
        for number in range(200)
    ]
    return {"messages": [{"role": "user", "content": "x"}], "tools": tools, "tool_choice": {"type": "none"}}


def with_history() -> dict[str, Any]:
    """2,000 messages: questions, tool calls and what came of them."""
    turn = [
        {"role": "user", "content": "Ünd dann?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "\\u00e9"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "x" * 500},
        {"role": "assistant", "content": "So.", "refusal": None, "name": "bot"},
    ]
    return {"messages": turn * 500}


BODIES = pytest.mark.parametrize("body_of", [with_image, with_tools, with_history])


@BODIES
@pytest.mark.parametrize("stream", [True, False])
async def test_a_large_body_reaches_the_upstream_with_every_value_as_it_was(
    body_of: Callable[[], dict[str, Any]], stream: bool, loop_kind: str
) -> None:
    """Fields that rawstream does not know, too; but for ``stream_options`` nothing is added."""
    body = {"model": "m", "stream": stream, "temperature": 0.1, "x_own": {"a": [1, None]}, **body_of()}
    whole = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"choices":1}'
    answer = (HEAD, chunk(ANSWER), LAST_CHUNK) if stream else (whole,)
    async with FakeUpstream(answering(*answer)) as upstream:
        settings = Settings(port=0, upstream=upstream.url)
        async with serving(RoutedSource(settings), settings) as served:
            client = await served.client(post("/v1/chat/completions", json.dumps(body)))
            await client.read_until(b"[DONE]" if stream else b'{"choices":1}')
        (asked,) = upstream.requests
    expected = {**body, "stream_options": {"include_usage": True}} if stream else body
    assert asked.json == expected


async def test_an_image_of_the_ai_sdk_reaches_the_upstream_as_one_of_openais() -> None:
    url = image()
    parts = [{"type": "text", "text": "What is this?"}, {"type": "file", "mediaType": "image/png", "url": url}]
    body = {"id": "chat", "messages": [{"id": "m", "role": "user", "parts": parts}], "trigger": "submit-message"}
    async with FakeUpstream(answering(HEAD, chunk(ANSWER), LAST_CHUNK)) as upstream:
        settings = Settings(port=0, upstream=upstream.url)
        async with serving(RoutedSource(settings), settings) as served:
            client = await served.client(post("/api/chat", json.dumps(body)))
            await client.read_until(b"[DONE]")
        (asked,) = upstream.requests
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    assert asked.json["messages"] == [{"role": "user", "content": content}]


# --- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", ["Content-Length: 4097", "Content-Length: 4097\r\nExpect: 100-continue"])
async def test_a_body_over_max_body_is_refused_before_any_of_it_is_read(fields: str, loop_kind: str) -> None:
    """By what it announces: the client need not have sent a byte, and is not told to go on."""
    async with serving(lambda: repeat("x"), Settings(port=0, max_body=4096)) as served:
        head = f"POST /chat HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n{fields}\r\n\r\n"
        client = await served.client(head.encode())
        received = await client.read_until(b"}")
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in received


async def test_a_body_of_max_body_exactly_is_taken() -> None:
    body = json.dumps({"prompt": "x" * (4096 - len('{"prompt": ""}'))})
    assert len(body) == 4096
    async with serving(lambda: repeat("x", 3), Settings(port=0, max_body=4096)) as served:
        client = await served.client(post("/chat", body))
        assert (await client.read_until(b"[DONE]")).startswith(b"HTTP/1.1 200 ")


# --- others, meanwhile --------------------------------------------------------------------------------------------


async def test_streams_go_on_while_a_large_body_arrives(loop_kind: str) -> None:
    """Another stream gets its tokens between any two pieces of an upload, however long that takes."""
    request = post("/chat", json.dumps(with_image()))
    size = len(request) // 10 + 1
    async with serving(lambda: repeat("x"), Settings(port=0, max_body=16 * MiB)) as served:
        reader = await served.client(post("/chat"), rcvbuf=4096)
        uploading = await served.client()
        tokens = 0
        for at in range(0, len(request), size):
            assert not uploading.received
            await uploading.send(request[at : at + size])
            tokens += 1000
            await read_tokens(reader, tokens)
        await uploading.read_until(b"token", 10)
        await read_tokens(reader, tokens + 1000)


async def read_tokens(client: Client, count: int) -> None:
    await client.read_until(b'"token"', count)


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_large_bodies_are_not_kept_by_streams_nor_after_them() -> None:
    """Ten long streams that each began with an 8 MB body hold none of it; nor is anything of twenty more left."""
    with ChaosProcess() as upstream, ServerProcess("--upstream", upstream.url, "--heartbeat", "0") as server:
        content = with_image()["messages"]

        def short() -> None:
            body = {"model": "ok:tokens=2", "stream": True, "messages": content}
            assert raw.ask(server.port, raw.post("/v1/chat/completions", body)).done

        for _ in range(3):
            short()  # what one request takes on its way is taken, and kept by the allocator
        before = server.rss()
        clients: list[raw.Client] = []
        try:
            for _ in range(10):
                client = raw.Client(server.port)
                clients.append(client)
                body = {"model": "endless:rate=5", "stream": True, "messages": content}
                client.send(raw.post("/v1/chat/completions", body))
                assert client.head().status == 200
                client.until(b'"content":')
            held = server.rss() - before
        finally:
            for client in clients:
                client.close()
        assert held < 8 * MiB, f"{held} bytes for ten streams of 8 MB requests"
        eventually(lambda: server.debug()["totals"]["streams"] == 0, why="they have left")
        for _ in range(20):
            short()
        left = server.rss() - before
        assert left < 8 * MiB, f"{left} bytes are left of thirty requests of 8 MB"
        server.assert_steady()

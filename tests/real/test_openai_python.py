"""The official ``openai`` client, against a running server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.recording import Record
from tests.support.server import ServerProcess
from tests.support.tools import require_module

if TYPE_CHECKING:
    import openai
else:
    openai = require_module("openai")

pytestmark = pytest.mark.real

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ServerProcess]:
    with ServerProcess("--heartbeat", "0.1") as server:
        yield server


@pytest.fixture
def server(shared_server: ServerProcess) -> Iterator[ServerProcess]:
    yield shared_server
    shared_server.assert_steady()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10) as made:
        yield made


def mock(**options: Any) -> dict[str, Any]:
    return {"mock": {"tokens_per_second": None, **options}}


def test_a_stream(client: openai.OpenAI) -> None:
    """Role first, contents, one finish reason; the text is that of the whole answer."""
    asked: dict[str, Any] = {"model": "m", "messages": HELLO, "extra_body": mock(tokens=25)}
    chunks = list(client.chat.completions.create(stream=True, **asked))
    whole = client.chat.completions.create(**asked)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert {chunk.model for chunk in chunks} == {"m"} == {whole.model}
    assert len({chunk.id for chunk in chunks}) == 1
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 25


def test_usage_comes_when_it_is_asked_for(client: openai.OpenAI) -> None:
    """In the last chunk, and in no other."""
    stream = client.chat.completions.create(
        model="m", messages=HELLO, stream=True, stream_options={"include_usage": True}, extra_body=mock(tokens=7)
    )
    chunks = list(stream)
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 7
    assert chunks[-1].choices == []


def test_heartbeats_before_and_between_tokens_do_not_break_it(client: openai.OpenAI) -> None:
    """Half a second of silence with a heartbeat every 100 ms: the client sees tokens alone."""
    slow = {"mock": {"tokens": 3, "tokens_per_second": 4, "first_token_seconds": 0.5}}
    chunks = list(client.chat.completions.create(model="m", messages=HELLO, stream=True, extra_body=slow))
    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) == 3


def test_an_error_before_the_first_token_is_a_status(server: ServerProcess, client: openai.OpenAI) -> None:
    """The SDK raises its own class for it, with our message."""
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model="m", messages=[], stream=True)
    with pytest.raises(openai.InternalServerError, match="was asked to") as caught:
        client.chat.completions.create(model="m", messages=HELLO, stream=True, extra_body=mock(fail_after=0))
    assert caught.value.status_code == 500
    with pytest.raises(openai.NotFoundError):
        client.files.list()
    server.forgive("was asked to")


def test_an_error_in_mid_stream_is_raised(client: openai.OpenAI) -> None:
    """What came before is there, and then the SDK raises; it does not take the cut for an end."""
    got: list[Any] = []

    def read() -> None:
        for chunk in stream:
            got.append(chunk)

    options = {"mock": {"tokens": 50, "fail_after": 10, "tokens_per_second": 200}}
    stream = client.chat.completions.create(model="m", messages=HELLO, stream=True, extra_body=options)
    with pytest.raises(openai.APIError, match="was asked to"):
        read()
    assert sum(bool(chunk.choices[0].delta.content) for chunk in got) == 10


def test_an_overloaded_server_is_tried_again() -> None:
    """503 with Retry-After: the SDK waits and succeeds when there is room."""
    with ServerProcess("--max-streams", "1") as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=3) as client:
            options = {"mock": {"tokens": 5, "tokens_per_second": 10}}
            first = client.chat.completions.create(model="m", messages=HELLO, stream=True, extra_body=options)
            with pytest.raises(openai.InternalServerError):
                client.with_options(max_retries=0).chat.completions.create(model="m", messages=HELLO)
            second = client.chat.completions.create(model="m", messages=HELLO, extra_body=mock(tokens=1))
            assert second.choices[0].message.content
            assert len(list(first)) >= 5
        server.assert_steady()


def test_models(client: openai.OpenAI) -> None:
    """The list can be read."""
    models = client.models.list()
    assert [model.object for model in models.data] == ["model"] * len(models.data)
    assert models.data


def test_closing_the_stream_closes_the_source(tmp_path: Path) -> None:
    """``stream.close()`` after three chunks: the generator's ``finally`` has run within a second."""
    record = Record(tmp_path / "events.jsonl")
    with ServerProcess("--source", "tests.support.recording:tokens", env=record.env) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            messages: Any = [{"role": "user", "content": "closed"}]
            body = {"pause": 0.02}
            with client.chat.completions.create(model="m", messages=messages, stream=True, extra_body=body) as stream:
                for number, _ in enumerate(stream):
                    if number == 3:
                        break
            assert record.closed("closed")["yielded"] < 20
        server.assert_steady()


async def test_the_async_client_streams_and_cancels(tmp_path: Path) -> None:
    """A stream to its end, an error, and a task that is cancelled in the middle, which closes the source."""
    record = Record(tmp_path / "events.jsonl")
    with ServerProcess("--source", "tests.support.recording:tokens", env=record.env) as server:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def read(prompt: str, **body: Any) -> int:
                messages: Any = [{"role": "user", "content": prompt}]
                stream = await client.chat.completions.create(
                    model="m", messages=messages, stream=True, extra_body=body
                )
                count = 0
                async with stream:
                    async for chunk in stream:
                        count += bool(chunk.choices[0].delta.content)
                        if prompt == "cancelled" and count == 3:
                            started.set()
                return count

            started = asyncio.Event()
            assert await asyncio.wait_for(read("whole", count=30), 10) == 30
            with pytest.raises(openai.APIError, match="source failed"):
                await asyncio.wait_for(read("failing", count=5, pause=0.01, fail=True), 10)
            task = asyncio.create_task(read("cancelled", pause=0.02))
            await asyncio.wait_for(started.wait(), 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            closed = await asyncio.to_thread(record.closed, "cancelled")
            assert closed["yielded"] < 30
        server.forgive("secret detail")
        await asyncio.to_thread(server.assert_steady)

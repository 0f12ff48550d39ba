"""What the ``openai`` SDK and LangChain can do beyond a stream of text, through the gateway: nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.python_clients import NO_KEY, TIMEOUT
from tests.clients.test_python_clients import words
from tests.support.chaos import ChaosProcess
from tests.support.server import ServerProcess
from tests.support.tools import require_module

if TYPE_CHECKING:
    import langchain_openai
    import openai
    from langsmith import utils as langsmith_utils
else:
    openai = require_module("openai")
    langchain_openai = require_module("langchain_openai")
    langsmith_utils = require_module("langsmith.utils")

pytestmark = pytest.mark.real

HELLO: Any = [{"role": "user", "content": "hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CITY = words(5)


@pytest.fixture
def client(gateway: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", timeout=TIMEOUT) as made:
        yield made


def test_a_whole_answer(client: openai.OpenAI) -> None:
    """Without ``stream``: the text, the finish reason and the usage of the upstream's own answer."""
    answer = client.chat.completions.create(model="ok:tokens=20", messages=HELLO)
    assert answer.choices[0].message.content == words(20)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20
    assert answer.model == "ok:tokens=20"


async def test_a_whole_answer_for_the_async_client(gateway: ServerProcess) -> None:
    """The same, and two at a time."""
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", timeout=TIMEOUT) as client:
        asked = [client.chat.completions.create(model=f"ok:tokens={n}", messages=HELLO) for n in (3, 30)]
        short, long = await asyncio.wait_for(asyncio.gather(*asked), 2 * TIMEOUT)
    assert (short.choices[0].message.content, long.choices[0].message.content) == (words(3), words(30))


def test_a_whole_answer_that_fails(client: openai.OpenAI, chaos: ChaosProcess) -> None:
    """The upstream's status and words; and one request, not three."""
    before = chaos.state()["requests"]
    with pytest.raises(openai.NotFoundError, match="404"):
        client.chat.completions.create(model="status:code=404", messages=HELLO)
    assert chaos.state()["requests"] == before + 1


def test_tools_streamed(client: openai.OpenAI) -> None:
    """The call's name once, its arguments in pieces that join to what the model said, and why it finished."""
    name, arguments, finish = "", "", None
    for chunk in client.chat.completions.create(model="tools", messages=HELLO, tools=[WEATHER], stream=True):
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or ():
                assert call.function is not None
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    assert (name, arguments, finish) == ("weather", f'{{"city": "{CITY}"}}', "tool_calls")


def test_tools_in_a_whole_answer(client: openai.OpenAI) -> None:
    """As they came."""
    answer = client.chat.completions.create(model="tools", messages=HELLO, tools=[WEATHER])
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    (call,) = calls
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("weather", f'{{"city": "{CITY}"}}')
    assert answer.choices[0].finish_reason == "tool_calls"


def test_several_choices(client: openai.OpenAI) -> None:
    """``n`` of them, each whole, none mixed with another; the usage counts them all."""
    texts = ["", "", ""]
    finished: list[int] = []
    usage = None
    for chunk in client.chat.completions.create(
        model="choices:tokens=10", messages=HELLO, n=3, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                finished.append(choice.index)
    assert texts == [words(10)] * 3
    assert sorted(finished) == [0, 1, 2]
    assert usage is not None
    assert usage.completion_tokens == 30


def test_reasoning_passes(client: openai.OpenAI) -> None:
    """A field that OpenAI's wire does not have: it arrives beside the text, and not in it."""
    reasoning, text = "", ""
    for chunk in client.chat.completions.create(model="reasoning:tokens=10", messages=HELLO, stream=True):
        for choice in chunk.choices:
            reasoning += (choice.delta.model_extra or {}).get("reasoning_content", "")
            text += choice.delta.content or ""
    assert reasoning == words(5)
    assert reasoning + text == words(10)


def test_the_raw_response_shows_our_ids(client: openai.OpenAI) -> None:
    """``with_raw_response``: the stream's id, by which it can be stopped, and the request's, which is ours or yours."""
    raw = client.chat.completions.with_raw_response.create(
        model="ok:tokens=3", messages=HELLO, stream=True, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert len(raw.headers["x-stream-id"]) >= 16
    assert "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse()) == words(3)
    whole = client.chat.completions.with_raw_response.create(model="ok:tokens=3", messages=HELLO)
    assert whole.headers["x-request-id"]
    assert whole.parse().choices[0].message.content == words(3)


def test_the_upstreams_models_are_listed(client: openai.OpenAI, chaos: ChaosProcess) -> None:
    """All of them, by the SDK's own iteration."""
    assert {model.id for model in client.models.list()} >= set(chaos.models)


def test_langchain_reads_tool_calls(gateway: ServerProcess) -> None:
    """Pieces of a call that LangChain joins to one, with parsed arguments."""
    with openai.DefaultHttpxClient() as http:
        model = langchain_openai.ChatOpenAI(
            model="tools", base_url=f"{gateway.url}/v1", api_key=NO_KEY, timeout=TIMEOUT, http_client=http
        ).bind_tools([WEATHER])
        whole: Any = None
        for piece in model.stream("hello"):
            whole = piece if whole is None else whole + piece
    (call,) = whole.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": CITY})


def test_langchain_traces_nothing_to_anybody() -> None:
    """The suite's clients talk to this machine alone: tracing is off, whatever the environment says."""
    assert not langsmith_utils.tracing_is_enabled()

"""``/v1/chat/completions`` over a source of one's own: ``stop``, ``n``, limits, and errors that name their field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import raw
from tests.support.raw import Client, Reply, post
from tests.support.server import ServerProcess

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
FAST: dict[str, Any] = {"tokens": 20, "tokens_per_second": None}


def ask(server: ServerProcess, **more: Any) -> Reply:
    return raw.ask(server.port, post("/v1/chat/completions", {**HELLO, "mock": FAST, **more}))


def streamed(reply: Reply) -> dict[int, tuple[str, list[str]]]:
    """Text and finish reasons of each choice."""
    assert reply.whole
    assert reply.events[-1] == "[DONE]"
    found: dict[int, tuple[str, list[str]]] = {}
    for event in reply.events[:-1]:
        for choice in json.loads(event)["choices"]:
            text, reasons = found.get(choice["index"], ("", []))
            reason = choice["finish_reason"]
            found[choice["index"]] = (
                text + (choice["delta"].get("content") or ""),
                [*reasons, *([reason] if reason else [])],
            )
    return found


def whole(reply: Reply) -> dict[int, tuple[str, list[str]]]:
    assert reply.status == 200
    return {
        choice["index"]: (choice["message"]["content"], [choice["finish_reason"]]) for choice in reply.json()["choices"]
    }


def test_an_answer_ends_before_its_stop_sequence(server: ServerProcess) -> None:
    """Within a token or across several, streamed or not; a sequence that does not come changes nothing."""
    text = whole(ask(server))[0][0]
    across = text[len(text) // 2 - 4 : len(text) // 2 + 4]
    for stop in (across, [across], ["nowhere", across, "♥"], text[40]):
        first = stop if isinstance(stop, str) else across
        wanted = {0: (text[: text.index(first)], ["stop"])}
        assert whole(ask(server, stop=stop)) == wanted
        assert streamed(ask(server, stop=stop, stream=True)) == wanted
    assert streamed(ask(server, stop=["nowhere"], stream=True)) == {0: (text, ["stop"])}


def test_a_stop_sequence_ends_a_source_that_would_go_on_for_ever(server: ServerProcess) -> None:
    """The answer is whole, and the connection serves the next request."""
    mock = {"tokens": None, "tokens_per_second": None, "batch": 16}
    with Client(server.port) as client:
        client.send(post("/v1/chat/completions", {**HELLO, "stream": True, "stop": ". ", "mock": mock}))
        (text, reasons) = streamed(client.reply())[0]
        assert (text.count(". "), reasons) == (0, ["stop"])
        assert client.ask(raw.get("/healthz")).status == 200


def test_what_is_held_back_for_a_sequence_is_no_reason_to_wait(server: ServerProcess) -> None:
    """Tokens that cannot be its begin come one by one, at their pace."""
    with Client(server.port) as client:
        mock = {"tokens": 5, "tokens_per_second": 20}
        client.send(post("/v1/chat/completions", {**HELLO, "stream": True, "stop": "♥♥♥", "mock": mock}))
        client.head()
        assert len([part for part in client.parts() if b'"content":"' in part]) == 5


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_limit_of_tokens_has_two_names(server: ServerProcess, name: str, stream: bool) -> None:
    """And both say ``length``."""
    reply = ask(server, stream=stream, **{name: 3})
    text = "".join(raw.ask(server.port, raw.chat(tokens=3, tokens_per_second=None)).tokens)
    assert (streamed(reply) if stream else whole(reply)) == {0: (text, ["length"])}


@pytest.mark.parametrize("stream", [True, False])
def test_n_choices_of_the_mock(server: ServerProcess, stream: bool) -> None:
    """Each whole, with its own text and end; a limit holds for each."""
    reply = ask(server, n=3, stream=stream, max_tokens=4)
    choices = streamed(reply) if stream else whole(reply)
    assert sorted(choices) == [0, 1, 2]
    assert [reasons for _, reasons in choices.values()] == [["length"]] * 3
    assert len({text for text, _ in choices.values()}) == 3
    assert choices[0] == whole(ask(server, max_tokens=4))[0]


def test_the_role_comes_first_in_each_choice(server: ServerProcess) -> None:
    """As clients collect it."""
    events = [json.loads(event) for event in ask(server, n=2, stream=True).events[:-1]]
    for index in (0, 1):
        deltas = [choice["delta"] for event in events for choice in event["choices"] if choice["index"] == index]
        assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("messages", []),
        ("n", 0),
        ("n", 9),
        ("stop", 5),
        ("stop", ["a"] * 5),
        ("stop", ""),
        ("max_tokens", "many"),
        ("max_completion_tokens", 0),
        ("stream_options", []),
        ("temperature", "hot"),
        ("tools", "f"),
    ],
)
def test_an_error_names_the_field_as_openai_does(server: ServerProcess, param: str, value: object) -> None:
    """Status 400, the type that SDKs make ``BadRequestError`` of, and ``param``."""
    reply = ask(server, **{param: value})
    error = reply.json()["error"]
    assert (reply.status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert param in error["message"] or "stop sequence" in error["message"]


def test_fields_that_only_a_model_knows_do_no_harm(server: ServerProcess) -> None:
    """A source of one's own sees them in ``request.extra``."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    more = {"tools": tools, "tool_choice": "auto", "logprobs": True, "response_format": {"type": "text"}, "seed": 1}
    assert whole(ask(server, **more)) == whole(ask(server))

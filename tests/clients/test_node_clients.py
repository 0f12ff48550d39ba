"""The clients of npm, unmodified, in Node: each behaviour of the matrix, and what else each of them offers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest

from tests.clients import judging
from tests.clients.conftest import Tell
from tests.clients.javascript import CASES, Scripts, pinned, scripts, seen_in, shared_gateway, words
from tests.clients.judging import Client
from tests.clients.matrix import COLUMNS, cells
from tests.support.program import ROOT
from tests.support.server import ServerProcess

__all__ = ["scripts", "shared_gateway"]

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

PARTS: Final = "parts"
"""The case that asks a source of ours and no upstream."""

CLIENTS: Final[Mapping[str, Client]] = {
    "openai (npm)": Client(
        "openai",
        judging.read_openai,
        ("openai",),
        end="no finish_reason",
        more={
            "tools": {"model": "tools"},
            "reasoning": {"model": "reasoning:tokens=10"},
            "choices": {"model": "choices:tokens=3", "n": 2},
        },
    ),
    "ai with @ai-sdk/openai-compatible": Client(
        "ai",
        judging.read_ai,
        ("ai", "@ai-sdk/openai-compatible"),
        asks="asks 3 times",
        more={"tools": {"model": "tools", "tool": "weather"}, "reasoning": {"model": "reasoning:tokens=10"}},
    ),
    "useChat of @ai-sdk/react": Client(
        "usechat",
        judging.read_use_chat,
        ("@ai-sdk/react", "ai"),
        end="no finishReason",
        more={
            "tools": {"model": "tools"},
            "reasoning": {"model": "reasoning:tokens=10"},
            "regenerate": {"model": "ok:tokens=3"},
            "resume": {"model": "ok:tokens=3"},
            PARTS: {},
        },
    ),
    "eventsource (npm)": Client("eventsource", judging.read_event_source, ("eventsource",), words_lost=True),
    "@microsoft/fetch-event-source": Client(
        "fetch-event-source",
        judging.read_fetch_event_source,
        ("@microsoft/fetch-event-source",),
        end="no [DONE]",
        more={"asks again": {"model": "endless:rate=100"}, "hidden tab": {"model": "endless:rate=100"}},
    ),
    "rawstream's client.js": Client("rawstream", judging.read_ours),
}


@pytest.fixture(scope="module")
def telling() -> Iterator[ServerProcess]:
    with ServerProcess("--source", "tests.clients.telling:tokens") as server:
        yield server
        server.assert_steady()


class Reports:
    """The reports of all clients, each made with the first question about it."""

    def __init__(self, scripts: Scripts, telling: ServerProcess) -> None:
        self._scripts = scripts
        self._telling = telling

    def of(self, row: str) -> dict[str, Any]:
        client = CLIENTS[row]
        cases = {name: dict(case) for name, case in {**CASES, **client.more}.items()}
        if PARTS in cases:
            cases[PARTS]["url"] = self._telling.url
        return self._scripts.report(client.script, cases)

    def seen(self, row: str, behaviour: str) -> Any:
        return seen_in(self.of(row), behaviour)


@pytest.fixture(scope="module")
def reports(scripts: Scripts, telling: ServerProcess) -> Reports:
    return Reports(scripts, telling)


def version_of(row: str, report: Mapping[str, Any]) -> str:
    client = CLIENTS[row]
    if not client.packages:
        package = json.loads((ROOT / "rawstream" / "lab" / "page" / "package.json").read_text(encoding="utf-8"))
        return str(package["version"])
    return ", ".join(report["versions"][name] for name in client.packages)


# --- the matrix ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "behaviour"), cells(CLIENTS, *(name for name in COLUMNS if name != "cancel")))
def test_a_client_behaves(row: str, behaviour: str, reports: Reports, gateway: ServerProcess, tell: Tell) -> None:
    """What must hold stands with the judge of that behaviour; the verdict is the matrix' own."""
    client = CLIENTS[row]
    verdict = judging.JUDGES[behaviour](client, reports.seen(row, behaviour))
    tell(verdict, version_of(row, reports.of(row)))


@pytest.mark.parametrize(("row", "behaviour"), cells(CLIENTS, "cancel"))
def test_leaving_ends_the_generation(
    row: str, behaviour: str, reports: Reports, scripts: Scripts, gateway: ServerProcess, tell: Tell
) -> None:
    """By each way out that a client has: the upstream sees every one of them, and stops."""
    texts = judging.left_texts(reports.seen(row, behaviour))
    scripts.assert_left(f"{CLIENTS[row].script}/{behaviour}", len(texts))
    tell("upstream stops", version_of(row, reports.of(row)))


@pytest.mark.parametrize("row", CLIENTS)
def test_the_versions_are_those_that_were_asked_for(row: str, reports: Reports) -> None:
    """Exactly; an older Node would silently have got older ones."""
    report = reports.of(row)
    assert all(version == pinned()[name] for name, version in report["versions"].items())
    assert set(CLIENTS[row].packages) <= set(report["versions"])
    assert int(report["node"].lstrip("v").split(".")[0]) >= 22


# --- openai -------------------------------------------------------------------------------------------------


def test_openai_gets_usage_where_it_asks_for_it(reports: Reports) -> None:
    """In one chunk, the same as in the answer that is not streamed; and none when it does not ask."""
    seen = reports.seen("openai (npm)", "full stream")
    assert [usage["completion_tokens"] for usage in seen["usage"]] == [20]
    assert seen["whole"] == {"text": words(20), "finish": "stop", "usage": seen["usage"][0]}
    assert seen["without"] == []
    assert (seen["roles"], len(seen["ids"]), len(seen["models"])) == (["assistant"], 1, 1)
    assert "ok" in seen["listed"]


def test_openai_gets_tools_reasoning_and_several_choices(reports: Reports) -> None:
    """What a relay must not lose: call by call, thought by thought, choice by choice."""
    tools = reports.seen("openai (npm)", "tools")
    assert tools["finish"] == ["tool_calls"]
    (call,) = tools["tools"]
    assert (call["id"], call["name"]) == ("call_chaos", "weather")
    assert json.loads(call["arguments"])["city"].startswith("token0 token1 ")
    thought = reports.seen("openai (npm)", "reasoning")
    assert thought["reasoning"] == words(5)
    assert thought["text"] == words(10).removeprefix(words(5))
    assert reports.seen("openai (npm)", "choices")["texts"] == [words(3), words(3)]


def test_openai_errors_carry_code_and_request_id(reports: Reports) -> None:
    """An APIError of the status' own class, before the commit point; an APIError with our code after it."""
    before = reports.seen("openai (npm)", "error before")
    for seen, status in zip(before.values(), (404, 503), strict=True):
        error = seen["error"]
        assert error["isApiError"]
        assert error["status"] == status
        assert error["code"]
        assert f"x-request-id: {error['requestId']}" in seen["answers"][-1].lower()
    for seen in reports.seen("openai (npm)", "error after").values():
        assert seen["error"]["code"] == "upstream_failed"


# --- ai and useChat -----------------------------------------------------------------------------------------


def test_stream_text_gets_tools_and_reasoning(reports: Reports) -> None:
    """``streamText`` tells a tool call with its parsed input, and thoughts apart from text."""
    row = "ai with @ai-sdk/openai-compatible"
    tools = reports.seen(row, "tools")
    assert tools["finish"] == "tool-calls"
    (call,) = tools["calls"]
    assert call["name"] == "weather"
    assert call["input"]["city"].startswith("token0 token1 ")
    thought = reports.seen(row, "reasoning")
    assert (thought["reasoning"], thought["text"]) == (words(5), words(10).removeprefix(words(5)))
    assert reports.seen(row, "cancel")["aborted"]


USE_CHAT: Final = "useChat of @ai-sdk/react"


def test_the_hook_goes_from_submitted_to_streaming_to_ready(reports: Reports) -> None:
    """While the first token is waited for it is 'submitted', or 'streaming' once heartbeats flow; then 'ready'."""
    statuses = reports.seen(USE_CHAT, "heartbeats")["statuses"]
    assert statuses == ["ready", "submitted", "streaming", "ready"]
    seen = reports.seen(USE_CHAT, "full stream")
    assert seen["roles"] == ["user", "assistant"]
    assert seen["shown"] == f"hello|{words(20)}"
    assert seen["parts"] == ["step-start", "text:done"]


def test_stopping_the_hook_keeps_what_there_is(reports: Reports) -> None:
    """``stop()`` is told as an abort and is no error; unmounting leaves too."""
    seen = reports.seen(USE_CHAT, "cancel")["stop"]
    assert (seen["status"], seen["error"]) == ("ready", None)
    assert seen["finishes"][-1]["isAbort"]


def test_the_hook_regenerates_and_goes_on(reports: Reports) -> None:
    """``regenerate()`` puts a new answer in the place of the last one; the next message comes behind it."""
    seen = reports.seen(USE_CHAT, "regenerate")
    first, second, third = seen["first"], seen["second"], seen["third"]
    assert first["roles"] == second["roles"] == ["user", "assistant"]
    assert third["roles"] == ["user", "assistant"] * 2
    assert {one["text"] for one in seen.values()} == {words(3)}
    assert first["ids"][0] == second["ids"][0] == third["ids"][0]
    assert third["ids"][:2] == second["ids"]
    assert third["errors"] == []


def test_a_hook_that_resumes_finds_nothing_and_is_well(reports: Reports) -> None:
    """``resume: true`` asks for the chat's running answer; 204 says that there is none, and the chat goes on."""
    seen = reports.seen(USE_CHAT, "resume")
    assert seen["requests"][0].startswith("GET /api/chat/chat-1/stream ")
    assert seen["answers"][0].startswith("HTTP/1.1 204 ")
    assert (seen["before"]["status"], seen["before"]["errors"]) == ("ready", [])
    assert seen["after"]["text"] == words(3)
    assert seen["after"]["errors"] == []


def test_the_hook_gets_tools_and_reasoning(reports: Reports) -> None:
    """As parts of their own, which the SDK checks against its schemas."""
    tools = reports.seen(USE_CHAT, "tools")
    (call,) = tools["others"]
    assert (call["type"], call["state"], call["toolCallId"]) == ("tool-weather", "input-available", "call_chaos")
    assert call["input"]["city"].startswith("token0 token1 ")
    assert tools["finishes"][-1]["finishReason"] == "tool-calls"
    thought = reports.seen(USE_CHAT, "reasoning")
    assert (thought["reasoning"], thought["text"]) == (words(5), words(10).removeprefix(words(5)))
    assert tools["errors"] == thought["errors"] == []


def test_the_hook_gets_data_parts_and_usage(reports: Reports) -> None:
    """``onData`` sees both; only what is not transient stays in the message; usage is the message's metadata."""
    seen = reports.seen(USE_CHAT, PARTS)
    assert [(part["type"], part["data"]) for part in seen["data"]] == [
        ("data-progress", {"step": 1, "of": "zwei"}),
        ("data-source", ["a", "b"]),
    ]
    assert [(part["type"], part["data"]) for part in seen["others"]] == [("data-source", ["a", "b"])]
    assert seen["text"] == "Hello world"
    assert seen["metadata"]["usage"] == {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5}
    assert (seen["status"], seen["errors"]) == ("ready", [])


# --- event streams ------------------------------------------------------------------------------------------


def test_asking_again_after_the_end_starts_no_generation(reports: Reports, scripts: Scripts) -> None:
    """EventSource comes back after every end; the upstream has made one answer all the same."""
    reports.seen("eventsource (npm)", "full stream")
    made = [one for one in scripts.chaos.state()["generations"] if one["user"] == "eventsource/full stream"]
    assert [one["state"] for one in made] == ["done"]


def test_fetch_event_source_asks_again_unless_it_is_told_not_to(reports: Reports) -> None:
    """After a cut, with an ``onerror`` that does not throw: a second POST, and a second answer from its begin.

    So a page that only appends shows the begin twice: ``onerror`` should throw.
    """
    seen = reports.seen("@microsoft/fetch-event-source", "asks again")
    assert (len(seen["requests"]), seen["opens"], len(seen["errors"])) == (2, [200, 200], 1)
    assert seen["text"].count("token0 ") == 2


def test_fetch_event_source_asks_again_when_its_tab_comes_back(reports: Reports, scripts: Scripts) -> None:
    """A hidden tab closes its stream, and a shown one posts once more: two generations, both ended by their client.

    ``openWhenHidden: true`` prevents it.
    """
    seen = reports.seen("@microsoft/fetch-event-source", "hidden tab")
    assert (len(seen["requests"]), seen["opens"], seen["errors"]) == (2, [200, 200], [])
    assert seen["text"].count("token0 ") == 2
    scripts.assert_left("fetch-event-source/hidden tab", 2)

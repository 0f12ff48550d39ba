"""A real llama.cpp behind ``rawstream serve --upstream``: its own tokens, its slots, its death and its return.

The model is a tiny one with random weights. What it says is nonsense, and always the same at temperature 0.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import llamacpp, raw
from tests.support.llamacpp import LlamaCpp
from tests.support.server import ServerProcess
from tests.support.tools import missing, require_module, require_tool
from tests.support.waiting import eventually

pytestmark = pytest.mark.real

# cache_prompt is a field that only llama.cpp knows: it must reach it for the answers to be the same to the last bit.
EXACT: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "cache_prompt": False, "max_tokens": 120}
LONG: dict[str, Any] = {**EXACT, "max_tokens": 7500}
"""Seconds of work: more than any of these tests waits for."""
HELLO = [{"role": "user", "content": "hello"}]
KINDS = ["/chat", "/v1/chat/completions"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    python = llamacpp.find_python()
    if python is None:
        missing(f"llama.cpp (pip install xllamacpp gguf tokenizers, or {llamacpp.PYTHON})")
    model = llamacpp.make_model(python, tmp_path_factory.mktemp("llamacpp") / "tiny.gguf")
    with LlamaCpp(python, model, slots=2) as running:
        yield running


@pytest.fixture(scope="module")
def own_words(llama: LlamaCpp) -> dict[str, Any]:
    """What llama.cpp answers when it is asked directly."""
    return llama.ask({"messages": HELLO, **EXACT})


@pytest.fixture(scope="module")
def gateway(llama: LlamaCpp) -> Iterator[ServerProcess]:
    # How long an upstream that failed is left alone is shortened, so that its return can be waited for.
    hasty = ("--upstream-retry-wait", "0.1", "--upstream-breaker-pause", "0.2")
    with ServerProcess("--upstream", llama.url, *hasty) as server:
        yield server


def ask(path: str, options: dict[str, Any], *, name: str = "ask", **more: Any) -> bytes:
    """A streaming request. /chat takes the model's own parameters too, and hands them on."""
    extra = {"model": "tiny", "stream": True} if path.startswith("/v1") else {}
    return raw.post(path, {"messages": HELLO, **extra, **options, **more}, x_request_id=name)


def chunks(reply: raw.Reply) -> list[dict[str, Any]]:
    return [json.loads(event) for event in reply.events if event.startswith("{")]


def said(reply: raw.Reply) -> str:
    """The text of an answer in either dialect."""
    texts = []
    for chunk in chunks(reply):
        if "token" in chunk:
            texts.append(chunk["token"])
        for choice in chunk.get("choices", ()):
            texts.append(choice["delta"].get("content") or "")
    return "".join(texts)


def text_of(answer: dict[str, Any]) -> str:
    content: str = answer["choices"][0]["message"]["content"]
    return content


def until_cut(client: raw.Client) -> bytes:
    """The rest of a body that must not come to its end."""
    rest = b""
    try:
        for part in client.parts():
            rest += part
    except EOFError:
        return rest
    raise AssertionError(f"the answer ended as if it were whole: {rest[-200:]!r}")


def slots_free(llama: LlamaCpp) -> None:
    eventually(lambda: llama.busy() == 0, why="no slot works any more")


# --- its own tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", KINDS)
def test_the_models_own_tokens_are_streamed(gateway: ServerProcess, own_words: dict[str, Any], path: str) -> None:
    reply = raw.ask(gateway.port, ask(path, EXACT, name="own-words"))
    assert (reply.status, reply.whole, reply.done) == (200, True, True)
    assert said(reply) == text_of(own_words)
    assert len(chunks(reply)) > 60  # tokens, not the whole answer at once


def test_plain_text_is_the_same_text(gateway: ServerProcess, own_words: dict[str, Any]) -> None:
    reply = raw.ask(gateway.port, ask("/text", EXACT))
    assert reply.body.decode() == text_of(own_words)


def test_usage_is_the_models_and_comes_only_when_it_was_asked_for(
    gateway: ServerProcess, own_words: dict[str, Any]
) -> None:
    path = "/v1/chat/completions"
    asked = chunks(raw.ask(gateway.port, ask(path, EXACT, stream_options={"include_usage": True})))
    assert [chunk["usage"] for chunk in asked if chunk.get("usage")] == [asked[-1]["usage"]]
    for field in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert asked[-1]["usage"][field] == own_words["usage"][field]
    assert asked[-1]["choices"] == []
    not_asked = chunks(raw.ask(gateway.port, ask(path, EXACT)))
    assert not any(chunk.get("usage") for chunk in not_asked)
    assert all(chunk["choices"] for chunk in not_asked)


def test_an_answer_that_is_not_streamed_is_the_models_own(gateway: ServerProcess, own_words: dict[str, Any]) -> None:
    reply = raw.ask(gateway.port, raw.post("/v1/chat/completions", {"messages": HELLO, **EXACT}))
    assert reply.status == 200
    assert text_of(reply.json()) == text_of(own_words)
    assert reply.json()["usage"] == own_words["usage"]
    assert "timings" in reply.json()  # llama.cpp's own addition


def test_the_openai_client_works_through_the_gateway(gateway: ServerProcess, own_words: dict[str, Any]) -> None:
    openai: Any = require_module("openai")
    options = {"extra_body": {"ignore_eos": True, "cache_prompt": False}, "max_tokens": 120, "temperature": 0}
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        whole = client.chat.completions.create(model="tiny", messages=HELLO, **options)
        assert whole.choices[0].message.content == text_of(own_words)
        with client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}, **options
        ) as stream:
            parts = list(stream)
        assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == text_of(own_words)
        assert [p.choices[0].finish_reason for p in parts if p.choices][-1] == "length"
        assert parts[-1].usage.completion_tokens == 120
        assert client.models.list().data


# --- its slots ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("path", KINDS)
def test_a_client_that_leaves_frees_the_slot(llama: LlamaCpp, gateway: ServerProcess, path: str, how: str) -> None:
    name = f"leaves-{path.rsplit('/')[-1]}-{how}"
    with raw.Client(gateway.port) as client:
        client.send(ask(path, LONG, name=name)).head()
        client.until(b"data: {")
        assert llama.busy() == 1
        if how == "reset":
            client.reset()
    slots_free(llama)
    line = gateway.ended(name)
    assert line["outcome"] == "client_left"
    assert line["tokens"] < LONG["max_tokens"]


def test_ctrl_c_in_curl_frees_the_slot(llama: LlamaCpp, gateway: ServerProcess) -> None:
    body = json.dumps({"messages": HELLO, **LONG})
    argv = [require_tool("curl"), "-sN", "-H", "content-type: application/json", "-H", "x-request-id: curl"]
    with subprocess.Popen([*argv, "-d", body, f"{gateway.url}/chat"], stdout=subprocess.PIPE, bufsize=0) as curl:
        assert curl.stdout is not None
        assert b"data: " in curl.stdout.read(64)
        curl.send_signal(signal.SIGINT)
        curl.stdout.close()
    slots_free(llama)
    assert gateway.ended("curl")["outcome"] == "client_left"


def test_a_client_that_reads_nothing_costs_the_slot_no_longer_than_the_stall_deadline(llama: LlamaCpp) -> None:
    """llama.cpp itself runs on into its own memory; closing its connection at the deadline is what stops it."""
    with ServerProcess("--upstream", llama.url, "--stall-timeout", "0.5") as server:
        with raw.Client(server.port, rcvbuf=4096) as client:
            client.send(ask("/chat", LONG, name="stalled"))
            eventually(llama.busy, why="llama.cpp works for it")
            slots_free(llama)
        line = server.ended("stalled")
        assert line["outcome"] == "client_stalled"
        assert line["tokens"] < 1000
        server.assert_steady()


def test_stopping_a_stream_frees_the_slot(llama: LlamaCpp, gateway: ServerProcess) -> None:
    with raw.Client(gateway.port) as client:
        stream_id = client.send(ask("/chat", LONG, name="stopped")).head().header("x-stream-id")
        client.until(b"data: {")
        assert raw.ask(gateway.port, raw.post(f"/streams/{stream_id}/stop", {})).status == 202
        slots_free(llama)
    assert gateway.ended("stopped")["outcome"] == "stopped"


def test_more_requests_than_slots_are_all_answered(gateway: ServerProcess, own_words: dict[str, Any]) -> None:
    """Four at two slots: llama.cpp lets two wait for their first token; nobody's answer suffers."""
    clients = [raw.Client(gateway.port, deadline=20).send(ask("/chat", EXACT)) for _ in range(4)]
    try:
        replies = [client.reply() for client in clients]
    finally:
        for client in clients:
            client.close()
    assert [(reply.done, len(said(reply)) > 100) for reply in replies] == [(True, True)] * 4


# --- its death and its return ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", KINDS)
def test_when_it_is_killed_mid_stream_the_client_is_told_and_a_new_one_serves_again(
    llama: LlamaCpp, gateway: ServerProcess, own_words: dict[str, Any], path: str
) -> None:
    name = f"killed-{path.rsplit('/')[-1]}"
    raw.ask(gateway.port, ask(path, EXACT))  # leaves a connection in the pool, which will be dead
    with raw.Client(gateway.port) as client:
        client.send(ask(path, LONG, name=name)).head()
        client.until(b"data: {")
        llama.kill()
        rest = until_cut(client)
    try:
        last = json.loads(raw.data_lines(rest)[-1])
        error = last["error"] if path.startswith("/v1") else last
        assert error["code"] == "upstream_failed"
        assert b"[DONE]" not in rest
        assert gateway.ended(name)["outcome"] == "upstream_failed"
        assert raw.ask(gateway.port, ask(path, EXACT), within=20).status == 502
    finally:
        llama.start()

    def answered() -> raw.Reply | None:
        reply = raw.ask(gateway.port, ask(path, EXACT))
        return reply if reply.status == 200 else None

    reply = eventually(answered, why="the new one is asked again")
    assert reply is not None
    assert (reply.done, said(reply)) == (True, text_of(own_words))


@pytest.mark.parametrize("path", KINDS)
def test_when_it_hangs_the_client_is_told_at_the_idle_deadline(
    llama: LlamaCpp, own_words: dict[str, Any], path: str
) -> None:
    with ServerProcess("--upstream", llama.url, "--upstream-idle-timeout", "0.5") as server:
        with raw.Client(server.port) as client:
            client.send(ask(path, LONG, name="hangs")).head()
            client.until(b"data: {")
            llama.signal(signal.SIGSTOP)
            try:
                rest = until_cut(client)
            finally:
                llama.signal(signal.SIGCONT)
        last = json.loads(raw.data_lines(rest)[-1])
        assert (last["error"] if path.startswith("/v1") else last)["code"] == "upstream_idle"
        assert b"[DONE]" not in rest
        assert server.ended("hangs")["outcome"] == "upstream_idle"
        slots_free(llama)
        assert said(raw.ask(server.port, ask(path, EXACT))) == text_of(own_words)
        server.assert_steady()

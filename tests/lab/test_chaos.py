"""The fault-injecting upstream itself: what its models mean, what it says, and what it notices."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
from typing import Any

import pytest

from rawstream.client import stream
from rawstream.errors import BadRequest, MisuseError
from rawstream.lab.chaos import ChaosUpstream
from rawstream.lab.chaos_answers import Answer, word
from rawstream.lab.chaos_certificates import MODES, make_certificate
from rawstream.lab.chaos_faults import PLAYERS
from rawstream.lab.chaos_models import MODELS, read_model
from rawstream.wire.sse import Parser
from tests.support import raw
from tests.support.chaos import ChaosProcess
from tests.support.program import command
from tests.support.tools import require_tool

# --- what a name means ------------------------------------------------------------------------------------------


def test_every_model_has_a_player_and_every_player_a_model() -> None:
    assert {*MODELS} == {*PLAYERS}


def test_every_model_says_in_one_line_what_it_does() -> None:
    for model in MODELS.values():
        assert model.does
        assert "\n" not in model.does
        assert "|" not in model.does, "it stands in a table"


def test_a_name_alone_means_its_defaults() -> None:
    asked = read_model("ok")
    assert (asked.model.name, asked.count("tokens"), asked.seconds("rate")) == ("ok", 20, 0)


def test_parameters_follow_a_colon() -> None:
    asked = read_model("stall:tokens=3, seconds=0.5")
    assert (asked.model.name, asked.count("tokens"), asked.seconds("seconds")) == ("stall", 3, 0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ok:tokns=3", "no parameter 'tokns'"),
        ("ok:tokens=x", "tokens must be a whole number from 0"),
        ("ok:tokens=1.5", "tokens must be a whole number"),
        ("ok:tokens=-1", "tokens must be a whole number from 0"),
        ("ok:tokens=nan", "not 'nan'"),
        ("ok:tokens", "not ''"),
        ("status:code=200", "code must be a whole number from 400 to 599"),
        ("garbage:x=1", "it has: none"),
    ],
)
def test_a_wrong_parameter_is_named(text: str, said: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(said)) as caught:
        read_model(text)
    assert (caught.value.status, caught.value.code) == (400, "bad_parameter")


def test_an_unknown_name_is_404_and_names_what_is_near() -> None:
    with pytest.raises(BadRequest, match="did you mean die-mid-event") as caught:
        read_model("die-mid-evnt")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    with pytest.raises(BadRequest, match="GET /v1/models"):
        read_model("zzzzzzzzzz")


# --- what it says -----------------------------------------------------------------------------------------------


def deltas(answer: Answer, tokens: int) -> list[dict[str, Any]]:
    body = (
        answer.opening() + b"".join(answer.token(number, tokens) for number in range(tokens)) + answer.closing(tokens)
    )
    chunks = [json.loads(data) for data in Parser(1 << 20).feed_data(body)]
    return [{"usage": chunk.get("usage"), **choice} for chunk in chunks for choice in chunk["choices"]]


@pytest.mark.parametrize("kind", ["ok", "tools", "reasoning", "unicode"])
def test_the_whole_answer_is_what_the_stream_says(kind: str) -> None:
    (choice,) = json.loads(Answer("m", kind=kind).whole(6))["choices"]
    parts = deltas(Answer("m", kind=kind), 6)
    for key in ("content", "reasoning_content"):
        told = "".join(part["delta"].get(key) or "" for part in parts)
        assert (choice["message"].get(key) or "") == told
    arguments = "".join(call["function"]["arguments"] for p in parts for call in p["delta"].get("tool_calls", []))
    if kind == "tools":
        (call,) = choice["message"]["tool_calls"]
        assert call["function"] == {"name": "weather", "arguments": arguments}
        assert json.loads(arguments) == {"city": "".join(word(number) for number in range(6))}
    assert parts[-1]["finish_reason"] == choice["finish_reason"]


# --- what it does -----------------------------------------------------------------------------------------------


def body_of(model: str, *, stream: bool = True, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "a prompt"}], "stream": stream, **more}


async def fetch(port: int, data: bytes) -> raw.Reply:
    return await asyncio.to_thread(raw.ask, port, data)


async def test_a_healthy_stream_is_what_clients_expect(loop_kind: str) -> None:
    async with asyncio.timeout(10), ChaosUpstream() as chaos:
        options: dict[str, Any] = {"stream_options": {"include_usage": True}, "user": "somebody"}
        reply = await fetch(chaos.port, raw.post("/v1/chat/completions", body_of("ok:tokens=3", **options)))
        chunks = [json.loads(event) for event in reply.events[:-1]]
        assert reply.events[-1] == "[DONE]"
        assert reply.whole
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == "token0 token1 token2 "
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-1]["usage"]["completion_tokens"] == 3
        (generation,) = (await chaos.until(lambda state: state["running"] == 0))["generations"]
        assert (generation["model"], generation["tokens"], generation["state"]) == ("ok:tokens=3", 3, "done")
        assert (generation["user"], generation["stream"]) == ("somebody", True)
        assert "a prompt" not in json.dumps(chaos.state())


async def test_rawstreams_own_client_reads_it(loop_kind: str) -> None:
    async with asyncio.timeout(10), ChaosUpstream() as chaos:
        texts = [event.text async for event in stream(f"{chaos.url}/chat/completions", json=body_of("ok:tokens=4"))]
        assert "".join(text for text in texts if text) == "token0 token1 token2 token3 "


async def test_a_connection_serves_answer_after_answer(loop_kind: str) -> None:
    async with asyncio.timeout(10), ChaosUpstream() as chaos:

        def several() -> None:
            with raw.Client(chaos.port) as client:
                for number in (1, 2, 3):
                    for streamed in (True, False):
                        reply = client.ask(
                            raw.post("/v1/chat/completions", body_of(f"ok:tokens={number}", stream=streamed))
                        )
                        assert reply.whole
                assert client.ask(raw.get("/v1/models")).status == 200
                assert client.ask(raw.get("/nowhere")).status == 404
                assert client.ask(raw.get("/v1/chat/completions")).status == 405

        await asyncio.to_thread(several)
        assert chaos.state()["accepted"] == 1


async def test_every_model_is_listed_for_clients() -> None:
    async with asyncio.timeout(10), ChaosUpstream() as chaos:
        reply = await fetch(chaos.port, raw.get("/v1/models"))
        assert [model["id"] for model in reply.json()["data"]] == [*MODELS]


async def test_a_bad_request_is_told(loop_kind: str) -> None:
    async with asyncio.timeout(10), ChaosUpstream() as chaos:
        for model, status in (("nothing-like-it", 404), ("ok:tokens=many", 400)):
            reply = await fetch(chaos.port, raw.post("/v1/chat/completions", body_of(model)))
            assert reply.status == status
            assert reply.json()["error"]["code"] in ("model_not_found", "bad_parameter")
        broken = raw.request("POST", "/v1/chat/completions", {"Content-Type": "application/json"}, b"{")
        assert (await fetch(chaos.port, broken)).status == 400
        assert (await fetch(chaos.port, b"NOT HTTP\r\n\r\n")).status == 400


@pytest.mark.parametrize("model", ["silent", "stall", "drip-head", "endless", "deaf", "flood"])
async def test_it_notices_at_once_that_its_client_has_left(model: str, loop_kind: str) -> None:
    async with asyncio.timeout(10), ChaosUpstream() as chaos:
        reader, writer = await asyncio.open_connection("127.0.0.1", chaos.port)
        writer.write(raw.post("/v1/chat/completions", body_of(model)))
        if model != "silent":
            await reader.readexactly(10)
        await chaos.until(lambda state: state["running"] == 1)
        writer.transport.abort()
        (generation,) = (await chaos.until(lambda state: state["running"] == 0))["generations"]
        assert generation["state"] == "client_left"
        assert generation["seconds_after_left"] < 5


async def test_a_stall_ends_after_its_seconds(loop_kind: str) -> None:
    async with asyncio.timeout(10), ChaosUpstream() as chaos:
        reply = await fetch(chaos.port, raw.post("/v1/chat/completions", body_of("stall:seconds=0.01,tokens=2")))
        assert not reply.whole
        state = await chaos.until(lambda state: state["running"] == 0)
        assert state["generations"][0]["state"] == "done"


async def test_the_first_few_fail_and_the_next_are_well() -> None:
    async with asyncio.timeout(10), ChaosUpstream() as chaos:
        asked = raw.post("/v1/chat/completions", body_of("status:code=429,retry_after=3,times=2"))
        replies = [await fetch(chaos.port, asked) for _ in range(4)]
        assert [reply.status for reply in replies] == [429, 429, 200, 200]
        assert [reply.header("retry-after") for reply in replies] == ["3", "3", None, None]
        other = raw.post("/v1/chat/completions", body_of("status:code=429,times=2"))
        assert (await fetch(chaos.port, other)).status == 429, "another model string counts anew"


# --- its command ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_in_the_middle_of_a_stream(number: signal.Signals) -> None:
    with ChaosProcess() as chaos, raw.Client(chaos.port) as client:
        client.send(raw.post("/v1/chat/completions", body_of("endless"))).head()
        chaos.process.send_signal(number)
        assert chaos.process.wait(10) == 0
        with pytest.raises(EOFError):
            for _ in client.parts():
                pass


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command(), "chaos", *arguments], capture_output=True, text=True, timeout=30, check=False)


def test_the_list_shows_every_model_and_every_parameter() -> None:
    shown = run("--list").stdout
    for model in MODELS.values():
        assert f"  {model.name} " in shown
        for name in model.parameters:
            assert f"{name}=" in shown


def test_a_port_that_is_taken_is_one_line_and_exit_code_1() -> None:
    with ChaosProcess() as chaos:
        second = run("--port", str(chaos.port))
    assert second.returncode == 1
    assert "address already in use" in second.stderr.lower()
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize("option", ["--port", "--tls-port"])
def test_a_port_that_is_none_is_refused_and_no_other_is_taken(option: str) -> None:
    """Event loops cut it to 16 bits, and would listen anywhere."""
    said = run(option, "99999")
    assert said.returncode == 2
    assert "99999 is not in the range 0<=x<=65535" in said.stderr


@pytest.mark.parametrize("mode", MODES)
def test_a_certificate_is_as_wrong_as_it_was_asked_to_be(mode: str) -> None:
    require_tool("openssl")
    made = make_certificate(mode)
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-text", "-checkend", "0"],
        input=made.pem, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (shown.returncode == 1) is (mode == "expired")
    assert ("127.0.0.1" in shown.stdout) is (mode != "wrong-name")
    assert "PRIVATE" not in made.pem


def test_without_openssl_tls_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MisuseError, match="openssl"):
        make_certificate("self-signed")

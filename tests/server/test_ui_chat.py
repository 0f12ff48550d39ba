"""``/api/chat``: what ``useChat`` gets of a running server, byte for byte, and over a real relay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import raw
from tests.support.chaos import ChaosProcess
from tests.support.raw import Client, Reply, get, post
from tests.support.server import ServerProcess

FAST: dict[str, Any] = {"tokens": 2, "tokens_per_second": None, "batch": 2}


def body(text: str = "hello", **more: Any) -> dict[str, Any]:
    """As ``DefaultChatTransport`` posts it."""
    messages = [{"id": "u1", "role": "user", "parts": [{"type": "text", "text": text}]}]
    return {"id": "QxXx7YkJ0Fzrz1Ab", "messages": messages, "trigger": "submit-message", **more}


def parts(reply: Reply) -> list[Any]:
    """The decoded events; ``[DONE]`` as it is."""
    return [event if event == "[DONE]" else json.loads(event) for event in reply.events]


def types(reply: Reply) -> list[str]:
    """The events' types, deltas that repeat told once."""
    found = [part if part == "[DONE]" else part["type"] for part in parts(reply)]
    return [one for one, before in zip(found, [None, *found], strict=False) if one != before]


def only(reply: Reply, type: str) -> list[Any]:
    return [part for part in parts(reply) if part != "[DONE]" and part["type"] == type]


def test_the_bytes_of_an_answer(server: ServerProcess) -> None:
    """The stream of the AI SDK's version 1, in the order that its client insists on, and the header it looks for."""
    reply = raw.ask(server.port, post("/api/chat", body(mock=FAST)))
    assert (reply.status, reply.whole) == (200, True)
    assert reply.header("x-vercel-ai-ui-message-stream") == "v1"
    assert reply.header("content-type") == "text/event-stream; charset=utf-8"
    start, _, rest = reply.body.partition(b"\n\n")
    assert json.loads(start.removeprefix(b"data: ")).keys() == {"type", "messageId"}
    delta = json.dumps("".join(raw.ask(server.port, raw.chat(**FAST)).tokens), ensure_ascii=False)
    assert rest.decode() == (
        'data: {"type":"start-step"}\n\n'
        'data: {"type":"text-start","id":"t1"}\n\n'
        f'data: {{"type":"text-delta","id":"t1","delta":{delta}}}\n\n'
        'data: {"type":"text-end","id":"t1"}\n\n'
        'data: {"type":"finish-step"}\n\n'
        'data: {"type":"finish","finishReason":"stop"}\n\n'
        "data: [DONE]\n\n"
    )


def test_the_messages_id_is_no_key_to_the_stream(server: ServerProcess) -> None:
    """Messages are stored and shared; the stream's id can stop it."""
    replies = [raw.ask(server.port, post("/api/chat", body(mock=FAST))) for _ in range(2)]
    ids = {parts(reply)[0]["messageId"] for reply in replies}
    assert len(ids) == 2
    assert not ids & {reply.header("x-stream-id") for reply in replies}


def test_an_answer_goes_on_with_the_message_whose_tools_ran(server: ServerProcess) -> None:
    """Under its id; one that is regenerated gets a new one."""
    ran = {"type": "tool-f", "toolCallId": "c", "state": "output-available", "input": {}, "output": 1}
    asked = body(mock=FAST)
    asked["messages"].append({"id": "a7", "role": "assistant", "parts": [ran]})
    assert parts(raw.ask(server.port, post("/api/chat", asked)))[0]["messageId"] == "a7"
    asked |= {"trigger": "regenerate-message", "messageId": "a7"}
    regenerated = raw.ask(server.port, post("/api/chat", asked))
    assert parts(regenerated)[0]["messageId"] != "a7"
    assert (
        only(regenerated, "text-delta")
        == only(raw.ask(server.port, post("/api/chat", body(mock=FAST))), "text-delta")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (post("/api/chat", {}), 400, "messages is missing: a list of UI messages is expected"),
        (post("/api/chat", body(mock={"tokens": -1})), 400, None),
        (raw.request("POST", "/api/chat", {"Content-Type": "text/plain"}, b"{}"), 415, None),
        (post("/api/chat", body(mock={**FAST, "fail_after": 0})), 500, None),
        (get("/api/chat"), 405, None),
        (get("/api/chat/a!b/stream"), 400, "this is not the id of a chat"),
    ],
)
def test_an_error_before_the_first_token_is_the_message_and_nothing_else(
    server: ServerProcess, data: bytes, status: int, message: str | None
) -> None:
    """The hook shows the whole body as ``error.message``: so it is words, not JSON."""
    reply = raw.ask(server.port, data)
    assert (reply.status, reply.whole) == (status, True)
    assert reply.header("content-type") == "text/plain; charset=utf-8"
    said = reply.body.decode()
    assert said
    assert not said.startswith("{")
    assert message in (None, said)
    server.forgive("was asked to")


def test_an_error_in_mid_stream_is_an_error_event_and_a_cut(server: ServerProcess) -> None:
    """No end of the text, no ``finish``, no ``[DONE]``, no clean end."""
    mock = {"tokens": 9, "tokens_per_second": 200, "fail_after": 2}
    reply = raw.ask(server.port, post("/api/chat", body(mock=mock)))
    assert (reply.status, reply.whole) == (200, False)
    assert types(reply) == ["start", "start-step", "text-start", "text-delta", "error"]
    assert "fail_after" in parts(reply)[-1]["errorText"]


def test_a_stop_is_an_abort(server: ServerProcess) -> None:
    """The text ends, the message is told to be aborted, and the body is whole."""
    with Client(server.port) as client:
        client.send(post("/api/chat", body(mock={"tokens": None, "tokens_per_second": 100})))
        reply = client.head()
        first = client.until(b"text-delta")
        assert raw.ask(server.port, post(f"/streams/{reply.header('x-stream-id')}/stop", {})).status == 202
        reply.body = first + b"".join(client.parts())
        assert types(reply)[-3:] == ["text-end", "abort", "[DONE]"]
        assert client.ask(get("/healthz")).status == 200, "the connection goes on"


@pytest.mark.parametrize("id", ["QxXx7YkJ0Fzrz1Ab", "a%20b", "x" * 128])
def test_there_is_nothing_to_resume(server: ServerProcess, id: str) -> None:
    """204, which the hook takes for an answer."""
    reply = raw.ask(server.port, get(f"/api/chat/{id}/stream"))
    assert (reply.status, reply.body, reply.header("content-length")) == (204, b"", None)
    assert raw.ask(server.port, get(f"/api/chat/{'x' * 129}/stream")).status == 400


def test_limits_hold_here_too(server: ServerProcess) -> None:
    """``max_tokens`` and ``stop``, as in every dialect."""
    reply = raw.ask(server.port, post("/api/chat", body(mock=FAST, max_tokens=1)))
    assert parts(reply)[-2] == {"type": "finish", "finishReason": "length"}


BEATING: dict[str, Any] = {"tokens": 2, "tokens_per_second": 4, "first_token_seconds": 0.3}


@pytest.mark.parametrize("path", ["/api/chat", "/stream", "/chat", "/v1/chat/completions", "/text"])
def test_heartbeats_come_before_the_first_token_and_between_tokens(path: str) -> None:
    """In the form that the dialect's clients survive, as writes of their own; plain text has none."""
    beat = {"/v1/chat/completions": b": hb\n", "/stream": b": hb\n", "/text": b""}.get(path, b": hb\n\n")
    with ServerProcess("--heartbeat", "0.06") as server, Client(server.port) as client:
        if path == "/stream":
            query = json.dumps(BEATING).replace(" ", "").replace('"', "%22")
            client.send(get(f"/stream?prompt=hello&mock={query}"))
        else:
            client.send(post(path, body(mock=BEATING, stream=True)))
        reply = client.head()
        got = list(client.parts())
        reply.body = b"".join(got)
    if not beat:
        assert b"hb" not in reply.body
        return
    first = next(
        number for number, part in enumerate(got) if b"token" in part or b"content" in part or b"delta" in part
    )
    start = got[0].removesuffix(beat)
    assert got[0].endswith(beat), "the head came with the first heartbeat"
    assert start == b"" or (path == "/api/chat" and start.startswith(b'data: {"type":"start"'))
    assert got[1:first].count(beat) >= 1, "more of them before the first token"
    assert got[first:].count(beat) >= 1, "and between tokens"
    assert not any(b": hb" in part and part != beat for part in got[1:]), "between events alone"
    assert reply.done


# --- over a relay ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def relay() -> Iterator[ServerProcess]:
    with ChaosProcess() as chaos, ServerProcess("--upstream", chaos.url) as server:
        yield server


def over(relay: ServerProcess, model: str) -> Reply:
    return raw.ask(relay.port, post("/api/chat", body(model=model)))


def test_thoughts_come_before_the_text(relay: ServerProcess) -> None:
    """Each a part of its own, and the upstream's usage is the message's metadata."""
    reply = over(relay, "reasoning:tokens=6")
    assert types(reply) == [
        "start", "start-step", "reasoning-start", "reasoning-delta", "reasoning-end",
        "text-start", "text-delta", "text-end", "finish-step", "finish", "[DONE]",
    ]  # fmt: skip
    finish = parts(reply)[-2]
    assert finish["finishReason"] == "stop"
    usage = finish["messageMetadata"]["usage"]
    assert usage.keys() == {"inputTokens", "outputTokens", "totalTokens"}
    assert usage["totalTokens"] == usage["inputTokens"] + usage["outputTokens"] > 0


def test_tool_calls_are_told_in_pieces_and_whole(relay: ServerProcess) -> None:
    """The pieces' text is the input's JSON; ``finishReason`` is in the SDK's words."""
    reply = over(relay, "tools")
    assert types(reply)[2:] == [
        "tool-input-start", "tool-input-delta", "tool-input-available", "finish-step", "finish", "[DONE]",
    ]  # fmt: skip
    (start,), (available,) = only(reply, "tool-input-start"), only(reply, "tool-input-available")
    text = "".join(delta["inputTextDelta"] for delta in only(reply, "tool-input-delta"))
    assert available == {**start, "type": "tool-input-available", "input": json.loads(text)}
    assert parts(reply)[-2]["finishReason"] == "tool-calls"


def test_an_upstreams_refusal_is_its_message(relay: ServerProcess) -> None:
    """With its status; nothing was sent yet."""
    reply = over(relay, "status:code=400")
    assert (reply.status, reply.header("content-type")) == (400, "text/plain; charset=utf-8")
    assert reply.body
    assert not reply.body.startswith(b"{")


def test_an_upstreams_failure_in_mid_stream_is_an_error(relay: ServerProcess) -> None:
    """Never an end."""
    for model in ("error-in-stream", "die-between-events"):
        reply = over(relay, model)
        assert not reply.whole
        assert types(reply)[-1] == "error"

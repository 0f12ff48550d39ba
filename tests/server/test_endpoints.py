"""What each endpoint says, over the mock source."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support import raw
from tests.support.raw import Client, Reply, chat, get, post
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

FAST: dict[str, Any] = {"tokens": 4, "tokens_per_second": None}
QUERY = "prompt=hello&mock=%7B%22tokens%22:4,%22tokens_per_second%22:null%7D"
HELLO = {"messages": [{"role": "user", "content": "hello"}], "mock": FAST}


def test_healthz_and_readyz(server: ServerProcess) -> None:
    """Alive, and ready."""
    assert raw.ask(server.port, get("/healthz")).json() == {"status": "alive"}
    assert raw.ask(server.port, get("/readyz")).json() == {"status": "ready"}


# --- /chat, /text, /stream -------------------------------------------------------------------------------------


def test_chat_streams_tokens_and_says_when_it_is_done(server: ServerProcess) -> None:
    """Exactly these bytes: one object per token, then ``[DONE]``."""
    reply = raw.ask(server.port, chat(**FAST))
    assert re.fullmatch(rb'(data: \{"token": "[^"]+"\}\n\n){4}data: \[DONE\]\n\n', reply.body)


def test_prompt_and_messages_are_two_ways_to_ask_the_same(server: ServerProcess) -> None:
    """The mock answers by the last user message; both forms, all three endpoints, the same text."""
    tokens = raw.ask(server.port, chat(**FAST)).tokens
    by_messages = raw.ask(server.port, post("/chat", HELLO)).tokens
    by_query = raw.ask(server.port, get(f"/stream?{QUERY}")).tokens
    text = raw.ask(server.port, get(f"/text?{QUERY}")).body.decode()
    posted = raw.ask(server.port, post("/text", {"prompt": "hello", "mock": FAST})).body.decode()
    assert tokens == by_messages == by_query
    assert "".join(tokens) == text == posted


def test_another_prompt_or_seed_is_another_answer(server: ServerProcess) -> None:
    """And the same one the same."""
    asked: list[dict[str, Any]] = [
        {"prompt": "hello"},
        {"prompt": "other"},
        {"prompt": "hello", "mock": {**FAST, "seed": 7}},
    ]
    answers = [raw.ask(server.port, post("/chat", {"mock": FAST, **body})).body for body in asked]
    assert len(set(answers)) == 3
    assert answers == [raw.ask(server.port, post("/chat", {"mock": FAST, **body})).body for body in asked]


def test_tokens_come_one_by_one_at_their_pace(server: ServerProcess) -> None:
    """Five tokens at 20 a second are five arrivals, the last at least 150 ms after the first."""
    with Client(server.port) as client:
        client.send(chat(tokens=5, tokens_per_second=20))
        client.head()
        parts = list(client.parts())
    assert len(parts) == 5
    assert all(part.count(b"token") == 1 for part in parts)


def test_text_is_the_text_and_nothing_else(server: ServerProcess) -> None:
    """``text/plain``, not to be sniffed; what a failure cuts shows in the framing alone."""
    reply = raw.ask(server.port, get(f"/text?{QUERY}"))
    assert reply.header("content-type") == "text/plain; charset=utf-8"
    assert reply.header("x-content-type-options") == "nosniff"
    failed = raw.ask(
        server.port, post("/text", {"prompt": "a", "mock": {**FAST, "tokens_per_second": 200, "fail_after": 2}})
    )
    assert failed.status == 200
    assert not failed.whole
    assert b"error" not in failed.body


def test_stream_has_ids_and_a_retry_and_its_end_an_id_of_its_own(server: ServerProcess) -> None:
    """For ``EventSource``: ``retry`` first, ids counted from 1 under the stream's id, ``<stream>.end`` at the end."""
    reply = raw.ask(server.port, get(f"/stream?{QUERY}"))
    stream = reply.header("x-stream-id")
    events = reply.body.decode().split("\n\n")[:-1]
    assert re.match(r"retry: [123]\d{3}\n", events[0])
    ids = re.findall(r"^id: (.*)$", reply.body.decode(), re.MULTILINE)
    assert ids == [*(f"{stream}.{number}" for number in range(1, 5)), f"{stream}.end"]
    assert events[-1].endswith("data: [DONE]")


def test_a_reconnect_after_the_end_is_told_that_there_is_no_more(server: ServerProcess) -> None:
    """``EventSource`` reconnects after a normal end; 204 stops it for good. In mid stream it goes on."""
    stream = raw.ask(server.port, get(f"/stream?{QUERY}")).header("x-stream-id")
    ended = raw.ask(server.port, get(f"/stream?{QUERY}", last_event_id=f"{stream}.end"))
    assert (ended.status, ended.body) == (204, b"")
    assert ended.header("content-length") is None
    rest = raw.ask(server.port, get(f"/stream?{QUERY}", last_event_id=f"{stream}.2"))
    assert (len(rest.tokens), rest.done) == (2, True)


def test_a_failure_before_the_first_token_has_a_real_status(server: ServerProcess) -> None:
    """The commit point: nothing has been sent, so nothing pretends to have begun."""
    for path in ("/chat", "/text", "/v1/chat/completions"):
        body = {"messages": HELLO["messages"], "stream": True, "mock": {**FAST, "fail_after": 0}}
        reply = raw.ask(server.port, post(path, body))
        assert reply.status == 500
        assert reply.whole
        assert reply.header("content-type") == "application/json"
    server.forgive("was asked to")


def test_a_failure_after_the_first_token_is_told_in_the_stream_and_cut(server: ServerProcess) -> None:
    """An error event, no ``[DONE]``, no clean end; what came before it is there."""
    mock = {**FAST, "tokens_per_second": 200, "fail_after": 2}
    for data in (chat(**mock), get("/stream?prompt=a&mock=" + json.dumps(mock).replace(" ", "").replace('"', "%22"))):
        reply = raw.ask(server.port, data)
        assert (reply.status, reply.whole, reply.done, len(reply.tokens)) == (200, False, False, 2)
        assert reply.error is not None
        assert reply.error["code"] == "source_failed"
    reply = raw.ask(server.port, post("/v1/chat/completions", {**HELLO, "stream": True, "mock": mock}))
    assert (reply.whole, reply.done) == (False, False)
    error = json.loads(reply.events[-1])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "event:" not in reply.body.decode()


def test_a_heartbeat_breaks_the_silence_and_commits_the_answer() -> None:
    """Before the first token and between tokens, in each dialect's own form; plain text has none."""
    mock = {"tokens": 2, "tokens_per_second": 4, "first_token_seconds": 0.3}
    with ServerProcess("--heartbeat", "0.06") as server:
        beats = {"/chat": b": hb\n\n", "/v1/chat/completions": b": hb\n", "/text": b""}
        for path, beat in beats.items():
            with Client(server.port) as client:
                client.send(post(path, {"messages": HELLO["messages"], "stream": True, "mock": mock}))
                reply = client.head()
                parts = list(client.parts())
            reply.body = b"".join(parts)
            if beat:
                assert parts[0] == beat, "the head came with the first heartbeat"
                assert parts.count(beat) >= 4
                assert not any(part.startswith(b": hb") and part != beat for part in parts), "between events"
                assert reply.done
            else:
                assert b"hb" not in reply.body


# --- OpenAI's wire ---------------------------------------------------------------------------------------------


def completion(server: ServerProcess, **more: Any) -> Reply:
    return raw.ask(server.port, post("/v1/chat/completions", {**HELLO, **more}))


def test_a_whole_completion(server: ServerProcess) -> None:
    """One JSON object in OpenAI's shape, the same text as the stream."""
    reply = completion(server, model="gpt-x")
    answer = reply.json()
    text = "".join(raw.ask(server.port, chat(**FAST)).tokens)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "gpt-x"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": text} | {
        key: value for key, value in answer["choices"][0]["message"].items() if key not in ("role", "content")
    }
    assert answer["choices"][0]["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 4
    assert usage["total_tokens"] == usage["prompt_tokens"] + 4


@pytest.mark.parametrize("usage", [False, True])
def test_a_streamed_completion(server: ServerProcess, usage: bool) -> None:
    """Role, contents, finish, usage if asked for, ``[DONE]``: one id, created and model throughout."""
    more = {"stream_options": {"include_usage": True}} if usage else {}
    reply = completion(server, stream=True, model="gpt-x", **more)
    assert reply.events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in reply.events[:-1]]
    for name in ("id", "created", "model", "object"):
        assert len({chunk[name] for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    with_choice = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert with_choice[0]["delta"]["role"] == "assistant"
    assert (
        "".join(choice["delta"].get("content") or "" for choice in with_choice)
        == completion(server).json()["choices"][0]["message"]["content"]
    )
    assert [choice["finish_reason"] for choice in with_choice] == [None] * (len(with_choice) - 1) + ["stop"]
    if usage:
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] == 4
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
    else:
        assert all("usage" not in chunk for chunk in chunks)


def test_max_tokens_ends_with_length(server: ServerProcess) -> None:
    """As OpenAI says it: finish_reason ``length``."""
    reply = completion(server, max_tokens=2)
    assert reply.json()["choices"][0]["finish_reason"] == "length"
    assert reply.json()["usage"]["completion_tokens"] == 2


def test_errors_of_the_openai_endpoint_have_openais_shape(server: ServerProcess) -> None:
    """So that its SDKs show the message and know whether to try again."""
    bodies: list[dict[str, Any]] = [{}, {"messages": []}, {"messages": "hello"}, {**HELLO, "mock": {"tokens": -1}}]
    for body in bodies:
        reply = raw.ask(server.port, post("/v1/chat/completions", body))
        assert reply.status == 400
        error = reply.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["message"]


def test_models(server: ServerProcess) -> None:
    """A list in OpenAI's shape."""
    answer = raw.ask(server.port, get("/v1/models")).json()
    assert answer["object"] == "list"
    for model in answer["data"]:
        assert set(model) >= {"id", "object", "created", "owned_by"}
        assert model["object"] == "model"


# --- one stream ------------------------------------------------------------------------------------------------

STREAM_FIELDS = {"id", "path", "dialect", "state", "tokens", "bytes", "waiting_for", "seconds", "buffered"}


def test_a_stream_tells_its_state_to_who_has_its_id(server: ServerProcess) -> None:
    """``GET /streams/{id}``, until it ends."""
    with Client(server.port) as client:
        client.send(chat(tokens=None, tokens_per_second=100))
        stream = client.head().header("x-stream-id")
        client.until(b"token")
        state = raw.ask(server.port, get(f"/streams/{stream}")).json()
        assert set(state) >= STREAM_FIELDS
        assert (state["path"], state["dialect"], state["state"]) == ("/chat", "chat", "open")
        assert state["tokens"] >= 1
    eventually(lambda: raw.ask(server.port, get(f"/streams/{stream}")).status == 404)


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions", "/text"])
def test_stop_ends_a_stream_cleanly_for_everybody(server: ServerProcess, path: str) -> None:
    """The client gets the dialect's own ending, and the body is whole: what was stopped is complete as it is."""
    name = "stop" + path.replace("/", "-")
    body = {"messages": HELLO["messages"], "stream": True, "mock": {"tokens": None, "tokens_per_second": 100}}
    with Client(server.port) as client:
        client.send(post(path, body, x_request_id=name))
        reply = client.head()
        first = client.until(b" ")
        stream = reply.header("x-stream-id")
        assert raw.ask(server.port, post(f"/streams/{stream}/stop", {})).status == 202
        reply.body = first + b"".join(client.parts())
        if path != "/text":
            assert reply.done
        if path.startswith("/v1"):
            assert json.loads(reply.events[-2])["choices"][0]["finish_reason"] == "stop"
        assert client.ask(get("/healthz")).status == 200, "the connection goes on"
    assert server.ended(name)["outcome"] == "stopped"
    assert raw.ask(server.port, post(f"/streams/{stream}/stop", {})).status == 404


def test_a_stop_before_the_first_token_is_an_empty_answer(server: ServerProcess) -> None:
    """200 and the ending alone, at once. (Who has not seen the head yet finds the id in no other way than this.)"""
    with ServerProcess("--heartbeat", "0.1") as beating, Client(beating.port) as client:
        client.send(chat(tokens=3, first_token_seconds=60))
        stream = client.head().header("x-stream-id")
        assert raw.ask(beating.port, post(f"/streams/{stream}/stop", {})).status == 202
        body = b"".join(client.parts())
    assert body.replace(b": hb\n\n", b"") == b"data: [DONE]\n\n"


def test_a_wrong_or_a_shown_id_stops_nothing(server: ServerProcess) -> None:
    """What ``/debug/streams`` shows is no key to another's stream."""
    with Client(server.port) as client:
        client.send(chat(request_id="mine", tokens=None, tokens_per_second=100))
        client.head()
        shown = server.debug()["streams"][0]["id"]
        for wrong in (shown, "0" * 32, "..", "a" * 300, "%2e"):
            assert raw.ask(server.port, post(f"/streams/{wrong}/stop", {})).status == 404
        client.until(b"token")
        assert len(server.debug()["streams"]) == 1


def test_debug_streams_shows_where_bytes_are_and_nothing_private(server: ServerProcess) -> None:
    """The shape that others' scripts rely on: no prompt, no text, no id that could resume or stop a stream."""
    secret = "a prompt that is nobody else's business"
    with Client(server.port, rcvbuf=4096) as client:
        client.send(post("/chat", {"prompt": secret, "mock": {"tokens": None, "tokens_per_second": None}}))
        stream = client.head().header("x-stream-id") or "?"
        shown = eventually(lambda: [s for s in server.debug()["streams"] if s["state"] == "paused"])[0]
        assert set(shown) >= STREAM_FIELDS
        assert set(shown["seconds"]) == {"source", "client", "network"}
        assert set(shown["buffered"]) == {"source", "transport", "kernel_unsent", "kernel_unacked"}
        assert shown["waiting_for"] in ("client", "network")
        assert shown["buffered"]["transport"] > 0
        text = raw.ask(server.port, get("/debug/streams")).body.decode()
        assert stream not in text
        assert secret not in text
        eventually(lambda: server.debug()["streams"][0]["seconds"]["client"] > 0.2, why="the client's time counts")
        totals = json.loads(text)["totals"]
        assert set(totals) >= {"streams", "connections", "tokens", "bytes", "buffered"}
    with Client(server.port) as client:
        client.send(chat(tokens=2, first_token_seconds=0.5))
        waiting = eventually(lambda: [s for s in server.debug()["streams"] if s["waiting_for"] == "source"])
        assert waiting[0]["buffered"] == {"source": 0, "transport": 0, "kernel_unsent": 0, "kernel_unacked": 0}
        client.reply()

"""The AI SDK's UI message stream: its order, its bytes, its requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rawstream.errors import BadRequest
from rawstream.model import Dialect, Token
from rawstream.wire.sse import Parser
from rawstream.wire.ui_messages import UIMessages, decode_chat_request, decode_request


def parts(frames: bytes) -> list[Any]:
    return [
        event.text if event.data == b"[DONE]" else json.loads(event.data) for event in Parser().feed(frames)
    ]  # fmt: skip


def test_a_whole_answer_in_the_order_that_the_client_insists_on() -> None:
    """start, start-step, text-start, deltas, text-end, finish-step, finish, [DONE]."""
    dialect: Dialect = UIMessages("m1")
    frames = (
        dialect.head() + dialect.encode(["Hel"]) + dialect.heartbeat + dialect.encode(["lo\n"]) + dialect.terminal()
    )
    assert parts(frames) == [
        {"type": "start", "messageId": "m1"},
        {"type": "start-step"},
        {"type": "text-start", "id": "t1"},
        {"type": "text-delta", "id": "t1", "delta": "Hel"},
        {"type": "text-delta", "id": "t1", "delta": "lo\n"},
        {"type": "text-end", "id": "t1"},
        {"type": "finish-step"},
        {"type": "finish", "finishReason": "stop"},
        "[DONE]",
    ]


def test_the_bytes_are_compact_json_in_data_events() -> None:
    """One event, one line, a blank line."""
    assert UIMessages("m").encode(["é"]) == 'data: {"type":"text-delta","id":"t1","delta":"é"}\n\n'.encode()
    assert UIMessages("m").heartbeat == b": hb\n\n"


def test_tokens_that_are_ready_together_are_one_delta() -> None:
    """The client renders once for each event."""
    (delta,) = parts(UIMessages("m").encode(["a", "", Token("b"), Token("x", index=1), "c"]))
    assert delta["delta"] == "abc"


def test_what_shows_no_text_sends_nothing() -> None:
    """No empty deltas."""
    assert UIMessages("m").encode(["", Token(""), Token("x", index=1)]) == b""


@pytest.mark.parametrize(
    ("told", "override", "said"),
    [
        (None, None, "stop"),
        ("length", None, "length"),
        ("content_filter", None, "content-filter"),
        ("tool_calls", None, "tool-calls"),
        ("function_call", None, "tool-calls"),
        ("eos", None, "other"),
        ("stop", "length", "length"),
    ],
)
def test_the_finish_reason_is_one_of_the_sdks(told: str | None, override: str | None, said: str) -> None:
    """The client checks it against a closed list; an override counts for more than what the tokens said."""
    dialect = UIMessages("m")
    dialect.encode([Token("", finish_reason=told), Token("", finish_reason="stop", index=1)])
    assert parts(dialect.terminal(override))[-2] == {"type": "finish", "finishReason": said}


def test_failures_and_stops_have_events_of_their_own() -> None:
    """An error has nothing after it; a stop ends the stream properly."""
    dialect = UIMessages("m")
    assert parts(dialect.error("it\nbroke", "upstream_failed")) == [{"type": "error", "errorText": "it\nbroke"}]
    assert parts(dialect.abort("stopped")) == [{"type": "abort", "reason": "stopped"}, "[DONE]"]


def test_the_client_knows_the_stream_by_its_header() -> None:
    """Beside what all event streams carry."""
    headers = dict(UIMessages("m").headers)
    assert headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert headers["content-type"] == "text/event-stream; charset=utf-8"


# --- requests -----------------------------------------------------------------------------------------------


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def test_what_usechat_posts_becomes_a_request() -> None:
    """Parts become content; the protocol's own fields do not travel to an upstream."""
    messages = [
        {"id": "1", "role": "user", "parts": [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]},
        {"id": "2", "role": "assistant", "parts": [{"type": "step-start"}, {"type": "text", "text": "A cat."}]},
        {
            "id": "3",
            "role": "user",
            "parts": [
                {"type": "text", "text": "And this?"},
                {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AA=="},
                {"type": "file", "mediaType": "audio/wav", "url": "data:audio/wav;base64,AA=="},
                {"type": "text", "text": None},
            ],
        },
        {"role": "system", "content": "as it is"},
    ]
    chat = decode_chat_request(
        body(id="c1", messages=messages, trigger="regenerate-message", messageId="2", model="m", temperature=0)
    )
    assert (chat.chat_id, chat.trigger, chat.message_id) == ("c1", "regenerate-message", "2")
    assert chat.request.messages == [
        {"role": "user", "content": "What is this?"},
        {"role": "assistant", "content": "A cat."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
            ],
        },
        {"role": "system", "content": "as it is"},
    ]
    assert chat.request.model == "m"
    assert chat.request.extra == {"temperature": 0}
    assert decode_request(body(messages=messages[:1])).prompt == "What is this?"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "messages is missing"),
        ({"prompt": "a"}, "messages is missing"),
        ({"messages": [], "id": "c"}, "must not be empty"),
        ({"messages": [{"parts": []}]}, "needs a role"),
        ({"messages": [{"role": "user", "parts": "x"}]}, "parts must be a list"),
        ({"messages": [{"role": "user", "parts": ["x"]}]}, "parts must be a list"),
        ({"messages": [{"role": "user", "parts": []}], "id": 5}, "id must be a string"),
        ({"messages": [{"role": "user", "parts": []}], "trigger": []}, "trigger must be a string"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(fields: dict[str, Any], reason: str) -> None:
    """The field is named."""
    with pytest.raises(BadRequest, match=reason):
        decode_request(body(**fields))

"""What clients of OpenAI's wire ask for, and how they are told what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rawstream.errors import BadRequest
from rawstream.wire.json_body import BadField
from rawstream.wire.openai_requests import decode_request

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("more", "stream", "include_usage"),
    [
        ({}, False, False),
        ({"stream": None, "stream_options": None}, False, False),
        ({"stream": False}, False, False),
        ({"stream": True}, True, False),
        ({"stream": True, "stream_options": {}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": None}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": True, "other": 1}}, True, True),
    ],
)
def test_a_request_says_whether_to_stream_and_to_count(more: dict[str, Any], stream: bool, include_usage: bool) -> None:
    """And travels on with all its other fields, the stream's options too."""
    body = {"messages": MESSAGES, "model": "m", "max_tokens": 3, "tools": [], **more}
    request, *flags = decode_request(json.dumps(body).encode())
    assert flags == [stream, include_usage]
    assert (request.messages, request.model, request.max_tokens) == (MESSAGES, "m", 3)
    more.pop("stream", None)
    assert request.extra == {"tools": [], **more}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not valid JSON"),
        (b'{"prompt":"a"}', "messages"),
        (b'{"messages":[]}', "must not be empty"),
        (b'{"messages":[{}],"stream":"yes"}', "stream must be true or false"),
        (b'{"messages":[{}],"stream_options":[]}', "stream_options must be an object"),
        (b'{"messages":[{}],"stream_options":{"include_usage":1}}', "include_usage must be true or false"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(body: bytes, reason: str) -> None:
    """The field is named, as in every body."""
    with pytest.raises(BadRequest, match=reason):
        decode_request(body)


@pytest.mark.parametrize(
    ("param", "value", "reason"),
    [
        ("messages", "hello", "must be a list of objects, not a string"),
        ("messages", [5], r"messages\[0\] must be an object, not a number"),
        ("model", 5, "must be a string"),
        ("max_tokens", "5", "must be a whole number, not a string"),
        ("max_tokens", 0, "at least 1"),
        ("max_completion_tokens", True, "must be a whole number"),
        ("n", 0, "at least 1"),
        ("n", 129, "at most 128"),
        ("stream", 1, "true or false, not a number"),
        ("stream_options", "x", "must be an object, not a string"),
        ("temperature", "hot", "must be a number, not a string"),
        ("top_p", True, "must be a number, not a boolean"),
        ("tools", {}, "must be a list of objects"),
        ("tools", ["f"], "must be a list of objects"),
    ],
)
def test_the_field_that_is_wrong_is_named(param: str, value: Any, reason: str) -> None:
    """As OpenAI's ``param``, so that a program can tell; and in the message, for people."""
    with pytest.raises(BadField, match=reason) as refused:
        decode_request(json.dumps({"messages": MESSAGES, param: value}).encode())
    assert refused.value.param == param


def test_what_models_know_and_we_do_not_travels_on() -> None:
    """Tools, log probabilities, formats, sequences to stop at: whatever a model makes of them."""
    fields = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
        "logprobs": True,
        "top_logprobs": 3,
        "response_format": {"type": "json_object"},
        "stop": ["a", "b", "c", "d", "e"],
        "n": 3,
        "temperature": 0,
        "top_p": 0.5,
        "max_completion_tokens": 7,
        "reasoning_effort": "low",
    }
    request, _, _ = decode_request(json.dumps({"messages": MESSAGES, **fields}).encode())
    assert request.extra == fields
    assert request.max_tokens is None

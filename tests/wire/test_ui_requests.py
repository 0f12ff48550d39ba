"""What ``useChat`` posts, as a model may be asked it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rawstream.errors import BadRequest
from rawstream.wire.ui_requests import ChatRequest, decode_chat_request

PNG = "data:image/png;base64,AA=="


def decode(**fields: Any) -> ChatRequest:
    return decode_chat_request(json.dumps(fields).encode())


def user(text: str, id: str = "u") -> dict[str, Any]:
    return {"id": id, "role": "user", "parts": [{"type": "text", "text": text}]}


def assistant(*parts: dict[str, Any], id: str = "a") -> dict[str, Any]:
    return {"id": id, "role": "assistant", "parts": list(parts)}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def asked(*messages: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return decode(messages=list(messages), **fields).request.messages


def test_what_usechat_posts_becomes_a_request() -> None:
    """Parts become content; the protocol's own fields do not travel to an upstream, all others do."""
    messages = [
        {"id": "0", "role": "system", "parts": [text("Be "), text("brief.")]},
        {"id": "1", "role": "user", "parts": [text("What is "), text("this?")]},
        assistant({"type": "step-start"}, {"type": "reasoning", "text": "hm"}, text("A cat."), id="2"),
        user("And this?", "3"),
        {"role": "system", "content": "as it is"},
    ]
    chat = decode(id="c1", messages=messages, trigger="submit-message", model="m", temperature=0)
    assert chat == ChatRequest(chat.request, "c1", "submit-message", None, None)
    assert chat.request.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is this?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "And this?"},
        {"role": "system", "content": "as it is"},
    ]
    assert (chat.request.model, chat.request.extra) == ("m", {"temperature": 0})


def file(media: str, url: str, **more: Any) -> dict[str, Any]:
    return {"type": "file", "mediaType": media, "url": url, **more}


@pytest.mark.parametrize(
    ("part", "content"),
    [
        (file("image/png", PNG), {"type": "image_url", "image_url": {"url": PNG}}),
        (file("image/jpeg", "https://e.org/a"), {"type": "image_url", "image_url": {"url": "https://e.org/a"}}),
        (
            file("application/pdf", "data:application/pdf;base64,AA==", filename="a.pdf"),
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
        ),
        (
            file("application/pdf", "data:application/pdf;base64,AA=="),
            {"type": "file", "file": {"filename": "file.pdf", "file_data": "data:application/pdf;base64,AA=="}},
        ),
        (
            file("audio/mpeg", "data:audio/mpeg;base64,AA=="),
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "mp3"}},
        ),
    ],
)
def test_files_travel_in_openais_shape(part: dict[str, Any], content: dict[str, Any]) -> None:
    """Images by their URL, of either kind; documents and sound by their data."""
    (message,) = asked({"role": "user", "parts": [text("See:"), part]})
    assert message == {"role": "user", "content": [{"type": "text", "text": "See:"}, content]}


def test_a_text_file_is_text() -> None:
    """Its characters, whatever its kind and parameters."""
    part = file("text/markdown; charset=utf-8", "data:text/markdown;base64,w6nDqQ==")
    assert asked({"role": "user", "parts": [part]}) == [{"role": "user", "content": "éé"}]


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (file("video/mp4", "data:video/mp4;base64,AA=="), "video/mp4' cannot be sent to a model"),
        (file("text/plain", "data:text/plain;base64,/w=="), "not text in UTF-8"),
        (file("text/plain", "data:text/plain;base64,="), "not text in UTF-8"),
        (file("text/plain", "data:text/plain,a"), "must be a base64 data: URL"),
        (file("application/pdf", "https://e.org/;base64,AA"), "must be a base64 data: URL"),
        (file("image/png", "file:///etc/passwd"), r"data: or http\(s\) URL"),
        ({"type": "file", "url": PNG}, "a url and a mediaType"),
        ({"type": "file", "mediaType": "image/png"}, "a url and a mediaType"),
        ({"type": "text", "text": None}, "text must be a string"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_its_place(part: dict[str, Any], reason: str) -> None:
    """Nothing that a person attached is dropped without a word."""
    with pytest.raises(BadRequest, match=rf"^messages\[1\]\.parts\[1\]: .*{reason}"):
        decode(messages=[user("a"), {"role": "user", "parts": [text("b"), part]}])


# --- tools --------------------------------------------------------------------------------------------------


def tool(name: str, id: str, **more: Any) -> dict[str, Any]:
    return {"type": f"tool-{name}", "toolCallId": id, "state": "output-available", "input": {}, **more}


def test_tools_that_ran_become_calls_and_their_results() -> None:
    """Step by step, each with its calls in one message and a message for each result."""
    messages = asked(
        user("Weather?"),
        assistant(
            {"type": "step-start"},
            text("Looking."),
            tool("weather", "c1", input={"city": "Köln"}, output={"c": 21}),
            {**tool("", "c2", output="12"), "type": "dynamic-tool", "toolName": "time"},
            {"type": "step-start"},
            text("It is 21 °C."),
            {"type": "data-note", "data": 1},
        ),
    )
    assert messages[1:] == [
        {
            "role": "assistant",
            "content": "Looking.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}},
                {"id": "c2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": '{"c":21}'},
        {"role": "tool", "tool_call_id": "c2", "content": "12"},
        {"role": "assistant", "content": "It is 21 °C."},
    ]


@pytest.mark.parametrize(
    ("part", "arguments", "content"),
    [
        (tool("f", "c", state="output-error", errorText="no net", input=None, rawInput="{x"), '"{x"', "no net"),
        (tool("f", "c", state="output-denied", approval={"reason": "too risky"}), "{}", "too risky"),
        (tool("f", "c", state="output-denied", approval={"id": "1"}), "{}", "Tool execution denied."),
        (tool("f", "c", state="output-denied"), "{}", "Tool execution denied."),
        (tool("f", "c", output=None), "{}", "null"),
    ],
)
def test_failures_and_refusals_are_results_too(part: dict[str, Any], arguments: str, content: str) -> None:
    """The model learns why it got nothing."""
    call, result = asked(assistant(part))
    assert call["content"] is None
    assert call["tool_calls"][0]["function"] == {"name": "f", "arguments": arguments}
    assert result == {"role": "tool", "tool_call_id": "c", "content": content}


@pytest.mark.parametrize("state", ["input-streaming", "input-available", "approval-requested", None])
def test_a_call_without_its_result_stays_behind(state: str | None) -> None:
    """Models refuse a conversation with a question left open."""
    assert asked(user("a"), assistant(tool("f", "c", state=state)), user("b")) == [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "tool-f", "state": "output-available"},
        {"type": "dynamic-tool", "toolCallId": "c"},
        {"type": "tool-", "toolCallId": "c"},
    ],
)
def test_a_tool_part_without_name_or_id_is_refused(part: dict[str, Any]) -> None:
    """By its place."""
    with pytest.raises(BadRequest, match=r"^messages\[0\]\.parts\[0\]: a tool part has a name"):
        decode(messages=[assistant(part)])


def test_parts_of_unknown_kinds_stay_behind() -> None:
    """Whatever a later SDK adds, or a page of one's own."""
    odd: list[dict[str, Any]] = [{"type": 5}, {}, {"type": "data-x", "data": 1}, {"type": "source-url", "url": "u"}]
    assert asked({"role": "user", "parts": [*odd, text("a")]}, assistant(*odd, text("b"))) == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]


# --- which message is answered ------------------------------------------------------------------------------


def test_a_message_is_regenerated_from_what_came_before_it() -> None:
    """Whether or not the page left it out, as the SDK does; a user's own message is answered anew."""
    messages = [user("one", "1"), assistant(text("A"), id="2"), user("two", "3"), assistant(text("B"), id="4")]
    before: dict[str | None, int] = {"2": 1, "1": 1, "4": 3, "3": 3, None: 3, "gone": 4}
    for message_id, count in before.items():
        chat = decode(messages=messages, trigger="regenerate-message", messageId=message_id)
        assert len(chat.request.messages) == count
        assert (chat.message_id, chat.continues) == (message_id, None)


def test_an_answer_goes_on_with_the_assistants_message_whose_tools_ran() -> None:
    """It keeps that message's id: with another one the page would show it twice."""
    ran = assistant(tool("f", "c", output=1), id="2")
    assert decode(messages=[user("a", "1"), ran]).continues == "2"
    assert decode(messages=[user("a", "1"), ran, user("b", "3")], messageId="2").continues == "2"
    assert decode(messages=[user("a", "1"), ran, user("b", "3")], messageId="3").continues is None
    assert decode(messages=[user("a", "1"), {**ran, "id": 7}]).continues is None
    assert decode(messages=[user("a", "1")]).continues is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "messages is missing"),
        ({"prompt": "a"}, "messages is missing"),
        ({"messages": [], "id": "c"}, "must not be empty"),
        ({"messages": [{"parts": []}]}, "role must be one of"),
        ({"messages": [{"role": "tool", "parts": []}]}, r"messages\[0\]: role must be one of"),
        ({"messages": [{"role": "user", "parts": "x"}]}, "parts must be a list"),
        ({"messages": [{"role": "user", "parts": ["x"]}]}, "parts must be a list"),
        ({"messages": [{"role": "user", "parts": []}], "id": 5}, "id must be a string"),
        ({"messages": [{"role": "user", "parts": []}], "trigger": []}, "trigger must be a string"),
        ({"messages": [{"role": "user", "parts": []}], "trigger": "resume"}, "trigger must be submit-message or"),
        ({"messages": [{"role": "assistant", "parts": []}]}, "nothing that a model could answer"),
        ({"messages": [assistant()], "trigger": "regenerate-message"}, "nothing that a model could answer"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(fields: dict[str, Any], reason: str) -> None:
    """The field is named."""
    with pytest.raises(BadRequest, match=reason):
        decode(**fields)

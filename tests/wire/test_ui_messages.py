"""The AI SDK's UI message stream: its order and its bytes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from rawstream.errors import SourceFailed
from rawstream.model import DataPart, Dialect, Token, TokenItem, Usage
from rawstream.wire import deltas
from rawstream.wire.sse import Parser
from rawstream.wire.ui_messages import UIMessages


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
    """One event, one line, a blank line; a part begins with what it holds."""
    dialect = UIMessages("m")
    start, delta = b'data: {"type":"text-start","id":"t1"}\n\n', b'data: {"type":"text-delta","id":"t1","delta":%b}\n\n'
    assert dialect.encode(["é"]) == start + delta % '"é"'.encode()
    assert dialect.encode(["b"]) == dialect.encode((Token("b"),)) == delta % b'"b"'
    assert UIMessages("m").heartbeat == b": hb\n\n"


def test_tokens_that_are_ready_together_are_one_delta() -> None:
    """The client renders once for each event."""
    dialect = UIMessages("m")
    batches: list[list[TokenItem]] = [
        ["a", "", Token("b"), Token("x", index=1), "c"],
        [Token("a"), "bc"],
        ["a", "b", "c"],
    ]
    for _ in range(2):
        for items in batches:
            found = parts(dialect.encode(items))
            assert [part["delta"] for part in found if part["type"] == "text-delta"] == ["abc"]


def test_what_shows_no_text_sends_nothing() -> None:
    """No empty deltas."""
    dialect = UIMessages("m")
    batches: list[list[TokenItem]] = [["", Token(""), Token("x", index=1)], [""], ["", ""], []]
    for _ in range(2):
        for items in batches:
            assert dialect.encode(items) == b""
        dialect.encode(["a"])


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
    """An error has nothing after it; a stop ends what is open, and the stream properly."""
    dialect = UIMessages("m")
    assert parts(dialect.error("it\nbroke", "upstream_failed")) == [{"type": "error", "errorText": "it\nbroke"}]
    assert parts(dialect.stopped("stopped")) == [{"type": "abort", "reason": "stopped"}, "[DONE]"]
    dialect.encode(["a"])
    assert [part["type"] for part in parts(dialect.stopped("s"))[:-1]] == ["text-end", "abort"]


def test_the_client_knows_the_stream_by_its_header() -> None:
    """Beside what all event streams carry."""
    headers = dict(UIMessages("m").headers)
    assert headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert headers["content-type"] == "text/event-stream; charset=utf-8"


# --- beside the text ----------------------------------------------------------------------------------------


def event(finish_reason: str | None = None, **delta: Any) -> Token:
    """An upstream's event, as the relay hands it on."""
    raw = json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}).encode()
    return Token(str(delta.get("content") or ""), raw, finish_reason)


def call(at: int | None = 0, id: str | None = None, name: str | None = None, arguments: Any = None) -> Token:
    """An event with one piece of a tool call."""
    piece = {"index": at, "id": id, "function": {"name": name, "arguments": arguments}}
    return event(tool_calls=[{key: value for key, value in piece.items() if value is not None}])


def shown(dialect: UIMessages, *batches: list[Any]) -> list[Any]:
    """The parts of ``batches`` and of the end, without the frame that is always the same."""
    frames = b"".join([dialect.encode(batch) for batch in batches]) + dialect.terminal()
    return [part for part in parts(frames)[:-2] if part["type"] != "finish-step"]


def test_thoughts_are_parts_of_their_own_and_come_before_the_text() -> None:
    """``reasoning_content`` and ``reasoning``, an event each; the text ends them, and they end a text."""
    assert shown(
        UIMessages("m"),
        [event(role="assistant", content="")],
        [event(reasoning_content="Let me "), event(reasoning="think.")],
        [event(content="Yes."), event(content=" So.")],
        [event(reasoning="Hm.")],
        [event(content="No.", reasoning="Sure."), "!"],
    ) == [
        {"type": "reasoning-start", "id": "r1"},
        {"type": "reasoning-delta", "id": "r1", "delta": "Let me "},
        {"type": "reasoning-delta", "id": "r1", "delta": "think."},
        {"type": "reasoning-end", "id": "r1"},
        {"type": "text-start", "id": "t1"},
        {"type": "text-delta", "id": "t1", "delta": "Yes. So."},
        {"type": "text-end", "id": "t1"},
        {"type": "reasoning-start", "id": "r2"},
        {"type": "reasoning-delta", "id": "r2", "delta": "Hm."},
        {"type": "reasoning-delta", "id": "r2", "delta": "Sure."},
        {"type": "reasoning-end", "id": "r2"},
        {"type": "text-start", "id": "t2"},
        {"type": "text-delta", "id": "t2", "delta": "No.!"},
        {"type": "text-end", "id": "t2"},
    ]


def test_a_token_of_text_costs_no_decoding() -> None:
    """What is in its event beside the text is looked at where a text begins, and at the end, alone."""
    dialect = UIMessages("m")
    dialect.encode([event(content="a")])
    assert b"reasoning" not in dialect.encode([event(content="b", reasoning="unseen")])
    assert b"reasoning" in dialect.encode([event("stop", content="c", reasoning="seen")])


def test_tool_calls_are_told_as_they_come_and_whole_at_their_end() -> None:
    """Pieces belong together by their index; the input is the arguments' own JSON, to the last digit."""
    found = shown(
        UIMessages("m"),
        [event(content="Looking.")],
        [call(0, "a", "weather", "")],
        [call(0, arguments='{"city":'), call(1, "b", "time", "{}")],
        [call(0, arguments='\n"Köln", "n": 12345678901234567890123}')],
        [event("tool_calls")],
    )
    assert found == [
        {"type": "text-start", "id": "t1"},
        {"type": "text-delta", "id": "t1", "delta": "Looking."},
        {"type": "text-end", "id": "t1"},
        {"type": "tool-input-start", "toolCallId": "a", "toolName": "weather"},
        {"type": "tool-input-delta", "toolCallId": "a", "inputTextDelta": '{"city":'},
        {"type": "tool-input-start", "toolCallId": "b", "toolName": "time"},
        {"type": "tool-input-delta", "toolCallId": "b", "inputTextDelta": "{}"},
        {"type": "tool-input-delta", "toolCallId": "a", "inputTextDelta": '\n"Köln", "n": 12345678901234567890123}'},
        {
            "type": "tool-input-available",
            "toolCallId": "a",
            "toolName": "weather",
            "input": {"city": "Köln", "n": 12345678901234567890123},
        },
        {"type": "tool-input-available", "toolCallId": "b", "toolName": "time", "input": {}},
    ]


def test_calls_end_with_the_answer_where_no_finish_reason_says_so() -> None:
    """And with no arguments the input is empty, not missing."""
    dialect = UIMessages("m")
    frames = parts(dialect.encode([call(0, "a", "now")]) + dialect.terminal("tool_calls"))
    assert frames == [
        {"type": "tool-input-start", "toolCallId": "a", "toolName": "now"},
        {"type": "tool-input-available", "toolCallId": "a", "toolName": "now", "input": {}},
        {"type": "finish-step"},
        {"type": "finish", "finishReason": "tool-calls"},
        "[DONE]",
    ]


def test_arguments_that_are_not_json_are_an_error_of_the_call() -> None:
    """With what the model said, so that the page can show it; the stream goes on."""
    (*_, ended) = shown(UIMessages("m"), [call(0, "a", "f", '{"cut')])
    assert ended == {
        "type": "tool-input-error",
        "toolCallId": "a",
        "toolName": "f",
        "input": '{"cut',
        "errorText": "the arguments are not valid JSON",
    }


def test_a_call_begins_with_its_name() -> None:
    """What comes before is kept for its first delta; a call that never names its tool is an error."""
    late = shown(UIMessages("m"), [call(0, "a", None, "{"), call(0, None, "f", "}")])
    assert late == [
        {"type": "tool-input-start", "toolCallId": "a", "toolName": "f"},
        {"type": "tool-input-delta", "toolCallId": "a", "inputTextDelta": "{}"},
        {"type": "tool-input-available", "toolCallId": "a", "toolName": "f", "input": {}},
    ]
    (never,) = shown(UIMessages("m"), [call(0, "a", None, "{}")])
    assert (never["type"], never["toolName"]) == ("tool-input-error", "unknown")


def test_calls_that_share_an_index_are_told_apart_by_their_ids() -> None:
    """Some servers send all under 0, or under none; an id that only repeats, or has no name with it, is the same's."""
    for at in (0, None):
        found = shown(
            UIMessages("m"),
            [call(at, "a", "f", "{"), call(at, "a", "f", "}"), call(at, "b", "g", {"x": 1}), call(at, "c", None, " ")],
        )
        assert [part for part in found if part["type"] == "tool-input-available"] == [
            {"type": "tool-input-available", "toolCallId": "a", "toolName": "f", "input": {}},
            {"type": "tool-input-available", "toolCallId": "b", "toolName": "g", "input": {"x": 1}},
        ]


def test_a_call_without_an_id_gets_one() -> None:
    """Two of them different ones."""
    found = shown(UIMessages("m"), [call(0, None, "f"), call(1, None, "g")])
    assert [part["toolCallId"] for part in found if part["type"] == "tool-input-start"] == ["call_1", "call_2"]


def test_what_is_kept_of_tool_calls_is_bounded() -> None:
    """In characters of arguments, and in calls under way."""
    dialect = UIMessages("m")
    half = "x" * (deltas.MAX_ARGUMENTS // 2)
    dialect.encode([call(0, "a", "f", half), call(0, arguments=half)])
    assert dialect.encode([call(0, arguments="y")]) == b""
    ended = parts(dialect.terminal())[0]
    assert (ended["type"], len(ended["input"])) == ("tool-input-error", deltas.MAX_ARGUMENTS)
    long = shown(UIMessages("m"), [call(0, "i" * deltas.MAX_NAME + "j", "n" * deltas.MAX_NAME + "o")])
    (began,) = [part for part in long if part["type"] == "tool-input-start"]
    assert (began["toolCallId"], began["toolName"]) == ("i" * deltas.MAX_NAME, "n" * deltas.MAX_NAME)
    many = UIMessages("m")
    frames = b"".join([many.encode([call(at, str(at), "f")]) for at in range(deltas.MAX_CALLS + 2)])
    assert frames.count(b"tool-input-available") == 2


def test_pieces_of_a_call_that_say_nothing_are_not_kept() -> None:
    calls = deltas.ToolCalls()
    empty = deltas.CallPiece(0, "a", "f", "")
    one, _ = calls.take(empty)
    before = one.held
    for _ in range(100):
        calls.take(empty)
    calls.take(deltas.CallPiece(0, "", "", "{}"))
    assert (before, one.held, one.arguments) == (0, 1, "{}")


@pytest.mark.parametrize(
    "raw",
    [
        b"not json",
        b"\xff",
        b"[" * 3000,
        b"{}",
        b'{"choices":null}',
        b'{"choices":[]}',
        b'{"choices":[{"index":0}]}',
        b'{"choices":[{"index":1,"delta":{"reasoning":"other"}}]}',
        b'{"choices":[{"delta":{"reasoning":{"a":1},"tool_calls":{}}}]}',
        b'{"choices":[{"delta":{"tool_calls":[null,5]}}]}',
        b'{"choices":[{"delta":5}]}',
    ],
)
def test_events_that_say_nothing_that_is_known_show_nothing(raw: bytes) -> None:
    """And harm nothing."""
    assert UIMessages("m").encode([Token(raw=raw)]) == b""


def test_a_piece_of_a_call_that_makes_no_sense_is_an_unnamed_call() -> None:
    """Which its end tells: nothing is dropped without a word."""
    token = Token(raw=b'{"choices":[{"delta":{"tool_calls":[{"index":"0","id":7,"function":null}]}}]}')
    (ended,) = shown(UIMessages("m"), [token])
    assert (ended["type"], ended["toolCallId"]) == ("tool-input-error", "call_1")


def test_usage_is_metadata_of_the_finished_message() -> None:
    """In the SDK's words, where somebody counted; of several counts the last."""
    dialect = UIMessages("m")
    dialect.encode(["a", Token(usage=Usage(1, 1, 2)), Token("b", usage=Usage(5, 2, 7))])
    assert parts(dialect.terminal())[-2] == {
        "type": "finish",
        "finishReason": "stop",
        "messageMetadata": {"usage": {"inputTokens": 5, "outputTokens": 2, "totalTokens": 7}},
    }


def test_why_an_answer_ends_early_is_metadata_of_the_finished_message() -> None:
    """Beside its usage, where that is known."""
    dialect = UIMessages("m")
    dialect.encode(["a"])
    assert parts(dialect.terminal("length", "insufficient_quota"))[-2] == {
        "type": "finish",
        "finishReason": "length",
        "messageMetadata": {"reason": "insufficient_quota"},
    }
    dialect.encode([Token(usage=Usage(1, 1, 2))])
    assert parts(dialect.terminal("length", "rate_limit_exceeded"))[-2]["messageMetadata"] == {
        "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2},
        "reason": "rate_limit_exceeded",
    }


def test_data_parts_are_told_where_they_come() -> None:
    """Transient ones leave the text open; those that stay in the message end it."""
    kept = DataPart("source_1", {"url": "é"}, transient=False)
    assert shown(UIMessages("m"), ["a", Token(data=DataPart("progress", 5)), "b"], [Token("c", data=kept)]) == [
        {"type": "text-start", "id": "t1"},
        {"type": "text-delta", "id": "t1", "delta": "a"},
        {"type": "data-progress", "data": 5, "transient": True},
        {"type": "text-delta", "id": "t1", "delta": "b"},
        {"type": "text-end", "id": "t1"},
        {"type": "data-source_1", "data": {"url": "é"}},
        {"type": "text-start", "id": "t2"},
        {"type": "text-delta", "id": "t2", "delta": "c"},
        {"type": "text-end", "id": "t2"},
    ]


def test_ready_made_json_cannot_break_the_event() -> None:
    """Its line ends become spaces: outside of strings they mean the same."""
    (part,) = parts(UIMessages("m").encode([Token(data=DataPart("x", msgspec.Raw(b'{\r\n"a":\n1}')))]))
    assert part["data"] == {"a": 1}


@pytest.mark.parametrize("name", ["", "a b", "é", "x\n", "a" * 65])
def test_a_data_parts_name_is_letters_digits_dashes(name: str) -> None:
    """What the client would take for another type, or not at all, is the source's failure."""
    with pytest.raises(SourceFailed, match="data part's name"):
        UIMessages("m").encode([Token(data=DataPart(name, 1))])


@pytest.mark.parametrize("value", [object(), "\ud800", {1: object()}])
def test_a_data_part_that_json_cannot_hold_is_the_sources_failure(value: object) -> None:
    """Told by the part's name."""
    with pytest.raises(SourceFailed, match="data part x holds"):
        UIMessages("m").encode([Token(data=DataPart("x", value))])


def test_what_is_no_token_is_refused() -> None:
    """As in every dialect."""
    dialect = UIMessages("m")
    for _ in range(2):
        with pytest.raises(TypeError, match="str or Token"):
            dialect.encode(["a", 5])  # type: ignore[list-item]  # what a careless source may do

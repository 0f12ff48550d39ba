"""OpenAI's wire: what we say ourselves is what its clients expect; what an upstream says is not touched."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from rawstream.model import Dialect, Token, TokenItem, Usage
from rawstream.wire.openai import OpenAIChat, error_body, models_body, whole_answer
from rawstream.wire.sse import Parser

ROLE = {"role": "assistant", "content": ""}
COUNTED = {"prompt_tokens": 0, "completion_tokens": 2, "total_tokens": 2}


def dialect(*, include_usage: bool = False, prompt_tokens: int = 0) -> OpenAIChat:
    return OpenAIChat(
        id="chatcmpl-1", created=7, model="m", include_usage=include_usage, prompt_tokens=prompt_tokens
    )  # fmt: skip


def chunks(frames: bytes) -> list[Any]:
    """Every event's JSON, checked against the official client's own model; '[DONE]' as it is."""
    found = []
    for event in Parser().feed(frames):
        assert (event.event, event.id) == ("message", "")
        if event.data == b"[DONE]":
            found.append("[DONE]")
        else:
            ChatCompletionChunk.model_validate_json(event.data, strict=True)
            found.append(json.loads(event.data))
    return found


def choices(frames: bytes) -> list[tuple[int, Any, str | None]]:
    """(index, delta, finish reason) of every chunk that has a choice."""
    return [
        (choice["index"], choice["delta"], choice["finish_reason"])
        for chunk in chunks(frames)
        if chunk != "[DONE]"
        for choice in chunk["choices"]
    ]


# --- sources of our own -------------------------------------------------------------------------------------


def test_the_bytes_of_an_answer_of_our_own() -> None:
    """Role, contents, finish, [DONE], as OpenAI writes them."""
    stream: Dialect = dialect()
    start = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,'
    assert stream.head() == b""
    assert stream.encode(["Hi", "", " é"]) == (
        start
        + b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
        + start
        + b'"delta":{"content":"Hi"},"logprobs":null,"finish_reason":null}]}\n\n'
        + start
        + b'"delta":{"content":" \xc3\xa9"},"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert stream.encode(["!"]) == start + b'"delta":{"content":"!"},"logprobs":null,"finish_reason":null}]}\n\n'
    assert stream.terminal() == (
        start + b'"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    )  # fmt: skip


def test_the_heartbeat_is_a_bare_comment_line() -> None:
    """No blank line after it: openai-python takes one for an event. Between events it changes nothing."""
    stream = dialect()
    assert stream.heartbeat == b": hb\n"
    frames = [stream.heartbeat, stream.encode(["a"]), stream.heartbeat, stream.terminal()]
    assert len(chunks(b"".join(frames))) == 4


def test_usage_is_announced_and_given_when_asked_for() -> None:
    """null in every chunk, counts in the last, which has no choice; without being asked, not a word of it."""
    stream = dialect(include_usage=True, prompt_tokens=5)
    *others, last, done = chunks(stream.encode(["a", "b", ""]) + stream.terminal())
    assert all(chunk["usage"] is None for chunk in others)
    assert (last["choices"], done) == ([], "[DONE]")
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    stream = dialect()
    assert b"usage" not in stream.encode(["a"]) + stream.terminal()
    assert stream.completion_tokens == 1


def test_nothing_to_show_sends_nothing() -> None:
    """No empty deltas; the role waits for the first text."""
    assert dialect().encode([]) == dialect().encode([""]) == dialect().encode([Token("")]) == b""


def test_an_empty_answer_is_a_whole_one() -> None:
    """Role, finish, [DONE]: clients need a message even when it says nothing."""
    assert choices(dialect().terminal()) == [(0, ROLE, None), (0, {}, "stop")]


@pytest.mark.parametrize(
    ("told", "override", "said"), [(None, "length", "length"), ("length", None, "length"), ("length", "stop", "stop")]
)
def test_the_finish_reason_is_the_overrides_then_the_tokens(told: str | None, override: str | None, said: str) -> None:
    """'stop' only where nobody says anything else."""
    stream = dialect()
    stream.encode([Token("a", finish_reason=told)])
    assert choices(stream.terminal(override)) == [(0, {}, said)]


def test_choices_of_our_own_keep_their_index() -> None:
    """Each begins with its role and ends with its own finish, also one that has nothing to say."""
    stream = dialect(include_usage=True)
    frames = stream.encode(
        [
            Token("b", index=1),
            "a",
            Token("c", index=1, finish_reason="length"),
            Token("", index=2, finish_reason="content_filter", usage=Usage(1, 2, 3)),
        ]
    )
    assert choices(frames) == [
        (1, ROLE, None),
        (1, {"content": "b"}, None),
        (0, ROLE, None),
        (0, {"content": "a"}, None),
        (1, {"content": "c"}, None),
        (2, ROLE, None),
    ]
    end = stream.terminal()
    assert sorted(choices(end)) == [(0, {}, "stop"), (1, {}, "length"), (2, {}, "content_filter")]
    assert chunks(end)[-2]["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def test_strings_and_tokens_in_one_batch_keep_their_order() -> None:
    """A mixture costs more, and says the same."""
    deltas = [delta for _, delta, _ in choices(dialect().encode(["a", Token("b"), "c"]))]
    assert deltas == [ROLE, {"content": "a"}, {"content": "b"}, {"content": "c"}]


def test_hostile_names_and_texts_stay_inside_their_strings() -> None:
    """A model called like a line end or a quote changes nothing; neither does such a text."""
    evil = 'x"}\r\n\r\ndata: [DONE]\n\n\ud800'
    stream = OpenAIChat(id=evil, created=1, model=evil)
    *_, chunk = chunks(stream.encode([evil]))
    assert chunk["model"] == chunk["choices"][0]["delta"]["content"] == evil.replace("\ud800", "\ufffd")
    (event,) = Parser().feed(stream.error(evil, evil))
    assert json.loads(event.data)["error"]["message"].startswith('x"}')


def test_an_error_in_the_stream_has_the_body_of_any_error() -> None:
    """As an unnamed event, which all SDKs understand."""
    assert dialect().error("it broke", "upstream_timeout") == (
        b'data: {"error":{"message":"it broke","type":"server_error","param":null,"code":"upstream_timeout"}}\n\n'
    )
    assert b'"type":"insufficient_quota"' in dialect().error("spent", "insufficient_quota")


# --- relays -------------------------------------------------------------------------------------------------


def event(content: str | None = None, *, index: int = 0, **more: Any) -> Token:
    """An upstream's ordinary chunk, written as ours never would be."""
    delta = {"content": content, "odd": "kept"} if content is not None else more.pop("delta", {})
    finish = more.pop("finish_reason", None)
    usage = more.get("usage")
    raw = {
        "id": "up-1",
        "created": 99,
        "model": "llama",
        "object": "chat.completion.chunk",
        "choices": [{"index": index, "delta": delta, "finish_reason": finish}],
        **more,
    }
    return Token(
        content or "",
        raw=json.dumps(raw, indent=None).encode(),
        finish_reason=finish,
        usage=Usage(**usage) if usage else None,
        index=index,
    )


def usage_event(*counts: int) -> Token:
    token = event(usage=dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), counts, strict=True)))
    raw = json.loads(token.raw or b"")
    return Token(raw=json.dumps({**raw, "choices": []}).encode(), usage=token.usage)


def relayed(*tokens: Token) -> bytes:
    return b"".join(b"data: " + (token.raw or b"") + b"\n\n" for token in tokens)


def test_an_upstreams_events_are_relayed_byte_for_byte() -> None:
    """Role, text, tool calls, finish and what we never heard of; then nothing is left but [DONE]."""
    tokens: list[Token] = [
        event(delta={"role": "assistant", "content": None}),
        event("Hi"),
        event(delta={"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}),
        event(delta={}, finish_reason="tool_calls", timings={"n": 1}),
    ]
    stream = dialect()
    assert stream.encode(tokens) == relayed(*tokens)
    assert stream.terminal() == b"data: [DONE]\n\n"


def test_the_usage_chunk_goes_to_those_who_asked() -> None:
    """It is always asked for upstream, and stripped for everybody else."""
    tokens = [event("Hi"), event(finish_reason="stop"), usage_event(3, 1, 4)]
    stream = dialect()
    assert stream.encode(tokens) + stream.terminal() == relayed(*tokens[:2]) + b"data: [DONE]\n\n"
    stream = dialect(include_usage=True)
    assert stream.encode(tokens) + stream.terminal() == relayed(*tokens) + b"data: [DONE]\n\n"


def test_usage_that_rides_on_an_ordinary_chunk_stays_there() -> None:
    """Some put it into the finish chunk, which must not be lost; who asked for a usage chunk gets one made of it."""
    finish = event(finish_reason="stop", usage={"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4})
    stream = dialect()
    assert stream.encode([finish]) + stream.terminal() == relayed(finish) + b"data: [DONE]\n\n"
    stream = dialect(include_usage=True)
    assert stream.encode([finish]) == relayed(finish)
    last, _ = chunks(stream.terminal())
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    assert (last["id"], last["created"], last["model"]) == ("up-1", 99, "llama")


def test_usage_is_counted_where_the_upstream_gave_none() -> None:
    """Deltas, with text or without (a tool call's); neither the role chunk nor the finish."""
    stream = dialect(include_usage=True)
    stream.encode([event(delta={"role": "assistant"}), event("a"), event(delta={"reasoning_content": "b"})])
    stream.encode([event(finish_reason="stop")])
    last, _ = chunks(stream.terminal())
    assert last["usage"] == COUNTED


def test_a_stream_that_we_end_gets_the_upstreams_finish_chunk() -> None:
    """By budget or by an operator: for every choice still open, with the upstream's id, time and model."""
    stream = dialect()
    stream.encode([event("a"), event("b", index=1), event(finish_reason="stop")])
    finish, done = chunks(stream.terminal("length"))
    assert (finish["id"], finish["created"], finish["model"]) == ("up-1", 99, "llama")
    assert (finish["choices"][0]["index"], finish["choices"][0]["finish_reason"]) == (1, "length")
    assert done == "[DONE]"


def test_an_answer_that_we_end_early_says_why_in_its_finish_chunk() -> None:
    """``"rawstream":{"reason":…}`` beside the choices: no SDK minds a field more. Usage and [DONE] follow as ever."""
    stream = dialect(include_usage=True)
    stream.encode(["a", "b"])
    frames = stream.terminal("length", "insufficient_quota")
    assert frames.startswith(
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m",'
        b'"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],'
        b'"rawstream":{"reason":"insufficient_quota"},"usage":null}\n\n'
    )
    finish, usage, done = chunks(frames)
    assert finish["rawstream"] == {"reason": "insufficient_quota"}
    assert (usage["usage"]["completion_tokens"], done) == (2, "[DONE]")


def test_a_whole_answer_that_we_end_early_says_why_too() -> None:
    answer = json.loads(
        whole_answer(["a"], id="c", created=1, model="m", finish_reason="length", reason="insufficient_quota")
    )
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["rawstream"] == {"reason": "insufficient_quota"}


def test_what_the_upstream_left_open_is_not_closed_for_it() -> None:
    """Without a reason of our own we do not make one up."""
    stream = dialect()
    stream.encode([event("a")])
    assert stream.terminal() == b"data: [DONE]\n\n"


def test_a_stream_ended_before_the_upstream_spoke_is_ours() -> None:
    """Then our own id and model speak."""
    assert choices(dialect().terminal("length")) == [(0, ROLE, None), (0, {}, "length")]


def test_the_upstreams_name_is_learnt_from_the_first_event_that_has_one() -> None:
    """Some begin with an event without an id; what is no JSON, or odd JSON, is relayed all the same."""
    odd = [Token(raw=raw) for raw in (b"{", b'{"id":""}', b'{"id":5}')]
    stream = dialect()
    assert stream.encode([*odd, Token("x", raw=b'{"id":"late","choices":[]}')]) == relayed(
        *odd, Token(raw=b'{"id":"late","choices":[]}')
    )
    (finish, _) = chunks(stream.terminal("stop"))
    assert (finish["id"], finish["created"], finish["model"]) == ("late", 7, "m")


def test_an_upstream_without_a_name_is_not_asked_for_ever() -> None:
    """After a few events ours stays: looking costs time at every token."""
    stream = dialect()
    stream.encode([Token("x", raw=b'{"choices":[]}')] * 10)
    stream.encode([event("y")])
    finish, _ = chunks(stream.terminal("stop"))
    assert finish["id"] == "chatcmpl-1"


def test_usage_on_an_event_that_is_no_json_is_relayed_as_it_is() -> None:
    """In doubt nothing is taken away."""
    odd = Token(raw=b"{", usage=Usage())
    assert dialect().encode([odd]) == relayed(odd)


def test_an_event_of_several_lines_leaves_as_several_data_lines() -> None:
    """One event upstream is one event downstream, whichever line ends it holds."""
    raw = b'{"id":"a",\n"choices":\r\n[{"index":0,\r"delta":{"content":"x"},"finish_reason":null}]}'
    frames = dialect().encode([Token("x", raw=raw)])
    (only,) = Parser().feed(frames)
    assert json.loads(only.data) == json.loads(raw)
    assert frames.count(b"data: ") == 4


def learnt() -> OpenAIChat:
    """A relay in the middle of its stream: its upstream's name is known, its only choice has begun."""
    stream = dialect()
    stream.encode([event("a")])
    return stream


def test_a_batch_of_plain_text_is_relayed_at_once_and_counted() -> None:
    """The common case of a relay: the same bytes, and a count for who asks for usage."""
    stream = learnt()
    batch: list[TokenItem] = [event("b"), event("c")]
    assert stream.encode(batch) == relayed(event("b"), event("c"))
    assert stream.completion_tokens == 3


def test_a_string_among_an_upstreams_events_is_sent_in_its_place() -> None:
    """A source may add words of its own to what it relays."""
    deltas = [delta for _, delta, _ in choices(learnt().encode([event("b"), "mine", event("c")]))]
    assert [delta["content"] for delta in deltas] == ["b", "mine", "c"]


def test_an_event_of_several_lines_stays_one_event_among_plain_ones() -> None:
    """Nothing that an upstream puts into an event can end it, in the middle of a fast relay either."""
    for line_end in ("\n", "\r", "\r\n", "\n\n"):
        lined = Token("x", raw=(event("x").raw or b"").replace(b", ", b"," + line_end.encode()))
        stream = learnt()
        frames = stream.encode([event("b"), lined, event("c")])
        assert [delta["content"] for _, delta, _ in choices(frames)] == ["b", "x", "c"]
        assert stream.completion_tokens == 4


# --- bodies -------------------------------------------------------------------------------------------------


def test_a_whole_answer_is_one_object() -> None:
    """Texts joined, tokens counted; valid for the official client."""
    items: list[TokenItem] = ["Hel", "", Token("lo", finish_reason="length")]
    body = whole_answer(items, id="chatcmpl-1", created=7, model="m", prompt_tokens=3)
    answer = ChatCompletion.model_validate_json(body, strict=True)
    assert json.loads(body) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello"},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    assert answer.choices[0].message.content == "Hello"


def test_a_whole_answer_may_have_choices_usage_and_an_end_of_its_own() -> None:
    """As the tokens say, unless overridden; an answer without tokens is empty, not missing."""
    items: list[TokenItem] = [Token("b", index=1), Token(usage=Usage(1, 2, 3)), "a"]
    items.append(Token(index=2, finish_reason="content_filter"))
    whole = ChatCompletion.model_validate_json(whole_answer(items, id="i", created=1, model="m"), strict=True)
    assert [(c.index, c.message.content, c.finish_reason) for c in whole.choices] == [
        (0, "a", "stop"),
        (1, "b", "stop"),
        (2, "", "content_filter"),
    ]
    assert whole.usage is not None
    assert whole.usage.total_tokens == 3
    empty = json.loads(whole_answer([], id="i", created=1, model="m", finish_reason="length"))
    assert [(c["message"]["content"], c["finish_reason"]) for c in empty["choices"]] == [("", "length")]


def test_a_stopped_answer_ends_with_stop() -> None:
    """Whatever was said of it before: as a client sees it, the model stopped."""
    stream = dialect()
    stream.encode(["a", Token("b", finish_reason="length")])
    assert choices(stream.stopped("by hand")) == [(0, {}, "stop")]


def test_the_list_of_models() -> None:
    """As the official client reads it."""
    body = json.loads(models_body(["a", 'b"'], 7))
    assert body["object"] == "list"
    assert [Model.model_validate(model, strict=True).id for model in body["data"]] == ["a", 'b"']
    assert json.loads(models_body([], 7)) == {"object": "list", "data": []}


def test_the_body_of_an_error() -> None:
    """message, type, param and code, all there."""
    assert json.loads(error_body("no", "invalid_request_error", "bad_request")) == {
        "error": {"message": "no", "type": "invalid_request_error", "param": None, "code": "bad_request"}
    }
    assert json.loads(error_body("no", "t", "c", "messages"))["error"]["param"] == "messages"

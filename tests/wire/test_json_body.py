"""Request bodies and queries: a request, or a 400 that says what is wrong; never anything else."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawstream.errors import BadRequest
from rawstream.wire.json_body import MAX_DEPTH, MAX_QUERY_FIELDS, decode_chat, decode_object, from_query

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "blank": (b" \r\n\t", "empty"),
    "only a byte order mark": (b"\xef\xbb\xbf", "empty"),
    "truncated object": (b'{"prompt": ', "truncated"),
    "truncated string": (b'{"prompt": "abc', "truncated"),
    "two values": (b'{"prompt":"a"}{"prompt":"b"}', "trailing"),
    "NULs": (b"\0\0\0\0", "UTF-8"),
    "a NUL after it": (b'{"prompt":"a"}\0', "not valid JSON"),
    "a raw NUL in a string": (b'{"prompt":"a\0"}', "not valid JSON"),
    "a raw line end in a string": (b'{"prompt":"a\nb"}', "not valid JSON"),
    "invalid UTF-8": (b'{"prompt":"\xff"}', "not valid UTF-8"),
    "a surrogate in UTF-8": (b'{"prompt":"\xed\xa0\x80"}', "not valid UTF-8"),
    "UTF-16 with its mark": ('{"prompt":"a"}'.encode("utf-16"), "UTF-16"),
    "UTF-16 little end first": ('{"prompt":"a"}'.encode("utf-16-le"), "UTF-16"),
    "UTF-16 big end first": ('{"prompt":"a"}'.encode("utf-16-be"), "UTF-16"),
    "UTF-32": ('{"prompt":"a"}'.encode("utf-32-be"), "UTF-32"),
    "100,000 lists": (b"[" * 100_000, "nested"),
    "100,000 objects": (b'{"a":' * 100_000, "nested"),
    "100,000 closed lists in an object": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
    "what the decoder of Python 3.13 takes": (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "nested"),
    "just too deep": (b'{"prompt":"a","b":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested"),
    "100,000 digits": (b'{"prompt":"a","n":' + b"9" * 100_000 + b"}", "out of range"),
    "1e999": (b'{"prompt":"a","n":1e999}', "out of range"),
    "NaN": (b'{"prompt":"a","n":NaN}', "not valid JSON"),
    "Infinity": (b'{"prompt":"a","n":-Infinity}', "not valid JSON"),
    "a lone surrogate": (b'{"prompt":"\\ud800"}', "not valid JSON"),
    "a lone low surrogate": (b'{"prompt":"x\\udc00x"}', "not valid JSON"),
    "a form": (b"prompt=hello", "not valid JSON"),
    "a list": (b'["prompt"]', "not a list"),
    "a string": (b'"prompt"', "not a string"),
    "a number": (b"5", "not a number"),
    "a fraction": (b"5.5", "not a number"),
    "a boolean": (b"true", "not a boolean"),
    "null": (b"null", "not null"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_bad_body_is_a_bad_request_that_names_what_is_wrong(case: str) -> None:
    """Row 21 of the faults: 400, quickly, whatever the bytes."""
    body, reason = HOSTILE[case]
    started = time.process_time()
    with pytest.raises(BadRequest, match=reason) as caught:
        decode_chat(body)
    assert caught.value.status == 400
    assert time.process_time() - started < 1, "seconds of work"


@given(st.binary(max_size=60) | st.text('{}[]",:0123456789eE+-.\\unatrufls ', max_size=60).map(str.encode))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    """An object that can be encoded again, or BadRequest."""
    try:
        value = decode_object(body)
    except BadRequest:
        return
    msgspec.json.encode(value)


def test_what_json_allows_is_accepted() -> None:
    """Duplicate keys (the last counts), pairs of surrogates, big integers, a byte order mark, any white space."""
    body = b'\xef\xbb\xbf \n{"prompt":"a","prompt":"\\ud83d\\ude00","seed":123456789012345678901234567890}\r\n'
    request = decode_chat(body)
    assert request.prompt == "😀"
    assert request.extra == {"seed": 123456789012345678901234567890}


def test_nesting_up_to_the_limit_is_accepted() -> None:
    """And many brackets side by side are no nesting."""
    deep = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    assert "b" in decode_object(b'{"b":' + deep + b"}")
    assert len(decode_object(b'{"b":[' + b",".join([b'{"c":[1]}'] * 500) + b"]}")["b"]) == 500


# --- fields -------------------------------------------------------------------------------------------------


def test_a_prompt_becomes_the_users_message() -> None:
    """And what rawstream does not know travels on untouched."""
    body = {"prompt": "hi", "max_tokens": 5, "model": "m", "user": "u", "temperature": 0.5, "mock": {"tokens": None}}
    request = decode_chat(json.dumps(body).encode())
    assert request.messages == [{"role": "user", "content": "hi"}]
    assert (request.max_tokens, request.model, request.user) == (5, "m", "u")
    assert request.extra == {"temperature": 0.5, "mock": {"tokens": None}}


def test_messages_travel_on_untouched() -> None:
    """Fields that rawstream never heard of included; null counts as absent."""
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}], "new": 1}]
    body = {"messages": messages, "prompt": None, "max_tokens": None, "model": None}
    request = decode_chat(json.dumps(body).encode())
    assert request.messages == messages
    assert (request.max_tokens, request.model, request.user, request.extra) == (None, None, None, {})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "prompt .* or messages .* required"),
        ({"prompt": None, "messages": None}, "required"),
        ({"prompt": "a", "messages": [{}]}, "not both"),
        ({"prompt": 5}, "prompt must be a string, not a number"),
        ({"prompt": ["a"]}, "prompt must be a string, not a list"),
        ({"messages": "a"}, "messages must be a list of objects, not a string"),
        ({"messages": {}}, "not an object"),
        ({"messages": []}, "must not be empty"),
        ({"messages": [{}, "a"]}, r"messages\[1\] must be an object, not a string"),
        ({"messages": [None]}, r"messages\[0\] must be an object, not null"),
        ({"prompt": "a", "max_tokens": "5"}, "max_tokens must be a whole number, not a string"),
        ({"prompt": "a", "max_tokens": 5.0}, "max_tokens must be a whole number, not a number"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens must be a whole number, not a boolean"),
        ({"prompt": "a", "max_tokens": 0}, "at least 1"),
        ({"prompt": "a", "model": 5}, "model must be a string"),
        ({"prompt": "a", "user": {}}, "user must be a string, not an object"),
    ],
)
def test_a_field_that_makes_no_sense_is_named(body: dict[str, Any], reason: str) -> None:
    """The message says which field, what it must be and what it is."""
    with pytest.raises(BadRequest, match=reason):
        decode_chat(json.dumps(body).encode())


# --- queries ------------------------------------------------------------------------------------------------


def test_a_query_says_what_a_body_says() -> None:
    """The same fields; objects as JSON."""
    mock = {"tokens": 3, "seed": 1}
    query = urlencode({"prompt": "hi there & more=é", "max_tokens": "7", "model": "5", "mock": json.dumps(mock)})
    request = from_query(query + "&temperature=0.5&echo=true&stop=&tag=1x&list=%5B1%5D&big=1e999&quoted=%22a%22")
    assert request.prompt == "hi there & more=é"
    assert (request.max_tokens, request.model) == (7, "5")
    assert request.extra == {
        "mock": mock,
        "temperature": 0.5,
        "echo": True,
        "stop": "",
        "tag": "1x",
        "list": [1],
        "big": "1e999",
        "quoted": '"a"',
    }


def test_messages_may_come_in_a_query() -> None:
    """As JSON, like every object."""
    messages = [{"role": "user", "content": "a+b"}]
    assert from_query("messages=" + quote(json.dumps(messages))).messages == messages


def test_a_prompt_in_a_query_is_text_whatever_it_looks_like() -> None:
    """Nobody's question is taken for JSON; of two, the last counts."""
    assert from_query("prompt=x&prompt=%7B%22a%22").prompt == '{"a"'
    assert from_query("prompt=5").prompt == "5"


def test_a_stop_sequence_in_a_query_is_text_and_several_are_a_list() -> None:
    """Also where it looks like a number or an object."""
    for text, stop in (("5", "5"), ("{", "{"), ('["a","b"]', ["a", "b"])):
        assert from_query("prompt=x&stop=" + quote(text)).extra == {"stop": stop}


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("", "required"),
        ("prompt=%ff", "not valid UTF-8"),
        ("prompt=\ud800", "not valid UTF-8"),
        ("prompt=a&" + "x=1&" * MAX_QUERY_FIELDS, "more than 100 fields"),
        ("prompt=a&mock=5", "mock must be a JSON object, not a number"),
        ("prompt=a&mock=%7B", "mock is not valid JSON"),
        ("prompt=a&mock=", "mock is empty"),
        ("messages=a", "messages is not valid JSON"),
        ("messages=%7B%7D", "messages must be a list"),
        ("prompt=a&tools=%5B1", "tools is not valid JSON"),
        ("prompt=a&x=+" + "%5B" * 2000 + "%5D" * 2000, "x is nested too deeply"),
        ("prompt=a&max_tokens=five", "max_tokens must be a whole number, not 'five'"),
        ("prompt=a&max_tokens=" + "9" * 19, "max_tokens must be a whole number"),
        ("prompt=a&max_tokens=%D9%A5", "max_tokens must be a whole number"),
        ("prompt=a&max_tokens=0", "at least 1"),
    ],
)
def test_a_bad_query_is_a_bad_request_that_names_what_is_wrong(query: str, reason: str) -> None:
    """As for bodies."""
    with pytest.raises(BadRequest, match=reason):
        from_query(query)


@given(st.text(max_size=60))
def test_no_query_raises_anything_else(query: str) -> None:
    """A request or BadRequest."""
    for text in (query, "x=" + query, "x=" + quote(query), "mock=" + quote(query)):
        try:
            from_query("prompt=p&" + text)
        except BadRequest:
            pass

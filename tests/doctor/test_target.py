"""The URL tells how to ask; and nothing is sent but the user's own request."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from rawstream.doctor.target import target_of
from rawstream.errors import MisuseError


@pytest.mark.parametrize(
    ("url", "kind", "base"),
    [
        ("http://h/chat", "chat", "http://h"),
        ("http://h/app/chat", "chat", "http://h/app"),
        ("http://h/chat-broken", "chat", "http://h"),
        ("https://h:8443/api/chat?x=1", "ui", "https://h:8443"),
        ("http://h/v1/chat/completions", "openai", "http://h"),
        ("http://h/v1", "openai", "http://h"),
        ("http://h/openai/chat/completions", "openai", "http://h/openai"),
        ("http://h/stream", "eventsource", "http://h"),
        ("http://h/text", "text", "http://h"),
        ("http://h/ask/me", "sse", "http://h/ask"),
        ("127.0.0.1:8000/chat", "chat", "http://127.0.0.1:8000"),
    ],
)
def test_the_path_tells_the_dialect_and_where_its_neighbours_are(url: str, kind: str, base: str) -> None:
    target = target_of(url)
    assert (target.kind, target.base) == (kind, base)


@pytest.mark.parametrize("body", [b"{", b'{"a": "\xff"}', b"[" * 5000 + b"]" * 5000, b"[]"])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(MisuseError, match="JSON"):
        target_of("http://h/chat", body=body)


@pytest.mark.parametrize(
    "url", ["http://h", "http://h/", "ftp://h/chat", "http://u:p@h/chat", "http://h:x/chat", "http://[::1/chat"]
)
def test_what_is_no_endpoint_is_refused(url: str) -> None:
    with pytest.raises(MisuseError):
        target_of(url)


@pytest.mark.parametrize("body", [b"no", b"[1]"])
def test_a_body_must_be_a_json_object(body: bytes) -> None:
    with pytest.raises(MisuseError):
        target_of("http://h/chat", body=body)


def test_headers_that_would_make_another_request_are_refused() -> None:
    for field in (("content-length", "3"), ("Host", "x"), ("x", "a\nb"), ("x", "ä")):
        with pytest.raises(MisuseError):
            target_of("http://h/chat", headers=(field,))


def test_each_dialect_has_its_own_question() -> None:
    def asked(url: str) -> dict[str, object]:
        decoded: dict[str, object] = json.loads(target_of(url, prompt="hi", model="m").wanted(max_tokens=9).body)
        return decoded

    assert asked("http://h/chat") == {"prompt": "hi", "max_tokens": 9, "model": "m"}
    openai = asked("http://h/v1")
    assert openai["stream"] is True
    assert openai["messages"] == [{"role": "user", "content": "hi"}]
    assert "max_tokens" not in asked("http://h/api/chat")


def test_an_event_source_is_asked_by_its_query() -> None:
    wanted = target_of("http://h/stream?a=b", prompt="hi").wanted(mock={"tokens": 3})
    assert (wanted.method, wanted.body) == ("GET", b"")
    assert parse_qs(urlsplit(wanted.url).query) == {
        "a": ["b"],
        "prompt": ["hi"],
        "on_disconnect": ["cancel"],
        "mock": ['{"tokens":3}'],
    }


def test_the_users_body_goes_as_it_is() -> None:
    target = target_of("http://h/ask", body=b'{"question": "why"}')
    assert json.loads(target.wanted(max_tokens=5).body) == {"question": "why"}

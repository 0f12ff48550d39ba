"""A recording counts what came, in each dialect, however the bytes were cut."""

from __future__ import annotations

import gzip

import pytest

from rawstream.doctor.recording import Recording

SSE = "text/event-stream; charset=utf-8"
OPENAI = (
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}\n\n'
    b": hb\n"
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n'
    b"data: [DONE]\n\n"
)
CHAT = b'data: {"token": "a"}\n\n: hb\n\ndata: {"token": " b"}\n\ndata: [DONE]\n\n'
UI = (
    b'data: {"type":"start"}\n\ndata: {"type":"text-start","id":"t"}\n\n'
    b'data: {"type":"text-delta","id":"t","delta":"a"}\n\ndata: {"type":"finish"}\n\ndata: [DONE]\n\n'
)
ANTHROPIC = (
    b'event: ping\ndata: {"type": "ping"}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"a"}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)


def recorded(data: bytes, *, step: int = 10_000, kind: str = SSE, coding: str = "") -> Recording:
    recording = Recording(kind, coding)
    for at in range(0, len(data), step):
        recording.take(at / 1000, data[at : at + step])
    return recording


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("data", "tokens", "heartbeats", "done"),
    [(OPENAI, 2, 1, True), (CHAT, 2, 1, True), (UI, 1, 0, True), (ANTHROPIC, 1, 1, False)],
)
def test_tokens_heartbeats_and_the_end_are_counted_whatever_the_cuts(
    data: bytes, tokens: int, heartbeats: int, done: bool, step: int
) -> None:
    recording = recorded(data, step=step)
    assert (recording.tokens, len(recording.heartbeats), recording.done) == (tokens, heartbeats, done)
    assert recording.terminal
    assert sum(arrival.bytes for arrival in recording.arrivals) == recording.bytes == len(data)
    assert sum(arrival.tokens for arrival in recording.arrivals) == tokens


def test_openais_form_is_seen_in_its_parts() -> None:
    recording = recorded(OPENAI + b'data: {"choices":[]}\n\n')
    assert recording.role
    assert recording.finish_reasons == ["stop"]
    assert (recording.usage, recording.usage_alone) == (1, True)
    assert recording.after_terminal == 1


@pytest.mark.parametrize(
    "event",
    [
        b'{"error": "it broke", "code": "upstream_failed"}',
        b'{"error": {"message": "it broke", "code": "upstream_failed"}}',
        b'{"type": "error", "errorText": "it broke", "code": "upstream_failed"}',
    ],
)
def test_a_failure_told_in_the_stream_is_not_a_token(event: bytes) -> None:
    recording = recorded(b"data: " + event + b"\n\n")
    assert recording.error == "it broke (upstream_failed)"
    assert recording.tokens == 0
    assert not recording.terminal


def test_gzip_is_read_through_and_brotli_only_weighed() -> None:
    assert recorded(gzip.compress(CHAT), step=5, coding="gzip").tokens == 2
    unreadable = recorded(b"\x0b\x02\x80", coding="br")
    assert (unreadable.legible, unreadable.bytes) == (False, 3)
    assert not recorded(b"this is not gzip", coding="gzip").legible


def test_events_of_an_unknown_dialect_count_one_token_each() -> None:
    assert recorded(b'data: hello\n\ndata: {"word": 1}\n\ndata: [1]\n\n').tokens == 3


def test_of_plain_text_words_are_counted() -> None:
    assert recorded(b"one two\nthree four", kind="text/plain").tokens == 3

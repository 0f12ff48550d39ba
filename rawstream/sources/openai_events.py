"""What an OpenAI-compatible upstream says, as tokens. Pure: bytes in, tokens out.

Rule 1: only what a relay must know is decoded (text, finish reason, usage, choice); all else travels in ``raw``.
Rule 2: what is not understood is relayed, not judged: a token with ``raw`` and no text.
Rule 3: an error that the upstream tells in-stream is an error, not a token.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from rawstream.errors import UpstreamFailed
from rawstream.model import Token, Usage

DONE: Final = b"[DONE]"
_LONGEST_MESSAGE: Final = 500


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int = 0


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None


_decode: Final = msgspec.json.Decoder(_Chunk).decode
_decode_any: Final = msgspec.json.Decoder().decode


def token_of(payload: bytes) -> Token:
    """The token of one event's data. ``raw`` is one line, whatever the event's data was.

    Raises UpstreamFailed when the event is the upstream's own error.
    """
    if b"\n" in payload:
        # JSON has line feeds between its tokens alone, where a space does as well.
        payload = payload.replace(b"\n", b" ")
    try:
        chunk = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _unusual(payload)
    if chunk.error:
        raise failure_of(chunk.error)
    choices = chunk.choices
    if not choices:
        return Token("", payload, None, chunk.usage, 0)
    choice = choices[0]
    if len(choices) > 1:
        choice = next((one for one in choices if one.index == 0), choice)
    text = choice.delta.content if choice.delta is not None else None
    return Token(text or "", payload, choice.finish_reason, chunk.usage, choice.index)


def _unusual(payload: bytes) -> Token:
    """An event that is not JSON, or not of the expected types: whatever can be known of it."""
    try:
        thing = _decode_any(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Token(raw=payload)
    if isinstance(thing, dict) and thing.get("error"):
        raise failure_of(thing["error"])
    return Token(raw=payload)


def failure_of(error: Any) -> UpstreamFailed:
    """The upstream's ``error`` value (a dict with a message, or a string) as ours."""
    return UpstreamFailed(message_of(error) or "the upstream failed", detail="the upstream told an error in its stream")


def message_of(error: Any) -> str | None:
    """The message in an ``error`` value, cut to a length that fits an answer."""
    message = error.get("message") if isinstance(error, dict) else error
    return message[:_LONGEST_MESSAGE] if isinstance(message, str) and message else None


def answer_as_token(body: bytes) -> Token:
    """A whole, non-streamed answer as the one chunk of a stream. Raises UpstreamFailed when it is none."""
    try:
        answer = _decode_any(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamFailed("the upstream's answer is not JSON") from None
    if isinstance(answer, dict) and answer.get("error"):
        raise failure_of(answer["error"])
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise UpstreamFailed("the upstream's answer has no choices")
    answer["object"] = "chat.completion.chunk"
    for choice in choices:
        delta = choice["delta"] = choice.pop("message", None) or {}
        calls = delta.get("tool_calls") if isinstance(delta, dict) else None
        for at, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                call.setdefault("index", at)
    return token_of(msgspec.json.encode(answer))

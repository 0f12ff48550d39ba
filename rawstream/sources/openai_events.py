"""What an OpenAI-compatible upstream says, as tokens. Pure: bytes in, tokens out.

Rule 1: only what a relay must know is decoded (text, finish reason, usage, choice); all else travels in ``raw``.
Rule 2: what is not understood is relayed, not judged: a token with ``raw`` and no text.
Rule 3: an error that the upstream tells in-stream is an error, not a token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from rawstream.errors import UpstreamComplained, UpstreamFailed
from rawstream.model import Token, Usage

DONE: Final = b"[DONE]"
_LINE_FEED: Final = 10
_LONGEST_MESSAGE: Final = 500


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int = 0


class _Chunk(msgspec.Struct, gc=False):
    choices: tuple[_Choice, ...] | None = None
    usage: Usage | None = None
    error: Any = None


_decode: Final = msgspec.json.Decoder(_Chunk).decode
_decode_any: Final = msgspec.json.Decoder().decode


def append_tokens(payloads: Iterable[bytes], tokens: list[Token]) -> None:
    """Append the token of each event's data to ``tokens``; events without data are passed over.

    ``raw`` is one line, whatever the event's data was. Raises UpstreamFailed at an event that is the upstream's
    own error; the tokens before it are there.
    """
    decode, append = _decode, tokens.append
    for payload in payloads:
        if _LINE_FEED in payload:
            # JSON has line feeds between its tokens alone, where a space does as well.
            payload = payload.replace(b"\n", b" ")
        try:
            chunk = decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            readable = payload.decode(errors="replace").encode()
            if readable != payload:
                # Malformed UTF-8 costs its own characters, not the text around it (WHATWG Encoding: U+FFFD).
                append_tokens([readable], tokens)
                tokens[-1] = msgspec.structs.replace(tokens[-1], raw=payload)
            elif payload:
                append(_unusual(payload))
            continue
        if chunk.error:
            raise failure_of(chunk.error)
        choices = chunk.choices
        if not choices:
            append(Token("", payload, None, chunk.usage))
            continue
        choice = choices[0]
        if len(choices) > 1:
            choice = next((one for one in choices if one.index == 0), choice)
        delta = choice.delta
        text = (delta.content or "") if delta is not None else ""
        append(Token(text, payload, choice.finish_reason, chunk.usage, choice.index))


def _unusual(payload: bytes) -> Token:
    """An event that is not JSON, or not of the expected types: whatever can be known of it."""
    try:
        thing = _decode_any(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Token(raw=payload)
    if isinstance(thing, dict) and thing.get("error"):
        raise failure_of(thing["error"])
    return Token(raw=payload)


def failure_of(error: Any) -> UpstreamComplained:
    """The upstream's ``error`` value (a dict with a message, or a string) as ours."""
    return UpstreamComplained(
        message_of(error) or "the upstream failed", detail="the upstream told an error in its stream"
    )


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
    tokens: list[Token] = []
    append_tokens([msgspec.json.encode(answer)], tokens)
    return tokens[0]

"""What a healthy OpenAI-compatible server says: the events of a stream, and the whole answer. Pure.

Rule 1: token number N is the same text in every answer, so that whoever reads can tell what is missing.
Rule 2: the whole answer is made of the same deltas as the stream.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, Final

DONE: Final = b"data: [DONE]\n\n"
_CREATED: Final = 1_700_000_000
_UNICODE: Final = ("grüße ", "世界 ", "Привет ", "🌊🚰 ", "é\u0301 ")
_ARGUMENTS: Final = '{"city": "'
_ids: Final = itertools.count(1)


def event(data: Any) -> bytes:
    """One event with ``data`` as JSON (WHATWG HTML §9.2)."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def error_body(message: str, code: str, kind: str = "server_error") -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def word(number: int) -> str:
    """The text of token ``number`` (from 0)."""
    return f"token{number} "


class Answer:
    """One answer: what is said, not how it is sent."""

    def __init__(self, model: str, *, kind: str = "ok", n: int = 1, include_usage: bool = False) -> None:
        """``kind`` is the healthy model whose deltas these are; ``n`` the number of choices."""
        self._model = model
        self._kind = kind
        self._n = n
        self._include_usage = include_usage
        self._id = f"chatcmpl-chaos{next(_ids)}"
        self._finish = "tool_calls" if kind == "tools" else "stop"

    def opening(self) -> bytes:
        """The role, for each choice."""
        return b"".join(self._event(index, {"role": "assistant", "content": ""}) for index in range(self._n))

    def token(self, number: int, of: int) -> bytes:
        """Token ``number`` of ``of`` of each choice: one event for each."""
        delta = self._delta(number, of)
        return b"".join(self._event(index, delta) for index in range(self._n))

    def closing(self, tokens: int) -> bytes:
        """The finish reasons, the usage where it was asked for; without ``[DONE]``."""
        events = [self._event(index, {}, self._finish) for index in range(self._n)]
        if self._include_usage:
            events.append(event({**self._chunk([]), "usage": self._usage(tokens)}))
        return b"".join(events)

    def whole(self, tokens: int) -> bytes:
        """The same as one JSON object."""
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        for number in range(tokens):
            for key, value in self._delta(number, tokens).items():
                if key == "tool_calls":
                    self._add_call(message, value[0])
                else:
                    message[key] = message.get(key, "") + value
        choices = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": self._finish}
            for index in range(self._n)
        ]
        answer = {**self._chunk(choices), "object": "chat.completion", "usage": self._usage(tokens)}
        return json.dumps(answer, ensure_ascii=False).encode()

    def _add_call(self, message: dict[str, Any], part: dict[str, Any]) -> None:
        calls = message.setdefault("tool_calls", [])
        if not calls:
            message["content"] = None
            calls.append({"id": part["id"], "type": "function", "function": dict(part["function"])})
        else:
            calls[0]["function"]["arguments"] += part["function"]["arguments"]

    def _delta(self, number: int, of: int) -> dict[str, Any]:
        if self._kind == "unicode":
            return {"content": _UNICODE[number % len(_UNICODE)]}
        if self._kind == "reasoning" and number < of // 2:
            return {"reasoning_content": word(number)}
        if self._kind == "tools":
            arguments = (_ARGUMENTS if number == 0 else "") + word(number) + ('"}' if number == of - 1 else "")
            call: dict[str, Any] = {"index": 0, "function": {"arguments": arguments}}
            if number == 0:
                call |= {"id": "call_chaos", "type": "function"}
                call["function"]["name"] = "weather"
            return {"tool_calls": [call]}
        return {"content": word(number)}

    def _event(self, index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk = self._chunk([choice])
        if self._include_usage:
            chunk["usage"] = None
        return event(chunk)

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": _CREATED,
            "model": self._model,
            "choices": choices,
        }

    def _usage(self, tokens: int) -> dict[str, int]:
        made = tokens * self._n
        return {"prompt_tokens": 5, "completion_tokens": made, "total_tokens": 5 + made}


def pieces_of(text: bytes, size: int) -> Iterator[bytes]:
    """``text`` in pieces of ``size`` bytes."""
    for start in range(0, len(text), size):
        yield text[start : start + size]

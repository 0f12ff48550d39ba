"""What the events of an answer say, in each of the dialects that ``rawstream.stream`` understands. Pure: no I/O.

Rule 1: what is not understood is handed on, not judged: an event with its data and no text.
Rule 2: a failure that is told in-stream is an error, never an event.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from rawstream.errors import RawstreamError

_LONGEST_MESSAGE: Final = 500
_decode: Final = msgspec.json.Decoder().decode
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class StreamError(RawstreamError):
    """The answer failed: the server said so in-stream, it was cut, it was silent, or it is no answer at all.

    ``code`` is the server's own, or one of ``unreachable``, ``idle``, ``cut``, ``not_a_stream``, ``event_too_long``.
    """

    status = 502
    code = "stream_failed"


class StreamRefused(StreamError):
    """The server answered with a status other than 200, which is ``status``; ``retry_after`` is in seconds."""

    code = "refused"


class StreamEvent(msgspec.Struct, frozen=True):
    """One event of an answer."""

    text: str = ""
    """The text it adds to the answer (of choice 0); '' when it adds none."""
    data: Any = None
    """Its JSON, decoded; None where it is not JSON."""
    raw: bytes = b""
    """Its data as it came."""
    id: str = ""
    """The last event id as of this event: what a reconnect would send as ``Last-Event-ID``."""


def read_event(raw: bytes) -> tuple[Any, str, bool]:
    """An event's data, decoded; the text it adds; and whether it says how the answer ended.

    Raises StreamError when the event tells a failure.
    """
    try:
        data = _decode(raw)
    except _UNREADABLE:
        return None, raw.decode("utf-8", "replace"), False
    if not isinstance(data, dict):
        return data, "", False
    if data.get("error"):
        raise _failure(data["error"], data.get("code"))
    if isinstance(token := data.get("token"), str):
        return data, token, False
    if isinstance(choices := data.get("choices"), list):
        return data, _text_of(choices), any(isinstance(c, dict) and c.get("finish_reason") for c in choices)
    kind = data.get("type")
    if kind == "error":
        raise _failure(data.get("errorText"), None)
    if kind == "text-delta" and isinstance(delta := data.get("delta"), str):
        return data, delta, False
    return data, "", kind == "finish" or isinstance(data.get("finish_reason"), str)


def _text_of(choices: list[Any]) -> str:
    """The text of choice 0 in OpenAI's shape, streamed (``delta``), whole (``message``) or legacy (``text``)."""
    for choice in choices:
        if not isinstance(choice, dict) or choice.get("index", 0) != 0:
            continue
        for part in (choice.get("delta"), choice.get("message")):
            if isinstance(part, dict) and isinstance(content := part.get("content"), str):
                return content
        if isinstance(text := choice.get("text"), str):
            return text
    return ""


def _failure(error: Any, code: Any) -> StreamError:
    """An error event, in rawstream's form (a message and a code beside it) or OpenAI's (an object)."""
    message, inner = error_parts(error)
    said = code if isinstance(code, str) else inner
    return StreamError(message or "the server failed", code=said or StreamError.code)


def error_parts(error: Any) -> tuple[str | None, str | None]:
    """Message and code of an ``error`` value."""
    if not isinstance(error, dict):
        return (error[:_LONGEST_MESSAGE] if isinstance(error, str) else None), None
    message, code = error.get("message"), error.get("code") or error.get("type")
    return (
        message[:_LONGEST_MESSAGE] if isinstance(message, str) else None,
        str(code) if isinstance(code, str | int) else None,
    )


def refusal_of(status: int, body: bytes, location: str | None, retry_after: float | None) -> StreamRefused:
    """The error for a status other than 200, with what its body says."""
    message = code = None
    try:
        told = _decode(body)
    except _UNREADABLE:
        told = None
    if isinstance(told, dict):
        message, code = error_parts(told.get("error"))
        code = told["code"] if isinstance(told.get("code"), str) else code
    if 300 <= status < 400:
        message = f"redirected to {location!r}, which is not followed"
    return StreamRefused(
        message or f"the server answered with status {status}",
        status=status,
        code=code or f"http_{status}",
        retry_after=retry_after,
    )

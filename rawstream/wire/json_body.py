"""What clients ask for: JSON bodies and query strings, into a ``Request`` or a ``BadRequest`` that says what is wrong.

Rule 1: whatever the bytes are, the answer is a value or a 400. No other exception leaves here, and no input
        costs more time than its length explains.
Rule 2: fields that rawstream knows are checked; all others travel on untouched in ``Request.extra``.
Rule 3: what is accepted can be encoded again. So nesting has a limit well below the interpreter's, and text
        that UTF-8 has no bytes for does not get in.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from rawstream.errors import BadRequest
from rawstream.model import Request

MAX_DEPTH: Final = 100
"""Levels of nesting. Real requests (tools with JSON schemas) stay below 20; the interpreter's own limit is 1000."""
MAX_QUERY_FIELDS: Final = 100

_MAX_DIGITS: Final = 18
"""Digits of a number in a query: what fits 64 bits."""
_UTF8_BOM: Final = b"\xef\xbb\xbf"
_OTHER_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")

_KINDS: Final[dict[type, str]] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
}

_decode: Final = msgspec.json.Decoder().decode


class BadField(BadRequest):
    """A field of the body holds what makes no sense. ``param`` names it, as OpenAI's errors do."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


# --- JSON ---------------------------------------------------------------------------------------------------


def decode_object(body: bytes, what: str = "the body") -> dict[str, Any]:
    """The JSON object (RFC 8259) in ``body``; ``what`` names it in messages. Of duplicate keys the last one counts.

    Raises BadRequest: empty, truncated or malformed, not UTF-8, nested deeper than ``MAX_DEPTH``, a number
    that Python or a double cannot hold, or not an object.
    """
    value = decode_value(body, what)
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be a JSON object, not {kind_of(value)}")
    return value


def decode_value(body: bytes, what: str = "the body") -> Any:
    """The JSON value in ``body``, whatever it is; otherwise as ``decode_object``."""
    body = body.removeprefix(_UTF8_BOM)
    if not body.strip():
        raise BadRequest(f"{what} is empty; JSON is expected")
    # RFC 8259 §8.1: between systems JSON is UTF-8. ASCII in UTF-16 or UTF-32 has a NUL in its first four
    # bytes.
    if body.startswith(_OTHER_BOMS) or b"\0" in body[:4]:
        raise BadRequest(f"{what} must be JSON in UTF-8; this looks like UTF-16, UTF-32 or binary data")
    try:
        value = _decode(body)
    except UnicodeDecodeError:
        raise BadRequest(f"{what} is not valid UTF-8") from None
    except RecursionError:
        raise BadRequest(f"{what} is nested too deeply (at most {MAX_DEPTH} levels)") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"{what} is not valid JSON: {error}") from None
    # Each level needs a bracket, so most bodies need no walk to know that they are flat enough.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _deeper_than(MAX_DEPTH, value):
        raise BadRequest(f"{what} is nested too deeply (at most {MAX_DEPTH} levels)")
    return value


def _deeper_than(limit: int, value: Any) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def kind_of(value: Any) -> str:
    """What a decoded JSON value is, in words."""
    return "null" if value is None else _KINDS[type(value)]


# --- fields -------------------------------------------------------------------------------------------------


def decode_chat(body: bytes) -> Request:
    """The body of ``POST /chat`` and ``/text``: ``{"prompt"}`` or ``{"messages"}``, and more. Raises BadRequest."""
    return to_request(decode_object(body))


def to_request(fields: dict[str, Any]) -> Request:
    """A request from decoded fields. Raises BadRequest.

    It takes ``fields`` over: what it does not know becomes ``extra``.
    """
    if fields.get("messages") is None:
        fields.pop("messages", None)
        prompt = take_string(fields, "prompt")
        if prompt is None:
            raise BadField("prompt (a string) or messages (a list of objects) is required", "messages")
        messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    elif fields.get("prompt") is not None:
        raise BadField("give prompt or messages, not both", "prompt")
    else:
        fields.pop("prompt", None)
        messages = _messages(fields.pop("messages"))
    return Request(
        messages=messages,
        max_tokens=check_count(fields.pop("max_tokens", None), "max_tokens"),
        model=take_string(fields, "model"),
        user=take_string(fields, "user"),
        extra=fields,
    )


def take_string(fields: dict[str, Any], name: str) -> str | None:
    """Remove and return a field that is a string, null or absent. Raises BadRequest."""
    value = fields.pop(name, None)
    if value is not None and not isinstance(value, str):
        raise BadField(f"{name} must be a string, not {kind_of(value)}", name)
    return value


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise BadField(f"messages must be a list of objects, not {kind_of(value)}", "messages")
    if not value:
        raise BadField("messages must not be empty", "messages")
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise BadField(f"messages[{number}] must be an object, not {kind_of(message)}", "messages")
    return value


def check_count(value: Any, name: str, most: int | None = None) -> int | None:
    """``value``, which is a whole number from 1 (to ``most``) or None. Raises BadRequest."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadField(f"{name} must be a whole number, not {kind_of(value)}", name)
    if value < 1:
        raise BadField(f"{name} must be at least 1", name)
    if most is not None and value > most:
        raise BadField(f"{name} must be at most {most}", name)
    return value


# --- query strings ------------------------------------------------------------------------------------------


def from_query(query: str) -> Request:
    """The same fields from a query string (without its '?'), for ``GET /stream`` and ``/text``. Raises BadRequest.

    ``prompt``, ``model``, ``user`` and ``stop`` (but for a list) are text as they stand; ``max_tokens`` is a number;
    ``messages`` and ``mock`` are JSON. In all other fields whatever reads as a JSON object, list, number or literal
    is taken for one (``temperature=0.5``), anything else for text. Of a repeated field the last one counts.
    """
    try:
        query.encode()
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS)
    except UnicodeError:
        raise BadRequest("the query is not valid UTF-8") from None
    except ValueError:
        raise BadRequest(f"the query has more than {MAX_QUERY_FIELDS} fields") from None
    return to_request({name: _from_text(name, text) for name, text in pairs})


def _from_text(name: str, text: str) -> Any:
    if name in ("prompt", "model", "user"):
        return text
    if name == "mock":
        return decode_object(text.encode(), "mock")
    first = text.lstrip()[:1]
    if name == "stop" and first != "[":
        return text
    if name == "messages" or first in ("{", "["):
        return decode_value(text.encode(), name)
    if name == "max_tokens" and not (text.isdecimal() and text.isascii() and len(text) <= _MAX_DIGITS):
        raise BadField(f"max_tokens must be a whole number, not {text[:40]!r}", "max_tokens")
    if first == '"':
        # Quotes are part of a text: nobody writes JSON strings into a query.
        return text
    try:
        return _decode(text)
    except msgspec.DecodeError:
        return text

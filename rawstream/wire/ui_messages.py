"""The AI SDK's UI message stream, version 1: what ``useChat`` reads.

    data: {"type":"start","messageId":"m1"}
    data: {"type":"start-step"}
    data: {"type":"text-start","id":"t1"}
    data: {"type":"text-delta","id":"t1","delta":"Hello"}        any number of these
    data: {"type":"text-end","id":"t1"}
    data: {"type":"finish-step"}
    data: {"type":"finish","finishReason":"stop"}
    data: [DONE]

Rule 1: order is all. A delta before its ``text-start``, or a type that the client does not know, is fatal
        to it, so ``head()`` comes before any token.
Rule 2: tokens that are ready together become one delta: the client renders once for each.
Rule 3: a failure is ``error`` and nothing after it; a stop is ``abort`` and the end. A disconnect is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from rawstream.errors import BadRequest
from rawstream.model import Headers, Request, Token, TokenItem
from rawstream.wire.json_body import decode_object, take_string, to_request
from rawstream.wire.json_text import join_texts, quote, quoted
from rawstream.wire.sse import DONE, EVENT_STREAM_HEADERS, HEARTBEAT

UI_MESSAGE_HEADERS: Final[Headers] = (*EVENT_STREAM_HEADERS, ("x-vercel-ai-ui-message-stream", "v1"))

_TEXT_ID: Final = b'"t1"'
"""Ids of text parts are local to their message, and ours has one."""

_OPENING: Final = b'data: {"type":"start-step"}\n\ndata: {"type":"text-start","id":' + _TEXT_ID + b"}\n\n"
_DELTA: Final = b'data: {"type":"text-delta","id":' + _TEXT_ID + b',"delta":'
_CLOSING: Final = b'data: {"type":"text-end","id":' + _TEXT_ID + b'}\n\ndata: {"type":"finish-step"}\n\n'

_FINISH_REASONS: Final = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content-filter",
    "tool_calls": "tool-calls",
    "function_call": "tool-calls",
}
"""OpenAI's words to the SDK's. Anything else is 'other': the client checks against a closed list."""


class UIMessages:
    """Implements ``rawstream.model.Dialect``. ``message_id`` becomes the id of the assistant's message."""

    __slots__ = ("_finish_reason", "_message_id")

    name: str = "ui-messages"
    heartbeat: bytes = HEARTBEAT
    headers: Headers = UI_MESSAGE_HEADERS

    def __init__(self, message_id: str) -> None:
        self._message_id = message_id
        self._finish_reason: str | None = None

    def head(self) -> bytes:
        return b'data: {"type":"start","messageId":' + quote(self._message_id) + b"}\n\n" + _OPENING

    def encode(self, items: Sequence[TokenItem]) -> bytes:
        text = join_texts(items)
        for item in items:
            if isinstance(item, Token) and item.finish_reason and not item.index:
                self._finish_reason = item.finish_reason
        return _DELTA + quoted(text) + b"}\n\n" if text else b""

    def error(self, message: str, code: str) -> bytes:
        """``code`` has no place in this protocol; the message is all that the client shows."""
        return b'data: {"type":"error","errorText":' + quote(message) + b"}\n\n"

    def abort(self, reason: str) -> bytes:
        """The end of an answer that was stopped on purpose; it takes the place of ``terminal``."""
        return b'data: {"type":"abort","reason":' + quote(reason) + b"}\n\n" + DONE

    def terminal(self, finish_reason: str | None = None) -> bytes:
        reason = _FINISH_REASONS.get(finish_reason or self._finish_reason or "stop", "other")
        return _CLOSING + b'data: {"type":"finish","finishReason":' + quote(reason) + b"}\n\n" + DONE


# --- requests -----------------------------------------------------------------------------------------------


class ChatRequest(NamedTuple):
    """What ``useChat`` posts."""

    request: Request
    chat_id: str | None
    trigger: str | None
    """``submit-message`` or ``regenerate-message``."""
    message_id: str | None
    """The message to regenerate."""


def decode_chat_request(body: bytes) -> ChatRequest:
    """A ``useChat`` request body, its UI messages in OpenAI's shape. Raises BadRequest."""
    fields = decode_object(body)
    chat_id = take_string(fields, "id")
    trigger = take_string(fields, "trigger")
    message_id = take_string(fields, "messageId")
    if "messages" not in fields:
        raise BadRequest("messages is missing: a list of UI messages is expected")
    request = to_request(fields)
    request.messages = [_from_ui(message) for message in request.messages]
    return ChatRequest(request, chat_id, trigger, message_id)


def decode_request(body: bytes) -> Request:
    """As ``decode_chat_request``, the request alone."""
    return decode_chat_request(body).request


def _from_ui(message: dict[str, Any]) -> dict[str, Any]:
    """One UIMessage as an OpenAI message: its text, and images by their URL.

    Parts that only the page cares about (reasoning, sources, steps, tools that ran, data-*) stay behind. A
    message without ``parts`` is taken to be in OpenAI's shape already.
    """
    parts = message.get("parts")
    if parts is None:
        return message
    role = message.get("role")
    if not isinstance(role, str):
        raise BadRequest("messages: every message needs a role")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise BadRequest("messages: parts must be a list of objects")
    content: list[dict[str, Any]] = []
    for part in parts:
        text, url, media = part.get("text"), part.get("url"), part.get("mediaType")
        if part.get("type") == "text" and isinstance(text, str):
            content.append({"type": "text", "text": text})
        elif part.get("type") == "file" and isinstance(url, str) and str(media).startswith("image/"):
            content.append({"type": "image_url", "image_url": {"url": url}})
    if all(part["type"] == "text" for part in content):
        return {"role": role, "content": "".join(part["text"] for part in content)}
    return {"role": role, "content": content}

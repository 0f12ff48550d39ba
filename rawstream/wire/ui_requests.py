"""What ``useChat`` posts: UI messages, into messages of OpenAI's shape, or a 400 that names what is wrong.

Rule 1: what a model may see becomes part of the request: text, files, tools that ran. What is for the page alone
        (thoughts, sources, steps, ``data-*``) stays behind.
Rule 2: nothing that a person attached is dropped in silence: a file that cannot be sent is refused by name.
Rule 3: a tool's call without its result stays behind: models refuse a conversation with a question left open.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final, NamedTuple

import msgspec

from rawstream.model import Request
from rawstream.wire.json_body import BadField, decode_object, take_string, to_request

_TRIGGERS: Final = ("submit-message", "regenerate-message")
_ROLES: Final = ("system", "user", "assistant")
_AUDIO: Final = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3"}
_DENIED: Final = "Tool execution denied."


class ChatRequest(NamedTuple):
    """What ``useChat`` posts."""

    request: Request
    chat_id: str | None
    trigger: str
    """``submit-message`` or ``regenerate-message``."""
    message_id: str | None
    """The message that is sent anew, or regenerated."""
    continues: str | None
    """The id of the assistant's message that the answer goes on with (its tools have run); None: a new message."""


def decode_chat_request(body: bytes) -> ChatRequest:
    """A ``useChat`` request body, its UI messages in OpenAI's shape. Raises BadRequest.

    ``regenerate-message`` asks for the message ``messageId`` anew (without one: for the last answer). The SDK leaves
    it out of ``messages`` itself; a page that does not means the same.
    """
    fields = decode_object(body)
    chat_id = take_string(fields, "id")
    trigger = take_string(fields, "trigger") or "submit-message"
    if trigger not in _TRIGGERS:
        raise BadField(f"trigger must be {' or '.join(_TRIGGERS)}, not {trigger[:40]!r}", "trigger")
    message_id = take_string(fields, "messageId")
    if "messages" not in fields:
        raise BadField("messages is missing: a list of UI messages is expected", "messages")
    request = to_request(fields)
    messages = request.messages
    continues = None
    if trigger == "regenerate-message":
        messages = _before(messages, message_id)
    else:
        answered = next((one for one in messages if message_id and one.get("id") == message_id), messages[-1])
        if answered.get("role") == "assistant" and isinstance(answered.get("id"), str):
            continues = answered["id"]
    request.messages = [made for number, one in enumerate(messages) for made in _from_ui(one, f"messages[{number}]")]
    if not request.messages:
        raise BadField("messages hold nothing that a model could answer", "messages")
    return ChatRequest(request, chat_id, trigger, message_id, continues)


def _before(messages: list[dict[str, Any]], message_id: str | None) -> list[dict[str, Any]]:
    """The messages that an answer to be made anew answers: as the SDK's ``regenerate`` has them."""
    last = len(messages) - 1
    if message_id is not None:
        last = next((number for number, one in enumerate(messages) if one.get("id") == message_id), last)
        if messages[last].get("id") != message_id:
            return messages
    return messages[: last if messages[last].get("role") == "assistant" else last + 1]


def _from_ui(message: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """One UIMessage as OpenAI messages. One without ``parts`` is taken to be in OpenAI's shape already."""
    parts = message.get("parts")
    if parts is None:
        return [message]
    role = message.get("role")
    if role not in _ROLES:
        raise BadField(f"{where}: role must be one of {', '.join(_ROLES)}, not {str(role)[:40]!r}", "messages")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise BadField(f"{where}: parts must be a list of objects", "messages")
    if role == "assistant":
        return _assistant(parts, where)
    content: list[dict[str, Any]] = []
    for number, part in enumerate(parts):
        if part.get("type") == "text":
            content.append({"type": "text", "text": _text(part, f"{where}.parts[{number}]")})
        elif part.get("type") == "file":
            content.append(_file(part, f"{where}.parts[{number}]"))
    if all(part["type"] == "text" for part in content):
        return [{"role": role, "content": "".join(part["text"] for part in content)}]
    return [{"role": role, "content": content}]


def _text(part: dict[str, Any], where: str) -> str:
    text = part.get("text")
    if not isinstance(text, str):
        raise BadField(f"{where}: text must be a string", "messages")
    return text


# --- files --------------------------------------------------------------------------------------------------


def _file(part: dict[str, Any], where: str) -> dict[str, Any]:
    """A file as OpenAI's wire has it: images by their URL; PDF, WAV, MP3 and text by their data."""
    url, media = part.get("url"), part.get("mediaType")
    if not isinstance(url, str) or not isinstance(media, str):
        raise BadField(f"{where}: a file has a url and a mediaType, both strings", "messages")
    if not url.startswith(("data:", "https://", "http://")):
        raise BadField(f"{where}: the url of a file must be a data: or http(s) URL, not {url[:20]!r}", "messages")
    media = media.partition(";")[0].strip().lower()
    if media.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    scheme, comma, data = url.partition(";base64,")
    if not comma or not scheme.startswith("data:"):
        raise BadField(f"{where}: a file of type {media[:40]!r} must be a base64 data: URL", "messages")
    if media == "application/pdf":
        name = part.get("filename")
        given = {"filename": name if isinstance(name, str) and name else "file.pdf", "file_data": url}
        return {"type": "file", "file": given}
    if media in _AUDIO:
        return {"type": "input_audio", "input_audio": {"data": data, "format": _AUDIO[media]}}
    if media.startswith("text/"):
        try:
            return {"type": "text", "text": base64.b64decode(data, validate=True).decode()}
        except (binascii.Error, UnicodeDecodeError):
            raise BadField(f"{where}: the file is not text in UTF-8, as base64", "messages") from None
    raise BadField(f"{where}: a file of type {media[:40]!r} cannot be sent to a model", "messages")


# --- the assistant's messages -------------------------------------------------------------------------------


def _assistant(parts: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """An answer of an earlier turn: of each step, what was said and called, then what the tools gave."""
    messages: list[dict[str, Any]] = []
    said: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, part in enumerate([*parts, {"type": "step-start"}]):
        kind = part.get("type")
        if kind == "text":
            said.append(_text(part, f"{where}.parts[{number}]"))
        elif kind == "step-start":
            messages.extend(_step("".join(said), calls, results))
            said, calls, results = [], [], []
        elif kind == "dynamic-tool" or (isinstance(kind, str) and kind.startswith("tool-")):
            name = part.get("toolName") if kind == "dynamic-tool" else kind.removeprefix("tool-")
            _tool(part, name, calls, results, f"{where}.parts[{number}]")
    return messages


def _step(said: str, calls: list[dict[str, Any]], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if calls:
        return [{"role": "assistant", "content": said or None, "tool_calls": calls}, *results]
    return [{"role": "assistant", "content": said}] if said else []


def _tool(
    part: dict[str, Any], name: Any, calls: list[dict[str, Any]], results: list[dict[str, Any]], where: str
) -> None:
    """Add a tool's call and its result, when it has one."""
    state, id = part.get("state"), part.get("toolCallId")
    if not isinstance(id, str) or not isinstance(name, str) or not name:
        raise BadField(f"{where}: a tool part has a name and a toolCallId, both strings", "messages")
    if state == "output-available":
        output = part.get("output")
    elif state == "output-error":
        output = part.get("errorText")
    elif state == "output-denied":
        approval = part.get("approval")
        output = (approval.get("reason") if isinstance(approval, dict) else None) or _DENIED
    else:
        return
    given = part.get("input")
    if given is None:
        given = part.get("rawInput")
    arguments = "{}" if given is None else _json(given)
    calls.append({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
    content = output if isinstance(output, str) else _json(output)
    results.append({"role": "tool", "tool_call_id": id, "content": content})


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()

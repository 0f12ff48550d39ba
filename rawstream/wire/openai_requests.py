"""What clients of OpenAI's wire ask for: ``POST /v1/chat/completions``.

Rule 1: what every server of this wire would refuse is refused here, by the field's name. What one model knows and
        another does not (``tools``, ``logprobs``, ``response_format``, ``stop`` …) travels on untouched.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from rawstream.model import Request
from rawstream.wire.json_body import BadField, check_count, decode_object, kind_of, to_request

MOST_CHOICES: Final = 128
"""OpenAI's own limit for ``n``."""


class CompletionRequest(NamedTuple):
    """One request."""

    request: Request
    stream: bool
    include_usage: bool


def decode_request(body: bytes) -> CompletionRequest:
    """The body of ``POST /v1/chat/completions``. Raises BadRequest.

    ``stream_options`` stays in ``extra``, with whatever else an upstream may know.
    """
    fields = decode_object(body)
    if fields.get("messages") is None:
        raise BadField("messages (a list of objects) is required", "messages")
    stream = _flag(fields.pop("stream", None), "stream")
    options: Any = fields.get("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise BadField(f"stream_options must be an object, not {kind_of(options)}", "stream_options")
    include_usage = _flag(options.get("include_usage"), "stream_options.include_usage")
    check_count(fields.get("n"), "n", MOST_CHOICES)
    check_count(fields.get("max_completion_tokens"), "max_completion_tokens")
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        value = fields.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise BadField(f"{name} must be a number, not {kind_of(value)}", name)
    tools = fields.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadField("tools must be a list of objects", "tools")
    return CompletionRequest(to_request(fields), stream, include_usage)


def _flag(value: Any, name: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise BadField(f"{name} must be true or false, not {kind_of(value)}", name)
    return bool(value)

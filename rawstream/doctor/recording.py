"""A streamed answer, read for how it came and not for what it said. Pure: bytes and moments in, figures out.

Rule 1: any of the known dialects is understood, event by event; of an unknown one each event counts as a token.
Rule 2: the text is not kept.
"""

from __future__ import annotations

import zlib
from typing import Any, Final, Protocol

import msgspec

from rawstream.doctor.finding import members
from rawstream.wire.sse import EventTooLong, Parser

_decode: Final = msgspec.json.Decoder().decode
_SAID: Final = ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")
_ENDS: Final = ("finish", "message_stop", "response.completed", "abort")
_MOST_EVENT: Final = 8 * 1024 * 1024
_LONGEST_MESSAGE: Final = 200


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """What one read of the network gave."""

    at: float
    """Seconds since the request was sent."""
    bytes: int
    tokens: int
    heartbeats: int = 0


class _Inflater(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


class Recording:
    """Feed it with ``take``. ``legible``: tokens can be counted; else only bytes are."""

    def __init__(self, content_type: str, coding: str = "") -> None:
        """Both as the answer's head has them."""
        kind = content_type.partition(";")[0].strip().lower()
        self.sse = kind == "text/event-stream"
        self.legible = coding in ("", "identity", "gzip", "deflate", "x-gzip")
        self.arrivals: list[Arrival] = []
        self.tokens = 0
        self.bytes = 0
        self.events = 0
        self.heartbeats: list[float] = []
        """When comments and pings came."""
        self.done = False
        """``[DONE]`` came."""
        self.terminal = False
        """The dialect's terminal event came."""
        self.after_terminal = 0
        """Events behind the terminal one."""
        self.finish_reasons: list[str] = []
        self.role = False
        """A delta named the role, as the first one does."""
        self.usage = 0
        """Events with a usage in them."""
        self.usage_alone = False
        """The usage came in an event without choices, as ``include_usage`` has it."""
        self.error: str | None = None
        """A failure that was told in the stream."""
        self._inflate: _Inflater | None = None
        if coding in ("gzip", "x-gzip", "deflate"):
            self._inflate = zlib.decompressobj(47)
        self._parser = Parser(_MOST_EVENT)
        self._line_begins = True

    def take(self, at: float, data: bytes) -> None:
        """Bytes of the body as they came, ``at`` seconds after the request."""
        self.bytes += len(data)
        before, beats = self.tokens, len(self.heartbeats)
        if self.legible:
            text = self._plain(data)
            if self.sse:
                self._comments(at, text)
                self._events(at, text)
            else:
                self.tokens += text.count(b" ") + text.count(b"\n")
        self.arrivals.append(Arrival(at, len(data), self.tokens - before, len(self.heartbeats) - beats))

    def _plain(self, data: bytes) -> bytes:
        if self._inflate is None:
            return data
        try:
            return self._inflate.decompress(data)
        except zlib.error:
            self.legible = False
            return b""

    def _comments(self, at: float, text: bytes) -> None:
        lines = text.replace(b"\r", b"\n").split(b"\n")
        if not self._line_begins:
            lines[0] = b""
        self.heartbeats += [at] * sum(line.startswith(b":") for line in lines)
        self._line_begins = text[-1:] in (b"\n", b"\r") if text else self._line_begins

    def _events(self, at: float, text: bytes) -> None:
        try:
            events = self._parser.feed(text)
        except EventTooLong:
            self.legible = False
            return
        for event in events:
            self.events += 1
            if event.event == "ping":
                self.heartbeats.append(at)
                continue
            if self.done:
                self.after_terminal += 1
            elif event.data == b"[DONE]":
                self.done = self.terminal = True
            else:
                self._event(event.data)

    def _event(self, data: bytes) -> None:
        try:
            said: Any = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.tokens += 1
            return
        event = members(said)
        if error := event.get("error") or (event.get("type") == "error" and (event.get("errorText") or event)):
            self.error = _message(error, event.get("code"))
        elif isinstance(event.get("choices"), list):
            self._chunk(event)
        elif isinstance(kind := event.get("type"), str):
            self.tokens += kind.endswith(("-delta", "_delta", ".delta"))
            self.terminal = self.terminal or kind in _ENDS
        elif "usage" not in event:
            self.tokens += 1

    def _chunk(self, event: dict[str, Any]) -> None:
        """OpenAI's."""
        spoke = False
        for choice in map(members, event["choices"]):
            delta = members(choice.get("delta") or choice.get("message"))
            self.role = self.role or "role" in delta
            spoke = spoke or bool(choice.get("text")) or any(delta.get(part) for part in _SAID)
            if isinstance(reason := choice.get("finish_reason"), str):
                self.finish_reasons.append(reason)
        self.tokens += spoke
        if event.get("usage"):
            self.usage += 1
            self.usage_alone = self.usage_alone or not event["choices"]


def _message(error: Any, code: Any) -> str:
    inner = members(error)
    text = inner.get("message") or inner.get("code") or (error if isinstance(error, str) else "an error")
    named = code or inner.get("code")
    return f"{str(text)[:_LONGEST_MESSAGE]}" + (f" ({named})" if named else "")

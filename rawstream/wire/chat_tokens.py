"""The ``/chat`` dialect: one small JSON object per token, as server-sent events.

    data: {"token": "Hello"}

    data: [DONE]

Rule 1: exactly these bytes, the space after the colon too: clients in the field match on them.
Rule 2: a failure is ``data: {"error": "message", "code": "upstream_idle"}``, and nothing follows it.
Rule 3: an answer that we end before its time is whole, and says why in an event before the end:
        ``data: {"finish_reason": "length", "code": "insufficient_quota"}``.
Rule 4: encoding is the cost that every token pays. A whole batch is one ``join`` over ready-made strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rawstream.model import Headers, TokenItem
from rawstream.wire.json_text import quote, quote_all, quoted
from rawstream.wire.sse import DONE, EVENT_STREAM_HEADERS, HEARTBEAT

_OPEN: Final = b'data: {"token": '
_CLOSE: Final = b"}\n\n"
_BETWEEN: Final = _CLOSE + _OPEN


def error_event(message: str, code: str) -> bytes:
    """The in-stream error, shared by all dialects of this family."""
    return b'data: {"error": ' + quote(message) + b', "code": ' + quote(code) + b"}\n\n"


def ended_early(finish_reason: str | None, reason: str | None) -> bytes:
    """The event that tells why an answer ends before its time, shared as well; b'' when there is no reason to tell."""
    if reason is None:
        return b""
    return b'data: {"finish_reason": ' + quote(finish_reason or "stop") + b', "code": ' + quote(reason) + b"}\n\n"


class ChatTokens:
    """Implements ``rawstream.model.Dialect``. It has no state: an instance per stream costs 16 bytes."""

    __slots__ = ()

    name: str = "chat"
    heartbeat: bytes = HEARTBEAT
    headers: Headers = EVENT_STREAM_HEADERS

    def head(self) -> bytes:
        return b""

    def encode(self, items: Sequence[TokenItem]) -> bytes:
        if len(items) == 1 and items[0].__class__ is str:
            # The paced stream: a token at a time. Half the time of the general way.
            return _OPEN + quoted(items[0]) + _CLOSE if items[0] else b""
        strings = quote_all(items)
        return _OPEN + _BETWEEN.join(strings) + _CLOSE if strings else b""

    def error(self, message: str, code: str) -> bytes:
        return error_event(message, code)

    def stopped(self, reason: str) -> bytes:
        return self.terminal("stop")

    def terminal(self, finish_reason: str | None = None, reason: str | None = None) -> bytes:
        return ended_early(finish_reason, reason) + DONE

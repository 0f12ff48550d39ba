"""The ``/text`` dialect: the text as it is, for ``curl`` and for readers of ``response.body``.

Rule 1: nothing but the text. There is no byte left for a heartbeat, an error or an end: a failure shows in
        the framing, which is cut short, and an end in the framing too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rawstream.model import Headers, TokenItem
from rawstream.wire.json_text import join_texts
from rawstream.wire.sse import utf8

PLAIN_TEXT_HEADERS: Final[Headers] = (
    ("content-type", "text/plain; charset=utf-8"),
    ("cache-control", "no-cache, no-transform"),
    ("x-accel-buffering", "no"),
    # Without it, browsers hold back the first kilobyte or so of plain text to guess its type.
    ("x-content-type-options", "nosniff"),
)


class PlainText:
    """Implements ``rawstream.model.Dialect``."""

    __slots__ = ()

    name: str = "text"
    heartbeat: bytes = b""
    headers: Headers = PLAIN_TEXT_HEADERS

    def head(self) -> bytes:
        return b""

    def encode(self, items: Sequence[TokenItem]) -> bytes:
        return utf8(join_texts(items))

    def error(self, message: str, code: str) -> bytes:
        return b""

    def stopped(self, reason: str) -> bytes:
        return self.terminal("stop")

    def terminal(self, finish_reason: str | None = None, reason: str | None = None) -> bytes:
        return b""

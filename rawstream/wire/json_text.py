"""JSON strings, made fast: the form every token takes on its way out.

Rule 1: any ``str`` has a form. Lone surrogates, which UTF-8 has no bytes for, become U+FFFD; nothing raises.
Rule 2: the result holds no line end and no NUL: JSON escapes control characters. It may stand in an SSE
        ``data`` line.

Tokens repeat (a model's vocabulary is finite, a language's common part small), so their forms are kept in
one table for the whole process: a hit costs a third of encoding afresh. The table is bounded in entries and
in their length, and emptied when full, which is cheaper than knowing which entry is oldest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from rawstream.model import Token, TokenItem
from rawstream.wire.sse import utf8

MAX_ENTRIES: Final = 4096
MAX_LENGTH: Final = 32
"""Characters. Longer texts hardly repeat. With 4,096 entries the table stays below 1.5 MB."""

_encode: Final = msgspec.json.Encoder().encode


def quote(text: str) -> bytes:
    """``text`` as a JSON string, quotes included, UTF-8 rather than ``\\u`` escapes."""
    try:
        return _encode(text)
    except (UnicodeEncodeError, TypeError):
        # TypeError: a subclass of str, which msgspec does not take for one.
        return _encode(utf8(text).decode())


class _NotText(LookupError):
    """The table was asked for something that is not a ``str``."""


class _Table(dict[str | Token, bytes]):
    """text → JSON string. Looking something up that is not there makes it."""

    __slots__ = ()

    def __missing__(self, item: str | Token) -> bytes:
        if not isinstance(item, str):
            raise _NotText
        form = quote(item)
        if len(item) <= MAX_LENGTH:
            if len(self) >= MAX_ENTRIES:
                self.clear()
            self[item] = form
        return form


_table: Final = _Table()
_any_quoted: Final[Callable[[Any], bytes]] = _table.__getitem__
quoted: Final[Callable[[str], bytes]] = _table.__getitem__
"""``quoted(text)``: as ``quote``, through the table. A hit runs no Python code."""


def texts(items: Sequence[TokenItem]) -> list[str]:
    """The texts that a client of plain text sees: those of choice 0, without the empty ones.

    Raises TypeError, naming what it got, for items that are neither ``str`` nor ``Token``.
    """
    found = []
    for item in items:
        if isinstance(item, Token):
            if item.text and not item.index:
                found.append(item.text)
        elif not isinstance(item, str):
            raise TypeError(f"a source yields str or Token, not {type(item).__name__}")
        elif item:
            found.append(item)
    return found


def join_quoted(separator: bytes, items: Sequence[TokenItem]) -> bytes:
    """The JSON strings of ``texts(items)``, joined by ``separator``; b'' when there are none."""
    # A stream yields one kind or the other, so the first item tells; a mixture is found out by the table.
    if items and isinstance(items[0], str):
        try:
            return separator.join(map(_any_quoted, filter(None, items)))
        except _NotText:
            pass
    return separator.join(map(quoted, texts(items)))

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
from typing import Any, Final, cast

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


class NotText(LookupError):
    """Among the strings was something else, a ``Token`` perhaps: take them one by one."""


class _Table(dict[Any, bytes]):
    """text → JSON string. Looking something up that is not there makes it."""

    __slots__ = ()

    def __missing__(self, item: object) -> bytes:
        if not isinstance(item, str):
            raise NotText
        form = quote(item)
        if len(item) <= MAX_LENGTH:
            if len(self) >= MAX_ENTRIES:
                self.clear()
            self[item] = form
        return form


quoted: Final[Callable[[Any], bytes]] = _Table().__getitem__
"""``quoted(text)``: as ``quote``, through the table. A hit runs no Python code."""


def quote_strings(items: Sequence[TokenItem]) -> list[bytes]:
    """The JSON strings of ``items``, without the empty ones. Raises NotText when one is not a ``str``."""
    return list(map(quoted, filter(None, items)))


def quote_all(items: Sequence[TokenItem]) -> list[bytes]:
    """The JSON strings of ``texts(items)``."""
    # A stream yields one kind or the other, so the first item tells; a mixture is found out by the table.
    if items and isinstance(items[0], str):
        try:
            return list(map(quoted, filter(None, items)))
        except NotText:
            pass
    return list(map(quoted, texts(items)))


def join_texts(items: Sequence[TokenItem]) -> str:
    """``texts(items)`` as one."""
    if items and isinstance(items[0], str):
        try:
            # join() is the quickest judge of whether they are all strings.
            return "".join(cast("Sequence[str]", items))
        except TypeError:
            pass
    return "".join(texts(items))


def texts(items: Sequence[TokenItem]) -> list[str]:
    """What a client of plain text sees: the texts of choice 0, without the empty ones. Raises as ``as_token``."""
    tokens = map(as_token, items)
    return [token.text for token in tokens if token.text and not token.index]


def as_token(item: TokenItem) -> Token:
    """Any item as a ``Token``. Raises TypeError, naming what it got, when a source yielded something else."""
    if isinstance(item, Token):
        return item
    if isinstance(item, str):
        return Token(item)
    raise TypeError(f"a source yields str or Token, not {type(item).__name__}")

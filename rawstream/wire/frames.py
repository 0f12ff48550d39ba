"""Frames that were encoded before, as a dialect: what a replay log hands out.

Rule 1: it adds nothing and takes nothing away. The end of the answer is among the frames; only what happens to this
        one reader (an error of its own) is said by the dialect that the frames are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from rawstream.model import Dialect, Headers, Token, TokenItem


class Frames:
    """Implements ``rawstream.model.Dialect`` over tokens whose ``raw`` is a frame of ``dialect``."""

    __slots__ = ("_dialect", "headers", "heartbeat", "name")

    name: str
    heartbeat: bytes
    headers: Headers

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self.name = dialect.name
        self.heartbeat = dialect.heartbeat
        self.headers = dialect.headers

    def head(self) -> bytes:
        return b""

    def encode(self, items: Sequence[TokenItem]) -> bytes:
        return b"".join([cast(Token, item).raw or b"" for item in items])

    def error(self, message: str, code: str) -> bytes:
        return self._dialect.error(message, code)

    def stopped(self, reason: str) -> bytes:
        return b""

    def terminal(self, finish_reason: str | None = None, reason: str | None = None) -> bytes:
        return b""

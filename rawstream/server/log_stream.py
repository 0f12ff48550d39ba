"""A reader of a generation: what is in a log, and what comes to it, as a token stream.

Rule 1: it does not matter where the generation runs, here or in another process (``Readable``).
Rule 2: it waits only when it has all there is; then it says so, which is the demand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from rawstream.errors import StreamStopped
from rawstream.flow.signals import Signals
from rawstream.model import Dialect, Outcome, Request, SourceItem, SourceStatistics, Token
from rawstream.replay.log import Log
from rawstream.settings import Settings

_BLANK: Final = b"\n\n"


class Readable(Protocol):
    """A generation as its readers see it."""

    settings: Settings
    log: Log

    id: str

    @property
    def user(self) -> str | None: ...
    @property
    def mailbox(self) -> Signals | None: ...
    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None: it runs."""

    @property
    def running(self) -> bool: ...
    @property
    def dialect_of(self) -> Callable[[str], Dialect]: ...
    def read_from(self, position: int, request: Request, before: bytes = b"") -> LogStream: ...
    def asks(self, reader: LogStream) -> None:
        """``reader`` has all there is, and room for more."""

    def leaves(self, reader: LogStream) -> None:
        """``reader`` is gone. Idempotent."""

    def stop(self, reason: StreamStopped) -> None:
        """End it for everybody."""


class LogStream:
    """A reader: what is in a log, and what comes to it, as a token stream. Implements ``model.TokenStream``."""

    def __init__(
        self, generation: Readable, position: int, is_committed: Callable[[], bool], before: bytes = b""
    ) -> None:
        """``before``: events that this reader gets in place of what the log has before ``position``."""
        self.generation = generation
        self.position = position
        self._before = _events(before)
        self._before.reverse()
        self.is_committed = is_committed
        self._news: asyncio.Future[None] | None = None

    def __aiter__(self) -> LogStream:
        return self

    async def __anext__(self) -> SourceItem:
        """The next events, each a token with its frame as ``raw``. Raises FellBehind, and what the source raised.

        Cancelling is safe: nothing is lost.
        """
        generation = self.generation
        log = generation.log
        if self._before:
            return self._next_before()
        while True:
            frames = log.read(self.position, generation.settings.write_size)
            if frames:
                self.position += len(frames)
                return [Token(" ", event) for event in _events(frames)]
            if log.ended:
                if log.failure is not None:
                    raise log.failure
                raise StopAsyncIteration
            news = self._news = asyncio.get_running_loop().create_future()
            log.listen(self, self._wake)
            generation.asks(self)
            try:
                await news
            finally:
                self._news = None

    def _next_before(self) -> list[Token]:
        """About a write's worth of the events that come first."""
        tokens: list[Token] = []
        size = 0
        while self._before and size < self.generation.settings.write_size:
            event = self._before.pop()
            size += len(event)
            tokens.append(Token(" ", event))
        return tokens

    def _wake(self) -> None:
        news = self._news
        if news is not None and not news.done():
            news.set_result(None)

    async def aclose(self) -> None:
        """Read no more. Idempotent."""
        self.generation.log.forget(self)
        self.generation.leaves(self)

    def statistics(self) -> SourceStatistics:
        """Bytes of the log that this reader has not taken yet."""
        log = self.generation.log
        return SourceStatistics(log.end - max(self.position, log.start), log.window)


def _events(frames: bytes) -> list[bytes]:
    events = frames.split(_BLANK)
    events.pop()
    return [event + _BLANK for event in events]

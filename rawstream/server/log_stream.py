"""A reader of a generation: what is in a log, and what comes to it, as a token stream.

Rule 1: it does not matter where the generation runs, here or in another process (``Readable``).
Rule 2: it waits only when it has all there is; then it says so, which is the demand.
Rule 3: while it waits and there is permission, what comes is passed to its response by whoever appends it, without
        waking it (``passing``). Where there is none it is woken, and waits for permission like any other stream.
Rule 4: it holds nothing. What it has not taken is in the log, once for all readers. What passed before it came may be
        told shorter (``Shorten``), as much at a time as makes about one write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from rawstream.errors import ClientDisconnected, StreamStopped
from rawstream.flow.signals import Signals
from rawstream.model import Dialect, Outcome, Request, SourceItem, SourceStatistics, Token
from rawstream.replay.log import FellBehind, Log
from rawstream.settings import Settings

_BLANK: Final = b"\n\n"
_SHORTENED: Final = 32 * 1024
"""Bytes of events that are told shorter at a time: about 1 ms of work, and about one write."""

Passing = Callable[[bytes, int, float], bool]
"""Take whole events, how many they are, and when they came. False: they were not taken, there is no permission."""

Shorten = Callable[[bytes], bytes]
"""Whole events, told in fewer of them; b'' when there is nothing to tell."""


class Abandoned(FellBehind):
    """Nobody read the answer for so long that it was ended."""

    outcome = "client_left"


class Reader(Protocol):
    """Who reads a generation, wherever."""

    position: int
    is_committed: Callable[[], bool]


class AwayReader(Reader, Protocol):
    """One in another process."""

    @property
    def may_have(self) -> int:
        """The position up to which the source may be asked for it."""


class Readable(Protocol):
    """A generation as its readers see it."""

    settings: Settings
    log: Log

    id: str
    came_at: float
    """When what is appended now came to this process, or later (monotonic seconds)."""

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
    def readers(self) -> int: ...

    seen: bool
    """Has somebody been told how it ended?"""

    @property
    def dialect_of(self) -> Callable[[str], Dialect]: ...
    def read_from(self, position: int, request: Request, shorten: Shorten | None = None) -> LogStream:
        """A new reader of what the log has from ``position`` on. It must be closed, whether or not it ever reads."""

    def asks(self, reader: LogStream) -> None:
        """``reader`` has all there is, and room for more: until ``has_more``."""

    def has_more(self, reader: LogStream) -> None:
        """There is something for ``reader`` that it was not passed."""

    def leaves(self, reader: LogStream) -> None:
        """``reader`` is gone. Idempotent."""

    def stop(self, reason: StreamStopped) -> None:
        """End it for everybody."""


class LogStream:
    """A reader: what is in a log, and what comes to it, as a token stream. Implements ``model.TokenStream``."""

    __slots__ = ("_generation", "_live", "_news", "_passed", "_shorten", "is_committed", "passing", "position")

    def __init__(
        self,
        generation: Readable,
        position: int,
        is_committed: Callable[[], bool],
        shorten: Shorten | None = None,
    ) -> None:
        """``is_committed``: has the one who reads been told 200? ``shorten``: tells what the log has by now."""
        self._generation = generation
        self.position = position
        self.is_committed = is_committed
        self._shorten = shorten
        self._live = generation.log.end
        self._news: asyncio.Future[None] | None = None
        self.passing: Passing | None = None
        """Where frames go while this waits; None: it is woken for each of them."""
        self._passed = False
        """Did some, since it was asked last?"""

    def __aiter__(self) -> LogStream:
        return self

    async def __anext__(self) -> SourceItem:
        """The next events, each a token with its frame as ``raw``. Raises FellBehind, and what the source raised.

        None at all when some were passed on meanwhile: permission must be asked for anew. Cancelling is safe: nothing
        is lost.
        """
        log = self._generation.log
        while True:
            if self._passed:
                self._passed = False
                return []
            frames = self._next(log) if self._shorten is None else self._shorter(log, self._shorten)
            if frames:
                return [Token(" ", event) for event in events_of(frames)]
            if log.ended:
                if log.failure is None:
                    raise StopAsyncIteration
                if isinstance(log.failure, ClientDisconnected):
                    raise Abandoned("nobody read this answer for too long, and it was ended there; ask anew")
                raise log.failure
            news = self._news = asyncio.get_running_loop().create_future()
            log.listen(self, self._hear)
            self._generation.asks(self)
            try:
                await news
            finally:
                self._news = None

    def _next(self, log: Log) -> bytes:
        frames = log.read(self.position, self._generation.settings.write_size)
        self.position += len(frames)
        return frames

    def _shorter(self, log: Log, shorten: Shorten) -> bytes:
        """Some of what passed before this reader came, told shorter; then what comes."""
        told = b""
        while not told and self.position < self._live:
            passed = bytearray()
            while len(passed) < _SHORTENED and self.position < self._live:
                passed += self._next(log)
            told = shorten(bytes(passed))
        if told:
            return told
        self._shorten = None
        return self._next(log)

    def _hear(self, frames: bytes, events: int) -> None:
        news = self._news
        if news is None or news.done():
            return  # it runs, or is about to: it finds them in the log
        generation, passing = self._generation, self.passing
        log, after = generation.log, self.position + len(frames)
        # What begins later than where it is was lost on the way: it must be told that, and is woken for it.
        if passing is not None and after == log.end and not log.ended and passing(frames, events, generation.came_at):
            self.position = after
            self._passed = True
        else:
            generation.has_more(self)
            news.set_result(None)

    async def aclose(self) -> None:
        """Read no more. Idempotent."""
        self._generation.log.forget(self)
        self._generation.leaves(self)

    def statistics(self) -> SourceStatistics:
        """Bytes of the log that this reader has not taken yet."""
        log = self._generation.log
        return SourceStatistics(log.end - max(self.position, log.start), log.window)


def events_of(frames: bytes) -> list[bytes]:
    """Whole events, one by one."""
    events = frames.split(_BLANK)
    events.pop()
    return [event + _BLANK for event in events]

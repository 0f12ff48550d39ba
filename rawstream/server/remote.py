"""A generation that runs in another process, as its reader here sees it.

Rule 1: one reader each. Its log holds what this reader has not taken yet, and a window at most.
Rule 2: what comes is told apart by where it begins: what overlaps is left out, and what is missing is said (410).
Rule 3: backpressure goes on: the owner is told how far the reader has come, and runs ahead of it by ``AHEAD``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from rawstream.errors import RawstreamError, StreamStopped
from rawstream.flow.signals import Signals
from rawstream.model import Dialect, Outcome, Request
from rawstream.replay.log import FellBehind, Log
from rawstream.replay.redis_store import About, End, Message, Page, Store, events_of
from rawstream.server.ids import random_id
from rawstream.server.log_stream import LogStream, Shorten
from rawstream.settings import Settings
from rawstream.wire.chat_tokens import ChatTokens
from rawstream.wire.event_source import EventSource
from rawstream.wire.openai import OpenAIChat
from rawstream.wire.ui_messages import UIMessages

AHEAD: Final = 64 * 1024
"""Bytes that an owner may run ahead of what a remote reader said last: at some milliseconds between two processes, a
megabyte a second."""
REPORT: Final = AHEAD // 4
"""Bytes after which a reader says how far it has come."""
_CATCH_UP: Final = 10.0
"""Seconds until what a client has seen must have come here too. Its owner publishes every few milliseconds."""
_MOST_AHEAD: Final = 100_000
"""Events that a client may have seen, and that are not published yet; whoever names a later one makes it up."""

DIALECTS: Final[dict[str, Callable[[str], Dialect]]] = {
    "chat": lambda stream_id: ChatTokens(),
    "event-source": EventSource,
    "openai": lambda stream_id: OpenAIChat(id=f"chatcmpl-{stream_id}", created=0, model="", include_usage=False),
    "ui-messages": UIMessages,
}
"""What says an error of its own to the readers of foreign frames."""


class Feed(Protocol):
    """Where the news of a generation come from, and where its owner is told things."""

    name: str
    """Of this process."""

    def follow(self, remote: RemoteGeneration) -> None: ...
    def unfollow(self, remote: RemoteGeneration) -> None: ...
    def tell(self, process: str, message: Message) -> None: ...


class RemoteGeneration:
    """Implements ``log_stream.Readable``."""

    def __init__(self, about: About, settings: Settings, store: Store, feed: Feed) -> None:
        self.id = about.stream
        self.about = about
        self.settings = settings
        self.log = Log(0)
        self.last = "0-0"
        """Id of the last entry that was taken."""
        self.name = random_id(8)
        """Of its reader, as the owner knows it."""
        self._store = store
        self._feed = feed
        self.came_at = 0.0
        self.seen = False
        self._begun = False
        self._reader: LogStream | None = None
        self._reported = 0
        self._outcome: Outcome | None = None

    # --- what it is

    @property
    def user(self) -> str | None:
        return self.about.user

    @property
    def outcome(self) -> Outcome | None:
        return self._outcome

    @property
    def running(self) -> bool:
        return not self.log.ended

    @property
    def mailbox(self) -> Signals | None:
        """Its source's is in the other process."""
        return None

    @property
    def dialect_of(self) -> Callable[[str], Dialect]:
        return DIALECTS[self.about.dialect]

    # --- its log

    async def open(self, event: int) -> int:
        """Get what there is after that event. Where a reader goes on. Cancel-safe.

        Raises FellBehind (410), RedisGone, and TimeoutError when the event does not come.
        """
        page = await self._store.fetch(self.id, f"{event}-0")
        while True:
            self._take_page(page)
            if self.log.ended or not page.frames:
                break
            page = await self._store.fetch(self.id, page.last)
        if self.log.events < event <= self.log.events + _MOST_AHEAD and not self.log.ended:
            await self._reaches(event)
        try:
            return self.log.position_after(event)
        except ValueError:
            raise FellBehind("this stream has no such event; ask anew") from None

    async def catch_up(self) -> None:
        """Get what came since the last entry. Raises RedisGone."""
        while self.running:
            page = await self._store.fetch(self.id, self.last)
            if page.last in ("", self.last):
                return
            self._take_page(page)

    async def _reaches(self, event: int) -> None:
        """Wait for an event that a client has seen already."""
        news = asyncio.Event()
        self.log.listen(news, lambda frames, events: news.set())
        self._feed.follow(self)
        try:
            async with asyncio.timeout(_CATCH_UP):
                while self.log.events < event and self.running:
                    news.clear()
                    await news.wait()
        finally:
            self.log.forget(news)
            if self._reader is None:
                self._feed.unfollow(self)

    def _take_page(self, page: Page) -> None:
        if page.last and not page.frames and page.end is None and page.last.endswith("-1"):
            # It has ended before the event that was asked for.
            self._end(End("completed"))
        elif page.last:
            self.take(page.last, page.start, page.frames, page.end, page.events)

    def take(self, entry: str, start: int, frames: bytes, end: End | None, before: int) -> None:
        """An entry of the log, or several: bytes from ``start`` on, with ``before`` events before them."""
        log = self.log
        if log.ended:
            return
        if not self._begun:
            self._begun = True
            log.begin_at(start, before)
            self._reported = start
        if start > log.end:
            self.fail(FellBehind("a part of this answer is not kept any more; ask anew"))
            return
        self.last = max(self.last, entry, key=_order)
        frames = frames[log.end - start :]
        if frames:
            position = self._reported if self._reader is None else self._reader.position
            keep = max(position, log.end + len(frames) - self.settings.replay_window)
            self.came_at = monotonic()
            log.append(frames, lambda: keep)
            if self._reader is not None:
                self.asks(self._reader)  # what it was passed it has
        if end is not None:
            self._end(end)

    def _end(self, end: End) -> None:
        self._outcome = Outcome(end.outcome)
        failure = end.failure()
        self._feed.unfollow(self)
        if failure is None:
            self.log.finish()
        else:
            self.log.fail(failure)

    def fail(self, failure: RawstreamError) -> None:
        """Nothing more comes."""
        if self.running:
            self._outcome = Outcome(failure.outcome)
            self._feed.unfollow(self)
            self.log.fail(failure)

    # --- its reader

    @property
    def readers(self) -> int:
        """Of this process's, this one."""
        return 0 if self._reader is None else 1

    def read_from(self, position: int, request: Request, shorten: Shorten | None = None) -> LogStream:
        reader = self._reader = LogStream(self, position, request.is_committed, shorten)
        self._reported = position
        if self.running:
            self._feed.follow(self)
            self.come()
        return reader

    def come(self) -> None:
        """Tell the owner that somebody reads."""
        if self._reader is not None:
            self._reported = self._reader.position
            self._tell("come")

    def asks(self, reader: LogStream) -> None:
        if reader.position - self._reported >= REPORT:
            self._reported = reader.position
            self._tell("at")

    def has_more(self, reader: LogStream) -> None:
        """Its owner runs ahead of it anyway."""

    def leaves(self, reader: LogStream) -> None:
        if reader is self._reader:
            self._reader = None
            self._feed.unfollow(self)
            if self.running:
                self._reported = reader.position
                self._tell("leave")

    def stop(self, reason: StreamStopped) -> None:
        self._feed.tell(self.about.owner, Message("stop", self.id))

    def _tell(self, kind: str) -> None:
        self._feed.tell(self.about.owner, Message(kind, self.id, self.name, self._reported, self._feed.name))


def _order(entry: str) -> tuple[int, int]:
    events, _, kind = entry.partition("-")
    return int(events), int(kind or 0)


def earliest(remotes: set[RemoteGeneration]) -> str:
    """The last entry that all of them have taken."""
    return min((remote.last for remote in remotes), key=_order)


__all__ = ["AHEAD", "DIALECTS", "REPORT", "Feed", "RemoteGeneration", "earliest", "events_of"]

"""The owner's side: what this process generates, published for the others.

Rule 1: one flush for all generations every ``replay_flush`` seconds, or as soon as one has 16 KiB; never two at a time,
        so that what is under way of one generation is one batch.
Rule 2: what is published is read from the log. Nothing is queued: while Redis is gone the log's window is what waits,
        and what has left it by then is a gap that readers elsewhere are told of.
Rule 3: what Redis has lost is announced again, with all that the log still has. What was sealed is left alone: the
        readers elsewhere have been told that it was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from time import monotonic
from typing import Final

from rawstream.limits.redis_link import RedisGone
from rawstream.replay.log import FellBehind
from rawstream.replay.redis_store import About, Batch, End, Store, log_key, stream_key
from rawstream.server.generation import Generation
from rawstream.server.remote import AHEAD
from rawstream.settings import Settings

log = logging.getLogger("rawstream")

URGENT: Final = 16 * 1024
"""Unpublished bytes of one generation that do not wait for the next flush."""
_MOST_BATCHES: Final = 64
"""In one script: what Redis does at a time takes a fraction of a millisecond."""
_MOST_BYTES: Final = 256 * 1024
_SCRIPTS: Final = 4
"""Under way at a time, each with other generations: where a turn of the loop is long, one would not keep up."""
_AGAIN: Final = 0.5
"""Seconds until what could not be published is tried again."""
_LEAST_KEPT: Final = 60.0
"""Seconds that a running generation is kept after its owner was last heard of."""
_BLANK: Final = b"\n\n"


class AwayReader:
    """A reader in another process, as its generation sees it. Implements ``generation.AwayReader``."""

    def __init__(self, process: str, position: int) -> None:
        self.process = process
        self.position = position
        self.is_committed: Callable[[], bool] = lambda: True
        """It has been told 200, for all we know."""

    @property
    def may_have(self) -> int:
        return self.position + AHEAD


class Published:
    """One generation of this process, and how far the others can read it."""

    __slots__ = (
        "_events",
        "_position",
        "announced",
        "chat",
        "done",
        "fence",
        "generation",
        "kept_until",
        "key",
        "lost"
    )  # fmt: skip

    def __init__(self, generation: Generation, fence: str, chat: str | None, key: tuple[str, bytes] | None) -> None:
        self.generation = generation
        self.fence = fence
        self.chat = chat
        self.key = key
        self.announced = False
        self.lost = False
        """Was it announced once, and has Redis lost it?"""
        self.done = False
        self.kept_until = 0.0
        self._position = 0
        self._events = 0

    @property
    def behind(self) -> int:
        """Bytes that are not published yet."""
        return self.generation.log.end - self._position

    @property
    def waits(self) -> bool:
        """Is there something to publish?"""
        return not self.announced or bool(self.behind) or self.generation.log.ended

    @property
    def keys(self) -> list[str]:
        """All that is kept of it."""
        stream = self.generation.id
        named = [] if self.chat is None else [self.chat]
        return [stream_key(stream), log_key(stream), *named, *([] if self.key is None else [self.key[0]])]

    def batch(self, most: int, now: float, keep: float, kept_after: float) -> Batch:
        """The next of what is not published: about ``most`` bytes. To be told what became of it (``went``)."""
        source = self.generation.log
        if self._position < source.start:
            self._position, self._events = source.start, source.first - 1
        start, parts, size = self._position, list[bytes](), 0
        with contextlib.suppress(FellBehind):
            while size < most and (part := source.read(start + size, most - size)):
                parts.append(part)
                size += len(part)
        frames = b"".join(parts)
        end, ttl = "", 0
        if source.ended and start + size >= source.end:
            outcome = self.generation.outcome
            end = End.of("completed" if outcome is None else outcome.value, source.failure).encode()
            ttl = round(kept_after * 1000)
        elif not self.kept_until:
            ttl = round(keep * 1000)
            self.kept_until = now + keep
        events = self._events + frames.count(_BLANK)
        return Batch(self.generation.id, self.fence, events, start, size, source.first, ttl, end, frames)

    def went(self, batch: Batch) -> None:
        """It is in Redis."""
        self._position = batch.start + len(batch.frames)
        self._events = batch.events
        self.done = bool(batch.end)

    def was_lost(self) -> None:
        """Redis knows nothing of it: begin again with the oldest that is kept here."""
        self.announced, self.lost = False, True
        self._position = self._events = 0
        self.kept_until = 0.0


class Publisher:
    """Those of this process."""

    def __init__(self, name: str, settings: Settings, store: Store) -> None:
        """``name``: of this process."""
        self._name = name
        self._settings = settings
        self._store = store
        self._published: dict[str, Published] = {}
        self._dirty: dict[Published, None] = {}
        self._news = asyncio.Event()
        self._urgent = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended: list[str] = []
        """What leads to generations that have ended since the last ``refresh``."""
        self.sealed = 0
        """Generations that others had declared lost, and that were not."""

    def __len__(self) -> int:
        return len(self._published)

    @property
    def keep(self) -> float:
        """Seconds that a running generation is kept when nothing more is heard of it."""
        return max(self._settings.replay_keep, _LEAST_KEPT)

    def about(self, stream: str, user: str | None, dialect: str, path: str) -> About:
        """What others are told of a generation of this process."""
        return About(stream, self._name, True, True, user, dialect, path)

    def add(
        self,
        generation: Generation,
        chat: str | None,
        key: tuple[str, bytes] | None,
        fence: str | None,
    ) -> Published:
        """Publish it from now on. ``fence``: it was announced with it; else ``announce`` it."""
        one = Published(generation, fence or new_fence(), chat, key)
        one.announced = fence is not None
        self._published[generation.id] = one
        generation.log.listen(one, lambda frames, events: self.heard(one))
        return one

    def heard(self, one: Published) -> None:
        """There is something new to publish."""
        self._dirty[one] = None
        self._idle.clear()
        self._news.set()
        if one.behind >= URGENT or one.generation.log.ended:
            self._urgent.set()

    def drop(self, one: Published) -> None:
        """Publish no more of it."""
        one.generation.log.forget(one)
        self._published.pop(one.generation.id, None)
        self._dirty.pop(one, None)

    # --- publishing

    async def run(self, back: Callable[[], bool]) -> None:
        """Until it is cancelled. ``back``: is Redis there?"""
        while True:
            await self._news.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.replay_flush):
                    await self._urgent.wait()
            self._news.clear()
            self._urgent.clear()
            if not back() or not await self._flush():
                await asyncio.sleep(_AGAIN)
                if self._dirty:
                    self._news.set()
            elif not self._dirty:
                self._idle.set()

    async def settled(self) -> None:
        """Wait until all that was generated so far is published. Cancel-safe; to be called with a deadline."""
        self._urgent.set()
        await self._idle.wait()

    async def _flush(self) -> bool:
        """Publish what is new. False: Redis is gone; what could not be published stays."""
        todo = list(self._dirty)
        self._dirty.clear()
        try:
            for one in todo:
                if not one.announced:
                    await self.announce(one)
            while todo:
                await self._publish(todo)
        except RedisGone:
            self._dirty.update(dict.fromkeys(todo))
            self._dirty.update((one, None) for one in self._published.values() if one.waits)
            return False
        return True

    async def _publish(self, todo: list[Published]) -> None:
        """Take some scripts' worth from ``todo``. Raises RedisGone, after what others of them have done is known."""
        scripts: list[tuple[list[Batch], list[Published]]] = []
        while todo and len(scripts) < _SCRIPTS:
            scripts.append(self._batches(todo))
        answers = await asyncio.gather(*(self._store.publish(said) for said, _ in scripts), return_exceptions=True)
        failed: BaseException | None = None
        for (batches, some), answer in zip(scripts, answers, strict=True):
            if isinstance(answer, BaseException):
                failed = answer
                continue
            for one, batch, went in zip(some, batches, answer, strict=True):
                self._told(one, batch, went)
        if failed is not None:
            raise failed

    async def announce(self, one: Published) -> None:
        """Let others find it. Cancel-safe: it may be announced all the same. Raises RedisGone."""
        generation = one.generation
        again = one.lost or one.key is not None
        about = self.about(generation.id, generation.user, generation.dialect.name, generation.path)
        await self._store.begin(about, one.fence, self.keep, chat=one.chat, key=one.key, again=again)
        one.announced = True

    def _batches(self, todo: list[Published]) -> tuple[list[Batch], list[Published]]:
        """Take from ``todo`` what makes one script."""
        now, size = monotonic(), 0
        batches: list[Batch] = []
        some: list[Published] = []
        while todo and len(batches) < _MOST_BATCHES and size < _MOST_BYTES:
            one = todo.pop()
            batch = one.batch(4 * URGENT, now, self.keep, self._settings.replay_keep)
            if not batch.frames and not batch.end and not batch.ttl:
                continue
            batches.append(batch)
            some.append(one)
            size += len(batch.frames)
        return batches, some

    def _told(self, one: Published, batch: Batch, went: int) -> None:
        if went == 1:
            one.went(batch)
            if one.done:
                self._ended += one.keys[2:]
                self.drop(one)
            elif one.waits:
                self.heard(one)
        elif went == 0:
            one.was_lost()
            self.heard(one)
        else:
            self.sealed += 1
            log.warning("stream %s: others took this process for dead, and have ended it", one.generation.public_id)
            self.drop(one)

    async def refresh(self) -> None:
        """Keep what has been silent. Raises RedisGone."""
        now = monotonic()
        if self._ended:
            ended, self._ended = self._ended, []
            await self._store.touch(ended, self._settings.replay_keep)
        old = [one for one in self._published.values() if one.announced and now + self.keep / 2 > one.kept_until]
        while old:
            some, old = old[:_MOST_BATCHES], old[_MOST_BATCHES:]
            await self._store.touch([key for one in some for key in one.keys], self.keep)
            for one in some:
                one.kept_until = now + self.keep

    def retry(self) -> None:
        """Redis is back: look at all of them."""
        for one in self._published.values():
            self.heard(one)


def new_fence() -> str:
    return secrets.token_hex(8)

"""The generations of one process that can be resumed: found again by id, by chat and by ``Idempotency-Key``.

Rule 1: an ended one is kept for ``replay_keep`` seconds, and all together within about ``replay_total`` bytes: past it
        the oldest that have ended go first; while many run each keeps less, and when that is not enough new streams
        are not resumable, and say so.
Rule 2: whoever asks must be the user it was made for. To anybody else it does not exist.
Rule 3: what nobody heard of leaves no trace: a generation that failed before its first token is not repeated to who
        tries again.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Final, NamedTuple

from rawstream.errors import BadRequest, ClientDisconnected, RawstreamError, ServerShutdown
from rawstream.replay.log import FellBehind, Shelf
from rawstream.server.generation import Generation
from rawstream.settings import Settings

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_EVENT_ID: Final = re.compile(r"([A-Za-z0-9_-]{8,64})\.([0-9]{1,18})|([A-Za-z0-9_-]{1,64})\.end")
LEAST_WINDOW: Final = 16 * 1024
"""Bytes that an answer may keep, however many there are: what its connection can have lost."""
OVERHEAD: Final = 4 * 1024
"""Bytes that one costs beside its log, about."""
Key = tuple[str | None, str, str]
"""User, path, ``Idempotency-Key``."""
Chat = tuple[str | None, str]
"""User, id of the chat."""


class EventId:
    """``<stream>.<n>`` or ``<stream>.end``, as it comes back in ``Last-Event-ID``."""

    __slots__ = ("number", "stream")

    def __init__(self, stream: str, number: int | None) -> None:
        self.stream = stream
        self.number = number
        """Of the last event that arrived; None: the end did."""

    @classmethod
    def parse(cls, text: str) -> EventId | None:
        """None: it is none of ours."""
        found = _EVENT_ID.fullmatch(text)
        if found is None:
            return None
        return cls(found[3], None) if found[3] else cls(found[1], int(found[2]))


class _Kept(NamedTuple):
    """One of them, and by what it is found."""

    generation: Generation
    chat: Chat | None
    key: Key | None


class Generations:
    """Those of one process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.shelf = Shelf(settings.replay_window)
        self._kept: dict[str, _Kept] = {}
        self._running: dict[str, Generation] = {}
        self._over: dict[str, Generation] = {}
        """Those that have ended, in this order."""
        self._by_chat: dict[Chat, str] = {}
        self._by_key: dict[Key, tuple[str, bytes]] = {}
        self._beginning: dict[Key, asyncio.Event] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._last_call = False
        self.opened = 0
        self.resumed = 0
        """Readers that came to a generation which had begun before."""
        self.refused = 0
        """Streams that were to be resumable, and could not be."""
        self.outcomes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Generation]:
        return iter([kept.generation for kept in self._kept.values()])

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def held(self) -> int:
        """Bytes in all logs, and what they cost beside."""
        return self.shelf.held

    def tokens(self) -> int:
        """Tokens of those that run."""
        return sum(generation.meter.tokens for generation in self._running.values())

    def alone(self) -> list[Generation]:
        """Those that run, and that nobody reads."""
        return [generation for generation in self._running.values() if not generation.readers]

    # --- keeping them

    def have_room(self) -> bool:
        """May another one be kept? Lets go of the oldest that have ended, where that helps."""
        room = self._settings.replay_total - min(LEAST_WINDOW, self._settings.replay_window) - OVERHEAD
        self.let_go(room)
        return self.held <= room

    def let_go(self, most: int = 0) -> None:
        """Forget those that have ended, the oldest first, until ``most`` bytes are held in all."""
        while self._over and self.held > most:
            self._forget(next(iter(self._over)))

    def add(
        self, generation: Generation, *, chat: str | None = None, key: Key | None = None, body: bytes = b""
    ) -> None:
        """Keep it, from its begin. ``chat``: where it answers; ``key``: what it was asked for with, and ``body``.

        A chat has one answer at a time: an older one that nobody reads is ended.
        """
        self.opened += 1
        chat_key = None if chat is None else (generation.user, chat)
        if chat_key is not None:
            older = self._running.get(self._by_chat.get(chat_key, ""))
            if older is not None and not older.readers:
                older.interruption.interrupt(ClientDisconnected("the chat went on without it"))
            self._by_chat[chat_key] = generation.id
        if key is not None:
            self._by_key[key] = generation.id, hashlib.sha256(body).digest()
        self._kept[generation.id] = _Kept(generation, chat_key, key)
        self._running[generation.id] = generation
        self.shelf.held += OVERHEAD
        self._share()
        if self._last_call:
            generation.nobody_returns = True

    def discard(self, generation: Generation, reason: RawstreamError) -> None:
        """It was begun for a request that was refused: end it, and forget it."""
        if generation.id in self._kept:
            self._forget(generation.id)
        generation.interruption.interrupt(reason)

    def ended(self, generation: Generation) -> None:
        """It is over: from now on its time runs."""
        assert generation.outcome is not None
        outcome = generation.outcome.value
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self._running.pop(generation.id, None)
        self._share()
        if generation.id not in self._kept:
            return
        self._over[generation.id] = generation
        if generation.error is not None and not generation.log.events:
            self._forget(generation.id)
        elif self._sweep is None:
            self._sweep_later(self._settings.replay_keep)

    def _share(self) -> None:
        """All that run keep the same; there is room for all of them."""
        settings = self._settings
        share = settings.replay_total // max(1, len(self._running))
        self.shelf.window = min(settings.replay_window, max(share, LEAST_WINDOW))

    def _sweep_later(self, seconds: float) -> None:
        self._sweep = asyncio.get_running_loop().call_later(seconds, self._forget_old)

    def _forget_old(self) -> None:
        self._sweep = None
        now, keep = monotonic(), self._settings.replay_keep
        for stream_id, generation in list(self._over.items()):
            left = generation.ended_at + keep - now
            if left > 0:
                self._sweep_later(max(left, 0.05))
                return
            self._forget(stream_id)

    def _forget(self, stream_id: str) -> None:
        generation, chat, key = self._kept.pop(stream_id)
        self._over.pop(stream_id, None)
        if chat is not None and self._by_chat.get(chat) == stream_id:
            del self._by_chat[chat]
        if key is not None and self._by_key.get(key, ("",))[0] == stream_id:
            del self._by_key[key]
        generation.log.leave_shelf()
        self.shelf.held -= OVERHEAD

    # --- the end

    def last_call(self) -> None:
        """Nobody can come back any more: those without readers end, now and later."""
        self._last_call = True
        for generation in list(self._running.values()):
            generation.last_call()

    async def settled(self, timeout: float) -> bool:
        """Wait until none runs any more, for so many seconds. Cancel-safe."""
        tasks = self._tasks()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)
        return not self._tasks()

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [one.task for one in self._running.values() if one.task is not None and not one.task.done()]

    def end_all(self, reason: RawstreamError) -> None:
        """End those that run."""
        for generation in list(self._running.values()):
            generation.interruption.interrupt(reason)

    async def close(self, timeout: float) -> None:
        """End those that run, and forget all. What does not end in time is cancelled, and waited for as long again."""
        self.end_all(ServerShutdown("the server is shutting down"))
        if not await self.settled(timeout):
            tasks = self._tasks()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=timeout)
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for stream_id in list(self._kept):
            self._forget(stream_id)

    # --- finding them

    def running_one(self, stream_id: str) -> Generation | None:
        """By its secret id, while it runs."""
        return self._running.get(stream_id)

    def find(self, stream_id: str, user: str | None) -> Generation | None:
        """By its secret id."""
        kept = self._kept.get(stream_id)
        return kept.generation if kept is not None and kept.generation.user == user else None

    def of_chat(self, chat: str, user: str | None) -> Generation | None:
        """The latest answer in a chat, unless it has ended and somebody saw that."""
        kept = self._kept.get(self._by_chat.get((user, chat), ""))
        if kept is None or (not kept.generation.running and kept.generation.seen):
            return None
        return kept.generation

    def saw(self, stream: str) -> None:
        """Somebody was told elsewhere how it ended."""
        kept = self._kept.get(stream)
        if kept is not None:
            kept.generation.seen = True

    @asynccontextmanager
    async def one_at_a_time(self, key: Key | None) -> Any:
        """Where two ask with the same ``Idempotency-Key`` at once, the second waits until the first has begun."""
        if key is None:
            yield
            return
        while (begun := self._beginning.get(key)) is not None:
            await begun.wait()
        self._beginning[key] = begun = asyncio.Event()
        try:
            yield
        finally:
            del self._beginning[key]
            begun.set()

    def of_key(self, key: Key, body: bytes) -> Generation | None:
        """What was asked for with this ``Idempotency-Key`` before. Raises BadRequest when it was something else."""
        if _KEY.fullmatch(key[2]) is None:
            raise BadRequest("Idempotency-Key must be 1 to 255 visible characters")
        found = self._by_key.get(key)
        if found is None:
            return None
        stream_id, digest = found
        if digest != hashlib.sha256(body).digest():
            raise BadRequest(
                "this Idempotency-Key was used for another request", status=422, code="idempotency_key_reused"
            )
        return self._kept[stream_id].generation

    def after(self, event: EventId, user: str | None) -> tuple[Generation, int] | None:
        """Where a reader goes on that has seen ``event``; None: it has seen the end. Raises FellBehind (410)."""
        if event.number is None:
            return None
        generation = self.find(event.stream, user)
        if generation is None:
            raise FellBehind("this stream is not kept any more, or never was; ask anew")
        try:
            return generation, generation.log.position_after(event.number)
        except ValueError:
            raise FellBehind("this stream has no such event; ask anew") from None

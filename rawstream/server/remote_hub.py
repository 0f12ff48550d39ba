"""One process's place among the others: it lives, hears them, and follows what they generate.

Rule 1: one connection waits for everything: the control stream, and the logs of all generations that are followed here.
Rule 2: a process that lives renews its lease every ``BEAT`` seconds. Whose lease is gone is gone: what it generated is
        sealed, and its readers are told. Nobody is judged right after Redis came back: leases may be gone by then.
Rule 3: when Redis is silent for as long as a lease lives, the readers of others' generations are told as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Final

from rawstream.limits.redis_link import Entry, RedisGone, RedisLink
from rawstream.replay.redis_store import End, Message, OwnerLost, Store, control_key, log_key
from rawstream.server.ids import random_id
from rawstream.server.remote import RemoteGeneration, earliest, events_of
from rawstream.settings import Settings

log = logging.getLogger("rawstream")

LEASE: Final = 5.0
"""Seconds after which a process that says nothing is dead."""
BEAT: Final = 1.0
"""Seconds between two renewals: a lease survives that some are late."""
_SETTLE: Final = 2 * BEAT + 1.0
"""Seconds without a fault after which a missing lease means something."""
_BLOCK: Final = 1.0
"""Seconds that one read waits."""
_MOST: Final = 256
"""Entries of each stream that are read at a time."""
_MOST_WAITING: Final = 10_000
"""Messages to others that wait for Redis; past it the oldest go. Those that fail go too: whoever
is back says it all again."""
_AT_ONCE: Final = 64
"""Messages in one script."""
_PAUSE: Final = 0.25
"""Seconds until a read that failed is tried again."""
_BLANK: Final = b"\n\n"


def complain(task: asyncio.Task[None]) -> None:
    """A task that should not end has ended: say so, at once."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s has failed, which is a bug of ours", task.get_name(), exc_info=error)


class Hub:
    """Implements ``remote.Feed``. Runs between ``start()`` and ``aclose()``."""

    def __init__(
        self,
        link: RedisLink,
        store: Store,
        settings: Settings,
        *,
        heard: Callable[[Message], None],
        reading: Callable[[], Iterable[str]],
        lost: Callable[[str | None], None],
        back: Callable[[], None],
        beat: Callable[[], Any],
    ) -> None:
        """``heard``: what others say; ``reading``: processes that read here; ``lost``: one of them is gone (None:
        all are, with Redis); ``back``: Redis is; ``beat``: to be done with each renewal.
        """
        self.name = random_id(8)
        self._says = f"{socket.gethostname()}:{os.getpid()}"
        self._link = link
        self._store = store
        self._reader = link.reader(_BLOCK)
        self._flush = settings.replay_flush
        self._heard = heard
        self._reading = reading
        self._lost = lost
        self._back = back
        self._beat = beat
        self._followed: dict[str, set[RemoteGeneration]] = {}
        self._control_at = "0-0"
        self._waits = False
        """Does the read wait for what was followed when it began?"""
        self._outbox: deque[tuple[str, Message]] = deque(maxlen=_MOST_WAITING)
        self._outgoing = asyncio.Event()
        self._well_since: float | None = None
        self._heard_at = monotonic()
        self._told = False
        self.leaving = False
        """Set where this process takes no connections any more."""
        self.others = 0
        """Processes that take connections, besides this one."""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def available(self) -> bool:
        """Does Redis answer?"""
        return self._well_since is not None

    @property
    def followed(self) -> int:
        """Readers here of generations elsewhere."""
        return sum(map(len, self._followed.values()))

    async def start(self) -> None:
        """Be known to the others, where Redis can be reached."""
        await self._renew()
        for work, name in ((self._read, "redis reader"), (self._live, "redis lease"), (self._send, "redis sender")):
            task = asyncio.get_running_loop().create_task(work(), name=name)
            task.add_done_callback(complain)
            self._tasks.append(task)

    async def leave(self) -> None:
        """Take no connections any more, and know who does."""
        self.leaving = True
        await self._renew()

    async def aclose(self) -> None:
        """Say good-bye."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._reader.aclose()
        if self.available:
            with contextlib.suppress(RedisGone):
                await self._store.depart(self.name)

    # --- remote.Feed

    def follow(self, remote: RemoteGeneration) -> None:
        followed = self._followed.setdefault(remote.id, set())
        if remote not in followed:
            followed.add(remote)
            if self._waits:
                self._waits = False
                self._outbox.appendleft((self.name, Message("wake")))
                self._outgoing.set()

    def unfollow(self, remote: RemoteGeneration) -> None:
        """Idempotent."""
        followed = self._followed.get(remote.id)
        if followed is not None:
            followed.discard(remote)
            if not followed:
                del self._followed[remote.id]

    def tell(self, process: str, message: Message) -> None:
        """Say it as soon as Redis takes it."""
        self._outbox.append((process, message))
        self._outgoing.set()

    def _all(self) -> list[RemoteGeneration]:
        return [remote for followed in self._followed.values() for remote in followed]

    # --- its tasks

    async def _send(self) -> None:
        while True:
            await self._outgoing.wait()
            self._outgoing.clear()
            while self._outbox and self.available:
                some = [self._outbox.popleft() for _ in range(min(len(self._outbox), _AT_ONCE))]
                try:
                    await self._store.send(some)
                except RedisGone:
                    if self._link.gone:
                        self._failed()

    async def _read(self) -> None:
        control = control_key(self.name)
        while True:
            after = {log_key(stream): earliest(followed) for stream, followed in self._followed.items()}
            after[control] = self._control_at
            self._waits = True
            try:
                answer = await self._reader.read(after, _MOST)
            except RedisGone:
                self._failed()
                await asyncio.sleep(_PAUSE)
                continue
            finally:
                self._waits = False
            news = False
            for name, entries in answer:
                if name == control:
                    self._hear(entries)
                else:
                    news = True
                    self._take(name, entries)
            if news:
                # What comes meanwhile comes together.
                await asyncio.sleep(self._flush)

    def _hear(self, entries: list[Entry]) -> None:
        for entry, fields in entries:
            self._control_at = entry.decode()
            if said := fields.get(b"m"):
                message = Message.decode(said)
                if message.kind != "wake":
                    self._heard(message)

    def _take(self, name: str, entries: list[Entry]) -> None:
        stream = name.rpartition(":")[2]
        for number, fields in entries:
            entry, start, frames = number.decode(), int(fields[b"s"]), fields.get(b"d", b"")
            end = End.decode(fields[b"e"]) if b"e" in fields else None
            before = events_of(entry) - frames.count(_BLANK)
            for remote in list(self._followed.get(stream, ())):
                remote.take(entry, start, frames, end, before)

    async def _live(self) -> None:
        while True:
            late = monotonic() - self._heard_at > BEAT and not self._link.gone
            await asyncio.sleep(_PAUSE if late else BEAT)
            await self._renew()

    async def _renew(self) -> None:
        owners = {remote.about.owner for remote in self._all()}
        others = sorted((owners | set(self._reading())) - {self.name})
        try:
            there, self.others, alive = await self._store.live(
                self.name, LEASE, self._says, self._control_at, others, self.leaving
            )
            if not there:
                self._control_at = "0-0"
            self._succeeded()
            assert self._well_since is not None
            if monotonic() - self._well_since >= _SETTLE:
                for other in others:
                    if not alive[other]:
                        await self._gone(other)
            await self._beat()
        except RedisGone:
            if self._link.gone:
                self._failed()
            if monotonic() - self._heard_at >= LEASE and not self._told:
                self._told = True
                for remote in self._all():
                    remote.fail(OwnerLost("the process that makes this answer cannot be heard; reconnect"))
                self._lost(None)

    async def _gone(self, other: str) -> None:
        """A process has died."""
        log.warning("process %s is gone", other)
        self._lost(other)
        for remote in self._all():
            if remote.about.owner == other and await self._store.seal(remote.about):
                await remote.catch_up()
                remote.fail(OwnerLost("the process that made this answer is gone; ask anew"))

    # --- how Redis is

    def _succeeded(self) -> None:
        self._heard_at = monotonic()
        self._told = False
        if self._well_since is None:
            self._well_since = self._heard_at
            self._outgoing.set()
            for remote in self._all():
                remote.come()
            self._back()

    def _failed(self) -> None:
        self._well_since = None

"""The generations of one process that can be resumed: found again by id, by chat and by ``Idempotency-Key``.

Rule 1: an ended one is kept for ``replay_keep`` seconds, and all together within ``replay_total`` bytes: past it the
        oldest that have ended go first, and when none are left new streams are not resumable, and say so.
Rule 2: whoever asks must be the user it was made for. To anybody else it does not exist.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator
from typing import Final

from rawstream.errors import BadRequest, RawstreamError
from rawstream.replay.log import FellBehind
from rawstream.server.generation import CANCEL, Generation, OnDisconnect
from rawstream.settings import Settings

_GRACE: Final = re.compile(r"grace:([0-9]{1,6}(?:\.[0-9]{1,3})?)")
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_EVENT_ID: Final = re.compile(r"([A-Za-z0-9_-]{8,64})\.(end|[0-9]{1,18})")
MOST_GRACE: Final = 3600.0
"""Seconds."""


def policy_of(text: str) -> OnDisconnect:
    """``cancel``, ``grace:SECONDS`` or ``finish``. Raises BadRequest."""
    if text == "cancel":
        return CANCEL
    if text == "finish":
        return OnDisconnect("finish")
    found = _GRACE.fullmatch(text)
    if found is None or float(found[1]) > MOST_GRACE:
        raise BadRequest(f"on_disconnect must be cancel, grace:SECONDS (at most {MOST_GRACE:g}) or finish")
    seconds = float(found[1])
    return OnDisconnect("grace", seconds) if seconds else CANCEL


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
        return cls(found[1], None if found[2] == "end" else int(found[2]))


class Generations:
    """Those of one process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._by_id: dict[str, Generation] = {}
        self._by_chat: dict[tuple[str | None, str], str] = {}
        self._by_key: dict[tuple[str | None, str, str], tuple[str, bytes]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.opened = 0
        self.resumed = 0
        """Readers that came to a generation which had begun before."""
        self.outcomes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Generation]:
        return iter(list(self._by_id.values()))

    @property
    def running(self) -> int:
        return sum(generation.running for generation in self._by_id.values())

    @property
    def held(self) -> int:
        """Bytes in all logs."""
        return sum(generation.log.held for generation in self._by_id.values())

    # --- keeping them

    def have_room(self) -> bool:
        """May another one be kept? Lets go of the oldest that have ended, where that helps."""
        held = self.held
        for generation in sorted(self._by_id.values(), key=lambda one: one.ended_at):
            if held + self._settings.replay_window <= self._settings.replay_total:
                return True
            if not generation.running:
                held -= generation.log.held
                self._forget(generation)
        return held + self._settings.replay_window <= self._settings.replay_total

    def add(
        self,
        generation: Generation,
        *,
        chat: str | None = None,
        key: tuple[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Keep it. ``chat``: where it answers; ``key``: the path and ``Idempotency-Key`` that it was asked for with."""
        self.opened += 1
        self._by_id[generation.id] = generation
        if chat is not None:
            self._by_chat[generation.user, chat] = generation.id
        if key is not None:
            self._by_key[generation.user, *key] = generation.id, hashlib.sha256(body).digest()

    def ended(self, generation: Generation) -> None:
        """It is over: from now on its time runs."""
        assert generation.outcome is not None
        outcome = generation.outcome.value
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        if generation.id in self._by_id:
            loop = asyncio.get_running_loop()
            keep = self._settings.replay_keep
            self._timers[generation.id] = loop.call_later(keep, self._forget, generation)

    def _forget(self, generation: Generation) -> None:
        timer = self._timers.pop(generation.id, None)
        if timer is not None:
            timer.cancel()
        self._by_id.pop(generation.id, None)
        self._by_chat = {at: one for at, one in self._by_chat.items() if one != generation.id}
        self._by_key = {at: one for at, one in self._by_key.items() if one[0] != generation.id}

    def close(self) -> None:
        """Forget all of them. Those that run are ended by whoever runs them."""
        for generation in self:
            self._forget(generation)

    def end_all(self, reason: RawstreamError) -> None:
        """End those that run."""
        for generation in self:
            generation.interruption.interrupt(reason)

    # --- finding them

    def running_one(self, stream_id: str) -> Generation | None:
        """By its secret id, while it runs."""
        generation = self._by_id.get(stream_id)
        return generation if generation is not None and generation.running else None

    def find(self, stream_id: str, user: str | None) -> Generation | None:
        """By its secret id."""
        generation = self._by_id.get(stream_id)
        return generation if generation is not None and generation.user == user else None

    def of_chat(self, chat: str, user: str | None) -> Generation | None:
        """The latest answer in a chat, while it runs."""
        found = self._by_id.get(self._by_chat.get((user, chat), ""))
        return found if found is not None and found.running else None

    def of_key(self, path: str, key: str, user: str | None, body: bytes) -> Generation | None:
        """What was asked for with this ``Idempotency-Key`` before. Raises BadRequest when it was something else."""
        if _KEY.fullmatch(key) is None:
            raise BadRequest("Idempotency-Key must be 1 to 255 visible characters")
        found = self._by_key.get((user, path, key))
        if found is None:
            return None
        stream_id, digest = found
        if digest != hashlib.sha256(body).digest():
            raise BadRequest(
                "this Idempotency-Key was used for another request", status=422, code="idempotency_key_reused"
            )
        return self._by_id.get(stream_id)

    def after(self, event: EventId, user: str | None) -> tuple[Generation, int] | None:
        """Where a reader goes on that has seen ``event``; None: it has seen the end. Raises FellBehind (410)."""
        generation = self.find(event.stream, user)
        if event.number is None:
            return None
        if generation is None:
            raise FellBehind("this stream is not kept any more, or never was; ask anew")
        try:
            return generation, generation.log.position_after(event.number)
        except ValueError:
            raise FellBehind("this stream has no such event; ask anew") from None

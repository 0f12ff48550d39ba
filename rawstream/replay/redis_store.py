"""Generations in Redis: announced, published, found, fetched, sealed. ``redis_scripts`` says how they are kept.

Rule 1: this knows the protocol and no server: who publishes when, and who reads, is decided elsewhere.
Rule 2: everything is one script, which Redis runs alone. Each may raise what the connection raises when Redis is gone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from rawstream.errors import (
    ClientDisconnected,
    LimitReached,
    RawstreamError,
    ServerShutdown,
    SourceFailed,
    StreamDeadline,
    UpstreamFailed,
    UpstreamIdle,
)
from rawstream.replay import redis_scripts as scripts

PAGE: Final = 1000
"""Entries that are fetched at a time."""
_BLANK: Final = b"\n\n"


class OwnerLost(RawstreamError):
    """The process that generated it is gone. What it had said is kept; the rest will never come."""

    status = 503
    code = "owner_lost"
    outcome = "source_failed"
    retry_after: float | None = 1.0


class Link(Protocol):
    """A connection to Redis that runs scripts."""

    def script(self, source: str) -> Callable[[list[str], Sequence[str | int | bytes]], asyncio.Task[Any]]: ...


class End(msgspec.Struct, omit_defaults=True):
    """How a generation ended, as it is kept."""

    outcome: str
    message: str = ""
    """Of the error that readers are told; '': they are told none."""
    status: int = 500
    code: str = ""
    retry_after: float | None = None

    @classmethod
    def of(cls, outcome: str, failure: RawstreamError | None) -> End:
        if failure is None:
            return cls(outcome)
        return cls(outcome, str(failure) or failure.code, failure.status, failure.code, failure.retry_after)

    def failure(self) -> RawstreamError | None:
        """What its readers are to be told; None: nothing."""
        if not self.message:
            return None
        kind = OwnerLost if self.code == OwnerLost.code else _KINDS.get(self.outcome, SourceFailed)
        return kind(self.message, status=self.status, code=self.code, retry_after=self.retry_after)

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, data: bytes) -> End:
        return msgspec.json.decode(data, type=cls)


_KINDS: Final[dict[str, type[RawstreamError]]] = {
    "client_left": ClientDisconnected,
    "upstream_failed": UpstreamFailed,
    "upstream_idle": UpstreamIdle,
    "budget": LimitReached,
    "deadline": StreamDeadline,
    "shutdown": ServerShutdown,
}


class Message(msgspec.Struct, omit_defaults=True):
    """What one process says to another."""

    kind: str
    stream: str = ""
    name: str = ""
    """Of a reader, or of a question."""
    position: int = 0
    sender: str = ""
    value: Any = None

    @classmethod
    def decode(cls, data: bytes) -> Message:
        return msgspec.json.decode(data, type=cls)


class Batch(NamedTuple):
    """What is published of one generation at a time."""

    stream: str
    fence: str
    events: int
    """Number of its last event."""
    start: int
    """Byte at which it begins."""
    size: int
    """Bytes of it."""
    oldest: int
    """Number of the oldest event that is worth keeping."""
    ttl: int
    """Milliseconds that it is kept from now on; 0: as it is."""
    end: str
    """An ``End``; '': not yet."""
    frames: bytes


class About(NamedTuple):
    """What is known of a generation."""

    stream: str
    owner: str
    """Name of its process."""
    alive: bool
    """Does that live?"""
    running: bool
    user: str | None
    dialect: str
    path: str
    seen: bool = False
    """Was somebody told how it ended?"""


class Page(NamedTuple):
    """A part of a log."""

    last: str
    """Id of its last entry; '': the log holds nothing at all."""
    start: int
    """Byte at which the frames begin; without frames: at which the log ends."""
    frames: bytes
    end: End | None

    @property
    def events(self) -> int:
        """Events before the frames."""
        return events_of(self.last) - self.frames.count(_BLANK)


def events_of(entry: str) -> int:
    """Number of the last event in the entry with that id."""
    return int(entry.partition("-")[0] or 0)


def stream_key(stream: str) -> str:
    return f"{scripts.PREFIX}:stream:{stream}"


def log_key(stream: str) -> str:
    return f"{scripts.PREFIX}:log:{stream}"


def process_key(name: str) -> str:
    return f"{scripts.PREFIX}:process:{name}"


def control_key(name: str) -> str:
    return f"{scripts.PREFIX}:control:{name}"


def chat_key(user: str | None, chat: str) -> str:
    """What users and clients choose is of any length, and nobody's business: a digest of it."""
    return f"{scripts.PREFIX}:chat:{_digest(user, chat)}"


def idempotency_key(user: str | None, path: str, key: str) -> str:
    return f"{scripts.PREFIX}:key:{_digest(user, path, key)}"


def _digest(*parts: str | None) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


class Store:
    """The scripts, over one connection."""

    def __init__(self, link: Link) -> None:
        self._begin = link.script(scripts.BEGIN)
        self._publish = link.script(scripts.PUBLISH)
        self._fetch = link.script(scripts.FETCH)
        self._find = link.script(scripts.FIND)
        self._seen = link.script(scripts.SEEN)
        self._leads = link.script(scripts.LEADS)
        self._seal = link.script(scripts.SEAL)
        self._send = link.script(scripts.SEND)
        self._live = link.script(scripts.LIVE)
        self._touch = link.script(scripts.TOUCH)
        self._forget = link.script(scripts.FORGET)

    async def begin(
        self,
        about: About,
        fence: str,
        ttl: float,
        *,
        chat: str | None = None,
        key: tuple[str, bytes] | None = None,
        again: bool = False,
    ) -> tuple[str, bytes] | None:
        """Announce a generation. ``chat``: the chat's key; ``key``: that of its ``Idempotency-Key``, and a digest.

        The generation and digest that the key began before; None: this one is announced. ``again``: Redis had lost
        it; whatever others have begun since stays. A key whose generation was lost is free.
        """
        stream = about.stream
        said = b"" if key is None else b"%b %b" % (stream.encode(), key[1].hex().encode())
        fields = {
            "owner": about.owner,
            "fence": fence,
            "state": "running",
            "user": "" if about.user is None else f"={about.user}",
            "dialect": about.dialect,
            "path": about.path,
        }
        flat: list[str | int | bytes] = [word for field in fields.items() for word in field]
        keys = [stream_key(stream), chat or stream_key(stream), stream_key(stream) if key is None else key[0]]
        named = "" if chat is None else stream
        answer = await asyncio.shield(self._begin(keys, [_ms(ttl), named, said, "again" if again else "", *flat]))
        return _claim(answer) if answer else None

    async def publish(self, batches: Sequence[Batch]) -> list[int]:
        """Of each 1: written; 0: nothing is known of it (any more); -1: it was sealed."""
        # Two arguments: to pack each field for the connection would cost more than all the rest.
        said = msgspec.msgpack.encode([batch[:-1] for batch in batches])
        frames = b"".join([batch.frames for batch in batches])
        answer = await asyncio.shield(self._publish([], [said, frames]))
        return answer or [1] * len(batches)

    async def fetch(self, stream: str, after: str) -> Page:
        """What came after the entry with that id, a page at most."""
        last, start, frames, end = await asyncio.shield(self._fetch([log_key(stream)], [after, PAGE]))
        return Page(last.decode(), start, frames, End.decode(end) if end else None)

    async def find(self, stream: str) -> About | None:
        """What is known of a generation; None: nothing."""
        flat, alive = await asyncio.shield(self._find([stream_key(stream)], []))
        if not flat:
            return None
        texts = [word.decode() for word in flat]
        about = dict(zip(texts[::2], texts[1::2], strict=True))
        user = about["user"]
        return About(
            stream,
            about["owner"],
            bool(alive),
            about["state"] == "running",
            user[1:] if user else None,
            about["dialect"],
            about["path"],
            "seen" in about,
        )

    async def saw(self, stream: str) -> None:
        """Somebody was told how it ended."""
        await asyncio.shield(self._seen([stream_key(stream)], []))

    async def leads_to(self, key: str) -> tuple[str, bytes] | None:
        """The generation that a chat's key or an ``Idempotency-Key``'s stands for, and the digest kept with it."""
        said = await asyncio.shield(self._leads([key], []))
        return None if said is None else _claim(said)

    async def seal(self, about: About) -> bool:
        """Its owner is gone: end its log, for ever. False: the owner lives."""
        lost = End.of("source_failed", OwnerLost("the process that made this answer is gone; ask anew"))
        keys = [stream_key(about.stream), log_key(about.stream), process_key(about.owner)]
        return bool(await asyncio.shield(self._seal(keys, [lost.encode()])))

    async def send(self, messages: Sequence[tuple[str, Message]]) -> list[bool]:
        """Tell processes something. Of each False: it does not live."""
        keys = [key for process, _ in messages for key in (process_key(process), control_key(process))]
        said = [msgspec.json.encode(message) for _, message in messages]
        answer = await asyncio.shield(self._send(keys, [scripts.MOST_CONTROL, *said]))
        return [bool(went) for went in answer]

    async def live(
        self, name: str, ttl: float, says: str, read: str, others: Sequence[str], leaving: bool
    ) -> tuple[bool, int, dict[str, bool]]:
        """Renew one's own lease. ``read``: id of the last message that was read; ``leaving``: takes no connections.

        Whether the control stream was there still; how many others take connections; of each of those that were
        named, whether it lives.
        """
        keys = [process_key(name), control_key(name), f"{scripts.PREFIX}:processes", *map(process_key, others)]
        said: list[str | int | bytes] = [_ms(ttl), says, read, "leaving" if leaving else ""]
        there, taking, *alive = await asyncio.shield(self._live(keys, said))
        return bool(there), taking, {other: bool(lives) for other, lives in zip(others, alive, strict=True)}

    async def touch(self, keys: Iterable[str], ttl: float) -> None:
        """Keep them for so many seconds from now on."""
        await asyncio.shield(self._touch(list(keys), [_ms(ttl)]))

    async def forget(self, keys: Iterable[str]) -> None:
        """Delete them."""
        await asyncio.shield(self._forget(list(keys), []))

    async def depart(self, name: str) -> None:
        """A process ends."""
        await self.forget([process_key(name), control_key(name)])


def _claim(said: bytes) -> tuple[str, bytes]:
    stream, _, digest = said.decode().partition(" ")
    return stream, bytes.fromhex(digest)


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))

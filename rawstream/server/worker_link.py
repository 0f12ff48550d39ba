"""A worker and its supervisor: what it is given at its start, and what they tell each other.

Rule 1: a worker gets its listening sockets as descriptors, and never makes any. So no connection is refused while
        workers come and go: the sockets stay, and what waits in them waits for the next one.
Rule 2: the link is a socket between the two. Its end means that the supervisor is gone: then the worker ends too.
Rule 3: what is said on it is one line each, and stays what it is: after an upgrade an old supervisor has new workers.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Final, cast

import msgspec

VARIABLE: Final = "RAWSTREAM_WORKER"
"""Between a supervisor and its workers alone."""
READY: Final = b"ready "
"""Worker: I accept, at the URL that follows."""
RETIRED: Final = b"retired\n"
"""Worker: I accept no more."""
RETIRE: Final = b"retire"
"""Supervisor: others accept in your place. Finish what you have, and end."""


class Place(msgspec.Struct, frozen=True):
    """What a supervisor tells a worker at its start, in the environment."""

    serial: int
    """Which start this is, from 1: never the same twice."""
    slot: int
    """The smallest number, from 1, that no other running worker has."""
    workers: int
    """How many there are to be."""
    directory: str
    """For what workers tell each other: 0700, and gone at the end."""
    link: int
    sockets: list[int]
    admin: list[int]
    """Descriptors."""

    def text(self) -> str:
        """For ``VARIABLE``."""
        return msgspec.json.encode(self).decode()

    @property
    def path(self) -> Path:
        return Path(self.directory)


def place_of(environ: MutableMapping[str, str]) -> Place | None:
    """What the supervisor told this process, taken out of ``environ``; None: there is no supervisor."""
    told = environ.pop(VARIABLE, "")
    return msgspec.json.decode(told, type=Place) if told else None


def take_over(descriptors: list[int]) -> list[socket.socket]:
    """Listening sockets that were passed on. No child of ours gets them."""
    sockets = []
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
        one = socket.socket(fileno=descriptor)
        one.setblocking(False)
        sockets.append(one)
    return sockets


class WorkerLink(asyncio.Protocol):
    """The worker's end of the link."""

    def __init__(self, retire: Callable[[], object], orphaned: Callable[[], object]) -> None:
        self._retire = retire
        self._orphaned = orphaned
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, descriptor: int, *, retire: Callable[[], object], orphaned: Callable[[], object]) -> WorkerLink:
        """``retire()`` when the supervisor asks for it, ``orphaned()`` when it is gone. Raises OSError."""
        os.set_inheritable(descriptor, False)
        link = cls(retire, orphaned)
        await asyncio.get_running_loop().create_connection(lambda: link, sock=socket.socket(fileno=descriptor))
        return link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if RETIRE in data:  # it is the only thing that a supervisor says
            self._retire()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._orphaned()

    def ready(self, url: str) -> None:
        """We accept."""
        self._say(READY + url.encode() + b"\n")

    def retired(self) -> None:
        """We accept no more."""
        self._say(RETIRED)

    def _say(self, what: bytes) -> None:
        if self._transport is not None:
            self._transport.write(what)

    def close(self) -> None:
        """Say and hear nothing any more. Idempotent."""
        self._orphaned = _nothing
        if self._transport is not None:
            self._transport.close()


def _nothing() -> None: ...

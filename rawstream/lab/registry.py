"""The experiments of one server: how many there may be, where they are found, and what the server tells them.

Rule 1: one that is over can still be asked about for a while, and takes nobody's place.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

from rawstream.errors import BadRequest, TooManyStreams
from rawstream.model import StreamRecord

KEPT: Final = 60.0
"""Seconds for which one that is over can still be asked about."""

Change = TypeVar("Change", contravariant=True)


class Experiment(Protocol[Change]):
    """One under way, or just over."""

    id: str
    over_at: float | None
    """When it ended; None: it goes on."""

    async def start(self) -> None: ...

    def close(self) -> None:
        """End it now. Idempotent."""
        ...

    async def change(self, change: Change, /) -> None: ...

    def begun(self) -> dict[str, Any]:
        """What whoever started it is told."""
        ...

    def state(self) -> dict[str, Any]:
        """All that can be asked about it."""
        ...

    def sample(self) -> dict[str, Any]:
        """Its figures as of now."""
        ...

    def watched(self) -> AbstractContextManager[None]:
        """Somebody watches."""
        ...

    def stream_started(self, stream_id: str) -> None: ...

    def stream_ended(self, record: StreamRecord) -> None: ...


E = TypeVar("E", bound=Experiment[Any])


class Registry(Generic[E]):
    """All experiments of one kind, and the observer of the server's streams on their behalf."""

    def __init__(self, most: int) -> None:
        """``most``: at a time."""
        self._most = most
        self._all: dict[str, E] = {}

    def stream_started(self, stream_id: str, path: str, dialect: str) -> None:
        for one in self._all.values():
            if one.over_at is None:
                one.stream_started(stream_id)

    def stream_ended(self, record: StreamRecord) -> None:
        for one in self._all.values():
            one.stream_ended(record)

    def find(self, run_id: str) -> E:
        """Raises BadRequest (404)."""
        self._forget()
        found = self._all.get(run_id)
        if found is None:
            raise BadRequest("there is no such run", status=404, code="no_such_run")
        return found

    def _forget(self) -> None:
        now = monotonic()
        for one in list(self._all.values()):
            if one.over_at is not None and now - one.over_at > KEPT:
                del self._all[one.id]

    async def begin(self, one: E) -> E:
        """Start it. Raises TooManyStreams (503) and BadRequest."""
        self._forget()
        if sum(other.over_at is None for other in self._all.values()) >= self._most:
            raise TooManyStreams(f"{self._most} runs are under way, which is the most; end one first")
        self._all[one.id] = one
        try:
            await one.start()
        except BaseException:
            self._all.pop(one.id, None)
            raise
        return one

    def remove(self, run_id: str) -> None:
        """End a run and forget it. Raises BadRequest (404)."""
        self.find(run_id).close()
        del self._all[run_id]

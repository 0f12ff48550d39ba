"""One of several server processes: what it does besides serving.

Rule 1: it serves as a single process does. All that is different is here: where its sockets come from, that it lets
        its siblings take their share, that it tells with them, and how it hands over.
Rule 2: it ends with its supervisor: gracefully, also when that was killed.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from typing import Final

from rawstream.server.app import App
from rawstream.server.balance import Balance, Counts
from rawstream.server.metrics import Metrics
from rawstream.server.neighbours import Neighbours
from rawstream.server.siblings import Siblings
from rawstream.server.worker_link import Place, WorkerLink, take_over

_PATIENCE: Final = 5.0
"""Seconds that an idle connection is kept when others have taken over: what its client sends just then is answered."""


class Worker:
    """This process among its siblings. ``start()``, ``ready()``, then ``retire()`` and ``aclose()``."""

    def __init__(self, place: Place, app: App) -> None:
        self._place = place
        self._app = app
        metrics = Metrics(app)

        async def text() -> bytes:
            _, exposition = await metrics.text()
            return exposition

        self._siblings = Siblings(place, text)
        self._siblings.register(app.router, app.operator_router)
        self._neighbours = app.streams.neighbours = Neighbours(place.path, place.serial, app.answers)
        self._link: WorkerLink | None = None
        self._retiring = False
        self._orphaned = False

    async def start(self, orphaned: Callable[[], object], ending: asyncio.Event) -> None:
        """Before the app starts. ``orphaned()``: the supervisor is gone. ``ending``: set when another takes over.

        Raises OSError.
        """

        def retire() -> None:
            if not ending.is_set():
                self._retiring = True
                ending.set()

        def orphan() -> None:
            self._orphaned = True
            if not ending.is_set():
                orphaned()

        place, app = self._place, self._app
        app.balance = Balance(Counts(place.path / "counts"), place.slot)
        app.admin_sockets = take_over(place.admin)
        await self._siblings.start()
        await self._neighbours.start()
        self._link = await WorkerLink.open(place.link, retire=retire, orphaned=orphan)

    def ready(self) -> None:
        """The app accepts: say so."""
        if self._link is not None:
            self._link.ready(self._app.url)

    async def retire(self) -> None:
        """Before the app closes: where another worker takes over, nobody who is connected is cut for it."""
        if self._retiring:
            self._app.hand_over()
            if self._link is not None:
                self._link.retired()
            await self._app.linger(min(_PATIENCE, self._app.settings.drain_timeout))

    async def aclose(self) -> None:
        """After the app has closed. Idempotent."""
        if self._link is not None:
            self._link.close()
        await self._neighbours.aclose()
        await self._siblings.aclose()
        if self._orphaned:
            shutil.rmtree(self._place.path, ignore_errors=True)

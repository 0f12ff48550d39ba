"""The lab as a part of the server: the wrong disciplines, the runs, and the page.

Rule 1: it is there exactly when the settings say so: by default, when listening on loopback only.
Rule 2: every route of it asks who is asking (``require_own_origin``), since it starts things.
"""

from __future__ import annotations

import msgspec

from rawstream.errors import BadRequest
from rawstream.lab.run_spec import RunChange, RunSpec
from rawstream.lab.runs import Run, Runs
from rawstream.lab.site import Site
from rawstream.lab.wrong import WrongDisciplines
from rawstream.server.app import App
from rawstream.server.endpoints.events import query_number, require_own_origin
from rawstream.server.exchange import Exchange


class Lab:
    """An extension of the server."""

    runs: Runs
    _app: App

    def register(self, app: App) -> None:
        self._app = app
        self.runs = Runs(app)
        app.streams.observers.append(self.runs)
        WrongDisciplines().register(app)
        Site().register(app.router)
        router = app.router
        router.add("POST", "/lab/runs", self.start, json=True)
        router.add("GET", "/lab/runs/{id}", self.state)
        router.add("POST", "/lab/runs/{id}", self.change, json=True)
        router.add("DELETE", "/lab/runs/{id}", self.remove)
        router.add("GET", "/lab/runs/{id}/events", self.events)

    async def start(self, exchange: Exchange) -> None:
        require_own_origin(exchange)
        try:
            spec = msgspec.json.decode(exchange.content or b"{}", type=RunSpec)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(_told(error)) from None
        run = await self.runs.start(spec, exchange.user)
        body = msgspec.json.encode({"id": run.id, "lanes": list(run.lanes), "seconds": run.spec.seconds})
        await exchange.respond_json(body, 201)

    def _run(self, exchange: Exchange) -> Run:
        require_own_origin(exchange)
        return self.runs.find(exchange.param("id"))

    async def state(self, exchange: Exchange) -> None:
        await exchange.respond_json(msgspec.json.encode(self._run(exchange).state()))

    async def change(self, exchange: Exchange) -> None:
        run = self._run(exchange)
        try:
            change = msgspec.json.decode(exchange.content, type=RunChange)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(_told(error)) from None
        await run.change(change)
        await exchange.respond_json(msgspec.json.encode(run.state()))

    async def remove(self, exchange: Exchange) -> None:
        require_own_origin(exchange)
        self.runs.remove(exchange.param("id"))
        await exchange.respond(204, ())

    async def events(self, exchange: Exchange) -> None:
        run = self._run(exchange)
        interval = query_number(exchange, "interval", 100, 25, 60_000) / 1000
        with run.watched():
            await self._app.events.watchers.send(exchange, run.sample, interval, lambda: run.over_at is not None)


def _told(error: Exception) -> str:
    return f"the body makes no sense: {str(error).replace('`$.', '`')}"

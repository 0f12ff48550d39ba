"""The routes of one kind of experiment: start it, ask about it, change it, end it, watch it.

Rule 1: every one of them asks who is asking (``require_own_origin``), since it starts things.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import msgspec

from rawstream.errors import BadRequest
from rawstream.lab.registry import Experiment, Registry
from rawstream.limits.users import User
from rawstream.server.app import App
from rawstream.server.endpoints.events import query_number, require_own_origin
from rawstream.server.exchange import Exchange

S = TypeVar("S", bound=msgspec.Struct)
C = TypeVar("C", bound=msgspec.Struct)


class Routes(Generic[S, C]):
    """Over a registry, whose experiments are started by an ``S`` and changed by a ``C``."""

    def __init__(
        self,
        registry: Registry[Any],
        start: Callable[[S, User | None], Awaitable[Experiment[C]]],
        spec: type[S],
        change: type[C],
    ) -> None:
        self._registry = registry
        self._start = start
        self._spec = spec
        self._change = change

    def register(self, app: App, path: str) -> None:
        self._app = app
        app.streams.observers.append(self._registry)
        router = app.router
        router.add("POST", path, self.start, json=True)
        router.add("GET", path + "/{id}", self.state)
        router.add("POST", path + "/{id}", self.change, json=True)
        router.add("DELETE", path + "/{id}", self.remove)
        router.add("GET", path + "/{id}/events", self.events)

    async def start(self, exchange: Exchange) -> None:
        require_own_origin(exchange)
        try:
            spec = msgspec.json.decode(exchange.content or b"{}", type=self._spec)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(_told(error)) from None
        one = await self._start(spec, exchange.user)
        await exchange.respond_json(msgspec.json.encode(one.begun()), 201)

    def _find(self, exchange: Exchange) -> Experiment[C]:
        require_own_origin(exchange)
        found: Experiment[C] = self._registry.find(exchange.param("id"))
        return found

    async def state(self, exchange: Exchange) -> None:
        await exchange.respond_json(msgspec.json.encode(self._find(exchange).state()))

    async def change(self, exchange: Exchange) -> None:
        one = self._find(exchange)
        try:
            change = msgspec.json.decode(exchange.content, type=self._change)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(_told(error)) from None
        await one.change(change)
        await exchange.respond_json(msgspec.json.encode(one.state()))

    async def remove(self, exchange: Exchange) -> None:
        require_own_origin(exchange)
        self._registry.remove(exchange.param("id"))
        await exchange.respond(204, ())

    async def events(self, exchange: Exchange) -> None:
        one = self._find(exchange)
        interval = query_number(exchange, "interval", 100, 25, 60_000) / 1000
        with one.watched():
            await self._app.events.watchers.send(exchange, one.sample, interval, lambda: one.over_at is not None)


def _told(error: Exception) -> str:
    return f"the body makes no sense: {str(error).replace('`$.', '`')}"

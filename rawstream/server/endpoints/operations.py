"""What an operator asks: is it alive, is it ready, what flows where."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

import msgspec

from rawstream.errors import BadRequest
from rawstream.server.exchange import Exchange
from rawstream.server.peers import came_through_proxy, is_loopback, peer_of
from rawstream.server.router import Router
from rawstream.server.streams import Streams


def require_operator(exchange: Exchange) -> None:
    """Raise 403 unless the operator asks: on the admin port where there is one, else from this machine."""
    if exchange.connection.operator:
        return
    if exchange.connection.settings.admin is not None:
        raise BadRequest("this is answered on the admin port only", status=403, code="forbidden")
    require_loopback(exchange)


def require_loopback(exchange: Exchange) -> None:
    """Raise 403 unless the peer is on this machine (a loopback address, or a Unix socket), and asks for itself."""
    if not is_loopback(peer_of(exchange.connection.transport)) or came_through_proxy(exchange.head):
        raise BadRequest(
            "this is answered on the loopback interface only, and not through a proxy", status=403, code="forbidden"
        )


class OperationsEndpoints:
    """The handlers, over the registry of streams and what the server says of itself."""

    def __init__(
        self,
        streams: Streams,
        *,
        ready: Callable[[], bool],
        levels: Callable[[], dict[str, Any]],
        metrics: Callable[[str | None], Coroutine[Any, Any, tuple[str, bytes]]],
    ) -> None:
        """``metrics(accept)``: content type and body, for a request with that ``Accept``."""
        self.streams = streams
        self._metrics = metrics
        self._ready = ready
        self._levels = levels

    def register(self, router: Router) -> None:
        router.add("GET", "/healthz", self.healthz, access="open")
        router.add("GET", "/readyz", self.readyz, access="open")
        router.add("GET", "/debug/streams", self.debug_streams, access="operator")
        router.add("GET", "/metrics", self.metrics, access="operator")

    async def healthz(self, exchange: Exchange) -> None:
        await exchange.respond_json(b'{"status": "alive"}')

    async def readyz(self, exchange: Exchange) -> None:
        if self._ready():
            await exchange.respond_json(b'{"status": "ready"}')
        else:
            await exchange.respond_json(b'{"status": "draining"}', 503)

    async def debug_streams(self, exchange: Exchange) -> None:
        require_operator(exchange)
        now = monotonic()
        alone = self.streams.generations.alone()
        streams = [running.snapshot(now) for running in (*self.streams, *alone)]
        found = {"worker": os.getpid(), "streams": streams, "totals": self._levels()}
        await exchange.respond_json(msgspec.json.encode(found))

    async def metrics(self, exchange: Exchange) -> None:
        """For Prometheus."""
        require_operator(exchange)
        content_type, body = await self._metrics(exchange.head.header("accept"))
        await exchange.respond(200, [("content-type", content_type), ("cache-control", "no-store")], body)

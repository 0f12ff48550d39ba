"""What an operator asks: is it alive, is it ready, what flows where; and stopping one stream."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from time import monotonic
from typing import Any

import msgspec

from rawstream.errors import BadRequest
from rawstream.server.exchange import Exchange
from rawstream.server.router import Router
from rawstream.server.streams import Streams


def require_loopback(exchange: Exchange) -> None:
    """Raise 403 unless the peer is on this machine (a loopback address, or a Unix socket)."""
    peer = exchange.connection.transport.get_extra_info("peername")
    if isinstance(peer, tuple) and peer and not ipaddress.ip_address(str(peer[0]).split("%", 1)[0]).is_loopback:
        raise BadRequest("this is answered on the loopback interface only", status=403, code="forbidden")


class OperationsEndpoints:
    """The handlers, over the registry of streams and what the server says of itself."""

    def __init__(self, streams: Streams, *, ready: Callable[[], bool], levels: Callable[[], dict[str, Any]]) -> None:
        self.streams = streams
        self._ready = ready
        self._levels = levels

    def register(self, router: Router) -> None:
        router.add("GET", "/healthz", self.healthz)
        router.add("GET", "/readyz", self.readyz)
        router.add("GET", "/streams/{id}", self.stream)
        router.add("POST", "/streams/{id}/stop", self.stop)
        router.add("GET", "/debug/streams", self.debug_streams)

    async def healthz(self, exchange: Exchange) -> None:
        await exchange.respond_json(b'{"status": "alive"}')

    async def readyz(self, exchange: Exchange) -> None:
        if self._ready():
            await exchange.respond_json(b'{"status": "ready"}')
        else:
            await exchange.respond_json(b'{"status": "draining"}', 503)

    async def stream(self, exchange: Exchange) -> None:
        """One stream's state, for whoever has its (secret) id."""
        stream = self.streams.find(exchange.param("id"))
        if stream is None:
            raise BadRequest("no stream with this id is running", status=404, code="no_such_stream")
        await exchange.respond_json(msgspec.json.encode(stream.snapshot(monotonic())))

    async def stop(self, exchange: Exchange) -> None:
        """Stop a stream for everybody. 202: it is being stopped; 404: it does not run (any more)."""
        if not self.streams.stop(exchange.param("id")):
            raise BadRequest("no stream with this id is running", status=404, code="no_such_stream")
        await exchange.respond_json(b'{"status": "stopping"}', 202)

    async def debug_streams(self, exchange: Exchange) -> None:
        require_loopback(exchange)
        now = monotonic()
        streams = [stream.snapshot(now) for stream in self.streams]
        await exchange.respond_json(msgspec.json.encode({"streams": streams, "totals": self._levels()}))

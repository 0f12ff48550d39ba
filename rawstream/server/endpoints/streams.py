"""One live stream, for whoever has its (secret) id: its state, and its end."""

from __future__ import annotations

from time import monotonic

import msgspec

from rawstream.errors import BadRequest
from rawstream.server.exchange import Exchange
from rawstream.server.router import Router
from rawstream.server.streams import Streams


class StreamEndpoints:
    """The handlers, over the registry of streams."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams

    def register(self, router: Router) -> None:
        router.add("GET", "/streams/{id}", self.stream)
        router.add("POST", "/streams/{id}/stop", self.stop)

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

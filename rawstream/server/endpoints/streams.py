"""One live stream, for whoever has its (secret) id: its state, and its end.

Where users are configured its own user has to have the id: to anybody else the stream is not there.
"""

from __future__ import annotations

from time import monotonic

import msgspec

from rawstream.errors import BadRequest
from rawstream.server.exchange import Exchange
from rawstream.server.generation import Generation
from rawstream.server.router import Router
from rawstream.server.stream import Stream
from rawstream.server.streams import Streams


def own_stream(streams: Streams, exchange: Exchange) -> Stream | Generation:
    """The stream that the path names, or the generation that nobody reads now.

    Raises BadRequest (404): it does not run (any more), or it is another user's.
    """
    stream = streams.find(exchange.param("id")) or streams.generations.running_one(exchange.param("id"))
    user = exchange.user
    if stream is None or stream.user != (None if user is None else user.name):
        raise BadRequest("no stream with this id is running", status=404, code="no_such_stream")
    return stream


class StreamEndpoints:
    """The handlers, over the registry of streams."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams

    def register(self, router: Router) -> None:
        router.add("GET", "/streams/{id}", self.stream)
        router.add("POST", "/streams/{id}/stop", self.stop)

    async def stream(self, exchange: Exchange) -> None:
        """One stream's state, for whoever has its (secret) id."""
        stream = own_stream(self.streams, exchange)
        await exchange.respond_json(msgspec.json.encode(stream.snapshot(monotonic())))

    async def stop(self, exchange: Exchange) -> None:
        """Stop a stream for everybody. 202: it is being stopped; 404: it does not run (any more)."""
        sharing, stream_id = self.streams.sharing, exchange.param("id")
        try:
            self.streams.stop(own_stream(self.streams, exchange).id)
        except BadRequest:
            user = None if exchange.user is None else exchange.user.name
            if sharing is None or not await sharing.stop(stream_id, user):
                raise
        await exchange.respond_json(b'{"status": "stopping"}', 202)

"""One live stream, for whoever has its (secret) id: its state, and its end.

Where users are configured its own user has to have the id: to anybody else the stream is not there.
"""

from __future__ import annotations

from time import monotonic

import msgspec

from rawstream.errors import BadRequest
from rawstream.server.exchange import Exchange
from rawstream.server.generation import Generation
from rawstream.server.neighbours import Question, Reply, answer_anywhere
from rawstream.server.router import Router
from rawstream.server.stream import Stream
from rawstream.server.streams import Streams


def own_stream(streams: Streams, asked: Question) -> Stream | Generation:
    """The stream that is asked about, or the generation that nobody reads now.

    Raises BadRequest (404): it does not run here (any more), or it is another user's.
    """
    stream = streams.find(asked.stream) or streams.generations.running_one(asked.stream)
    if stream is None or stream.user != asked.user:
        raise nothing_of_that_id()
    return stream


def nothing_of_that_id() -> BadRequest:
    """404."""
    return BadRequest("no stream with this id is running", status=404, code="no_such_stream")


class StreamEndpoints:
    """The handlers, over the registry of streams."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams

    def register(self, router: Router) -> None:
        router.add("GET", "/streams/{id}", self.stream)
        router.add("POST", "/streams/{id}/stop", self.stop)

    async def stream(self, exchange: Exchange) -> None:
        """One stream's state, for whoever has its (secret) id."""
        reply = await answer_anywhere(exchange, "state", self.state_here, None, self.streams.neighbours)
        await exchange.respond_json(reply.body, reply.status)

    def state_here(self, asked: Question) -> Reply:
        """Its state."""
        return Reply(200, msgspec.json.encode(own_stream(self.streams, asked).snapshot(monotonic())))

    async def stop(self, exchange: Exchange) -> None:
        """Stop a stream for everybody. 202: it is being stopped; 404: it does not run (any more)."""

        async def at_its_owner(asked: Question) -> Reply | None:
            sharing = self.streams.sharing
            stopped = sharing is not None and await sharing.stop(asked.stream, asked.user)
            return STOPPING if stopped else None

        reply = await answer_anywhere(exchange, "stop", self.stop_here, at_its_owner, self.streams.neighbours)
        await exchange.respond_json(reply.body, reply.status)

    def stop_here(self, asked: Question) -> Reply:
        """Stop it."""
        self.streams.stop(own_stream(self.streams, asked).id)
        return STOPPING


STOPPING = Reply(202, b'{"status": "stopping"}')

"""``POST /streams/{id}/signal`` with any JSON: something for the stream's source, while it streams.

Rule 1: the id is the secret one, which only the stream's own client has (``x-stream-id``).
Rule 2: 202 says that the signal waits for the source, not what the source makes of it: its answer is in the stream.
Rule 3: no signal is dropped in silence. Where nobody can read it any more, or too many wait, the sender is told.
"""

from __future__ import annotations

from typing import Final

from rawstream.errors import BadRequest
from rawstream.flow.signals import MOST_UNREAD, leave
from rawstream.server.endpoints.streams import nothing_of_that_id, own_stream
from rawstream.server.exchange import Exchange
from rawstream.server.neighbours import Question, Reply, answer_anywhere
from rawstream.server.remote import RemoteGeneration
from rawstream.server.router import Router
from rawstream.server.stream import Stream
from rawstream.server.streams import Streams
from rawstream.wire.json_body import decode_value

MOST_BYTES: Final = 64 * 1024
"""Of one signal: a steering remark or an edited message, no upload."""


class SignalEndpoints:
    """The handler, over the registry of streams."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams

    def register(self, router: Router) -> None:
        router.add("POST", "/streams/{id}/signal", self.signal, json=True, most=MOST_BYTES)

    async def signal(self, exchange: Exchange) -> None:
        """202: it waits for the source. 404: the stream does not run (any more); 409: its source takes no signals;
        413: it is longer than 64 KiB; 429: 64 wait already.
        """
        value = decode_value(exchange.content)
        streams = self.streams

        async def at_its_owner(asked: Question) -> Reply | None:
            sharing = streams.sharing
            if sharing is None or streams.generations.find(asked.stream, asked.user) is not None:
                return None
            said = await sharing.signal(asked.stream, asked.user, value)
            return None if said is None else _told(said)

        reply = await answer_anywhere(exchange, "signal", self.signal_here, at_its_owner, streams.neighbours)
        await exchange.respond_json(reply.body, reply.status)

    def signal_here(self, asked: Question) -> Reply:
        """Leave it for its source."""
        stream = own_stream(self.streams, asked)
        if isinstance(stream, Stream) and isinstance(stream.generation, RemoteGeneration):
            raise nothing_of_that_id()  # it is only read here
        return _told(leave(stream.mailbox, decode_value(asked.content)))


def _told(said: str) -> Reply:
    """What became of a signal. Raises BadRequest."""
    if said == "ended":
        raise nothing_of_that_id()
    if said == "none":
        raise BadRequest("this stream's source takes no signals", status=409, code="no_signals")
    if said == "full":
        raise BadRequest(
            f"{MOST_UNREAD} signals wait for this stream's source already", status=429, code="too_many_signals"
        )
    return Reply(202, b'{"status": "signalled"}')

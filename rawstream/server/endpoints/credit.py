"""``POST /streams/{id}/credit`` ``{"consumed": N}``: the client says what it has consumed, in all.

Rule 1: the id is the secret one, which only the stream's own client has (``x-stream-id``).
Rule 2: totals, not increments: a request that comes twice, or late, changes nothing.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from rawstream.errors import BadRequest
from rawstream.server.endpoints.streams import own_stream
from rawstream.server.exchange import Exchange
from rawstream.server.neighbours import Question, Reply, answer_anywhere
from rawstream.server.router import Router
from rawstream.server.stream import Stream
from rawstream.server.streams import Streams

MOST_BYTES: Final = 4 * 1024
"""Of the body, which is one number."""


class Consumed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body."""

    consumed: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    """Tokens consumed since the stream began."""


class CreditEndpoints:
    """The handler, over the registry of streams."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams

    def register(self, router: Router) -> None:
        router.add("POST", "/streams/{id}/credit", self.credit, json=True, most=MOST_BYTES)

    async def credit(self, exchange: Exchange) -> None:
        """204: noted. 404: the stream does not run (any more); 409: it was not asked for with ``?credit=N``."""
        await answer_anywhere(exchange, "credit", self.credit_here, None, self.streams.neighbours)
        await exchange.respond(204, ())

    def credit_here(self, asked: Question) -> Reply:
        """Note it."""
        try:
            body = msgspec.json.decode(asked.content, type=Consumed)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f'the body must be {{"consumed": tokens}}: {error}') from None
        stream = own_stream(self.streams, asked)
        if not isinstance(stream, Stream) or stream.credit is None:
            raise BadRequest("this stream was not asked for with ?credit=N", status=409, code="no_credit")
        stream.credit.grant(body.consumed, stream.meter.tokens)
        return Reply(204)

"""Answers that can be resumed: begun once, read by whoever comes (back).

Rule 1: an answer is begun by one request; ``Last-Event-ID``, a chat's id or a repeated ``Idempotency-Key`` lead to it
        again, and begin nothing.
Rule 2: what cannot be resumed says so (``x-resumable: no``), and is answered like any other stream.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from rawstream.errors import BadRequest, RawstreamError
from rawstream.model import Dialect, Request, Source
from rawstream.server.exchange import Exchange
from rawstream.server.generation import CANCEL, Generation, OnDisconnect
from rawstream.server.generations import EventId, policy_of
from rawstream.server.log_stream import LogStream, Readable
from rawstream.server.streams import Streams
from rawstream.wire.frames import Frames

log = logging.getLogger("rawstream.streams")

GRACE: Final = OnDisconnect("grace", 30.0)
"""Of a request with an ``Idempotency-Key`` that says nothing else."""


class LogSource:
    """A generation's log as the source of one reader. Implements ``model.Source``."""

    def __init__(self, generation: Readable, position: int, before: bytes = b"") -> None:
        self.name = "replay"
        self._generation = generation
        self._position = position
        self._before = before

    def tokens(self, request: Request) -> LogStream:
        return self._generation.read_from(self._position, request, self._before)

    async def aclose(self) -> None:
        """Nothing is shared."""


class Asked:
    """What a request says about being resumed."""

    __slots__ = ("chat", "key", "policy")

    def __init__(self, policy: OnDisconnect, key: str | None, chat: str | None = None) -> None:
        self.policy = policy
        self.key = key
        self.chat = chat

    @classmethod
    def of(cls, exchange: Exchange, request: Request, default: OnDisconnect, chat: str | None = None) -> Asked:
        """Takes ``on_disconnect`` out of the request. Raises BadRequest."""
        said = request.extra.pop("on_disconnect", None)
        if said is not None and not isinstance(said, str):
            raise BadRequest("on_disconnect must be text: cancel, grace:SECONDS or finish")
        key = exchange.head.header("idempotency-key")
        if key is not None and default == CANCEL:
            default = GRACE  # who may ask again is expected back
        return cls(default if said is None else policy_of(said), key, chat)

    @property
    def resumable(self) -> bool:
        return self.policy != CANCEL or self.key is not None


class Resuming:
    """Begins and resumes, over one registry of streams."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.generations = streams.generations

    def default(self) -> OnDisconnect:
        """Of the endpoints whose clients come back by themselves."""
        grace = self.streams.settings.resume_grace
        return OnDisconnect("grace", grace) if grace else CANCEL

    async def run(
        self,
        exchange: Exchange,
        request: Request,
        source: Source,
        dialect_of: Callable[[str], Dialect],
        asked: Asked,
    ) -> None:
        """Begin an answer, or come back to the one that this ``Idempotency-Key`` began. Raises as ``Streams.run``."""
        streams, generations = self.streams, self.generations
        if exchange.head.method == "HEAD" or not asked.resumable:
            await streams.run(exchange, request, source, dialect_of)
            return
        user = None if exchange.user is None else exchange.user.name
        key = None if asked.key is None else (exchange.path, asked.key)
        body = exchange.content or exchange.head.query.encode()
        if key is not None:
            known = generations.of_key(*key, user, body)
            if known is not None:
                await self.read(exchange, known, known.log.position_after(0))
                return
        if not generations.have_room():
            exchange.resumable = False
            await streams.run(exchange, request, source, dialect_of)
            return
        generation = await self._begin(exchange, request, source, dialect_of, asked.policy)
        generations.add(generation, chat=asked.chat, key=key, body=body)
        del request, source, dialect_of, body, key, asked
        reading = LogSource(generation, 0)
        generation.start()
        await self._read(exchange, generation, reading)

    async def _begin(
        self,
        exchange: Exchange,
        request: Request,
        source: Source,
        dialect_of: Callable[[str], Dialect],
        policy: OnDisconnect,
    ) -> Generation:
        streams = self.streams
        tab = None
        if exchange.user is not None:
            tab = await streams.spending.open(exchange.user, streams.model_of(request, source))
        try:
            if streams.stopping is not None:
                raise streams.stopping
            return Generation(request, source.tokens, dialect_of, streams.settings, policy, tab=tab, on_end=self._ended)
        except BaseException:
            if tab is not None:
                await streams.spending.close(tab)
            raise

    async def _ended(self, generation: Generation, error: RawstreamError | None) -> None:
        """A generation is over: into the books."""
        meter, tab = generation.meter, generation.tab
        self.generations.ended(generation)
        self.streams.count_tokens(generation.user, meter.tokens, generation.delivered)
        fields = generation.figures()
        log.info("generation ended", extra={"fields": fields})
        if tab is not None:
            tab.count(meter.tokens, whole=error is None)
            await self.streams.spending.close(tab)

    async def read(self, exchange: Exchange, generation: Readable, position: int, before: bytes = b"") -> None:
        """Come to a generation that has begun before. Raises as ``Streams.run``."""
        self.generations.resumed += 1
        await self._read(exchange, generation, LogSource(generation, position, before))

    async def _read(self, exchange: Exchange, generation: Readable, source: LogSource) -> None:
        dialect = Frames(generation.dialect_of(generation.id))
        await self.streams.run(exchange, Request([]), source, lambda _: dialect, generation=generation)

    async def after(self, exchange: Exchange, last_event_id: str) -> bool:
        """Go on after that event. False: it is none of ours. Raises FellBehind (410)."""
        event = EventId.parse(last_event_id)
        if event is None:
            return False
        user = None if exchange.user is None else exchange.user.name
        found = self.generations.after(event, user)
        if found is None:
            await exchange.respond(204, ())
        else:
            await self.read(exchange, *found)
        return True

"""Answers that can be resumed: begun once, read by whoever comes (back).

Rule 1: an answer is begun by one request; ``Last-Event-ID``, a chat's id or a repeated ``Idempotency-Key`` lead to it
        again, and begin nothing.
Rule 2: what cannot be resumed says so (``x-resumable: no``), and is answered like any other stream.
Rule 3: what was refused was not begun: it leaves no generation behind.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from rawstream.errors import RawstreamError, ServerShutdown, TooManyStreams
from rawstream.model import Dialect, Outcome, Request, Source, StreamRecord
from rawstream.server.exchange import Exchange
from rawstream.server.generation import Generation
from rawstream.server.generations import EventId, Key
from rawstream.server.leaving import CANCEL, Asked, OnDisconnect
from rawstream.server.log_stream import LogStream, Readable, Shorten
from rawstream.server.logs import fields_of
from rawstream.server.remote import RemoteGeneration
from rawstream.server.remote_sharing import Claim
from rawstream.server.streams import Streams
from rawstream.server.totals import ENDED_BY
from rawstream.server.traces import begin_trace
from rawstream.wire.frames import Frames

log = logging.getLogger("rawstream.streams")

MOST_READERS: Final = 16
"""Of one answer at a time: tabs and devices of one person."""


class LogSource:
    """A generation's log as the source of one reader. Implements ``model.Source``."""

    def __init__(self, generation: Readable, position: int, shorten: Shorten | None = None) -> None:
        self.name = "replay"
        self.reader: LogStream | None = None
        self._generation = generation
        self._position = position
        self._shorten = shorten

    def tokens(self, request: Request) -> LogStream:
        self.reader = self._generation.read_from(self._position, request, self._shorten)
        return self.reader

    async def aclose(self) -> None:
        """Nothing is shared."""


class Resuming:
    """Begins and resumes, over one registry of streams."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.generations = streams.generations

    def default(self) -> OnDisconnect:
        """Of the endpoints whose clients come back by themselves."""
        grace = self.streams.settings.resume_grace
        return OnDisconnect("grace", grace) if grace else CANCEL

    def run(
        self,
        exchange: Exchange,
        request: Request,
        source: Source,
        dialect_of: Callable[[str], Dialect],
        asked: Asked,
    ) -> Awaitable[None]:
        """Begin an answer, or come back to the one that this ``Idempotency-Key`` began. Raises as ``Streams.run``."""
        if exchange.head.method == "HEAD" or not asked.resumable:
            return self.streams.run(exchange, request, source, dialect_of)
        return self._run(exchange, request, source, dialect_of, asked)

    async def _run(
        self,
        exchange: Exchange,
        request: Request,
        source: Source,
        dialect_of: Callable[[str], Dialect],
        asked: Asked,
    ) -> None:
        streams, generations = self.streams, self.generations
        key = None if asked.key is None else (exchange.user_name, exchange.path, asked.key)
        body = exchange.content or exchange.head.query.encode()
        async with generations.one_at_a_time(key):
            known: Readable | None = None if key is None else generations.of_key(key, body)
            begun: Generation | None = None
            if known is None and generations.have_room():
                claim = await self._claim(key, body, dialect_of, asked.chat)
                if isinstance(claim, RemoteGeneration):
                    known = claim
                else:
                    begun = await self._begin(exchange, request, source, dialect_of, asked.policy, claim)
                    generations.add(begun, chat=asked.chat, key=key, body=body)
                    begun.start()
                    if not await self._share(begun, asked.chat, claim):
                        exchange.resumable = "local"
        if known is not None:
            await self.read(exchange, known, await self.beginning(known))
        elif begun is None:
            generations.refused += 1
            exchange.resumable = "no"
            answering = streams.run(exchange, request, source, dialect_of)
            del request, source, dialect_of, body, key, asked
            await answering
        else:
            # What the source needs of these it has; the rest need not wait for the answer's end.
            del request, source, dialect_of, body, key, asked
            try:
                await self._read(exchange, LogSource(begun, 0), begun)
            except RawstreamError as refused:
                generations.discard(begun, refused)
                raise

    async def _begin(
        self,
        exchange: Exchange,
        request: Request,
        source: Source,
        dialect_of: Callable[[str], Dialect],
        policy: OnDisconnect,
        claim: Claim | None,
    ) -> Generation:
        streams = self.streams
        tab = None
        try:
            self._check_room()
            if exchange.user is not None:
                tab = await streams.spending.open(exchange.user, streams.model_of(request, source))
            if streams.stopping is not None:
                raise streams.stopping
            return Generation(
                request,
                source.tokens,
                dialect_of,
                streams.settings,
                policy,
                on_end=self._ended,
                shelf=self.generations.shelf,
                tab=tab,
                path=exchange.path,
                request_id=exchange.id,
                pausing=streams.pausing,
                trace=begin_trace(streams.tracing, request, exchange.head, exchange.path),
                stream_id=None if claim is None else claim.stream,
            )
        except BaseException:
            if tab is not None:
                await streams.spending.close(tab)
            if claim is not None and streams.sharing is not None:
                await streams.sharing.withdraw(claim)
            raise

    async def _claim(
        self, key: Key | None, body: bytes, dialect_of: Callable[[str], Dialect], chat: str | None
    ) -> Claim | RemoteGeneration | None:
        """Ask the other processes who begins this, where there are any and it matters."""
        sharing = self.streams.sharing
        if sharing is None or key is None:
            return None
        user, path, name = key
        return await sharing.claim(user, path, name, body, dialect_of("0").name, chat)

    async def _share(self, begun: Generation, chat: str | None, claim: Claim | None) -> bool:
        """Let the other processes find it, where there are any. False: they cannot, for now."""
        sharing = self.streams.sharing
        if sharing is None:
            return True
        try:
            return await sharing.share(begun, chat, claim)
        except BaseException:
            self.generations.discard(begun, ServerShutdown("the request was cancelled"))
            raise

    async def beginning(self, generation: Readable) -> int:
        """Where its first event begins. Raises FellBehind."""
        sharing = self.streams.sharing
        if sharing is not None and isinstance(generation, RemoteGeneration):
            return await sharing.position(generation, 0)
        return generation.log.position_after(0)

    async def of_chat(self, exchange: Exchange, chat: str) -> Readable | None:
        """The latest answer in a chat that is not over, or that nobody saw the end of; wherever it is made."""
        user, sharing = exchange.user_name, self.streams.sharing
        here = self.generations.of_chat(chat, user)
        if here is not None or sharing is None:
            return here
        return await sharing.of_chat(chat, user)

    def _check_room(self) -> None:
        """Answers that nobody reads count against the limit on streams, too. Raises TooManyStreams."""
        admission, generations = self.streams.admission, self.generations
        if admission.streams + generations.running >= admission.max_streams and (
            admission.streams + len(generations.alone()) >= admission.max_streams
        ):
            admission.refused += 1
            raise TooManyStreams(
                f"{admission.max_streams} streams are open or wait for their readers, which is the most this server "
                "takes; try again"
            )

    async def _ended(self, generation: Generation) -> None:
        """A generation is over: into the books."""
        record = record_of(generation)
        tab, trace = generation.tab, generation.trace
        self.generations.ended(generation)
        self.streams.count_tokens(record.user, record.tokens, record.delivered)
        fields = fields_of(record) | {"readers": generation.had_readers}
        log.info("generation ended", extra={"fields": fields})
        if trace is not None:
            generation.trace = None
            trace.ended(record.outcome, record)
        if tab is not None:
            tab.count(record.tokens, whole=generation.error is None)
            await self.streams.spending.close(tab)

    async def read(
        self, exchange: Exchange, generation: Readable, position: int, shorten: Shorten | None = None
    ) -> None:
        """Come to a generation that has begun before. ``shorten`` tells what has passed. Raises as ``Streams.run``."""
        if generation.readers >= MOST_READERS:
            raise TooManyStreams(f"{MOST_READERS} read this answer already, which is the most it may have", status=429)
        self.generations.resumed += 1
        await self._read(exchange, LogSource(generation, position, shorten), generation)

    async def _read(self, exchange: Exchange, source: LogSource, generation: Readable) -> None:
        dialect = Frames(generation.dialect_of(generation.id))
        try:
            await self.streams.run(exchange, Request([]), source, lambda _: dialect, generation=generation)
        finally:
            # Its stream has closed it, unless it never began: a client may be gone before that.
            if source.reader is not None:
                await source.reader.aclose()

    async def after(self, exchange: Exchange, last_event_id: str) -> bool:
        """Go on after that event. False: it is none of ours. Raises FellBehind (410)."""
        event = EventId.parse(last_event_id)
        if event is None:
            return False
        user, sharing = exchange.user_name, self.streams.sharing
        if event.number is not None and sharing is not None and self.generations.find(event.stream, user) is None:
            await self.read(exchange, *await sharing.after(event.stream, event.number, user))
            return True
        found = self.generations.after(event, user)
        if found is None:
            await exchange.respond(204, ())
        else:
            await self.read(exchange, *found)
        return True


def record_of(generation: Generation) -> StreamRecord:
    """What became of one. ``seconds_client``: waited for readers, or for one to come back."""
    meter, error = generation.meter, generation.error
    outcome = generation.outcome or Outcome.COMPLETED
    source, readers = meter.seconds(generation.ended_at)
    began = meter.first_write_at
    return StreamRecord(
        id=generation.public_id,
        request_id=generation.request_id,
        path=generation.path,
        dialect=generation.dialect.name,
        outcome=outcome,
        ended_by=ENDED_BY[outcome],
        status=200 if generation.is_committed() or error is None else error.status,
        tokens=meter.tokens,
        delivered=generation.delivered,
        bytes=meter.bytes,
        writes=meter.writes,
        seconds=generation.ended_at - meter.started_at,
        first_token_seconds=None if began is None else began - meter.started_at,
        seconds_source=source,
        seconds_client=readers,
        seconds_network=0.0,
        user=generation.user,
        detail=None if error is None else error.detail or str(error),
    )

"""The registry of live streams, and the life of one: admitted, running, ended in exactly one outcome.

Rule 1: a stream is in the registry from its admission to its end, and every end goes through ``run``.
Rule 2: the outcome is decided in one place, from the error that ended the stream; no error is ``completed``.
Rule 3: before the commit point a failure is an HTTP status; after it, an in-stream error and a cut. A client that
        has gone, stalled or misbehaved is told nothing.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Final, Protocol

from rawstream.errors import (
    BudgetSpent,
    ClientError,
    RateLimited,
    RawstreamError,
    ServerShutdown,
    SourceFailed,
    StreamStopped,
)
from rawstream.flow.credit import OneByOne
from rawstream.flow.deadlines import finish_within
from rawstream.flow.meter import Meter
from rawstream.flow.pump import Delivery, produce
from rawstream.flow.signals import Signals
from rawstream.flow.timings import Timings
from rawstream.limits.admission import Admission
from rawstream.limits.budget import Ledger, MemoryLedger
from rawstream.model import (
    Dialect,
    Observer,
    Outcome,
    Request,
    Source,
    StreamRecord,
    TokenStream,
    Tracing,
)
from rawstream.server.demand import credit_of
from rawstream.server.exchange import Exchange
from rawstream.server.generation import Generation
from rawstream.server.generations import Generations
from rawstream.server.ids import random_id
from rawstream.server.log_stream import Abandoned, LogStream, Readable
from rawstream.server.neighbours import Neighbours
from rawstream.server.remote_sharing import MovesOn, Sharing
from rawstream.server.spending import Spending, Tab
from rawstream.server.stream import Stream
from rawstream.server.totals import ENDED_BY, Totals
from rawstream.server.traces import begin_trace
from rawstream.server.whole import WholeAnswers
from rawstream.settings import Settings

_CLOSING_GRACE: Final = 2.0
"""Seconds that a source may take to clean up after its stream."""
_LONGEST_REPR: Final = 500
"""Characters of an exception of a source's own: its text may be as long as what a client sent."""


class Discipline(Protocol):
    """How frames reach the client, where it is not the right way: the lab's."""

    async def __call__(self, stream: Stream, tokens: TokenStream, dialect: Dialect) -> None: ...


class Streams:
    """All live streams of one process."""

    def __init__(
        self,
        settings: Settings,
        observers: Sequence[Observer] = (),
        tracing: Tracing | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """``ledger``: where users' budgets are kept; in memory when it is not given."""
        self.settings = settings
        self.tracing = tracing
        self.admission = Admission(settings.max_streams)
        self.whole = WholeAnswers(self.admission)
        self.spending = Spending(MemoryLedger() if ledger is None else ledger)
        self.totals = Totals(user.name for user in settings.users)
        self.timings = Timings()
        self.observers = list(observers)
        self.pausing: asyncio.Event | None = None
        """When set up and not set: sources wait, whatever their clients say."""
        self.generations = Generations(settings)
        self.sharing: Sharing | None = None
        """Where generations are shared with other processes."""
        self.neighbours: Neighbours | None = None
        """Other workers, who answer for the streams that are theirs."""
        self._live: dict[int, Stream] = {}
        self._by_id: dict[str, Stream] = {}
        self.stopping: ServerShutdown | None = None
        """Why no more are begun; None: they are."""

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._live.values()))

    def find(self, stream_id: str) -> Stream | None:
        """By the secret id. Where several read one generation, the last that came."""
        return self._by_id.get(stream_id)

    def stop(self, stream_id: str) -> bool:
        """End a stream for everybody. False: there is none with this id."""
        reason = StreamStopped("the stream was stopped")
        stream = self._by_id.get(stream_id)
        generation = self.generations.running_one(stream_id) or (None if stream is None else stream.generation)
        if generation is not None:
            generation.stop(reason)
        elif stream is not None:
            stream.interruption.interrupt(reason)
        else:
            return False
        return True

    def send_elsewhere(self) -> None:
        """Part with the readers of what others hand out as well."""
        reason = MovesOn("this server is going away; the answer goes on, reconnect")
        for stream in self:
            if stream.generation is not None:
                stream.interruption.interrupt(reason)

    def shut_down(self) -> None:
        """End every stream, and refuse new ones."""
        self.stopping = ServerShutdown("the server is shutting down")
        self.whole.end_all(self.stopping)
        self.generations.end_all(self.stopping)
        for stream in self:
            stream.interruption.interrupt(self.stopping)

    async def run(
        self,
        exchange: Exchange,
        request: Request,
        source: Source,
        dialect_of: Callable[[str], Dialect],
        discipline: Discipline | None = None,
        generation: Readable | None = None,
    ) -> None:
        """Answer ``exchange`` with a stream of ``source``'s tokens. ``dialect_of`` gets the new stream's id.

        ``discipline``: one of the lab's wrong ones; ``generation``: whose log the source is. Raises nothing that the
        client or the source did once the stream is admitted; errors before that (``LimitReached``, ``ClientError``) are
        raised for the caller to answer.
        """
        if exchange.head.method == "HEAD":
            exchange.start(200, dialect_of("0").headers)
            await exchange.finish()
            return
        tab = None
        if exchange.user is not None and generation is None:
            tab = await self.spending.open(exchange.user, self.model_of(request, source))
        try:
            lab = discipline is not None
            stream, tokens, dialect = self._open(exchange, request, source, dialect_of, tab, generation, lab=lab)
        except BaseException:
            if tab is not None:
                await self.spending.close(tab)
            raise
        del request, source, dialect_of, generation
        connection = exchange.connection
        error: RawstreamError | None = None
        aborted = True
        try:
            connection.stream_begins(stream.interruption.interrupt)
            connection.set_deadline(stream.watch.next_look(stream.meter.started_at), stream.look)
            try:
                async with stream.interruption:
                    try:
                        if discipline is not None:
                            await discipline(stream, tokens, dialect)
                        else:
                            settings = self.settings
                            last = await produce(
                                tokens,
                                dialect,
                                stream.sink(),
                                stream.meter,
                                write_size=settings.write_size,
                                hold=settings.hold,
                            )
                            await stream.delivery.finish(last)
                    finally:
                        stream.end_signals()
                        try:
                            await _close(tokens)
                        finally:
                            if stream.interruption.reason is not None:
                                self.timings.cancel.add(monotonic() - stream.interruption.at)
            except RawstreamError as reason:
                error = reason
            except Exception as failure:
                told = repr(failure)[:_LONGEST_REPR]
                error = SourceFailed(f"the source failed: {type(failure).__name__}", detail=told)
            connection.stream_ends()
            if error is not None:
                if isinstance(error, ClientError) and connection.sock is None:
                    # Its connection was shared, and may have been lost with a hundred streams: all of their sources
                    # are closed before the first is booked.
                    await asyncio.sleep(0)
                await self._tell(stream, dialect, error)
            aborted = False
        finally:
            connection.stream_ends()
            del self._live[id(stream)]
            if self._by_id.get(stream.id) is stream:
                del self._by_id[stream.id]
            stream.end_signals()
            self.admission.leave()
            if aborted:
                error = ServerShutdown("the server was aborted")
            self._record(stream, error)
            if error is not None:
                # The frames in them refer to the stream, and the stream to its error: nobody would free it at once.
                error.__traceback__ = error.__context__ = error.__cause__ = None
            if tab is not None:
                tab.count(stream.meter.tokens, whole=error is None)
                del stream, tokens, dialect
                await self.spending.close(tab)

    def count_tokens(self, user: str | None, generated: int, delivered: int) -> None:
        """Into the totals, once for what was generated, however often it was read."""
        self.totals.tokens += generated
        self.totals.delivered += delivered
        if user is not None:
            self.totals.of_user(user).spent(generated, delivered)

    def tokens(self) -> int:
        """Generated so far, by what has ended and by what runs."""
        running = sum(stream.meter.tokens for stream in self if stream.generation is None)
        return self.totals.tokens + running + self.generations.tokens()

    def model_of(self, request: Request, source: Source) -> str:
        """The model that a request is for, as its user's rights are looked at."""
        return request.model or self.settings.upstream_model or source.name

    def _open(
        self,
        exchange: Exchange,
        request: Request,
        source: Source,
        dialect_of: Callable[[str], Dialect],
        tab: Tab | None,
        generation: Readable | None,
        *,
        lab: bool,
    ) -> tuple[Stream, TokenStream, Dialect]:
        if self.stopping is not None:
            raise self.stopping
        credit = credit_of(exchange.head.query, request)
        self.admission.enter()
        meter = Meter(monotonic())
        try:
            request.id = exchange.stream_id = random_id(16) if generation is None else generation.id
            request.signals = signals = Signals()
            request.is_committed = meter.is_committed
            tokens = source.tokens(request)
            dialect = dialect_of(request.id)
            # A generation is followed as a whole, not each of its readers.
            trace = None if generation else begin_trace(self.tracing, request, exchange.head, exchange.path)
        except BaseException:
            exchange.stream_id = None
            self.admission.leave()
            raise
        delivery = Delivery(exchange, dialect, meter, dialect.headers, self.pausing, self.timings)
        stream = Stream(exchange, dialect.name, delivery, self.settings, lab=lab)
        stream.generation = generation
        if isinstance(tokens, LogStream) and credit is None:
            tokens.passing = delivery.pass_on
        if tab is not None:
            stream.tab = tab
            tokens = tab.watch(tokens, meter)
        if credit is not None and not lab:
            stream.credit, tokens = credit, OneByOne(tokens)
        if trace is not None:
            stream.trace, tokens = trace, trace.watch(tokens)
        stream.tokens = tokens
        stream.signals = weakref.ref(signals)
        exchange.forget_request()
        self._live[id(stream)] = self._by_id[stream.id] = stream
        for observer in self.observers:
            observer.stream_started(stream.public_id, stream.path, stream.dialect_name)
        return stream, tokens, dialect

    async def _tell(self, stream: Stream, dialect: Dialect, error: RawstreamError) -> None:
        """Tell the client how its stream ended, in the way that is still open."""
        exchange = stream.exchange
        if isinstance(error, ClientError) and not (error.outcome == Outcome.CLIENT_MISBEHAVED and not exchange.started):
            exchange.abort()
            return
        try:
            if exchange.finished:
                # Whole, and its end is written: nothing may follow, and what waits must still leave.
                await exchange.connection.flush(timeout=self.settings.flush_timeout)
            elif isinstance(error, StreamStopped):
                await stream.delivery.stop(str(error))
            elif isinstance(error, MovesOn) and dialect.name in ("event-source", "chat"):
                await error.part(exchange, dialect)
            elif not stream.delivery.committed and not exchange.started:
                await exchange.refuse(error)
            elif stream.leased and isinstance(error, BudgetSpent | RateLimited):
                await stream.delivery.finish(b"", "length", error.code)
            else:
                await stream.delivery.fail(error)
        except RawstreamError:
            exchange.abort()  # the client left while it was being told

    def _record(self, stream: Stream, error: RawstreamError | None) -> None:
        now = monotonic()
        meter = stream.meter
        outcome = Outcome.COMPLETED if error is None else Outcome(error.outcome)
        generation = stream.generation
        if generation is not None and generation.outcome is not None:
            if error is None:
                outcome = generation.outcome  # stopped, or out of budget: the answer's end said so
            if error is None or error is generation.log.failure or isinstance(error, Abandoned):
                generation.seen = True
                if self.sharing is not None:
                    self.sharing.saw(generation)
        made = meter.tokens
        if isinstance(generation, Generation):
            made = min(made, generation.meter.tokens)  # it reads events, of which not each is a token
        source, client = meter.seconds(now)
        by_client, by_network = stream.split_wait(client, final=True)
        committed = stream.delivery.committed
        record = StreamRecord(
            id=stream.public_id,
            request_id=stream.exchange.id,
            path=stream.path,
            dialect=stream.dialect_name,
            outcome=outcome,
            ended_by=ENDED_BY[outcome],
            status=200 if committed or error is None else error.status,
            tokens=made,
            delivered=min(made, stream.delivered()),
            bytes=meter.bytes,
            writes=meter.writes,
            seconds=now - meter.started_at,
            first_token_seconds=None if meter.first_write_at is None else meter.first_write_at - meter.started_at,
            seconds_source=source,
            seconds_client=by_client,
            seconds_network=by_network,
            user=stream.user,
            detail=None if error is None else error.detail or str(error),
        )
        stream.delivery.settle()
        self.timings.whole.add(record.seconds)
        totals = self.totals
        if generation is None:
            self.count_tokens(record.user, record.tokens, record.delivered)
        totals.waiting["source"] += source
        totals.waiting["client"] += by_client
        totals.waiting["network"] += by_network
        totals.bytes += meter.bytes
        totals.outcomes[outcome.value] += 1
        for observer in self.observers:
            observer.stream_ended(record)
        if stream.trace is not None:
            stream.trace.ended(outcome, record)


async def _close(tokens: TokenStream) -> None:
    """Close a token stream, and do not wait for ever for it."""
    # An async generator that has ended needs no closing.
    if getattr(tokens, "ag_frame", tokens) is not None:
        await finish_within(_CLOSING_GRACE, tokens.aclose())

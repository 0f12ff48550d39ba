"""The registry of live streams, and the life of one: admitted, running, ended in exactly one outcome.

Rule 1: a stream is in the registry from its admission to its end, and every end goes through ``run``.
Rule 2: the outcome is decided in one place, from the error that ended the stream; no error is ``completed``.
Rule 3: before the commit point a failure is an HTTP status; after it, an in-stream error and a cut. A client that
        has gone, stalled or misbehaved is told nothing.
Rule 4: what is shown of a stream (``snapshot``) holds no prompt, no text, and not the id that can resume or stop it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any, Final, Protocol

from rawstream.errors import (
    ClientError,
    ClientStalled,
    RawstreamError,
    ServerShutdown,
    SourceFailed,
    StreamDeadline,
    StreamStopped,
)
from rawstream.flow.credit import Credit, CreditSink, OneByOne
from rawstream.flow.interrupt import Interruption
from rawstream.flow.kernel import tcp_info
from rawstream.flow.pump import Delivery, Meter, Sink, produce
from rawstream.flow.watch import Finding, StreamWatch
from rawstream.limits.admission import Admission
from rawstream.model import (
    Dialect,
    Observer,
    Outcome,
    Request,
    Source,
    SourceStatistics,
    StreamRecord,
    TokenStream,
)
from rawstream.server.demand import credit_of
from rawstream.server.exchange import Exchange
from rawstream.server.ids import random_id
from rawstream.server.totals import ENDED_BY, Totals
from rawstream.server.whole import WholeAnswers
from rawstream.settings import Settings

_CLOSING_GRACE: Final = 2.0
"""Seconds that a source may take to clean up after its stream."""


class Discipline(Protocol):
    """How frames reach the client, where it is not the right way: the lab's."""

    async def __call__(self, stream: Stream, tokens: TokenStream, dialect: Dialect) -> None: ...


class Stream:
    """One live stream."""

    __slots__ = (
        "credit",
        "delivery",
        "dialect_name",
        "exchange",
        "held",
        "id",
        "interruption",
        "lab",
        "lane",
        "meter",
        "path",
        "public_id",
        "settings",
        "tokens",
        "watch",
    )

    def __init__(
        self, exchange: Exchange, dialect_name: str, delivery: Delivery, settings: Settings, *, lab: bool
    ) -> None:
        self.id = exchange.stream_id or ""
        """The secret id: who has it may stop the stream."""
        self.public_id = random_id(4)
        """What ``/debug`` shows."""
        self.exchange = exchange
        self.path = exchange.path
        self.dialect_name = dialect_name
        self.delivery = delivery
        self.meter: Meter = delivery.meter
        self.settings = settings
        self.lab = lab
        self.lane: str | None = None
        """The lab's name for how this stream is delivered; None for an ordinary one."""
        self.credit: Credit | None = None
        """What the client has asked for, where it asked for a demand that is exact to the token."""
        self.interruption = Interruption()
        self.tokens: TokenStream | None = None
        self.held: Callable[[], int] | None = None
        """Bytes held elsewhere (the lab's unbounded buffers)."""
        self.watch = StreamWatch(
            self.meter.started_at,
            heartbeat=settings.heartbeat,
            stall_timeout=settings.stall_timeout,
            stream_timeout=settings.stream_timeout,
        )

    def sink(self) -> Sink:
        """Where its frames go."""
        return self.delivery if self.credit is None else CreditSink(self.delivery, self.credit, self.meter)

    def look(self) -> None:
        """The deadline's callback: heartbeat, stall, end of life."""
        now = monotonic()
        connection = self.exchange.connection
        taken, waiting = connection.unwritten()
        if self.credit is not None:
            # Credit that is waited for is a wait like that for room: what is consumed is progress, none is a stall.
            taken += self.credit.consumed
            waiting += self.credit.owed
        self.watch.last_write = self.delivery.last_write
        finding = self.watch.look(now, taken=taken, waiting=waiting)
        if finding is Finding.STALLED:
            timeout = self.settings.stall_timeout
            connection.lose(ClientStalled(f"the client took nothing for {timeout:g} s while data waited"))
            return
        if finding is Finding.TOO_LONG:
            self.interruption.interrupt(StreamDeadline(f"the stream ran for {self.settings.stream_timeout:g} s"))
            return
        if finding is Finding.SILENT and self.delivery.heartbeat():
            self.watch.last_write = self.delivery.last_write
        connection.set_deadline(self.watch.next_look(now), self.look)

    def buffered(self) -> dict[str, int | None]:
        """Bytes by place. None: the system cannot tell."""
        connection = self.exchange.connection
        queue = connection.kernel_queue()
        return {
            "source": self.source_buffered() + self.held_elsewhere(),
            "transport": connection.transport.get_write_buffer_size(),
            "kernel_unsent": None if queue is None else queue.unsent,
            "kernel_unacked": None if queue is None else queue.unacked,
        }

    def source_buffered(self) -> int:
        # Not isinstance(…, MeasuredTokenStream): a protocol's check takes 12 µs, and this is asked often.
        statistics: Callable[[], SourceStatistics] | None = getattr(self.tokens, "statistics", None)
        return 0 if statistics is None else statistics().buffered

    def process_buffered(self) -> int:
        """Bytes that this process holds for the stream."""
        transport = self.exchange.connection.transport
        return transport.get_write_buffer_size() + self.source_buffered() + self.held_elsewhere()

    def held_elsewhere(self) -> int:
        """Bytes that a wrong discipline keeps in the program: an answer that is collected before it is sent."""
        return 0 if self.held is None else self.held()

    def cut_for_memory(self) -> None:
        """The last step of relief: this stream holds most, and its client does not take it."""
        self.exchange.connection.lose(ClientStalled("too much was buffered in all, and this client held most of it"))

    def split_wait(self, client_seconds: float, *, final: bool = False) -> tuple[float, float]:
        """Split the wait into (client, network): the kernel knows how long the peer's window was shut."""
        connection = self.exchange.connection
        if client_seconds < 0.001:
            return client_seconds, 0.0
        sock = connection.sock
        info = tcp_info(sock) if sock is not None else None
        if info is None:
            return client_seconds, 0.0
        by_client = min(client_seconds, max(0.0, info.rwnd_limited - connection.rwnd_seen))
        if final:
            connection.rwnd_seen = info.rwnd_limited
        return by_client, client_seconds - by_client

    def waiting_for(self) -> str | None:
        """'source', 'client', 'network' or None (running)."""
        waiting = self.meter.waiting_for
        if waiting != "client":
            return waiting
        if self.credit is not None and self.credit.owed:
            return "client"
        sock = self.exchange.connection.sock
        info = tcp_info(sock) if sock is not None else None
        # A shut window is the client's; an open one with bytes in flight is the network's.
        if info is None or info.snd_wnd is None or info.snd_wnd < 4096:
            return "client"
        return "network"

    def snapshot(self, now: float) -> dict[str, Any]:
        """What ``/debug/streams`` shows."""
        meter = self.meter
        source, client = meter.seconds(now)
        by_client, by_network = self.split_wait(client)
        return {
            "id": self.public_id,
            "path": self.path,
            "dialect": self.dialect_name,
            "state": self.exchange.connection.gate.state.value,
            "tokens": meter.tokens,
            "bytes": meter.bytes,
            "waiting_for": self.waiting_for(),
            "seconds": {
                "source": round(source, 3),
                "client": round(by_client, 3),
                "network": round(by_network, 3),
            },
            "age": round(now - meter.started_at, 3),
            "buffered": self.buffered(),
        }


class Streams:
    """All live streams of one process."""

    def __init__(self, settings: Settings, observers: Sequence[Observer] = ()) -> None:
        self.settings = settings
        self.admission = Admission(settings.max_streams)
        self.whole = WholeAnswers(self.admission)
        self.totals = Totals()
        self.observers = list(observers)
        self.pausing: asyncio.Event | None = None
        """When set up and not set: sources wait, whatever their clients say."""
        self._live: dict[str, Stream] = {}
        self._stopping: ServerShutdown | None = None

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._live.values()))

    def find(self, stream_id: str) -> Stream | None:
        """By the secret id."""
        return self._live.get(stream_id)

    def stop(self, stream_id: str) -> bool:
        """End a stream for everybody. False: there is none with this id."""
        stream = self._live.get(stream_id)
        if stream is None:
            return False
        stream.interruption.interrupt(StreamStopped("the stream was stopped"))
        return True

    def shut_down(self) -> None:
        """End every stream, and refuse new ones."""
        self._stopping = ServerShutdown("the server is shutting down")
        self.whole.end_all(self._stopping)
        for stream in self:
            stream.interruption.interrupt(self._stopping)

    async def run(
        self,
        exchange: Exchange,
        request: Request,
        source: Source,
        dialect_of: Callable[[str], Dialect],
        discipline: Discipline | None = None,
    ) -> None:
        """Answer ``exchange`` with a stream of ``source``'s tokens. ``dialect_of`` gets the new stream's id.

        ``discipline``: one of the lab's wrong ones. Raises nothing that the client or the source did once the stream
        is admitted; errors before that (``LimitReached``, ``BadRequest``) are raised for the caller to answer.
        """
        if exchange.head.method == "HEAD":
            exchange.start(200, dialect_of("0").headers)
            await exchange.finish()
            return
        stream, tokens, dialect = self._open(exchange, request, source, dialect_of, lab=discipline is not None)
        del request, source, dialect_of
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
                        await _close(tokens)
            except RawstreamError as reason:
                error = reason
            except Exception as failure:
                error = SourceFailed(f"the source failed: {type(failure).__name__}", detail=repr(failure))
            connection.stream_ends()
            if error is not None:
                await self._tell(stream, dialect, error)
            aborted = False
        finally:
            connection.stream_ends()
            del self._live[stream.id]
            self.admission.leave()
            if aborted:
                error = ServerShutdown("the server was aborted")
            self._record(stream, error)

    def _open(
        self,
        exchange: Exchange,
        request: Request,
        source: Source,
        dialect_of: Callable[[str], Dialect],
        *,
        lab: bool,
    ) -> tuple[Stream, TokenStream, Dialect]:
        if self._stopping is not None:
            raise self._stopping
        credit = credit_of(exchange.head.query, request)
        self.admission.enter()
        try:
            request.id = exchange.stream_id = random_id(16)
            tokens = source.tokens(request)
            dialect = dialect_of(request.id)
        except BaseException:
            exchange.stream_id = None
            self.admission.leave()
            raise
        delivery = Delivery(exchange, dialect, Meter(monotonic()), dialect.headers, self.pausing)
        stream = Stream(exchange, dialect.name, delivery, self.settings, lab=lab)
        if credit is not None and not lab:
            stream.credit, tokens = credit, OneByOne(tokens)
        stream.tokens = tokens
        exchange.forget_request()
        self._live[stream.id] = stream
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
                await stream.delivery.finish(b"", "stop")
            elif not stream.delivery.committed and not exchange.started:
                await exchange.refuse(error)
            else:
                await stream.delivery.fail(error)
        except RawstreamError:
            exchange.abort()  # the client left while it was being told

    def _record(self, stream: Stream, error: RawstreamError | None) -> None:
        now = monotonic()
        meter = stream.meter
        outcome = Outcome.COMPLETED if error is None else Outcome(error.outcome)
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
            tokens=meter.tokens,
            bytes=meter.bytes,
            writes=meter.writes,
            seconds=now - meter.started_at,
            first_token_seconds=None if meter.first_write_at is None else meter.first_write_at - meter.started_at,
            seconds_source=source,
            seconds_client=by_client,
            seconds_network=by_network,
            detail=None if error is None else error.detail or str(error),
        )
        totals = self.totals
        totals.tokens += meter.tokens
        totals.bytes += meter.bytes
        totals.outcomes[outcome.value] += 1
        for observer in self.observers:
            observer.stream_ended(record)


async def _close(tokens: TokenStream) -> None:
    """Close a token stream, and do not wait for ever for it."""
    # An async generator that has ended needs no closing, and no timer to watch over it.
    if getattr(tokens, "ag_frame", tokens) is not None:
        async with asyncio.timeout(_CLOSING_GRACE):
            await tokens.aclose()

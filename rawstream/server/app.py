"""The server: connections, routes, streams, and how it starts and ends.

Rule 1: ending has three steps, each with its own time: drain (readiness is false, nothing new is accepted, running
        streams go on), cancel (streams are told, and leave), abort. Asking a second time goes straight to the last.
Rule 2: what is opened here is closed here; after ``close()`` no task, socket or source is left.
Rule 3: an error in a handler is our fault: it is logged with its trace, answered with 500, and costs one connection.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from time import monotonic
from typing import Any, Protocol

from rawstream.errors import LimitReached, ModelNotAllowed, ProtocolViolation, RawstreamError
from rawstream.limits.budget import Ledger, MemoryLedger
from rawstream.limits.redis_ledger import RedisLedger
from rawstream.limits.redis_link import RedisLink
from rawstream.model import Observer, Source, Tracing
from rawstream.server.access import Access, users_of
from rawstream.server.channel import Channel
from rawstream.server.counts import Counts
from rawstream.server.doors import Doors
from rawstream.server.endpoints.chat import ChatEndpoints
from rawstream.server.endpoints.completions import CompletionEndpoints
from rawstream.server.endpoints.credit import CreditEndpoints
from rawstream.server.endpoints.events import EventsEndpoints
from rawstream.server.endpoints.operations import OperationsEndpoints
from rawstream.server.endpoints.signals import SignalEndpoints
from rawstream.server.endpoints.streams import StreamEndpoints
from rawstream.server.endpoints.ui_chat import UIChatEndpoints
from rawstream.server.exchange import Exchange, error_answer
from rawstream.server.governor import Governor
from rawstream.server.logs import StreamLog
from rawstream.server.metrics import Metrics
from rawstream.server.neighbours import Answer
from rawstream.server.remote_sharing import Sharing
from rawstream.server.resuming import Resuming
from rawstream.server.router import Router, prepare
from rawstream.server.streams import Streams
from rawstream.settings import Settings
from rawstream.wire.http1 import RequestHead
from rawstream.wire.http2_frames import Http2Violation

log = logging.getLogger("rawstream")


class Extension(Protocol):
    """Something that adds routes to a server (the lab does)."""

    def register(self, app: App) -> None: ...


class App(Doors):
    """One process's server. ``start()``, then ``close()``; both on the loop it serves on."""

    def __init__(
        self,
        settings: Settings,
        source: Source,
        *,
        observers: tuple[Observer, ...] = (),
        extensions: tuple[Extension, ...] = (),
        sockets: list[socket.socket] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """``sockets``: listening ones to serve on, instead of the settings' address."""
        super().__init__(settings, sockets)
        self.source = source
        self.redis = None if settings.redis is None else RedisLink(settings.redis)
        """The connection to Redis; None: none is configured."""
        self.ledger: Ledger = MemoryLedger() if self.redis is None else RedisLedger(self.redis)
        """Where users' budgets are kept."""
        self.streams = Streams(settings, (StreamLog(), *observers), tracing, self.ledger)
        self.sharing = None if self.redis is None else Sharing(self.redis, settings, self.streams.generations)
        """What makes answers resumable at other processes; None: no Redis is configured."""
        self.streams.sharing = self.sharing
        self.governor = Governor(settings, self.streams)
        self.users = users_of(settings)
        self.access = Access(settings, self.users, self.ledger)
        self.counts = Counts()
        self.router = Router()
        self.operator_router = Router()
        """What the admin port answers, and nothing else."""
        self.resuming = Resuming(self.streams)
        self.chat = ChatEndpoints(self.streams, source, self.resuming)
        self.chat.register(self.router)
        CompletionEndpoints(self.streams, source, self.resuming).register(self.router)
        UIChatEndpoints(self.streams, source, self.resuming).register(self.router)
        credit, signals, one = (
            CreditEndpoints(self.streams),
            SignalEndpoints(self.streams),
            StreamEndpoints(self.streams),
        )
        for endpoints in (credit, signals, one):
            endpoints.register(self.router)
        self.answers: dict[str, Answer] = {
            "state": one.state_here,
            "stop": one.stop_here,
            "credit": credit.credit_here,
            "signal": signals.signal_here,
        }
        """What may be asked of a stream here, by siblings too."""
        operations = OperationsEndpoints(
            self.streams, ready=lambda: not self.draining, levels=self.levels, metrics=Metrics(self).text
        )
        self.events = EventsEndpoints(self.streams, ends=self._ends, levels=self.levels)
        for router in (self.router, self.operator_router):
            operations.register(router)
            self.events.register(router)
        for extension in extensions:
            extension.register(self)

    # --- Host, for connections ---------------------------------------------------------------------------

    def broken(self, violation: Http2Violation) -> None:
        self.counts.broken(violation)

    def refusal(self, connection: Channel, error: ProtocolViolation) -> bytes:
        return error_answer(connection.codec, error)

    async def answer(self, connection: Channel, head: RequestHead) -> bool:
        """Answer one request; whatever goes wrong, it goes wrong for this connection alone."""
        exchange = Exchange(connection, head)
        del head
        if self._ends(connection) or self.retiring:
            exchange.close_after = True
        try:
            try:
                handler = await prepare(
                    self.operator_router if connection.operator else self.router, exchange, self.access
                )
                if handler is not None:
                    await handler(exchange)
            except RawstreamError as error:
                if connection.gate.reason is not None or exchange.started:
                    exchange.abort()
                    return False
                if error.outcome in ("source_failed", "upstream_failed", "upstream_idle"):
                    # %r: what an upstream says may hold line ends.
                    log.warning("request failed: %r %r", str(error), error.detail or "")
                self.counts.refused(error)
                if exchange.user is not None and isinstance(error, LimitReached | ModelNotAllowed):
                    self.streams.totals.of_user(exchange.user.name).refused(error.code)
                await exchange.refuse(error)
        except RawstreamError:
            return False  # the client left while it was being refused
        except Exception:
            log.exception("a handler failed at %s", exchange.path)
            if exchange.started or connection.gate.reason is not None:
                exchange.abort()
                return False
            try:
                await exchange.refuse(RawstreamError("internal error"))
            except RawstreamError:
                return False
        finally:
            if not connection.operator:
                self.counts.answered(exchange.status)
        return exchange.complete()

    # --- life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen and accept. Raises OSError, naming the address, when that cannot be."""
        self.streams.pausing = asyncio.Event()
        self.streams.pausing.set()
        self.open_doors()
        self.governor.start()
        if self.sharing is not None:
            await self.sharing.start()

    @property
    def memory_cuts(self) -> int:
        return self.governor.cuts

    async def close(self, *, drain: float | None = None) -> None:
        """End in the three steps. ``drain`` (seconds) replaces ``drain_timeout``. Cancelling it aborts."""
        self.draining = True
        self.shut_doors()
        generations = self.streams.generations
        try:
            if self.sharing is not None and await self.sharing.leave():
                # What they read goes on here, and they read on elsewhere.
                self.streams.send_elsewhere()
            else:
                generations.last_call()
            timeout = self.settings.drain_timeout if drain is None else drain
            until = monotonic() + timeout
            if await self.emptied(timeout) and await generations.settled(max(0.0, until - monotonic())):
                return
            self.streams.shut_down()
            await self.emptied(self.settings.cancel_timeout)
        finally:
            await self._abort()

    async def _abort(self) -> None:
        await self.cut(self.connections)
        await self.streams.generations.close(self.settings.cancel_timeout)
        if self.sharing is not None:
            await self.sharing.aclose()
        await self.dismiss_operators()
        self.governor.stop()
        await self.streams.spending.settled()
        if self.redis is not None:
            await self.redis.aclose()
        await self.source.aclose()

    def levels(self) -> dict[str, Any]:
        """The totals that ``/debug/streams`` shows."""
        now = monotonic()
        streams = self.streams
        live = list(streams)
        return {
            "streams": len(streams),
            "connections": len(self.connections),
            "opened": streams.admission.opened,
            "refused": streams.admission.refused,
            "peak_streams": streams.admission.peak,
            "tokens": streams.tokens(),
            "bytes": streams.totals.bytes + sum(stream.meter.bytes for stream in live),
            "buffered": sum(stream.process_buffered() for stream in live) + streams.generations.held,
            "generations": {
                "running": streams.generations.running,
                "alone": len(streams.generations.alone()),
                "kept": len(streams.generations),
                "opened": streams.generations.opened,
                "resumed": streams.generations.resumed,
                "held": streams.generations.held,
            },
            "oldest": max((now - stream.meter.started_at for stream in live), default=0.0),
            "outcomes": streams.totals.outcomes,
        }

"""The server: connections, routes, streams, and how it starts and ends.

Rule 1: ending has three steps, each with its own time: drain (readiness is false, nothing new is accepted, running
        streams go on), cancel (streams are told, and leave), abort. Asking a second time goes straight to the last.
Rule 2: what is opened here is closed here; after ``close()`` no task, socket or source is left.
Rule 3: an error in a handler is our fault: it is logged with its trace, answered with 500, and costs one connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from time import monotonic
from typing import Any, Final, Protocol

from rawstream.errors import LimitReached, ModelNotAllowed, ProtocolViolation, RawstreamError, SettingsError
from rawstream.limits.budget import Ledger, MemoryLedger
from rawstream.limits.redis_ledger import RedisLedger
from rawstream.limits.redis_link import RedisLink
from rawstream.model import Observer, Source, Tracing
from rawstream.server.access import Access, users_of
from rawstream.server.balance import Balance
from rawstream.server.channel import Channel, ClientConnection
from rawstream.server.connection import Connection
from rawstream.server.counts import Counts
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
from rawstream.server.http2 import Http2Connection
from rawstream.server.link import Link
from rawstream.server.listener import Listener, descriptor_limit, listen, listen_at
from rawstream.server.logs import StreamLog
from rawstream.server.metrics import Metrics
from rawstream.server.remote_sharing import Sharing
from rawstream.server.resuming import Resuming
from rawstream.server.router import Router, prepare
from rawstream.server.streams import Streams
from rawstream.server.tls import TlsProtocol, server_context
from rawstream.settings import Settings
from rawstream.wire.http1 import RequestHead
from rawstream.wire.http2_frames import Http2Violation

log = logging.getLogger("rawstream")

_HANDSHAKES_EVERY: Final = 0.05
"""Seconds between two looks at whether the last TLS handshakes are over."""


class Extension(Protocol):
    """Something that adds routes to a server (the lab does)."""

    def register(self, app: App) -> None: ...


_MOST_OPERATORS: Final = 64
"""Connections to the admin port: some Prometheus servers, some people."""


def url_of(scheme: str, name: tuple[Any, ...]) -> str:
    host, port = name[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class App:
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
        self.settings = settings
        self.source = source
        self.draining = False
        self._over = False
        self.max_connections = settings.max_connections
        self.retiring = False
        """Another process accepts in our place."""
        self.connections: set[ClientConnection] = set()
        self.operators: set[ClientConnection] = set()
        """Connections of the admin port: they keep nobody out, and the end does not wait for them."""
        self.handshakes: set[TlsProtocol] = set()
        """Connections that are not ready to speak HTTP yet."""
        self.tls = self._tls_context()
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
        CreditEndpoints(self.streams).register(self.router)
        SignalEndpoints(self.streams).register(self.router)
        StreamEndpoints(self.streams).register(self.router)
        operations = OperationsEndpoints(
            self.streams, ready=lambda: not self.draining, levels=self.levels, metrics=Metrics(self).text
        )
        self.events = EventsEndpoints(self.streams, ends=self._ends, levels=self.levels)
        for router in (self.router, self.operator_router):
            operations.register(router)
            self.events.register(router)
        for extension in extensions:
            extension.register(self)
        self._sockets = sockets
        self.admin_sockets: list[socket.socket] | None = None
        """Listening ones for the operator, instead of the settings' address."""
        self.balance: Balance | None = None
        """Where other processes accept on the same sockets."""
        self._listener: Listener | None = None
        self._admin: Listener | None = None
        self._empty: asyncio.Event | None = None
        self._hurry: asyncio.Event | None = None

    # --- Host, for connections ---------------------------------------------------------------------------

    def connection_opened(self, connection: ClientConnection) -> None:
        if connection.operator:
            self.operators.add(connection)
            return
        self.connections.add(connection)
        if self._empty is not None:
            self._empty.clear()

    def connection_closed(self, connection: ClientConnection) -> None:
        if connection.operator:
            self.operators.discard(connection)
            if self._admin is not None:
                self._admin.connection_closed()
            return
        self.connections.discard(connection)
        if not self.connections and self._empty is not None:
            self._empty.set()
        if self._listener is not None:
            self._listener.connection_closed()

    def handshake_begins(self, handshake: TlsProtocol) -> None:
        self.handshakes.add(handshake)

    def handshake_ends(self, handshake: TlsProtocol) -> None:
        if handshake in self.handshakes:
            self.handshakes.discard(handshake)
            if self._listener is not None:
                self._listener.connection_closed()

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

    def _tls_context(self) -> ssl.SSLContext | None:
        certfile, keyfile = self.settings.ssl_certfile, self.settings.ssl_keyfile
        if certfile is not None:
            return server_context(certfile, keyfile, http2=self.settings.http2 is not False)
        if keyfile is not None:
            raise SettingsError("ssl_keyfile needs ssl_certfile: a key alone is no certificate")
        return None

    def reload_certificate(self) -> None:
        """Read the certificate and its key anew, for connections to come. Raises SettingsError; then the old stays."""
        self.tls = self._tls_context()

    def _protocol(self, accepted: socket.socket) -> asyncio.Protocol:
        """What speaks on a connection that was accepted."""
        loop = asyncio.get_running_loop()
        if self.tls is None:
            return Connection(self, loop, accepted)

        def agreed(protocol: str | None) -> Link:
            return (Http2Connection if protocol == "h2" else Connection)(self, loop, accepted)

        return TlsProtocol(self, self.settings, self.tls, loop, agreed)

    def speaks_http2(self, connection: Connection, first: bytes) -> None:
        self.connection_closed(connection)
        Http2Connection.take_over(self, connection, first)

    async def start(self) -> None:
        """Listen and accept. Raises OSError, naming the address, when that cannot be."""
        loop = asyncio.get_running_loop()
        self._empty = asyncio.Event()
        self._empty.set()
        self._hurry = asyncio.Event()
        self.streams.pausing = asyncio.Event()
        self.streams.pausing.set()
        admin = self.settings.admin
        admin_sockets = self.admin_sockets or []
        if self.admin_sockets is None and admin is not None:
            admin_sockets = listen_at(admin, _MOST_OPERATORS)
        try:
            sockets = listen(self.settings) if self._sockets is None else self._sockets
        except OSError:
            for sock in admin_sockets:
                sock.close()
            raise
        self.max_connections = max(1, min(self.settings.max_connections, descriptor_limit() // 2))
        self._listener = Listener(
            sockets,
            self._protocol,
            self.settings,
            connections=lambda: self.open_connections,
            limit=self.max_connections,
            balance=self.balance,
        )
        self._listener.start()
        if admin_sockets:
            self._admin = Listener(
                admin_sockets,
                lambda accepted: Connection(self, loop, accepted, operator=True),
                self.settings,
                connections=lambda: len(self.operators),
                limit=_MOST_OPERATORS,
            )
            self._admin.start()
        self.governor.start()
        if self.sharing is not None:
            await self.sharing.start()

    @property
    def sockets(self) -> list[socket.socket]:
        """The listening sockets. Empty before ``start()``."""
        return [] if self._listener is None else self._listener.sockets

    @property
    def admin_url(self) -> str | None:
        """Where the operator's port is; None: there is none. It speaks no TLS."""
        return None if self._admin is None else url_of("http", self._admin.sockets[0].getsockname())

    @property
    def open_connections(self) -> int:
        return len(self.connections) + len(self.handshakes)

    @property
    def memory_cuts(self) -> int:
        return self.governor.cuts

    @property
    def url(self) -> str:
        """Where to reach the server: ``http://127.0.0.1:8000``, or ``unix:/path``."""
        if self.settings.uds is not None:
            return f"unix:{self.settings.uds}"
        name = self.sockets[0].getsockname()
        if not isinstance(name, tuple):
            return f"unix:{os.fsdecode(name)}"
        return url_of("http" if self.tls is None else "https", name)

    def hand_over(self) -> None:
        """Other processes accept in our place: take no more. ``linger()`` comes next, then ``close()``."""
        self.retiring = True
        for listener in (self._listener, self._admin):
            if listener is not None:
                listener.close()

    async def linger(self, patience: float) -> None:
        """Let who is connected ask what may be on its way already: a connection ends after its next answer.

        Until none is left, or for ``patience`` seconds. Cancel-safe.
        """
        until = monotonic() + patience
        if self._listener is not None:
            await self._listener.settled()
        assert self._hurry is not None
        while (left := until - monotonic()) > 0 and not self._hurry.is_set():
            if self.connections:
                await self._emptied(left)
            elif self.handshakes:
                await asyncio.sleep(min(left, _HANDSHAKES_EVERY))  # they have no event of their own
            else:
                return

    async def close(self, *, drain: float | None = None) -> None:
        """End in the three steps. ``drain`` (seconds) replaces ``drain_timeout``. Cancelling it aborts."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        for handshake in list(self.handshakes):
            handshake.abort()
        for connection in list(self.connections):
            connection.close_if_idle()
        generations = self.streams.generations
        try:
            if self.sharing is not None and await self.sharing.leave():
                # What they read goes on here, and they read on elsewhere.
                self.streams.send_elsewhere()
            else:
                generations.last_call()
            timeout = self.settings.drain_timeout if drain is None else drain
            until = monotonic() + timeout
            if await self._emptied(timeout) and await generations.settled(max(0.0, until - monotonic())):
                return
            self.streams.shut_down()
            await self._emptied(self.settings.cancel_timeout)
        finally:
            await self._abort()

    def hurry(self) -> None:
        """Skip to the last step of an end that is under way."""
        if self._hurry is not None:
            self._hurry.set()

    async def _emptied(self, timeout: float) -> bool:
        """Wait until no connection is left. False: the time is over, or somebody is in a hurry."""
        assert self._empty is not None
        assert self._hurry is not None
        if self._hurry.is_set():
            return not self.connections
        waits = [asyncio.ensure_future(self._empty.wait()), asyncio.ensure_future(self._hurry.wait())]
        try:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return not self.connections

    async def _abort(self) -> None:
        tasks = [connection.task for connection in self.connections]
        for connection in list(self.connections):
            connection.task.cancel()
            connection.transport.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=self.settings.cancel_timeout)
        await self.streams.generations.close(self.settings.cancel_timeout)
        if self.sharing is not None:
            await self.sharing.aclose()
        await self._dismiss_operators()
        self.governor.stop()
        await self.streams.spending.settled()
        if self.redis is not None:
            await self.redis.aclose()
        await self.source.aclose()

    async def _dismiss_operators(self) -> None:
        """The admin port closes last: whoever looks at a drain sees it to its end."""
        self._over = True
        if self._admin is not None:
            self._admin.close()
        tasks = [connection.task for connection in self.operators]
        for connection in list(self.operators):
            connection.close_if_idle()
        hurry = self._hurry is not None and self._hurry.is_set()
        if tasks and not hurry:
            await asyncio.wait(tasks, timeout=self.settings.flush_timeout)
        for connection in list(self.operators):
            connection.task.cancel()
            connection.transport.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=self.settings.cancel_timeout)

    def _ends(self, connection: Channel) -> bool:
        """Is whoever came in by this connection about to be sent away?"""
        return self._over if connection.operator else self.draining

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

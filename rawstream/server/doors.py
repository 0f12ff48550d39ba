"""Where clients come in: listening sockets, TLS, the connections that are there, and how all of them go.

Rule 1: whoever is connected is known, from the handshake on; connections count against a limit, the operator's against
        another, and the end of the server waits for the first alone.
Rule 2: what may be spoken is settled here: TLS or not, and which HTTP (ALPN, or a client's first bytes).
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Coroutine
from time import monotonic
from typing import Any, Final

from rawstream.errors import ProtocolViolation, SettingsError
from rawstream.server.balance import Balance
from rawstream.server.channel import Channel, ClientConnection
from rawstream.server.connection import Connection
from rawstream.server.http2 import Http2Connection
from rawstream.server.link import Link
from rawstream.server.listener import Listener, descriptor_limit, listen, listen_at
from rawstream.server.tls import TlsProtocol, server_context
from rawstream.settings import Settings
from rawstream.wire.http1 import RequestHead
from rawstream.wire.http2_frames import Http2Violation

_HANDSHAKES_EVERY: Final = 0.05
"""Seconds between two looks at whether the last TLS handshakes are over."""
_MOST_OPERATORS: Final = 64
"""Connections to the admin port: some Prometheus servers, some people."""


def url_of(scheme: str, name: tuple[Any, ...]) -> str:
    host, port = name[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class Doors:
    """The connections of one process. ``open_doors()``, then ``shut_doors()``; both on the loop it serves on."""

    def __init__(self, settings: Settings, sockets: list[socket.socket] | None) -> None:
        """``sockets``: listening ones to serve on, instead of the settings' address. Raises SettingsError."""
        self.settings = settings
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
        self._sockets = sockets
        self.admin_sockets: list[socket.socket] | None = None
        """Listening ones for the operator, instead of the settings' address."""
        self.balance: Balance | None = None
        """Where other processes accept on the same sockets."""
        self._listener: Listener | None = None
        self._admin: Listener | None = None
        self._empty: asyncio.Event | None = None
        self._hurry: asyncio.Event | None = None

    # --- what whoever answers has to say -------------------------------------------------------------------

    def answer(self, channel: Channel, head: RequestHead) -> Coroutine[Any, Any, bool]:
        """Answer one request. True when the channel may serve another one."""
        raise NotImplementedError

    def refusal(self, channel: Channel, error: ProtocolViolation) -> bytes:
        """The answer to bytes that never became a request."""
        raise NotImplementedError

    def broken(self, error: Http2Violation) -> None:
        """A connection broke its protocol, and was cut without an answer."""
        raise NotImplementedError

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

    def open_doors(self) -> None:
        """Listen and accept. Raises OSError, naming the address, when that cannot be."""
        loop = asyncio.get_running_loop()
        self._empty = asyncio.Event()
        self._empty.set()
        self._hurry = asyncio.Event()
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

    def shut_doors(self) -> None:
        """Accept no more, and let those go who wait for nothing."""
        if self._listener is not None:
            self._listener.close()
        for handshake in list(self.handshakes):
            handshake.abort()
        for connection in list(self.connections):
            connection.close_if_idle()

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
                await self.emptied(left)
            elif self.handshakes:
                await asyncio.sleep(min(left, _HANDSHAKES_EVERY))  # they have no event of their own
            else:
                return

    def hurry(self) -> None:
        """Skip to the last step of an end that is under way."""
        if self._hurry is not None:
            self._hurry.set()

    async def emptied(self, timeout: float) -> bool:
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

    async def dismiss_operators(self) -> None:
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
        await self.cut(self.operators)

    async def cut(self, connections: set[ClientConnection]) -> None:
        """Cut these, and wait until their tasks are over, in bounded time."""
        tasks = [connection.task for connection in connections]
        for connection in list(connections):
            connection.task.cancel()
            connection.transport.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=self.settings.cancel_timeout)

    def _ends(self, connection: Channel) -> bool:
        """Is whoever came in by this connection about to be sent away?"""
        return self._over if connection.operator else self.draining

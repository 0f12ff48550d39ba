"""The accept loop.

Rule 1: it stops accepting *before* descriptors run out, at the connection limit; the kernel's backlog holds the rest.
Rule 2: when they run out all the same (EMFILE, ENFILE, ENOBUFS, ENOMEM), it neither spins nor floods the log: it
        rests, says so once, and goes on when a connection has closed or a moment has passed.
Rule 3: where several processes accept on one socket, who has more connections lets the others go first (balance.py).
Rule 4: the listening socket is ours: it can be handed to another process, and closing the loop does not close it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
from collections.abc import Callable
from typing import Final

from rawstream.flow import kernel
from rawstream.server.balance import Balance
from rawstream.settings import Settings

log = logging.getLogger("rawstream")

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_REST: Final = 0.25
"""Seconds to rest when the system is out of descriptors or memory."""
_AT_ONCE: Final = 64
"""Connections accepted before the streams get their turn."""
_AFTER_YOU: Final = 0.001
"""Seconds that a sibling with fewer connections has to go first; then one is accepted all the same."""


def descriptor_limit() -> int:
    """The soft limit on open descriptors, raised to the hard one where that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass  # not allowed here: the soft limit it is
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


class Listener:
    """Accepts connections on sockets that listen already, and makes protocols of them."""

    def __init__(
        self,
        sockets: list[socket.socket],
        factory: Callable[[socket.socket], asyncio.Protocol],
        settings: Settings,
        *,
        connections: Callable[[], int],
        limit: int,
        balance: Balance | None = None,
    ) -> None:
        """``connections()`` is the number of open ones; accepting pauses at ``limit``.

        ``balance``: other processes accept on the same sockets.
        """
        self.sockets = sockets
        for sock in sockets:
            sock.setblocking(False)  # one that was handed to us may block, and would hold up the loop
        self._factory = factory
        self._settings = settings
        self._connections = connections
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._accepting = False
        self._wanted = False
        self._starting: set[asyncio.Task[object]] = set()
        self._rest: asyncio.TimerHandle | None = None
        self._balance = balance
        self._waiting_turn: asyncio.TimerHandle | None = None
        self._told = False

    def start(self) -> None:
        """Accept from now on."""
        self._wanted = True
        self._resume()
        self._tell()

    def stop(self) -> None:
        """Accept no more. The sockets stay open."""
        self._wanted = False
        for timer in (self._rest, self._waiting_turn):
            if timer is not None:
                timer.cancel()
        self._pause()
        self._tell()

    async def settled(self) -> None:
        """Wait until what was accepted so far is open, or lost. Cancel-safe."""
        while self._starting:
            await asyncio.wait(self._starting)

    def close(self) -> None:
        """Accept no more, and close the sockets."""
        self.stop()
        for sock in self.sockets:
            sock.close()

    def connection_closed(self) -> None:
        """Somebody left: there may be room again."""
        self._tell()
        if self._wanted and not self._accepting and self._waiting_turn is None:
            self._resume()

    @property
    def _taken(self) -> int:
        return self._connections() + len(self._starting)

    def _tell(self) -> None:
        """Let the siblings know how many we have."""
        if self._balance is not None:
            self._balance.tell(self._taken if self._wanted else None)

    def _resume(self) -> None:
        self._rest = None
        if self._wanted and not self._accepting and self._connections() < self._limit:
            self._accepting = True
            for sock in self.sockets:
                self._loop.add_reader(sock.fileno(), self._accept, sock)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            for sock in self.sockets:
                self._loop.remove_reader(sock.fileno())

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            if self._taken >= self._limit:
                self._pause()
                return
            if self._balance is not None and self._balance.ahead(self._taken):
                self._pause()
                self._waiting_turn = self._loop.call_later(_AFTER_YOU, self._take_turn)
                return
            if not self._take(listening):
                return

    def _take_turn(self) -> None:
        """The others had their chance: one connection from each socket, whatever the balance says."""
        self._waiting_turn = None
        self._resume()
        for listening in self.sockets:
            if self._accepting and self._taken < self._limit:
                self._take(listening)

    def _take(self, listening: socket.socket) -> bool:
        """Accept one connection. False: there is none."""
        try:
            sock, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            self._exhausted(error)
            return False
        self._told = False
        self._open(sock)
        self._tell()
        return True

    def _exhausted(self, error: OSError) -> None:
        self._pause()
        if self._rest is None:
            self._rest = self._loop.call_later(_REST, self._resume)
        if not self._told:
            self._told = True
            log.error("cannot accept connections: %s; running streams go on, and accepting is tried again", error)

    def _open(self, sock: socket.socket) -> None:
        try:
            sock.setblocking(False)
            kernel.bound_send_side(sock, notsent_lowat=self._settings.notsent_lowat, sndbuf=self._settings.sndbuf)
        except OSError:  # reset before it was accepted
            sock.close()
            return
        task: asyncio.Task[object] = self._loop.create_task(
            self._loop.connect_accepted_socket(lambda: self._factory(sock), sock), name="accept"
        )
        self._starting.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[object]) -> None:
        self._starting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("a connection was lost while it was accepted: %r", error)
        if self._rest is None:
            # For a moment it counted twice, as starting and as open: the limit may have been seen too early.
            self.connection_closed()


def listen(settings: Settings) -> list[socket.socket]:
    """Listening sockets for the settings' address. Raises OSError with a message that names the address."""
    if settings.uds is not None:
        return [_listen_unix(settings.uds, settings.backlog)]
    return _listen_tcp(settings.host, settings.port, settings.backlog)


def _listen_tcp(host: str, port: int, backlog: int) -> list[socket.socket]:
    where = f"{host}:{port}"
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(f"cannot listen on {where}: {error.strerror}") from error
    sockets: list[socket.socket] = []
    for family, kind, proto, _, address in dict.fromkeys(addresses):
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port, *address[2:]))
            sock.listen(backlog)
        except OSError as error:
            sock.close()
            for other in sockets:
                other.close()
            raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from error
        sock.setblocking(False)
        port = port or sock.getsockname()[1]
        sockets.append(sock)
    return sockets


def listen_at(address: str, backlog: int) -> list[socket.socket]:
    """Listening sockets for ``HOST:PORT``. Raises OSError with a message that names the address."""
    host, _, port = address.rpartition(":")
    return _listen_tcp(host.removeprefix("[").removesuffix("]"), int(port), backlog)


def _listen_unix(path: str, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead_socket(path)
        sock.bind(path)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {path}: {error.strerror or error}") from error
    sock.setblocking(False)
    return sock


def remover(path: str | None) -> Callable[[], None]:
    """A function that removes our Unix socket's file, unless another server has taken the path meanwhile."""
    if path is None:
        return lambda: None
    ours = os.stat(path)

    def remove() -> None:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(path), ours):
                os.unlink(path)

    return remove


def _remove_dead_socket(path: str) -> None:
    """Remove a Unix socket that nobody listens on any more; leave anything else alone."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except OSError:
        return  # not there, or not ours: bind() will say what is wrong
    finally:
        probe.close()

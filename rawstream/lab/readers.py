"""A reader of the lab: a real TCP socket on this machine, with its own receive buffer, that reads at its own rate.

Rule 1: it takes what its rate allows and not a byte more; what it has not taken stays in its kernel, and is counted
        there (``FIONREAD``).
Rule 2: it counts, and keeps nothing: no byte of the answer is held.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import socket
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from rawstream.server.app import App
from rawstream.server.channel import ClientConnection
from rawstream.server.connection import Connection
from rawstream.server.stream import Stream

_MARK: Final = b'"token": '
"""Begins each token's event. In a token's own text its quotes are escaped."""
_AT_ONCE: Final = 64 * 1024
_MOST_AT_ONCE: Final = 1024 * 1024


class Counter:
    """Counts bytes and tokens of an answer as it comes, wherever it is cut into pieces."""

    __slots__ = ("_tail", "bytes", "done", "error", "tokens")

    def __init__(self) -> None:
        self.bytes = 0
        self.tokens = 0
        self.done = False
        """``[DONE]`` has come."""
        self.error = False
        """An in-stream error has come."""
        self._tail = b""

    def feed(self, data: bytes) -> None:
        self.bytes += len(data)
        whole = self._tail + data
        self.tokens += whole.count(_MARK)
        self.done = self.done or b"data: [DONE]" in whole
        self.error = self.error or b'data: {"error"' in whole
        # Enough for a mark that is cut, and too little to count one twice.
        self._tail = whole[-(len(_MARK) - 1) :]


class Reader:
    """One reader, and what is known of the server's side of its connection."""

    def __init__(self, app: App, rcvbuf: int) -> None:
        self._app = app
        self._loop = asyncio.get_running_loop()
        self.sock = socket_for(app, rcvbuf)
        self.counter = Counter()
        self.connection: Connection | None = None
        """The server's end of it."""
        self.stream: Stream | None = None
        """The stream that answers it, once it runs; kept after its end, for its figures."""
        self.outcome: str | None = None
        """How that stream ended."""
        self.open = True
        """Our own socket is open."""
        self.at_end = False
        """The server has ended the answer, or cut it."""
        self.rate: float | None = None
        """Bytes per second; 0 reads nothing; None: as they come."""
        self._allowed = 0.0
        self._listening = False
        self._on_data: Callable[[], None] | None = None

    async def connect(self) -> None:
        """Connect, and find the server's end. Raises OSError. The caller sets a deadline."""
        await self._loop.sock_connect(self.sock, address_of(self._app))
        while self.connection is None:
            found = server_end(self._app, self.sock)
            if isinstance(found, Connection):
                self.connection = found
            else:
                await asyncio.sleep(0.001)  # the server has not accepted it yet

    async def ask(self, path: str, body: bytes) -> None:
        """Send the request."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        await self._loop.sock_sendall(self.sock, head.encode("ascii") + body)

    # --- reading ---------------------------------------------------------------------------------------------

    def set_rate(self, rate: float | None, on_data: Callable[[], None]) -> None:
        """From now on: ``rate`` bytes per second in ``advance()``; None: whatever comes, when it comes."""
        self.rate = rate
        self._allowed = 0.0
        self._on_data = on_data
        listen = rate is None and self.open and not self.at_end
        if listen and not self._listening:
            self._loop.add_reader(self.sock.fileno(), self._readable)
        elif self._listening and not listen:
            self._loop.remove_reader(self.sock.fileno())
        self._listening = listen

    def _readable(self) -> None:
        self._take(_AT_ONCE)
        if self._on_data is not None:
            self._on_data()

    def advance(self, passed: float) -> None:
        """Take what ``passed`` seconds allow."""
        if not self.rate or not self.open or self.at_end:
            return
        # What could not be used is not saved up for more than a moment: a reader does not catch up in a burst.
        self._allowed = min(self._allowed + self.rate * passed, max(1.0, self.rate * 0.25), _MOST_AT_ONCE)
        while self._allowed >= 1:
            taken = self._take(min(int(self._allowed), _AT_ONCE))
            if not taken:
                break
            self._allowed -= taken

    def _take(self, most: int) -> int:
        try:
            data = self.sock.recv(most)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            data = b""
        if data:
            self.counter.feed(data)
        else:
            self.at_end = True
            self._stop_listening()
        return len(data)

    def waiting(self) -> int:
        """Bytes in our own kernel, not taken yet."""
        if not self.open:
            return 0
        value = array.array("i", [0])
        try:
            fcntl.ioctl(self.sock.fileno(), termios.FIONREAD, value)
        except OSError:
            return 0
        return value[0]

    # --- the end ---------------------------------------------------------------------------------------------

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self.sock.fileno())

    def close(self) -> None:
        """Leave, as a closed tab does. Idempotent."""
        if self.open:
            self._stop_listening()
            self.open = False
            self.sock.close()


def socket_for(app: App, rcvbuf: int = 0) -> socket.socket:
    """One that can be connected to the server. ``rcvbuf``: ``SO_RCVBUF``; 0 leaves it to the kernel."""
    if app.settings.uds is not None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if os.name == "posix" and hasattr(socket, "SO_PEERCRED"):
            sock.bind(b"")  # Linux gives it a name of its own, by which the server's end can be told
    else:
        family = app.sockets[0].family if app.sockets else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
    if rcvbuf:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return sock


def address_of(app: App) -> Any:
    """Where the server listens, as somebody on this machine reaches it. Raises ConnectionError: it does no more."""
    if app.settings.uds is not None:
        return app.settings.uds
    if not app.sockets:
        raise ConnectionError("the server accepts no more connections")
    address = app.sockets[0].getsockname()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])
    return (host, *address[1:])


def server_end(app: App, sock: socket.socket) -> ClientConnection | None:
    """The server's end of a connection of ours; None: it has not accepted it yet."""
    own = sock.getsockname()
    own = own[:2] if isinstance(own, tuple) else own
    for connection in app.connections:
        peer = connection.transport.get_extra_info("peername")
        if (peer[:2] if isinstance(peer, tuple) else peer) == own:
            return connection
    return None

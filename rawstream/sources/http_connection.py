"""One outgoing connection: dialled with a bounded receive buffer, read no faster than it is asked to.

Rule 1: every place where bytes can wait on this side is bounded: the kernel's receive buffer (``SO_RCVBUF``, set
        *before* connect, since the window is negotiated there), TLS's buffer, one read of the socket, and the
        ``Inlet``, which pauses the transport. Nobody reads, nothing is taken.
Rule 2: nobody waits without a deadline, and a deadline costs an attribute: it is set before a wait, not around it.
Rule 3: a connection is broken off at once (``abort``); there is nothing to flush that anyone still wants.
"""

from __future__ import annotations

import asyncio
import collections
import ipaddress
import os
import socket
import ssl
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from rawstream.errors import UpstreamIdle, UpstreamUnreachable
from rawstream.flow.deadlines import Sweeper
from rawstream.wire.http1_client import ClientCodec

_MAX_SEGMENT: Final = 4096
"""Bytes in a TCP segment that we ask the peer for, where our receive buffer is small."""


class Origin(NamedTuple):
    """Where connections lead: the key of the pool."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """The ``Host`` field's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"


class Inlet(asyncio.BufferedProtocol):
    """The reading side of a connection: what has arrived and nobody has asked for yet. One reader.

    A ``StreamReader`` of few words: it reads the socket through a small buffer (a plain protocol's reads take up to
    256 KiB at a time), pauses the transport early, and costs a relayed token 3 µs less.
    """

    def __init__(self, buffer: memoryview, loop: asyncio.AbstractEventLoop) -> None:
        """``buffer``: its size is that of one read. Reading pauses at half of it; one read more may be held."""
        self.held = 0
        """Bytes taken from the transport and not yet read."""
        self.peak = 0
        """The most that ``held`` ever was."""
        self.sink: Callable[[bytes], None] | None = None
        """Called with what arrives, b'' at the end of the connection: for a connection that nobody reads."""
        self._buffer = buffer
        self._limit = len(buffer) // 2
        self._loop = loop
        self._pieces: collections.deque[bytes] = collections.deque()
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._eof = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    # --- what the transport tells us

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        piece = bytes(self._buffer[:nbytes])
        if self.sink is not None:
            self.sink(piece)
            return
        self.held += nbytes
        if self.held > self.peak:
            self.peak = self.held
        self._pieces.append(piece)
        if self.held >= self._limit and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._end()
        else:
            self.set_exception(exc)
            if self.sink is not None:
                self.sink(b"")

    def _end(self) -> None:
        if not self._eof:
            self._eof = True
            self._wake()
            if self.sink is not None:
                self.sink(b"")

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- what the reader asks

    @property
    def waiting(self) -> bool:
        """Does somebody wait for more?"""
        return self._waiter is not None

    def set_exception(self, error: Exception) -> None:
        """Fail the present read, and every further one once what is held has been read."""
        if self._error is None:
            self._error = error
        self._wake()

    def at_eof(self) -> bool:
        """Is everything read that will ever come?"""
        return not self._pieces and (self._eof or self._error is not None)

    def take_nowait(self) -> bytes | None:
        """What one read of the socket gave; b'' at the end of the connection; None: nothing yet, await ``more()``.

        Raises the error that ended the connection.
        """
        if self._pieces:
            piece = self._pieces.popleft()
            self.held -= len(piece)
            if self._paused and self.held < self._limit:
                self._paused = False
                if self._transport is not None:
                    self._transport.resume_reading()
            return piece
        if self._error is not None:
            raise self._error
        return b"" if self._eof else None

    def more(self) -> asyncio.Future[None]:
        """Done when ``take_nowait()`` has an answer. May be cancelled."""
        self._waiter = self._loop.create_future()
        return self._waiter

    async def take(self) -> bytes:
        """``take_nowait()``, waited for. Cancel-safe."""
        while (data := self.take_nowait()) is None:
            await self.more()
        return data


class Connection:
    """An open connection with its codec. Made by ``dial``; used by one exchange at a time."""

    def __init__(self, origin: Origin, inlet: Inlet, transport: asyncio.Transport) -> None:
        self.origin = origin
        self.inlet = inlet
        self.codec = ClientCodec()
        self.used = False
        """Has it carried an exchange before? Then it may have been closed under us, which is nobody's fault."""
        self._transport = transport
        self._deadline = Sweeper.of(asyncio.get_running_loop()).deadline(self._overdue)
        self._on_overdue: Callable[[], None] | None = None
        self._why = ""
        self._while_waiting = False

    def write(self, data: bytes) -> None:
        """Send; what the kernel does not take waits in the transport."""
        self._transport.write(data)

    @property
    def sent(self) -> bool:
        """Has the kernel taken all that was written?"""
        return self._transport.get_write_buffer_size() == 0

    @property
    def lost(self) -> bool:
        """Is it closed, or closing, on either side?"""
        return self._transport.is_closing() or self.inlet.at_eof()

    @property
    def tls_version(self) -> str | None:
        """``TLSv1.3``; None without TLS."""
        session = self._transport.get_extra_info("ssl_object")
        version: str | None = None if session is None else session.version()
        return version

    def set_deadline(self, at: float, why: str, *, while_waiting: bool = False) -> None:
        """Fail the present and every further read with ``UpstreamIdle(why)`` at ``at`` (the loop's clock, seconds).

        ``while_waiting``: only if a read waits at that moment. Then it need not be cleared when the read is over: a
        paused stream does not time out.
        """
        self._why = why
        self._on_overdue = None
        self._while_waiting = while_waiting
        self._deadline.set(at)

    def clear_deadline(self) -> None:
        """No deadline while nobody waits."""
        self._deadline.clear()

    def call_at(self, at: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` at ``at`` instead: for a connection that nobody reads."""
        self._on_overdue = callback
        self._deadline.set(at)

    def abort(self) -> None:
        """Break the connection off; what is buffered in it is thrown away. Idempotent."""
        self._deadline.close()
        self.inlet.sink = None
        self._transport.abort()

    def _overdue(self) -> None:
        if self._on_overdue is not None:
            self._on_overdue()
            return
        if self._while_waiting and not self.inlet.waiting:
            return
        self.inlet.set_exception(UpstreamIdle(self._why))
        self.abort()


def read_buffer(size: int, shared: memoryview | None) -> memoryview:
    """A buffer to read sockets through: ``shared``, where that can be.

    The loops of Unix fill a buffer and hand it over in one go, so that all connections of a loop can share one
    (8 KiB less for each). Windows' proactor keeps hold of it while it waits.
    """
    if shared is not None and sys.platform != "win32":
        return shared
    return memoryview(bytearray(size))


async def dial(
    origin: Origin, *, timeout: float, rcvbuf: int, buffer: memoryview, tls: ssl.SSLContext | None
) -> Connection:
    """Connect to ``origin``, over TLS where ``tls`` is given, within ``timeout`` seconds in all.

    ``rcvbuf`` is ``upstream_rcvbuf`` in bytes. The socket is read through ``buffer`` (``read_buffer``), whose size
    is that of one read. Tries all addresses of the host, in order; each has an equal part of what time is left, so that
    one that leads nowhere (IPv6 that is half there) leaves some for the next. Raises UpstreamUnreachable. Cancel-safe.
    """
    where = f"{origin.host}:{origin.port}"
    try:
        async with asyncio.timeout(timeout):
            sock = await _connect(origin, rcvbuf, timeout)
            try:
                return await _wrap(sock, origin, buffer, tls)
            except BaseException:
                sock.close()
                raise
    except TimeoutError as error:
        raise UpstreamUnreachable(
            f"the upstream could not be reached within {timeout:g} s", detail=f"{where}: {error}"
        ) from None
    except ssl.SSLCertVerificationError as error:
        untrusted = UpstreamUnreachable(
            f"the upstream's certificate is not trusted: {error.verify_message}", detail=where
        )
        untrusted.lasting = True
        raise untrusted from None
    except ssl.SSLError as error:
        reason = (error.reason or "broken").replace("_", " ").lower()
        raise UpstreamUnreachable(f"TLS with the upstream failed: {reason}", detail=f"{where}: {error}") from None
    except (OSError, EOFError) as error:
        said = _spoken(error)
        raise UpstreamUnreachable(f"the upstream could not be reached: {said}", detail=f"{where}: {error}") from None


def _spoken(error: Exception) -> str:
    """The system's words for an error, without the address that some loops add to them."""
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number > 0:
        return os.strerror(number)
    return (error.strerror if isinstance(error, OSError) else None) or "the connection was closed"


async def _connect(origin: Origin, rcvbuf: int, timeout: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    due = loop.time() + timeout
    failure: OSError = OSError("the name has no address")
    addresses = await _addresses(origin, loop)
    for number, (family, address) in enumerate(addresses):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if rcvbuf:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
                # Loopback's 64 KiB segments are larger than such a window: the sender then waits for its probe
                # timer, 200 ms at a time. Ordinary networks have smaller segments anyway.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _MAX_SEGMENT)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout((due - loop.time()) / (len(addresses) - number)):
                await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


async def _addresses(origin: Origin, loop: asyncio.AbstractEventLoop) -> list[tuple[int, Any]]:
    """Socket families and addresses. An address needs no look-up (which costs a thread's time)."""
    try:
        literal = ipaddress.ip_address(origin.host)
    except ValueError:
        found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]
    family = socket.AF_INET if literal.version == 4 else socket.AF_INET6
    return [(family, (origin.host, origin.port))]


async def _wrap(sock: socket.socket, origin: Origin, buffer: memoryview, tls: ssl.SSLContext | None) -> Connection:
    loop = asyncio.get_running_loop()
    read_limit = len(buffer)
    inlet = Inlet(buffer, loop)
    transport, _ = await loop.create_connection(
        lambda: inlet, sock=sock, ssl=tls, server_hostname=origin.host if tls is not None else None
    )
    if tls is not None:
        # TLS keeps a buffer of its own between the socket and the reader, 256 KiB unless told otherwise.
        set_limits = getattr(transport, "set_read_buffer_limits", None)
        if set_limits is not None:
            set_limits(high=read_limit, low=read_limit // 2)
    return Connection(origin, inlet, transport)

"""The asyncio side of one accepted socket: what the transport says, and what is done to it.

Rule 1: what the transport says (marks, loss) goes to the gate, and from nowhere else.
Rule 2: reading never stops while an answer streams, or the client could not be seen to leave. What it sends
        meanwhile is kept for the next request, up to ``surplus`` bytes; who sends more is cut.
Rule 3: all waits share one ``Deadline``, since a connection waits for one thing at a time.

It is a ``Protocol`` of our own with a plain ``StreamReader`` and ``StreamWriter`` on it; the wait for the client is
``StreamWriter.drain()``, which ends in the gate (``_drain_helper``).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Final, cast

from rawstream.errors import ClientDisconnected, ClientMisbehaved, ClientStalled, RawstreamError
from rawstream.flow import kernel
from rawstream.flow.deadlines import Deadline, Sweeper
from rawstream.flow.gate import Gate, GateState
from rawstream.flow.watch import Finding, StreamWatch
from rawstream.settings import Settings

READ: Final = 16 * 1024
"""Most bytes taken from the reader at a time."""
_DISCARD: Final = 16 * 1024 * 1024
"""Bytes of an unwanted request body that are read and thrown away, for ``flush_timeout`` at most, so that the refusal
reaches its sender (RFC 9112 §9.6). After 256 KiB, HAProxy lost every second 413 to a body of 9 MB, and nginx made it a
502: they still write when the reset comes."""


_SMALL: Final = 512
"""Bytes. Shorter writes are counted while they wait in the transport: a token at a time, 70 of them make 2 KiB."""


class SecuredTransport(asyncio.Transport):
    """A transport of plaintext, over TLS: what a link must know of it besides."""

    __slots__ = ("written",)

    written: int
    """Bytes of ciphertext given to the socket, in all."""

    def write_sealed(self, sock: socket.socket, data: bytes) -> None:
        """Encrypt ``data`` and write it so that the kernel appends nothing to it."""
        raise NotImplementedError


def nothing() -> None:
    """No deadline is set. (A bound method would be another object each time it is looked up.)"""


class Link(asyncio.Protocol):
    """The protocol object of one accepted socket."""

    __slots__ = (
        "_accepted",
        "_close_waiter",
        "_deadline",
        "_discarded",
        "_eof",
        "_lowat",
        "_marks",
        "_marks_lowered",
        "_most_small_writes",
        "_on_deadline",
        "_seal",
        "_small_writes",
        "_unread",
        "busy_seen",
        "gate",
        "interrupt",
        "loop",
        "reader",
        "rwnd_seen",
        "secured",
        "settings",
        "streaming",
        "transport",
        "undelivered",
        "writer",
        "written",
    )

    transport: asyncio.Transport
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    _deadline: Deadline

    def __init__(
        self, settings: Settings, loop: asyncio.AbstractEventLoop, accepted: socket.socket | None = None
    ) -> None:
        """``accepted``: the socket itself, where the loop's transport does not give it."""
        self.settings = settings
        self.loop = loop
        self._accepted = accepted
        self._lowat = self._mark_to_seal_at()
        self._small_writes = 0
        self._marks: tuple[int, int | None] = (settings.write_high, settings.write_low)
        self._most_small_writes = max(4, settings.write_high // _SMALL)
        self._marks_lowered = False
        self._seal = False
        """The kernel holds what it may: the next write must be one that nothing is appended to."""
        self.gate = Gate()
        self.interrupt: Callable[[RawstreamError], object] | None = None
        """Ends the stream that runs on this connection, if one does."""
        self.streaming = False
        self.written = 0
        """Bytes given to the transport, in all."""
        self.rwnd_seen = 0.0
        """``rwnd_limited`` (seconds) at the end of the last stream that waited."""
        self.busy_seen = 0.0
        """The same of ``busy``."""
        self.secured: SecuredTransport | None = None
        """The TLS that this link speaks through, if it does; it is the transport then."""
        self.undelivered: int | None = None
        """Bytes that the client's kernel had not taken when the connection was lost during a stream."""
        self._unread = 0
        self._discarded = -1  # -1: not discarding
        self._eof = False
        self._close_waiter: asyncio.Future[None] | None = None
        self._on_deadline: Callable[[], object] = nothing

    # --- what the transport tells us ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        settings = self.settings
        self.transport = cast(asyncio.Transport, transport)
        self.restore_marks()
        self.reader = asyncio.StreamReader(limit=max(settings.surplus, READ) // 2, loop=self.loop)
        self.reader.set_transport(transport)
        self.writer = asyncio.StreamWriter(self.transport, self, self.reader, self.loop)
        self._deadline = Sweeper.of(self.loop).deadline(self._deadline_due)

    def secure(self, transport: SecuredTransport) -> None:
        """Begin, on a transport that speaks TLS: ``connection_made``, with what else must be known."""
        self.secured = transport
        self.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._discarded >= 0:
            self._discarded += len(data)
            if self._discarded > _DISCARD:
                self.transport.abort()
            return
        self._unread += len(data)
        if self.streaming and self.kept > self.settings.surplus:
            self.lose(ClientMisbehaved(f"the client sent more than {self.settings.surplus} bytes during a stream"))
            return
        self.reader.feed_data(data)

    def eof_received(self) -> bool:
        self._eof = True
        if self._discarded >= 0:
            self.transport.abort()
            return True
        self.reader.feed_eof()
        if self.streaming:
            self.leave_on_half_close()
        return True  # the write side stays open: a request may be complete, and its answer owed

    def stream_begins(self, interrupt: Callable[[RawstreamError], object]) -> None:
        """From now on the loss of the connection, a FIN or surplus bytes end the stream, through ``interrupt``."""
        self.interrupt = interrupt
        self.streaming = True
        if self.gate.reason is not None:
            interrupt(self.gate.reason)
        elif self.kept > self.settings.surplus:
            self.lose(ClientMisbehaved(f"the client sent more than {self.settings.surplus} bytes before its stream"))
        else:
            self.transport.resume_reading()  # the reader may have paused it before the stream began
            self.leave_on_half_close()

    def stream_ends(self) -> None:
        """The stream is over; the connection waits for nothing. Idempotent."""
        self.streaming = False
        self.interrupt = None
        self.clear_deadline()

    def leave_on_half_close(self) -> None:
        """A FIN seen while (or before) a stream runs: the client has gone, unless the settings say it still reads."""
        if self._eof and self.settings.half_close == "leave":
            self.lose(ClientDisconnected("the client closed its side"))

    def pause_writing(self) -> None:
        self.gate.pause()

    def resume_writing(self) -> None:
        if self._marks_lowered:
            self._marks_lowered = False
            self.restore_marks()
        self.gate.resume()

    def _mark_to_seal_at(self) -> int:
        """``TCP_NOTSENT_LOWAT`` as it was set, where the kernel has to be reminded of it; else 0."""
        tcp = self._accepted is not None and self._accepted.family in (socket.AF_INET, socket.AF_INET6)
        return self.settings.notsent_lowat if tcp and kernel.LINUX else 0

    def use(self, settings: Settings) -> None:
        """From now on these settings. The socket's own options are the caller's to set."""
        self.settings = settings
        self._lowat = self._mark_to_seal_at()
        self.set_marks()

    def set_marks(self, high: int | None = None, low: int | None = None) -> None:
        """Write marks of one's own, in bytes; without any those of the settings."""
        settings = self.settings
        self._marks = (settings.write_high, settings.write_low) if high is None else (high, low)
        self._most_small_writes = max(4, self._marks[0] // _SMALL)
        self.restore_marks()

    def restore_marks(self) -> None:
        """Tell the transport of the marks."""
        high, low = self._marks
        self.transport.set_write_buffer_limits(high=high, low=low)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(ClientDisconnected("the client closed the connection"))
        self._deadline.close()
        if not self._eof:
            self._eof = True
            self.reader.feed_eof()
        if self._close_waiter is not None and not self._close_waiter.done():
            self._close_waiter.set_result(None)

    def _drain_helper(self) -> Coroutine[Any, Any, None]:
        """What ``StreamWriter.drain()`` waits for."""
        return self.gate.wait_open()

    def _get_close_waiter(self, stream: asyncio.StreamWriter) -> asyncio.Future[None]:
        """What ``StreamWriter.wait_closed()`` waits for."""
        if self._close_waiter is None:
            self._close_waiter = self.loop.create_future()
            if self.transport.is_closing() and self.gate.reason is not None:
                self._close_waiter.set_result(None)
        return self._close_waiter

    # --- ends ------------------------------------------------------------------------------------------------

    def _lost(self, reason: RawstreamError) -> None:
        if self.streaming and self.undelivered is None:
            self.undelivered = self.unwritten()[1]  # now: once the socket is closed nobody can tell
        self.gate.lose(reason)
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None:
            interrupt(self.gate.reason or reason)

    def lose(self, reason: RawstreamError) -> None:
        """Cut the connection now, for ``reason``. What is buffered is thrown away."""
        self._lost(reason)
        self.transport.abort()

    def reset(self) -> None:
        """Cut the connection with a reset, so that a body delimited by its close is not taken for whole."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    # --- deadlines -------------------------------------------------------------------------------------------

    def _deadline_due(self) -> None:
        self._on_deadline()

    def set_deadline(self, at: float, callback: Callable[[], object]) -> None:
        """``callback`` runs at ``at`` (monotonic seconds), in place of what was set before."""
        self._on_deadline = callback
        self._deadline.set(at)

    def clear_deadline(self) -> None:
        self._on_deadline = nothing
        self._deadline.clear()

    # --- levels ----------------------------------------------------------------------------------------------

    @property
    def accepted(self) -> socket.socket | None:
        """The socket itself, where it is known."""
        return self._accepted

    @property
    def kept(self) -> int:
        """Bytes that the client sent and nobody has asked for yet."""
        return self._unread

    @property
    def sock(self) -> kernel.SocketLike | None:
        """Its own socket, which the kernel's figures are of; None: there is none, or it is shared with others."""
        return self.peer_sock

    @property
    def peer_sock(self) -> kernel.SocketLike | None:
        """The socket that the client is at the other end of, shared with others or not."""
        return cast("kernel.SocketLike | None", self.transport.get_extra_info("socket"))

    def kernel_queue(self) -> kernel.KernelQueue | None:
        """What the kernel still holds for the client."""
        sock = self.sock
        return None if sock is None else kernel.send_queue(sock.fileno())

    def unwritten(self) -> tuple[int, int]:
        """Bytes the client's kernel has (taken, not yet taken) of all that was written."""
        queue = self.kernel_queue()
        waiting = self.transport.get_write_buffer_size() + (queue.total if queue else 0)
        written = self.written if self.secured is None else self.secured.written
        return written - waiting, waiting

    @property
    def room(self) -> int:
        """Bytes that may be written before permission must be asked for again; 0: there is none now."""
        if self.gate.state is not GateState.OPEN:
            return 0
        buffered = self.transport.get_write_buffer_size()
        if self._lowat and not buffered and self._accepted is not None:
            self._seal = kernel.unsent(self._accepted.fileno()) >= self._lowat
        return max(1, self._marks[0] - buffered)

    def write(self, data: bytes) -> None:
        """Give ``data`` to the transport. The caller has looked at the gate."""
        self.written += len(data)
        if self._seal:
            data = self._write_sealed(data)
        self.writer.write(data)
        if not self.transport.get_write_buffer_size():
            self._small_writes = 0
        elif len(data) < _SMALL:
            self._small_writes += 1
            if self._small_writes >= self._most_small_writes:
                # Each write that waits costs the transport 800 bytes more than it holds. That is enough of them:
                # with a high-water mark of 0 the transport says "pause" now, and "resume" when it is empty.
                self._small_writes = 0
                if self.gate.state is GateState.OPEN:
                    self._marks_lowered = True
                    self.transport.set_write_buffer_limits(high=0)

    def _write_sealed(self, data: bytes) -> bytes:
        """Write past the transport, while it holds nothing, with the seal that it has no way to ask for."""
        self._seal = False
        if self._accepted is None or self.transport.get_write_buffer_size():
            return data
        if self.secured is not None:
            self.secured.write_sealed(self._accepted, data)
            return b""
        try:
            return data[kernel.send_sealed(self._accepted, data) :]
        except OSError:
            return data  # broken: the transport will find out by itself, and say so

    # --- flushing ---------------------------------------------------------------------------------------------

    async def flush(self, *, timeout: float | None = None) -> None:
        """Wait until the kernel has all that was written.

        With ``timeout`` (seconds): cut when that time is over. Without: cut a client that takes nothing for
        ``stall_timeout``. Raises the reason of the loss.
        """
        if self.transport.get_write_buffer_size() == 0:
            self.gate.check()
            return
        if timeout is not None:
            reason = ClientStalled(f"the end of the answer was not taken within {timeout:g} s")
            self.set_deadline(monotonic() + timeout, lambda: self.lose(reason))
        elif self._on_deadline is nothing:
            self._watch_flush()
        self.transport.set_write_buffer_limits(high=0)
        try:
            await self.writer.drain()
        finally:
            if self.gate.reason is None:  # a closed transport takes no limits (uvloop raises RuntimeError)
                self.restore_marks()
            if timeout is not None or self.interrupt is None:
                self.clear_deadline()

    def _watch_flush(self) -> None:
        stall = self.settings.stall_timeout
        watch = StreamWatch(monotonic(), heartbeat=0, stall_timeout=stall, stream_timeout=float("inf"))

        def look() -> None:
            now = monotonic()
            taken, waiting = self.unwritten()
            if watch.look(now, taken=taken, waiting=waiting) is Finding.STALLED:
                self.lose(ClientStalled(f"the client took nothing for {stall:g} s"))
            else:
                self.set_deadline(watch.next_look(now), look)

        look()

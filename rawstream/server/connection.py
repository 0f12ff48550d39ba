"""One client connection: bytes in, requests out, one task.

Rule 1: one task per connection reads requests and answers them, one after the other. Pipelined requests wait.
Rule 2: every wait has a deadline: for a head, for a body, between requests, for the end to leave.
Rule 3: a connection is closed politely (flush, FIN, let the peer read what it was told), but never without end.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Final, Protocol

from rawstream.errors import ProtocolViolation, RawstreamError
from rawstream.limits.users import User
from rawstream.server.link import READ, Link, nothing
from rawstream.settings import Settings
from rawstream.wire.http1 import RequestHead, ServerCodec

_BEFORE_THE_CUT: Final = 0.1
"""Seconds between an in-stream error and the cut. Chromium drops what its page has not read when a body is cut: without
a pause 17 of 20 errors were lost, with 2 ms none."""


class Host(Protocol):
    """What a connection needs of the server it belongs to."""

    settings: Settings
    draining: bool

    def connection_opened(self, connection: Connection) -> None: ...

    def connection_closed(self, connection: Connection) -> None: ...

    def answer(self, connection: Connection, head: RequestHead) -> Coroutine[Any, Any, bool]:
        """Answer one request. True when the connection may serve another one."""
        ...

    def refusal(self, connection: Connection, error: ProtocolViolation) -> bytes:
        """The answer to bytes that never became a request."""
        ...


class _Quiet(Exception):
    """Close without a word: an idle connection's time is up."""


class Connection(Link):
    """A link that speaks HTTP/1.1."""

    __slots__ = ("_cut", "_served", "codec", "host", "operator", "task", "user")

    codec: ServerCodec
    task: asyncio.Task[None]

    def __init__(
        self,
        host: Host,
        loop: asyncio.AbstractEventLoop,
        accepted: socket.socket | None = None,
        *,
        operator: bool = False,
    ) -> None:
        """``operator``: it came in where only the operator comes in (``settings.admin``)."""
        super().__init__(host.settings, loop, accepted)
        self.host = host
        self.operator = operator
        self.user: User | None = None
        """Whose it is, where that is known without a key: the lab's own readers ask for who started them."""
        self._served = 0
        self._cut: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        settings = self.settings
        self.codec = ServerCodec(
            max_head=settings.max_head,
            max_request_line=settings.max_request_line,
            max_fields=settings.max_fields,
            max_body=settings.max_body,
        )
        self.host.connection_opened(self)
        self.task = self.loop.create_task(self._serve(), name="connection")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.host.connection_closed(self)

    @property
    def kept(self) -> int:
        """Bytes that the client sent and that belong to no request yet."""
        return self._unread + self.codec.buffered

    async def _serve(self) -> None:
        try:
            while True:
                answering = await self._next_answer()
                if answering is None or not await answering:
                    break
                self._served += 1
        except _Quiet:
            pass
        except ProtocolViolation as error:
            if self.gate.reason is None:
                self.write(self.host.refusal(self, error))
        except RawstreamError:
            pass  # the gate's reason: whoever lost the connection has told why
        finally:
            await self._close()

    async def read_some(self) -> bytes:
        """Bytes from the client; b'' at the end. Raises what a deadline set."""
        data = await self.reader.read(READ)
        self._unread -= len(data)
        return data

    async def _next_answer(self) -> Coroutine[Any, Any, bool] | None:
        """The next request, already on its way to be answered (its head belongs to the answer, not to this task)."""
        head = await self._read_head()
        return None if head is None else self.host.answer(self, head)

    async def _read_head(self) -> RequestHead | None:
        codec = self.codec
        head = codec.next_head()
        if head is not None:
            return head
        settings = self.settings
        waiting_for_first_byte = not codec.buffered
        if self._served and waiting_for_first_byte:
            self.set_deadline(monotonic() + settings.keepalive_timeout, self._idle_too_long)
        else:
            self._set_head_deadline()
        while True:
            if self.host.draining and not self.operator and not codec.buffered and not self._unread:
                return None
            data = await self.read_some()
            codec.receive(data)
            head = codec.next_head()
            if head is not None:
                self.clear_deadline()
                return head
            if not data:
                return None
            if waiting_for_first_byte and codec.buffered:
                waiting_for_first_byte = False
                self._set_head_deadline()

    def _set_head_deadline(self) -> None:
        self.set_deadline(monotonic() + self.settings.head_timeout, self._head_too_late)

    def expect_body(self) -> None:
        """The request's body must be complete within ``body_timeout``; the read fails otherwise."""
        self.set_deadline(monotonic() + self.settings.body_timeout, self._body_too_late)

    def _idle_too_long(self) -> None:
        if not self._unread:  # else a request has come after all, in this very turn of the loop
            self.reader.set_exception(_Quiet())

    def _head_too_late(self) -> None:
        self._too_late("head", self.settings.head_timeout)

    def _body_too_late(self) -> None:
        self._too_late("body", self.settings.body_timeout)

    def _too_late(self, what: str, timeout: float) -> None:
        error = ProtocolViolation(f"the request {what} did not arrive within {timeout:g} s", status=408)
        self.reader.set_exception(error)

    def close_if_idle(self) -> None:
        """The server drains: a connection between two requests has nothing more to wait for."""
        codec = self.codec
        between = codec.body_complete and not codec.buffered and not self._unread
        if between and not self.streaming and self.interrupt is None and self._on_deadline is not nothing:
            self.reader.set_exception(_Quiet())

    def cut_in_a_moment(self, cut: Callable[[], None]) -> None:
        """The connection ends with ``cut()``, a moment after what was written last; its stream is over now."""
        self._cut = cut

    async def _until_closed(self, seconds: float, otherwise: Callable[[], None]) -> None:
        """Wait until the peer has closed the connection, or ``otherwise()`` has closed it after ``seconds``."""
        waiter = self._get_close_waiter(self.writer)
        self.set_deadline(monotonic() + seconds, otherwise)
        await waiter

    async def _close(self) -> None:
        """Flush, say FIN, let the peer read what it was told, and go: never longer than ``flush_timeout``."""
        timeout = self.settings.flush_timeout
        try:
            if self.gate.reason is None and not self.transport.is_closing():
                await self.flush(timeout=timeout)
                if self._cut is not None:
                    await self._until_closed(_BEFORE_THE_CUT, self._cut)
                elif not self._eof and (self._unread or self.codec.buffered or not self.codec.body_complete):
                    # Closing with unread bytes would reset the connection, and take the answer with it.
                    self._discarded = self._unread
                    self.transport.write_eof()
                    self.reader.feed_eof()
                    self.transport.resume_reading()  # paused, neither the rest nor the FIN would be seen
                    await self._until_closed(timeout, self.transport.abort)
        except (RawstreamError, OSError):  # OSError: asyncio's write_eof() on a socket that the peer has reset
            pass  # lost meanwhile: there is nobody to be polite to
        finally:
            self._deadline.close()
            if self.transport.get_write_buffer_size():
                self.transport.abort()  # close() would wait for ever behind a peer that takes nothing
            else:
                self.transport.close()

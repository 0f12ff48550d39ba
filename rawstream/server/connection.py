"""One client connection: bytes in, requests out, one task.

Rule 1: one task per connection reads requests and answers them, one after the other. Pipelined requests wait.
Rule 2: every wait has a deadline: for a head, for a body, between requests, for the end to leave.
Rule 3: a connection is closed politely (flush, FIN, let the peer read what it was told), but never without end.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from time import monotonic
from typing import Any, Final, Protocol

from rawstream.errors import ProtocolViolation, RawstreamError
from rawstream.server.channel import Channel, Host
from rawstream.server.link import nothing
from rawstream.wire.http1 import RequestHead, ServerCodec

BEFORE_THE_CUT: Final = 0.1
"""Seconds between what a failing stream says last and the cut. Chromium drops what its page has not read when a body is
cut: without a pause 17 of 20 in-stream errors were lost, with 2 ms none; and the last tokens of plain text."""


class _Quiet(Exception):
    """Close without a word: the time of a connection that asks for nothing is up."""


class Http1Host(Host, Protocol):
    """A server that speaks HTTP/2, too."""

    def speaks_http2(self, connection: Connection, first: bytes) -> None:
        """``connection`` began with ``first``, which is HTTP/2's: from now on it is somebody else's."""
        ...


_PRI: Final = b"PRI"
"""HTTP/2 begins so, and no method of HTTP/1.1 does (RFC 9113 §3.4)."""


class Connection(Channel):
    """A link that speaks HTTP/1.1."""

    __slots__ = ("_begun", "_codec", "_first", "_handed_over", "_served")

    host: Http1Host

    def __init__(
        self,
        host: Http1Host,
        loop: asyncio.AbstractEventLoop,
        accepted: socket.socket | None = None,
        *,
        operator: bool = False,
    ) -> None:
        super().__init__(host, loop, accepted, operator=operator)
        self._served = 0
        self._begun = False
        """Is it known which HTTP is spoken?"""
        self._first = b""
        self._handed_over = False
        settings = host.settings
        self._codec = ServerCodec(
            max_head=settings.max_head,
            max_request_line=settings.max_request_line,
            max_fields=settings.max_fields,
            max_body=settings.max_body,
        )

    @property
    def codec(self) -> ServerCodec:
        return self._codec

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.host.connection_opened(self)
        self.task = self.loop.create_task(self._serve(), name="connection")

    def data_received(self, data: bytes) -> None:
        if not self._begun:
            data = self._first + data
            if len(data) < len(_PRI) and _PRI.startswith(data):
                self._first = data
                return
            self._begun, self._first = True, b""
            if data.startswith(_PRI) and self.settings.http2 is not False:
                self._handed_over = True
                self._deadline.close()
                self.task.cancel()
                self.host.speaks_http2(self, data)
                return
        super().data_received(data)

    def eof_received(self) -> bool:
        if self._first:
            self._begun = True
            super().data_received(self._first)
            self._first = b""
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.host.connection_closed(self)

    @property
    def kept(self) -> int:
        """Bytes that the client sent and that belong to no request yet."""
        return self._unread + self._codec.buffered

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

    async def _next_answer(self) -> Coroutine[Any, Any, bool] | None:
        """The next request, already on its way to be answered (its head belongs to the answer, not to this task)."""
        head = await self._read_head()
        return None if head is None else self.host.answer(self, head)

    async def _read_head(self) -> RequestHead | None:
        codec = self._codec
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

    def _idle_too_long(self) -> None:
        if not self._unread:  # else a request has come after all, in this very turn of the loop
            self.reader.set_exception(_Quiet())

    def _head_too_late(self) -> None:
        if self._codec.buffered or self._unread or self._first:
            self._too_late("head", self.settings.head_timeout)
        else:
            # Nothing was asked, so nothing is answered: browsers connect ahead of need, and would take a 408 that
            # waits there for the answer to their next request.
            self.reader.set_exception(_Quiet())

    def close_if_idle(self) -> None:
        """The server drains: a connection between two requests has nothing more to wait for."""
        codec = self._codec
        between = codec.body_complete and not codec.buffered and not self._unread
        if between and not self.streaming and self.interrupt is None and self._on_deadline is not nothing:
            self.reader.set_exception(_Quiet())

    async def _close(self) -> None:
        """Flush, say FIN, let the peer read what it was told, and go: never longer than ``flush_timeout``."""
        if self._handed_over:
            return
        timeout = self.settings.flush_timeout
        try:
            if self.gate.reason is None and not self.transport.is_closing():
                await self.flush(timeout=timeout)
                if self._cut is not None:
                    await self._until_closed(BEFORE_THE_CUT, self._cut)
                elif not self._eof and (self._unread or self._codec.buffered or not self._codec.body_complete):
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

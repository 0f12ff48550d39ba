"""One raw connection of ``rawstream chaos``, and one answer on it.

Rule 1: rawstream's own codec reads the requests; what is written is written by hand, so that anything can be broken.
Rule 2: every write waits for the other side to take it (``drain``); nothing piles up here.
Rule 3: an answer that did not end properly costs the connection: only ``Play.finish`` and ``Play.answered`` keep it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from rawstream.errors import RawstreamError
from rawstream.flow import kernel
from rawstream.lab.chaos_answers import DONE, Answer, error_body
from rawstream.lab.chaos_models import Asked
from rawstream.settings import KiB, MiB
from rawstream.wire.chunks import frame_chunk
from rawstream.wire.http1 import END_OF_BODY, RequestHead, ServerCodec

EVENT_STREAM: Final = "text/event-stream; charset=utf-8"
LAST_CHUNK: Final = b"0\r\n\r\n"
_READ: Final = 64 * KiB
_MARK: Final = 64 * KiB
_KEPT: Final = 64 * KiB
"""Bytes kept of a next request while an answer runs."""
_FLUSH: Final = 1.0
"""Seconds in which the other side's kernel must have taken what was sent before a reset, or a close."""
_ASK_EVERY: Final = 0.002
_BURST: Final = 64
"""Writes without a wait after which others get their turn."""


class Peer:
    """The upstream's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, truncate: bool = False) -> None:
        """``truncate``: end TLS without a close_notify (RFC 8446 §6.1)."""
        self._reader = reader
        self.writer = writer
        self._truncate = truncate
        self.codec = ServerCodec(max_head=64 * KiB, max_request_line=16 * KiB, max_fields=200, max_body=64 * MiB)
        self.requests = 0
        """Requests that came on this connection."""
        writer.transport.set_write_buffer_limits(high=_MARK)

    async def request(self) -> tuple[RequestHead, bytes] | None:
        """The next request with its body; None when the other side has no more.

        Raises ProtocolViolation, ClientDisconnected (cut in a request), ConnectionError.
        """
        while (head := self.codec.next_head()) is None:
            if not await self._receive() and self.codec.at_eof:
                return None
        self.requests += 1
        if interim := self.codec.continue_100():
            await self.send(interim)
        body = bytearray()
        while (data := self.codec.next_body()) is not END_OF_BODY:
            if data is None:
                await self._receive()
            else:
                body += data
        return head, bytes(body)

    async def _receive(self) -> bytes:
        data = await self._reader.read(_READ)
        self.codec.receive(data)
        return data

    async def left(self) -> None:
        """Return as soon as the other side has closed, or reset. Cancelling is safe."""
        with contextlib.suppress(ConnectionError):
            while await self._receive():
                if self.codec.buffered > _KEPT:
                    return

    async def send(self, data: bytes) -> None:
        """Send, and wait until there is room for more. Raises ConnectionError when the connection is lost."""
        if self.writer.transport.is_closing():
            raise ConnectionResetError("the connection is lost")
        self.writer.write(data)
        await self.writer.drain()

    async def _flushed(self) -> None:
        """Wait, not for long, until the other side's kernel has all that was sent."""
        transport = self.writer.transport
        sock = self.writer.get_extra_info("socket")
        loop = asyncio.get_running_loop()
        until = loop.time() + _FLUSH
        while loop.time() < until and not transport.is_closing():
            queue = kernel.send_queue(sock.fileno())
            if not transport.get_write_buffer_size() and (queue is None or not queue.total):
                return
            await asyncio.sleep(_ASK_EVERY)

    async def reset(self) -> None:
        """Close with a RST, behind what was sent."""
        await self._flushed()
        with contextlib.suppress(OSError):
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        """Close with a FIN, behind what was sent. Never waits for long."""
        if not self.writer.transport.is_closing():
            if self._truncate:
                await self._flushed()
                self.writer.transport.abort()
                return
            self.writer.close()
        with contextlib.suppress(ConnectionError, OSError):
            try:
                await asyncio.wait_for(self.writer.wait_closed(), _FLUSH)
            except TimeoutError:
                self.writer.transport.abort()


class Play:
    """One answer as it is played: what the faults have to say it with."""

    def __init__(
        self, peer: Peer, asked: Asked, body: dict[str, Any], key: str, count: Callable[[], None], failures: int
    ) -> None:
        """``key`` is the request's Authorization; ``count`` is called for each token sent; ``failures`` is how often
        this very model string has failed before. Raises BadRequest."""
        self.peer = peer
        self.asked = asked
        self.key = key
        self.failures = failures
        self.failed = False
        """Did this one fail, as ``times`` counts?"""
        self.stream = body.get("stream") is True
        self.kept = False
        """May the connection serve another request?"""
        self._count = count
        options = body.get("stream_options")
        name, n = asked.model.name, body.get("n")
        self.answer = Answer(
            asked.text,
            kind=name,
            n=min(n, 16) if name == "choices" and isinstance(n, int) and n > 0 else 1,
            include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        )
        self.chunked = True
        self._sent = 0
        self._of = 0

    # --- heads

    def head(self, *fields: str, status: str = "200 OK", kind: str = "") -> bytes:
        """A response head; chunked, unless the fields say otherwise."""
        framing = {"content-length", "transfer-encoding", "connection"}
        self.chunked = not any(field.partition(":")[0].lower() in framing for field in fields)
        named = kind or (EVENT_STREAM if self.stream else "application/json")
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {named}", *fields]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    async def whole(self, body: bytes, *fields: str, status: str = "200 OK", kind: str = "application/json") -> None:
        """A whole answer of known length; the connection stays."""
        await self.peer.send(self.head(f"Content-Length: {len(body)}", *fields, status=status, kind=kind) + body)
        self.answered()

    async def error(self, status: str, message: str, code: str, *fields: str) -> None:
        """An error status with OpenAI's JSON."""
        await self.whole(json.dumps(error_body(message, code)).encode(), *fields, status=status)

    # --- the body

    def frame(self, data: bytes) -> bytes:
        """``data`` in the framing of the head."""
        return frame_chunk(data) if self.chunked else data

    async def send(self, data: bytes) -> None:
        """A part of the body."""
        await self.peer.send(self.frame(data))

    async def start(self, *fields: str, prefix: bytes = b"") -> None:
        """The head, and the first event (the role)."""
        opening = prefix + self.answer.opening() if self.stream else b""
        await self.peer.send(self.head(*fields) + self.frame(opening))

    async def tokens(self, count: int, *, rate: float = 0.0, batch: int = 1) -> None:
        """The next ``count`` tokens, ``rate`` a second (0: at once), ``batch`` in each write.

        A whole answer is no stream: the first half of it comes, when the tokens are made.
        """
        self._of = self._sent + count
        if not self.stream:
            await self.make(count, rate)
            body = self.answer.whole(self._of)
            await self.send(body[: len(body) // 2])
            return
        loop = asyncio.get_running_loop()
        due = loop.time()
        while self._sent < self._of:
            several = min(batch, self._of - self._sent)
            if rate:
                due += several / rate
                await asyncio.sleep(max(0.0, due - loop.time()))
            elif self._sent % _BURST == 0:
                await asyncio.sleep(0)
            events: list[bytes] = []
            for _ in range(several):
                events.append(self.answer.token(self._sent, self._of))
                self.count_token()
            await self.send(b"".join(events))

    async def make(self, count: int, rate: float) -> None:
        """``count`` tokens of a whole answer, ``rate`` a second (0: at once), without sending any."""
        for _ in range(count):
            if rate:
                await asyncio.sleep(1 / rate)
            self.count_token()

    def count_token(self) -> None:
        """One more token was made."""
        self._sent += 1
        self._count()

    async def endless(self, rate: float) -> None:
        """Tokens for as long as they are taken. A whole answer is never ready."""
        while True:
            await self.tokens(1_000, rate=rate) if self.stream else await asyncio.sleep(3600)

    def next_event(self) -> bytes:
        """What would come next, not counted as sent: the rest, of a whole answer."""
        if self.stream:
            return self.answer.token(self._sent, self._of + 1)
        body = self.answer.whole(self._of)
        return body[len(body) // 2 :]

    async def finish(self, *, done: bytes = DONE, after: bytes = b"") -> None:
        """The proper end, in one write: finish reason, usage, ``done``, the last chunk; and ``after`` behind it all."""
        last = self.answer.closing(self._sent) + done if self.stream else self.next_event()
        if self.chunked:
            await self.peer.send(frame_chunk(last) + LAST_CHUNK + after)
            self.answered()
        else:
            await self.peer.send(last)

    def answered(self) -> None:
        """The answer has ended properly: the connection may serve another request."""
        codec = self.peer.codec
        try:
            # What the codec would have sent is of no interest: it only has to know that an answer was given.
            codec.response_head(200, [("content-length", "0")])
            codec.end()
            self.kept = codec.next_cycle()
        except RawstreamError:
            self.kept = False

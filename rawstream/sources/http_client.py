"""An HTTP/1.1 client that reads no further than it is asked: pooled connections, bounded buffers, deadlines.

Rule 1: a connection goes back to the pool only after a response whose own framing said that it is over, with no
        byte behind it. In all other cases it is closed, at once.
Rule 2: one safe retry: when a pooled connection turns out to have been closed before any byte of the response, the
        request goes out once more, on a new connection. Never otherwise.
Rule 3: an idle connection that says anything, or ends, is dropped there and then.
Rule 4: redirects are not followed, bodies are not decompressed, cookies and proxies do not exist.

    client = HttpClient(Settings())
    response = await client.open("POST", url, headers, body, head_timeout=120.0)
    try:
        while data := await response.read_some():
            ...
    finally:
        await response.aclose()
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Sequence
from typing import Final
from urllib.parse import SplitResult, urlsplit

from rawstream.errors import MisuseError, RawstreamError, SettingsError, UpstreamFailed, UpstreamUnreachable
from rawstream.settings import Settings
from rawstream.sources.http_connection import Connection, Origin, dial, read_buffer
from rawstream.wire.http1_bodies import CloseBody
from rawstream.wire.http1_client import ResponseHead

FINISH: Final = 0.1
"""Seconds that a finished answer's connection may take to say that it is over, before it is given up."""


class HttpClient:
    """Requests over pooled connections, for one event loop. ``settings.upstream_…`` name the bounds."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError when ``upstream_ca`` is not a file of certificates."""
        self._settings = settings
        self._idle: dict[Origin, list[Connection]] = {}
        """Idle connections, the one used last at the end: it is the least likely to have been closed."""
        self._idle_count = 0
        self._open: set[Connection] = set()
        self._buffer: memoryview | None = None
        self._tls = None if settings.upstream_ca is None else tls_context(settings.upstream_ca)

    @property
    def open_connections(self) -> int:
        """Connections that exist, idle ones included."""
        return len(self._open)

    @property
    def idle_connections(self) -> int:
        return self._idle_count

    async def open(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        head_timeout: float,
        late: str | None = None,
    ) -> HttpResponse:
        """Send a request and wait for the response's head, ``head_timeout`` seconds in all.

        ``host`` and ``content-length`` are added. ``late`` is what UpstreamIdle says when there is no head in time.
        Raises UpstreamFailed (UpstreamUnreachable before any byte of an answer), UpstreamIdle, MisuseError (not a
        URL, not a header). Cancelling is safe: the connection is closed.
        """
        origin, target = _place(url)
        fields = [("host", origin.authority), *headers]
        at = asyncio.get_running_loop().time() + head_timeout
        why = late or f"the upstream sent no answer within {head_timeout:g} s"
        pooled = self._take_idle(origin)
        if pooled is not None:
            try:
                return await self._exchange(pooled, method, target, fields, body, at, why)
            except _ClosedUnderUs:
                pass
        connection = await dial(
            origin,
            timeout=min(self._settings.upstream_connect_timeout, head_timeout),
            rcvbuf=self._settings.upstream_rcvbuf,
            buffer=self._read_buffer(),
            tls=self._tls_context() if origin.scheme == "https" else None,
        )
        self._open.add(connection)
        return await self._exchange(connection, method, target, fields, body, at, why)

    async def aclose(self) -> None:
        """Close all connections, those in use too. The client can be used again afterwards."""
        for connection in list(self._open):
            self._discard(connection)

    async def _exchange(
        self,
        connection: Connection,
        method: str,
        target: str,
        fields: Sequence[tuple[str, str]],
        body: bytes,
        at: float,
        why: str,
    ) -> HttpResponse:
        """One request, and the head of its response, on this connection; it is closed if that fails."""
        codec, inlet = connection.codec, connection.inlet
        answered = False
        try:
            connection.set_deadline(at, why)
            connection.write(codec.request(method, target, fields, body))
            while True:
                data = await inlet.take()
                if not data:
                    kind = UpstreamFailed if answered else UpstreamUnreachable
                    raise kind("the upstream closed the connection before it answered")
                answered = True
                if (found := codec.receive_head(data)) is not None:
                    break
            connection.clear_deadline()
        except BaseException as error:
            self._discard(connection)
            closed = isinstance(error, OSError | UpstreamUnreachable)
            if closed and connection.used and not answered:
                raise _ClosedUnderUs from None
            if isinstance(error, OSError):
                raise (_broken(error) if answered else _reset(error)) from None
            raise
        return HttpResponse(self, connection, *found)

    # --- the pool

    def _take_idle(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            self._idle_count -= 1
            if not idle:
                del self._idle[origin]
            if connection.lost:
                self._discard(connection)
                continue
            connection.inlet.sink = None
            connection.clear_deadline()
            return connection
        return None

    def _release(self, connection: Connection) -> None:
        """After the clean end of a response: keep the connection for the next request, if that can be."""
        codec, inlet = connection.codec, connection.inlet
        full = self._idle_count >= self._settings.upstream_pool
        if full or inlet.held or not connection.sent or connection.lost or not codec.next_cycle():
            self._discard(connection)
            return
        connection.used = True

        def drop(_: bytes = b"") -> None:
            self._discard(connection)

        inlet.sink = drop
        connection.call_at(asyncio.get_running_loop().time() + self._settings.upstream_pool_idle, drop)
        self._idle.setdefault(connection.origin, []).append(connection)
        self._idle_count += 1

    def _discard(self, connection: Connection) -> None:
        idle = self._idle.get(connection.origin)
        if idle is not None and connection in idle:
            idle.remove(connection)
            self._idle_count -= 1
            if not idle:
                del self._idle[connection.origin]
        self._open.discard(connection)
        connection.abort()

    def _read_buffer(self) -> memoryview:
        self._buffer = read_buffer(self._settings.upstream_read_limit, self._buffer)
        return self._buffer

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = tls_context(None)
        return self._tls


class HttpResponse:
    """A response under way. Its body is taken from the network as it is asked for, and not before."""

    def __init__(self, client: HttpClient, connection: Connection, head: ResponseHead, first: bytes) -> None:
        self.head = head
        self._client = client
        self._connection: Connection | None = connection
        self._inlet = connection.inlet
        self._body = connection.codec.body
        self._first = first

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def ended(self) -> bool:
        """Has the body come to its end? False after it was given up."""
        return self._body.ended

    @property
    def self_delimited(self) -> bool:
        """Does the framing tell the end? If not, the closing of the connection did, perhaps too early."""
        return not isinstance(self._body, CloseBody)

    @property
    def buffered(self) -> int:
        """Bytes taken from the socket and not yet handed out."""
        return self._inlet.held + len(self._first) + self._body.buffered

    @property
    def peak_buffered(self) -> int:
        """The most bytes that were ever taken from the socket and not yet asked for."""
        return self._inlet.peak

    def set_deadline(self, at: float, why: str, *, while_waiting: bool = False) -> None:
        """Fail ``read_some`` with ``UpstreamIdle(why)`` at ``at`` (the loop's clock, seconds). Cheap.

        ``while_waiting``: only if it waits at that moment, so that it need not be cleared.
        """
        if self._connection is not None:
            self._connection.set_deadline(at, why, while_waiting=while_waiting)

    def clear_deadline(self) -> None:
        if self._connection is not None:
            self._connection.clear_deadline()

    def read_nowait(self) -> bytes | None:
        """The body bytes that are at hand (about ``upstream_read_limit`` at most); b'' at the end; None: not yet.

        Raises UpstreamFailed (cut, reset, bad framing) and UpstreamIdle (the deadline). After an error the response is
        of no further use.
        """
        connection, body = self._connection, self._body
        if connection is None:
            if body.ended:
                return b""
            raise MisuseError("the response was closed before its end")
        try:
            data: bytes | None = self._first
            self._first = b""
            while True:
                if data and (decoded := body.decode(data)):
                    return decoded
                if body.fault is not None:
                    raise body.fault
                if body.ended:
                    self._end()
                    return b""
                data = self._inlet.take_nowait()
                if data is None:
                    return None
                if not data:
                    body.eof()
        except OSError as error:
            self._give_up()
            raise _broken(error) from None
        except BaseException:
            self._give_up()
            raise

    def more(self) -> asyncio.Future[None]:
        """Done when ``read_nowait()`` is worth another look. May be cancelled."""
        return self._inlet.more()

    async def read_some(self) -> bytes:
        """``read_nowait()``, waited for. When it was cancelled, the response is of no further use."""
        while (data := self.read_nowait()) is None:
            try:
                await self._inlet.more()
            except BaseException:
                self._give_up()
                raise
        return data

    async def finish(self) -> None:
        """The rest of the body is of no interest. Never waits.

        If the end is at hand, or comes cleanly within ``FINISH`` seconds, the connection goes back to the pool.
        """
        connection = self._connection
        if connection is None:
            return
        try:
            while self._connection is not None and not self._body.ended and (self._first or self._inlet.held):
                if self.read_nowait() is None:
                    break
        except RawstreamError:
            # The answer was whole already; a broken end costs the connection, which is closed by now.
            return
        if self._connection is None:
            return
        if self._body.ended:
            self._end()
            return
        connection.inlet.sink = self._finishing
        connection.call_at(asyncio.get_running_loop().time() + FINISH, self._give_up)

    async def aclose(self) -> None:
        """Done with it. Before the end of the body this closes the connection at once. Idempotent."""
        if self._connection is not None and self._connection.inlet.sink is None:
            self._give_up()

    def _finishing(self, data: bytes) -> None:
        """What arrives while nobody reads any more."""
        try:
            if data:
                self._body.decode(data)
            else:
                self._body.eof()
        except UpstreamFailed:
            self._give_up()
        else:
            if self._body.ended:
                self._end()

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.clear_deadline()
            connection.inlet.sink = None
            self._client._release(connection)

    def _give_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._client._discard(connection)


@functools.lru_cache(maxsize=64)
def _place(url: str) -> tuple[Origin, str]:
    """Where to connect to, and what to ask for there (the same few URLs, again and again). Raises MisuseError."""
    split = split_url(url)
    return origin_of(split), (split.path or "/") + (f"?{split.query}" if split.query else "")


class _ClosedUnderUs(Exception):
    """A pooled connection was closed before any byte of the response."""


def tls_context(authorities: str | None) -> ssl.SSLContext:
    """What https trusts: the system's authorities, or those of a PEM file. Raises SettingsError."""
    try:
        context = ssl.create_default_context(cafile=authorities)
    except OSError as error:
        raise SettingsError(f"upstream_ca: cannot read certificates from {authorities!r}: {error.strerror}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def _broken(error: OSError) -> UpstreamFailed:
    return UpstreamFailed("the upstream cut its stream: the connection was reset", detail=str(error))


def _reset(error: OSError) -> UpstreamUnreachable:
    return UpstreamUnreachable("the upstream reset the connection before it answered", detail=str(error))


def split_url(url: str) -> SplitResult:
    """A URL's parts. Raises MisuseError."""
    try:
        return urlsplit(url)
    except ValueError:
        raise MisuseError("this is no URL: something is wrong with its brackets, or its host") from None


def origin_of(url: SplitResult) -> Origin:
    """Where a URL leads. Raises MisuseError for one that is not http(s), or that holds credentials."""
    try:
        port = url.port
    except ValueError:
        raise MisuseError("the URL's port is not a number") from None
    if url.scheme not in ("http", "https") or not url.hostname:
        raise MisuseError("the URL must begin with http:// or https:// and name a host")
    if url.username is not None or url.password is not None:
        raise MisuseError("the URL must not hold a user name or a password")
    return Origin(url.scheme, url.hostname, port or (443 if url.scheme == "https" else 80))

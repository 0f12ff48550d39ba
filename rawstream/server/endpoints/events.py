"""``/debug/events``: what ``/debug/streams`` shows, live, and for each stream why it is as slow as it is.

Rule 1: watching is never a burden. A sample is made only when the watcher has room for it; else it is skipped, not
        queued. Watchers are bounded in number, and one that takes nothing is cut like any other client.
Rule 2: what cannot be measured is null; a sentence says only what the figures beside it say.
Rule 3: no foreign page may look or touch: the ``Host`` must be this machine's, an ``Origin`` must be our own.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from rawstream.errors import BadRequest, ClientStalled, TooManyStreams
from rawstream.flow.interrupt import Interruption
from rawstream.flow.kernel import TcpInfo, tcp_info
from rawstream.flow.watch import Finding, StreamWatch
from rawstream.server.connection import Connection
from rawstream.server.endpoints.operations import require_operator
from rawstream.server.exchange import Exchange
from rawstream.server.router import Router
from rawstream.server.stream import Stream
from rawstream.server.streams import Streams
from rawstream.wire.sse import EVENT_STREAM_HEADERS

MOST_WATCHERS: Final = 32
"""Event streams of this kind that are open at a time."""
_LOOK: Final = 0.25
"""Seconds between two looks whether what is watched, or the server, has ended."""
_PAGE_SIZE: Final = os.sysconf("SC_PAGE_SIZE")


# --- who may ask --------------------------------------------------------------------------------------------


def require_own_origin(exchange: Exchange) -> None:
    """Raise 403 unless the peer and the ``Host`` are this machine's, and the ``Origin``, if any, is the same.

    A page of somebody else's cannot reach us through the user's browser: its ``Origin`` is its own (RFC 6454 §7),
    and a name of its own that was made to point here ("DNS rebinding") shows in ``Host``.
    """
    require_operator(exchange)
    if exchange.connection.operator:
        return
    host = (exchange.head.header("host") or "").lower()
    if not _is_local(host):
        raise BadRequest("this is answered under a loopback address or 'localhost' only", status=403, code="forbidden")
    origin = exchange.head.header("origin")
    scheme = "http" if exchange.connection.secured is None else "https"
    if origin is not None and origin.lower() != f"{scheme}://{host}":
        raise BadRequest("this is not answered to pages of another origin", status=403, code="forbidden")


def _is_local(host: str) -> bool:
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]"):
        name = host
    elif not port.isdecimal():
        return False
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def query_number(exchange: Exchange, name: str, default: float, least: float, most: float) -> float:
    """A number from the query string. Raises BadRequest when it is none, or out of bounds."""
    given = parse_qs(exchange.head.query).get(name)
    if not given:
        return default
    try:
        value = float(given[-1])
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise BadRequest(f"{name} must be a number from {least:g} to {most:g}")
    return value


# --- what is shown ------------------------------------------------------------------------------------------


class ProcessLevels:
    """Memory of this process now, and its share of a core since the last look."""

    def __init__(self, since: ProcessLevels | None = None) -> None:
        """``since``: take up from another one's last look."""
        self._at: float = monotonic() if since is None else since._at
        self._spent: float = time.process_time() if since is None else since._spent

    def look(self, now: float) -> dict[str, Any]:
        """``rss`` in bytes (null where the system does not tell), ``cpu`` as a fraction of one core."""
        spent = time.process_time()
        passed = now - self._at
        cpu = (spent - self._spent) / passed if passed > 0 else 0.0
        self._at, self._spent = now, spent
        return {"rss": resident(), "cpu": round(cpu, 4)}


def resident() -> int | None:
    """Bytes of memory that this process holds; None where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as levels:
            return int(levels.read().split()[1]) * _PAGE_SIZE
    except (OSError, ValueError, IndexError):
        return None


def tcp_levels(info: TcpInfo | None) -> dict[str, float | int | None] | None:
    """``TCP_INFO`` as it is shown: bytes and seconds."""
    if info is None:
        return None
    return {
        "rtt": info.rtt,
        "snd_wnd": info.snd_wnd,
        "rwnd_limited": info.rwnd_limited,
        "sndbuf_limited": info.sndbuf_limited,
        "busy": info.busy,
    }


_MUCH: Final = 256 * 1024
"""Bytes in a transport buffer from which nobody waits who should."""


def why(shown: dict[str, Any], info: TcpInfo | None) -> str:
    """One sentence on what a stream waits for, from what is shown of it."""
    transport = shown["buffered"]["transport"]
    waiting = shown["waiting_for"]
    if shown["state"] == "lost":
        if shown["lane"] == "eager":
            return "the client has left, and this stream has not noticed: tokens are still made, for nobody"
        return "the client has gone; the stream is about to end"
    if transport > _MUCH:
        return (
            f"nobody waits: {transport} bytes lie in the transport buffer, and the source goes on as if they were read"
        )
    if waiting == "source":
        return "this stream is as fast as its source: the next token has not been made yet"
    if shown["credit"] is not None and shown["credit"]["owed"]:
        return "this stream waits for its client, which has not asked for more tokens (credit)"
    if waiting == "client":
        if info is not None and info.snd_wnd is not None and info.snd_wnd < 4096:
            return (
                f"this stream is slow because its client does not read: it has room for {info.snd_wnd} bytes more, "
                "so the source waits"
            )
        return "this stream is slow because its client reads slowly; the source waits"
    if waiting == "network":
        rtt = "" if info is None else f" (round trip {info.rtt * 1000:.3g} ms)"
        return f"this stream is slow because of the network: what was sent is not acknowledged yet{rtt}"
    return "this stream is not slow: it runs as fast as its source and its client allow"


def live_snapshot(stream: Stream, now: float) -> dict[str, Any]:
    """A stream as ``/debug/events`` shows it: its snapshot, ``tcp``, ``lane`` and ``why``."""
    shown = stream.snapshot(now)
    sock = stream.exchange.connection.sock
    info = None if sock is None else tcp_info(sock)
    shown["lane"] = stream.lane
    credit = stream.credit
    shown["credit"] = (
        None if credit is None else {"ahead": credit.ahead, "consumed": credit.consumed, "owed": credit.owed}
    )
    shown["tcp"] = tcp_levels(info)
    shown["why"] = why(shown, info)
    return shown


# --- how it is sent -----------------------------------------------------------------------------------------


def _pieces(interval: float) -> Iterator[float]:
    """``interval`` in pieces of at most ``_LOOK`` seconds."""
    while interval > _LOOK:
        yield _LOOK
        interval -= _LOOK
    yield interval


class Watchers:
    """Sends samples to whoever watches, at their pace."""

    def __init__(self, streams: Streams, ends: Callable[[Connection], bool]) -> None:
        """``ends(connection)``: is the server about to end whoever came in by it?"""
        self._streams = streams
        self._ends = ends
        self.open = 0

    async def send(
        self,
        exchange: Exchange,
        sample: Callable[[], dict[str, Any]],
        interval: float,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        """Stream ``sample()`` every ``interval`` seconds, until ``over()`` or the server ends; then a last one.

        Raises TooManyStreams (503) and why the client was lost. Cancel-safe.
        """
        if exchange.head.method == "HEAD":
            exchange.start(200, EVENT_STREAM_HEADERS)
            await exchange.finish()
            return
        if self.open >= MOST_WATCHERS:
            raise TooManyStreams(f"{MOST_WATCHERS} watchers are open, which is the most this server takes")
        settings = self._streams.settings
        connection = exchange.connection
        interruption = Interruption()
        watch = StreamWatch(monotonic(), heartbeat=0, stall_timeout=settings.stall_timeout, stream_timeout=float("inf"))

        def look() -> None:
            now = monotonic()
            taken, waiting = connection.unwritten()
            if watch.look(now, taken=taken, waiting=waiting) is Finding.STALLED:
                connection.lose(ClientStalled(f"the watcher took nothing for {settings.stall_timeout:g} s"))
            else:
                connection.set_deadline(watch.next_look(now), look)

        exchange.start(200, EVENT_STREAM_HEADERS)
        exchange.forget_request()
        self.open += 1
        connection.stream_begins(interruption.interrupt)
        look()
        try:
            async with interruption:
                while True:
                    ended = over() or self._ends(connection)
                    if ended:
                        break
                    if exchange.room > 0:
                        exchange.write_nowait(event(sample()))
                    for piece in _pieces(interval):
                        if over() or self._ends(connection):
                            break
                        await asyncio.sleep(piece)
                await exchange.finish(event(sample()))
        finally:
            self.open -= 1
            connection.stream_ends()


def event(content: dict[str, Any]) -> bytes:
    """One server-sent event with ``content`` as JSON (which has no line ends)."""
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


class EventsEndpoints:
    """The handler, over the registry of streams and what the server says of itself."""

    def __init__(
        self, streams: Streams, *, ends: Callable[[Connection], bool], levels: Callable[[], dict[str, Any]]
    ) -> None:
        self.streams = streams
        self.watchers = Watchers(streams, ends)
        self._levels = levels
        self._process = ProcessLevels()

    def register(self, router: Router) -> None:
        router.add("GET", "/debug/events", self.events, access="operator")

    async def events(self, exchange: Exchange) -> None:
        require_own_origin(exchange)
        interval = query_number(exchange, "interval", 250, 50, 60_000) / 1000
        process = self._process = ProcessLevels(self._process)

        def sample() -> dict[str, Any]:
            now = monotonic()
            return {
                "now": now,
                "process": process.look(now),
                "streams": [live_snapshot(stream, now) for stream in self.streams],
                "totals": self._levels(),
            }

        await self.watchers.send(exchange, sample, interval)

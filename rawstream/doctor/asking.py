"""Asking: requests over raw sockets whose bytes are taken when they come, or not at all, and timed.

Rule 1: between two reads nothing is taken from the network: what waits here is bounded by ``rcvbuf``.
Rule 2: every wait has an end, and the way it ended is a value (``End``), not an exception.
Rule 3: the user's headers and key go where the user sent them, and to no other origin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

import msgspec

from rawstream.doctor.finding import CannotExamine
from rawstream.doctor.recording import Recording
from rawstream.doctor.target import Wanted
from rawstream.errors import RawstreamError, UpstreamFailed, UpstreamIdle
from rawstream.settings import Settings
from rawstream.sources.http_client import HttpClient, HttpResponse, origin_of, split_url

End: TypeAlias = Literal["enough", "time", "clean", "cut"]
"""How a read came to its end: what was wanted is there, the time was over, the body ended cleanly, it was cut."""

SMALL: Final = 4096
"""SO_RCVBUF of a reader that stops reading: what it takes into its own kernel must not hide what the server does."""
_ROOMY: Final = 64 * 1024
_MOST_JSON: Final = 1024 * 1024
_ASIDE_WITHIN: Final = 5.0


class Exchange:
    """One request under way. ``async with`` closes its connection at the end, wherever the answer is then."""

    def __init__(self, client: HttpClient, response: HttpResponse, sent_at: float, request_id: str) -> None:
        self._client = client
        self._response = response
        self.sent_at = sent_at
        self.request_id = request_id
        self.head = response.head
        self.head_at = asyncio.get_running_loop().time() - sent_at
        """Seconds from the request to the whole head."""
        self.recording = Recording(self.header("content-type"), self.header("content-encoding").strip().lower())
        self.why = ""
        """What ended it, where it was cut."""

    def header(self, name: str) -> str:
        """The value of a field of the answer; '' when it is not there."""
        return self.head.header(name) or ""

    @property
    def elapsed(self) -> float:
        """Seconds since the request."""
        return asyncio.get_running_loop().time() - self.sent_at

    @property
    def reusable(self) -> bool:
        """After a clean end: can the connection take another request?"""
        return self._client.idle_connections == 1

    async def read(self, enough: Callable[[Recording], bool], *, within: float) -> End:
        """Read until it is ``enough``, for ``within`` seconds at most. After ``time`` there is no reading on."""
        response = self._response
        response.set_deadline(asyncio.get_running_loop().time() + within, "")
        try:
            while not enough(self.recording):
                data = await response.read_some()
                if not data:
                    return "clean"
                self.recording.take(self.elapsed, data)
        except UpstreamIdle:
            return "time"
        except UpstreamFailed as error:
            self.why = spoken(error)
            return "cut"
        response.clear_deadline()
        return "enough"

    async def body(self, *, within: float) -> bytes:
        """The rest of the body, as far as it came (at most 1 MiB). Never raises for what the server did."""
        found = bytearray()
        self._response.set_deadline(asyncio.get_running_loop().time() + within, "")
        try:
            while len(found) < _MOST_JSON and (data := await self._response.read_some()):
                found += data
        except (UpstreamFailed, UpstreamIdle) as error:
            self.why = spoken(error)
        return bytes(found)

    async def connection_kept(self, seconds: float) -> float | None:
        """After a clean end: how long the server keeps the idle connection; None: longer than ``seconds``."""
        began = asyncio.get_running_loop().time()
        while (waited := asyncio.get_running_loop().time() - began) < seconds:
            if not self._client.idle_connections:
                return waited
            await asyncio.sleep(0.05)
        return None

    async def aclose(self) -> None:
        """Break the connection off. Idempotent."""
        await self._response.aclose()
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class Asker:
    """Sends requests, and counts them. ``ca``: a file of certificate authorities to trust."""

    def __init__(self, *, ca: str | None = None, patience: float = 120.0) -> None:
        """``patience``: seconds that a first byte may take. Raises SettingsError for an unusable ``ca``."""
        self._ca = ca
        self.patience = patience
        self.requests = 0
        """Generations asked for."""
        self._aside = HttpClient(self._settings(_ROOMY, pool=1))

    def _settings(self, rcvbuf: int, pool: int) -> Settings:
        return Settings(upstream_rcvbuf=rcvbuf, upstream_pool=pool, upstream_pool_idle=3600.0, upstream_ca=self._ca)

    async def open(
        self,
        wanted: Wanted,
        *,
        rcvbuf: int = _ROOMY,
        accept_encoding: str = "identity",
        within: float | None = None,
    ) -> Exchange:
        """Ask, and wait for the head. Raises UpstreamFailed, UpstreamIdle (no head ``within`` so many seconds)."""
        self.requests += 1
        request_id = f"doctor-{self.requests}"
        client = HttpClient(self._settings(rcvbuf, pool=1))
        fields = [
            ("accept", "text/event-stream, text/plain, application/json"),
            ("accept-encoding", accept_encoding),
            ("x-request-id", request_id),
        ]
        if not any(name.lower() == "user-agent" for name, _ in wanted.headers):
            fields.append(("user-agent", "rawstream-doctor"))
        sent_at = asyncio.get_running_loop().time()
        try:
            response = await client.open(
                wanted.method,
                wanted.url,
                [*fields, *wanted.headers],
                wanted.body,
                head_timeout=self.patience if within is None else within,
            )
        except BaseException:
            await client.aclose()
            raise
        return Exchange(client, response, sent_at, request_id)

    async def aside(self, method: str, url: str, headers: tuple[tuple[str, str], ...] = ()) -> tuple[int, Any] | None:
        """A small question beside the stream: status and JSON (None: not JSON). None: no answer."""
        fields = [("accept", "application/json"), ("user-agent", "rawstream-doctor"), *headers]
        if method == "POST":
            fields.append(("content-type", "application/json"))
        try:
            response = await self._aside.open(method, url, fields, head_timeout=_ASIDE_WITHIN)
        except RawstreamError:
            return None
        try:
            response.set_deadline(asyncio.get_running_loop().time() + _ASIDE_WITHIN, "")
            body = bytearray()
            while len(body) < _MOST_JSON and (data := await response.read_some()):
                body += data
            response.clear_deadline()
            return response.status, msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return response.status, None
        except RawstreamError:
            return None
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        await self._aside.aclose()


def same_origin(one: str, other: str) -> bool:
    """Do two URLs lead to the same scheme, host and port?"""
    return origin_of(split_url(one)) == origin_of(split_url(other))


def spoken(error: RawstreamError) -> str:
    """The HTTP client speaks of upstreams; here it is the server."""
    return str(error).replace("the upstream", "the server")


async def refusal(exchange: Exchange, where: str) -> CannotExamine:
    """The error for an answer whose status is not 200, with what it says."""
    body = await exchange.body(within=_ASIDE_WITHIN)
    said = body.decode("utf-8", "replace").strip().splitlines()
    status = exchange.head.status
    if 300 <= status < 400:
        said = [f"redirected to {exchange.header('location')[:200]}, which is not followed: name that URL"]
    return CannotExamine(f"{where} answered {status}" + (f": {said[0][:200]}" if said else ""), status=status)

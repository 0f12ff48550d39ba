"""Clients that lose their connection and come back, as ``EventSource`` does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.support.flow import turns

PATIENCE = 10.0
"""Seconds that a wait may take."""


_OPEN: list[Answer] = []


async def hang_up() -> None:
    """Close all connections, as the end of each test must."""
    while _OPEN:
        _OPEN.pop().cut()
    await turns()


class Event(NamedTuple):
    """One server-sent event."""

    id: str | None
    data: str

    @property
    def token(self) -> str | None:
        """Of ``/chat`` and ``/stream``."""
        value = self.json()
        return value.get("token") if isinstance(value, dict) else None

    def json(self) -> Any:
        return json.loads(self.data) if self.data.startswith("{") else None


class Answer:
    """One request's answer, event by event. Close it, or use it with ``async with``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._body = b""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.at_end = False
        """Was the body whole?"""

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        """Go without a word."""
        self._writer.transport.abort()

    async def head(self) -> Answer:
        async with asyncio.timeout(PATIENCE):
            raw = await self._reader.readuntil(b"\r\n\r\n")
        start, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        self.status = int(start.split(" ")[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return self

    @property
    def stream(self) -> str:
        """The stream's secret id."""
        return self.headers["x-stream-id"]

    async def _more(self) -> bool:
        """A chunk more. False: the end of the body. Raises EOFError where it was cut."""
        async with asyncio.timeout(PATIENCE):
            try:
                size = int(await self._reader.readuntil(b"\r\n"), 16)
                chunk = await self._reader.readexactly(size + 2)
            except (asyncio.IncompleteReadError, ConnectionError):
                raise EOFError("the body was cut") from None
        self._body += chunk[:-2]
        self.at_end = not size
        return size > 0

    async def event(self) -> Event | None:
        """The next event with data; None: the body is whole. Raises EOFError where it was cut."""
        while True:
            event, blank, rest = self._body.partition(b"\n\n")
            if blank:
                self._body = rest
                lines = [line for line in event.decode().split("\n") if line and not line.startswith(":")]
                fields = dict(line.split(": ", 1) for line in lines)
                if "data" in fields:
                    return Event(fields.get("id"), fields["data"])
            elif not await self._more():
                return None

    async def events(self, most: int | None = None) -> list[Event]:
        """The next ``most`` events, or all up to the end."""
        found: list[Event] = []
        while (most is None or len(found) < most) and (event := await self.event()) is not None:
            found.append(event)
        return found

    async def until_cut(self) -> list[Event]:
        """All events up to a cut. AssertionError where the body is whole."""
        found: list[Event] = []
        try:
            while (event := await self.event()) is not None:
                found.append(event)
        except EOFError:
            return found
        raise AssertionError("the body was not cut")

    async def tokens(self, most: int | None = None) -> list[str]:
        return [event.token for event in await self.events(most) if event.token is not None]

    async def body(self) -> bytes:
        """Of an answer that is no stream."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readexactly(int(self.headers.get("content-length", 0)))


async def ask(
    port: int,
    target: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    *,
    head: bool = True,
) -> Answer:
    """A request on a connection of its own: GET, or POST with ``body`` as JSON. Waits for the head, unless told not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = {"Host": "localhost", **(headers or {})}
    content = b""
    if body is not None:
        content = json.dumps(body).encode()
        lines |= {"Content-Type": "application/json", "Content-Length": str(len(content))}
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"{'GET' if body is None else 'POST'} {target} HTTP/1.1\r\n{text}\r\n".encode() + content)
    answer = Answer(reader, writer)
    _OPEN.append(answer)
    return await answer.head() if head else answer

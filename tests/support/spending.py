"""Users with budgets, and clients that read whole answers of theirs."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

from rawstream.limits.users import User, new_key
from rawstream.settings import UserSettings

KEY, HASHED = new_key()
"""The key of the user that tests ask as, and what the configuration holds of it."""


def ada(
    *,
    tokens_per_day: int | None = None,
    tokens_per_minute: int | None = None,
    max_streams: int | None = None,
    models: tuple[str, ...] = ("*",),
) -> UserSettings:
    """The user whose key is ``KEY``."""
    return UserSettings(
        name="ada",
        keys=(HASHED,),
        models=models,
        max_streams=max_streams,
        tokens_per_day=tokens_per_day,
        tokens_per_minute=tokens_per_minute,
    )


def caps_of(settings: UserSettings) -> Any:
    """What a ledger is asked about that user."""
    return User(settings.name, settings).caps


class Reply(NamedTuple):
    """A whole answer, as it arrived."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool
    """Did its framing end as it should?"""

    @property
    def events(self) -> list[Any]:
        """The data of its events: JSON, or ``[DONE]``."""
        lines = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]
        return [line.decode() if line == b"[DONE]" else json.loads(line) for line in lines]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(port: int, path: str, body: dict[str, Any], *, key: str = KEY, within: float = 30.0) -> Reply:
    """``POST`` on a connection of its own, read to its end. Raises TimeoutError ``within`` so many seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request(path, body, key))
        async with asyncio.timeout(within):
            return await read_reply(reader)
    finally:
        writer.close()


def request(path: str, body: dict[str, Any], key: str = KEY) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """One answer, chunked or with its length."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
    status = int(lines[0].split()[1])
    if "content-length" in headers:
        return Reply(status, headers, await reader.readexactly(int(headers["content-length"])), whole=True)
    body: list[bytes] = []
    try:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body.append((await reader.readexactly(size + 2))[:-2])
        await reader.readuntil(b"\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return Reply(status, headers, b"".join(body), whole=False)
    return Reply(status, headers, b"".join(body), whole=True)

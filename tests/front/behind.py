"""What tests do through a proxy: stream in step with the source, leave, stall, and look at what the server saw."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any

from tests.support import raw
from tests.support.fronts import Front
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

SOURCE = ("--source", "tests.front.sources:tokens")
PATHS = ("/chat", "/text", "/v1/chat/completions", "/stream")
_LEAVING: dict[str, dict[str, Any]] = {
    "flowing": {"silence": 0.02, "pause": 0.02},
    "silent": {"silence": 60},
    "waiting": {"first": 60},
    "unread": {},
}
_IDS = itertools.count(1)


def new_id(what: str) -> str:
    """A request id of its own: proxies pass it on, and the server's log line has it."""
    return f"{what}-{next(_IDS)}"


def asking(path: str, *, request_id: str = "", headers: Mapping[str, str] | None = None, **fields: Any) -> bytes:
    """The request for a stream of ``tests.front.sources`` at any of ``PATHS``, with or without a query."""
    named = {"X-Request-ID": request_id or new_id("any"), **(headers or {})}
    if path.startswith("/stream"):
        query = "&".join(f"{name}={value}" for name, value in fields.items())
        return raw.request("GET", f"{path}{'&' if '?' in path else '?'}prompt=hello&{query}", named)
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, **fields}
    return raw.post(path, body, **{name.replace("-", "_"): value for name, value in named.items()})


def in_step(front: Front, path: str, count: int, *, deadline: float = 2.0) -> float:
    """Take ``count`` tokens of an endless stream, each asked for only when the one before it is here; seconds it took.

    The source is not asked for token N + 1 before the client has said that it has token N: whoever holds a token
    back until more of them come waits for ever, and AssertionError says so after ``deadline`` seconds.
    """
    with raw.Client(front.port, deadline=deadline) as client:
        stream = client.send(asking(f"{path}?credit=1")).head()
        assert stream.status == 200, stream.raw
        began = time.monotonic()
        for number in range(1, count + 1):
            client.until(f"t{number}.".encode())
            credit = raw.post(f"/streams/{stream.header('x-stream-id')}/credit", {"consumed": number})
            assert raw.ask(front.port, credit).status == 204
        return time.monotonic() - began


def leave(front: Front, server: ServerProcess, when: str, *, within: float) -> tuple[dict[str, Any], float]:
    """Start a stream, leave it, and wait for the server's log line: the line, and the seconds until it.

    ``when``: "flowing" (50 tokens a second), "silent" (the source is, after its first token), "waiting" (for the
    first token), "unread" (tokens that nobody reads fill every buffer on the way).
    """
    fields = _LEAVING[when]
    request_id = new_id(f"leave-{when}")
    with raw.Client(front.port, rcvbuf=4096) as client:
        client.send(asking("/chat", request_id=request_id, **fields))
        if when == "waiting":
            eventually(lambda: server.debug()["streams"], why="the server has the request")
        else:
            client.head()
            client.until(b"t1.")
        if when == "unread":
            eventually(lambda: server.debug()["streams"][0]["state"] == "paused", why="the stream is paused")
    left = time.monotonic()
    line = server.ended(request_id, within=within)
    return line, time.monotonic() - left


def stall(front: Front, server: ServerProcess, *, within: float) -> dict[str, Any]:
    """Read nothing of an endless stream until the server cuts it: its log line, with all the ``bytes`` it wrote."""
    request_id = new_id("stall")
    with raw.Client(front.port, rcvbuf=4096) as client:
        client.send(asking("/chat", request_id=request_id))
        return server.ended(request_id, within=within)

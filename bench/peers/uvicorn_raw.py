"""uvicorn with a plain ASGI function, no framework: the streaming example of uvicorn's own documentation."""

from __future__ import annotations

import json
from typing import Any

from bench.peers.contract import SERVER_PATHS, Peer, python_packages
from bench.peers.uvicorn_starlette import uvicorn


def _peer(http: str) -> Peer:
    version, missing = python_packages("uvicorn", http, "uvloop")
    return Peer(
        name=f"uvicorn-raw-{http}",
        kind="server",
        command=uvicorn(http, "bench.peers.uvicorn_raw:create_app"),
        paths=SERVER_PATHS,
        version=version,
        missing=missing,
        notes=(
            f"uvicorn's documentation, 'Streaming responses': send() per chunk. uvicorn --http {http} --loop "
            "uvloop. Like that example it never asks receive() whether the client has left, and uvicorn's "
            "send() does nothing then: the source of a client that left runs on to its end."
        ),
    )


PEERS = (_peer("h11"), _peer("httptools"))


def create_app() -> Any:
    return app


async def app(scope: Any, receive: Any, send: Any) -> None:
    from bench.peers._source import events, stats

    if scope["type"] != "http":
        return
    if scope["path"] == "/stats":
        await respond(send, b"application/json")
        await send({"type": "http.response.body", "body": json.dumps(stats).encode()})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await respond(send, b"text/event-stream")
    async for chunk in events(body):
        await send({"type": "http.response.body", "body": chunk.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def respond(send: Any, content_type: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})

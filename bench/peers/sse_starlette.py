"""sse-starlette's ``EventSourceResponse`` on uvicorn: the usual choice where somebody wants 'real' SSE."""

# The framework is in the private environment only.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from bench.peers.contract import SERVER_PATHS, Peer, python_packages
from bench.peers.uvicorn_starlette import uvicorn

_version, _missing = python_packages("sse-starlette", "uvicorn", "starlette", "httptools", "uvloop")

PEERS = (
    Peer(
        name="sse-starlette",
        kind="server",
        command=uvicorn("httptools", "bench.peers.sse_starlette:create_app"),
        paths=SERVER_PATHS,
        version=_version,
        missing=_missing,
        notes=(
            "sse-starlette's documentation: a generator of {'data': ...} dicts, default ping (a comment "
            "each 15 s); sep='\\n' for the same bytes as the others. A joined batch is given as bytes, which "
            "it passes on. uvicorn --http httptools --loop uvloop."
        ),
    ),
)


def create_app() -> Any:
    from sse_starlette import EventSourceResponse
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    from bench.peers._source import frame, parse, stats, tokens

    async def publish(body: bytes) -> AsyncGenerator[dict[str, str] | bytes, None]:
        prompt, mock, joined = parse(body)
        async for item in tokens(prompt, mock):
            if joined and not isinstance(item, str):
                yield frame(item).encode()
            else:
                for token in [item] if isinstance(item, str) else item:
                    yield {"data": json.dumps({"token": token})}
        yield {"data": "[DONE]"}

    async def chat(request: Request) -> Response:
        return EventSourceResponse(publish(await request.body()), sep="\n")

    async def counters(request: Request) -> Response:
        return JSONResponse(stats)

    return Starlette(routes=[Route("/chat", chat, methods=["POST"]), Route("/stats", counters)])

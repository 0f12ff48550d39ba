"""A relay of httpx and Starlette: the proxy that httpx's own documentation shows."""

# The framework is in the private environment only.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from bench.peers.contract import GATEWAY_PATHS, Peer, PeerContext, python_packages

_version, _missing = python_packages("httpx", "starlette", "uvicorn", "httptools", "uvloop")


def _command(ctx: PeerContext) -> list[str]:
    return [ctx.python, "-m", "bench.peers.gateway_httpx", ctx.host, str(ctx.port), ctx.upstream]


PEERS = (
    Peer(
        name="httpx-gateway",
        kind="gateway",
        command=_command,
        paths=GATEWAY_PATHS,
        version=_version,
        missing=_missing,
        stats=None,
        notes=(
            "httpx's documentation, streaming a response through: send(stream=True), StreamingResponse over "
            "aiter_raw(), aclose() as background task. Timeouts off and no connection limit (the default of "
            "100 would queue); 20 idle connections, the default (with 200 idle ones a request costs it 4 ms "
            "more). uvicorn with httptools and uvloop. Bytes, unread."
        ),
    ),
)

_HOP = {"host", "connection", "keep-alive", "transfer-encoding", "content-length"}


def main(host: str, port: int, upstream: str) -> None:
    import httpx
    import uvicorn
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    client = httpx.AsyncClient(base_url=upstream, timeout=None, limits=limits)

    async def relay(request: Request) -> Response:
        headers = [(name, value) for name, value in request.headers.items() if name not in _HOP]
        outgoing = client.build_request(request.method, request.url.path, headers=headers, content=await request.body())
        answer = await client.send(outgoing, stream=True)
        headers = [(name, value) for name, value in answer.headers.items() if name not in _HOP]
        return StreamingResponse(
            answer.aiter_raw(),
            status_code=answer.status_code,
            headers=dict(headers),
            background=BackgroundTask(answer.aclose),
        )

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncGenerator[None, None]:
        async with client:
            yield

    app = Starlette(routes=[Route("/{path:path}", relay, methods=["GET", "POST"])], lifespan=lifespan)
    uvicorn.run(app, host=host, port=port, http="httptools", loop="uvloop", access_log=False, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])

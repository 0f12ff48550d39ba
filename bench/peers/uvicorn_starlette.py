"""uvicorn + Starlette's ``StreamingResponse``, which most tutorials use (FastAPI's is the same class)."""

# The framework is in the private environment only.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.peers.contract import SERVER_PATHS, Peer, PeerContext, python_packages


def uvicorn(http: str, app: str) -> Callable[[PeerContext], list[str]]:
    """The command line of the uvicorn documentation, with the access log off."""

    def command(ctx: PeerContext) -> list[str]:
        return [
            ctx.python, "-m", "uvicorn", app, "--factory", "--host", ctx.host, "--port", str(ctx.port),
            "--http", http, "--loop", "uvloop", "--no-access-log", "--log-level", "warning",
        ]  # fmt: skip

    return command


def _peer(http: str) -> Peer:
    version, missing = python_packages("uvicorn", "starlette", http, "uvloop")
    return Peer(
        name=f"uvicorn-starlette-{http}",
        kind="server",
        command=uvicorn(http, "bench.peers.uvicorn_starlette:create_app"),
        paths=SERVER_PATHS,
        version=version,
        missing=missing,
        notes=(f"Starlette's documentation: StreamingResponse over a generator. uvicorn --http {http} --loop uvloop."),
    )


PEERS = (_peer("h11"), _peer("httptools"))


def create_app() -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    from bench.peers._source import events, stats

    async def chat(request: Request) -> Response:
        return StreamingResponse(events(await request.body()), media_type="text/event-stream")

    async def counters(request: Request) -> Response:
        return JSONResponse(stats)

    return Starlette(routes=[Route("/chat", chat, methods=["POST"]), Route("/stats", counters)])

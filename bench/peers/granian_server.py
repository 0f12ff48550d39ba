"""Granian, the server in Rust: with Starlette, with plain ASGI, and over its own interface RSGI."""

# The framework is in the private environment only.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from bench.peers.contract import BACKLOG, SERVER_PATHS, Peer, PeerContext, python_packages


def _granian(interface: str, app: str) -> Callable[[PeerContext], list[str]]:
    def command(ctx: PeerContext) -> list[str]:
        return [
            ctx.python, "-m", "granian", app, "--factory", "--interface", interface,
            "--host", ctx.host, "--port", str(ctx.port), "--workers", "1", "--loop", "uvloop", "--http", "1",
            "--backlog", str(BACKLOG), "--backpressure", "20000", "--log-level", "warning",
        ]  # fmt: skip

    return command


def _peer(name: str, interface: str, app: str, packages: tuple[str, ...], notes: str) -> Peer:
    version, missing = python_packages("granian", *packages, "uvloop")
    return Peer(
        name=name,
        kind="server",
        command=_granian(interface, app),
        paths=SERVER_PATHS,
        version=version,
        missing=missing,
        notes=(
            f"{notes} granian --interface {interface} --workers 1 --loop uvloop --http 1 (a parent and one "
            "worker process, whose network side is a Rust thread of its own), --backpressure raised to "
            "20,000 requests."
        ),
    )


PEERS = (
    _peer(
        "granian-starlette",
        "asgi",
        "bench.peers.uvicorn_starlette:create_app",
        ("starlette",),
        "Starlette's StreamingResponse.",
    ),
    _peer(
        "granian-raw",
        "asgi",
        "bench.peers.uvicorn_raw:create_app",
        (),
        "The plain ASGI function of uvicorn-raw.",
    ),
    _peer("granian-rsgi", "rsgi", "bench.peers.granian_server:create_app", (), "RSGI: send_str() per chunk."),
)


def create_app() -> Any:
    from granian.rsgi import ProtocolClosed

    from bench.peers._source import events, stats

    async def app(scope: Any, protocol: Any) -> None:
        if scope.path == "/stats":
            protocol.response_str(200, [("content-type", "application/json")], json.dumps(stats))
            return
        body = await protocol()
        stream = protocol.response_stream(200, [("content-type", "text/event-stream")])
        try:
            async for chunk in events(body):
                await stream.send_str(chunk)
        except ProtocolClosed:
            pass  # the client has gone; uncaught, granian logs a traceback for each

    return app

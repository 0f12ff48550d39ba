"""aiohttp's own server, with ``StreamResponse.write()``."""

# The framework is in the private environment only.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys
from typing import Any

from bench.peers.contract import BACKLOG, SERVER_PATHS, Peer, PeerContext, python_packages

_version, _missing = python_packages("aiohttp", "uvloop")


def _command(ctx: PeerContext) -> list[str]:
    return [ctx.python, "-m", "bench.peers.aiohttp_server", ctx.host, str(ctx.port)]


PEERS = (
    Peer(
        name="aiohttp",
        kind="server",
        command=_command,
        paths=SERVER_PATHS,
        version=_version,
        missing=_missing,
        notes=(
            "aiohttp's documentation: StreamResponse, prepare(), await write() per chunk, write_eof(). "
            "uvloop, no access log. Handlers are not cancelled when a client leaves (aiohttp's default "
            "since 3.7): it notices at the next write."
        ),
    ),
)


def main(host: str, port: int) -> None:
    import uvloop
    from aiohttp import web

    from bench.peers._source import events, stats

    async def chat(request: Any) -> Any:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            async for chunk in events(await request.read()):
                await response.write(chunk.encode())
            await response.write_eof()
        except ConnectionResetError:
            pass  # the client has gone; uncaught, aiohttp logs a traceback for each
        return response

    async def counters(request: Any) -> Any:
        return web.json_response(stats)

    app = web.Application()
    app.add_routes([web.post("/chat", chat), web.get("/stats", counters)])
    web.run_app(app, host=host, port=port, access_log=None, print=None, backlog=BACKLOG, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""A relay of aiohttp: its client on one side, its server on the other."""

# The framework is in the private environment only.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from typing import Any

from bench.peers.contract import BACKLOG, GATEWAY_PATHS, Peer, PeerContext, python_packages

_version, _missing = python_packages("aiohttp", "uvloop")


def _command(ctx: PeerContext) -> list[str]:
    return [ctx.python, "-m", "bench.peers.gateway_aiohttp", ctx.host, str(ctx.port), ctx.upstream]


PEERS = (
    Peer(
        name="aiohttp-gateway",
        kind="gateway",
        command=_command,
        paths=GATEWAY_PATHS,
        version=_version,
        missing=_missing,
        stats=None,
        notes=(
            "aiohttp's documentation: one ClientSession, content.iter_any() into StreamResponse.write(). No "
            "timeout, no connection limit (the default of 100 would queue), uvloop, no access log. Bytes, "
            "unread."
        ),
    ),
)

_HOP = {"host", "connection", "keep-alive", "transfer-encoding", "content-length"}


def main(host: str, port: int, upstream: str) -> None:
    import aiohttp
    import uvloop
    from aiohttp import web

    session_key = web.AppKey("session", aiohttp.ClientSession)

    async def session(app: Any) -> AsyncGenerator[None, None]:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(upstream, connector=connector, timeout=timeout) as made:
            app[session_key] = made
            yield

    async def relay(request: Any) -> Any:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        body = await request.read()
        async with request.app[session_key].request(
            request.method, request.path_qs, headers=headers, data=body
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            try:
                async for data in answer.content.iter_any():
                    await response.write(data)
                await response.write_eof()
            except ConnectionResetError:
                answer.close()  # the client has gone
            return response

    app = web.Application()
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", relay)
    web.run_app(app, host=host, port=port, access_log=None, print=None, backlog=BACKLOG, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])

"""nginx speaks HTTP/2 in front of a plain rawstream on HTTP/1.1: a stream is a connection of its own behind it."""

from __future__ import annotations

import sys
from collections.abc import Callable

from bench.host import free_port
from bench.peers.contract import SERVER_PATHS, Peer, PeerContext
from bench.peers.gateway_nginx import configuration, missing, nginx, version
from bench.peers.rawstream import own_source


def in_front_of(ctx: PeerContext, behind: Callable[[int], list[str]]) -> list[str]:
    """The command line of nginx and of what stands behind it, which is told its port: one process tree."""
    port = free_port()
    config = ctx.workdir / "nginx.conf"
    config.write_text(configuration(ctx, f"{ctx.host}:{port}", http2=True))
    launcher = [sys.executable, "-m", "bench.peers._behind", str(port)]
    return [*launcher, *behind(port), "--", *nginx(ctx, config)]


def _command(ctx: PeerContext) -> list[str]:
    return in_front_of(ctx, lambda port: own_source(ctx, port))


PEERS = (
    Peer(
        name="nginx-http2",
        kind="http2",
        command=_command,
        paths=SERVER_PATHS,
        version=version,
        missing=missing,
        stats=None,
        notes=(
            "listen … http2 on a plain port (its default of 128 streams per connection), one worker, 20,000 "
            "connections, proxy_buffering off, HTTP/1.1 and keepalive 1024 to a plain rawstream behind it. CPU is that "
            "of both together."
        ),
        http2=True,
    ),
)

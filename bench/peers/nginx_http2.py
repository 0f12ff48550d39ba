"""nginx speaks HTTP/2 in front of a plain rawstream on HTTP/1.1: a stream is a connection of its own behind it."""

from __future__ import annotations

import sys

from bench.host import free_port
from bench.peers.contract import SERVER_PATHS, Peer, PeerContext
from bench.peers.gateway_nginx import configuration, missing, nginx, version
from bench.peers.rawstream import own_source


def _command(ctx: PeerContext) -> list[str]:
    behind = free_port()
    config = ctx.workdir / "nginx.conf"
    config.write_text(configuration(ctx, f"{ctx.host}:{behind}", http2=True))
    launcher = [sys.executable, "-m", "bench.peers._behind", str(behind)]
    return [*launcher, *own_source(ctx, behind), "--", *nginx(ctx, config)]


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

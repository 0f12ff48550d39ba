"""nginx ends TLS in front of a plain rawstream: what most people have who have https. Both are counted."""

from __future__ import annotations

import sys

from bench.certificate import make_certificate
from bench.certificate import missing as no_certificate
from bench.host import free_port
from bench.peers.contract import SERVER_PATHS, Peer, PeerContext
from bench.peers.gateway_nginx import configuration, missing, nginx, version
from bench.peers.rawstream import own_source


def _command(ctx: PeerContext) -> list[str]:
    behind = free_port()
    made = make_certificate(ctx.workdir)
    config = ctx.workdir / "nginx.conf"
    config.write_text(configuration(ctx, f"{ctx.host}:{behind}", certificate=made))
    # The launcher starts what stands behind, waits until it accepts, and becomes nginx: one process tree.
    launcher = [sys.executable, "-m", "bench.peers._behind", str(behind)]
    return [*launcher, *own_source(ctx, behind), "--", *nginx(ctx, config)]


PEERS = (
    Peer(
        name="nginx-tls",
        kind="tls",
        command=_command,
        paths=SERVER_PATHS,
        version=version,
        missing=lambda ctx: no_certificate() or missing(ctx),
        stats=None,
        notes=(
            "nginx's own https (ssl_protocols TLSv1.2 TLSv1.3, one worker, ECDSA P-256), proxy_buffering off, "
            "keep-alive to a plain rawstream behind it. CPU is that of both together."
        ),
        tls=True,
    ),
)

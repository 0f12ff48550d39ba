"""uvicorn's own https: the same plain ASGI function, with ``--ssl-keyfile`` and ``--ssl-certfile``."""

from __future__ import annotations

from bench.certificate import make_certificate
from bench.certificate import missing as no_certificate
from bench.peers.contract import SERVER_PATHS, Peer, PeerContext, python_packages
from bench.peers.uvicorn_starlette import uvicorn


def _peer(http: str) -> Peer:
    version, missing = python_packages("uvicorn", http, "uvloop")
    plain = uvicorn(http, "bench.peers.uvicorn_raw:create_app")

    def command(ctx: PeerContext) -> list[str]:
        made = make_certificate(ctx.workdir)
        return [*plain(ctx), "--ssl-certfile", str(made.cert), "--ssl-keyfile", str(made.key)]

    return Peer(
        name=f"uvicorn-tls-{http}",
        kind="tls",
        command=command,
        paths=SERVER_PATHS,
        version=version,
        missing=lambda ctx: no_certificate() or missing(ctx),
        notes=f"uvicorn-raw-{http} with --ssl-certfile and --ssl-keyfile (ECDSA P-256): uvloop's own TLS.",
        tls=True,
    )


PEERS = (_peer("h11"), _peer("httptools"))

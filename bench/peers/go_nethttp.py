"""Go: ``net/http`` with ``Flush()`` per pull, over TLS too; ``httputil.ReverseProxy`` with ``FlushInterval: -1``."""

from __future__ import annotations

from bench.certificate import make_certificate
from bench.certificate import missing as no_certificate
from bench.peers.contract import GATEWAY_PATHS, SERVER_PATHS, Peer, PeerContext, output_of


def _binary(ctx: PeerContext) -> str:
    return str(ctx.env_dir / "bin" / "go-peer")


def _server(ctx: PeerContext) -> list[str]:
    return [_binary(ctx), "server", ctx.host, str(ctx.port)]


def _http2(ctx: PeerContext) -> list[str]:
    made = make_certificate(ctx.workdir)
    return [_binary(ctx), "tls", ctx.host, str(ctx.port), str(made.cert), str(made.key)]


def _gateway(ctx: PeerContext) -> list[str]:
    return [_binary(ctx), "gateway", ctx.host, str(ctx.port), ctx.upstream]


def _version(ctx: PeerContext) -> str:
    words = (output_of(ctx.go, "version") if ctx.go else "").split()
    return f"Go {words[2].removeprefix('go')}" if len(words) > 2 else "Go (compiler absent)"


def _missing(ctx: PeerContext) -> str | None:
    if (ctx.env_dir / "bin" / "go-peer").exists():
        return None
    if ctx.go is None:
        return "go is not installed (python -m bench peers --install --apt)"
    return "the Go peer is not built (python -m bench peers --install)"


PEERS = (
    Peer(
        name="go-nethttp",
        kind="server",
        command=_server,
        paths=SERVER_PATHS,
        version=_version,
        missing=_missing,
        notes=(
            "net/http, http.Flusher after each event, r.Context() ends the source. GOMAXPROCS=1 (one "
            "worker). Its writes block the stream's own goroutine: that is its backpressure."
        ),
    ),
    Peer(
        name="go-http2",
        kind="http2",
        command=_http2,
        paths=SERVER_PATHS,
        version=_version,
        missing=lambda ctx: no_certificate() or _missing(ctx),
        notes=(
            "go-nethttp by ListenAndServeTLS (ECDSA P-256): net/http speaks HTTP/2 over TLS alone. Its default of 250 "
            "streams per connection."
        ),
        tls=True,
        http2=True,
    ),
    Peer(
        name="go-gateway",
        kind="gateway",
        command=_gateway,
        paths=GATEWAY_PATHS,
        version=_version,
        missing=_missing,
        stats=None,
        notes=(
            "httputil.NewSingleHostReverseProxy, FlushInterval -1, 1,024 idle connections; GOMAXPROCS=1. Bytes, unread."
        ),
    ),
)

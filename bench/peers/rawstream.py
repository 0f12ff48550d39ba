"""rawstream itself, and its own wrong disciplines."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import metadata
from typing import Final

from bench.certificate import make_certificate
from bench.certificate import missing as no_certificate
from bench.peers._key import KEY, OTHERS, everything
from bench.peers.contract import Peer, PeerContext
from bench.redis import missing as no_redis

_SOURCE: Final = ("--source", "bench.peers._source:for_rawstream")


def _serve(ctx: PeerContext, *more: str, port: int | None = None) -> list[str]:
    where = ["--host", ctx.host, "--port", str(port or ctx.port)]
    return [sys.executable, "-m", "rawstream", "serve", *where, "--log-level", "warning", *more]


def own_source(ctx: PeerContext, port: int) -> list[str]:
    """rawstream with the source that all Python peers share, on another port than the peer's."""
    return _serve(ctx, *_SOURCE, port=port)


def _chat(ctx: PeerContext) -> list[str]:
    return _serve(ctx, *_SOURCE, "--lab")


def _tls(ctx: PeerContext) -> list[str]:
    made = make_certificate(ctx.workdir)
    return _serve(ctx, *_SOURCE, "--ssl-certfile", str(made.cert), "--ssl-keyfile", str(made.key))


def _with_users(ctx: PeerContext) -> list[str]:
    config = ctx.workdir / "rawstream.toml"
    config.write_text(everything())
    return ["--config", str(config)]


def _everything(ctx: PeerContext) -> list[str]:
    return _serve(ctx, *_SOURCE, "--lab", *_with_users(ctx))


def _gateway_everything(ctx: PeerContext) -> list[str]:
    return _serve(ctx, "--upstream", f"{ctx.upstream}/v1", *_with_users(ctx))


def _own_mock(ctx: PeerContext) -> list[str]:
    return _serve(ctx, "--lab")


def _gateway(ctx: PeerContext) -> list[str]:
    return _serve(ctx, "--upstream", f"{ctx.upstream}/v1")


def _version(ctx: PeerContext) -> str:
    return ", ".join(f"{package} {metadata.version(package)}" for package in ("rawstream", "uvloop", "h11"))


def _missing(ctx: PeerContext) -> str | None:
    try:
        metadata.version("rawstream")
    except metadata.PackageNotFoundError:
        return "rawstream is not installed (pip install -e .)"
    return None


def _without_redis(ctx: PeerContext) -> str | None:
    return no_redis() or _missing(ctx)


def _peer(name: str, chat: str, notes: str) -> Peer:
    return Peer(
        name=name,
        kind="rawstream",
        command=_own_mock if name == "rawstream-mock" else _chat,
        paths={"chat": chat, "stats": "/debug/streams", "text": "/text"},
        version=_version,
        missing=_missing,
        stats="/debug/streams",
        notes=notes,
    )


_CHAT = replace(
    _peer("rawstream", "/chat", "rawstream serve with its defaults, and the source that all Python peers share."),
    http2=True,
)
_GATEWAY = Peer(
    name="rawstream-gateway",
    kind="rawstream",
    command=_gateway,
    paths={"completions": "/v1/chat/completions", "chat": "/chat", "stats": "/debug/streams"},
    version=_version,
    missing=_missing,
    stats="/debug/streams",
    notes="rawstream serve --upstream, with its defaults.",
)
_ON = (
    f"{OTHERS + 1} [[users]] with keys, all limits and token budgets set (none is reached), /metrics read each second."
)

PEERS = (
    _CHAT,
    replace(
        _CHAT,
        name="rawstream-tls",
        command=_tls,
        missing=lambda ctx: no_certificate() or _missing(ctx),
        notes="rawstream with --ssl-certfile and --ssl-keyfile (ECDSA P-256).",
        tls=True,
    ),
    replace(_CHAT, name="rawstream-everything", command=_everything, notes=f"rawstream with {_ON}", key=KEY),
    replace(
        _GATEWAY,
        name="rawstream-gateway-everything",
        command=_gateway_everything,
        notes=f"rawstream serve --upstream with {_ON}",
        key=KEY,
    ),
    replace(_CHAT, name="rawstream-resumable", notes="rawstream, asked for answers that can be resumed."),
    replace(_GATEWAY, name="rawstream-gateway-resumable", notes="rawstream-gateway, asked for the same."),
    replace(_CHAT, name="rawstream-redis", missing=_without_redis, notes="rawstream-resumable with --redis."),
    replace(_GATEWAY, name="rawstream-gateway-redis", missing=_without_redis, notes="The same as a gateway."),
    _peer(
        "rawstream-broken",
        "/chat-broken",
        "Eager and unbounded: what most handlers do. The same process as rawstream.",
    ),
    _peer("rawstream-whole", "/chat-whole", "The whole answer first. The same process as rawstream."),
    _peer("rawstream-drain", "/chat-drain", "await drain() with default buffers. The same process as rawstream."),
    _peer(
        "rawstream-mock",
        "/chat",
        "rawstream serve with nothing to configure: its built-in mock source, which shares timers between "
        "streams and does not catch up after a pause. The product as it comes, not comparable.",
    ),
    _GATEWAY,
)

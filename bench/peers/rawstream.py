"""rawstream itself, and its own wrong disciplines."""

from __future__ import annotations

import sys
from importlib import metadata

from bench.peers.contract import Peer, PeerContext


def _serve(ctx: PeerContext, *more: str) -> list[str]:
    where = ["--host", ctx.host, "--port", str(ctx.port)]
    return [sys.executable, "-m", "rawstream", "serve", *where, "--log-level", "warning", *more]


def _chat(ctx: PeerContext) -> list[str]:
    return _serve(ctx, "--source", "bench.peers._source:for_rawstream", "--lab")


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


PEERS = (
    _peer("rawstream", "/chat", "rawstream serve with its defaults, and the source that all Python peers share."),
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
    Peer(
        name="rawstream-gateway",
        kind="rawstream",
        command=_gateway,
        paths={"completions": "/v1/chat/completions", "chat": "/chat", "stats": "/debug/streams"},
        version=_version,
        missing=_missing,
        stats="/debug/streams",
        notes="rawstream serve --upstream, with its defaults.",
    ),
)

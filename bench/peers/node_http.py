"""Node: its own http server with ``drain``, Express without and with it, and a gateway that pipes."""

from __future__ import annotations

import json
from collections.abc import Callable

from bench.peers.contract import GATEWAY_PATHS, HERE, SERVER_PATHS, Peer, PeerContext, output_of


def _script(name: str, *more: str) -> Callable[[PeerContext], list[str]]:
    def command(ctx: PeerContext) -> list[str]:
        return [str(ctx.node), str(HERE / "node" / name), ctx.host, str(ctx.port), *more]

    return command


def _gateway(ctx: PeerContext) -> list[str]:
    return [str(ctx.node), str(HERE / "node" / "gateway.mjs"), ctx.host, str(ctx.port), ctx.upstream]


def _node_version(ctx: PeerContext) -> str:
    return f"Node {output_of(str(ctx.node), '--version').removeprefix('v')}"


def _express_version(ctx: PeerContext) -> str:
    about = json.loads((ctx.env_dir / "node_modules" / "express" / "package.json").read_text())
    return f"Express {about['version']}, {_node_version(ctx)}"


def _no_node(ctx: PeerContext) -> str | None:
    return None if ctx.node else "node is not installed"


def _no_express(ctx: PeerContext) -> str | None:
    if ctx.node and not (ctx.env_dir / "node_modules" / "express" / "package.json").exists():
        return "express is not installed (python -m bench peers --install)"
    return _no_node(ctx)


PEERS = (
    Peer(
        name="node-http",
        kind="server",
        command=_script("http_drain.mjs"),
        paths=SERVER_PATHS,
        version=_node_version,
        missing=_no_node,
        notes=(
            "Node's documentation of writable.write(): once it returns false, wait for 'drain'. The "
            "response's 'close' aborts the source and the wait."
        ),
    ),
    Peer(
        name="node-express",
        kind="server",
        command=_script("express.mjs", "plain"),
        paths=SERVER_PATHS,
        version=_express_version,
        missing=_no_express,
        notes=(
            "Express as the tutorials have it: res.write() in a loop, what it returns is ignored, 'close' "
            "sets a flag that the loop looks at. NODE_ENV=production. Where the source neither waits nor "
            "suspends, the loop never gets back to the network: it sends nothing until the answer is "
            "complete, and an endless answer ends in 'heap out of memory'."
        ),
    ),
    Peer(
        name="node-express-drain",
        kind="server",
        command=_script("express.mjs", "drain"),
        paths=SERVER_PATHS,
        version=_express_version,
        missing=_no_express,
        notes="The same with a wait for 'drain' or 'close' when res.write() returns false.",
    ),
    Peer(
        name="node-gateway",
        kind="gateway",
        command=_gateway,
        paths=GATEWAY_PATHS,
        version=_node_version,
        missing=_no_node,
        stats=None,
        notes=("Node's http with pipe() both ways, a keep-alive agent, bytes unread; 'close' destroys the upstream's."),
    ),
)

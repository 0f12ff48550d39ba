"""The servers and gateways that rawstream is measured beside. One peer more is one small file here."""

from __future__ import annotations

import importlib
import pkgutil

from bench.peers.contract import Peer, PeerContext, make_context

__all__ = ["Peer", "PeerContext", "all_peers", "make_context"]

_NOT_PEERS = {"contract", "install", "autocannon"}


def all_peers() -> dict[str, Peer]:
    """Every peer by name, in the order of their kind and name; ValueError when two share a name.

    A module of this folder is a peer's when its name has no leading underscore and it has ``PEERS``.
    """
    found: dict[str, Peer] = {}
    for module_info in pkgutil.iter_modules(__path__):
        if module_info.name.startswith("_") or module_info.name in _NOT_PEERS:
            continue
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for peer in module.PEERS:
            if peer.name in found:
                raise ValueError(f"two peers are called {peer.name}")
            found[peer.name] = peer
    order = ("rawstream", "floor", "server", "gateway", "tls", "http2")
    return {peer.name: peer for peer in sorted(found.values(), key=lambda peer: (order.index(peer.kind), peer.name))}

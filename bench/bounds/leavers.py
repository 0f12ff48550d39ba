"""Clients vanish mid-stream while the source is silent: how long until the source is closed.

Milliseconds are looked at, so server and client run with real-time priority where they may (root): what else runs on
the machine then does not count. The same for whoever is compared.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.bounds.clients import chat, connect
from bench.bounds.server import OWN_SOURCE, Rawstream
from bench.bounds.table import Bench, Row, Verdict
from bench.host import undisturbed
from bench.peers import all_peers, make_context
from bench.serving import Server
from bench.trend import quantile

_CLIENTS = 200
_SILENCE = 5.0
_SPREAD = 1.5
"""Seconds over which they leave."""
_PEER = "uvicorn-starlette-h11"

Events = list[tuple[str, str, int, int]]


def _leave(
    port: int, request_of: Callable[[str], bytes], events: Callable[[], Events], patience: float
) -> dict[str, Any]:
    """Open the streams, have the first token of each, and leave one after the other."""
    links: list[socket.socket] = []
    for number in range(_CLIENTS):
        links.append(connect(port, request_of(str(number))))
    for link in links:
        head = b""
        while b'"token"' not in head:
            head += link.recv(4096)
    time.sleep(0.3)
    left: dict[str, int] = {}
    due = time.monotonic()
    for number, link in enumerate(links):
        due += _SPREAD / _CLIENTS
        time.sleep(max(0.0, due - time.monotonic()))
        left[str(number)] = time.monotonic_ns()
        link.close()
    until = time.monotonic() + patience
    closed: dict[str, int] = {}
    while len(closed) < _CLIENTS and time.monotonic() < until:
        time.sleep(0.1)
        closed = {name: at for kind, name, at, _ in events() if kind == "close" and name in left}
    taken = sorted((closed[name] - at) / 1e6 for name, at in left.items() if name in closed)
    found: dict[str, Any] = {"missed": _CLIENTS - len(taken)}
    if taken:
        found |= {"p50_ms": quantile(taken, 0.5), "p99_ms": quantile(taken, 0.99), "max_ms": taken[-1]}
    return found


def _text(found: dict[str, Any]) -> str:
    if "p50_ms" not in found:
        return f"none of {_CLIENTS} closed"
    times = ", ".join(f"{name[:-3]} {found[name]:.2f} ms" for name in ("p50_ms", "p99_ms", "max_ms"))
    return f"{times}; missed {found['missed']}"


def vanish(bench: Bench) -> Verdict:
    def ours(name: str) -> bytes:
        return chat(name=name, bounds={"wait": _SILENCE, "first": 0.0})

    def theirs(name: str) -> bytes:
        return chat(name=f"#{name}", mock={"tokens": None, "tokens_per_second": 1 / _SILENCE})

    with Rawstream(bench.cores.server, "--source", OWN_SOURCE) as server:
        _leave_one(server.port, ours("warm-up"))
        with undisturbed(0, server.pid) as allowed:
            found = _leave(server.port, ours, server.events, 2 * _SILENCE)
        found["real_time_priority"] = allowed
    comparison, other = f"{_PEER} is not installed", None
    peer = all_peers()[_PEER]
    if not peer.missing(make_context(0, Path("."), upstream_url=None)):
        with Server(peer, bench.cores.server) as running:
            _leave_one(running.port, theirs("warm-up"))
            with undisturbed(0, running.pid):
                other = _leave(running.port, theirs, running.events, _SILENCE if bench.quick else 2 * _SILENCE)
        comparison = f"{_PEER}: {_text(other)}"
    passed = found["missed"] == 0 and found["p99_ms"] <= 1.5
    return Verdict(passed, _text(found), comparison, {"rawstream": found, "other": other})


def _leave_one(port: int, request: bytes) -> None:
    for _ in range(5):
        with connect(port, request) as link:
            while b'"token"' not in link.recv(4096):
                pass


ROWS = (
    Row(
        "leavers",
        f"{_CLIENTS} clients vanish mid-stream, source silent {_SILENCE:g} s: source closed after",
        "p99 ≤ 1.5 ms, none missed",
        vanish,
    ),
)

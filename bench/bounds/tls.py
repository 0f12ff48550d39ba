"""The stalled client again, over TLS; and what the memory of such a stream consists of.

What a stream costs is measured six times for each loop: a connection that asks for nothing, one that waits for its next
token, one that reads nothing, each plain and over TLS. The differences are the parts: what TLS adds to a connection is
OpenSSL's state (and ``tls_objects`` asks malloc for the same); what it adds to a stream beyond that, buffers that
OpenSSL has touched since, is near nothing: a KiB or two either way is the heap's unevenness.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from bench.bounds import stalled
from bench.bounds.clients import ENDLESS, chat
from bench.bounds.memory import IDLE_MOCK, per_stream
from bench.bounds.server import Rawstream, proportional_bytes
from bench.bounds.table import KIB, Bench, CannotMeasure, Row, Verdict, kib
from bench.certificate import make_certificate
from bench.peers import all_peers, make_context
from bench.serving import Server

_LOOPS: Final = ("asyncio", "uvloop")
_STREAMS, _QUICK = 400, 150
_BEFORE: Final = 100
"""Streams that are open before counting begins."""
_PEER: Final = "uvicorn-tls-h11"
_STALLED_PEER, _QUICK_STALLED_PEER = 40, 10
_STATES: Final = {"connection": b"", "idle": chat(mock=IDLE_MOCK), "stalled": chat(mock=ENDLESS)}
"""State to request. Idle: a token in 20 s."""


def _measure(bench: Bench) -> dict[str, Any]:
    """Bytes of process memory (and of kernel queues) per stream, by loop, by plain or TLS, by state."""
    count = _QUICK if bench.quick else _STREAMS
    found: dict[str, Any] = {}
    for loop in _LOOPS:
        for tls in (False, True):
            kind = "TLS" if tls else "plain"
            for state, request in _STATES.items():
                bench.say(f"{loop}, {kind}, {state} …")
                patient = ("--stall-timeout", "600", "--head-timeout", "600", "--log-level", "warning")
                with Rawstream(bench.cores.server, "--loop", loop, *patient, tls=tls) as server:
                    seen = per_stream(server.port, count, request, server.memory, server.cpu, tls=tls, before=_BEFORE)
                found.setdefault(loop, {}).setdefault(kind, {})[state] = seen
    found["openssl"] = _objects()
    return found


def _objects() -> dict[str, float]:
    """Bytes that one server-side connection of OpenSSL allocates, Python's wrapper included (``tls_objects``)."""
    with tempfile.TemporaryDirectory() as folder:
        made = make_certificate(Path(folder))
        argv = [sys.executable, "-m", "bench.bounds.tls_objects", str(made.cert), str(made.key)]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise CannotMeasure(f"tls_objects: {done.stderr[-300:]}")
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def _peer(bench: Bench, state: str, count: int) -> str:
    peer = all_peers()[_PEER]
    why = peer.missing(make_context(0, Path("."), upstream_url=None))
    if why:
        return f"{_PEER}: {why}"
    with Server(peer, bench.cores.server) as server:
        pid = server.pid
        seen = per_stream(server.port, count, _STATES[state], lambda: proportional_bytes(pid), server.cpu, tls=True)
    return f"{_PEER} ({count} streams): {kib(seen['process'])} + {kib(seen['kernel'])} kernel"


def _parts(each: dict[str, Any], state: str) -> str:
    """The connection's part, its stream's, what TLS adds to a connection; and what that does not explain."""
    plain, tls = ({name: run["process"] for name, run in each[kind].items()} for kind in ("plain", "TLS"))
    state_of_openssl = tls["connection"] - plain["connection"]
    besides = tls[state] - plain[state] - state_of_openssl
    parts = {
        "the connection's objects": plain["connection"],
        "its stream's objects and buffer": plain[state] - plain["connection"],
        "OpenSSL's state": state_of_openssl,
        "besides": besides,
    }
    text = " + ".join(f"{kib(size)} {name}" for name, size in parts.items())
    return f"{kib(tls[state])} = {text} (and {kib(each['TLS'][state]['kernel'])} in kernel queues)"


def _verdict(bench: Bench, state: str, most: int, other: str) -> Verdict:
    found = bench.once("tls memory", _measure)
    loops = {loop: found[loop] for loop in _LOOPS}
    count = found[_LOOPS[0]]["TLS"][state]["streams"]
    measured = f"{count} streams: " + "; ".join(f"{loop} {_parts(each, state)}" for loop, each in loops.items())
    if state == "stalled":
        added = " and ".join(
            kib(each["TLS"]["stalled"]["process"] - each["TLS"]["idle"]["process"]) for each in loops.values()
        )
        objects = found["openssl"]
        measured += (
            f"; stalled minus idle {added}; by malloc, OpenSSL's connection is {kib(objects['established'])}, "
            f"{kib(objects['written'])} once it has written"
        )
    passed = all(each["TLS"][state]["process"] <= most for each in loops.values())
    return Verdict(passed, measured, other, found)


def held(bench: Bench) -> Verdict:
    return stalled.held_verdict(bench.once("tls stalled", lambda bench: stalled.measure(bench, tls=True)), 48 * KIB)


def ahead(bench: Bench) -> Verdict:
    return stalled.ahead_verdict(bench.once("tls stalled", lambda bench: stalled.measure(bench, tls=True)))


def memory_stalled(bench: Bench) -> Verdict:
    count = _QUICK_STALLED_PEER if bench.quick else _STALLED_PEER
    return _verdict(bench, "stalled", 40 * KIB, _peer(bench, "stalled", count))


def memory_idle(bench: Bench) -> Verdict:
    count = _QUICK if bench.quick else _STREAMS
    return _verdict(bench, "idle", 40 * KIB, _peer(bench, "idle", count))


ROWS = (
    Row("tls-stalled-bytes", "TLS: bytes held for one stalled client", "≤ 48 KiB, asyncio and uvloop", held),
    Row("tls-stalled-tokens", "TLS: tokens pulled ahead of it", "≤ 600", ahead),
    Row(
        "tls-memory-stalled",
        f"TLS: process memory per stalled stream, {_STREAMS} of them, and what it consists of",
        "≤ 40 KiB, asyncio and uvloop",
        memory_stalled,
    ),
    Row(
        "tls-memory-idle",
        f"TLS: process memory per idle open stream, {_STREAMS} of them (a token in 20 s)",
        "≤ 40 KiB, asyncio and uvloop",
        memory_idle,
    ),
)

"""What a stream costs in memory of the process: stalled, and open with nothing to do."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.bounds.clients import ENDLESS, chat, connect
from bench.bounds.server import Rawstream, come_to_rest, more_descriptors, proportional_bytes
from bench.bounds.table import KIB, Bench, CannotMeasure, Row, Verdict, kib
from bench.peers import all_peers, make_context
from bench.sample import KernelQueues, Queues
from bench.serving import Server

_PEER = "uvicorn-starlette-h11"
_STALLED, _STALLED_PEER = 500, 40  # a peer makes 100,000 tokens for each before it stops: that takes a second each
_IDLE = 2000
IDLE_MOCK = {"tokens": None, "tokens_per_second": 1 / 20, "first_token_seconds": 0.0}
_SHORT = {"tokens": 20, "tokens_per_second": None}


def per_stream(
    port: int,
    count: int,
    request: bytes,
    memory: Callable[[], int],
    cpu: Callable[[], float],
    *,
    tls: bool = False,
    before: int = 0,
) -> dict[str, Any]:
    """Growth of the process for each of ``count`` connections that send ``request`` (b'': nothing) and read nothing.

    ``before``: so many are open already when counting begins. They fill what the warm-up left free in the heap.
    """
    more_descriptors()
    for _ in range(20):
        with connect(port, chat(mock=_SHORT), tls=tls) as link:
            link.settimeout(1.0)
            with contextlib.suppress(TimeoutError):  # keep-alive: the answer is whole long before
                while b"[DONE]" not in link.recv(65536):
                    pass
    links: list[socket.socket] = []
    queues = KernelQueues()

    def open_to(number: int) -> tuple[int, Queues]:
        while len(links) < number:
            links.append(connect(port, request, tls=tls))
            if len(links) % 50 == 0:
                time.sleep(0.02)  # the backlog of some is short
        come_to_rest(cpu)
        return memory(), queues.of_port(port)

    try:
        memory_before, kernel_before = open_to(before)
        memory_after, kernel = open_to(before + count)
    finally:
        queues.close()
        for link in links:
            link.close()
    if kernel.sockets < before + count:
        raise CannotMeasure(f"only {kernel.sockets} of {before + count} connections were open at the end")
    return {
        "streams": count,
        "process": (memory_after - memory_before) / count,
        "kernel": (kernel.queued - kernel_before.queued) / count,
    }


def _of_rawstream(bench: Bench, count: int, request: bytes) -> dict[str, Any]:
    with Rawstream(bench.cores.server, "--log-level", "warning", "--stall-timeout", "600") as server:
        return per_stream(server.port, count, request, server.memory, server.cpu)


def _of_peer(bench: Bench, count: int, request: bytes) -> dict[str, Any] | None:
    peer = all_peers()[_PEER]
    if peer.missing(make_context(0, Path("."), upstream_url=None)):
        return None
    with Server(peer, bench.cores.server) as server:
        return per_stream(server.port, count, request, lambda: proportional_bytes(server.pid), server.cpu)


def _verdict(ours: dict[str, Any], other: dict[str, Any] | None, most: int) -> Verdict:
    comparison = f"{_PEER} is not installed"
    if other is not None:
        comparison = f"{_PEER} ({other['streams']:,} streams): {kib(other['process'])} + {kib(other['kernel'])} kernel"
    measured = f"{kib(ours['process'])} of process + {kib(ours['kernel'])} in kernel queues"
    return Verdict(ours["process"] <= most, measured, comparison, {"rawstream": ours, "other": other})


def stalled(bench: Bench) -> Verdict:
    request = chat(mock=ENDLESS)
    return _verdict(
        _of_rawstream(bench, _STALLED, request),
        _of_peer(bench, 10 if bench.quick else _STALLED_PEER, request),
        16 * KIB,
    )


def idle(bench: Bench) -> Verdict:
    request = chat(mock=IDLE_MOCK)
    count = 500 if bench.quick else _IDLE
    return _verdict(_of_rawstream(bench, _IDLE, request), _of_peer(bench, count, request), 10 * KIB)


ROWS = (
    Row("memory-stalled", f"process memory per stalled stream, {_STALLED} of them", "≤ 16 KiB", stalled),
    Row("memory-idle", f"process memory per idle open stream, {_IDLE:,} of them (a token in 20 s)", "≤ 10 KiB", idle),
)

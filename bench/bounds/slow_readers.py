"""Fifty slow readers on an endless source: what each discipline costs the machine."""

from __future__ import annotations

import selectors
import socket
import time
from typing import Any

from bench.bounds.clients import chat, connect
from bench.bounds.server import Rawstream, proportional_bytes
from bench.bounds.table import MIB, Bench, Row, Verdict, kib

_READERS = 50
_BYTES, _EVERY = 4096, 0.1
_MOCK = {"tokens": None, "tokens_per_second": None, "batch": 64}
"""Unpaced, and 64 tokens ready together: with one by one, /chat-drain (a write for each) makes fewer than are read."""


def _read_slowly(links: list[socket.socket], until: float, look: float, looks: Any) -> None:
    """Each reads 4 KiB every 100 ms, spread over that time; ``looks`` is called every ``look`` seconds."""
    for link in links:
        link.setblocking(False)
    waiting = selectors.DefaultSelector()
    due, step = time.monotonic(), _EVERY / len(links)
    at, next_look = 0, due
    while (now := time.monotonic()) < until:
        if now >= next_look:
            looks()
            next_look = now + look
        due += step
        if due > now:
            waiting.select(due - now)
        link = links[at % len(links)]
        at += 1
        try:
            link.recv(_BYTES)
        except BlockingIOError:
            continue
        except OSError:
            continue  # cut by the server: the lab's cap does that
    waiting.close()


def _run(bench: Bench, path: str, seconds: float) -> dict[str, Any]:
    with Rawstream(bench.cores.server, "--lab", "--log-level", "warning") as server:
        for _ in range(5):
            with connect(server.port, chat(mock={"tokens": 20, "tokens_per_second": None})) as link:
                link.recv(65536)
        time.sleep(0.3)
        before = proportional_bytes(server.pid)
        peak = {"process": 0, "kernel": 0, "all": 0}

        def look() -> None:
            process = proportional_bytes(server.pid) - before
            kernel = server.kernel().queued
            peak["process"] = max(peak["process"], process)
            peak["kernel"] = max(peak["kernel"], kernel)
            peak["all"] = max(peak["all"], process + kernel)

        links = [connect(server.port, chat(path, mock=_MOCK)) for _ in range(_READERS)]
        try:
            _read_slowly(links, time.monotonic() + seconds, 0.25, look)
        finally:
            for link in links:
                link.close()
        tokens = server.totals()["tokens"]
    return {**peak, "tokens": tokens}


def fifty(bench: Bench) -> Verdict:
    seconds = 8.0 if bench.quick else 30.0
    found: dict[str, Any] = {}
    for path in ("/chat-broken", "/chat-drain", "/chat"):
        bench.say(f"{path}, {seconds:g} s …")
        found[path] = _run(bench, path, seconds)
    passed = found["/chat"]["all"] <= 4 * MIB and found["/chat-broken"]["all"] >= 500_000_000 * seconds / 30
    texts = {
        path: f"{path} {kib(run['all'])} (process {kib(run['process'])}, kernel {kib(run['kernel'])})"
        for path, run in found.items()
    }
    measured = f"in {seconds:g} s: {texts['/chat']}; {texts['/chat-broken']}"
    return Verdict(passed, measured, texts["/chat-drain"], {"seconds": seconds, **found})


ROWS = (
    Row(
        "slow-readers",
        f"{_READERS} clients read 4 KiB every 100 ms, unpaced source (64 tokens at a time): growth, process and kernel",
        "/chat-broken ≥ 500 MB (under its cap, 1 GiB of buffers), /chat-drain by what it holds, /chat ≤ 4 MiB in all",
        fifty,
    ),
)

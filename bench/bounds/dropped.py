"""A thousand streams dropped at random moments: nothing of them may be left."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from typing import Any

from bench.bounds.clients import RECEIVE_BUFFER, chat, completion, connect, read_until
from bench.bounds.server import OWN_SOURCE, Rawstream
from bench.bounds.table import Bench, CannotMeasure, Row, Verdict

_STREAMS = 1000
_AT_ONCE = 50
_MOMENTS = ("connected", "head unread", "before the first token", "mid-stream", "stalled")


async def _visit(port: int, number: int, dice: random.Random) -> str:
    """One stream, dropped at a moment that the dice choose; the moment."""
    moment = dice.choice(_MOMENTS)
    options: dict[str, Any] = {"wait": 0.01, "first": 0.0}
    if moment in ("head unread", "before the first token"):
        options["first"] = dice.uniform(0.0, 0.2)
    elif moment == "stalled":
        options["wait"] = None
    request = dice.choice((chat, completion))
    data = request(bounds=options)
    if number % 20 == 0:
        data = chat("/text", bounds=options)
    loop = asyncio.get_running_loop()
    with socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        link.setblocking(False)
        await loop.sock_connect(link, ("127.0.0.1", port))
        if moment == "connected":
            await loop.sock_sendall(link, data[: dice.randrange(len(data))])
        else:
            await loop.sock_sendall(link, data)
        if moment == "before the first token":
            await asyncio.sleep(dice.uniform(0.0, 0.2))
        elif moment == "mid-stream":
            for _ in range(dice.randrange(1, 6)):
                if not await asyncio.wait_for(loop.sock_recv(link, dice.choice((1, 40, 4096))), 10):
                    raise CannotMeasure(f"stream {number} ended by itself")
        elif moment == "stalled":
            await asyncio.sleep(dice.uniform(0.05, 0.3))
        if dice.random() < 0.3:  # with a reset
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return moment


async def _all(port: int, seed: int) -> dict[str, int]:
    dice = random.Random(seed)
    moments = dict.fromkeys(_MOMENTS, 0)
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int) -> None:
        async with places:
            moments[await _visit(port, number, dice)] += 1

    async with asyncio.TaskGroup() as group:
        for number in range(_STREAMS):
            group.create_task(one(number))
    return moments


def _tasks(port: int) -> int:
    """How many tasks the server's process has, ours included."""
    with connect(port, chat("/text", name="tasks", bounds={}), receive_buffer=0) as link:
        _, _, body = read_until(link, b"0\r\n\r\n").partition(b"\r\n\r\n")
    return int(body.split(b"\r\n")[1])


def _levels(server: Rawstream) -> dict[str, int]:
    totals = server.totals()
    return {
        "streams": totals["streams"],
        "connections": totals["connections"] - 1,  # the one that asks
        "buffered": totals["buffered"],
        "descriptors": server.descriptors(),
        "kernel queues": server.kernel().queued,
    }


def _back_to(server: Rawstream, before: dict[str, int], patience: float = 5.0) -> tuple[dict[str, int], float]:
    """The levels once they are as before, or after ``patience`` seconds; how long it took."""
    began = time.monotonic()
    while (now := _levels(server)) != before and time.monotonic() - began < patience:
        time.sleep(0.02)
    return now, time.monotonic() - began


def _opened_and_closed(server: Rawstream) -> tuple[int, int]:
    kinds = [kind for kind, *_ in server.events()]
    return kinds.count("open"), kinds.count("close")


def _left(bench: Bench, *, gateway: bool, loop: str) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        flags = ("--loop", loop, "--lab", "--log-level", "error")
        source = stack.enter_context(Rawstream(bench.cores.server, *flags, "--source", OWN_SOURCE))
        servers = {"the source's server": source}
        front = source
        if gateway:
            pool = ("--upstream-pool-idle", "0.1")  # an idle pooled connection is no leak; it goes soon
            front = stack.enter_context(Rawstream(bench.cores.server, *flags, *pool, "--upstream", f"{source.url}/v1"))
            servers["the gateway"] = front
        for _ in range(3):
            with connect(front.port, chat("/text", name="warm-up", bounds={"count": 1}), receive_buffer=0) as link:
                read_until(link, b"0\r\n\r\n")
        time.sleep(0.5)
        tasks = _tasks(source.port)
        before = {name: _levels(server) for name, server in servers.items()}
        moments = asyncio.run(_all(front.port, seed=1))
        found: dict[str, Any] = {"moments": moments, "left": {}, "seconds": 0.0}
        for name, server in servers.items():
            now, took = _back_to(server, before[name])
            found["seconds"] = max(found["seconds"], took)
            found["left"] |= {f"{name}: {what}": now[what] - n for what, n in before[name].items() if now[what] != n}
        found["opened"], found["closed"] = _opened_and_closed(source)
        found["tasks_left"] = _tasks(source.port) - tasks
        found["outcomes"] = {name: count for name, count in front.totals()["outcomes"].items() if count}
    return found


def thousand(bench: Bench) -> Verdict:
    found = {}
    for loop in ("uvloop", "asyncio"):
        found[f"direct, {loop}"] = _left(bench, gateway=False, loop=loop)
        found[f"gateway, {loop}"] = _left(bench, gateway=True, loop=loop)
    parts, passed = [], True
    for name, run in found.items():
        left = ", ".join(f"{what} {n:+}" for what, n in run["left"].items()) or "nothing left"
        passed = passed and not run["left"] and run["opened"] == run["closed"] and run["tasks_left"] <= 0
        sources = f"sources opened {run['opened']:,}, closed {run['closed']:,}"
        parts.append(f"{name}: {left}; {sources}; tasks {run['tasks_left']:+} (after {run['seconds']:.1f} s)")
    return Verdict(passed, " · ".join(parts), "", found)


ROWS = (
    Row(
        "dropped",
        f"{_STREAMS:,} streams started and dropped at random moments, directly and through the gateway",
        "no task, socket, upstream connection or buffer left",
        thousand,
    ),
)

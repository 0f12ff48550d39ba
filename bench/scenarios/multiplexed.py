"""Many streams on one connection of HTTP/2: what a token costs, whether all get theirs, how soon one is given up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from bench.host import undisturbed
from bench.http2_reader import Http2Reader, read_for
from bench.peers import Peer
from bench.results import Measurement
from bench.sample import cpu_by_name, waited_seconds
from bench.scenarios.base import Bench, Column, Goal, Scale, Scenario, lasting, mark_bottleneck
from bench.serving import Server, ServerFailed
from bench.trend import quantile

RATE: Final = 50
STREAMS: Final = 100
CONNECTIONS: Final = {"one": 1, "ten": 10}
SECONDS: Final = {"full": 10.0, "short": 5.0, "toy": 1.0}
WARM: Final = 1.0
EVERY: Final = 0.01
"""Seconds from one reset to the next."""
TIMES: Final = {"full": 3, "short": 2, "toy": 1}
"""Connections of 100 streams, one after the other, whose streams are reset, or which are lost."""
PATIENCE: Final = 2.0
"""Seconds after the last reset for sources to close; a token is due every 0.02 s."""
TOO_SLOW: Final = 0.9
"""Share of the tokens that were due: with less of them, the server did not keep the pace."""
PACED: Final[Mapping[str, object]] = MappingProxyType({"tokens": 500_000, "tokens_per_second": RATE})


class Multiplexed(Scenario):
    name = "multiplexed"
    title = "Multiplexed: 100 streams at 50 tokens/s on each connection of HTTP/2"
    about = (
        f"{STREAMS} streams of {RATE} tokens/s on one connection of HTTP/2, and on each of ten. CPU per token is taken "
        "while all of them run; fairness is the slowest stream's tokens over the fastest's. On a plain port, begun "
        "with prior knowledge: **rawstream**, **Hypercorn**, and **nginx** in front of a plain rawstream, a connection "
        "of HTTP/1.1 behind it for each stream, both counted (nginx's own part beside it). Over TLS, agreed on by "
        "ALPN, since Go's `net/http` speaks HTTP/2 nowhere else: **Go** and **rawstream-tls**, in tables of their own. "
        "All of them take 100 streams on a connection as they come. The reader is Python, in the bench's own process; "
        "it counts tokens and does not compare them, and its core is shown. A server that does not keep up writes many "
        "tokens together, late, which costs less for each: tokens in a frame show it, and less than "
        f"{TOO_SLOW:.0%} of those that were due are marked. “Reset”: {STREAMS} streams run, and one after the other, "
        f"every {EVERY * 1000:g} ms, is given up by RST_STREAM; measured is the time from there to the end of its "
        "source in the server (its `finally`), both by CLOCK_MONOTONIC. “Lost”: the connection is closed under "
        f"{STREAMS} streams, and all their sources have to end. “Never”: not within {PATIENCE:g} s; a source that "
        "ends before its stream is given up is a failure. There the threads of server and reader run with real-time "
        "priority (SCHED_FIFO), whichever peer it is; where the harness may not give it (it takes root) the run is "
        "marked."
    )
    part_titles = MappingProxyType(
        {
            "one": "1 connection",
            "ten": "10 connections",
            "one_tls": "1 connection, over TLS",
            "ten_tls": "10 connections, over TLS",
            "reset": "streams are reset one by one",
            "lost": "the connection is lost",
        }
    )
    columns = (
        Column("us_per_token", "CPU per token", "µs", "less", 2, ratio=True),
        Column("front_us_per_token", "nginx's part", "µs", None, 2),
        Column("fairness", "slowest over fastest", "", "more", 3),
        Column("complete", "streams that ran", "of all", "more", 3),
        Column("pace", "tokens that came", "of due", None, 3),
        Column("together", "tokens in a frame", "", "less", 2),
        Column("server_cpu", "server's core", "share", None, 2),
        Column("generator_cpu", "reader's core", "share", None, 2),
        Column("cancel_p50_ms", "until closed, p50", "ms", "less", 2, ratio=True),
        Column("cancel_p99_ms", "p99", "ms", "less", 2, ratio=True),
        Column("cancel_max_ms", "most", "ms", "less", 2),
        Column("never", "never", "streams", "less", 0),
    )
    goals = (
        Goal("one", "fairness", ">=", 0.95, "every stream gets its tokens"),
        Goal("reset", "cancel_p50_ms", "<=", 2.0, "a reset ends its source within 2 ms (p50)"),
    )
    bars = ("us_per_token", "cancel_p99_ms")
    us = ("rawstream", "rawstream-tls")
    wins = (
        "nginx and Go are compiled: they look at a frame of HTTP/2 for a fraction of a microsecond, where h2 and ours "
        "are Python. Who is saturated writes the tokens of many moments together, and pays less for each."
    )

    def parts(self, scale: Scale) -> Sequence[str]:
        return ("one", "one_tls", "reset", "lost") if scale == "toy" else tuple(self.part_titles)

    def wants(self, peer: Peer, part: str) -> bool:
        taking = peer.http2 and (peer.kind != "rawstream" or peer.name in self.us)
        return taking and (part in ("reset", "lost") or peer.tls == part.endswith("_tls"))

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        if part in ("reset", "lost"):
            return TIMES[scale] * (WARM + (STREAMS * EVERY if part == "reset" else 0.0) + 0.3) + 2
        return lasting(SECONDS, scale, stretch) + WARM + 2

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        with bench.server(peer, warm=False) as server:
            _warm_up(server)
            if part in ("reset", "lost"):
                _leave(server, part, TIMES[bench.scale], found)
            else:
                _run(server, CONNECTIONS[part.removesuffix("_tls")], bench.lasting(SECONDS), found)


def _warm_up(server: Server) -> None:
    """Short answers, as every scenario begins with, but over HTTP/2: nginx's port may speak nothing else."""
    with _connected(server, 1) as (reader,):
        reader.begin({"tokens": 20, "tokens_per_second": None, "suspend": True}, ["bench"] * 20)
        until = time.monotonic() + 10
        while len(reader.over) < len(reader.tokens):
            if time.monotonic() > until:
                raise ServerFailed(f"{server.peer.name} gave no whole answers: {reader.says()} {server.output()}")
            read_for([reader], 0.02)


@contextmanager
def _connected(server: Server, count: int) -> Iterator[list[Http2Reader]]:
    readers: list[Http2Reader] = []
    try:
        for _ in range(count):
            readers.append(Http2Reader(server, server.peer.paths["chat"]))
        yield readers
    finally:
        for reader in readers:
            reader.close()


def _run(server: Server, connections: int, seconds: float, found: Measurement) -> None:
    """What a token costs, and who gets how many."""
    with _connected(server, connections) as readers:
        for reader in readers:
            reader.begin(PACED, ["bench"] * STREAMS)
        read_for(readers, WARM)
        before = [dict(reader.tokens) for reader in readers]
        frames = sum(reader.frames for reader in readers)
        began, mine, cpu = time.monotonic(), time.process_time(), server.cpu()
        front, waited = cpu_by_name(server.pid).get("nginx", 0.0), waited_seconds(server.pid)
        read_for(readers, seconds)
        wall, mine, cpu = time.monotonic() - began, time.process_time() - mine, server.cpu() - cpu
        front = cpu_by_name(server.pid).get("nginx", 0.0) - front
        waited = (waited_seconds(server.pid) - waited) / wall
        frames = sum(reader.frames for reader in readers) - frames
        made = [
            reader.tokens[stream] - was[stream] for reader, was in zip(readers, before, strict=True) for stream in was
        ]
    found.values |= {
        "complete": sum(map(bool, made)) / len(made),
        "pace": sum(made) / (len(made) * RATE * wall),
        "server_cpu": cpu / wall,
        "generator_cpu": mine / wall,
    }
    mark_bottleneck(found, mine / wall)
    if not all(made):
        silent = [reader.says() for reader, was in zip(readers, before, strict=True) if reader.tokens == was]
        found.marks.append(f"{made.count(0)} streams had no token: {(silent or [readers[0].says()])[0]}")
    if not any(made):
        found.failure = (
            f"no token came in {wall:.1f} s ({readers[0].says()}); the server ran {cpu:.2f} s, and waited for its core "
            f"for {waited:.0%} of the time: {server.output()[-300:]}"
        )
        return
    found.values |= {
        "us_per_token": cpu / sum(made) * 1e6,
        "fairness": min(made) / max(made),
        "together": sum(made) / frames,
    }
    if front:
        found.values["front_us_per_token"] = front / sum(made) * 1e6
    if found.values["pace"] < TOO_SLOW:
        found.marks.append("did not keep the pace: its tokens came late, and many at a time")


def _leave(server: Server, part: str, times: int, found: Measurement) -> None:
    """How long sources go on for streams that were given up."""
    left: dict[int, int] = {}
    found.values["real_time"] = 1.0
    for time_ in range(times):
        with _connected(server, 1) as (reader,):
            names = [time_ * STREAMS + number for number in range(1, STREAMS + 1)]
            streams = reader.begin(PACED, [f"bench #{name}" for name in names])
            read_for([reader], WARM)
            if not all(reader.tokens.values()):
                found.failure = f"not every stream ran after {WARM:g} s: {reader.says()} {server.output()[-300:]}"
                return
            with undisturbed(0, *server.tree()) as allowed:
                if part == "lost":
                    left |= dict.fromkeys(names, reader.close())
                else:
                    for name, stream in zip(names, streams, strict=True):
                        read_for([reader], EVERY)
                        left[name] = reader.reset(stream)
                closed = _closed(server, left, reader if part == "reset" else None)
            found.values["real_time"] *= float(allowed)
    if not found.values["real_time"]:
        found.marks.append("without real-time priority: other programs may have delayed it")
    if not server.alive:
        found.failure = f"the server died: {server.output()[-300:]}"
        return
    if too_soon := sum(closed[name] < at for name, at in left.items() if name in closed):
        found.failure = f"{too_soon} sources ended before their streams were given up"
        return
    taken = [(closed[name] - at) / 1e6 for name, at in left.items() if name in closed]
    found.values["never"] = len(left) - len(taken)
    if not taken:
        found.marks.append("no source was ever closed")
        return
    found.values |= {
        "cancel_p50_ms": quantile(taken, 0.5),
        "cancel_p99_ms": quantile(taken, 0.99),
        "cancel_max_ms": max(taken),
    }


def _closed(server: Server, left: Mapping[int, int], reader: Http2Reader | None) -> dict[int, int]:
    """When sources were closed (monotonic ns, by name), once all have been, or patience is at an end."""
    until = time.monotonic() + PATIENCE
    while True:
        if reader is None:
            time.sleep(0.05)
        else:
            read_for([reader], 0.05)
        closed = {int(name): at for kind, name, at, _ in server.events() if kind == "close" and name.isdigit()}
        if left.keys() <= closed.keys() or time.monotonic() > until or not server.alive:
            return closed

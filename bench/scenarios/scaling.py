"""More worker processes: what each one more is worth, and whether all of them get their share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from bench.host import cores
from bench.peers import Peer
from bench.programs import Generator
from bench.results import Measurement
from bench.sample import own_cpu_seconds, process_tree
from bench.scenarios.base import (
    Bench,
    Column,
    Scale,
    Scenario,
    check_answers,
    lasting,
    mark_bottleneck,
    tokens_of,
    wait_until_streaming,
)
from bench.serving import Server, chat_request

WORKERS: Final = (1, 2, 4, 8, 16)
CLIENTS: Final = 50
READERS_EACH: Final = 4
"""Workers that one load generator can keep busy."""
STARTED_WITHIN: Final = 20.0
SECONDS: Final = {"full": 8.0, "short": 4.0, "toy": 0.5}
MOCK: Final = {"tokens": None, "tokens_per_second": None, "batch": 1, "suspend": True}
_PEERS: Final = ("rawstream", "uvicorn-starlette-httptools")


class Scaling(Scenario):
    name = "scaling"
    title = "Scaling: 1, 2, 4, … worker processes"
    about = (
        f"{CLIENTS} clients for each worker read endless streams whose source suspends once per token: a write() a "
        "token, as fast as the workers make them. Workers have a core each, as far as there are cores; there is one "
        f"load generator for every {READERS_EACH} of them, on cores of their own, as far as there are any left. “Even” "
        "is the CPU time of the worker that worked least over that of the one that worked most. rawstream runs with "
        "`--workers`, uvicorn with its own."
    )
    part_titles = MappingProxyType({str(count): f"{count} worker{'s' * (count > 1)}" for count in WORKERS})
    columns = (
        Column("tokens_per_second", "tokens/s", "", "more", 0, ratio=True),
        Column("per_worker", "tokens/s for each worker", "", "more", 0),
        Column("us_per_token", "CPU per token", "µs", "less", 2),
        Column("even", "even", "", "more", 2),
        Column("server_cpu", "server's cores", "in all", None, 2),
        Column("generator_cpu", "busiest generator's core", "share", None, 2),
    )
    bars = ("tokens_per_second",)

    def parts(self, scale: Scale) -> Sequence[str]:
        return tuple(str(count) for count in WORKERS if count <= len(cores().usable))

    def wants(self, peer: Peer, part: str) -> bool:
        return peer.name in _PEERS

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        return lasting(SECONDS, scale, stretch) + 3

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        workers = int(part)
        usable = bench.cores.usable
        readers = max(1, workers // READERS_EACH)
        if workers + readers > len(usable):
            found.marks.append("workers and readers share cores")
        alike = replace(bench, cores=bench.cores._replace(server=frozenset(usable[:workers])))
        env = {"RAWSTREAM_WORKERS": part, "WEB_CONCURRENCY": part}
        with contextlib.ExitStack() as running:
            server = running.enter_context(alike.server(peer, env=env))
            _wait_until_idle(server)
            generators = [
                running.enter_context(Generator(frozenset({core}), bench.expected, python=bench.python_generator))
                for core in usable[::-1][:readers]
            ]
            for number, generator in enumerate(generators):
                clients = CLIENTS * workers // readers + (number < CLIENTS * workers % readers)
                request = chat_request(peer.paths["chat"], MOCK)
                generator.group("clients", count=clients, mode="fast", port=server.port, request=request)
                generator.run()
            for generator in generators:
                wait_until_streaming(generator, found)
            self._window(server, generators, workers, bench.lasting(SECONDS), found)
            for generator in generators:
                check_answers(found, generator.stop())

    def _window(
        self, server: Server, generators: Sequence[Generator], workers: int, seconds: float, found: Measurement
    ) -> None:
        used = {pid: own_cpu_seconds(pid) for pid in process_tree(server.pid)}
        cpu, before = server.cpu(), [generator.snap() for generator in generators]
        time.sleep(seconds)
        after = [generator.snap() for generator in generators]
        cpu = server.cpu() - cpu
        busy = sorted((own_cpu_seconds(pid) - was for pid, was in used.items()), reverse=True)[:workers]
        pairs = list(zip(before, after, strict=True))
        tokens = sum(tokens_of(now) - tokens_of(was) for was, now in pairs)
        if not tokens:
            found.failure = "no token arrived"
            return
        rate = sum((tokens_of(now) - tokens_of(was)) / (now["seconds"] - was["seconds"]) for was, now in pairs)
        busiest = max(
            (now["cpu_seconds"] - was["cpu_seconds"]) / (now["seconds"] - was["seconds"]) for was, now in pairs
        )
        mark_bottleneck(found, busiest)
        found.values |= {
            "tokens_per_second": rate,
            "per_worker": rate / workers,
            "us_per_token": cpu / tokens * 1e6,
            "even": busy[-1] / busy[0] if busy[0] else 0.0,
            "server_cpu": cpu / seconds,
            "generator_cpu": busiest,
        }


def _wait_until_idle(server: Server) -> None:
    """The port accepts as soon as one worker does: the others may still be starting, and would get no connection."""
    until = time.monotonic() + STARTED_WITHIN
    while time.monotonic() < until:
        cpu = server.cpu()
        time.sleep(0.5)
        if server.cpu() - cpu < 0.02:
            return

"""The control: the load test that most tutorials print, which shows nothing, and why."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from bench.peers import Peer, autocannon
from bench.results import Measurement
from bench.scenarios.base import Bench, Column, Scale, Scenario, lasting
from bench.trend import plateau

SECONDS: Final = {"full": 10.0, "short": 5.0, "toy": 1.0}
TOKENS: Final = 200
CONNECTIONS: Final = 50


class Control(Scenario):
    name = "control"
    title = "Control: autocannon with fast readers, which shows nothing"
    about = (
        f"autocannon, {CONNECTIONS} connections, answers of {TOKENS} unpaced tokens: the load test that most "
        "tutorials print. It reads as fast as it can, so nothing ever waits anywhere: a server that buffers without "
        "bound and one that never holds more than 8 KiB look alike in it. Their difference appears only when "
        "somebody reads *slowly* (scenarios stalled, slow_fifth, thin_pipe). It checks no token, counts whole "
        "answers only, and autocannon itself is often the bottleneck (it runs on one core, and is not excluded here)."
    )
    columns = (
        Column("requests_per_second", "answers/s", "", "more", 0, ratio=True),
        Column("p99_ms", "answer p99", "ms", "less", 0),
        Column("grown_mib", "memory grown", "MiB", "less", 1),
        Column("failed", "failed", "answers", "less", 0),
    )
    part_titles = MappingProxyType({"fast readers": "50 fast readers"})
    bars = ("requests_per_second", "grown_mib")
    repeats = MappingProxyType({"full": 1, "short": 1, "toy": 1})
    wins = "This measures how fast a server can be pulled empty, which no reader of an LLM's answer ever does."

    def parts(self, scale: Scale) -> Sequence[str]:
        return ("fast readers",)

    def wants(self, peer: Peer, part: str) -> bool:
        return super().wants(peer, part) or peer.name in ("rawstream-broken", "rawstream-drain")

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        return lasting(SECONDS, scale, stretch) + 2

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        with bench.server(peer) as server:
            missing = autocannon.missing(server.context)
            if missing:
                found.failure = missing
                return
            base = server.resident()
            sampler = server.sampler(every=0.25, guard=bench.guard)
            body = {
                "prompt": "bench",
                "mock": {"tokens": TOKENS, "tokens_per_second": None, "batch": 1, "suspend": True},
            }
            url = f"http://127.0.0.1:{server.port}{peer.paths['chat']}"
            pinned = ("taskset", "-c", ",".join(str(core) for core in sorted(bench.cores.generator)))
            try:
                seen = autocannon.run(
                    server.context, url, body, connections=CONNECTIONS, seconds=bench.lasting(SECONDS), prefix=pinned
                )  # fmt: skip
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                found.failure = str(error)
                return
            samples = sampler.stop()
        found.series["total"] = samples.total
        found.values |= {
            "requests_per_second": seen["requests_per_second"],
            "p99_ms": seen["latency_ms_p99"],
            "grown_mib": (plateau(samples.total) - base) / 1024 / 1024,
            "failed": seen["failed"],
        }

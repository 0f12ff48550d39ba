"""The load test of the tutorial this project answers: fifty readers, one in five of them slow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

from bench.peers import Peer
from bench.programs import Generator
from bench.results import Measurement
from bench.scenarios.base import (
    PATIENT,
    PATIENT_TEXT,
    Bench,
    Column,
    Goal,
    Scale,
    Scenario,
    check_answers,
    lasting,
    mark_bottleneck,
    ms,
)
from bench.scenarios.stalled import report_memory
from bench.serving import Server, chat_request
from bench.trend import plateau, slope

FAST: Final = {"full": 40, "short": 40, "toy": 8}
SLOW: Final = {"full": 10, "short": 10, "toy": 4}
SECONDS: Final = {"full": 300.0, "short": 60.0, "toy": 2.0}
GAP_SECONDS: Final = {"full": 15.0, "short": 6.0, "toy": 1.0}
LAW_SECONDS: Final = {"full": 8.0, "short": 5.0, "toy": 2.0}
SLOW_READER: Final[dict[str, Any]] = {"mode": "paced", "read_bytes": 4096, "every_ms": 100, "rcvbuf": 4096}
UNPACED: Final[dict[str, Any]] = {"tokens": None, "tokens_per_second": None, "batch": 16, "suspend": True}
FAST_RATE: Final = 50
MIB: Final = 1024 * 1024

LAW: Final[dict[str, tuple[tuple[int, int, int], ...]]] = {
    "token rate": ((200, 20, 100), (400, 20, 100), (800, 20, 100), (1600, 20, 100)),
    "users": ((800, 5, 100), (800, 10, 100), (800, 20, 100), (800, 40, 100)),
    "slowness": ((800, 20, 20), (800, 20, 50), (800, 20, 100), (800, 20, 400)),
}
"""(tokens/s per user, slow users, ms of sleep between reads of 256 bytes); one of the three varies."""


class SlowFifth(Scenario):
    name = "slow_fifth"
    title = "Slow fifth: 50 clients, 20 % of them slow"
    about = (
        "**Memory**: 40 clients read an endless, unpaced stream (batches of 16 tokens, joined by every handler, "
        "so that buffers of megabytes fill within the run) as fast as they can, "
        "10 sleep 100 ms between reads of 4 KiB (SO_RCVBUF 4096), for five "
        "minutes (60 s in the short form). **Isolation**: the 40 read a paced stream (50 tokens/s); their gaps "
        "between tokens and their first tokens are taken alone, beside 10 such slow readers of unpaced streams, and "
        "beside 10 readers of unpaced streams that read nothing. **Law**: how fast memory (process + kernel) grows "
        "with the token rate, the number of slow users, and their slowness, each varied alone. " + PATIENT_TEXT
    )
    part_titles = MappingProxyType(
        {
            "memory": "memory over time",
            "calm": "isolation: the 40 fast ones alone",
            "slow": "isolation: beside 10 slow ones",
            "stalled": "isolation: beside 10 stalled ones",
            "law": "memory ∝ token rate × users × slowness",
        }
    )
    columns = (
        Column("growth_mib_per_s", "growth in the second half", "MiB/s", "less", 3),
        Column("grown_mib", "grown in all", "MiB", "less", 1, ratio=True),
        Column("process_mib", "of it process", "MiB", "less", 1),
        Column("kernel_mib", "of it kernel", "MiB", "less", 1),
        Column("gap_p99_ms", "fast clients' gap p99", "ms", "less", 2, ratio=True),
        Column("gap_max_ms", "longest gap", "ms", "less", 1),
        Column("first_p99_ms", "fast clients' first token p99", "ms", "less", 2),
        Column("server_cpu", "server's core", "share", None, 2),
    )
    words = (("trend", "memory"),)
    goals = (
        Goal(
            "slow", "gap_p99_ms", "<=", 30, "beside slow readers the fast ones' p99 gap stays below 30 ms (pace: 20 ms)"
        ),
        Goal("stalled", "gap_p99_ms", "<=", 30, "beside stalled readers the fast ones' p99 gap stays below 30 ms"),
    )
    repeats = MappingProxyType({"full": 1, "short": 1, "toy": 1})
    series = (
        ("total", "memory and kernel queues: 40 fast and 10 slow readers", "MiB"),
        ("growth:token rate", "growth by token rate (20 slow users)", "MiB/s"),
        ("growth:users", "growth by users (800 tokens/s)", "MiB/s"),
        ("growth:slowness", "growth by sleep between reads (800 tokens/s, 20 users)", "MiB/s"),
    )
    bars = ("grown_mib", "gap_p99_ms")
    log_bars = True
    wins = (
        "A server that waits for drain() with default buffers is level too, at megabytes per slow reader, most of "
        "them in its kernel. A reader that keeps up costs it nothing extra, so that its fast clients may see as even "
        "a stream as rawstream's."
    )

    def parts(self, scale: Scale) -> Sequence[str]:
        return ("memory", "calm", "slow", "stalled", "law")

    def wants(self, peer: Peer, part: str) -> bool:
        if part == "law":
            return peer.name in ("rawstream", "rawstream-broken")
        return super().wants(peer, part) or peer.name in ("rawstream-broken", "rawstream-drain")

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        if part == "memory":
            return lasting(SECONDS, scale, stretch) + 1.5
        if part == "law":
            return sum(map(len, LAW.values())) * (lasting(LAW_SECONDS, scale, stretch) + 1.2)
        return lasting(GAP_SECONDS, scale, stretch) + 3.5

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        if part == "law":
            self._law(bench, peer, found)
            return
        with bench.server(peer, env=PATIENT) as server, bench.generator() as generator:
            if part == "memory":
                self._memory(bench, server, generator, found)
            else:
                self._isolation(bench, server, generator, part, found)

    def _memory(self, bench: Bench, server: Server, generator: Generator, found: Measurement) -> None:
        seconds, request = bench.lasting(SECONDS), chat_request(server.peer.paths["chat"], UNPACED, joined=True)
        base = server.resident()
        sampler = server.sampler(every=max(0.1, seconds / 120), guard=bench.guard)
        generator.group("fast", count=FAST[bench.scale], mode="fast", port=server.port, request=request)
        generator.group("slow", count=SLOW[bench.scale], port=server.port, request=request, **SLOW_READER)
        generator.run()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and not sampler.guarded and server.alive:
            time.sleep(0.1)
        samples = sampler.stop()
        result = generator.stop()
        report_memory(found, samples.total, guarded_at=samples.guarded_at)
        if samples.guarded_at is None:
            check_answers(found, result)
            cut = sum(group["closed_by_server"] for group in result["groups"].values())
            if cut and found.failure and not any(group["wrong"] for group in result["groups"].values()):
                found.marks.append(f"{found.failure}: the server cut {cut} clients")
                found.failure = None
                found.words["trend"] = "rising"
        found.series |= {"total": samples.total, "resident": samples.resident, "queued": samples.queued}
        found.values |= {
            "grown_mib": (plateau(samples.total) - base) / MIB,
            "process_mib": (plateau(samples.resident) - base) / MIB,
            "kernel_mib": plateau(samples.queued) / MIB,
        }

    def _isolation(self, bench: Bench, server: Server, generator: Generator, part: str, found: Measurement) -> None:
        seconds, path = bench.lasting(GAP_SECONDS), server.peer.paths["chat"]
        head_start = min(2.0, seconds / 2)
        sampler = server.sampler(every=0.5, guard=bench.guard)
        fast = chat_request(path, {"tokens": None, "tokens_per_second": FAST_RATE, "batch": 1})
        if part != "calm":
            manner = SLOW_READER if part == "slow" else {"mode": "stalled", "rcvbuf": 4096}
            unpaced = chat_request(path, UNPACED, joined=True)
            generator.group("slow", count=SLOW[bench.scale], port=server.port, request=unpaced, **manner)
        generator.group(
            "fast",
            count=FAST[bench.scale],
            mode="fast",
            port=server.port,
            request=fast,
            start_ms=head_start * 1000,
            ramp_ms=500,
        )
        generator.run()
        time.sleep(head_start + 0.2)
        before, cpu_before = generator.snap(), server.cpu()
        time.sleep(seconds)
        cpu_after, result = server.cpu(), generator.stop()
        guarded = sampler.stop().guarded_at
        check_answers(found, result, groups=["fast"])
        wall = result["seconds"] - before["seconds"]
        mark_bottleneck(found, (result["cpu_seconds"] - before["cpu_seconds"]) / wall)
        if guarded is not None:
            found.failure = None
            found.marks.append(f"ended at the memory guard after {guarded:.0f} s")
        clients = result["groups"]["fast"]
        found.values["server_cpu"] = (cpu_after - cpu_before) / wall
        if clients["begun"] < clients["connections"]:
            found.marks.append(f"{clients['connections'] - clients['begun']} fast clients had no token at all")
        if not clients["gap_us"]["count"]:
            found.failure = found.failure or "the fast clients got no tokens"
            return
        found.values |= {
            "gap_p99_ms": ms(clients["gap_us"]["p99"]),
            "gap_max_ms": ms(clients["gap_us"]["max"]),
            "first_p99_ms": ms(clients["first_us"]["p99"]),
        }

    def _law(self, bench: Bench, peer: Peer, found: Measurement) -> None:
        """One fresh server per point: memory growth, in MiB/s, while its slow readers fall behind."""
        for varied, points in LAW.items() if bench.scale != "toy" else [("users", LAW["users"][-1:])]:
            curve: list[tuple[float, float]] = []
            for rate, users, sleep_ms in points:
                bench.tick(f"{varied}: {rate} tokens/s × {users} users, {sleep_ms} ms")
                growth = self._growth(bench, peer, rate, users, sleep_ms)
                curve.append(({"token rate": rate, "users": users, "slowness": sleep_ms}[varied], growth / MIB))
            found.series[f"growth:{varied}"] = curve
            found.values[f"most growth by {varied}"] = curve[-1][1]
        found.values["growth_mib_per_s"] = max(y for curve in found.series.values() for _, y in curve)

    def _growth(self, bench: Bench, peer: Peer, rate: int, users: int, sleep_ms: int) -> float:
        mock = {"tokens": None, "tokens_per_second": rate, "batch": max(1, rate // 50)}
        with bench.server(peer, env=PATIENT) as server, bench.generator() as generator:
            sampler = server.sampler(every=0.1, guard=bench.guard)
            generator.group(
                "slow",
                count=users,
                mode="paced",
                port=server.port,
                request=chat_request(peer.paths["chat"], mock, joined=True),
                read_bytes=256,
                every_ms=sleep_ms,
                rcvbuf=4096,
            )
            generator.run()
            time.sleep(bench.lasting(LAW_SECONDS))
            samples = sampler.stop()
            generator.stop()
        settled = [point for point in samples.total if point[0] > bench.lasting(LAW_SECONDS) / 3]
        return slope(settled)

"""Clients that read nothing: what the server, its kernel and its source do meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from bench.peers import Peer
from bench.results import Measurement
from bench.scenarios.base import PATIENT, PATIENT_TEXT, Bench, Column, Goal, Scale, Scenario, lasting
from bench.serving import chat_request
from bench.trend import plateau, trend

CLIENTS: Final = {"full": (250, 500), "short": (250, 500), "toy": (20,)}
LEAST: Final = {"full": 15.0, "short": 8.0, "toy": 1.2}
MOST: Final = {"full": 150.0, "short": 20.0, "toy": 1.2}
"""Seconds: as long as memory still rises, up to the second of these."""
BATCH: Final = 64
KIB: Final = 1024


class Stalled(Scenario):
    name = "stalled"
    title = "Stalled: clients that read nothing"
    about = (
        "Each client sends its request and never reads; its SO_RCVBUF is 4096, set before connect. The source is "
        f"endless and unpaced: it yields batches of {BATCH} tokens, which every handler joins into one write, so "
        "that even megabytes of buffer fill within the run, or single tokens, "
        f"and suspends after each. A run lasts {LEAST['full']:g} s, and up to {MOST['full']:g} "
        f"s while memory still rises ({LEAST['short']:g} to {MOST['short']:g} s in the short form). Process memory is "
        "the growth over the server's level after warm-up, per client; “kernel” is what waits in the send queues of "
        "the server's own kernel, per client; “ahead” are the tokens that were taken from the source, per client, "
        "though nobody read one. " + PATIENT_TEXT
    )
    columns = (
        Column("process_kib", "process per client", "KiB", "less", 1, ratio=True),
        Column("kernel_kib", "kernel per client", "KiB", "less", 1, ratio=True),
        Column("ahead", "tokens pulled ahead", "per client", "less", 0, ratio=True),
        Column("total_mib", "all together", "MiB", "less", 0),
    )
    words = (("trend", "memory"),)
    goals = (
        Goal("500 clients", "process_kib", "<=", 16, "at most 16 KiB of process memory per stalled client"),
        Goal("500 clients", "kernel_kib", "<=", 8, "at most 8 KiB in the kernel per stalled client"),
        Goal(
            "500 clients, single tokens",
            "process_kib",
            "<=",
            16,
            "at most 16 KiB of process memory per stalled client (single tokens)",
        ),
        Goal(
            "500 clients, single tokens",
            "kernel_kib",
            "<=",
            8,
            "at most 8 KiB in the kernel per stalled client (single tokens)",
        ),
    )
    repeats = MappingProxyType({"full": 2, "short": 1, "toy": 1})
    series = (("total", "memory and kernel queues while clients read nothing", "MiB"),)
    bars = ("process_kib", "kernel_kib", "ahead")
    log_bars = True
    wins = (
        "A peer holds less process memory only where its per-connection objects are smaller (Go's goroutine stacks, "
        "the bare floors: no HTTP state, no accounting); what it lets run into the kernel has to be added."
    )

    def parts(self, scale: Scale) -> Sequence[str]:
        return (*(f"{count} clients" for count in CLIENTS[scale]), f"{CLIENTS[scale][-1]} clients, single tokens")

    def wants(self, peer: Peer, part: str) -> bool:
        return super().wants(peer, part) or peer.name in ("rawstream-broken", "rawstream-drain")

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        least, most = lasting(LEAST, scale, stretch), lasting(MOST, scale, stretch)
        return least + 0.2 * (most - least) + 1.5

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        count, least, most = int(part.split()[0]), bench.lasting(LEAST), bench.lasting(MOST)
        batch = 1 if part.endswith("single tokens") else BATCH
        mock = {"tokens": None, "tokens_per_second": None, "batch": batch, "suspend": True}
        with bench.server(peer, env=PATIENT) as server, bench.generator() as generator:
            request = chat_request(peer.paths["chat"], mock, joined=True)
            pulled_before, base = server.pulled() or 0, server.resident()
            sampler = server.sampler(every=least / 40, guard=bench.guard)
            generator.group(
                "stalled", count=count, mode="stalled", port=server.port, request=request, rcvbuf=4096, ramp_ms=500
            )
            generator.run()
            began = time.monotonic()
            while (seconds := time.monotonic() - began) < most and not sampler.guarded:
                time.sleep(0.2)
                if seconds >= least and not trend(sampler.samples.total, share=0.01).rising:
                    break
            pulled = None if sampler.guarded else server.pulled()
            samples = sampler.stop()
            group = generator.stop()["groups"]["stalled"]
        report_memory(found, samples.total, guarded_at=samples.guarded_at)
        found.series |= {"total": samples.total, "resident": samples.resident, "queued": samples.queued}
        found.values |= {
            "process_kib": (plateau(samples.resident) - base) / count / KIB,
            "kernel_kib": plateau(samples.queued) / count / KIB,
            "kernel_held_kib": plateau(samples.held) / count / KIB,
            "total_mib": plateau(samples.total) / KIB / KIB,
        }
        if pulled is not None:
            found.values["ahead"] = (pulled - pulled_before) / count
        if group["connected"] < count or group["failed"]:
            found.failure = (
                f"{count - group['connected']} of {count} clients could not connect ({group['first_wrong']})"
            )
        elif group["closed_by_server"] and samples.guarded_at is None:
            found.marks.append(f"{group['closed_by_server']} clients were cut by the server ({group['first_wrong']})")


def report_memory(found: Measurement, total: list[tuple[float, float]], *, guarded_at: float | None) -> None:
    """Put the verdict of the rule, and the rate of growth, into what was found."""
    seen = trend(total)
    found.words["trend"] = "rising" if guarded_at is not None else seen.word
    found.values["growth_mib_per_s"] = seen.per_second / 1024 / 1024
    if guarded_at is not None:
        found.marks.append(f"ended at the memory guard after {guarded_at:.0f} s")

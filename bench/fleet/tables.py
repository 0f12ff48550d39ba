"""The model's answers as Markdown: what ``python -m bench.fleet`` prints, and what the README shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from bench.fleet.model import (
    Figures,
    Machine,
    Plan,
    first_to_break,
    flush_overhead,
    limits,
    needs,
    redis_cores,
    xadd_per_stream,
)
from bench.fleet.simulation import POLICIES, Outage, accepts_per_second, simulate, spread_needed

FIGURES: Final = Figures()
MACHINE: Final = Machine()
SIZES: Final = (10_000, 100_000, 1_000_000)
FLUSHES: Final = (0.010, 0.020, 0.050, 0.100)
CUT: Final = 100_000
BACKLOG: Final = 1024


def fleet() -> Iterator[str]:
    found = [needs(FIGURES, MACHINE, Plan(size)) for size in SIZES]
    own = [needs(FIGURES, MACHINE, Plan(size, role="source")) for size in SIZES]
    rows: list[tuple[str, list[str]]] = [
        ("cores, planned half full", [f"{one.cores:,}" for one in found]),
        ("… of these for TLS handshakes", [f"{one.handshake_cores / Plan(1).fill:,.0f}" for one in found]),
        ("… with your own source instead", [f"{one.cores:,}" for one in own]),
        (
            f"machines of {MACHINE.cores} cores (asked for by)",
            [f"{one.machines:,} ({one.machines_by})" for one in found],
        ),
        ("memory of all, GiB", [f"{one.gib:,.0f}" for one in found]),
        ("descriptors of a process", [f"{one.descriptors_per_process:,}" for one in found]),
        (
            f"ports of a machine to each of {MACHINE.upstream_addresses} upstream addresses",
            [f"{one.ports_per_upstream:,}" for one in found],
        ),
        ("network, in and out, Gbit/s", [f"{one.gbit:,.1f}" for one in found]),
        ("`XADD` a second", [f"{one.xadd_per_second:,.0f}" for one in found]),
        ("`EVALSHA` a second", [f"{one.evalsha_per_second:,.0f}" for one in found]),
        ("logs in Redis, GiB", [f"{one.redis_gib:,.0f}" for one in found]),
        ("Redis (asked for by)", [f"{one.redis_shards:,} ({one.redis_shards_by})" for one in found]),
    ]
    yield "| gateway, TLS, all resumable, 50 tokens/s | " + " | ".join(f"{size:,} streams" for size in SIZES) + " |"
    yield "|---|" + "--:|" * len(SIZES)
    for name, cells in rows:
        yield f"| {name} | " + " | ".join(cells) + " |"


def breaking() -> Iterator[str]:
    yield "| what is full | at so many streams | 1,000,000 take |"
    yield "|---|--:|--:|"
    for one in limits(FIGURES, MACHINE, Plan(SIZES[-1])):
        yield f"| {one.what} | {one.streams:,} | {SIZES[-1] / one.streams:,.0f} |"


def flushing() -> Iterator[str]:
    yield (
        "| `replay_flush` | `XADD` a second for a stream | a reader elsewhere is behind by up to | tokens in that "
        "| a Redis is full at | Redis for 1,000,000 |"
    )
    yield "|--:|--:|--:|--:|--:|--:|"
    for flush in FLUSHES:
        behind = flush + flush_overhead(FIGURES)
        shards = needs(FIGURES, MACHINE, replace(Plan(SIZES[-1]), flush_s=flush)).redis_shards
        yield (
            f"| {flush * 1000:.0f} ms | {xadd_per_stream(FIGURES, flush):.0f} | {behind * 1000:.0f} ms "
            f"| {behind * FIGURES.tokens_per_second:.1f} | {1 / redis_cores(FIGURES, 1, flush):,.0f} streams "
            f"| {shards:,} |"
        )


def outages() -> dict[str, Outage]:
    """The same cut for two fleets: the other regions' processes take all, or 16 cores that end TLS for them do."""
    left = needs(FIGURES, MACHINE, Plan(3 * CUT)).cores * 2 / 3
    spare = 1 - Plan(1).fill
    tls, plain = FIGURES.handshake_tls_s, FIGURES.accept_plain_s
    return {
        f"{left:,.0f} cores, TLS": Outage(CUT, accepts_per_second(left, spare, tls), int(left) * BACKLOG),
        "16 cores, plain": Outage(CUT, accepts_per_second(16, spare, plain), 16 * BACKLOG),
        "16 cores, TLS": Outage(CUT, accepts_per_second(16, spare, tls), 16 * BACKLOG),
    }


def returning() -> Iterator[str]:
    yield (
        "| who accepts | clients come back after | most arrivals in 100 ms | longest queue | a wait of | refused "
        "| all are back after |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|"
    for who, outage in outages().items():
        for name, policy in POLICIES.items():
            seen = simulate(outage, policy)
            back = "never" if seen.all_served_s is None else f"{seen.all_served_s:.1f} s"
            yield (
                f"| {who} | {name} | {seen.peak_arrivals:,} | {seen.peak_queue:,} | {seen.peak_wait_s:.2f} s "
                f"| {seen.refusals:,} | {back} |"
            )


def advice() -> Iterator[str]:
    first = first_to_break(FIGURES, MACHINE, Plan(SIZES[-1]))
    planned = int(FIGURES.gateway_streams_per_core * Plan(1).fill)
    cell = int(Plan(1).redis_fill / redis_cores(FIGURES, 1, 0.050))
    front = outages()["16 cores, TLS"]
    yield (
        f"* **First to break, of what more processes do not mend: {first.what}**, full at {first.streams:,} streams; "
        f"a million are {SIZES[-1] / first.streams:,.0f} times as many."
    )
    yield f"* Cells: `--replay-flush 50ms`, and one Redis for {cell:,} streams ({cell // planned} gateway processes)."
    yield f"* `--max-streams {planned}` for each process; `LimitNOFILE=65536` and `--backlog {BACKLOG}` are enough."
    yield (
        f"* {CUT:,} clients need {spread_needed(front):.1f} s at 16 cores with TLS. Jitter of 2 s is enough there for "
        f"{front.accepts_per_second * 2:,.0f}; for more, end TLS on more cores."
    )


def everything() -> str:
    """All tables, as they stand in the README."""
    parts = (fleet, breaking, flushing, returning, advice)
    return "\n\n".join("\n".join(part()) for part in parts)

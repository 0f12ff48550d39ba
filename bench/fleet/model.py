"""The arithmetic of a fleet. Pure: measured figures in, machines out.

Rule 1: each figure says whether it was measured on the machine of the benchmarks, or is assumed.
Rule 2: what is shared by many processes (a Redis, a machine's descriptors, its network) is counted beside the cores,
for it does not grow by starting one more process.

One Redis cannot be a Redis Cluster (scripts touch keys of several streams). So a fleet is made of cells: one Redis and
the processes that share it; whoever balances the load sends a client back to its cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

Role = Literal["source", "gateway"]
GIB_IN_KIB: Final = 1024 * 1024


@dataclass(frozen=True)
class Figures:
    """What one stream, one process and one Redis were measured to take, at ``tokens_per_second``."""

    tokens_per_second: float = 50.0
    # Measured: README, "How much it carries".
    source_streams_per_core: float = 1100.0
    gateway_streams_per_core: float = 560.0
    # Measured, KiB of process for a stream: the upper end of each range.
    idle_kib: float = 9.0
    stalled_kib: float = 15.0
    gateway_stalled_kib: float = 27.0
    tls_kib: float = 30.0
    resumable_kib: float = 18.0
    kernel_kib: float = 35.0
    """Kernel queues and the upstream's read buffer: 5 to 35."""
    # Measured: 100 streams of 50 tokens/s made 2,500 XADD/s at a flush of 10 ms and 1,300 at 50 ms.
    xadd_per_stream_10ms: float = 25.0
    xadd_per_stream_50ms: float = 13.0
    evalsha_per_process: float = 30.0
    """A second, with 100 streams; it is taken to grow with the streams."""
    redis_core_per_stream: float = 0.03 / 100
    """At a flush of 10 ms; it is taken to fall with the XADD."""
    handshake_tls_s: float = 640e-6
    accept_plain_s: float = 120e-6
    # Assumed.
    process_mib: float = 60.0
    """A process without streams."""
    token_wire_bytes: float = 320.0
    """One chunk of a chat completion, with chunk framing and a packet's headers."""
    token_log_bytes: float = 200.0
    """The same in the replay log."""
    answer_seconds: float = 20.0

    def streams_per_core(self, role: Role) -> float:
        return self.source_streams_per_core if role == "source" else self.gateway_streams_per_core


@dataclass(frozen=True)
class Machine:
    """One machine of the fleet, and what the operator set on it."""

    cores: int = 16
    gib: float = 64.0
    descriptors_per_process: int = 65536
    """LimitNOFILE; connections are held to half of it."""
    gbit: float = 25.0
    upstream_ports: int = 28000
    """net.ipv4.ip_local_port_range: connections to one upstream's address and port."""
    upstream_addresses: int = 4


@dataclass(frozen=True)
class Plan:
    """How it is run."""

    streams: int
    role: Role = "gateway"
    tls: bool = True
    resumable: bool = True
    stalled_share: float = 0.1
    flush_s: float = 0.020
    keep_s: float = 300.0
    fill: float = 0.5
    """How full a core is planned to be."""
    redis_fill: float = 0.7
    redis_gib: float = 64.0


@dataclass(frozen=True)
class Needs:
    """What the plan takes, fleet-wide unless it says otherwise."""

    cores: int
    machines: int
    machines_by: str
    """Which resource asked for that many."""
    gib: float
    descriptors_per_process: int
    ports_per_upstream: int
    """Of one machine, to each address of the upstream."""
    gbit: float
    handshake_cores: float
    redis_shards: int
    redis_shards_by: str
    xadd_per_second: float
    evalsha_per_second: float
    redis_gib: float


@dataclass(frozen=True)
class Limit:
    """Something that cannot be made larger by one more process, and the streams that it carries when full."""

    what: str
    streams: int


def flush_overhead(figures: Figures) -> float:
    """Seconds that pass between two XADD of a stream beyond the flush interval (mean of both measurements)."""
    return ((1 / figures.xadd_per_stream_10ms - 0.010) + (1 / figures.xadd_per_stream_50ms - 0.050)) / 2


def xadd_per_stream(figures: Figures, flush_s: float) -> float:
    """XADD a second of one stream: a line through both measurements, never more than it has tokens."""
    return min(figures.tokens_per_second, 1 / (flush_s + flush_overhead(figures)))


def redis_cores(figures: Figures, streams: float, flush_s: float) -> float:
    """Cores of Redis; each Redis has one for commands."""
    share = xadd_per_stream(figures, flush_s) / figures.xadd_per_stream_10ms
    return streams * figures.redis_core_per_stream * share


def log_gib(figures: Figures, plan: Plan, streams: float) -> float:
    """GiB of the logs in Redis: half of each running answer, and all of those that ended within ``keep_s``."""
    whole = figures.answer_seconds * figures.tokens_per_second * figures.token_log_bytes
    logs = streams * (0.5 + plan.keep_s / figures.answer_seconds)
    return logs * min(whole, 1024.0 * 1024) / 1024**3


def stream_kib(figures: Figures, plan: Plan) -> float:
    """KiB of one stream, process and kernel together, as a mean over stalled and flowing ones."""
    stalled = figures.stalled_kib if plan.role == "source" else figures.gateway_stalled_kib
    kib = figures.idle_kib + plan.stalled_share * (stalled - figures.idle_kib) + figures.kernel_kib
    if plan.tls:
        kib += figures.tls_kib - figures.idle_kib
    if plan.resumable:
        kib += figures.resumable_kib - figures.idle_kib
    return kib


def needs(figures: Figures, machine: Machine, plan: Plan) -> Needs:
    """The fleet for a plan. Redis is counted apart from the machines."""
    handshakes = plan.streams / figures.answer_seconds  # the worst case: each answer on a connection of its own
    handshake_cores = handshakes * (figures.handshake_tls_s if plan.tls else figures.accept_plain_s)
    streaming = plan.streams / figures.streams_per_core(plan.role)
    cores = math.ceil((streaming + handshake_cores) / plan.fill)
    gib = plan.streams * stream_kib(figures, plan) / GIB_IN_KIB + cores * figures.process_mib / 1024
    gbit = plan.streams * figures.tokens_per_second * figures.token_wire_bytes * 8 / 1e9
    each = 1 if plan.role == "source" else 2
    ports = machine.upstream_ports * machine.upstream_addresses
    asks = {
        "cores": math.ceil(cores / machine.cores),
        "memory": math.ceil(gib / machine.gib),
        "network": math.ceil(gbit * each / machine.gbit),
        "ports": math.ceil(plan.streams / ports) if plan.role == "gateway" else 0,
        "descriptors": math.ceil(plan.streams * each / (machine.descriptors_per_process / 2 * machine.cores)),
    }
    by = max(asks, key=lambda name: asks[name])
    on_one = plan.streams / asks[by]
    shards = {"CPU": 0, "memory": 0}
    xadd = evalsha = kept = 0.0
    if plan.resumable:
        kept = log_gib(figures, plan, plan.streams)
        shards["CPU"] = math.ceil(redis_cores(figures, plan.streams, plan.flush_s) / plan.redis_fill)
        shards["memory"] = math.ceil(kept / (plan.redis_gib * plan.redis_fill))
        xadd = plan.streams * xadd_per_stream(figures, plan.flush_s)
        evalsha = max(cores, plan.streams / 100) * figures.evalsha_per_process
    shards_by = max(shards, key=lambda name: shards[name])
    return Needs(
        cores=cores,
        machines=asks[by],
        machines_by=by,
        gib=gib,
        descriptors_per_process=math.ceil(plan.streams * each / cores),
        ports_per_upstream=math.ceil(on_one / machine.upstream_addresses) if plan.role == "gateway" else 0,
        gbit=gbit * each,
        handshake_cores=handshake_cores,
        redis_shards=shards[shards_by],
        redis_shards_by=shards_by,
        xadd_per_second=xadd,
        evalsha_per_second=evalsha,
        redis_gib=kept,
    )


def limits(figures: Figures, machine: Machine, plan: Plan) -> list[Limit]:
    """Each thing that fills up by itself, the one that breaks first in front."""
    each = 1 if plan.role == "source" else 2
    per_stream_gbit = figures.tokens_per_second * figures.token_wire_bytes * 8 / 1e9 * each
    found = [
        Limit("a process (one core)", int(figures.streams_per_core(plan.role))),
        Limit("a machine's cores", int(machine.cores * figures.streams_per_core(plan.role))),
        Limit("a process's descriptors", machine.descriptors_per_process // 2 // each),
        Limit("a machine's memory", int(machine.gib * GIB_IN_KIB / stream_kib(figures, plan))),
        Limit("a machine's network", int(machine.gbit / per_stream_gbit)),
    ]
    if plan.role == "gateway":
        found.append(Limit("a machine's ports to one upstream address", machine.upstream_ports))
    if plan.resumable:
        found.append(Limit("one Redis, its CPU", int(1 / redis_cores(figures, 1, plan.flush_s))))
        found.append(Limit("one Redis, its memory", int(plan.redis_gib / log_gib(figures, plan, 1))))
    return sorted(found, key=lambda limit: limit.streams)


def first_to_break(figures: Figures, machine: Machine, plan: Plan) -> Limit:
    """What breaks first when all that can be bought are more machines: of what the whole fleet shares, the least."""
    return min(
        (one for one in limits(figures, machine, plan) if "Redis" in one.what),
        key=lambda limit: limit.streams,
        default=limits(figures, machine, plan)[0],
    )

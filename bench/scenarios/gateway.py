"""Between a client and a model: what a relayed token costs and adds, and whether a stalled client is felt upstream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from bench.peers import Peer
from bench.programs import Generator, Upstream
from bench.results import Measurement
from bench.sample import KernelQueues
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
    tokens_of,
    wait_until_streaming,
)
from bench.serving import Server, completion_request
from bench.trend import plateau

SECONDS: Final = {"full": 6.0, "short": 3.0, "toy": 0.6}
UNPACED: Final = {"full": 50, "short": 50, "toy": 4}
PACED: Final = {"full": 200, "short": 200, "toy": 10}
RATE: Final = 50
ALONE: Final = {"full": 1000, "short": 300, "toy": 20}
STALLED: Final = {"full": 200, "short": 200, "toy": 10}
STALLED_SECONDS: Final = {"full": 15.0, "short": 8.0, "toy": 1.0}
KIB: Final = 1024


class Gateway(Scenario):
    name = "gateway"
    title = "Gateway: relaying a fast upstream"
    about = (
        "The upstream is a C program that speaks OpenAI's streaming wire as fast as its socket takes it, one HTTP "
        f"chunk per event. CPU is the gateway's process tree alone. “Paced”: {PACED['full']} streams × {RATE} "
        f"tokens/s. “Added first token”: one request at a time on a kept-alive connection, {ALONE['full']:,} of them, "
        "through the gateway and directly to the upstream; the figure is the difference of the two. “Stalled”: "
        f"{STALLED['full']} clients that read nothing (SO_RCVBUF 4096) of an endless, unpaced answer; “rid of” is "
        "what the upstream got rid of per client (taken by its kernel, minus what still waits there), “beyond the "
        "client” is that minus what lies unread in the client's own kernel. " + PATIENT_TEXT
    )
    part_titles = MappingProxyType(
        {
            "unpaced": "50 unpaced streams",
            "paced": "200 streams × 50 tokens/s",
            "first": "added time to first token, alone",
            "stalled": "200 stalled clients",
        }
    )
    columns = (
        Column("us_per_token", "CPU per relayed token", "µs", "less", 2, ratio=True),
        Column("tokens_per_second", "tokens/s", "", "more", 0),
        Column("late_p99_ms", "deviation p99", "ms", "less", 2),
        Column("added_p50_us", "added p50", "µs", "less", 0, ratio=True),
        Column("added_p99_us", "added p99", "µs", "less", 0),
        Column("us_per_request", "CPU per request", "µs", "less", 0),
        Column("process_kib", "process per client", "KiB", "less", 1, ratio=True),
        Column("kernel_kib", "its kernel's send queue", "KiB", "less", 1),
        Column("rid_kib", "upstream rid of", "KiB", "less", 1, ratio=True),
        Column("beyond_kib", "beyond the client", "KiB", "less", 1),
        Column("gateway_cpu", "gateway's core", "share", None, 2),
        Column("generator_cpu", "generator's + upstream's core", "share", None, 2),
    )
    words = (("stopped", "did it stop reading"),)
    goals = (
        Goal("paced", "us_per_token", "<=", 27, "paced: at most 27 µs per token", peer="rawstream-gateway"),
        Goal("unpaced", "us_per_token", "<=", 2, "unpaced: at most 2 µs per token", peer="rawstream-gateway"),
        Goal("first", "added_p50_us", "<=", 250, "added first token: at most 250 µs (p50)", peer="rawstream-gateway"),
        Goal(
            "stalled",
            "beyond_kib",
            "<=",
            64,
            "stalled: reading stops within 64 KiB beyond the client",
            peer="rawstream-gateway",
        ),
        Goal(
            "stalled",
            "process_kib",
            "<=",
            40,
            "stalled: at most 40 KiB of process memory per client",
            peer="rawstream-gateway",
        ),
    )
    bars = ("us_per_token", "added_p50_us", "process_kib", "rid_kib")
    log_bars = True
    wins = (
        "nginx, Go's ReverseProxy and byte relays move bytes without looking at them: they do not know one token "
        "from the next, cannot tell a complete answer from a cut one, and count nothing. rawstream parses every "
        "event, checks the end, and frames anew; that reading is what the extra µs are."
    )

    def parts(self, scale: Scale) -> Sequence[str]:
        return ("unpaced", "paced", "first", "stalled")

    def wants(self, peer: Peer, part: str) -> bool:
        return peer.kind == "gateway" or peer.name == "rawstream-gateway"

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        if part == "first":
            return ALONE[scale] * 0.003 + 2
        if part == "stalled":
            return lasting(STALLED_SECONDS, scale, stretch) + 2
        return lasting(SECONDS, scale, stretch) + (3.3 if part == "paced" else 2)

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        with (
            bench.upstream() as upstream,
            bench.server(peer, env=PATIENT, upstream=upstream) as server,
            bench.generator() as generator,
        ):
            request = completion_request(peer.paths["completions"])
            if part in ("unpaced", "paced"):
                paced = part == "paced"
                count = (PACED if paced else UNPACED)[bench.scale]
                relay(bench, server, upstream, generator, request, found, count=count, rate=RATE if paced else None)
            elif part == "first":
                first(bench, server, upstream, generator, request, found)
            else:
                self._stalled(bench, server, upstream, generator, request, found)

    def _stalled(
        self, bench: Bench, server: Server, upstream: Upstream, generator: Generator, request: str, found: Measurement
    ) -> None:
        upstream.answer(tokens=None, rate=None)
        count, seconds = STALLED[bench.scale], bench.lasting(STALLED_SECONDS)
        base, before = server.resident(), upstream.stats()
        sampler = server.sampler(every=seconds / 30, guard=bench.guard)
        generator.group(
            "stalled",
            count=count,
            mode="stalled",
            dialect="openai",
            port=server.port,
            request=request,
            rcvbuf=4096,
            ramp_ms=500,
        )
        generator.run()
        gone: list[tuple[float, float]] = []
        began = time.monotonic()
        clients = KernelQueues()
        try:
            while time.monotonic() - began < seconds and not sampler.guarded:
                stats = upstream.stats()
                gone.append(
                    (
                        round(time.monotonic() - began, 2),
                        stats["bytes"] - stats["outq"] - (before["bytes"] - before["outq"]),
                    )
                )
                time.sleep(seconds / 30)
            unread = clients.of_port(server.port, remote=True).unread
        finally:
            clients.close()
        samples = sampler.stop()
        group = generator.stop()["groups"]["stalled"]
        late = [y for x, y in gone if x > seconds * 0.75]
        still = (late[-1] - late[0]) / count if len(late) > 1 else 0.0
        found.words["stopped"] = "no: goes on" if still > 4 * KIB or sampler.guarded else "yes"
        found.series |= {"resident": samples.resident, "gone": gone}
        found.values |= {
            "process_kib": (plateau(samples.resident) - base) / count / KIB,
            "kernel_kib": plateau(samples.queued) / count / KIB,
            "rid_kib": gone[-1][1] / count / KIB,
            "beyond_kib": (gone[-1][1] - unread) / count / KIB,
        }
        if sampler.guarded:
            found.marks.append(f"ended at the memory guard after {samples.guarded_at:.0f} s")
        asked = upstream.stats()["requests"] - before["requests"]
        if asked < count:
            found.marks.append(f"only {asked} of {count} requests reached the upstream")
        if group["connected"] < count or group["failed"]:
            found.failure = (
                f"{count - group['connected']} of {count} clients could not connect ({group['first_wrong']})"
            )


def relay(
    bench: Bench,
    server: Server,
    upstream: Upstream,
    generator: Generator,
    request: str,
    found: Measurement,
    *,
    count: int,
    rate: int | None,
) -> None:
    """CPU per token of ``count`` endless streams through a gateway, each at ``rate`` tokens/s (None: unpaced)."""
    upstream.answer(tokens=None, rate=rate)
    generator.group(
        "clients",
        count=count,
        mode="fast",
        dialect="openai",
        port=server.port,
        request=request,
        ramp_ms=1000 if rate else 0,
        rate=rate or 0,
    )
    generator.run()
    wait_until_streaming(generator, found)
    time.sleep(0.3)
    generator.reset()
    before, cpu_before, up_before = generator.snap(), server.cpu(), upstream.stats()
    time.sleep(bench.lasting(SECONDS))
    after, cpu_after, up_after = generator.snap(), server.cpu(), upstream.stats()
    result = generator.stop()
    check_answers(found, result)
    wall, tokens = after["seconds"] - before["seconds"], tokens_of(after) - tokens_of(before)
    helpers = (after["cpu_seconds"] - before["cpu_seconds"]) / wall
    if bench.cores.upstream == bench.cores.generator:
        helpers += (up_after["cpu_seconds"] - up_before["cpu_seconds"]) / wall
    mark_bottleneck(found, helpers)
    found.values |= {"generator_cpu": helpers, "gateway_cpu": (cpu_after - cpu_before) / wall}
    if not tokens:
        found.failure = found.failure or "no token arrived"
        return
    found.values |= {"us_per_token": (cpu_after - cpu_before) / tokens * 1e6, "tokens_per_second": tokens / wall}
    if rate:
        found.values["late_p99_ms"] = ms(result["late_us"]["p99"])
        if tokens < 0.95 * count * rate * wall:
            found.marks.append(f"only {tokens / (count * rate * wall):.0%} of the pace")


def first(
    bench: Bench, server: Server, upstream: Upstream, generator: Generator, request: str, found: Measurement
) -> None:
    """What a gateway adds to the time to the first token, one request at a time."""
    upstream.answer(tokens=1, rate=None)
    asked = ALONE[bench.scale]
    seen = {}
    cpu_before = server.cpu()  # it does nothing while the upstream is asked directly
    for name, port in (("direct", upstream.port), ("through", server.port)):
        generator.group(
            name, count=1, mode="short", dialect="openai", port=port, request=request, tokens=1, requests=asked
        )
        if name == "direct":
            generator.run()
        ends = time.monotonic() + 60
        while (group := generator.snap()["groups"][name])["completed"] < asked and time.monotonic() < ends:
            if group["wrong"] or group["failed"] or group["bad_status"]:
                break
            time.sleep(0.05)
    cpu_after = server.cpu()
    result = generator.stop()
    check_answers(found, result)
    for name in ("direct", "through"):
        seen[name] = result["groups"][name]["first_us"]
        if not seen[name]["count"]:
            found.failure = found.failure or f"no answer came {name}"
            return
    found.values |= {
        "added_p50_us": seen["through"]["p50"] - seen["direct"]["p50"],
        "added_p99_us": seen["through"]["p99"] - seen["direct"]["p99"],
        "direct_p50_us": seen["direct"]["p50"],
        "us_per_request": (cpu_after - cpu_before) / asked * 1e6,
    }
    if result["groups"]["through"]["reconnects"]:
        found.marks.append("the gateway closes the connection after each answer")

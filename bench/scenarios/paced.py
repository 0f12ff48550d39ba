"""A thousand people read at the pace of a model: what a token costs, and how evenly it comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from bench.peers import Peer
from bench.programs import ProgramFailed
from bench.results import Measurement
from bench.scenarios.base import (
    Bench,
    Column,
    Goal,
    Scale,
    Scenario,
    check_answers,
    ended,
    lasting,
    mark_bottleneck,
    ms,
    window,
)
from bench.serving import chat_request

RATE: Final = 50
STREAMS: Final = {"full": 1000, "short": 1000, "toy": 20}
SECONDS: Final = {"full": 16.0, "short": 10.0, "toy": 0.8}
RAMP: Final = {"full": 4.0, "short": 4.0, "toy": 0.2}
STEP: Final = {"full": 250, "short": 500, "toy": 10}
MOST: Final = {"full": 5000, "short": 4000, "toy": 10}
LOOK: Final = {"full": 3.0, "short": 2.0, "toy": 0.4}
SETTLE: Final = {"full": 1.3, "short": 1.3, "toy": 0.4}
LIMIT_MS: Final = 20.0


class Paced(Scenario):
    name = "paced"
    title = "Paced: 1,000 streams at 50 tokens/s"
    about = (
        f"{STREAMS['full']:,} streams of {RATE} tokens/s each, opened evenly over {RAMP['full']:g} s. CPU per token "
        "is taken while all of them run. A token's deviation is how late it came against its own stream's even "
        "schedule, which is anchored at the stream's least late token. “Streams until 20 ms”: endless streams are "
        f"added, {STEP['full']} at a time ({STEP['short']} in the short form), until p99 of that deviation passes "
        f"{LIMIT_MS:g} ms; the figure is the last step that held."
    )
    part_titles = MappingProxyType({"steady": "1,000 streams", "ramp": "how many streams until p99 passes 20 ms"})
    columns = (
        Column("us_per_token", "CPU per token", "µs", "less", 2, ratio=True),
        Column("late_p50_ms", "deviation p50", "ms", "less", 2),
        Column("late_p99_ms", "p99", "ms", "less", 2),
        Column("late_p999_ms", "p99.9", "ms", "less", 2),
        Column("first_p50_ms", "first token p50", "ms", "less", 2),
        Column("first_p99_ms", "p99", "ms", "less", 2),
        Column("complete", "complete", "of all", "more", 3),
        Column("streams_until_20ms", "streams until 20 ms", "", "more", 0, ratio=True),
        Column("server_cpu", "server's core", "share", None, 2),
        Column("generator_cpu", "generator's core", "share", None, 2),
    )
    goals = (
        Goal(
            "steady",
            "us_per_token",
            "<=",
            1.2,
            "CPU per token at most 1.2 × the bare drain() floor (aim 1.1)",
            of="floor-drain",
        ),
        Goal(
            "steady", "first_p99_ms", "<=", 2, "first token p99 at most 2 × the bare drain() floor's", of="floor-drain"
        ),
        Goal("steady", "complete", ">=", 1, "every stream complete"),
    )
    bars = ("us_per_token", "late_p99_ms", "first_p99_ms", "streams_until_20ms")
    wins = (
        "At this pace each token is one wake-up of the loop, one timer and one system call. Go and Rust run those "
        "steps in compiled code; the bare floors have no HTTP, no JSON, no deadlines and no accounting to do. A "
        "server whose core is full delivers late."
    )

    def parts(self, scale: Scale) -> Sequence[str]:
        return ("steady", "ramp")

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        if part == "steady":
            return lasting(SECONDS, scale, stretch) + RAMP[scale] + 2
        return 5 * 500 / STEP[scale] * (SETTLE[scale] + LOOK[scale]) + 1.5  # most pass 20 ms at about 2,500

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        if part == "steady":
            self._steady(bench, peer, found)
        else:
            self._ramp(bench, peer, found)

    def _steady(self, bench: Bench, peer: Peer, found: Measurement) -> None:
        scale = bench.scale
        streams, seconds, ramp = STREAMS[scale], bench.lasting(SECONDS), RAMP[scale]
        tokens = int((seconds + ramp) * RATE)
        mock = {"tokens": tokens, "tokens_per_second": RATE, "batch": 1}
        with bench.server(peer) as server, bench.generator() as generator:
            request = chat_request(peer.paths["chat"], mock)
            generator.group(
                "clients",
                count=streams,
                mode="fast",
                port=server.port,
                request=request,
                ramp_ms=ramp * 1000,
                rate=RATE,
                tokens=tokens,
            )
            generator.run()
            time.sleep(ramp + 0.1 * seconds)
            seen = window(server, generator, 0.8 * seconds, found)
            deadline = time.monotonic() + ramp + 0.1 * seconds + 15
            while ended(generator.snap()["groups"]["clients"]) < streams and time.monotonic() < deadline:
                time.sleep(0.2)
            result = generator.stop()
        check_answers(found, result)
        clients = result["groups"]["clients"]
        late, first = clients["late_us"], clients["first_us"]
        if not seen.tokens or not late["count"] or not first["count"]:
            found.failure = found.failure or "no token arrived"
            return
        found.values |= {
            "us_per_token": seen.us_per_token,
            "late_p50_ms": ms(late["p50"]),
            "late_p99_ms": ms(late["p99"]),
            "late_p999_ms": ms(late["p999"]),
            "first_p50_ms": ms(first["p50"]),
            "first_p99_ms": ms(first["p99"]),
            "complete": clients["completed"] / streams,
        }
        if clients["completed"] < streams:
            found.marks.append(f"{streams - clients['completed']} streams were not complete 15 s after their time")
        if found.values["server_cpu"] >= 0.95:
            found.marks.append("saturated")

    def _ramp(self, bench: Bench, peer: Peer, found: Measurement) -> None:
        scale = bench.scale
        request = chat_request(peer.paths["chat"], {"tokens": None, "tokens_per_second": RATE, "batch": 1})
        held = 0
        curve: list[tuple[float, float]] = []
        with bench.server(peer) as server, bench.generator() as generator:
            for streams in range(STEP[scale], MOST[scale] + 1, STEP[scale]):
                generator.group(
                    f"to {streams}",
                    count=STEP[scale],
                    mode="fast",
                    port=server.port,
                    request=request,
                    ramp_ms=SETTLE[scale] * 600,
                    rate=RATE,
                )
                if streams == STEP[scale]:
                    generator.run()
                try:
                    time.sleep(SETTLE[scale])
                    generator.reset()
                    before = generator.snap()
                    time.sleep(LOOK[scale])
                    after = generator.snap(whole=True)
                except ProgramFailed:
                    break  # the generator could not answer any more: it, or the machine, is full
                mark_bottleneck(
                    found, (after["cpu_seconds"] - before["cpu_seconds"]) / (after["seconds"] - before["seconds"])
                )
                if found.marks:
                    found.marks = [f"the generator was full at {streams} streams: at least {held}"]
                    break
                late = after["late_us"]
                begun = sum(group["begun"] for group in after["groups"].values())
                p99 = ms(late["p99"]) if late["count"] and begun == streams else 1000.0
                curve.append((streams, p99))
                bench.tick(f"{streams} streams: p99 {p99:.1f} ms")
                if p99 > LIMIT_MS:
                    break
                held = streams
        found.values["streams_until_20ms"] = held
        found.series["late_p99_by_streams"] = curve
        if held == MOST[scale]:
            found.marks.append(f"still below {LIMIT_MS:g} ms at the most that is tried")

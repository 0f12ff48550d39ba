"""A reader behind a slow link: how far ahead of what it has received the server has run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from bench import netns
from bench.peers import Peer
from bench.results import Measurement
from bench.scenarios.base import PATIENT, PATIENT_TEXT, Bench, Column, Scale, Scenario, check_answers, lasting
from bench.serving import chat_request
from bench.trend import second_half

SECONDS: Final = {"full": 30.0, "short": 15.0, "toy": 1.5}
RATE_BITS: Final = 400_000


class ThinPipeScenario(Scenario):
    name = "thin_pipe"
    title = "Thin pipe: a reader behind 400 kbit/s (“Slow 3G”)"
    about = (
        "Server and client live in two network namespaces, joined by a veth pair whose server side is shaped by tbf "
        "to 400 kbit/s (burst 3,200 bytes, 400 ms). One client reads all it gets, with default buffers; the source "
        "is endless and unpaced and suspends once per token. “Ahead” are tokens taken from the source minus tokens "
        "received by the client; in seconds, at the rate at which the client receives. " + PATIENT_TEXT
    )
    part_titles = MappingProxyType({"one reader": "one reader"})
    columns = (
        Column("ahead_tokens", "ahead", "tokens", "less", 0, ratio=True),
        Column("ahead_seconds", "ahead", "s", "less", 2),
        Column("most_tokens", "most", "tokens", "less", 0),
        Column("received_per_second", "received", "tokens/s", None, 0),
    )
    series = (("ahead", "tokens ahead of the reader", "tokens"),)
    bars = ("ahead_tokens",)
    log_bars = True
    repeats = MappingProxyType({"full": 2, "short": 1, "toy": 1})
    wins = "Whoever bounds the kernel's unsent bytes as low, or lower, stays as close to the reader."

    def parts(self, scale: Scale) -> Sequence[str]:
        return ("one reader",)

    def wants(self, peer: Peer, part: str) -> bool:
        return (
            super().wants(peer, part) or peer.name in ("rawstream-broken", "rawstream-drain")
        ) and peer.stats is not None

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        return lasting(SECONDS, scale, stretch) + 2

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        seconds = bench.lasting(SECONDS)
        mock = {"tokens": None, "tokens_per_second": None, "batch": 1, "suspend": True}
        with (
            netns.thin_pipe(RATE_BITS) as pipe,
            bench.server(peer, env={**PATIENT, "BENCH_HOST": "0.0.0.0"}, pipe=pipe) as server,
            bench.generator(pipe=pipe) as generator,
        ):
            before = server.pulled()
            if before is None:
                found.failure = "it does not say how many tokens it has pulled"
                return
            generator.group(
                "reader",
                count=1,
                mode="fast",
                host=pipe.address,
                port=server.port,
                request=chat_request(peer.paths["chat"], mock),
            )
            generator.run()
            ahead: list[tuple[float, float]] = []
            received: list[tuple[float, float]] = []
            began = time.monotonic()
            silent = 0
            while time.monotonic() - began < seconds:
                time.sleep(seconds / 60)
                snap = generator.snap()["groups"]["reader"]["tokens"]
                pulled = server.pulled()
                if pulled is None:
                    silent += 1
                    continue
                at = round(time.monotonic() - began, 2)
                received.append((at, snap))
                ahead.append((at, pulled - before - snap))
                if server.resident() > bench.guard:
                    found.marks.append(f"ended at the memory guard after {at:.0f} s")
                    break
            result = generator.stop()
        check_answers(found, result)
        if silent:
            found.marks.append(f"did not answer {silent} of {silent + len(ahead)} questions for its counters")
        half = second_half(ahead)
        if len(half) < 2:
            found.failure = found.failure or "it did not say how many tokens it has pulled"
            return
        rate = (received[-1][1] - received[0][1]) / (received[-1][0] - received[0][0])
        middle = statistics.median(y for _, y in half)
        found.series["ahead"] = ahead
        found.values |= {
            "ahead_tokens": middle,
            "most_tokens": max(y for _, y in ahead),
            "received_per_second": rate,
            "ahead_seconds": middle / rate if rate else 0.0,
        }

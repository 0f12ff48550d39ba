"""The pace of a model over https: what a token costs when it is a record of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from bench.peers import Peer
from bench.results import Measurement
from bench.sample import cpu_by_name
from bench.scenarios.base import Bench, Column, Scale, Scenario, check_answers, ended, lasting, ms, window
from bench.serving import chat_request

RATE: Final = 50
STREAMS: Final = {"full": 200, "short": 200, "toy": 10}
SECONDS: Final = {"full": 10.0, "short": 6.0, "toy": 0.8}
RAMP: Final = {"full": 2.0, "short": 2.0, "toy": 0.2}


class TlsPaced(Scenario):
    name = "tls_paced"
    title = "Paced over TLS: 200 streams at 50 tokens/s"
    about = (
        f"{STREAMS['full']} streams of {RATE} tokens/s each over TLS 1.3 (AES-256-GCM, ECDSA P-256), opened evenly "
        f"over {RAMP['full']:g} s; CPU per token is taken while all of them run. **uvicorn** ends TLS itself "
        "(uvloop's), **nginx** in front of a plain rawstream, and both are counted (nginx's own part beside "
        "it). **rawstream** without TLS stands there for what TLS costs. The load generator is the one in C, with "
        "OpenSSL."
    )
    part_titles = MappingProxyType({"steady": "200 streams"})
    columns = (
        Column("us_per_token", "CPU per token", "µs", "less", 2, ratio=True),
        Column("front_us_per_token", "nginx's part", "µs", None, 2),
        Column("late_p50_ms", "deviation p50", "ms", "less", 2),
        Column("late_p99_ms", "p99", "ms", "less", 2),
        Column("first_p50_ms", "first token p50", "ms", "less", 2),
        Column("first_p99_ms", "p99", "ms", "less", 2),
        Column("complete", "complete", "of all", "more", 3),
        Column("server_cpu", "server's core", "share", None, 2),
        Column("generator_cpu", "generator's core", "share", None, 2),
    )
    bars = ("us_per_token", "late_p99_ms")
    us = ("rawstream-tls",)
    wins = (
        "A token is one record, one write() and one wake-up; rawstream without TLS has no record to make, and nginx's "
        "part is compiled."
    )

    def parts(self, scale: Scale) -> Sequence[str]:
        return ("steady",)

    def wants(self, peer: Peer, part: str) -> bool:
        return (peer.tls and peer.kind != "http2") or peer.name == "rawstream"

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        return lasting(SECONDS, scale, stretch) + RAMP[scale] + 2.5

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        streams, seconds, ramp = STREAMS[bench.scale], bench.lasting(SECONDS), RAMP[bench.scale]
        tokens = int((seconds + ramp) * RATE)
        mock = {"tokens": tokens, "tokens_per_second": RATE, "batch": 1}
        with bench.server(peer) as server, bench.generator(tls=True) as generator:
            generator.group(
                "clients",
                count=streams,
                mode="fast",
                port=server.port,
                request=chat_request(peer.paths["chat"], mock),
                ramp_ms=ramp * 1000,
                rate=RATE,
                tokens=tokens,
                tls=int(peer.tls),
            )
            generator.run()
            time.sleep(ramp + 0.1 * seconds)
            front_before = cpu_by_name(server.pid).get("nginx", 0.0)
            seen = window(server, generator, 0.8 * seconds, found)
            front = cpu_by_name(server.pid).get("nginx", 0.0) - front_before
            deadline = time.monotonic() + ramp + 0.1 * seconds + 15
            while ended(generator.snap()["groups"]["clients"]) < streams and time.monotonic() < deadline:
                time.sleep(0.1)
            result = generator.stop()
        check_answers(found, result)
        clients = result["groups"]["clients"]
        if not seen.tokens or not clients["late_us"]["count"] or not clients["first_us"]["count"]:
            found.failure = found.failure or "no token arrived"
            return
        found.values |= {
            "us_per_token": seen.us_per_token,
            "late_p50_ms": ms(clients["late_us"]["p50"]),
            "late_p99_ms": ms(clients["late_us"]["p99"]),
            "first_p50_ms": ms(clients["first_us"]["p50"]),
            "first_p99_ms": ms(clients["first_us"]["p99"]),
            "complete": clients["completed"] / streams,
        }
        if front:
            found.values["front_us_per_token"] = front / seen.tokens * 1e6
        if clients["completed"] < streams:
            found.marks.append(f"{streams - clients['completed']} streams were not complete 15 s after their time")

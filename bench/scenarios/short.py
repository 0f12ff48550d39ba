"""Short answers on kept-alive connections: what a request costs apart from its tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from bench.peers import Peer
from bench.results import Measurement
from bench.scenarios.base import Bench, Column, Goal, Scale, Scenario, check_answers, lasting, mark_bottleneck, ms
from bench.serving import chat_request

CLIENTS: Final = 32
SECONDS: Final = {"full": 5.0, "short": 3.0, "toy": 0.5}


class Short(Scenario):
    name = "short"
    title = "Short: one-token answers on kept-alive connections"
    about = (
        f"{CLIENTS} connections, each sends its next request when the answer of the last (one token, [DONE], the "
        "clean end) has arrived whole."
    )
    columns = (
        Column("requests_per_second", "requests/s", "", "more", 0, ratio=True),
        Column("us_per_request", "CPU per request", "µs", "less", 1),
        Column("p50_ms", "answer p50", "ms", "less", 2),
        Column("p99_ms", "p99", "ms", "less", 2),
        Column("generator_cpu", "generator's core", "share", None, 2),
    )
    goals = (
        Goal(
            "requests",
            "requests_per_second",
            ">=",
            1.5,
            "at least 1.5 × uvicorn-httptools + Starlette",
            of="uvicorn-starlette-httptools",
        ),
        Goal("requests", "requests_per_second", ">=", 10_000, "aim: 10,000 requests/s"),
    )
    part_titles = MappingProxyType({"requests": f"{CLIENTS} connections"})
    bars = ("requests_per_second", "p99_ms")
    wins = (
        "Parsers in C (aiohttp's llhttp, httptools, Node) and compiled servers read a request head in a few µs; h11, "
        "in Python, takes 60 to 90 µs per cycle, and rawstream's strict guard in front of it is part of the price of "
        "refusing what h11 lets through."
    )

    def parts(self, scale: Scale) -> Sequence[str]:
        return ("requests",)

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        return 1.2 * lasting(SECONDS, scale, stretch) + 1.2

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        with bench.server(peer) as server, bench.generator() as generator:
            request = chat_request(peer.paths["chat"], {"tokens": 1, "tokens_per_second": None, "batch": 1})
            generator.group("clients", count=CLIENTS, mode="short", port=server.port, request=request, tokens=1)
            generator.run()
            time.sleep(bench.lasting(SECONDS) * 0.2)
            generator.reset()
            before, cpu_before = generator.snap(), server.cpu()
            time.sleep(bench.lasting(SECONDS))
            cpu_after, after = server.cpu(), generator.snap()
            result = generator.stop()
        check_answers(found, result)
        wall = after["seconds"] - before["seconds"]
        answers = after["groups"]["clients"]["completed"] - before["groups"]["clients"]["completed"]
        found.values["generator_cpu"] = (after["cpu_seconds"] - before["cpu_seconds"]) / wall
        mark_bottleneck(found, found.values["generator_cpu"])
        if not answers:
            found.failure = found.failure or "no answer arrived"
            return
        answer = result["groups"]["clients"]["answer_us"]
        found.values |= {
            "requests_per_second": answers / wall,
            "us_per_request": (cpu_after - cpu_before) / answers * 1e6,
            "p50_ms": ms(answer["p50"]),
            "p99_ms": ms(answer["p99"]),
        }
        if result["groups"]["clients"]["reconnects"]:
            found.marks.append(
                f"the server closed {result['groups']['clients']['reconnects']} connections after an answer"
            )

"""Open streams on which almost nothing happens: what each costs in memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from bench.peers import Peer
from bench.results import Measurement
from bench.scenarios.base import Bench, Column, Goal, Scale, Scenario, check_answers, wait_until_streaming
from bench.serving import chat_request

STREAMS: Final = {"full": 2000, "short": 2000, "toy": 50}
EVERY: Final = {"full": 15.0, "short": 15.0, "toy": 0.6}


class Idle(Scenario):
    name = "idle"
    title = "Idle: 2,000 open streams, one token in 15 s"
    about = (
        f"{STREAMS['full']:,} streams are opened over 4 s; each has had its first token and waits for the next. "
        "Memory per stream is the growth of the process tree over its level after warm-up; the second token of every "
        "stream is awaited and checked."
    )
    columns = (
        Column("process_kib", "process per stream", "KiB", "less", 1, ratio=True),
        Column("kernel_held_kib", "kernel per stream", "KiB", "less", 2),
        Column("second", "second token came", "of all", "more", 3),
    )
    goals = (Goal("streams", "process_kib", "<=", 10, "at most 10 KiB per open stream"),)
    part_titles = MappingProxyType({"streams": "2,000 streams"})
    bars = ("process_kib",)
    repeats = MappingProxyType({"full": 2, "short": 1, "toy": 1})
    wins = "The bare floors keep no request, no HTTP state, no deadlines and no record of the stream."

    def parts(self, scale: Scale) -> Sequence[str]:
        return ("streams",)

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        return EVERY[scale] + STREAMS[scale] / 500 + 2

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        streams, every = STREAMS[bench.scale], EVERY[bench.scale]
        with bench.server(peer) as server, bench.generator() as generator:
            request = chat_request(peer.paths["chat"], {"tokens": None, "tokens_per_second": 1 / every, "batch": 1})
            base = server.resident()
            ramp = streams / 500
            generator.group("idle", count=streams, mode="fast", port=server.port, request=request, ramp_ms=ramp * 1000)
            generator.run()
            wait_until_streaming(generator, found, ramp + 15)
            time.sleep(min(2.0, every / 3))
            found.values["process_kib"] = (server.resident() - base) / streams / 1024
            found.values["kernel_held_kib"] = server.kernel().held / streams / 1024
            time.sleep(every - min(2.0, every / 3) + 0.5)
            result = generator.stop()
        check_answers(found, result)
        found.values["second"] = sum(tokens >= 2 for tokens in result["groups"]["idle"]["stream_tokens"]) / streams

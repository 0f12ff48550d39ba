"""Ten thousand streams at once in one process."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from bench.peers import Peer
from bench.results import Measurement
from bench.scenarios.base import Bench, Column, Goal, Scale, Scenario, check_answers, lasting, ms, window
from bench.serving import chat_request
from bench.trend import plateau

STREAMS: Final = {"full": 10_000, "short": 10_000, "toy": 100}
RAMP: Final = {"full": 20.0, "short": 20.0, "toy": 0.3}
SECONDS: Final = {"full": 20.0, "short": 10.0, "toy": 1.1}
RATE: Final = 1


class Many(Scenario):
    name = "many"
    title = "Many: 10,000 concurrent streams at 1 token/s"
    about = (
        f"{STREAMS['full']:,} endless streams, opened evenly over {RAMP['full']:g} s, each at {RATE} token/s, all in "
        "one process. Deviation is how late a token came against its own stream's schedule. "
        "RAWSTREAM_MAX_CONNECTIONS and RAWSTREAM_MAX_STREAMS are raised by 100 above the default 10,000, for the "
        "harness's own questions."
    )
    part_titles = MappingProxyType({"streams": "10,000 streams"})
    columns = (
        Column("process_mib", "process", "MiB", "less", 1, ratio=True),
        Column("process_kib", "per stream", "KiB", "less", 1),
        Column("kernel_mib", "kernel queues", "MiB", "less", 2),
        Column("late_p50_ms", "deviation p50", "ms", "less", 2),
        Column("late_p99_ms", "p99", "ms", "less", 2),
        Column("first_p99_ms", "first token p99", "ms", "less", 2),
        Column("errors", "errors", "streams", "less", 0),
        Column("server_cpu", "server's core", "share", None, 2),
    )
    goals = (Goal("streams", "errors", "<=", 0, "10,000 streams without an error"),)
    repeats = MappingProxyType({"full": 1, "short": 1, "toy": 1})
    wins = "The bare floor parses no HTTP and keeps no record of a stream."

    def parts(self, scale: Scale) -> Sequence[str]:
        return ("streams",)

    def wants(self, peer: Peer, part: str) -> bool:
        return peer.name in ("rawstream", "floor-drain", "uvicorn-starlette-h11", "go-nethttp")

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        return RAMP[scale] + lasting(SECONDS, scale, stretch) + 3

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        streams, seconds = STREAMS[bench.scale], bench.lasting(SECONDS)
        room = {"RAWSTREAM_MAX_CONNECTIONS": "10100", "RAWSTREAM_MAX_STREAMS": "10100"}
        with bench.server(peer, env=room) as server, bench.generator() as generator:
            base = server.resident()
            request = chat_request(peer.paths["chat"], {"tokens": None, "tokens_per_second": RATE, "batch": 1})
            generator.group(
                "clients",
                count=streams,
                mode="fast",
                port=server.port,
                request=request,
                ramp_ms=RAMP[bench.scale] * 1000,
                rate=RATE,
            )
            generator.run()
            if generator.streaming(RAMP[bench.scale] + 20) is None:
                found.marks.append("not every stream had its first token 20 s after the last was opened")
            sampler = server.sampler(every=1.0, guard=bench.guard)
            window(server, generator, seconds, found)
            samples = sampler.stop()
            result = generator.stop()
        check_answers(found, result)
        clients = result["groups"]["clients"]
        resident = plateau(samples.resident) - base
        found.values |= {
            "process_mib": resident / 1024 / 1024,
            "process_kib": resident / streams / 1024,
            "kernel_mib": plateau(samples.queued) / 1024 / 1024,
            "errors": streams - clients["open"],
        }
        if clients["late_us"]["count"]:
            found.values |= {
                "late_p50_ms": ms(clients["late_us"]["p50"]),
                "late_p99_ms": ms(clients["late_us"]["p99"]),
                "first_p99_ms": ms(clients["first_us"]["p99"]),
            }

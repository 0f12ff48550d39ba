"""What a token costs when the source is as fast as it is pulled, and whether fifty such streams get on together."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

from bench.peers import Peer
from bench.results import Measurement
from bench.scenarios.base import Bench, Column, Goal, Scale, Scenario, check_answers, lasting, ms, window
from bench.serving import chat_request

CLIENTS: Final = 50
SECONDS: Final = {"full": 5.0, "short": 2.0, "toy": 0.4}
BATCH: Final = 64
MOCKS: Final[dict[str, dict[str, Any]]] = {
    "batch": {"tokens": None, "tokens_per_second": None, "batch": BATCH},
    "joined": {"tokens": None, "tokens_per_second": None, "batch": BATCH},
    "single": {"tokens": None, "tokens_per_second": None, "batch": 1, "suspend": False},
    "suspend": {"tokens": None, "tokens_per_second": None, "batch": 1, "suspend": True},
}
FAIR_WITHIN: Final = {"full": 10.0, "short": 4.0, "toy": 1.0}


class Throughput(Scenario):
    name = "throughput"
    title = "Throughput: the source is as fast as it is pulled"
    about = (
        f"{CLIENTS} clients read endless streams as fast as they can. Figures are tokens per second of the *server's* "
        "CPU time, so that they do not depend on how fast the reader is. “Last first token” is fairness: when the "
        f"last of the {CLIENTS} streams, all opened at once, got its first token. **Batches, event by event**: the "
        "source yields lists of ready tokens, and every peer's handler yields or writes one event after the other, as "
        "the documentation of each shows it; rawstream's handler is given the lists and rawstream joins by itself "
        "what is ready (the drain() floor joins too). The goals are judged on this form. **Batches, joined by hand**: "
        "the peers' handlers make one text of a list, one write, which none of their documentations does, but "
        "whoever knows can. **Tokens per write()** are tokens over the server's write system calls (syscw of "
        "/proc/<pid>/io; send() is not counted there, and a server that uses it has a dash): above 1 the server "
        "joined events by itself, as rawstream does, and Node, which corks a response until its next tick. **Tokens "
        "per packet** are those over the packets with data that its kernel sent (tcpi_data_segs_out; on loopback up "
        "to 64 KiB each). More tokens in a packet than in a write() mean that the kernel already had a queue of "
        "unsent bytes: such a write() is a copy to the queue's end, about half as dear as one that has to send its "
        "packet (compare the source that suspends). So it is with the bare floors and single tokens: a write() per "
        "token, but several tokens in every packet, since they run up to megabytes ahead of each reader; within a "
        "queue of 2 KiB their figure would be a lower one. The goal is judged against it as it is."
    )
    part_titles = MappingProxyType(
        {
            "batch": f"a source that yields batches of {BATCH} ready tokens, handled event by event",
            "joined": f"the same batches of {BATCH}, joined by hand into one write",
            "single": "a source that yields single tokens and never suspends",
            "suspend": "a source that suspends once per token",
        }
    )
    columns = (
        Column("tokens_per_cpu_second", "tokens per CPU-second", "", "more", 0, ratio=True),
        Column("us_per_token", "CPU per token", "µs", "less", 2),
        Column("tokens_per_second", "tokens/s", "", "more", 0),
        Column("tokens_per_write", "tokens per write()", "", None, 1),
        Column("tokens_per_packet", "tokens per packet", "", None, 1),
        Column("last_first_ms", "last first token", "ms", "less", 1),
        Column("generator_cpu", "generator's core", "share", None, 2),
    )
    goals = (
        Goal("batch", "tokens_per_cpu_second", ">=", 2_000_000, "batches: at least 2,000,000 tokens per CPU-second"),
        Goal("batch", "tokens_per_cpu_second", ">=", 4, "batches: at least 4 × Node http", of="node-http"),
        Goal(
            "batch",
            "tokens_per_cpu_second",
            ">=",
            15,
            "batches: at least 15 × uvicorn + Starlette (h11)",
            of="uvicorn-starlette-h11",
        ),
        Goal(
            "batch",
            "tokens_per_cpu_second",
            ">=",
            15,
            "batches: at least 15 × uvicorn + Starlette (httptools)",
            of="uvicorn-starlette-httptools",
        ),
        Goal(
            "single",
            "tokens_per_cpu_second",
            ">=",
            2,
            "single tokens: at least 2 × the bare uvloop floor",
            of="floor-protocol",
        ),
        Goal("suspend", "us_per_token", "<=", 8, "suspending source: at most 8 µs per token"),
        Goal(
            "suspend",
            "us_per_token",
            "<=",
            1.2,
            "suspending source: at most 1.2 × the bare drain() floor",
            of="floor-drain",
        ),
        Goal(
            "single",
            "last_first_ms",
            "<=",
            100,
            "fairness: the 50th stream's first token within 100 ms (single tokens)",
        ),
        Goal("batch", "last_first_ms", "<=", 100, "fairness: the 50th stream's first token within 100 ms (batches)"),
    )
    bars = ("tokens_per_cpu_second", "last_first_ms")
    log_bars = True
    for_all = True
    wins = (
        "Compiled servers (Go, granian's Rust half) and Node's JIT pay less for each step of a token's way than "
        "CPython can. With a source that suspends once per token every server must make one system call per token, "
        "about 5 µs here, and what is left to gain is small."
    )

    def parts(self, scale: Scale) -> Sequence[str]:
        return tuple(MOCKS)

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        waits = 0.5 if part == "suspend" else FAIR_WITHIN[scale] * 0.7
        return lasting(SECONDS, scale, stretch) + waits + 1.2

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        with bench.server(peer) as server, bench.generator() as generator:
            request = chat_request(peer.paths["chat"], MOCKS[part], joined=part == "joined")
            generator.group("clients", count=CLIENTS, mode="fast", port=server.port, request=request)
            generator.run()
            begun = generator.streaming(FAIR_WITHIN[bench.scale])
            if begun is None:
                late = generator.snap()["groups"]["clients"]
                found.marks.append(
                    f"{CLIENTS - late['begun']} streams had no token after {FAIR_WITHIN[bench.scale]:g} s"
                )
            seen = window(server, generator, bench.lasting(SECONDS), found)
            result = generator.stop()
        check_answers(found, result)
        if not seen.tokens or not seen.server_cpu:
            found.failure = found.failure or "no token arrived"
            return
        found.values |= {
            "tokens_per_cpu_second": seen.tokens / seen.server_cpu,
            "us_per_token": seen.us_per_token,
            "tokens_per_second": seen.tokens / seen.seconds,
            "last_first_ms": ms(result["groups"]["clients"]["last_first_token_us"]),
        }
        if seen.writes * 1000 > seen.tokens:  # fewer: it uses send(), which the kernel does not count
            found.values["tokens_per_write"] = seen.tokens / seen.writes
        if seen.packets > 0:
            found.values["tokens_per_packet"] = seen.tokens / seen.packets
        if begun is None:
            found.values["last_first_ms"] = FAIR_WITHIN[bench.scale] * 1000

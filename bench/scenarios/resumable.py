"""An answer that outlives its connection: what the replay log costs, in memory and in Redis."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from bench.peers import Peer
from bench.redis import Redis
from bench.results import Measurement
from bench.scenarios.base import (
    Bench,
    Column,
    Goal,
    Scale,
    Scenario,
    check_answers,
    lasting,
    wait_until_streaming,
    window,
)
from bench.serving import post

RATE: Final = 50
STREAMS: Final = {
    "own": {"full": 500, "short": 200, "toy": 10},
    "relay": {"full": 200, "short": 200, "toy": 10},
}
SECONDS: Final = {"full": 10.0, "short": 5.0, "toy": 1.0}
RAMP: Final = {"full": 3.0, "short": 1.0, "toy": 0.1}
OFF: Final = {"own": "rawstream", "relay": "rawstream-gateway"}
MEMORY: Final = {part: f"{off}-resumable" for part, off in OFF.items()}
REDIS: Final = {part: f"{off}-redis" for part, off in OFF.items()}


class Resumable(Scenario):
    name = "resumable"
    title = "Resumable: what it costs that an answer outlives its connection"
    about = (
        f"{STREAMS['own']['full']} streams × {RATE} tokens/s of an own source, and {STREAMS['relay']['full']} relayed "
        "from the C upstream of the scenario gateway, each read by one client that stays. **rawstream** alone: the "
        "answer ends with its connection (`on_disconnect: cancel`). **-resumable**: the same request with "
        "`on_disconnect: grace:30`, so that all that passes is kept in a replay log in memory. **-redis**: that log is "
        "published to a Redis, every 10 ms (`replay_flush`), where other processes can read it; Redis has its own core "
        "here, as far as there are any, and its CPU is stated beside."
    )
    part_titles = MappingProxyType(
        {"own": "own source, 500 streams × 50 tokens/s", "relay": "gateway, 200 streams × 50 tokens/s"}
    )
    columns = (
        Column("us_per_token", "CPU per token", "µs", "less", 2, ratio=True),
        Column("late_p99_ms", "deviation p99", "ms", "less", 2),
        Column("appended", "XADD/s", "", None, 0),
        Column("asked", "round trips/s", "", None, 0),
        Column("redis_us", "Redis' CPU per token", "µs", None, 2),
        Column("server_cpu", "server's core", "share", None, 2),
        Column("generator_cpu", "generator's core", "share", None, 2),
    )
    goals = tuple(
        Goal(part, "us_per_token", "<=", limit, f"{title}: at most {limit:g} × not resumable", of=OFF[part], peer=peer)
        for part, title in (("own", "own source"), ("relay", "gateway"))
        for limit, peer in ((1.2, MEMORY[part]), (1.6, REDIS[part]))
    )
    bars = ("us_per_token",)
    us = ("rawstream-resumable", "rawstream-gateway-resumable")
    repeats = MappingProxyType({"full": 3, "short": 3, "toy": 1})

    def parts(self, scale: Scale) -> Sequence[str]:
        return tuple(OFF)

    def wants(self, peer: Peer, part: str) -> bool:
        return peer.name in (OFF[part], MEMORY[part], REDIS[part])

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        return lasting(SECONDS, scale, stretch) + RAMP[scale] + 3

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        relay, shared = part == "relay", peer.name == REDIS[part]
        body: dict[str, Any] = {} if peer.name == OFF[part] else {"on_disconnect": "grace:30"}
        if relay:
            path = peer.paths["completions"]
            body |= {"model": "bench", "stream": True, "messages": [{"role": "user", "content": "bench"}]}
        else:
            path = peer.paths["chat"]
            body |= {"prompt": "bench", "mock": {"tokens": None, "tokens_per_second": RATE, "batch": 1}}
        with contextlib.ExitStack() as running:
            upstream = running.enter_context(bench.upstream()) if relay else None
            redis = running.enter_context(Redis(bench.cores.upstream)) if shared else None
            env: Mapping[str, str] = {} if redis is None else {"RAWSTREAM_REDIS": redis.url}
            server = running.enter_context(bench.server(peer, env=env, upstream=upstream))
            generator = running.enter_context(bench.generator())
            if upstream is not None:
                upstream.answer(tokens=None, rate=RATE)
            ramp = RAMP[bench.scale]
            generator.group(
                "clients",
                count=STREAMS[part][bench.scale],
                mode="fast",
                dialect="openai" if relay else "chat",
                port=server.port,
                request=post(path, json.dumps(body)),
                ramp_ms=ramp * 1000,
                rate=RATE,
            )
            generator.run()
            wait_until_streaming(generator, found, ramp + 20)
            time.sleep(0.5)
            generator.reset()
            before, began = None if redis is None else redis.counted(), time.monotonic()
            seen = window(server, generator, bench.lasting(SECONDS), found)
            did, took = None if redis is None else redis.counted(), time.monotonic() - began
            result = generator.stop()
        check_answers(found, result)
        if not seen.tokens:
            found.failure = found.failure or "no token arrived"
            return
        found.values |= {
            "us_per_token": seen.us_per_token,
            "late_p99_ms": result["groups"]["clients"]["late_us"]["p99"] / 1000,
        }
        if before is not None and did is not None:
            did = did.since(before)
            if not did.appended:
                found.failure = found.failure or "nothing was published in Redis"
            found.values |= {
                "appended": did.appended / took,
                "asked": did.asked / took,
                "redis_us": did.cpu / seen.tokens * 1e6,
            }

"""Clients vanish mid-stream: how long the source goes on working for nobody."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from bench.host import undisturbed
from bench.peers import Peer
from bench.results import Measurement
from bench.scenarios.base import Bench, Column, Goal, Scale, Scenario, check_answers, wait_until_streaming
from bench.serving import Event, Server, chat_request
from bench.trend import quantile

CLIENTS: Final = {"full": 200, "short": 200, "toy": 20}
ACTIVE_RATE: Final = 50.0
SILENCE: Final = {"full": 5.0, "short": 5.0, "toy": 0.8}
LEAVE_EVERY_MS: Final = 10.0


class Leavers(Scenario):
    name = "leavers"
    title = "Leavers: 200 clients vanish mid-stream"
    about = (
        f"{CLIENTS['full']} clients open a stream each, and then close their sockets, one every {LEAVE_EVERY_MS:g} "
        "ms. Measured is the time from close() in the client to the end of the source's generator in the server (its "
        f"`finally`), both by CLOCK_MONOTONIC. “Active”: the source makes {ACTIVE_RATE:g} tokens/s. “Silent”: it is "
        f"{SILENCE['full']:g} s from one token to the next, as a model that thinks. “Never”: not closed within "
        f"{2 * SILENCE['full']:g} s after the last client had left. Milliseconds are looked at: the threads of the "
        "server and of the generator, whichever peer it is, run with real-time priority (SCHED_FIFO) from the moment "
        "all streams are open, so that what else runs on the machine does not count; where the harness may not give "
        "it (it takes root) the run is marked."
    )
    part_titles = MappingProxyType({"active": "the source is active", "silent": "the source is silent"})
    columns = (
        Column("p50_ms", "until closed, p50", "ms", "less", 2),
        Column("p99_ms", "p99", "ms", "less", 2, ratio=True),
        Column("max_ms", "most", "ms", "less", 2),
        Column("never", "never", "streams", "less", 0),
    )
    goals = (
        Goal("active", "p99_ms", "<=", 1.5, "source active: closed within 1.5 ms (p99)"),
        Goal("active", "never", "<=", 0, "source active: none missed"),
        Goal("silent", "p99_ms", "<=", 1.5, "source silent: closed within 1.5 ms (p99)"),
        Goal("silent", "never", "<=", 0, "source silent: none missed"),
    )
    bars = ("p99_ms",)
    log_bars = True
    wins = (
        "A server with less to do per end (no record, no log line, no second task to cancel) is a fraction of a "
        "millisecond ahead."
    )

    def parts(self, scale: Scale) -> Sequence[str]:
        return ("active", "silent")

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        late = 0.0 if part == "active" else 0.5 * SILENCE[scale]  # about half of all close at the next token only
        return CLIENTS[scale] * (LEAVE_EVERY_MS / 1000 + 1 / 500) + late + 1.8

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        count, silence = CLIENTS[bench.scale], SILENCE[bench.scale]
        rate = ACTIVE_RATE if part == "active" else 1 / silence
        with bench.server(peer) as server, bench.generator() as generator:
            request = chat_request(
                peer.paths["chat"], {"tokens": None, "tokens_per_second": rate, "batch": 1}, numbered=True
            )
            known = len(server.events())
            generator.group(
                "leavers", count=count, mode="fast", port=server.port, request=request, ramp_ms=1000 * count / 500
            )
            generator.run()
            wait_until_streaming(generator, found)
            time.sleep(0.1)
            with undisturbed(*server.tree(), generator.pid) as allowed:
                generator.leave("leavers", every_ms=LEAVE_EVERY_MS)
                events = self._closed(server, known, count, 2 * silence)
            found.values["real_time"] = float(allowed)
            if not allowed:
                found.marks.append("without real-time priority: other programs may have delayed it")
            result = generator.stop()
            if not server.alive:
                found.failure = f"the server died: {server.output()[-300:]}"
                return
        check_answers(found, result, groups=())
        left = result["groups"]["leavers"]["left_at_ns"]
        closed = {int(identity): at for kind, identity, at, _ in events if kind == "close" and identity.isdigit()}
        opened = sum(kind == "open" for kind, *_ in events)
        if opened < count:
            found.failure = f"only {opened} of {count} sources were ever opened"
            return
        taken = [max(0.0, (closed[i] - at) / 1e6) for i, at in enumerate(left) if at and i in closed]
        found.values["never"] = sum(1 for at in left if at) - len(taken)
        if taken:
            found.values |= {"p50_ms": quantile(taken, 0.5), "p99_ms": quantile(taken, 0.99), "max_ms": max(taken)}
        else:
            found.marks.append("no source was ever closed")

    def _closed(self, server: Server, known: int, count: int, patience: float) -> list[Event]:
        """The events after the first ``known``, once all sources have closed, or ``patience`` s after the last left."""
        ends = time.monotonic() + count * LEAVE_EVERY_MS / 1000 + patience
        events: list[Event] = []
        while time.monotonic() < ends:
            time.sleep(0.1)
            events = server.events()[known:]
            if sum(kind == "close" for kind, *_ in events) >= count:
                break
        return events

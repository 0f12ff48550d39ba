"""Users, keys, token budgets and metrics: what all of it costs against none of it."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Final

from bench.peers import Peer
from bench.programs import Generator
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
from bench.scenarios.gateway import ALONE, PACED, RATE, SECONDS, first, relay
from bench.serving import Server, chat_request, completion_request

OFF: Final = {
    "relay": "rawstream-gateway",
    "relay_first": "rawstream-gateway",
    "own": "rawstream",
    "own_first": "rawstream",
}
ON: Final = {part: f"{off}-everything" for part, off in OFF.items()}

_TOKENS: Final = re.compile(r'^rawstream_user_tokens_total\{[^}]*user="bench"[^}]*\} (\S+)', re.MULTILINE)


class Scraper:
    """What Prometheus does: ``GET /metrics``, once a second."""

    def __init__(self) -> None:
        self.scrapes = 0
        self.longest = 0.0
        """Seconds."""
        self.tokens = 0.0
        """Of the user who asks, as the metrics have it: 0 would mean that not everything is on."""
        self.problem = ""

    @contextlib.contextmanager
    def of(self, server: Server) -> Iterator[None]:
        """While the block runs."""
        over = threading.Event()
        self._scrape(server)  # the first one does what is done once: it belongs to the warm-up
        self.scrapes, self.longest = 0, 0.0

        def scrape() -> None:
            while not self.problem and not over.wait(1.0):
                self._scrape(server)

        thread = threading.Thread(target=scrape, name="scraper", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(10)

    def _scrape(self, server: Server) -> None:
        began = time.monotonic()
        try:
            text = server.get("/metrics").decode()
        except (OSError, ValueError) as error:
            self.problem = str(error)
            return
        self.tokens = max((float(found[1]) for found in _TOKENS.finditer(text)), default=0.0)
        self.scrapes += 1
        self.longest = max(self.longest, time.monotonic() - began)


class Everything(Scenario):
    name = "everything"
    title = "Everything on, against everything off"
    about = (
        "On: 51 users in the configuration, each request with a key, every limit and token budget of its user set "
        "(none is reached), `/metrics` read once a second. Off: the same server with its defaults, read by nobody. "
        f"“Relay”: {PACED['full']} streams × {RATE} tokens/s through the gateway, from the same C upstream as in the "
        "scenario gateway; “own source”: as many from one's own source. “First token”: one request at a time on a "
        f"kept-alive connection, {ALONE['full']:,} of them; through the gateway it is what is added to asking the "
        "upstream itself."
    )
    part_titles = MappingProxyType(
        {
            "relay": "gateway, 200 streams × 50 tokens/s",
            "own": "own source, 200 streams × 50 tokens/s",
            "relay_first": "gateway, added time to first token, alone",
            "own_first": "own source, time to first token, alone",
        }
    )
    columns = (
        Column("us_per_token", "CPU per token", "µs", "less", 2, ratio=True),
        Column("late_p99_ms", "deviation p99", "ms", "less", 2),
        Column("added_p50_us", "added p50", "µs", "less", 0, ratio=True),
        Column("added_p99_us", "added p99", "µs", "less", 0),
        Column("us_per_request", "CPU per request", "µs", "less", 0),
        Column("scrapes", "scrapes", "", None, 0),
        Column("scrape_ms", "longest scrape", "ms", None, 1),
        Column("generator_cpu", "generator's core", "share", None, 2),
    )
    goals = tuple(
        Goal(
            part,
            "us_per_token",
            "<=",
            1.15,
            f"{title}: CPU per token at most 1.15 × everything off",
            of=OFF[part],
            peer=ON[part],
        )
        for part, title in (("relay", "gateway"), ("own", "own source"))
    ) + tuple(
        Goal(part, "added_p50_us", "<=", 300, f"{title}: first token p50 at most 300 µs", peer=ON[part])
        for part, title in (("relay_first", "gateway, added"), ("own_first", "own source"))
    )
    bars = ("us_per_token", "added_p50_us")
    us = ("rawstream-everything", "rawstream-gateway-everything")
    repeats = MappingProxyType({"full": 5, "short": 3, "toy": 1})

    def parts(self, scale: Scale) -> Sequence[str]:
        return tuple(OFF)

    def wants(self, peer: Peer, part: str) -> bool:
        return peer.name in (OFF[part], ON[part])

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        return 4.0 if part.endswith("first") else lasting(SECONDS, scale, stretch) + 3.3

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        upstreams = bench.upstream() if part.startswith("relay") else contextlib.nullcontext()
        with (
            upstreams as upstream,
            bench.server(peer, upstream=upstream) as server,
            bench.generator() as generator,
        ):
            scraper = Scraper()
            with scraper.of(server) if peer.name == ON[part] else contextlib.nullcontext():
                if upstream is not None:
                    request = completion_request(peer.paths["completions"], key=peer.key)
                    if part == "relay":
                        count = PACED[bench.scale]
                        relay(bench, server, upstream, generator, request, found, count=count, rate=RATE)
                    else:
                        first(bench, server, upstream, generator, request, found)
                elif part == "own":
                    self._own(bench, peer, server, generator, found)
                else:
                    self._own_first(bench, peer, server, generator, found)
            if scraper.problem:
                found.failure = found.failure or f"/metrics: {scraper.problem}"
            elif peer.name == ON[part] and not scraper.tokens:
                found.failure = found.failure or "/metrics knows of no token of the user who asks"
        if scraper.scrapes:
            found.values |= {"scrapes": scraper.scrapes, "scrape_ms": scraper.longest * 1000}

    def _own(self, bench: Bench, peer: Peer, server: Server, generator: Generator, found: Measurement) -> None:
        mock = {"tokens": None, "tokens_per_second": RATE, "batch": 1}
        request = chat_request(peer.paths["chat"], mock, key=peer.key)
        generator.group(
            "clients",
            count=PACED[bench.scale],
            mode="fast",
            port=server.port,
            request=request,
            ramp_ms=1000,
            rate=RATE,
        )
        generator.run()
        wait_until_streaming(generator, found)
        time.sleep(0.3)
        generator.reset()
        seen = window(server, generator, bench.lasting(SECONDS), found)
        result = generator.stop()
        check_answers(found, result)
        if not seen.tokens:
            found.failure = found.failure or "no token arrived"
            return
        found.values |= {
            "us_per_token": seen.us_per_token,
            "late_p99_ms": result["groups"]["clients"]["late_us"]["p99"] / 1000,
        }

    def _own_first(self, bench: Bench, peer: Peer, server: Server, generator: Generator, found: Measurement) -> None:
        mock = {"tokens": 1, "tokens_per_second": None, "batch": 1}
        request = chat_request(peer.paths["chat"], mock, key=peer.key)
        asked = ALONE[bench.scale]
        cpu_before = server.cpu()
        generator.group("alone", count=1, mode="short", port=server.port, request=request, tokens=1, requests=asked)
        generator.run()
        ends = time.monotonic() + 60
        while (group := generator.snap()["groups"]["alone"])["completed"] < asked and time.monotonic() < ends:
            if group["wrong"] or group["failed"] or group["bad_status"]:
                break
            time.sleep(0.05)
        cpu_after = server.cpu()
        result = generator.stop()
        check_answers(found, result)
        seen = result["groups"]["alone"]["first_us"]
        if not seen["count"]:
            found.failure = found.failure or "no answer came"
            return
        found.values |= {
            "added_p50_us": seen["p50"],
            "added_p99_us": seen["p99"],
            "us_per_request": (cpu_after - cpu_before) / asked * 1e6,
        }

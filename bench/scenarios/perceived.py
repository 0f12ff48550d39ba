"""What a person sees: the time until the first words, when the answer is streamed and when it is sent whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from bench.peers import Peer
from bench.results import Measurement
from bench.scenarios.base import Bench, Column, Scale, Scenario, check_answers, ended
from bench.serving import chat_request
from bench.trend import quantile

ANSWERS: Final = {"full": (2, 10, 30), "short": (2, 10), "toy": (1,)}
RATE: Final = 50
READERS: Final = 5


class Perceived(Scenario):
    name = "perceived"
    title = "Perceived: time until the first words"
    about = (
        f"{READERS} readers each ask for an answer that takes 2, 10 or 30 s at {RATE} tokens/s: streamed (`/chat`), "
        "and sent when it is whole (`/chat-whole`)."
    )
    columns = (
        Column("first_s", "first words after", "s", "less", 3, ratio=True),
        Column("whole_s", "whole after", "s", "less", 2),
    )
    bars = ("first_s",)
    log_bars = True
    repeats = MappingProxyType({"full": 1, "short": 1, "toy": 1})
    wins = "Nothing is gained by waiting: the whole answer takes as long either way."

    def parts(self, scale: Scale) -> Sequence[str]:
        return tuple(f"{seconds} s" for seconds in ANSWERS[scale])

    def wants(self, peer: Peer, part: str) -> bool:
        return peer.name in ("rawstream", "rawstream-whole")

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        return int(part.split()[0]) + 1.2

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        seconds = int(part.split()[0])
        tokens = seconds * RATE
        with bench.server(peer) as server, bench.generator() as generator:
            request = chat_request(peer.paths["chat"], {"tokens": tokens, "tokens_per_second": RATE, "batch": 1})
            generator.group("readers", count=READERS, mode="fast", port=server.port, request=request, tokens=tokens)
            generator.run()
            ends = time.monotonic() + seconds + 10
            while ended(generator.snap()["groups"]["readers"]) < READERS and time.monotonic() < ends:
                time.sleep(0.1)
            result = generator.stop()
        check_answers(found, result)
        readers = result["groups"]["readers"]
        firsts = [us / 1e6 for us in readers["first_token_us"] if us >= 0]
        if not firsts or not readers["answer_us"]["count"]:
            found.failure = found.failure or "no whole answer arrived"
            return
        found.values |= {"first_s": quantile(firsts, 0.5), "whole_s": readers["answer_us"]["p50"] / 1e6}

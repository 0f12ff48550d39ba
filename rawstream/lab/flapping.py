"""The experiment of the course about lost connections: many readers that are cut again and again, and come back.

Rule 1: both ways meet the same cuts: the same readers, at the same tokens.
Rule 2: a reader that was cut comes back at once; what the answer then costs is the server's doing, not a pause's.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final
from urllib.parse import urlsplit

from rawstream.lab.experiments import Finding, Report, Show, laboratory
from rawstream.server.app import App

READERS: Final = 100
TOKENS: Final = 120
RATE: Final = 60.0
"""Tokens per second of one answer."""
CUTS: Final = 4
"""Times that each reader loses its connection."""
_LONGEST: Final = 60.0
_QUERY: Final = f"prompt=a&mock=%7B%22tokens%22%3A{TOKENS}%2C%22tokens_per_second%22%3A{RATE:g}%2C%22seed%22%3A1%7D"


@dataclass
class Reading:
    """What one reader saw."""

    texts: list[bytes] = field(default_factory=list)
    """The events of its answer, as it ended up with them."""
    read: int = 0
    """Events that it was sent, in all."""
    connections: int = 0
    seconds: float = 0.0


async def read(app: App, cuts: list[int], *, resume: bool) -> Reading:
    """One answer over a connection that breaks after so many events, and again. Raises OSError, EOFError."""
    address = urlsplit(app.url)
    loop = asyncio.get_running_loop()
    began = loop.time()
    reading = Reading()
    last = b""
    policy = "grace:30" if resume else "cancel"
    for most in (*cuts, None):
        reading.connections += 1
        stream, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            back = b"Last-Event-ID: %b\r\n" % last if resume and last else b""
            # HTTP/1.0: the body is the events, and nothing between them.
            target = f"/stream?{_QUERY}&on_disconnect={policy}".encode()
            writer.write(b"GET %b HTTP/1.0\r\nHost: localhost\r\n%b\r\n" % (target, back))
            head = await stream.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                raise EOFError(head.split(b"\r\n", 1)[0].decode("latin-1"))
            if not resume:
                reading.texts.clear()
            got = 0
            while most is None or got < most:
                event = await stream.readuntil(b"\n\n")
                got += 1
                reading.read += 1
                name, _, text = event.partition(b"\ndata: ")
                if text == b"[DONE]\n\n":
                    reading.seconds = loop.time() - began
                    return reading
                last = name.partition(b"id: ")[2]
                reading.texts.append(text)
        finally:
            writer.transport.abort()
    raise EOFError("the answer has no end")


async def _all(app: App, plans: list[list[int]], *, resume: bool) -> dict[str, Any]:
    before = app.levels()
    async with asyncio.timeout(_LONGEST):
        readings = await asyncio.gather(*(read(app, plan, resume=resume) for plan in plans))
        for _ in range(200):
            if not app.streams.generations.running and not len(app.streams):
                break
            await asyncio.sleep(0.01)
    after = app.levels()
    whole = readings[0].texts
    return {
        "answers": len(readings),
        "whole_and_exact": sum(one.texts == whole and len(whole) == TOKENS for one in readings),
        "connections": sum(one.connections for one in readings),
        "generations": after["generations"]["opened"] - before["generations"]["opened"]
        if resume
        else after["opened"] - before["opened"],
        "tokens_shown": sum(len(one.texts) for one in readings),
        "tokens_sent": sum(one.read for one in readings),
        "tokens_generated": after["tokens"] - before["tokens"],
        "seconds_median": round(median(one.seconds for one in readings), 2),
    }


async def flap(show: Show) -> Report:
    """Readers that lose their connections at random, without resuming and with it."""
    dice = random.Random(7)
    plans = [[dice.randrange(1, TOKENS // (CUTS + 1)) for _ in range(CUTS)] for _ in range(READERS)]
    figures: dict[str, Any] = {}
    async with laboratory(lab=False) as (app, _):
        for name, resume in (("anew", False), ("resumed", True)):
            show({"elapsed": 0.0, "lanes": []})
            figures[name] = await _all(app, plans, resume=resume)
    anew, resumed = figures["anew"], figures["resumed"]
    findings = [
        Finding(
            "who cannot resume begins anew: each cut throws away what was generated, and the wait begins again",
            f"{anew['answers']} answers of {TOKENS} tokens, each cut {CUTS} times: {anew['generations']} generations, "
            f"{anew['tokens_generated']:,} tokens generated for {anew['tokens_shown']:,} shown; "
            f"{anew['seconds_median']:.2f} s until an answer was whole (median)",
        ),
        Finding(
            "with Last-Event-ID the same cuts cost connections, and not one token more",
            f"{resumed['generations']} generations, {resumed['tokens_generated']:,} tokens generated and "
            f"{resumed['tokens_shown']:,} shown; {resumed['whole_and_exact']} of {resumed['answers']} answers had "
            f"every token once and in order; {resumed['seconds_median']:.2f} s (median)",
        ),
    ]
    return Report("flap", "What does a flapping connection cost?", findings, figures)

"""Yields and reads, paired: a source that makes ten tokens in the time in which its reader takes one.

Four ways to carry them: eagerly; in this process with room for one; over TCP; over TCP with credit. In each the
reader takes one token at a time, and before each read it is noted how many the source has yielded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from time import monotonic
from typing import Any, Final

from rawstream.flow.gate import Gate, GateState
from rawstream.flow.meter import Meter
from rawstream.flow.pump import Delivery, produce
from rawstream.lab.experiments import Finding, Report, Show, laboratory
from rawstream.model import Headers, Request
from rawstream.sources.mock import MockSource
from rawstream.wire.chat_tokens import ChatTokens

Ask = Callable[[str, dict[str, Any], int | None], AsyncIterator[Any]]
"""``ask(url, json, credit)``: an answer's events, one at a time, as ``rawstream.stream`` has them."""

READS: Final = 30
_READ_EVERY: Final = 0.1
_PER_READ: Final = 10
"""Tokens that the source can make between two reads."""


class OneSlot:
    """A ``model.Response`` in memory with room for one write: the smallest thing that pushes back."""

    def __init__(self) -> None:
        self._gate = Gate()
        self._held = b""

    def take(self) -> bytes:
        """Take what is there, and make room."""
        held, self._held = self._held, b""
        if self._gate.state is GateState.PAUSED:
            self._gate.resume()
        return held

    def start(self, status: int, headers: Headers) -> None:
        """There is nobody to tell."""

    @property
    def room(self) -> int:
        return 1 if self._gate.state is GateState.OPEN else 0

    async def wait_writable(self) -> None:
        await self._gate.wait_open()

    async def drain(self) -> None:
        await self._gate.wait_open()

    def write_nowait(self, data: bytes) -> bool:
        self._gate.check()
        self._held += data
        if self._gate.state is GateState.OPEN:
            self._gate.pause()
        return False

    async def finish(self, last: bytes = b"") -> None:
        self._held += last

    async def cut(self, last: bytes = b"") -> None:
        self._held += last

    def abort(self) -> None:
        self._held = b""


class Pairs:
    """Yields made before each read."""

    def __init__(self) -> None:
        self.yields: list[int] = []

    @property
    def per_read(self) -> float:
        """Yields per read, over all reads."""
        return round(self.yields[-1] / len(self.yields), 2) if self.yields else 0.0

    @property
    def most_ahead(self) -> int:
        """The most yields that had been made beyond the reads before them."""
        return max((made - reads for reads, made in enumerate(self.yields)), default=0)


def _body(rate: float | None) -> dict[str, Any]:
    return {"prompt": "pairing", "mock": {"tokens": None, "tokens_per_second": rate}}


async def in_process(source: MockSource) -> Pairs:
    """The pump itself, and a response with room for one token."""
    pairs = Pairs()
    response = OneSlot()
    meter = Meter(monotonic())
    dialect = ChatTokens()
    rate = _PER_READ / _READ_EVERY
    request = Request(messages=[], extra={"mock": {"tokens": None, "tokens_per_second": rate}})

    async def stream() -> None:
        delivery = Delivery(response, dialect, meter, ())
        async with aclosing(source.tokens(request)) as tokens:
            await produce(tokens, dialect, delivery, meter, write_size=2048, hold=0.0001)

    task = asyncio.create_task(stream(), name="pairing")
    try:
        for _ in range(READS):
            await asyncio.sleep(_READ_EVERY)
            pairs.yields.append(source.statistics().tokens)
            response.take()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    return pairs


async def over_tcp(ask: Ask, path: str, rate: float | None, credit: int | None) -> Pairs:
    """A real connection to a real server, and a client that takes one event at a time."""
    pairs = Pairs()
    source = MockSource()
    async with laboratory(source) as (app, _):
        async with aclosing(ask(app.url + path, _body(rate), credit)) as events:  # type: ignore[type-var]
            for _ in range(READS):
                await asyncio.sleep(_READ_EVERY)
                pairs.yields.append(source.statistics().tokens)
                await anext(events)
    return pairs


async def pairing(show: Show, ask: Ask) -> Report:
    """All four at once; three seconds."""
    rate = _PER_READ / _READ_EVERY
    eager, one, credit, free = await asyncio.gather(
        over_tcp(ask, "/chat-broken", rate, None),
        in_process(MockSource()),
        over_tcp(ask, "/chat", rate, 1),
        over_tcp(ask, "/chat", None, None),
    )
    reads = f"{READS} reads"
    findings = [
        Finding(
            f"eager: about {_PER_READ} yields per read",
            f"{eager.yields[-1]:,} yields for {reads}: {eager.per_read:g} per read, and the distance grows",
        ),
        Finding(
            "in one process, with room for one token: never more than 1 ahead",
            f"{one.yields[-1]:,} yields for {reads}, at most {one.most_ahead} ahead",
        ),
        Finding(
            "over TCP with credit=1: never more than 2 ahead",
            f"{credit.yields[-1]:,} yields for {reads}, at most {credit.most_ahead} ahead",
        ),
        Finding(
            "over TCP without credit: buffers are filled first, and paired with reads after that",
            f"a source that never waits had made {max(free.yields):,} tokens after {reads}: "
            f"{free.most_ahead:,} ahead, in buffers, before it went at the reader's pace",
        ),
    ]
    figures = {
        name: {"yields": pairs.yields, "per_read": pairs.per_read, "most_ahead": pairs.most_ahead}
        for name, pairs in (
            ("eager", eager),
            ("in_process", one),
            ("tcp_credit_1", credit),
            ("tcp_without_credit", free),
        )
    }
    return Report("pairing", "Is a token made only when one is read?", findings, figures)

"""Frames that somebody else has written for a stream that waits: with permission only, in order, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from rawstream.errors import ClientDisconnected
from rawstream.flow.meter import Meter
from rawstream.flow.pump import Delivery, produce
from rawstream.flow.timings import Timings
from rawstream.model import SourceItem
from tests.support.flow import Clock, FakeResponse, Plain, turns, until


class Bench:
    """A stream whose source waits until it is given something."""

    def __init__(self, response: FakeResponse | None = None, pausing: asyncio.Event | None = None) -> None:
        self.response = response or FakeResponse()
        self.meter = Meter(0.0)
        self.timings = Timings()
        self.delivery = Delivery(self.response, Plain(), self.meter, (), pausing, self.timings)
        self.given: asyncio.Queue[SourceItem | None] = asyncio.Queue()
        self.task = asyncio.create_task(self._run())

    async def _items(self) -> AsyncGenerator[SourceItem, None]:
        while (item := await self.given.get()) is not None:
            yield item

    async def _run(self) -> None:
        async with aclosing(self._items()) as items:
            last = await produce(items, Plain(), self.delivery, self.meter, write_size=2048, hold=1.0, clock=Clock())
            await self.delivery.finish(last)

    async def waits(self) -> None:
        await until(lambda: self.meter.waiting_for == "source", "the source waits")

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def test_what_is_passed_on_is_written_at_once_with_the_head_and_counted() -> None:
    bench = Bench()
    await bench.waits()
    assert bench.delivery.pass_on(b"abc", 3, 0.0)
    assert bench.delivery.pass_on(b"de", 1, 0.0)
    assert bench.response.log == [("start", b""), ("write", b"<abc"), ("write", b"de")]
    assert bench.meter.tokens == bench.meter.tokens_written == 4
    assert bench.meter.waiting_for == "source", "the stream itself still waits"
    bench.given.put_nowait("f")
    await until(lambda: bench.response.body == b"<abcdef", "the stream's own token follows")
    bench.given.put_nowait(None)
    await asyncio.wait_for(bench.task, 5)
    assert bench.response.body == b"<abcdef>"


async def test_nothing_is_passed_on_before_the_stream_waits_for_its_source_or_while_it_waits_for_its_client() -> None:
    bench = Bench(FakeResponse(writes=1))
    assert not bench.delivery.pass_on(b"x", 1, 0.0)
    await bench.waits()
    bench.given.put_nowait("a")
    await until(lambda: bench.response.body == b"<a", "its token is written")
    bench.given.put_nowait([])
    await bench.response.blocked()
    assert not bench.delivery.pass_on(b"x", 1, 0.0)
    assert bench.meter.tokens == 1
    await bench.end()
    assert bench.response.body == b"<a"


async def test_nothing_is_passed_on_without_room_for_all_of_it() -> None:
    bench = Bench(FakeResponse(capacity=10))
    await bench.waits()
    assert not bench.delivery.pass_on(b"0123456789+", 1, 0.0)
    assert not bench.delivery.committed
    assert bench.delivery.pass_on(b"012345", 1, 0.0)
    assert not bench.delivery.pass_on(b"67890", 1, 0.0), "what was allowed is used up"
    assert bench.delivery.pass_on(b"67", 1, 0.0)
    bench.response.read()
    assert bench.delivery.pass_on(b"8901234567", 1, 0.0), "and is asked for again"
    assert not bench.delivery.pass_on(b"8", 1, 0.0)
    await bench.end()


async def test_a_heartbeat_uses_up_room_as_well() -> None:
    bench = Bench(FakeResponse(capacity=6))
    await bench.waits()
    assert bench.delivery.pass_on(b"123", 1, 0.0)  # and the head: two bytes are left
    assert bench.delivery.heartbeat()
    assert not bench.delivery.pass_on(b"45", 1, 0.0)
    assert bench.delivery.pass_on(b"4", 1, 0.0)
    await bench.end()


async def test_nothing_is_passed_on_while_sources_are_paused_from_above() -> None:
    pausing = asyncio.Event()
    pausing.set()
    bench = Bench(pausing=pausing)
    await bench.waits()
    assert bench.delivery.pass_on(b"1", 1, 0.0)
    pausing.clear()
    assert not bench.delivery.pass_on(b"2", 1, 0.0)
    pausing.set()
    assert bench.delivery.pass_on(b"2", 1, 0.0)
    await bench.end()


async def test_a_client_that_is_gone_takes_nothing_and_raises_nothing_here() -> None:
    bench = Bench()
    await bench.waits()
    assert bench.delivery.pass_on(b"1", 1, 0.0)
    bench.response.lose(ClientDisconnected("left"))
    assert not bench.delivery.pass_on(b"2", 1, 0.0)
    assert bench.meter.tokens == 1
    await bench.end()


async def test_an_item_without_any_token_makes_the_stream_ask_for_permission_anew() -> None:
    """What it was allowed before, others may have used."""
    bench = Bench(FakeResponse(capacity=10))
    await bench.waits()
    assert bench.delivery.pass_on(b"123456789", 1, 0.0)  # and the head: full
    bench.given.put_nowait([])
    await bench.response.blocked()
    assert bench.meter.waiting_for == "client"
    bench.given.put_nowait("a")
    await turns()
    assert bench.response.body == b"<123456789"
    bench.response.read()
    await until(lambda: bench.response.body == b"<123456789a", "it goes on when there is room")
    await bench.end()

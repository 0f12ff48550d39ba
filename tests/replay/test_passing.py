"""Readers to whom a generation's frames are passed on while they wait: exact, in order, and never beyond permission."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawstream.errors import ClientDisconnected, RawstreamError, StreamStopped
from rawstream.flow.interrupt import Interruption
from rawstream.flow.meter import Meter
from rawstream.flow.pump import Delivery, produce
from rawstream.model import Request, SourceItem
from rawstream.replay.log import FellBehind, Log
from rawstream.server.generation import Generation
from rawstream.server.generations import Generations
from rawstream.server.leaving import OnDisconnect
from rawstream.settings import Settings
from rawstream.wire.frames import Frames
from tests.replay.test_generation import Lines
from tests.support.flow import FakeResponse, turns, until


class Reader:
    """One client: a response with a capacity, and the stream that fills it."""

    def __init__(self, generation: Generation, event: int, capacity: int) -> None:
        self.event = event
        self.response = FakeResponse(capacity=capacity)
        self.meter = Meter(monotonic())
        self.dialect = Frames(Lines())
        self.delivery = Delivery(self.response, self.dialect, self.meter, ())
        self.log = generation.read_from(generation.log.position_after(event), Request([]))
        self.log.passing = self._pass_on
        self.passed = 0
        self.interruption = Interruption()
        self.most = 0
        self.task = asyncio.create_task(self._run())

    def _pass_on(self, frames: bytes, events: int, came_at: float) -> bool:
        room = self.response.room
        went = self.delivery.pass_on(frames, events, came_at)
        assert not went or len(frames) <= room, "never beyond permission"
        self.passed += went
        return went

    async def _run(self) -> RawstreamError | None:
        try:
            async with self.interruption:
                last = await produce(self.log, self.dialect, self.delivery, self.meter, write_size=2048, hold=1.0)
                await self.delivery.finish(last)
        except RawstreamError as error:
            return error
        finally:
            await self.log.aclose()
        return None

    @property
    def events(self) -> list[bytes]:
        return self.response.body.split(b"\n\n")[:-1]


class Bench:
    """A generation whose tokens come when it is told so, or by themselves."""

    def __init__(self, *, count: int, size: int, pause: int) -> None:
        self.settings = Settings(replay_window=8192, replay_total=1 << 30)
        self.generations = Generations(self.settings)
        self.given = 0

        async def items() -> AsyncGenerator[SourceItem, None]:
            while self.given < count:
                self.given += 1
                yield f"{self.given}:".ljust(size - 2, "x")
                if pause and self.given % pause == 0:
                    await asyncio.sleep(0)

        self.whole = [b"begin"] + [f"{n}:".ljust(size - 2, "x").encode() for n in range(1, count + 1)] + [b"end"]
        self.generation = Generation(
            Request([]),
            lambda request: items(),
            lambda stream_id: Lines(),
            self.settings,
            OnDisconnect("grace", 60),
            on_end=self._ended,
            shelf=self.generations.shelf,
        )
        self.generations.add(self.generation)

    async def _ended(self, generation: Generation) -> None:
        self.generations.ended(generation)


async def test_one_that_waits_is_not_woken_for_what_it_has_room_for() -> None:
    """All but what begins and ends the answer is written by the generation's own task."""
    bench = Bench(count=500, size=20, pause=1)
    reader = Reader(bench.generation, 0, 1 << 20)
    await turns()
    bench.generation.start()
    assert await asyncio.wait_for(reader.task, 10) is None
    assert reader.events == bench.whole
    assert reader.passed >= 499
    assert reader.meter.tokens == 502
    await bench.generations.close(1.0)


async def test_one_that_is_slow_is_woken_and_holds_the_source() -> None:
    bench = Bench(count=10_000, size=20, pause=1)
    reader = Reader(bench.generation, 0, 1000)
    await turns()
    bench.generation.start()
    await reader.response.blocked()
    await turns(50)
    given = bench.given
    assert reader.response.buffered <= 1000 + 20
    assert given * 20 <= 1000 + 2048 + 40
    await turns(50)
    assert bench.given == given
    reader.response.read()
    await until(lambda: bench.given > given, "it goes on")
    reader.interruption.interrupt(ClientDisconnected("left"))
    assert isinstance(await asyncio.wait_for(reader.task, 10), ClientDisconnected)
    await bench.generations.close(1.0)


@pytest.mark.parametrize("when", range(6))
async def test_one_that_is_interrupted_between_two_tokens_writes_nothing_more(when: int) -> None:
    bench = Bench(count=100_000, size=20, pause=1)
    reader = Reader(bench.generation, 0, 1 << 20)
    bench.generation.start()
    await turns(30 + when)
    reader.interruption.interrupt(StreamStopped("enough"))
    written = len(reader.response.body)
    await turns(30)
    assert isinstance(await asyncio.wait_for(reader.task, 10), StreamStopped)
    assert len(reader.response.body) == written
    assert reader.log.position == written
    await bench.generations.close(1.0)


async def test_what_begins_later_than_where_the_reader_is_is_not_passed_on() -> None:
    """A copy whose beginning was lost on the way: the reader is told, and not given what comes after the gap."""
    bench = Bench(count=0, size=20, pause=0)
    generation = bench.generation
    generation.log = log = Log(1 << 20)
    reader = Reader(generation, 0, 1 << 20)
    await turns()
    log.begin_at(5000, 100)
    log.append(b"later\n\n")
    assert isinstance(await asyncio.wait_for(reader.task, 10), FellBehind)
    assert reader.response.body == b""
    await bench.generations.close(1.0)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 30),
    size=st.integers(10, 400),
    count=st.integers(0, 300),
    pause=st.integers(0, 4),
    capacity=st.integers(1, 3000),
)
def test_however_they_come_and_read_and_leave_each_gets_exactly_what_follows_its_event(
    seed: int, size: int, count: int, pause: int, capacity: int
) -> None:
    async def play() -> None:
        choose = random.Random(seed)
        bench = Bench(count=count, size=size, pause=pause)
        generation, log = bench.generation, bench.generation.log
        readers = [Reader(generation, 0, capacity)]
        generation.start()
        for _ in range(60):
            what = choose.random()
            if what < 0.15:
                try:
                    readers.append(
                        Reader(generation, choose.randint(0, log.events), choose.choice([capacity, 1 << 20]))
                    )
                except FellBehind:
                    pass
            elif what < 0.75:
                choose.choice(readers).response.read(choose.randint(1, 4000))
            elif what < 0.85:
                choose.choice(readers).delivery.heartbeat()
            elif what < 0.9 and len(readers) > 1:
                choose.choice(readers[1:]).interruption.interrupt(ClientDisconnected("left"))
            await turns(choose.randint(0, 5))

        async def read_on(reader: Reader) -> RawstreamError | None:
            while not reader.task.done():
                reader.response.read()
                await asyncio.sleep(0)
            return reader.task.result()

        async with asyncio.timeout(20):
            ends = await asyncio.gather(*map(read_on, readers))
        for reader, end in zip(readers, ends, strict=True):
            assert end is None or isinstance(end, FellBehind | ClientDisconnected)
            assert reader.events == bench.whole[reader.event : reader.event + len(reader.events)]
            assert len(reader.events) == len(bench.whole) - reader.event or end is not None
            assert reader.meter.tokens >= len(reader.events) or end is not None
        assert bench.given == count or all(ends), "who stays to the end gets all"
        await bench.generations.close(1.0)

    asyncio.run(play())

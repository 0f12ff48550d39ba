"""A generation and its readers, without a network: who sets the pace, what each gets, what becomes of it alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawstream.errors import ClientDisconnected, SourceError, UpstreamFailed
from rawstream.model import Headers, Outcome, Request, SourceItem, Token, TokenItem
from rawstream.replay.log import FellBehind
from rawstream.replay.redis_store import Store, log_key, stream_key
from rawstream.server.generation import Generation
from rawstream.server.generations import EventId, Generations
from rawstream.server.leaving import CANCEL, OnDisconnect
from rawstream.server.log_stream import LogStream
from rawstream.server.remote_owner import Publisher
from rawstream.settings import Settings
from tests.support.flow import turns


class Lines:
    """One event for each token: ``n: text``."""

    name = "lines"
    heartbeat = b""
    headers: Headers = ()

    def head(self) -> bytes:
        return b"begin\n\n"

    def encode(self, items: Sequence[TokenItem]) -> bytes:
        return "".join(f"{item if isinstance(item, str) else item.text}\n\n" for item in items).encode()

    def error(self, message: str, code: str) -> bytes:
        return b"error\n\n"

    def terminal(self, finish_reason: str | None = None, reason: str | None = None) -> bytes:
        return b"end\n\n"

    def stopped(self, reason: str) -> bytes:
        return b"stopped\n\n"


class Bench:
    """A generation of ``count`` tokens of ``size`` bytes (None: without end), and what happens to it."""

    def __init__(self, policy: OnDisconnect, *, count: int | None, size: int = 40, window: int = 4096) -> None:
        self.given = 0
        self.closed = False
        self.ends = 0
        self.settings = Settings(replay_window=window, replay_total=1 << 30)
        self.generations = Generations(self.settings)

        async def items() -> AsyncGenerator[SourceItem, None]:
            try:
                while count is None or self.given < count:
                    self.given += 1
                    yield f"{self.given}:".ljust(size - 2, "x")
                    if self.given % 3 == 0:
                        await asyncio.sleep(0)
            finally:
                self.closed = True

        self.generation = Generation(
            Request([]),
            lambda request: items(),
            lambda stream_id: Lines(),
            self.settings,
            policy,
            on_end=self._ended,
            shelf=self.generations.shelf,
        )

    async def _ended(self, generation: Generation) -> None:
        self.ends += 1
        self.generations.ended(generation)

    def start(self) -> None:
        self.generations.add(self.generation)
        self.generation.start()

    async def end(self) -> None:
        await self.generations.close(1.0)
        assert self.generations.held == 0


async def read(reader: LogStream) -> bytes | None:
    """A write's worth; None: the end. Waits for it where there is none yet."""
    async with asyncio.timeout(5):
        try:
            items = cast("list[Token]", await anext(reader))
        except StopAsyncIteration:
            return None
    return b"".join(item.raw or b"" for item in items)


Action = tuple[str, int]
ACTIONS = st.lists(st.tuples(st.sampled_from(["come", "read", "leave"]), st.integers(0, 7)), max_size=60)


@settings(max_examples=60)
@given(actions=ACTIONS, size=st.integers(10, 600), count=st.integers(0, 150))
def test_each_reader_gets_exactly_what_follows_its_event_or_is_told_that_it_cannot(
    actions: list[Action], size: int, count: int
) -> None:
    """However many come and go, wherever they begin, however slow they are."""

    async def play() -> None:
        bench = Bench(OnDisconnect("grace", 60), count=count, size=size)
        generation, log = bench.generation, bench.generation.log
        whole = [b"begin"] + [f"{n}:".ljust(size - 2, "x").encode() for n in range(1, count + 1)] + [b"end"]
        readers: list[tuple[LogStream, int, list[bytes]]] = []
        first = generation.read_from(0, Request([]))
        readers.append((first, 0, []))
        bench.start()
        for what, number in actions:
            if what == "come" or not readers:
                event = log.events * number // 7
                try:
                    position = log.position_after(event)
                except FellBehind:
                    continue
                readers.append((generation.read_from(position, Request([])), event, []))
                continue
            reader, _, got = readers[number % len(readers)]
            if what == "read":
                if reader.position == log.end and not log.ended and len(readers) == 1:
                    before = bench.given
                    got.append(await read(reader) or b"")
                    assert bench.given - before <= max(2, 2048 // size + 1), "a write's worth, and a token"
                elif reader.position < log.end:
                    try:
                        got.append(await read(reader) or b"")
                    except FellBehind:
                        assert reader.position < log.start
            else:
                readers.pop(number % len(readers))
                await reader.aclose()
                await reader.aclose()
        if not readers:
            readers.append((generation.read_from(log.position_after(log.events), Request([])), log.events, []))

        async def rest(reader: LogStream, got: list[bytes]) -> bool:
            try:
                while (part := await read(reader)) is not None:
                    got.append(part)
            except FellBehind:
                return False
            return True

        ends = await asyncio.gather(*(rest(reader, got) for reader, _, got in readers))
        assert any(ends), "the fastest is never told that it is too slow"
        for (_, event, got), whole_way in zip(readers, ends, strict=True):
            events = b"".join(got).split(b"\n\n")[:-1]
            assert events == whole[event : event + len(events)]
            assert len(events) == len(whole) - event or not whole_way
        assert bench.given == count
        assert bench.ends == 1
        for reader, _, _ in readers:
            await reader.aclose()
        await bench.end()

    asyncio.run(play())


@given(reads=st.integers(0, 6), size=st.integers(10, 3000), window=st.integers(1, 20_000))
@settings(max_examples=40)
def test_alone_it_goes_on_until_the_window_is_full_and_loses_nothing(reads: int, size: int, window: int) -> None:
    """Whatever the sizes: what no reader has had is kept, and whoever returns goes on where it was left."""

    async def play() -> None:
        bench = Bench(OnDisconnect("grace", 60), count=None, size=size, window=window)
        generation = bench.generation
        reader = generation.read_from(0, Request([]))
        bench.start()
        for _ in range(reads):
            await read(reader)
        await reader.aclose()
        seen, before = reader.position, -1
        while bench.given != before:
            before = bench.given
            await turns(50)
        log = generation.log
        assert window <= log.end - seen <= window + 2048 + 2 * size + 7
        assert log.start <= seen
        back = generation.read_from(seen, Request([]))
        number = 0 if reads == 0 else -1
        got = b""
        while len(got) < window + size + len(b"begin\n\n"):
            got += await read(back) or b""
        events = got.split(b"\n\n")[:-1]
        numbers = [int(event.partition(b":")[0]) for event in events if event != b"begin"]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert (numbers[0] == 1) == (number == 0 or seen <= 7)
        await back.aclose()
        await bench.end()
        assert bench.closed

    asyncio.run(play())


async def test_a_stalled_reader_holds_the_source_and_the_fastest_of_two_sets_the_pace() -> None:
    bench = Bench(CANCEL, count=None)
    one, two = (bench.generation.read_from(0, Request([])) for _ in range(2))
    bench.start()
    await turns(50)
    assert bench.given == 0, "nobody has asked yet"
    await read(one)
    await turns(50)  # the step that is under way is finished: one token more
    given = bench.given
    await turns(50)
    assert bench.given == given, "and nobody has asked again"
    for _ in range(10):
        await read(one)
    assert bench.given > given
    await two.aclose()
    assert bench.generation.running
    await one.aclose()
    await bench.generation.ended()
    assert bench.generation.outcome is Outcome.CLIENT_LEFT
    await bench.end()


async def test_a_pause_for_memorys_sake_holds_it_whoever_reads() -> None:
    pausing = asyncio.Event()
    bench = Bench(OnDisconnect("finish"), count=None)
    bench.generation._pausing = pausing
    reader = bench.generation.read_from(0, Request([]))
    bench.start()
    asking = asyncio.create_task(read(reader))
    await turns(50)
    assert bench.given == 0
    pausing.set()
    assert await asking
    await reader.aclose()
    await bench.end()


async def test_a_generation_that_is_cancelled_from_outside_says_so() -> None:
    bench = Bench(OnDisconnect("finish"), count=None)
    reader = bench.generation.read_from(0, Request([]))
    bench.start()
    await read(reader)
    task = bench.generation.task
    assert task is not None
    task.cancel()
    await asyncio.wait([task])
    assert bench.generation.outcome is Outcome.SHUTDOWN
    assert bench.closed
    await reader.aclose()
    await bench.end()


async def test_a_source_that_fails_by_itself_or_does_not_close_is_named() -> None:
    for broken, outcome in ((ValueError("x"), "source_failed"), (UpstreamFailed("x"), "upstream_failed")):
        bench = Bench(CANCEL, count=0)

        async def failing(error: Exception) -> AsyncGenerator[SourceItem, None]:
            yield "a"
            raise error

        bench.generation._tokens = failing(broken)
        reader = bench.generation.read_from(0, Request([]))
        bench.start()
        assert await read(reader) == b"begin\n\na\n\n"
        with pytest.raises(SourceError) as told:
            await read(reader)
        assert told.value.outcome == outcome
        await reader.aclose()
        await bench.end()


async def test_the_last_call_ends_what_nobody_reads_now_and_later() -> None:
    alone = Bench(OnDisconnect("grace", 60), count=None)
    read_now = Bench(OnDisconnect("grace", 60), count=None)
    for bench in (alone, read_now):
        reader = bench.generation.read_from(0, Request([]))
        bench.start()
        await read(reader)
        if bench is alone:
            await reader.aclose()
        bench.generations.last_call()
    await alone.generation.ended()
    assert read_now.generation.running
    await reader.aclose()
    await read_now.generation.ended()
    for bench in (alone, read_now):
        assert isinstance(bench.generation.error, ClientDisconnected)
        await bench.end()


async def test_many_that_run_share_the_room_and_none_has_less_than_a_connection_can_lose() -> None:
    generations = Generations(Settings(replay_window=1 << 20, replay_total=4 << 20))
    benches: list[Any] = []
    windows = []
    for _ in range(300):
        bench = Bench(CANCEL, count=None)
        benches.append(bench)
        generations.add(bench.generation)
        windows.append(generations.shelf.window)
    assert windows[:4] == [1 << 20] * 4
    assert windows[7] == 1 << 19
    assert windows[-1] == 16 * 1024


def test_event_ids_are_read_strictly() -> None:
    """What is no id of ours begins anew; ``.end`` of anything is an end."""
    assert (EventId.parse("a" * 32 + ".7") or EventId("", 0)).number == 7
    end = EventId.parse("x.end")
    assert end is not None
    assert end.number is None
    for foreign in ("", "7", "abc.1", "a" * 32, "a" * 32 + ".-1", "a" * 65 + ".end", "a" * 32 + ".1\n", "é" * 9 + ".1"):
        assert EventId.parse(foreign) is None


async def test_a_hundred_that_are_silent_are_kept_with_two_commands() -> None:
    """What keeps them alive in Redis is part of each renewal of the lease, and must not hold it up."""

    class Kept(Store):
        def __init__(self) -> None:
            self.touched: list[list[str]] = []

        async def touch(self, keys: Iterable[str], ttl: float) -> None:
            self.touched.append(list(keys))

    store = Kept()
    publisher = Publisher("here", Settings(), store)
    generations = [Bench(CANCEL, count=0).generation for _ in range(100)]
    for generation in generations:
        publisher.add(generation, None, None, "fence")
    await publisher.refresh()
    await publisher.refresh()
    assert len(store.touched) == 2
    assert {key for keys in store.touched for key in keys} == {
        key(generation.id) for generation in generations for key in (stream_key, log_key)
    }

"""The pump: permission before production, joining, fairness, and what becomes of a stream however it ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawstream.errors import ClientDisconnected, SourceFailed, UpstreamIdle
from rawstream.flow.meter import Meter
from rawstream.flow.pump import Delivery, count_tokens, produce
from rawstream.model import SourceItem, Token, TokenStream
from tests.support.flow import PATIENCE, Clock, Counted, FakeResponse, Plain, repeat, stream_to, turns, until

Items = AsyncGenerator[SourceItem, None]
LEFT = ClientDisconnected("the client left")


class Bench:
    """One stream over a fake response, with a clock that stands still."""

    def __init__(self, response: FakeResponse | None = None, *, pausing: asyncio.Event | None = None) -> None:
        self.clock = Clock()
        self.response = response or FakeResponse()
        self.meter = Meter(self.clock.now)
        self.delivery = Delivery(self.response, Plain(), self.meter, (), pausing)

    async def run(self, tokens: TokenStream, *, write_size: int = 2048, hold: float = 1.0) -> None:
        async with aclosing(tokens):
            last = await produce(
                tokens, Plain(), self.delivery, self.meter, write_size=write_size, hold=hold, clock=self.clock
            )
            await self.delivery.finish(last)

    def start(self, tokens: TokenStream, *, write_size: int = 2048, hold: float = 1.0) -> asyncio.Task[None]:
        return asyncio.create_task(self.run(tokens, write_size=write_size, hold=hold), name="pump")


async def ended(task: asyncio.Task[Any]) -> BaseException | None:
    """The error that ended ``task``; None when it came to its end."""
    await asyncio.wait([task], timeout=PATIENCE)
    assert task.done(), "the task goes on"
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def cancel(task: asyncio.Task[Any]) -> BaseException | None:
    task.cancel()
    return await ended(task)


# --- permission before production --------------------------------------------------------------------------------


async def test_nothing_is_asked_of_the_source_while_nobody_has_room() -> None:
    """A response that is full before the first token keeps the source from even starting."""
    bench = Bench(FakeResponse(capacity=0))
    bench.response.gate.pause()
    source = Counted(lambda: repeat("x"))
    task = bench.start(source.tokens())
    await bench.response.blocked()
    assert source.asked == 0
    await cancel(task)


async def test_a_source_is_never_more_than_one_step_ahead_of_a_reader_with_room_for_one() -> None:
    """Room for one write: after any number of reads, the source was asked at most once more than was read."""
    bench = Bench(FakeResponse(writes=1))
    source = Counted(lambda: repeat("x"))
    task = bench.start(source.tokens())
    for reads in range(50):
        await bench.response.blocked()
        assert source.asked <= reads + 1
        assert source.given <= reads + 1
        assert bench.response.take()
        await turns(2)
    await cancel(task)
    assert source.closed.is_set()


@pytest.mark.parametrize("suspends", [False, True], ids=["ready", "suspending"])
async def test_what_is_pulled_levels_off_at_the_capacity(suspends: bool) -> None:
    async def tokens() -> Items:
        while True:
            if suspends:
                await asyncio.sleep(0)
            yield "0123456789"

    bench = Bench(FakeResponse(capacity=1000))
    source = Counted(tokens)
    task = bench.start(source.tokens())
    await bench.response.blocked()
    assert source.given * 10 <= 1000 + 10
    bench.response.read(500)
    await bench.response.blocked()
    assert 1000 <= source.given * 10 <= 1500 + 20
    await cancel(task)


async def test_sources_wait_while_they_are_paused_from_above() -> None:
    """Memory runs short: whatever the client would take, nothing is produced; then it goes on."""
    pausing = asyncio.Event()
    bench = Bench(pausing=pausing)
    source = Counted(lambda: repeat("x", 3))
    task = bench.start(source.tokens())
    await turns()
    assert source.asked == 0
    assert bench.meter.waiting_for == "client"
    pausing.set()
    assert await ended(task) is None
    assert bench.response.body == b"<xxx>"


# --- joining -----------------------------------------------------------------------------------------------------


async def test_tokens_that_are_ready_together_go_out_together() -> None:
    """A generator that never suspends costs a write per two kilobytes, not one per token."""
    bench = Bench()
    await bench.run(repeat("0123456789", 10_000))
    assert bench.response.body == b"<" + b"0123456789" * 10_000 + b">"
    assert len(bench.response.writes) <= 100_000 // 2048 + 1
    assert bench.meter.tokens == 10_000


async def test_what_is_ready_is_written_the_moment_the_source_has_to_wait() -> None:
    """No timer and no size holds a token back: while the source waits, all that it gave is out."""
    gate = asyncio.Event()

    async def tokens() -> Items:
        yield "a"
        yield "b"
        await gate.wait()
        yield "c"

    bench = Bench()
    task = bench.start(tokens())
    await until(lambda: bench.meter.waiting_for == "source", "the source is waited for")
    assert bench.response.writes == [b"<ab"]
    gate.set()
    assert await ended(task) is None
    assert bench.response.log[-1] == ("finish", b"c>")


async def test_the_end_leaves_in_one_write_with_the_last_tokens() -> None:
    """The last frames, the terminal event and the end of the body are one write: SDKs give up 100 ms after the end."""
    bench = Bench()
    await bench.run(repeat("x", 3))
    assert bench.response.log == [("start", b""), ("finish", b"<xxx>")]
    assert bench.meter.writes == 1
    assert bench.meter.bytes == 5


async def test_an_answer_without_a_token_is_whole_all_the_same() -> None:
    bench = Bench()
    await bench.run(repeat("x", 0))
    assert bench.response.log == [("start", b""), ("finish", b"<>")]


async def test_tokens_without_text_cost_no_write_and_are_not_counted() -> None:
    bench = Bench()
    await bench.run(repeat([Token(finish_reason="stop"), Token(text="x")], 2))
    assert bench.meter.tokens == 2
    assert count_tokens(["a", Token(), Token(text="b")]) == 2


texts = st.text(st.characters(codec="utf-8"), max_size=12)
tokens_ = st.one_of(texts, texts.map(lambda text: Token(text=text)))
items_ = st.one_of(tokens_, st.lists(tokens_, max_size=200), st.lists(tokens_, max_size=5).map(tuple))
scripts = st.lists(st.one_of(items_, st.integers(1, 3)), max_size=40)


def text_of(script: list[Any]) -> str:
    parts: list[str] = []
    for step in script:
        for item in step if isinstance(step, list | tuple) else [step]:
            if not isinstance(item, int):
                parts.append(item if isinstance(item, str) else item.text)
    return "".join(parts)


async def play(script: list[Any]) -> Items:
    for step in script:
        if isinstance(step, int):
            for _ in range(step):
                await asyncio.sleep(0)
        else:
            yield step


@settings(deadline=None)
@given(scripts, st.integers(1, 300), st.integers(1, 400), st.integers(1, 100))
def test_the_text_arrives_whole_and_in_order(script: list[Any], capacity: int, write_size: int, reads: int) -> None:
    """Any mix of strings, tokens and batches, suspending or not, for any reader: nothing lost or doubled."""

    async def run() -> bytes:
        response = FakeResponse(capacity=capacity)
        task = asyncio.create_task(stream_to(response, play(script), write_size=write_size))
        got = b""
        while not (response.ended and not response.buffered):
            await response.arrived()
            got += response.read(reads)
            await asyncio.sleep(0)
        await task
        return got

    assert asyncio.run(run()) == b"<" + text_of(script).encode() + b">"


# --- fairness ----------------------------------------------------------------------------------------------------


class Turns:
    """Counts the turns that others get."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._turn)
        self._over = False

    def _turn(self) -> None:
        self.count += 1
        if not self._over:
            self._loop.call_soon(self._turn)

    def end(self) -> None:
        self._over = True


def held_times(clock: Clock, items: Callable[[int], SourceItem], count: int, held: list[float]) -> Callable[[], Items]:
    """A source of ``count`` items whose every item takes 10 µs, and that notes how long nobody else had a turn."""
    turn = Turns()

    async def tokens() -> Items:
        seen, since = turn.count, clock.now
        try:
            for number in range(count):
                clock.now += 10e-6
                if turn.count != seen:
                    seen, since = turn.count, clock.now
                held.append(clock.now - since)
                yield items(number)
        finally:
            turn.end()

    return tokens


@pytest.mark.parametrize("text", ["x", "", "x" * 3000], ids=["short", "empty", "long"])
async def test_a_source_that_never_waits_gives_way_by_time(text: str) -> None:
    """However the tokens are joined, and even if none has a byte: others get their turn every ``hold`` seconds."""
    bench = Bench()
    held: list[float] = []
    tokens = held_times(bench.clock, lambda _: text, 1000, held)
    await bench.run(tokens(), hold=100e-6)
    assert max(held) <= 120e-6
    assert max(held) > 50e-6


async def test_what_was_joined_goes_out_before_others_get_their_turn() -> None:
    """Giving way must not keep tokens waiting: what is pending is written first."""
    bench = Bench()
    seen: list[int] = []

    async def tokens() -> Items:
        for _ in range(3):
            bench.clock.now += 2.0
            yield "x"

    loop = asyncio.get_running_loop()
    task = bench.start(tokens())
    loop.call_soon(lambda: loop.call_soon(lambda: seen.append(len(bench.response.writes))))
    assert await ended(task) is None
    assert seen
    assert seen[0] >= 1
    assert bench.response.body == b"<xxx>"


async def test_a_big_batch_is_sliced_and_gives_way_too() -> None:
    """A hundred thousand tokens in one batch hold the loop no longer than one by one."""

    class Slow(Plain):
        most = 0

        def encode(self, items: Any) -> bytes:
            bench.clock.now += 1e-6 * len(items)
            self.most = max(self.most, len(items))
            held.append(bench.clock.now - since[0])
            return super().encode(items)

    bench = Bench()
    dialect = Slow()
    held: list[float] = []
    since = [0.0]
    loop = asyncio.get_running_loop()
    over = False

    def turn() -> None:
        since[0] = bench.clock.now
        if not over:
            loop.call_soon(turn)

    loop.call_soon(turn)
    batch = [str(number) for number in range(100_000)]
    tokens = repeat(batch, 1)
    async with aclosing(tokens):
        last = await produce(
            tokens, dialect, bench.delivery, bench.meter, write_size=2048, hold=200e-6, clock=bench.clock
        )
    over = True
    assert bench.response.body + last == b"<" + "".join(batch).encode()
    assert bench.meter.tokens == 100_000
    assert dialect.most <= 64
    assert max(held) <= 200e-6 + 2 * 64e-6 + 1e-9


async def test_a_big_batch_waits_for_room_between_its_slices() -> None:
    bench = Bench(FakeResponse(capacity=100))
    batch: list[str | Token] = ["0123456789"] * 1000
    task = bench.start(repeat(batch, 1))
    got = b""
    while not task.done():
        await bench.response.arrived()
        assert bench.response.buffered <= 100 + 64 * 10 + 1
        got += bench.response.read()
        await asyncio.sleep(0)
    got += bench.response.read()
    assert got == b"<" + b"0123456789" * 1000 + b">"


# --- ends of the source ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suspends", [False, True], ids=["ready", "suspending"])
@pytest.mark.parametrize("count", [0, 1, 5, 700])
async def test_a_source_that_fails_has_all_that_it_gave_before_delivered(count: int, suspends: bool) -> None:
    async def tokens() -> Items:
        for number in range(count):
            if suspends:
                await asyncio.sleep(0)
            yield f"{number},"
        raise SourceFailed("broken")

    bench = Bench()
    assert isinstance(await ended(bench.start(tokens())), SourceFailed)
    expected = "".join(f"{number}," for number in range(count))
    assert bench.response.body == (b"<" + expected.encode() if count else b"")


async def test_a_source_that_fails_after_a_batch_has_the_whole_batch_delivered() -> None:
    async def tokens() -> Items:
        yield ["0123456789"] * 130
        raise SourceFailed("broken")

    bench = Bench()
    assert isinstance(await ended(bench.start(tokens())), SourceFailed)
    assert bench.response.body == b"<" + b"0123456789" * 130


async def test_a_client_that_leaves_during_a_batch_ends_the_stream_with_its_reason() -> None:
    bench = Bench(FakeResponse(capacity=100))
    source = Counted(lambda: repeat(["0123456789"] * 1000))
    task = bench.start(source.tokens())
    await bench.response.blocked()
    bench.response.lose(LEFT)
    assert await ended(task) is LEFT
    assert source.closed.is_set()


@pytest.mark.parametrize("then", ["waits", "gives a token", "cleans up slowly", "fails"])
async def test_a_client_that_leaves_during_a_step_ends_that_step_and_closes_the_source(then: str) -> None:
    """What is ready can no longer be written when the source begins to wait: its wait is cancelled.

    A generator in the middle of a step cannot be closed; so the step is brought to its end first.
    """
    bench = Bench()
    cleaned = asyncio.Event()

    async def tokens() -> Items:
        try:
            yield "first"
            bench.response.lose(LEFT)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if then == "gives a token":
                    yield "last words"
                elif then == "fails":
                    raise SourceFailed("I was cancelled") from None
                else:
                    raise
        finally:
            if then == "cleans up slowly":
                await asyncio.sleep(0)
            cleaned.set()

    source = Counted(tokens)
    assert await ended(bench.start(source.tokens())) is LEFT
    assert cleaned.is_set()
    assert source.closed.is_set()
    assert bench.response.body == b""


async def test_a_client_that_leaves_while_it_is_waited_for_ends_the_stream_with_its_reason() -> None:
    bench = Bench(FakeResponse(writes=1))
    source = Counted(lambda: repeat("x"))
    task = bench.start(source.tokens())
    await bench.response.blocked()
    bench.response.lose(LEFT)
    assert await ended(task) is LEFT
    assert source.closed.is_set()


@pytest.mark.parametrize("waiting_for", ["source", "client"])
async def test_cancelling_closes_the_source_wherever_it_is(waiting_for: str) -> None:
    """In the source's own wait its ``finally`` runs at once; in ``drain()`` it runs too, by ``aclosing``."""

    async def tokens() -> Items:
        yield "x"
        if waiting_for == "source":
            await asyncio.Event().wait()
        while True:
            yield "y"

    bench = Bench(FakeResponse(capacity=10 if waiting_for == "client" else 1000))
    source = Counted(tokens)
    task = bench.start(source.tokens())
    await until(lambda: bench.meter.waiting_for == waiting_for, f"the pump waits for the {waiting_for}")
    assert isinstance(await cancel(task), asyncio.CancelledError)
    assert source.closed.is_set()


async def test_a_source_that_swallows_its_cancellation_has_its_answer_taken() -> None:
    """What a generator makes of an exception thrown into its wait is its own affair: here, one token more."""

    async def tokens() -> Items:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            yield "last words"

    bench = Bench()
    task = bench.start(tokens())
    await until(lambda: bench.meter.waiting_for == "source", "the source waits")
    task.cancel()
    assert await ended(task) is None
    assert bench.response.body == b"<last words>"


async def test_a_source_that_waits_again_when_it_is_cancelled_is_waited_for() -> None:
    """Cleaning up may take time: a wait in ``except`` or ``finally`` is a wait like any other."""
    cleaned = asyncio.Event()
    goes_on = asyncio.Event()

    async def tokens() -> Items:
        try:
            yield "x"
            await asyncio.Event().wait()
        finally:
            await goes_on.wait()
            await asyncio.sleep(0)
            cleaned.set()

    bench = Bench()
    task = bench.start(tokens())
    await until(lambda: bench.meter.waiting_for == "source", "the source waits")
    task.cancel()
    await turns()
    assert not task.done()
    goes_on.set()
    assert isinstance(await ended(task), asyncio.CancelledError)
    assert cleaned.is_set()


async def test_a_source_may_have_timeouts_of_its_own() -> None:
    """``asyncio.timeout`` cancels the task and turns that into TimeoutError: it must work within a driven step."""

    async def tokens() -> Items:
        yield "before "
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            yield "after"

    bench = Bench()
    task = bench.start(tokens())
    assert await ended(task) is None
    assert bench.response.body == b"<before after>"
    assert task.cancelling() == 0


async def test_a_timeout_around_the_pump_reaches_the_source() -> None:
    bench = Bench()
    source = Counted(lambda: silent())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await bench.run(source.tokens())
    assert source.closed.is_set()


async def silent() -> Items:
    await asyncio.Event().wait()
    yield "never"


async def test_a_source_may_wait_many_times_for_one_token() -> None:
    async def tokens() -> Items:
        for _ in range(3):
            for _ in range(5):
                await asyncio.sleep(0)
            yield "x"

    bench = Bench()
    assert await ended(bench.start(tokens())) is None
    assert bench.response.body == b"<xxx>"


async def test_a_token_stream_need_not_be_a_generator() -> None:
    """Any object with ``__anext__`` and ``aclose`` is a token stream; its steps are driven the same way."""

    class Countdown:
        def __init__(self) -> None:
            self.left = 3
            self.closed = False

        def __aiter__(self) -> Countdown:
            return self

        async def __anext__(self) -> SourceItem:
            await asyncio.sleep(0)
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return str(self.left)

        async def aclose(self) -> None:
            self.closed = True

    bench = Bench()
    countdown = Countdown()
    await bench.run(countdown)
    assert bench.response.body == b"<210>"
    assert countdown.closed


def test_a_pump_that_is_thrown_away_mid_step_closes_the_step() -> None:
    """A loop that is closed with the pump still waiting: GeneratorExit goes through the step, and is not swallowed."""
    seen: list[str] = []

    class Waiting:
        def __aiter__(self) -> Waiting:
            return self

        async def __anext__(self) -> SourceItem:
            try:
                await _Forever()
            except GeneratorExit:
                seen.append("closed")
                raise
            return "never"

        async def aclose(self) -> None: ...

    bench = Bench()
    pump: Coroutine[Any, Any, bytes] = produce(
        Waiting(), Plain(), bench.delivery, bench.meter, write_size=2048, hold=1.0, clock=bench.clock
    )
    pump.send(None)
    pump.close()
    gc.collect()
    assert seen == ["closed"]


class _Forever(Awaitable[None]):
    def __await__(self) -> Any:
        yield None


# --- heartbeats and the commit point -----------------------------------------------------------------------------


async def test_a_heartbeat_may_come_before_the_first_token_and_commits() -> None:
    bench = Bench()
    source = Counted(silent)
    task = bench.start(source.tokens())
    await until(lambda: bench.meter.waiting_for == "source", "the source is waited for")
    assert not bench.meter.is_committed()
    assert bench.delivery.heartbeat()
    assert bench.meter.is_committed()
    assert bench.response.log == [("start", b""), ("write", b"<~")]
    assert bench.meter.first_write_at is None  # it is no token
    assert bench.delivery.heartbeat()
    assert bench.response.body == b"<~~"
    await cancel(task)


async def test_the_first_token_after_a_heartbeat_does_not_commit_again() -> None:
    goes_on = asyncio.Event()

    async def tokens() -> Items:
        await goes_on.wait()
        yield "first"
        await asyncio.sleep(0)

    bench = Bench()
    task = bench.start(tokens())
    await until(lambda: bench.meter.waiting_for == "source", "the source is waited for")
    assert bench.delivery.heartbeat()
    goes_on.set()
    assert await ended(task) is None
    assert bench.response.body == b"<~first>"
    assert [kind for kind, _ in bench.response.log] == ["start", "write", "write", "finish"]


async def test_a_heartbeat_goes_out_between_two_events_only() -> None:
    """All that the source gave is out before it is waited for; so a heartbeat never comes within an event."""
    gate = asyncio.Event()

    async def tokens() -> Items:
        yield "first"
        await gate.wait()
        yield "second"

    bench = Bench()
    assert not bench.delivery.heartbeat()  # nothing is waited for
    task = bench.start(tokens())
    await until(lambda: bench.meter.waiting_for == "source", "the source is waited for")
    assert bench.delivery.heartbeat()
    gate.set()
    assert await ended(task) is None
    assert bench.response.body == b"<first~second>"


async def test_no_heartbeat_while_the_client_is_what_is_waited_for() -> None:
    """It would be one byte more in a buffer that is full, and no sign of life."""
    bench = Bench(FakeResponse(writes=1))
    task = bench.start(repeat("x"))
    await bench.response.blocked()
    assert not bench.delivery.heartbeat()
    await cancel(task)


async def test_no_heartbeat_into_a_response_that_is_full_though_the_source_is_waited_for() -> None:
    gate = asyncio.Event()

    async def tokens() -> Items:
        yield "0123456789"
        await gate.wait()

    bench = Bench(FakeResponse(capacity=10))
    task = bench.start(tokens(), write_size=2048)
    await until(lambda: bench.response.buffered >= 10, "the response is full")
    assert not bench.delivery.heartbeat()
    await cancel(task)


async def test_a_dialect_without_heartbeats_sends_none() -> None:
    class Mute(Plain):
        heartbeat = b""

    bench = Bench()
    delivery = Delivery(bench.response, Mute(), bench.meter, ())
    bench.meter.wait("source", 0.0)
    assert not delivery.heartbeat()
    assert bench.response.log == []


async def test_a_failure_after_the_commit_point_is_told_and_then_cut() -> None:
    bench = Bench()
    bench.delivery.put_nowait(b"x", 1.0)
    await bench.delivery.fail(UpstreamIdle("silent"))
    assert bench.response.log == [("start", b""), ("write", b"<x"), ("cut", b"!upstream_idle")]
    assert bench.meter.bytes == 2 + len(b"!upstream_idle")


async def test_an_end_that_we_bring_about_says_so() -> None:
    bench = Bench()
    bench.delivery.put_nowait(b"x", 1.0)
    bench.delivery.put_nowait(b"", 2.0)
    assert bench.delivery.last_write == 1.0
    await bench.delivery.stop("enough")
    assert bench.response.log[-1] == ("finish", b".enough")


async def test_a_stop_before_the_first_token_is_a_whole_answer_without_one() -> None:
    bench = Bench()
    await bench.delivery.stop("enough")
    assert bench.response.log == [("start", b""), ("finish", b"<.enough")]
    assert bench.delivery.committed


# --- counting ----------------------------------------------------------------------------------------------------


async def test_seconds_are_counted_for_whoever_was_waited_for() -> None:
    meter = Meter(0.0)
    meter.wait("source", 1.0)
    assert meter.seconds(3.0) == (2.0, 0.0)
    meter.waited(4.0)
    meter.wait("client", 4.0)
    assert meter.seconds(9.0) == (3.0, 5.0)
    meter.waited(10.0)
    meter.waited(11.0)
    assert meter.seconds(20.0) == (3.0, 6.0)
    assert meter.waiting_for is None


async def test_the_time_that_a_source_takes_is_the_sources() -> None:
    gate = asyncio.Event()

    async def tokens() -> Items:
        await gate.wait()
        yield "x"

    bench = Bench()
    task = bench.start(tokens())
    await until(lambda: bench.meter.waiting_for == "source", "the source is waited for")
    bench.clock.now += 7.0
    gate.set()
    assert await ended(task) is None
    assert bench.meter.source_seconds == 7.0

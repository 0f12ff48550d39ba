"""An allowance: the source is not asked for what was not leased, and a spent budget ends the stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawstream.errors import BudgetSpent, ClientDisconnected
from rawstream.flow.allowance import AllowanceSink
from rawstream.flow.credit import Credit, CreditSink, OneByOne
from rawstream.flow.pump import Delivery, Meter, Sink, produce
from rawstream.model import SourceItem
from tests.support.flow import Counted, FakeResponse, Plain, repeat, turns


class Purse:
    """A lease on ``budget`` tokens, given ``block`` at a time. With a gate shut it makes its stream wait."""

    def __init__(self, budget: int, block: int) -> None:
        self.left = budget
        self.block = block
        self.granted = 0
        self.asked = 0
        self.open = asyncio.Event()
        self.open.set()

    async def more(self) -> None:
        await self.open.wait()
        self.asked += 1
        got = min(self.left, self.block)
        if not got:
            raise BudgetSpent("spent")
        self.left -= got
        self.granted += got


class Streaming:
    """A stream on an allowance, over a response that pushes back. ``Plain`` has one byte for each token ``x``."""

    def __init__(
        self, source: Counted, purse: Purse, response: FakeResponse, *, least: int = 1, credit: Credit | None = None
    ) -> None:
        self.meter = Meter(monotonic())
        self.delivery = Delivery(response, Plain(), self.meter, ())
        sink: Sink = AllowanceSink(self.delivery, purse, self.meter, least)
        if credit is not None:
            sink = CreditSink(sink, credit, self.meter)
        tokens = source.tokens() if credit is None else OneByOne(source.tokens())

        async def stream() -> None:
            async with aclosing(tokens):
                last = await produce(tokens, Plain(), sink, self.meter, write_size=2048, hold=0.0001)
                await self.delivery.finish(last)

        self.task = asyncio.create_task(stream(), name="stream")

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@pytest.mark.parametrize(("budget", "block"), [(1, 1), (7, 3), (100, 100), (1000, 64)])
async def test_a_source_without_end_gives_exactly_the_budget(budget: int, block: int) -> None:
    """One token at a time: none is asked for that was not leased, and all that was given arrives."""
    source, response = Counted(lambda: repeat("x")), FakeResponse()
    streaming = Streaming(source, Purse(budget, block), response)
    with pytest.raises(BudgetSpent):
        await streaming.task
    assert source.given == streaming.meter.tokens == budget
    assert response.body == b"<" + b"x" * budget
    assert source.closed.is_set()


@given(budget=st.integers(1, 300), block=st.integers(1, 64), batch=st.integers(1, 100), least=st.integers(1, 4))
def test_batches_go_over_by_less_than_one_batch(budget: int, block: int, batch: int, least: int) -> None:
    """A batch is made before its tokens can be counted; the next one is not asked for."""

    async def check() -> None:
        source = Counted(lambda: repeat(["x" * least] * batch))
        streaming = Streaming(source, Purse(budget, block), FakeResponse(), least=least)
        with pytest.raises(BudgetSpent):
            await streaming.task
        assert budget <= streaming.meter.tokens < budget + batch
        assert source.given * batch < budget + batch

    asyncio.run(check())


async def test_longer_frames_use_the_allowance_up_sooner_and_more_is_leased_only_when_it_is_used_up() -> None:
    source, purse = Counted(lambda: repeat("a longer token")), Purse(100, 10)
    streaming = Streaming(source, purse, FakeResponse(), least=4)
    with pytest.raises(BudgetSpent):
        await streaming.task
    assert (source.given, purse.asked) == (100, 11)


async def test_a_stream_waits_for_its_lease_and_asks_its_source_for_nothing() -> None:
    source, purse = Counted(lambda: repeat("x")), Purse(5, 5)
    purse.open.clear()
    streaming = Streaming(source, purse, FakeResponse())
    await turns()
    assert source.given == 0
    await streaming.end()
    assert purse.granted == 0


async def test_a_client_that_takes_nothing_holds_its_stream_though_there_is_budget() -> None:
    """Both permissions are needed."""
    source, purse, response = Counted(lambda: repeat("x")), Purse(1000, 1000), FakeResponse(capacity=10)
    streaming = Streaming(source, purse, response)
    await response.blocked()
    held = source.given
    assert held <= 12
    response.read()
    await response.blocked()
    assert source.given > held
    response.lose(ClientDisconnected("they left"))
    with pytest.raises(ClientDisconnected):
        await streaming.task
    assert purse.granted == 1000


async def test_room_that_is_shut_when_the_lease_comes_is_waited_for() -> None:
    source, purse, response = Counted(lambda: repeat("x")), Purse(1000, 3), FakeResponse(writes=1)
    streaming = Streaming(source, purse, response)
    for count in range(1, 6):
        await response.blocked()
        assert source.given in (3 * count, 3 * count - 2, 3 * count - 1) or source.given < 3 * count
        response.take()
    await streaming.end()


async def test_credit_and_allowance_hold_together() -> None:
    """Whichever is less: the client's credit, then the user's budget."""
    credit = Credit(3)
    source = Counted(lambda: repeat(["x"] * 4))
    streaming = Streaming(source, Purse(8, 4), FakeResponse(), credit=credit)
    await turns()
    assert streaming.meter.tokens == 3
    credit.grant(3, 3)
    await turns()
    assert streaming.meter.tokens == 6
    credit.grant(6, 6)
    with pytest.raises(BudgetSpent):
        await streaming.task
    assert streaming.meter.tokens == 8


async def test_a_stream_that_leases_without_waiting_lets_others_have_their_turn() -> None:
    """A ledger in memory never waits: each lease is a turn's end."""
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other(), name="other")
    streaming = Streaming(Counted(lambda: repeat("x")), Purse(200, 1), FakeResponse())
    with pytest.raises(BudgetSpent):
        await streaming.task
    running.cancel()
    await asyncio.wait([running])
    assert others >= 200


async def test_a_source_that_ends_within_its_budget_is_whole() -> None:
    async def three() -> AsyncGenerator[SourceItem, None]:
        yield "a"
        yield "b"
        yield "c"

    response = FakeResponse()
    purse = Purse(100, 10)
    streaming = Streaming(Counted(three), purse, response)
    await streaming.task
    assert response.body == b"<abc>"
    assert purse.granted == 10

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
from rawstream.flow.allowance import AllowedEvents, AllowedTokens
from rawstream.flow.credit import Credit, CreditSink, OneByOne
from rawstream.flow.meter import Meter
from rawstream.flow.pump import Delivery, Sink, produce
from rawstream.model import SourceItem, SourceStatistics, Token, TokenStream, Usage
from tests.support.flow import Counted, FakeResponse, Plain, repeat, turns


class Purse:
    """A lease on ``budget`` tokens, given ``block`` at a time; with ``gated`` each time only once it is ``open``."""

    def __init__(self, budget: int, block: int, *, gated: bool = False) -> None:
        self.gated = gated
        self.left = budget
        self.block = block
        self.granted = 0
        self.open = asyncio.Event()
        if not gated:
            self.open.set()

    async def more(self) -> None:
        await self.open.wait()
        if self.gated:
            self.open.clear()
        got = min(self.left, self.block)
        if not got:
            raise BudgetSpent("spent")
        self.left -= got
        self.granted += got


class Streaming:
    """A stream on an allowance, over a response that pushes back."""

    def __init__(self, source: Counted, purse: Purse, response: FakeResponse, credit: Credit | None = None) -> None:
        self.meter = Meter(monotonic())
        self.delivery = Delivery(response, Plain(), self.meter, ())
        sink: Sink = self.delivery
        tokens: TokenStream = AllowedTokens(source.tokens(), purse, self.meter)
        if credit is not None:
            sink, tokens = CreditSink(sink, credit, self.meter), OneByOne(tokens)

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
    assert source.given == source.asked == streaming.meter.tokens == budget
    assert response.body == b"<" + b"x" * budget
    assert source.closed.is_set()


@given(budget=st.integers(1, 300), block=st.integers(1, 64), batch=st.integers(1, 100))
def test_batches_go_over_by_less_than_one_batch(budget: int, block: int, batch: int) -> None:
    """A batch is made before its tokens can be counted; the next one is not asked for."""

    async def check() -> None:
        source = Counted(lambda: repeat(["x"] * batch))
        streaming = Streaming(source, Purse(budget, block), FakeResponse())
        with pytest.raises(BudgetSpent):
            await streaming.task
        assert budget <= streaming.meter.tokens < budget + batch
        assert source.given * batch == streaming.meter.tokens

    asyncio.run(check())


async def test_a_stream_waits_for_its_lease_and_asks_its_source_for_nothing() -> None:
    """What was ready before goes out first."""
    source, purse, response = Counted(lambda: repeat("x")), Purse(10, 5, gated=True), FakeResponse()
    streaming = Streaming(source, purse, response)
    await turns()
    assert (source.asked, purse.granted) == (0, 0)
    purse.open.set()
    await turns()
    assert (source.given, response.body) == (5, b"<xxxxx")
    await streaming.end()
    assert purse.granted == 5
    assert source.closed.is_set()


async def test_a_client_that_takes_nothing_holds_its_stream_and_leases_nothing() -> None:
    """Both permissions are needed, and the client's comes first."""
    source, purse, response = Counted(lambda: repeat("x")), Purse(1000, 5), FakeResponse(capacity=10)
    streaming = Streaming(source, purse, response)
    await response.blocked()
    assert source.given <= 12
    held = purse.granted
    await turns()
    assert purse.granted == held <= 15
    response.read()
    await response.blocked()
    assert purse.granted > held
    response.lose(ClientDisconnected("they left"))
    with pytest.raises(ClientDisconnected):
        await streaming.task


async def test_credit_and_allowance_hold_together() -> None:
    """Whichever is less: the client's credit, then the user's budget."""
    credit = Credit(3)
    streaming = Streaming(Counted(lambda: repeat(["x"] * 4)), Purse(8, 4), FakeResponse(), credit)
    await turns()
    assert streaming.meter.tokens == 3
    credit.grant(3, 3)
    await turns()
    assert streaming.meter.tokens == 6
    credit.grant(6, 6)
    with pytest.raises(BudgetSpent):
        await streaming.task
    assert streaming.meter.tokens == 8


async def test_a_source_that_ends_within_its_budget_is_whole() -> None:
    response, purse = FakeResponse(), Purse(100, 10)
    await Streaming(Counted(lambda: repeat("x", 3)), purse, response).task
    assert response.body == b"<xxx>"
    assert purse.granted == 10


# --- what an upstream says beside text --------------------------------------------------------------------------


THOUGHT = Token(raw=b"{}")


async def test_thoughts_use_a_lease_up_as_text_does() -> None:
    """The role's event is none. What its client is not shown is not read without end."""
    source = Counted(lambda: repeat([THOUGHT]))
    tokens = AllowedEvents(source.tokens(), Purse(10, 4), Meter(monotonic()))
    assert [item async for item in _some(tokens, 11)] == [[THOUGHT]] * 11
    with pytest.raises(BudgetSpent):
        await anext(tokens)
    assert (source.given, tokens.used) == (11, 10)
    await tokens.aclose()
    assert source.closed.is_set()


async def _some(tokens: AllowedTokens, count: int) -> AsyncGenerator[SourceItem, None]:
    for _ in range(count):
        yield await anext(tokens)


async def test_text_is_counted_by_the_meter_alone_and_ends_not_at_all() -> None:
    async def answer() -> AsyncGenerator[SourceItem, None]:
        yield THOUGHT
        yield ["a", Token("b"), THOUGHT]
        yield [Token(finish_reason="stop"), Token(usage=Usage(1, 2, 3))]
        yield "c"

    purse, meter = Purse(10, 2), Meter(monotonic())
    tokens = AllowedEvents(answer(), purse, meter)
    assert tokens.used == 0
    for count in (0, 2, 0, 1):
        await anext(tokens)
        meter.tokens += count
    assert (tokens.used, purse.granted) == (4, 4)
    with pytest.raises(StopAsyncIteration):
        await anext(tokens)


async def test_what_is_held_is_what_the_stream_underneath_holds() -> None:
    class Holding:
        def __aiter__(self) -> Holding:
            return self

        async def __anext__(self) -> SourceItem:
            raise StopAsyncIteration

        async def aclose(self) -> None: ...

        def statistics(self) -> SourceStatistics:
            return SourceStatistics(5, 7)

    purse, meter = Purse(1, 1), Meter(monotonic())
    assert AllowedTokens(Holding(), purse, meter).statistics() == SourceStatistics(5, 7)
    own = AllowedTokens(repeat("x", 2), purse, meter)
    assert own.statistics() == SourceStatistics()
    assert [item async for item in own] == ["x", "x"]

"""Credit: a demand exact to the token, and a client that gives none is not waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawstream.errors import BadRequest, ClientDisconnected, MisuseError
from rawstream.flow.credit import Credit, CreditSink, OneByOne
from rawstream.flow.meter import Meter
from rawstream.flow.pump import Delivery, produce
from rawstream.model import SourceItem, SourceStatistics, Token, TokenStream
from tests.support.flow import Counted, FakeResponse, Plain, repeat, turns, until


class Streaming:
    """A stream with credit, over a response that pushes back."""

    def __init__(self, tokens: TokenStream, credit: Credit, response: FakeResponse) -> None:
        self.credit = credit
        self.meter = Meter(monotonic())
        self.delivery = Delivery(response, Plain(), self.meter, ())
        sink = CreditSink(self.delivery, credit, self.meter)

        async def stream() -> None:
            async with aclosing(OneByOne(tokens)) as singly:
                last = await produce(singly, Plain(), sink, self.meter, write_size=2048, hold=1.0)
                await self.delivery.finish(last)

        self.task = asyncio.create_task(stream(), name="stream")

    def consume(self, total: int) -> None:
        self.credit.grant(total, self.meter.tokens)

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@pytest.mark.parametrize("ahead", [1, 2, 7, 100])
async def test_the_source_is_never_more_than_the_credit_ahead(ahead: int) -> None:
    """The response has room without end: credit alone holds the source, to the token."""
    source = Counted(lambda: repeat("x"))
    streaming = Streaming(source.tokens(), Credit(ahead), FakeResponse())
    for consumed in range(0, 50, 3):
        streaming.consume(min(consumed, streaming.meter.tokens))
        await turns()
        assert source.given == streaming.credit.consumed + ahead
        assert streaming.credit.owed
        assert streaming.meter.waiting_for == "client"
    await streaming.end()
    assert source.closed.is_set()


async def test_tokens_of_one_batch_are_handed_on_singly() -> None:
    """A source that makes ten in one step is asked once; nine wait here, and are counted, until there is credit."""
    source = Counted(lambda: repeat(("a", Token(text="b"), Token(text="c", raw=b"{}"), "d", "e") * 2))
    response = FakeResponse()
    stream = OneByOne(source.tokens())
    streaming = Streaming(stream, Credit(1), response)
    await turns()
    assert (source.given, streaming.meter.tokens) == (1, 1)
    assert stream.statistics().buffered == len("bc{}deabc{}de")
    for consumed in range(1, 25):
        streaming.consume(consumed)
        await turns()
        assert streaming.meter.tokens == consumed + 1
    assert source.given == 3
    assert response.body.startswith(b"<abcdeabcde")
    await streaming.end()
    assert stream.statistics().buffered == 0


async def test_what_has_no_text_costs_no_credit() -> None:
    """An upstream's role and finish events are not tokens: the client cannot consume what it is not shown as one."""

    async def tokens() -> AsyncGenerator[SourceItem, None]:
        yield Token(raw=b"{}")
        yield "a"
        yield Token(raw=b"{}")
        yield "b"

    streaming = Streaming(tokens(), Credit(3), FakeResponse())
    async with asyncio.timeout(5):
        await streaming.task
    assert streaming.meter.tokens == 2


async def test_asking_for_the_end_takes_credit_too() -> None:
    """Nobody knows that the last token was the last: the end comes once one more could."""
    streaming = Streaming(repeat("x", 2), Credit(2), FakeResponse())
    await until(lambda: streaming.credit.owed, "the source waits for credit")
    streaming.consume(1)
    async with asyncio.timeout(5):
        await streaming.task


async def test_credit_is_a_second_permission_and_not_another_one() -> None:
    """With credit for a thousand tokens a full response still holds the source."""
    source = Counted(lambda: repeat("x"))
    response = FakeResponse(capacity=10)
    streaming = Streaming(source.tokens(), Credit(1000), response)
    await response.blocked()
    assert source.given <= 11
    assert not streaming.credit.owed
    response.read(10)
    await turns()
    assert 11 < source.given <= 22
    await streaming.end()


async def test_a_full_response_that_is_lost_raises_there() -> None:
    response = FakeResponse(capacity=10)
    streaming = Streaming(repeat("x"), Credit(1000), response)
    await response.blocked()
    response.lose(ClientDisconnected("gone"))
    with pytest.raises(ClientDisconnected):
        await streaming.task


async def test_cancelling_the_wait_for_credit_leaves_nothing_behind() -> None:
    """The source is closed, nothing is owed any more, and the time was the client's."""
    source = Counted(lambda: repeat("x"))
    streaming = Streaming(source.tokens(), Credit(1), FakeResponse())
    await until(lambda: streaming.credit.owed, "the source waits for credit")
    await streaming.end()
    assert source.closed.is_set()
    assert not streaming.credit.owed
    assert streaming.meter.waiting_for is None
    assert streaming.meter.client_seconds > 0


async def test_a_grant_while_the_wait_is_being_cancelled_is_not_lost() -> None:
    credit = Credit(1)
    wait = asyncio.create_task(credit.wait(1))
    await until(lambda: credit.owed, "somebody waits")
    wait.cancel()
    credit.grant(1, 1)
    await asyncio.wait([wait])
    await credit.wait(1)


async def test_a_grant_that_is_not_enough_keeps_the_wait() -> None:
    credit = Credit(1)
    wait = asyncio.create_task(credit.wait(5))
    await until(lambda: credit.owed, "somebody waits")
    credit.grant(3, 5)
    await turns()
    assert credit.owed
    credit.grant(5, 5)
    async with asyncio.timeout(5):
        await wait


@given(st.lists(st.integers(min_value=0, max_value=100), min_size=1))
def test_totals_can_come_twice_late_and_in_any_order(totals: list[int]) -> None:
    """What counts is the largest."""
    credit = Credit(5)
    for total in totals:
        credit.grant(total, 100)
    assert (credit.consumed, credit.limit) == (max(totals), max(totals) + 5)


def test_nobody_consumes_what_was_not_made() -> None:
    credit = Credit(1)
    with pytest.raises(BadRequest, match="2 tokens cannot have been consumed: 1"):
        credit.grant(2, 1)
    assert credit.consumed == 0


@pytest.mark.parametrize("ahead", [0, -1])
def test_no_credit_at_all_is_a_mistake(ahead: int) -> None:
    with pytest.raises(MisuseError):
        Credit(ahead)


async def test_what_the_stream_underneath_holds_is_counted_too() -> None:
    class Measured:
        def __aiter__(self) -> Measured:
            return self

        async def __anext__(self) -> SourceItem:
            return ("ab", "cde")

        async def aclose(self) -> None: ...

        def statistics(self) -> SourceStatistics:
            return SourceStatistics(buffered=100, peak_buffered=200)

    stream = OneByOne(Measured())
    async for token in stream:
        assert token == "ab"
        break
    assert stream.statistics() == SourceStatistics(buffered=103, peak_buffered=203)
    await stream.aclose()
    assert stream.statistics().buffered == 100

"""The first demonstration: a generator that needs 100 ms per token, and a reader that takes one token per second.

Time passes only when everybody waits, so ten seconds of it take no time, and the figures are exact.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from rawstream.model import SourceItem
from tests.support.flow import Counted, FakeResponse, stream_to
from tests.support.timeless import timeless

READS = 10
RecordProperty = Callable[[str, object], None]


async def every_100_ms() -> AsyncGenerator[SourceItem, None]:
    while True:
        await asyncio.sleep(0.1)
        yield "token "


async def _experiment(response: FakeResponse) -> list[int]:
    """Yields made so far, each time just before the reader takes one (it waits a second before each)."""
    source = Counted(every_100_ms)
    task = asyncio.create_task(stream_to(response, source.tokens()), name="stream")
    yields = []
    for _ in range(READS):
        await asyncio.sleep(1.0)
        yields.append(source.given)
        assert response.take()
    await asyncio.sleep(0.05)  # the token that this last read asked for is not ready yet
    yields.append(source.given)
    task.cancel()
    await asyncio.wait([task])
    assert source.closed.is_set()
    return yields


def test_every_yield_is_paired_with_a_read(record_property: RecordProperty) -> None:
    """With room for one token: before read n the source has made exactly n; yields - reads is never above 1."""
    yields = timeless(_experiment(FakeResponse(writes=1)))
    record_property("yields minus reads", max(made - reads for reads, made in enumerate(yields)))
    assert yields == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10]


def test_without_a_bound_ten_yields_are_made_per_read(record_property: RecordProperty) -> None:
    """The same source and reader, and a response that always has room: what ``/chat-broken`` does."""
    yields = timeless(_experiment(FakeResponse()))
    record_property("yields per read", yields[-1] / READS)
    assert yields[-1] == pytest.approx(10 * READS, abs=1)

"""The end of an answer, and a client that leaves while it is flushed."""

from __future__ import annotations

import asyncio
import logging

import pytest

from rawstream.model import Outcome
from rawstream.settings import Settings
from tests.support.flow import PATIENCE, Client, Counted, Served, post, repeat, serving, turns, until


async def being_flushed(served: Served, source: Counted) -> Client:
    """A client that reads nothing, of a stream that was stopped and whose end waits to leave."""
    client = await served.client(post("/chat"))
    await until(lambda: served.server.app.connections, "the connection is there")
    await until(lambda: served.connection.gate.waiting, "the stream waits for its client")
    (stream,) = served.server.app.streams
    served.server.app.streams.stop(stream.id)
    await source.was_closed()
    await until(lambda: served.connection.gate.waiting, "the end is being flushed")
    return client


async def test_a_client_that_leaves_while_its_stopped_stream_is_flushed_is_no_fault(
    loop_kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The marks are not restored on a transport that is gone: uvloop's raises there."""
    source = Counted(lambda: repeat("x" * 50))
    with caplog.at_level(logging.ERROR):
        async with serving(source, Settings(port=0)) as served:
            client = await being_flushed(served, source)
            client.reset()
            assert (await served.ended()).outcome is Outcome.STOPPED
    assert not caplog.records


async def test_a_server_that_drains_lets_an_answers_end_leave(loop_kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A stream that has ended and is being flushed is not an idle connection: its client gets all of it."""
    source = Counted(lambda: repeat("x" * 50))
    with caplog.at_level(logging.ERROR):
        async with serving(source, Settings(port=0)) as served:
            client = await being_flushed(served, source)
            closing = asyncio.create_task(served.server.close(drain=PATIENCE))
            await turns()
            raw = await client.read_all()
            await closing
    assert raw.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert not caplog.records


async def test_an_eager_stream_is_not_idle_when_the_server_drains(
    loop_kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The lab's eager discipline hears of nothing; its connection streams all the same, and ends with the server."""
    source = Counted(lambda: repeat("x" * 50))
    with caplog.at_level(logging.ERROR):
        async with serving(source, Settings(port=0, cancel_timeout=0.3)) as served:
            client = await served.client(post("/chat-broken"))
            await until(lambda: source.given > 1000, "it runs")
            (stream,) = served.server.app.streams
            served.server.app.streams.stop(stream.id)
            await served.server.close(drain=0)
            client.close()
            assert source.closed.is_set()
    assert not caplog.records

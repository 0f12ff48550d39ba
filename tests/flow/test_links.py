"""One contract for the pump, over a response in memory and over real sockets on both event loops."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from rawstream.errors import ClientDisconnected, ClientStalled, ConcurrentWrite, RawstreamError, SourceFailed
from rawstream.flow.gate import GateState
from rawstream.model import SourceItem
from rawstream.server.connection import Connection
from rawstream.settings import Settings
from tests.support.flow import (
    PATIENCE,
    Counted,
    FakeLink,
    Link,
    SocketLink,
    repeat,
    socket_link,
    stream_to,
    turns,
    until,
)

MIB = 1 << 20


@pytest.fixture(params=["fake", "socket"])
async def link(request: pytest.FixtureRequest, loop_kind: str) -> AsyncIterator[Link]:
    if request.param == "fake":
        yield FakeLink()
    else:
        async with socket_link() as real:
            yield real


async def ended(task: asyncio.Task[object]) -> BaseException | None:
    await asyncio.wait([task], timeout=PATIENCE)
    assert task.done(), "the task goes on"
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def read_to_the_end(link: Link, mark: bytes = b">") -> bytes:
    got = b""
    while not got.endswith(mark):
        data = await link.read()
        assert data, f"ended after {len(got)} bytes"
        got += data
    return got


async def at_rest(link: Link, source: Counted) -> None:
    """Wait until the producer waits for room and, for a while, gets none: the client's kernel has had its fill."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        while True:
            await until(lambda: link.gate.waiting, "the producer waits for room")
            given, since = source.given, loop.time()
            await until(lambda g=given, s=since: source.given != g or loop.time() - s > 0.25, "something happens")  # type: ignore[misc]  # a lambda's defaults
            if source.given == given:
                return


async def test_the_text_arrives_whole_and_in_order(link: Link) -> None:
    """Strings and batches, suspending at random, through a full pipe: every byte, once, in its place."""
    random.seed(7)
    expected: list[str] = []

    async def tokens() -> AsyncGenerator[SourceItem, None]:
        for number in range(4000):
            if random.random() < 0.05:
                await asyncio.sleep(0)
            text = f"{number}é\n"
            expected.append(text)
            if number % 10 == 9:
                extra = [f"+{number}"] * random.randint(0, 150)
                expected.extend(extra)
                yield [text, *extra]
            else:
                yield text

    task = asyncio.create_task(stream_to(link.response, tokens()))
    got = await read_to_the_end(link)
    assert got == b"<" + "".join(expected).encode() + b">"
    assert await ended(task) is None


async def test_tokens_pulled_level_off_for_a_client_that_does_not_read(link: Link) -> None:
    """A client that reads nothing stops the source after some kilobytes, not megabytes; reading starts it again."""
    source = Counted(lambda: repeat("0123456789"))
    task = asyncio.create_task(stream_to(link.response, source.tokens()))
    await at_rest(link, source)
    assert source.given * 10 <= link.bound
    before = source.given
    read = 0
    while source.given == before:
        read += len(await link.read())
        await turns(2)
    assert read <= link.bound
    task.cancel()
    await ended(task)
    assert source.closed.is_set()


async def test_the_bound_is_due_to_pause_writing(loop_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``pause_writing`` made a no-op the same client's source runs to its end: nothing else bounds it."""
    monkeypatch.setattr(Connection, "pause_writing", lambda self: None)
    monkeypatch.setattr(Connection, "resume_writing", lambda self: None)
    async with socket_link() as link:
        # One write per token: asyncio counts what it holds anew at each of them, write by write.
        text = "0123456789" * 200
        source = Counted(lambda: repeat(text, MIB // len(text)))
        task = asyncio.create_task(stream_to(link.response, source.tokens()))
        await source.was_closed()
        assert source.given * len(text) > 10 * link.bound
        task.cancel()
        await ended(task)


async def test_a_client_that_leaves_while_the_pump_waits_ends_the_stream_and_closes_the_source(link: Link) -> None:
    source = Counted(lambda: repeat("0123456789"))
    task = asyncio.create_task(stream_to(link.response, source.tokens()))
    await until(lambda: link.gate.waiting, "the producer waits for room")
    await link.leave()
    assert isinstance(await ended(task), ClientDisconnected)
    assert source.closed.is_set()
    assert link.gate.state is GateState.LOST


async def test_a_client_that_leaves_while_the_source_is_busy_is_seen_at_the_next_write(link: Link) -> None:
    goes_on = asyncio.Event()

    async def tokens() -> AsyncGenerator[SourceItem, None]:
        yield "first"
        await goes_on.wait()
        while True:
            yield "more"

    source = Counted(tokens)
    task = asyncio.create_task(stream_to(link.response, source.tokens()))
    await link.read()
    await link.leave()
    await until(lambda: link.gate.state is GateState.LOST, "the loss is known")
    goes_on.set()
    assert isinstance(await ended(task), ClientDisconnected)
    assert source.given * len("more") <= 2048 + 8  # at most one write's worth; a server interrupts it at once
    assert source.closed.is_set()


async def test_cancelling_in_drain_closes_the_source(link: Link) -> None:
    source = Counted(lambda: repeat("0123456789"))
    task = asyncio.create_task(stream_to(link.response, source.tokens()))
    await until(lambda: link.gate.waiting, "the producer waits for room")
    task.cancel()
    assert isinstance(await ended(task), asyncio.CancelledError)
    assert source.closed.is_set()
    assert not link.gate.waiting


async def test_what_a_failing_source_gave_before_arrives(link: Link) -> None:
    async def tokens() -> AsyncGenerator[SourceItem, None]:
        for number in range(1000):
            yield f"{number},"
        raise SourceFailed("broken")

    task = asyncio.create_task(stream_to(link.response, tokens()))
    got = await read_to_the_end(link, b",999,")
    assert got == b"<" + "".join(f"{number}," for number in range(1000)).encode()
    assert isinstance(await ended(task), SourceFailed)


async def test_two_producers_on_one_response_are_told_of_the_mistake(link: Link) -> None:
    source = Counted(lambda: repeat("0123456789"))
    task = asyncio.create_task(stream_to(link.response, source.tokens()))
    await until(lambda: link.gate.waiting, "the first producer waits for room")
    with pytest.raises(ConcurrentWrite, match="one producer per response"):
        link.response.write_nowait(b"mine")
    with pytest.raises(ConcurrentWrite, match="one producer per response"):
        await link.response.wait_writable()
    task.cancel()
    await ended(task)


# --- what a real transport adds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason", [ClientStalled("too slow"), ClientDisconnected("we saw them leave")], ids=["stalled", "left"]
)
async def test_drain_raises_after_a_loss_and_names_the_reason(loop_kind: str, reason: RawstreamError) -> None:
    """Plain asyncio returns normally from ``drain()`` after ``abort()``; here the waiter is woken and told why."""
    async with socket_link() as link:
        await fill(link)
        waiter = asyncio.create_task(link.connection.writer.drain())
        await until(lambda: link.gate.waiting, "drain() waits")
        link.connection.lose(reason)
        assert await ended(waiter) is reason
        with pytest.raises(type(reason)):
            await link.connection.writer.drain()
        with pytest.raises(type(reason)):
            link.response.write_nowait(b"x")


@pytest.mark.parametrize("how", ["reset by the peer", "aborted by us"])
async def test_a_waiter_in_drain_is_woken_by_the_end_of_the_connection(loop_kind: str, how: str) -> None:
    async with socket_link() as link:
        await fill(link)
        waiter = asyncio.create_task(link.connection.writer.drain())
        await until(lambda: link.gate.waiting, "drain() waits")
        if how == "reset by the peer":
            link.client.reset()
        else:
            link.connection.transport.abort()
        assert isinstance(await ended(waiter), ClientDisconnected)


async def test_a_flush_that_is_lost_says_why(loop_kind: str) -> None:
    """On both loops: uvloop refuses calls on a closed transport, and that must not hide the reason."""
    async with socket_link() as link:
        await fill(link)
        flushing = asyncio.create_task(link.connection.flush(timeout=0.1))
        assert isinstance(await ended(flushing), ClientStalled)


async def test_a_flush_waits_for_the_last_byte_below_the_marks_too(loop_kind: str) -> None:
    """Between the marks ``drain()`` would return at once; the end of an answer waits until the kernel has all of it."""
    settings = Settings(write_high=MIB, write_low=MIB // 2)
    async with socket_link(settings) as link:
        link.response.start(200, ())
        link.response.write_nowait(b"x" * (MIB // 4))
        assert link.gate.state is GateState.OPEN
        flushing = asyncio.create_task(link.connection.flush())
        await turns()
        assert not flushing.done()
        got = 0
        while got < MIB // 4:
            got += len(await link.read())
        assert await ended(flushing) is None
        assert link.connection.transport.get_write_buffer_size() == 0
        assert link.connection.transport.get_write_buffer_limits() == (MIB // 2, MIB)


async def fill(link: SocketLink) -> None:
    """Write until the gate is paused."""
    link.response.start(200, ())
    while link.gate.state is GateState.OPEN:
        link.response.write_nowait(b"x" * 2048)
        await asyncio.sleep(0)


async def test_the_wait_is_that_of_stream_writer_drain(loop_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the production path a pump that waits for its client waits in ``asyncio.StreamWriter.drain()``."""
    inside = 0
    original = asyncio.StreamWriter.drain

    async def drain(self: asyncio.StreamWriter) -> None:
        nonlocal inside
        inside += 1
        try:
            await original(self)
        finally:
            inside -= 1

    monkeypatch.setattr(asyncio.StreamWriter, "drain", drain)
    async with socket_link() as link:
        task = asyncio.create_task(stream_to(link.response, repeat("0123456789")))
        await until(lambda: link.gate.waiting, "the producer waits for room")
        assert inside == 1
        task.cancel()
        await ended(task)
        assert inside == 0


async def test_the_kernel_is_bounded_before_the_first_byte(loop_kind: str) -> None:
    async with socket_link(Settings(notsent_lowat=4096)) as link:
        sock = link.connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1

"""What may still go wrong when an answer is whole, and before it begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from rawstream import Request, Settings
from rawstream.model import Outcome, SourceItem
from tests.support.flow import get, post, serving, until

pytestmark = pytest.mark.usefixtures("loop_kind")


class Clumsy:
    """A token stream whose ``aclose()`` fails."""

    def __init__(self) -> None:
        self._left = ["one", "two"]

    def __aiter__(self) -> Clumsy:
        return self

    async def __anext__(self) -> SourceItem:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop(0)

    async def aclose(self) -> None:
        raise RuntimeError("the source cannot clean up")


class ClumsySource:
    name = "clumsy"

    def tokens(self, request: Request) -> Clumsy:
        return Clumsy()

    async def aclose(self) -> None:
        """Nothing is shared."""


async def test_nothing_follows_the_end_of_a_whole_answer() -> None:
    """A source that fails to clean up is logged as failed; its client has a whole answer, and no byte more."""
    async with serving(ClumsySource()) as served:
        client = await served.client(post("/chat", '{"prompt":"a"}', "Connection: close"))
        answer = await client.read_all()
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert b"error" not in answer
        assert (await served.ended()).outcome is Outcome.SOURCE_FAILED


async def test_an_eager_stream_that_never_gives_a_token_ends_after_its_client() -> None:
    """``lab_overrun`` bounds it, though its source may be silent for a day."""

    async def silent(request: Request) -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield "never"

    async with serving(silent, Settings(port=0, lab=True, lab_overrun=0.05)) as served:
        client = await served.client(post("/chat-broken"))
        await until(lambda: len(served.server.app.streams), "the stream has begun")
        client.reset()
        assert (await served.ended()).outcome is Outcome.CLIENT_LEFT


@pytest.mark.parametrize("path", ["/stream?prompt=a", "/text?prompt=a"])
async def test_an_image_on_a_foreign_page_starts_no_generation(path: str) -> None:
    """A GET of another site's page is refused; a page of ours, and a client that is no browser, are not."""
    asked = 0

    async def counted(request: Request) -> AsyncIterator[str]:
        nonlocal asked
        asked += 1
        yield "hello"

    async with serving(counted) as served:
        foreign = await served.client(get(path, "1.1", "Sec-Fetch-Site: cross-site", "Connection: close"))
        assert (await foreign.read_all()).startswith(b"HTTP/1.1 403 ")
        assert asked == 0
        own = await served.client(get(path, "1.0", "Sec-Fetch-Site: same-origin"))
        assert b"hello" in await own.read_all()


async def test_bytes_that_came_before_a_stream_count_as_those_that_come_during_it() -> None:
    """60 KiB pipelined behind the request: reading has paused, and the client could not be seen to leave."""

    async def silent(request: Request) -> AsyncIterator[str]:
        await asyncio.Event().wait()
        yield "never"

    async with serving(silent) as served:
        await served.client(post("/chat") + b"x" * 60 * 1024)
        assert (await served.ended()).outcome is Outcome.CLIENT_MISBEHAVED

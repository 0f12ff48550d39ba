"""One budget for two server processes, in a real Redis: held, refunded, there after a restart; Redis gone at times."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rawstream.limits.redis_ledger import RedisLedger
from rawstream.limits.redis_link import MOST_AT_ONCE, RedisLink
from rawstream.settings import UserSettings
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.spending import HASHED, KEY, Reply, ada, ask, caps_of, read_reply, request
from tests.support.tools import require_module
from tests.support.waiting import eventually

pytestmark = [pytest.mark.real]

BUDGET = 10_000


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    require_module("redis")
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as server:
        yield server


@pytest.fixture
def config(tmp_path: Path) -> Callable[[UserSettings], str]:
    def write(user: UserSettings) -> str:
        path = tmp_path / "rawstream.toml"
        path.write_text(
            f'[[users]]\nname = "{user.name}"\nkeys = ["{HASHED}"]\ntokens_per_day = {user.tokens_per_day}\n'
        )
        return str(path)

    return write


def mock(tokens: int | None, rate: float | None = 2000, batch: int = 1) -> dict[str, Any]:
    """A request for that many tokens (None: without end) at that pace, so many at a time."""
    return {"prompt": "hello", "mock": {"tokens": tokens, "tokens_per_second": rate, "batch": batch}}


def tokens_in(reply: Reply) -> int:
    return sum("token" in event for event in reply.events)


def nothing_runs(server: ServerProcess) -> None:
    eventually(lambda: server.debug()["totals"]["streams"] == 0, why="no stream is left")


async def used(redis: RedisServer, user: UserSettings) -> int:
    link = RedisLink(redis.url)
    try:
        (tokens,) = await RedisLedger(link).used(user.name, caps_of(user))
        return tokens
    finally:
        await link.aclose()


@pytest.mark.parametrize("batch", [1, 10, 50])
async def test_fifty_streams_at_two_processes_go_over_their_budget_by_less_than_a_batch_each(
    redis: RedisServer,
    config: Callable[[UserSettings], str],
    record_property: Callable[[str, object], None],
    batch: int,
) -> None:
    """And the refund is exact: what Redis holds is what was given."""
    user = ada(tokens_per_day=BUDGET)
    flags = ("--config", config(user), "--redis", redis.url)
    with ServerProcess(*flags) as one, ServerProcess(*flags) as other:
        replies = await asyncio.gather(
            *[ask(server.port, "/chat", mock(None, 1000.0, batch)) for _ in range(25) for server in (one, other)]
        )
        streams = [reply for reply in replies if reply.status == 200]
        given = sum(map(tokens_in, streams))
        over = given - BUDGET
        record_property("over", over)
        print(f"{len(streams)} streams at two processes, batches of {batch}: over by {over}")
        assert 0 <= over <= 50 * (batch - 1)
        for reply in streams:
            assert reply.whole
            assert reply.events[-2:] == [{"finish_reason": "length", "code": "insufficient_quota"}, "[DONE]"]
        for server in (one, other):
            refused = await ask(server.port, "/chat", mock(1))
            assert (refused.status, refused.headers["x-should-retry"]) == (429, "false")
            nothing_runs(server)
        assert redis.command("CLIENT", "LIST").count(b"name=rawstream ") <= 2 * 2 * MOST_AT_ONCE  # two links each
        assert await used(redis, user) == given
        logs = [line for line in one.logs() + other.logs() if line["message"] == "stream ended"]
        assert {line["user"] for line in logs} == {"ada"}


async def test_a_budget_is_there_after_a_restart(redis: RedisServer, config: Callable[[UserSettings], str]) -> None:
    """Of the server, and of Redis where it saves."""
    user = ada(tokens_per_day=1000)
    flags = ("--config", config(user), "--redis", redis.url)
    with ServerProcess(*flags) as server:
        reply = await ask(server.port, "/chat", mock(300))
        assert (tokens_in(reply), reply.events[-1]) == (300, "[DONE]")
    assert await used(redis, user) == 300
    redis.stop()
    redis.start()
    with ServerProcess(*flags) as server:
        reply = await ask(server.port, "/chat", mock(None, None))
        assert tokens_in(reply) == 700
        assert (await ask(server.port, "/chat", mock(1))).status == 429


async def test_a_server_that_is_terminated_refunds_what_its_streams_did_not_use(
    redis: RedisServer, config: Callable[[UserSettings], str]
) -> None:
    user = ada(tokens_per_day=BUDGET)
    with ServerProcess("--config", config(user), "--redis", redis.url, "--drain-timeout", "0") as server:
        readers = []
        for _ in range(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request("/chat", mock(None, 100)))
            async with asyncio.timeout(10):
                await reader.readuntil(b'"token"')
            readers.append((reader, writer))
        assert server.stop() == 0
        for _, writer in readers:
            writer.close()
        ended = [line["tokens"] for line in server.logs() if line["message"] == "stream ended"]
        assert len(ended) == 10
        assert await used(redis, user) == sum(ended)


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_streams_go_on_when_redis_goes(
    redis: RedisServer, config: Callable[[UserSettings], str], how: str
) -> None:
    """Each process counts alone then, and the log says so once. New requests are answered too."""
    user = ada(tokens_per_day=100_000)
    with ExitStack() as stack:
        server = stack.enter_context(ServerProcess("--config", config(user), "--redis", redis.url))
        running = []
        for _ in range(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            stack.callback(writer.close)
            writer.write(request("/chat", mock(900, 600)))
            async with asyncio.timeout(10):
                head = await reader.readuntil(b"\r\n\r\n")
            running.append((head, reader))
        redis.kill() if how == "kill" else redis.freeze()
        for head, reader in running:
            again = asyncio.StreamReader()
            again.feed_data(head)
            async with asyncio.timeout(20):
                again.feed_data(await reader.readuntil(b"0\r\n\r\n"))
            reply = await read_reply(again)
            assert (tokens_in(reply), reply.events[-1], reply.whole) == (900, "[DONE]", True)
        assert tokens_in(await ask(server.port, "/chat", mock(5))) == 5
        said = [json.dumps(line) for line in server.logs() if "Redis does not answer" in line["message"]]
        assert len(said) == 1, said
        if how == "freeze":
            redis.thaw()


async def test_redis_that_was_never_there_costs_the_first_request_a_second_and_nobody_an_answer(
    redis: RedisServer, config: Callable[[UserSettings], str]
) -> None:
    """The budget holds in the one process all the same; when Redis comes, it is used."""
    redis.kill()
    user = ada(tokens_per_day=100)
    with ServerProcess("--config", config(user), "--redis", redis.url) as server:
        assert tokens_in(await ask(server.port, "/chat", mock(None, None))) == 100
        assert (await ask(server.port, "/chat", mock(1))).status == 429
        redis.start()
        async with asyncio.timeout(10):
            while (reply := await ask(server.port, "/chat", mock(1, None))).status == 429:
                pass  # it is left alone for a second
        assert tokens_in(reply) == 1
        server.wait_line(lambda line: "Redis answers again" in line)
        assert KEY not in server.stderr

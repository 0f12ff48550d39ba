"""Several processes on one real Redis: clients come back to any of them; processes and Redis die, and all is told."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from rawstream.server.remote_hub import BEAT, LEASE
from tests.support import raw
from tests.support.program import ROOT
from tests.support.redis import RedisServer
from tests.support.resuming import Answer, ask, hang_up
from tests.support.server import ServerProcess
from tests.support.tools import require_module
from tests.support.waiting import eventually

pytestmark = [pytest.mark.real]

Record = Callable[[str, object], None]
SLOW: dict[str, Any] = {"tokens": None, "tokens_per_second": 50}
CLIENTS, TOKENS, MOST_CUTS = 500, 60, 20


@pytest.fixture
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    require_module("redis")
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


class Fleet:
    """Processes on one Redis."""

    def __init__(self, redis: RedisServer, stack: ExitStack) -> None:
        self.redis = redis
        self._stack = stack
        self.servers: list[ServerProcess] = []

    def grow(self, count: int, *flags: str) -> list[ServerProcess]:
        """So many more."""
        more = [ServerProcess("--redis", self.redis.url, *flags) for _ in range(count)]
        for server in more:
            self._stack.enter_context(server)
        self.servers += more
        return more

    def kill(self, server: ServerProcess) -> None:
        """SIGKILL."""
        server.process.kill()
        server.process.wait(10)
        self.servers.remove(server)

    def generations(self, what: str) -> int:
        return sum(server.debug()["totals"]["generations"][what] for server in self.servers)

    def running_nothing(self) -> None:
        """Wait until all is over."""
        eventually(lambda: self.generations("running") == 0, why="no generation runs")


@pytest.fixture
async def fleet(redis: RedisServer) -> AsyncIterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(redis, stack)
        await hang_up()


async def begin(server: ServerProcess, **fields: Any) -> Answer:
    return await ask(server.port, "/chat", {"prompt": "hello", "on_disconnect": "grace:20", **fields})


async def back(server: ServerProcess, stream: str, after: int) -> Answer:
    return await ask(server.port, "/stream?prompt=unused", headers={"Last-Event-ID": f"{stream}.{after}"})


def stop(server: ServerProcess, stream: str) -> int:
    return server.ask(raw.post(f"/streams/{stream}/stop", {})).status


def numbers(events: list[Any]) -> list[int]:
    """Of the events that are tokens."""
    found = [event.id.rpartition(".")[2] for event in events if event.id is not None]
    return [int(number) for number in found if number != "end"]


# --- coming back --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("processes", [2, 4])
async def test_500_flapping_streams_get_every_token_once_wherever_they_come_back(
    fleet: Fleet, processes: int, record_property: Record
) -> None:
    """Each is cut at random, up to twenty times, and comes back to any process. 500 generations, and no more."""
    servers = fleet.grow(processes)
    chance = random.Random(processes)
    cuts = 0

    async def client(number: int) -> None:
        nonlocal cuts
        body = {"prompt": f"{number}", "on_disconnect": "grace:30"}
        mock = {"tokens": TOKENS, "tokens_per_second": 15, "first_token_seconds": number / CLIENTS * 4}
        answer = await ask(chance.choice(servers).port, "/chat", body | {"mock": mock}, head=False)
        await answer.head()
        stream, have, left = answer.stream, 0, chance.randrange(MOST_CUTS + 1)
        while True:
            async with answer:
                assert answer.status == 200, (await answer.body(), answer.headers, have)
                assert "x-resumable" not in answer.headers
                until = have + chance.randrange(1, TOKENS // 4) if left else TOKENS + 1
                while have < until and (event := await answer.event()) is not None:
                    assert event.id is not None, event
                    if event.id == f"{stream}.end":
                        assert have == TOKENS
                        return
                    assert event.id == f"{stream}.{have + 1}"
                    have += 1
            left, cuts = left - 1, cuts + 1
            answer = await back(chance.choice(servers), stream, have)

    began = monotonic()
    async with asyncio.timeout(90), asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(client(number))
    record_property("seconds", round(monotonic() - began, 1))
    record_property("cuts", cuts)
    assert fleet.generations("opened") == CLIENTS
    fleet.running_nothing()


async def test_a_key_that_two_processes_get_at_once_begins_one_answer(fleet: Fleet) -> None:
    servers = fleet.grow(2)

    async def same(server: ServerProcess, key: str) -> list[str]:
        headers = {"Idempotency-Key": key}
        answer = await ask(server.port, "/chat", {"prompt": "x", "mock": {"tokens": 5}}, headers)
        async with answer:
            return [answer.stream, *await answer.tokens()]

    for number in range(20):
        one, other = await asyncio.gather(*(same(server, f"key-{number}") for server in servers))
        assert one == other
        assert len(one) == 6
    assert fleet.generations("opened") == 20


async def test_a_chat_that_was_away_at_the_end_gets_it_anywhere_and_once(fleet: Fleet) -> None:
    """The page comes back after the answer's end, to another process: it gets all of it. After that nobody does."""
    here, there = fleet.grow(2)
    mock = {"tokens": 30, "tokens_per_second": 50}
    whole = "".join(await (await ask(there.port, "/chat", {"prompt": "a", "mock": mock})).tokens())
    for number, (first, second) in enumerate(((there, here), (here, there))):
        chat = f"chat-{number}"
        answer = await ask(here.port, "/api/chat", {"id": chat, "messages": MESSAGES, "mock": mock})
        await answer.events(3)
        answer.cut()
        await asyncio.to_thread(fleet.running_nothing)  # while it waits our loop closes the connection
        async with await ask(first.port, f"/api/chat/{chat}/stream") as back:
            events = [event.json() for event in await back.events() if event.data != "[DONE]"]
        assert "".join(event["delta"] for event in events if event["type"] == "text-delta") == whole
        assert events[-1]["type"] == "finish"
        for server in (second, first):

            async def gone(port: int = server.port, chat: str = chat) -> bool:
                async with await ask(port, f"/api/chat/{chat}/stream") as reply:
                    return reply.status == 204

            async with asyncio.timeout(10):
                while not await gone():
                    pass


MESSAGES = [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "a"}]}]


async def test_a_chat_that_ended_before_its_first_word_is_nothing_to_come_back_to(fleet: Fleet) -> None:
    servers = fleet.grow(2, "--resume-grace", "0.2")
    mock = {"first_token_seconds": 60}
    answer = await ask(servers[0].port, "/api/chat", {"id": "c", "messages": MESSAGES, "mock": mock}, head=False)
    await asyncio.to_thread(eventually, lambda: fleet.generations("running") == 1)
    answer.cut()
    await asyncio.to_thread(fleet.running_nothing)
    for server in servers:
        async with await ask(server.port, "/api/chat/c/stream") as reply:
            assert reply.status == 204


async def test_a_failure_before_the_first_word_reaches_readers_elsewhere(fleet: Fleet) -> None:
    here, there = fleet.grow(2)
    mock = {"first_token_seconds": 2, "fail_after": 0}
    async with await ask(here.port, "/api/chat", {"id": "c", "messages": MESSAGES, "mock": mock}, head=False) as own:
        await asyncio.to_thread(eventually, lambda: fleet.generations("running") == 1)
        async with await ask(there.port, "/api/chat/c/stream", head=False) as other:
            assert (await own.head()).status == (await other.head()).status == 500


async def test_a_signal_reaches_the_owner_though_who_sends_it_reads_elsewhere(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "listening.py").write_text(LISTENING)
    with ExitStack() as stack:
        path = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
        flags = ("--redis", fleet.redis.url, "--source", "listening:tokens")
        here, there = (stack.enter_context(ServerProcess(*flags, env=path)) for _ in range(2))
        async with await begin(here) as first:
            assert await first.tokens(1) == ["ready"]
            last = {"Last-Event-ID": f"{first.stream}.1"}
            async with await ask(there.port, "/stream?prompt=x", headers=last, head=False) as reader:
                await asyncio.to_thread(eventually, lambda: there.debug()["totals"]["streams"] == 1)
                said = await asyncio.to_thread(there.ask, raw.post(f"/streams/{first.stream}/signal", "hello"))
                assert said.status == 202
                await reader.head()
                assert await reader.tokens() == ["hello"]


LISTENING = """
async def tokens(request):
    yield "ready"
    async for signal in request.signals:
        yield signal
        return
"""


async def test_a_stop_at_another_process_ends_it_within_milliseconds(fleet: Fleet, record_property: Record) -> None:
    here, there = fleet.grow(2)
    took: list[float] = []
    for _ in range(10):
        answer = await begin(here, mock=SLOW)
        await answer.events(3)
        began = monotonic()
        assert await asyncio.to_thread(stop, there, answer.stream) == 202
        assert (await answer.events())[-1].data == "[DONE]"
        took.append(monotonic() - began)
    record_property("milliseconds until a reader knows, median", round(1000 * sorted(took)[5], 1))
    assert sorted(took)[5] < 0.2
    fleet.running_nothing()


async def test_a_reader_elsewhere_that_stalls_stops_the_source(fleet: Fleet, record_property: Record) -> None:
    """It may run ahead by a constant, by what is on the way, and by no more; and it goes on when the reader does."""
    here, there = fleet.grow(2)
    answer = await begin(here, mock={"tokens": None, "tokens_per_second": None})
    await answer.events(10)
    stream = answer.stream
    slow = await asyncio.to_thread(there.connect, rcvbuf=4096)
    with slow:
        slow.send(raw.get("/stream?prompt=x", last_event_id=f"{stream}.10"))
        assert slow.head().status == 200
        answer.cut()

        def tokens() -> int:
            count: int = here.debug()["totals"]["tokens"]
            return count

        levels = [tokens()]

        def is_still() -> bool:
            levels.append(tokens())
            return levels[-1] == levels[-2]

        await asyncio.to_thread(eventually, is_still, within=10)
        still = levels[-1]
        record_property("tokens ahead of a reader elsewhere that takes nothing", still - 10)
        assert still < 10_000
        got = await asyncio.to_thread(slow.until, b".%d\ndata" % (still + 100), within=20)
        assert got.count(b"\ndata") >= still - 10
        assert tokens() > still
    assert await asyncio.to_thread(stop, there, stream) == 202
    fleet.running_nothing()


# --- a process dies -----------------------------------------------------------------------------------------


async def test_when_the_owner_is_killed_its_readers_elsewhere_are_told(fleet: Fleet, record_property: Record) -> None:
    """A resumable error within the lease, nothing twice; and whoever comes later gets the same."""
    here, there, third = fleet.grow(3)
    answer = await begin(here, mock=SLOW)
    await answer.events(20)
    stream = answer.stream
    reading = await back(there, stream, 5)
    seen = numbers(await reading.events(40))
    fleet.kill(here)
    began = monotonic()
    rest = await reading.until_cut()
    record_property("seconds until a reader of a killed owner knows", round(monotonic() - began, 2))
    assert monotonic() - began < LEASE + 2 * BEAT
    assert rest[-1].json()["code"] == "owner_lost"
    seen += numbers(rest)
    assert seen == list(range(6, 6 + len(seen)))
    later = await back(third, stream, 10)
    told = await later.until_cut()
    assert told[-1].json()["code"] == "owner_lost"
    assert numbers(told) == list(range(11, 6 + len(seen)))
    nothing = await back(third, stream, seen[-1])
    assert nothing.status == 503


async def test_the_key_of_an_answer_that_was_lost_is_free_again(fleet: Fleet) -> None:
    here, there = fleet.grow(2)
    headers = {"Idempotency-Key": "again"}
    answer = await ask(here.port, "/chat", {"prompt": "x", "mock": SLOW}, headers)
    await answer.events(3)
    reading = await back(there, answer.stream, 1)
    fleet.kill(here)
    await reading.until_cut()
    again = await ask(there.port, "/chat", {"prompt": "x", "mock": SLOW}, headers)
    assert again.stream != answer.stream
    assert numbers(await again.events(3)) == [1, 2, 3]
    stop(there, again.stream)
    fleet.running_nothing()


async def test_readers_that_die_with_their_process_are_readers_that_left(fleet: Fleet) -> None:
    """The owner is not held up by who will never report again: the grace begins."""
    here, there = fleet.grow(2)
    answer = await begin(here, mock=SLOW, on_disconnect="grace:0.5")
    await answer.events(3)
    reading = await back(there, answer.stream, 1)
    await reading.events(3)
    answer.cut()
    fleet.kill(there)
    await asyncio.to_thread(eventually, lambda: fleet.generations("running") == 0, within=LEASE + 5)


# --- Redis dies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_while_redis_is_gone_local_readers_go_on_and_the_others_are_told(
    fleet: Fleet, how: str, record_property: Record
) -> None:
    """Nothing hangs; what begins is this process's alone, and says so; and when Redis is back all is shared again."""
    here, there = fleet.grow(2)
    local = await begin(here, mock=SLOW)
    await local.events(3)
    away = await back(there, local.stream, 1)
    await away.events(3)
    if how == "killed":
        fleet.redis.kill()
    else:
        fleet.redis.freeze()
    began = monotonic()
    seen = numbers(await local.events(50))
    assert (await away.until_cut())[-1].json()["code"] == "owner_lost"
    record_property("seconds until readers elsewhere know", round(monotonic() - began, 2))
    assert monotonic() - began < LEASE + 6
    began = monotonic()
    alone = await begin(here, mock=SLOW)
    assert alone.headers["x-resumable"] == "local"
    keyed = await ask(here.port, "/chat", {"prompt": "x", "mock": {"tokens": 2}}, {"Idempotency-Key": "k"})
    assert (keyed.status, keyed.headers["x-resumable"]) == (200, "local")
    unknown = await back(there, alone.stream, 1)
    assert unknown.status == 503
    assert monotonic() - began < 5
    if how == "killed":
        fleet.redis.start()
    else:
        fleet.redis.thaw()
    seen += numbers(await local.events(50))
    assert seen == list(range(4, 104))

    def shared() -> bool:
        body = {"prompt": "x", "on_disconnect": "grace:1", "mock": {"tokens": 1}}
        return there.ask(raw.post("/chat", body)).header("x-resumable") is None

    await asyncio.to_thread(eventually, shared, within=10)
    await asyncio.to_thread(eventually, lambda: stop(there, alone.stream) == 202, within=10)
    again = await back(there, local.stream, 103)
    assert numbers(await again.events(5)) == [104, 105, 106, 107, 108]
    assert stop(there, local.stream) == 202
    fleet.running_nothing()


async def test_a_redis_that_lost_everything_is_told_all_that_is_kept(fleet: Fleet) -> None:
    """A short outage, and its data is gone: a reader elsewhere misses nothing and gets nothing twice."""
    here, there = fleet.grow(2)
    local = await begin(here, mock=SLOW)
    away = await back(there, local.stream, 0)
    seen = numbers(await away.events(10))
    fleet.redis.kill()
    fleet.redis.start()
    seen += numbers(await away.events(100))
    assert seen == list(range(1, 111))
    from_the_first = await back(there, local.stream, 0)
    assert numbers(await from_the_first.events(20)) == list(range(1, 21))
    stop(there, local.stream)
    assert (await away.events())[-1].data == "[DONE]"
    fleet.running_nothing()


# --- a process ends -----------------------------------------------------------------------------------------


async def test_a_process_that_ends_sends_its_readers_elsewhere_and_finishes_what_they_read(fleet: Fleet) -> None:
    """SIGTERM: the answer is cut without an error, and goes on at another process to its end."""
    here, there = fleet.grow(2)
    answer = await begin(here, mock={"tokens": 150, "tokens_per_second": 50})
    seen = numbers(await answer.events(20))
    here.signal(signal.SIGTERM)
    rest = await answer.until_cut()
    assert all(event.token is not None for event in rest)
    seen += numbers(rest)
    assert len(seen) < 150
    again = await back(there, answer.stream, seen[-1])
    whole = await again.events()
    assert seen + numbers(whole) == list(range(1, 151))
    assert whole[-1].data == "[DONE]"
    assert await asyncio.to_thread(here.wait, within=10) == 0


async def test_what_has_not_ended_when_the_drain_has_is_told_to_be_cut(fleet: Fleet) -> None:
    here, there = *fleet.grow(1, "--drain-timeout", "1"), *fleet.grow(1)
    answer = await begin(here, mock=SLOW)
    seen = numbers(await answer.events(20))
    here.signal(signal.SIGTERM)
    seen += numbers(await answer.until_cut())
    again = await back(there, answer.stream, seen[-1])
    last = await again.until_cut()
    assert last[-1].json()["code"] == "shutdown"
    assert numbers(last) == list(range(seen[-1] + 1, seen[-1] + 1 + len(last) - 1))
    assert await asyncio.to_thread(here.wait, within=10) == 0


async def test_a_process_that_is_alone_keeps_its_readers(fleet: Fleet) -> None:
    """Nobody else would take them."""
    (here,) = fleet.grow(1)
    answer = await begin(here, mock={"tokens": 100, "tokens_per_second": 100})
    await answer.events(5)
    here.signal(signal.SIGTERM)
    assert (await answer.events())[-1].data == "[DONE]"
    assert await asyncio.to_thread(here.wait, within=10) == 0

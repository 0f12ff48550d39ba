"""One ledger for all processes, in a real Redis: never over, exactly refunded, there after a restart; gone at times."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from rawstream.errors import BudgetSpent, LimitReached, RateLimited, SettingsError
from rawstream.limits.budget import DAY, MINUTE, Cap, Lease
from rawstream.limits.redis_ledger import RedisLedger
from rawstream.limits.redis_link import MOST_AT_ONCE, REST, RedisGone, RedisLink
from tests.support.flow import until
from tests.support.redis import RedisServer
from tests.support.tools import require_module

pytestmark = [pytest.mark.real]

DAILY = (Cap(1000, DAY),)


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    require_module("redis")
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    shared_redis.command("FLUSHALL")
    return shared_redis


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def link(redis: RedisServer) -> AsyncIterator[RedisLink]:
    made = RedisLink(redis.url)
    yield made
    await made.aclose()


@pytest.fixture
def ledger(link: RedisLink) -> RedisLedger:
    return RedisLedger(link)


async def settled(ledger: RedisLedger, caps: tuple[Cap, ...]) -> None:
    """Wait until nothing is used any more."""
    for _ in range(1000):
        if await ledger.used("ada", caps) == [0]:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("still used")


async def test_what_is_reserved_is_used_until_it_is_refunded(ledger: RedisLedger) -> None:
    lease = Lease(ledger, "ada", DAILY)
    await lease.more()
    assert lease.granted == 125
    assert await ledger.used("ada", DAILY) == [125]
    await lease.close(5)
    assert await ledger.used("ada", DAILY) == [5]


async def test_the_tightest_cap_decides_and_nothing_is_taken_from_the_others(ledger: RedisLedger) -> None:
    caps = (Cap(10_000, MINUTE), Cap(5, DAY))
    for _ in range(5):
        assert (await ledger.reserve("ada", caps, 100)).tokens == 1
    with pytest.raises(BudgetSpent):
        await ledger.reserve("ada", caps, 100)
    assert await ledger.used("ada", caps) == [5, 5]


async def test_a_minute_that_is_used_up_says_when_it_ends(ledger: RedisLedger) -> None:
    caps = (Cap(1, MINUTE),)
    await ledger.reserve("ada", caps, 1)
    with pytest.raises(RateLimited) as limited:
        await ledger.reserve("ada", caps, 1)
    assert limited.value.retry_after is not None
    assert 50 < limited.value.retry_after <= 60


async def test_windows_end_by_redis_own_clock(ledger: RedisLedger) -> None:
    """A refund that comes after its window is gone with it, although the user has a new one."""
    short = (Cap(10, 0.05),)
    reservation = await ledger.reserve("ada", short, 8)
    await settled(ledger, short)
    await ledger.reserve("ada", short, 1)
    await ledger.settle("ada", short, reservation, 0)
    assert await ledger.used("ada", short) in ([1], [0]), "never below what the new window has"


async def test_two_ledgers_share_one_budget_and_go_over_by_nothing(redis: RedisServer) -> None:
    """Fifty streams on two links take tokens one at a time until there are none: exactly the budget."""
    caps = (Cap(2_000, DAY),)
    links = [RedisLink(redis.url), RedisLink(redis.url)]
    ledgers = [RedisLedger(each) for each in links]
    given = 0

    async def stream(ledger: RedisLedger) -> None:
        nonlocal given
        lease, used = Lease(ledger, "ada", caps), 0
        try:
            while True:
                if used >= lease.granted:
                    await lease.more()
                used += 1
                given += 1
                if used % 16 == 0:
                    await asyncio.sleep(0)
        except LimitReached:
            await lease.close(used)

    async with asyncio.timeout(30):
        await asyncio.gather(*(stream(ledgers[number % 2]) for number in range(50)))
    assert given == 2_000
    assert await ledgers[0].used("ada", caps) == [2_000]
    for each in links:
        await each.aclose()


async def test_a_lease_that_was_asked_for_by_a_stream_that_left_is_given_back(ledger: RedisLedger) -> None:
    asking = asyncio.ensure_future(ledger.reserve("ada", DAILY, 100))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await settled(ledger, DAILY)
    await until(lambda: not ledger._refunds, "the refund is through")


async def test_what_was_used_is_there_after_a_restart(redis: RedisServer) -> None:
    """Of Redis, and of whoever asks it."""
    first = RedisLink(redis.url)
    await RedisLedger(first).reserve("ada", DAILY, 100)
    await first.aclose()
    redis.stop()
    redis.start()
    second = RedisLink(redis.url)
    assert await RedisLedger(second).used("ada", DAILY) == [100]
    await second.aclose()


async def test_without_redis_each_process_counts_alone_and_nothing_waits(redis: RedisServer) -> None:
    """Reservations are settled where they were made; once Redis is back, so is its count."""
    clock = Clock()
    link = RedisLink(redis.url, clock)
    ledger = RedisLedger(link)
    before = await ledger.reserve("ada", DAILY, 100)
    redis.stop()
    alone = Lease(ledger, "ada", DAILY)
    await alone.more()
    assert alone.granted == 125
    assert link.gone
    assert await ledger.used("ada", DAILY) == [125]
    await ledger.settle("ada", DAILY, before, 0)
    await alone.close(25)
    assert await ledger.used("ada", DAILY) == [25]
    assert link.failures >= 3
    redis.start()
    clock.now += REST + 0.1
    assert await ledger.used("ada", DAILY) == [100], "what could not be refunded stays reserved"
    assert not link.gone
    await link.aclose()


async def test_a_redis_that_hangs_is_given_up_soon(redis: RedisServer) -> None:
    link = RedisLink(redis.url)
    ledger = RedisLedger(link)
    redis.freeze()
    try:
        async with asyncio.timeout(10):
            assert (await ledger.reserve("ada", DAILY, 10)).tokens == 10
    finally:
        redis.thaw()
    assert link.gone
    await link.aclose()


async def test_the_error_names_no_password(redis: RedisServer) -> None:
    link = RedisLink("redis://:secret-word@127.0.0.1:1/0")
    with pytest.raises(RedisGone) as gone:
        await link.script("return 1")([], [])
    assert "secret-word" not in str(gone.value) + str(gone.value.detail)
    await link.aclose()


def test_a_url_that_makes_no_sense_is_said() -> None:
    with pytest.raises(SettingsError, match="redis: the URL makes no sense"):
        RedisLink("http://127.0.0.1")


@pytest.mark.parametrize("url", ["redis://:pass/word@host:6379/0", "redis://:pass#word@host", "redis://host:password"])
def test_what_is_said_of_a_url_holds_nothing_of_its_password(url: str) -> None:
    with pytest.raises(SettingsError) as told:
        RedisLink(url)
    assert "pass" not in str(told.value).replace("password@", "").replace("in the password", "")


async def test_a_crowd_waits_for_its_turn_on_a_few_connections(redis: RedisServer, link: RedisLink) -> None:
    """Thousands of streams that begin at once are no trouble of Redis': none is counted elsewhere."""
    ledger, caps = RedisLedger(link), (Cap(1_000_000, DAY),)
    leases = [Lease(ledger, "ada", caps) for _ in range(1000)]
    await asyncio.gather(*[lease.more() for lease in leases])
    assert redis.command("CLIENT", "LIST").count(b"name=rawstream") <= MOST_AT_ONCE
    await asyncio.gather(*[lease.close(2) for lease in leases])
    assert await ledger.used("ada", caps) == [2000]
    assert link.failures == 0

"""The protocol in a real Redis: one writer, no entry twice, no gap unseen, and an end for what was lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from rawstream.errors import ClientDisconnected, UpstreamIdle
from rawstream.limits.redis_link import RedisLink
from rawstream.replay.redis_store import About, Batch, End, OwnerLost, Page, Store
from tests.support.redis import RedisServer
from tests.support.tools import require_module

pytestmark = [pytest.mark.real]

STREAM = "0123456789abcdef0123456789abcdef"
ABOUT = About(STREAM, "owner", True, True, "ada", "chat", "/chat")


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    require_module("redis")
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def store(shared_redis: RedisServer) -> AsyncIterator[Store]:
    shared_redis.command("FLUSHALL")
    link = RedisLink(shared_redis.url)
    yield Store(link)
    await link.aclose()


def event(number: int) -> bytes:
    return b"data: %d\n\n" % number


def batch(first: int, last: int, *, fence: str = "f", start: int | None = None, end: str = "") -> Batch:
    """Events of one digit each: nine bytes."""
    frames = b"".join(event(number) for number in range(first, last + 1))
    begin = 9 * (first - 1) if start is None else start
    return Batch(STREAM, fence, last, begin, len(frames), 1, 60_000, end, frames)


async def test_what_is_published_is_fetched_after_any_event(store: Store) -> None:
    await store.begin(ABOUT, "f", 60)
    assert await store.publish([batch(1, 3), batch(4, 4), batch(5, 9)]) == [1, 1, 1]
    assert await store.fetch(STREAM, "0-0") == Page("9-0", 0, b"".join(map(event, range(1, 10))), None)
    page = await store.fetch(STREAM, "6-0")
    assert (page.start, page.events, page.frames) == (36, 4, b"".join(map(event, range(5, 10))))
    assert await store.fetch(STREAM, "9-0") == Page("9-0", 81, b"", None)


async def test_nobody_writes_without_the_fence(store: Store) -> None:
    await store.begin(ABOUT, "f", 60)
    assert await store.publish([batch(1, 1), batch(2, 2, fence="other"), batch(2, 3)]) == [1, -1, 1]
    assert (await store.fetch(STREAM, "0-0")).frames == event(1) + event(2) + event(3)


async def test_what_redis_does_not_know_is_not_written(store: Store) -> None:
    assert await store.publish([batch(1, 1)]) == [0]
    assert (await store.fetch(STREAM, "0-0")).last == ""


async def test_what_is_sent_again_is_there_once(store: Store) -> None:
    """The answer to a flush was lost, and the next one begins with the same events and has more."""
    await store.begin(ABOUT, "f", 60)
    for _ in range(2):
        assert await store.publish([batch(1, 3)]) == [1]
    assert await store.publish([batch(2, 5)]) == [1]
    assert (await store.fetch(STREAM, "0-0")).frames == b"".join(map(event, range(1, 6)))


async def test_a_gap_ends_a_page(store: Store) -> None:
    """What comes after it begins elsewhere, which who reads must see."""
    await store.begin(ABOUT, "f", 60)
    await store.publish([batch(1, 3), batch(6, 9)])
    first = await store.fetch(STREAM, "0-0")
    assert (first.last, first.frames) == ("3-0", event(1) + event(2) + event(3))
    rest = await store.fetch(STREAM, first.last)
    assert (rest.start, rest.events) == (45, 5)


async def test_a_log_whose_owner_is_gone_is_sealed_for_ever(store: Store) -> None:
    await store.begin(ABOUT, "f", 60)
    await store.publish([batch(1, 3)])
    assert await store.live("owner", 60, "", "0-0", [], False) == (False, 0, {})
    assert not await store.seal(ABOUT), "it lives"
    await store.depart("owner")
    assert await store.seal(ABOUT)
    assert await store.seal(ABOUT), "once more changes nothing"
    assert await store.publish([batch(4, 4)]) == [-1]
    page = await store.fetch(STREAM, "2-0")
    assert (page.last, page.frames) == ("3-1", event(1) + event(2) + event(3)), "whole entries"
    assert page.end is not None
    failure = page.end.failure()
    assert isinstance(failure, OwnerLost)
    assert (failure.status, failure.code) == (503, "owner_lost")
    about = await store.find(STREAM)
    assert about is not None
    assert (about.running, about.alive, about.user) == (False, False, "ada")


async def test_a_key_leads_to_what_it_began_until_that_is_lost(store: Store) -> None:
    other = ABOUT._replace(stream="f" * 32)
    assert await store.begin(ABOUT, "f", 60, key=("rawstream:key:k", b"digest")) is None
    assert await store.begin(other, "g", 60, key=("rawstream:key:k", b"digest")) == (STREAM, b"digest")
    assert await store.find(other.stream) is None, "what was not begun is not announced"
    assert await store.seal(ABOUT)
    assert await store.begin(other, "g", 60, key=("rawstream:key:k", b"digest")) is None


async def test_what_is_announced_again_takes_nothing_from_what_came_since(store: Store) -> None:
    other = ABOUT._replace(stream="f" * 32)
    await store.begin(other, "g", 60, chat="rawstream:chat:c", key=("rawstream:key:k", b""))
    await store.begin(ABOUT, "f", 60, chat="rawstream:chat:c", key=("rawstream:key:k", b""), again=True)
    assert await store.leads_to("rawstream:chat:c") == (other.stream, b"")
    assert await store.leads_to("rawstream:key:k") == (other.stream, b"")
    assert await store.publish([batch(1, 1)]) == [1]


async def test_everything_expires(store: Store, shared_redis: RedisServer) -> None:
    await store.begin(ABOUT, "f", 60, chat="rawstream:chat:c", key=("rawstream:key:k", b""))
    await store.publish([batch(1, 1, end=End("completed").encode())])
    await store.live("owner", 5, "", "0-0", [], False)
    keys = shared_redis.command("KEYS", "*").decode().split("\r\n")[2::2]
    assert len(keys) == 7
    assert all(0 < int(shared_redis.command("PTTL", key).decode()[1:]) <= 60_000 for key in keys)


@pytest.mark.parametrize("failure", [None, UpstreamIdle("silence"), ClientDisconnected("nobody")])
def test_how_it_ended_is_told_as_it_was(failure: UpstreamIdle | ClientDisconnected | None) -> None:
    said = End.decode(End.of("completed" if failure is None else failure.outcome, failure).encode().encode()).failure()
    if failure is None:
        assert said is None
    else:
        assert (type(said), str(said)) == (type(failure), str(failure))

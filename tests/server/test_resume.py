"""An answer that is bound to no connection: it goes on where it stopped, exactly, and is generated once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from time import monotonic
from typing import Any

import pytest

from rawstream import Request, Settings
from rawstream.cli.serve import make_source
from rawstream.errors import UpstreamFailed
from rawstream.flow.interrupt import Interruption
from rawstream.lab.chaos import ChaosUpstream
from rawstream.limits.users import new_key
from rawstream.model import SourceItem
from rawstream.server.generation import Generation
from rawstream.settings import KiB, MiB, UserSettings
from tests.support.flow import Counted, Served, serving, turns, until
from tests.support.resuming import ask, hang_up

pytestmark = pytest.mark.usefixtures("loop_kind")

STREAM = "/stream?prompt=a"


@pytest.fixture(autouse=True)
async def no_connection_left(loop_kind: str) -> AsyncIterator[None]:
    yield
    await hang_up()


def numbered(count: int | None = None, pause: float | None = None) -> Counted:
    """``0``, ``1``, ``2`` … ``pause``: seconds between two; 0: the loop gets its turn; None: never a wait."""

    async def items() -> AsyncGenerator[SourceItem, None]:
        number = 0
        while count is None or number < count:
            yield str(number)
            number += 1
            if pause is not None:
                await asyncio.sleep(pause)

    return Counted(items)


class Gated:
    """A source that gives what the test puts in. ``None`` ends it; an exception is raised."""

    name = "gated"

    def __init__(self) -> None:
        self.items: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
        self.closed = asyncio.Event()
        self.closed_at = 0.0
        self.requests: list[Request] = []

    async def tokens(self, request: Request) -> AsyncIterator[str]:
        self.requests.append(request)
        try:
            while (item := await self.items.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.closed_at = monotonic()
            self.closed.set()

    async def aclose(self) -> None:
        """Nothing is shared."""

    def give(self, *items: str | BaseException | None) -> None:
        for item in items:
            self.items.put_nowait(item)


def settings(**values: Any) -> Settings:
    return Settings(port=0, **{"lab": False, **values})


def the_one(served: Served) -> Generation:
    """The only generation that is kept."""
    (generation,) = served.server.app.streams.generations
    return generation


async def still(count: Callable[[], int]) -> int:
    """``count()`` once it does not move any more."""
    before = -1
    async with asyncio.timeout(10):
        while (now := count()) != before or not now:
            before = now
            await asyncio.sleep(0.05)
    return now


def generations(served: Served) -> dict[str, int]:
    levels: dict[str, int] = served.server.app.levels()["generations"]
    return levels


# --- coming back ------------------------------------------------------------------------------------------------


async def test_an_event_source_goes_on_where_it_was_cut() -> None:
    """Every token once, in order, from one generation; and who has seen the end is told that there is no more."""
    async with serving(numbered(40, 0.002), settings()) as served:
        port = served.server.port
        first = await ask(port, STREAM)
        seen = await first.events(7)
        first.cut()
        async with await ask(port, STREAM, headers={"Last-Event-ID": str(seen[-1].id)}) as second:
            assert second.stream == first.stream
            seen += await second.events()
        assert [event.token for event in seen[:-1]] == [str(number) for number in range(40)]
        assert [event.id for event in seen] == [*(f"{first.stream}.{n}" for n in range(1, 41)), f"{first.stream}.end"]
        ended = await ask(port, STREAM, headers={"Last-Event-ID": str(seen[-1].id)})
        assert (ended.status, await ended.body()) == (204, b"")
        assert generations(served)["opened"] == 1


async def test_the_end_is_told_to_who_was_away_when_it_came() -> None:
    """For ``replay_keep`` seconds after it."""
    source = numbered(5, 0)
    async with serving(source, settings()) as served:
        first = await ask(served.server.port, f"{STREAM}&on_disconnect=finish")
        seen = await first.events(1)
        first.cut()
        await until(lambda: not the_one(served).running, "it is brought to its end")
        async with await ask(served.server.port, STREAM, headers={"Last-Event-ID": str(seen[0].id)}) as second:
            assert [event.data for event in await second.events()][-1] == "[DONE]"
            assert second.at_end


async def test_chat_has_ids_when_it_can_be_resumed_and_else_is_as_it_always_was() -> None:
    async with serving(numbered(6, 0.002), settings()) as served:
        port = served.server.port
        async with await ask(port, "/chat", {"prompt": "a"}) as plain:
            assert {event.id for event in await plain.events()} == {None}
        first = await ask(port, "/chat", {"prompt": "a", "on_disconnect": "grace:5"})
        seen = await first.events(3)
        first.cut()
        last = {"Last-Event-ID": str(seen[-1].id)}
        async with await ask(port, "/chat", {"prompt": "a", "on_disconnect": "grace:5"}, last) as second:
            seen += await second.events()
        assert [event.token for event in seen[:-1]] == ["0", "1", "2", "3", "4", "5"]
        ended = await ask(port, "/chat", {"prompt": "a"}, {"Last-Event-ID": str(seen[-1].id)})
        assert ended.status == 204


@pytest.mark.parametrize("last", ["0" * 32 + ".3", "x" * 20 + ".0"])
async def test_what_is_not_kept_is_gone_and_says_so(last: str) -> None:
    """410 and JSON: ``EventSource`` stops, and the page knows why."""
    async with serving(numbered(3), settings()) as served:
        reply = await ask(served.server.port, STREAM, headers={"Last-Event-ID": last})
        assert reply.status == 410
        assert b'"code":"replay_gone"' in await reply.body()
        assert generations(served)["opened"] == 0


async def test_an_event_that_left_the_window_is_gone_too() -> None:
    async with serving(numbered(2000), settings(replay_window=16 * KiB)) as served:
        async with await ask(served.server.port, STREAM) as first:
            seen = await first.events()
        reply = await ask(served.server.port, STREAM, headers={"Last-Event-ID": str(seen[2].id)})
        assert reply.status == 410
        async with await ask(served.server.port, STREAM, headers={"Last-Event-ID": str(seen[-9].id)}) as late:
            assert await late.events() == seen[-8:]


async def test_each_stream_has_128_random_bits_and_a_retry_of_its_own() -> None:
    """So that a thousand that were cut together do not come back together."""
    async with serving(numbered(1), settings()) as served:
        ids, retries = set(), set()
        for _ in range(20):
            async with await ask(served.server.port, STREAM) as answer:
                assert len(bytes.fromhex(answer.stream)) == 16
                ids.add(answer.stream)
                await answer.events(1)
        for stream in ids:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
            writer.write(f"GET {STREAM} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            text = (await asyncio.wait_for(reader.read(), 10)).decode()
            writer.close()
            retries.add(int(text.partition("retry: ")[2].partition("\n")[0]))
            assert stream not in text
        assert len(ids) == 20
        assert len(retries) > 10
        assert all(1000 <= retry <= 3000 for retry in retries)


# --- the demand -------------------------------------------------------------------------------------------------


async def test_with_a_reader_that_stalls_the_source_is_where_its_kernel_is() -> None:
    """The log is no excuse to run ahead: at most 16 KiB, and what a receive buffer of 4 KiB takes."""
    source = numbered()
    async with serving(source, settings()) as served:
        client = await served.client(b"GET /stream?prompt=a HTTP/1.1\r\nHost: localhost\r\n\r\n", rcvbuf=4096)
        await client.read_until(b"\n\n")
        await still(lambda: source.given)
        generation = the_one(served)
        assert generation.log.end <= 16 * KiB + 2 * 4 * KiB
        assert source.given == generation.meter.tokens


async def test_with_nobody_there_it_stops_at_the_window_and_after_the_grace_all_is_given_back() -> None:
    """The upstream's connection stays open and idle for as long as somebody may come back; then it is closed."""
    window, keep = 64 * KiB, 0.3
    async with ChaosUpstream() as chaos:
        chosen = settings(upstream=chaos.url, replay_window=window, resume_grace=1.0, replay_keep=keep)
        async with serving(make_source(chosen), chosen) as served:
            answer = await ask(served.server.port, f"{STREAM}&model=endless:rate=0")
            await answer.events(3)
            answer.cut()
            generation = the_one(served)
            await until(lambda: not generation.readers, "the reader has left")
            made = await still(lambda: generation.meter.tokens)
            log = generation.log
            assert window <= log.end - generation._seen <= window + 4 * KiB
            assert log.held <= window + 8 * KiB
            assert chaos.state()["running"] == 1
            await turns()
            assert generation.meter.tokens == made
            (shown,) = served.server.app.streams.generations.alone()
            assert shown.snapshot(monotonic())["state"] == "no reader"
            await until(lambda: chaos.state()["running"] == 0, "the upstream's connection is closed after the grace")
            await until(lambda: generations(served)["held"] == 0, "the log is let go of", 5)
            assert generations(served)["kept"] == 0


async def test_a_slow_second_reader_slows_nobody_and_is_told_when_it_is_too_late() -> None:
    """It falls out of the window; what it got is exact, and then comes an error that says so."""
    count = 60_000  # more than all buffers on the way take
    source = numbered(count)
    async with serving(source, settings(replay_window=32 * KiB)) as served:
        port = served.server.port
        fast = await ask(port, STREAM)
        seen = await fast.events(10)
        await still(lambda: source.given)  # nobody takes more: all buffers are full
        behind = the_one(served).log.events
        last = f"{fast.stream}.{behind}"
        slow = await served.client(
            f"GET {STREAM} HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {last}\r\n\r\n".encode(), rcvbuf=4096
        )
        await until(lambda: the_one(served).had_readers == 2, "the slow one has come")
        seen += await fast.events()
        assert [event.token for event in seen[:-1]] == [str(number) for number in range(count)]
        got = (await slow.read_all()).decode()
        assert '"code": "replay_gone"' in got
        assert not got.endswith("0\r\n\r\n")
        tokens = [part.split('"')[0] for part in got.split('{"token": "')[1:]]
        assert tokens == [str(number) for number in range(behind, behind + len(tokens))]
        assert 10 < len(tokens) < count - behind
        assert source.asked == count + 1


async def test_two_readers_of_one_answer_get_the_same() -> None:
    async with serving(numbered(300, 0), settings()) as served:
        async with await ask(served.server.port, STREAM) as first:
            seen = await first.events(1)
            async with await ask(served.server.port, STREAM, headers={"Last-Event-ID": str(seen[0].id)}) as second:
                one, two = await asyncio.gather(first.events(), second.events())
        assert one == two
        assert len(one) == 300


# --- what becomes of it when its last reader leaves ---------------------------------------------------------------


async def test_cancel_closes_the_source_at_once() -> None:
    source = Gated()
    async with serving(source, settings()) as served:
        source.give("a")
        answer = await ask(served.server.port, f"{STREAM}&on_disconnect=cancel")
        await answer.events(1)
        answer.cut()
        await asyncio.wait_for(source.closed.wait(), 10)
        assert generations(served)["opened"] == 0, "it was an ordinary stream"


async def test_a_grace_ends_it_when_nobody_came_and_not_when_somebody_did() -> None:
    source = Gated()
    async with serving(source, settings()) as served:
        port = served.server.port
        source.give("a")
        first = await ask(port, f"{STREAM}&on_disconnect=grace:0.2")
        seen = await first.events(1)
        first.cut()
        last = {"Last-Event-ID": str(seen[0].id)}
        second = await ask(port, STREAM, headers=last, head=False)
        generation = the_one(served)
        await until(lambda: generation.readers == 1 and generation.had_readers == 2, "somebody has come back")
        await asyncio.sleep(0.3)  # longer than the grace, which must not run
        assert generation.running
        second.cut()
        left_at = monotonic()
        await asyncio.wait_for(source.closed.wait(), 10)
        assert 0.15 < source.closed_at - left_at < 1.0
        late = await ask(port, STREAM, headers=last)
        assert late.status == 410, "and not a cut, after which it would come back for ever"


async def test_who_comes_back_after_the_grace_gets_what_there_is_and_then_the_truth() -> None:
    source = Gated()
    async with serving(source, settings()) as served:
        source.give("a")
        first = await ask(served.server.port, f"{STREAM}&on_disconnect=grace:0.1")
        seen = await first.events(1)
        first.cut()
        source.give("b")
        await asyncio.wait_for(source.closed.wait(), 10)
        late = await ask(served.server.port, STREAM, headers={"Last-Event-ID": str(seen[0].id)})
        token, error = await late.until_cut()
        assert token.token == "b"
        assert error.json()["code"] == "replay_gone"


async def test_finish_brings_it_to_its_end_with_nobody_there() -> None:
    """Within the window's memory: what came first is let go of."""
    source = numbered(5000)
    async with serving(source, settings(replay_window=16 * KiB)) as served:
        answer = await ask(served.server.port, f"{STREAM}&on_disconnect=finish")
        await answer.events(1)
        answer.cut()
        await until(lambda: not the_one(served).running, "it has ended")
        assert source.given == 5000
        assert the_one(served).log.held <= 16 * KiB + 8 * KiB


async def test_a_stop_wins_over_all_of_them() -> None:
    """With nobody reading, and a grace of an hour: the source is closed at once (50 ms are promised)."""
    source = Gated()
    async with serving(source, settings()) as served:
        port = served.server.port
        source.give("a")
        first = await ask(port, f"{STREAM}&on_disconnect=grace:3600")
        seen = await first.events(1)
        first.cut()
        generation = the_one(served)
        await until(lambda: not generation.readers, "the reader has left")
        asked_at = monotonic()
        stopped = await ask(port, f"/streams/{first.stream}/stop", {})
        assert stopped.status == 202
        await asyncio.wait_for(source.closed.wait(), 10)
        print(f"closed {1000 * (source.closed_at - asked_at):.1f} ms after the stop was sent")
        late = await ask(port, STREAM, headers={"Last-Event-ID": str(seen[0].id)})
        assert [event.data for event in await late.events()][-1] == "[DONE]"
        assert late.at_end
        again = await ask(port, f"/streams/{first.stream}/stop", {})
        assert again.status == 404


async def test_a_stop_ends_it_for_everybody() -> None:
    source = Gated()
    async with serving(source, settings()) as served:
        source.give("a")
        first = await ask(served.server.port, STREAM)
        seen = await first.events(1)
        second = await ask(served.server.port, STREAM, headers={"Last-Event-ID": str(seen[0].id)}, head=False)
        await until(lambda: the_one(served).readers == 2, "the second reads")
        await ask(served.server.port, f"/streams/{first.stream}/stop", {})
        for answer in (first, await second.head()):
            assert (await answer.events())[-1].data == "[DONE]"
            assert answer.at_end


async def test_a_client_that_was_gone_before_its_answer_began_is_one_that_left() -> None:
    source = numbered()
    async with serving(source, settings(replay_window=16 * KiB)) as served:
        answer = await ask(served.server.port, f"{STREAM}&on_disconnect=grace:0.2", head=False)
        answer.cut()
        await until(lambda: generations(served)["opened"] == 1 and not generations(served)["running"], "it has ended")
        assert not the_one(served).readers


async def test_a_request_that_is_refused_leaves_nothing_behind() -> None:
    source = numbered()
    async with serving(source, settings(max_streams=1)) as served:
        port = served.server.port
        async with await ask(port, STREAM) as first:
            await first.events(1)
            refused = await ask(port, f"{STREAM}&on_disconnect=finish")
            assert refused.status == 503
            assert generations(served)["kept"] == 1
        await until(lambda: generations(served)["alone"] == 1, "the first one is left alone")
        refused = await ask(port, STREAM)
        assert refused.status == 503, "what nobody reads counts, too"


async def test_the_longest_life_is_that_of_the_generation() -> None:
    source = Gated()
    async with serving(source, settings(stream_timeout=0.3)) as served:
        source.give("a")
        first = await ask(served.server.port, f"{STREAM}&on_disconnect=finish")
        await first.events(1)
        first.cut()
        await asyncio.wait_for(source.closed.wait(), 10)
        assert served.server.app.streams.generations.outcomes == {"deadline": 1}


# --- failures ---------------------------------------------------------------------------------------------------


async def test_a_failure_is_told_to_who_was_away_and_then_with_a_status() -> None:
    """First in-stream, behind what came before it; to who has all of that, as a status: ``EventSource`` stops."""
    source = Gated()
    async with serving(source, settings()) as served:
        port = served.server.port
        source.give("a")
        first = await ask(port, STREAM)
        seen = await first.events(1)
        first.cut()
        await until(lambda: not the_one(served).readers, "the reader has left")
        source.give("b", UpstreamFailed("the upstream broke"))
        await asyncio.wait_for(source.closed.wait(), 10)
        second = await ask(port, STREAM, headers={"Last-Event-ID": str(seen[0].id)})
        token, error = await second.until_cut()
        assert (token.token, error.json()["code"]) == ("b", "upstream_failed")
        third = await ask(port, STREAM, headers={"Last-Event-ID": str(token.id)})
        assert third.status == 502


async def test_a_failure_before_the_first_token_is_not_repeated_to_who_tries_again() -> None:
    """SDKs retry with the same ``Idempotency-Key``: nothing was generated, so it may begin anew."""
    source = Gated()
    async with serving(source, settings()) as served:
        key = {"Idempotency-Key": "k"}
        source.give(UpstreamFailed("the upstream broke"))
        failed = await ask(served.server.port, "/chat", {"prompt": "a"}, key)
        assert failed.status == 502
        source.give("a", None)
        async with await ask(served.server.port, "/chat", {"prompt": "a"}, key) as again:
            assert await again.tokens() == ["a"]


# --- Idempotency-Key --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "stream": True}),
        ("/api/chat", {"messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "a"}]}]}),
    ],
)
async def test_a_repeat_re_attaches_and_starts_nothing_new(path: str, body: dict[str, Any]) -> None:
    """While it runs and after its end, on every way to stream."""
    source = numbered(20, 0.002)
    key = {"Idempotency-Key": "one"}
    async with serving(source, settings()) as served:
        first = await ask(served.server.port, path, body, key)
        await first.events(3)
        async with await ask(served.server.port, path, body, key) as during:
            everything = await during.events()
        async with await ask(served.server.port, path, body, key) as after:
            assert await after.events() == everything
        first.cut()
        assert (source.given, during.stream, after.stream) == (20, first.stream, first.stream)
        other = await ask(served.server.port, path, {**body, "max_tokens": 5}, key)
        assert other.status == 422
        assert b"idempotency_key_reused" in await other.body() or path == "/api/chat"


async def test_two_that_ask_at_once_with_one_key_get_one_answer() -> None:
    source = numbered(50, 0.001)
    async with serving(source, settings()) as served:
        key = {"Idempotency-Key": "one"}
        asked = [ask(served.server.port, "/chat", {"prompt": "a"}, key) for _ in range(8)]
        answers = await asyncio.gather(*asked)
        tokens = await asyncio.gather(*(answer.tokens() for answer in answers))
        assert source.given == 50
        assert all(one == [str(number) for number in range(50)] for one in tokens)


async def test_an_answer_is_its_users_own() -> None:
    """Another user's id is gone, another user's key is another key, and nothing of it can be stopped or looked at."""
    (ann, ann_hash), (ben, ben_hash) = new_key(), new_key()
    users = (UserSettings(name="ann", keys=(ann_hash,)), UserSettings(name="ben", keys=(ben_hash,), max_streams=1))
    source = numbered(None, 0.001)
    async with serving(source, settings(users=users)) as served:
        port = served.server.port
        a, b = ({"Authorization": f"Bearer {key}"} for key in (ann, ben))
        first = await ask(port, STREAM, headers=a)
        seen = await first.events(2)
        for status, target, body in (
            (410, STREAM, None),
            (404, f"/streams/{first.stream}", None),
            (404, f"/streams/{first.stream}/stop", {}),
        ):
            reply = await ask(port, target, body, {**b, "Last-Event-ID": str(seen[0].id)})
            assert reply.status == status
        async with await ask(port, STREAM, headers={**a, "Last-Event-ID": str(seen[0].id)}) as own:
            assert (await own.events(1))[0].token == "1"
        key = {"Idempotency-Key": "one"}
        mine = await ask(port, "/chat", {"prompt": "a"}, {**a, **key})
        other = await ask(port, "/chat", {"prompt": "a"}, {**b, **key})
        assert mine.stream != other.stream
        again = await ask(port, "/chat", {"prompt": "a"}, {**b, **key})
        assert (again.status, again.stream) == (200, other.stream), "readers do not count: it is one stream of ben's"
        assert (await ask(port, STREAM, headers=b)).status == 429
        for answer in (mine, other, again, first):
            answer.cut()


# --- useChat ----------------------------------------------------------------------------------------------------

UI = {"id": "chat-1", "messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "a"}]}]}


def text_of(events: list[Any]) -> str:
    return "".join(event.json()["delta"] for event in events if event.json() and event.json()["type"] == "text-delta")


async def test_use_chat_comes_back_to_a_short_replay_and_the_live_tail() -> None:
    source = Gated()
    async with serving(source, settings()) as served:
        port = served.server.port
        source.give(*(str(number) for number in range(100)))
        first = await ask(port, "/api/chat", UI)
        before: list[Any] = []
        while len(text_of(before)) < 190:
            before += await first.events(1)
        first.cut()
        second = await ask(port, "/api/chat/chat-1/stream")
        replay = await second.events(4)
        assert [event.json()["type"] for event in replay][-1] == "text-delta"
        assert text_of(replay) == text_of(before), "one delta for all that passed"
        source.give("!", None)
        tail = await second.events()
        assert text_of(tail) == "!"
        assert [event.json()["type"] for event in tail[:-1]] == ["text-delta", "text-end", "finish-step", "finish"]
        assert tail[-1].data == "[DONE]"
        assert (await ask(port, "/api/chat/chat-1/stream")).status == 204, "it has ended, and was seen"
        assert (await ask(port, "/api/chat/chat-2/stream")).status == 204


async def test_use_chat_that_was_away_at_the_end_gets_all_of_it_once() -> None:
    source = Gated()
    async with serving(source, settings()) as served:
        source.give("a")
        first = await ask(served.server.port, "/api/chat", UI)
        await first.events(3)
        first.cut()
        await until(lambda: not the_one(served).readers, "the page has gone")
        source.give("b", None)
        await until(lambda: not the_one(served).running, "it has ended")
        async with await ask(served.server.port, "/api/chat/chat-1/stream") as back:
            assert text_of(await back.events()) == "ab"
        await until(lambda: the_one(served).seen, "its end was seen")
        assert (await ask(served.server.port, "/api/chat/chat-1/stream")).status == 204


async def test_use_chat_is_told_when_the_beginning_is_not_kept_any_more() -> None:
    async with serving(numbered(), settings(replay_window=8 * KiB)) as served:
        async with await ask(served.server.port, "/api/chat", UI) as first:
            await first.events(2000)
            reply = await ask(served.server.port, "/api/chat/chat-1/stream")
            assert reply.status == 410


async def test_a_chat_that_goes_on_ends_the_answer_that_nobody_reads() -> None:
    source = Gated()
    async with serving(source, settings()) as served:
        source.give("a")
        first = await ask(served.server.port, "/api/chat", UI)
        await first.events(3)
        first.cut()
        await until(lambda: not the_one(served).readers, "the page has gone")
        async with await ask(served.server.port, "/api/chat", UI, head=False):
            await asyncio.wait_for(source.closed.wait(), 10)


# --- what goes with it, and what does not -------------------------------------------------------------------------


async def test_on_disconnect_is_for_this_server_and_reaches_no_source() -> None:
    source = Gated()
    async with serving(source, settings()) as served:
        port = served.server.port
        extra = {"on_disconnect": "finish", "top_k": 3}
        completion = {"messages": [{"role": "user", "content": "a"}], **extra}
        source.give(*["a", None] * 5)
        for target, body in (
            (f"{STREAM}&on_disconnect=finish&top_k=3", None),
            ("/chat", {"prompt": "a", **extra}),
            ("/api/chat", {**UI, **extra}),
            ("/v1/chat/completions", {**completion, "stream": True}),
            ("/v1/chat/completions", completion),
        ):
            async with await ask(port, target, body) as answer:
                assert answer.status == 200
                if "content-length" in answer.headers:
                    await answer.body()
                else:
                    await answer.events()
        assert len(source.requests) == 5
        for request in source.requests:
            assert "on_disconnect" not in request.extra
            assert "top_k" in request.extra


@pytest.mark.parametrize("policy", ["grace", "grace:", "grace:-1", "grace:1e3", "grace:4000", "stay", 5, ""])
async def test_a_policy_that_is_none_is_refused(policy: object) -> None:
    async with serving(numbered(1), settings()) as served:
        reply = await ask(served.server.port, "/chat", {"prompt": "a", "on_disconnect": policy})
        assert reply.status == 400
        assert b"on_disconnect" in await reply.body()


async def test_plain_text_and_credit_cannot_be_resumed_and_say_so() -> None:
    async with serving(numbered(3), settings()) as served:
        port = served.server.port
        key = {"Idempotency-Key": "k"}
        for target, body, headers in (
            ("/text?prompt=a&on_disconnect=finish", None, {}),
            ("/text", {"prompt": "a"}, key),
            (f"{STREAM}&credit=5&on_disconnect=grace:5", None, {}),
            ("/chat?credit=5", {"prompt": "a"}, key),
        ):
            reply = await ask(port, target, body, headers)
            assert reply.status == 400, target
        async with await ask(port, f"{STREAM}&credit=5") as answer:
            assert await answer.tokens() == ["0", "1", "2"]
        assert generations(served)["opened"] == 0


async def test_no_grace_at_all_makes_of_stream_an_ordinary_one() -> None:
    async with serving(numbered(3), settings(resume_grace=0.0)) as served:
        async with await ask(served.server.port, STREAM) as answer:
            assert await answer.tokens() == ["0", "1", "2"]
        assert generations(served)["opened"] == 0


async def test_signals_and_state_reach_an_answer_that_nobody_reads() -> None:
    heard: list[Any] = []

    async def listening(request: Request) -> AsyncIterator[str]:
        yield "a"
        async for signal in request.signals:
            heard.append(signal)

    async with serving(listening, settings()) as served:
        port = served.server.port
        first = await ask(port, STREAM)
        await first.events(1)
        first.cut()
        await until(lambda: not the_one(served).readers, "the reader has left")
        state = await ask(port, f"/streams/{first.stream}")
        assert b'"state":"no reader"' in await state.body()
        assert (await ask(port, f"/streams/{first.stream}/signal", {"steer": 1})).status == 202
        await until(lambda: heard == [{"steer": 1}], "the source has heard it")
        assert (await ask(port, f"/streams/{first.stream}/credit", {"consumed": 1})).status == 409
        debug = await (await ask(port, "/debug/streams")).body()
        assert b'"state":"no reader"' in debug
        assert first.stream.encode() not in debug


# --- memory -----------------------------------------------------------------------------------------------------


async def test_when_there_is_no_room_for_another_log_it_says_so_and_streams_as_ever() -> None:
    chosen = settings(replay_total=80 * KiB, replay_window=64 * KiB, resume_grace=30.0)
    async with serving(numbered(None, 0), chosen) as served:
        first = await ask(served.server.port, STREAM)
        await first.events(1)
        assert "x-resumable" not in first.headers
        first.cut()
        await until(lambda: generations(served)["held"] > 64 * KiB, "its window is full")
        async with await ask(served.server.port, STREAM) as second:
            assert second.headers["x-resumable"] == "no"
            assert await second.tokens(3) == ["0", "1", "2"]
        assert served.server.app.streams.generations.refused == 1


async def test_the_oldest_that_have_ended_make_room() -> None:
    chosen = settings(replay_total=100 * KiB, replay_window=64 * KiB)
    async with serving(numbered(200), chosen) as served:
        for _ in range(20):
            async with await ask(served.server.port, STREAM) as answer:
                await answer.events()
                assert "x-resumable" not in answer.headers
        assert generations(served)["held"] <= 100 * KiB
        assert 1 < generations(served)["kept"] < 20


async def test_when_memory_runs_short_what_has_ended_goes_first() -> None:
    chosen = settings(max_buffered_bytes=100 * KiB, replay_window=1 * MiB)
    async with serving(numbered(2000), chosen) as served:
        async with await ask(served.server.port, STREAM) as answer:
            await answer.events()
        app = served.server.app
        await until(lambda: generations(served)["kept"] == 0, "the governor has let go of it")
        assert app.streams.admission.refused == 0


# --- the end of the server ----------------------------------------------------------------------------------------


async def test_the_server_ends_what_nobody_reads_and_waits_for_its_source() -> None:
    closing = asyncio.Event()
    closed = asyncio.Event()

    async def slow_to_close(request: Request) -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.Event().wait()
        finally:
            closing.set()
            await asyncio.sleep(0.1)
            closed.set()

    async with serving(slow_to_close, settings()) as served:
        first = await ask(served.server.port, STREAM)
        await first.events(1)
        first.cut()
        await until(lambda: not the_one(served).readers, "the reader has left")
        generation = the_one(served)
        await served.server.close(drain=5)
        assert closed.is_set()
        assert not generation.running
        assert generations(served)["held"] == 0
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "generation"]


async def test_in_the_drain_a_reader_gets_its_answer_whole_and_finish_is_finished() -> None:
    source = numbered(30, 0.005)
    async with serving(source, settings()) as served:
        first = await ask(served.server.port, STREAM)
        alone = await ask(served.server.port, f"{STREAM}&on_disconnect=finish")
        await asyncio.gather(first.events(1), alone.events(1))
        alone.cut()
        closing = asyncio.create_task(served.server.close(drain=5))
        assert (await first.events())[-1].data == "[DONE]"
        await asyncio.wait_for(closing, 10)
        assert served.server.app.streams.generations.outcomes == {"completed": 2}
        assert source.given == 60


# --- all at once --------------------------------------------------------------------------------------------------

CLIENTS, TOKENS, MOST_CUTS = 500, 60, 20


@pytest.mark.slow
async def test_500_streams_over_a_flapping_connection_get_every_token_once_and_in_order() -> None:
    """Cut at random moments, up to 20 times each, between two events and within one."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    source = numbered(TOKENS, 0.02)
    limit = asyncio.Semaphore(200)  # connections being opened: no more than the backlog takes

    async def client(number: int) -> int:
        got: list[str | None] = []
        last: str | None = None
        cuts = 0
        await asyncio.sleep(dice.random())
        while True:
            async with limit:
                answer = await ask(port, STREAM, headers={} if last is None else {"Last-Event-ID": last})
            assert answer.status == 200, (number, last, answer.status)
            most = dice.randrange(1, 8) if cuts < MOST_CUTS else None
            for event in await answer.events(most):
                if event.data == "[DONE]":
                    answer.cut()
                    assert got == [str(token) for token in range(TOKENS)], number
                    return cuts
                got.append(event.token)
                last = event.id
            answer.cut()
            cuts += 1

    async with serving(source, settings(max_streams=2000)) as served:
        port = served.server.port
        async with asyncio.timeout(60):
            cuts = await asyncio.gather(*(client(number) for number in range(CLIENTS)))
        assert generations(served)["opened"] == CLIENTS
        assert source.given == CLIENTS * TOKENS
        print(f"{sum(cuts)} cuts, {generations(served)['resumed']} resumed")
        assert generations(served)["resumed"] == sum(cuts) > 3 * CLIENTS


async def test_an_interruption_of_a_generation_is_one() -> None:
    """The first reason is the reason, whoever reads."""
    source = Gated()
    async with serving(source, settings()) as served:
        source.give("a")
        async with await ask(served.server.port, STREAM) as first:
            await first.events(1)
            interruption: Interruption = the_one(served).interruption
            assert interruption.interrupt(UpstreamFailed("one"))
            assert not interruption.interrupt(UpstreamFailed("two"))
            assert (await first.until_cut())[-1].json()["error"] == "one"

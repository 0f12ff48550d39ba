"""Users' budgets on a real server: never over by more than a batch, exactly refunded, told in every dialect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import openai
import pytest

from rawstream.errors import BudgetSpent
from rawstream.limits.budget import BLOCK, Reservation
from rawstream.model import DataPart, Outcome, Request, SourceItem, StreamRecord, Token
from rawstream.settings import Settings, UserSettings
from rawstream.sources.router import RoutedSource
from tests.sources.fake_upstream import (
    DONE,
    FINISH,
    HEAD,
    LAST_CHUNK,
    FakeUpstream,
    Peer,
    answering,
    chunk,
    delta,
    event,
)
from tests.support.flow import Served, repeat, serving, until
from tests.support.spending import KEY, Reply, ada, ask, caps_of, read_reply, request

MANY = 50
BUDGET = 10_000
CHAT = {"prompt": "hello"}
QUESTION = {"messages": [{"role": "user", "content": "hello"}], "model": "m"}


def settings(user: UserSettings, **more: Any) -> Settings:
    return Settings(port=0, users=(user,), **more)


async def used(served: Served, user: UserSettings) -> int:
    """What the ledger holds against the user: all that is not refunded."""
    (tokens,) = await served.server.app.ledger.used(user.name, caps_of(user))
    return tokens


async def settled(served: Served) -> None:
    """Wait until nothing runs and nothing is being settled."""
    await until(lambda: not len(served.server.app.streams), "all streams have ended")
    await served.server.app.streams.spending.settled()


class Together:
    """Streams that begin to give once ``count`` of them have been asked: ``batch`` tokens at a time, without end."""

    def __init__(self, count: int, batch: int, pause: float | None) -> None:
        self._count = count
        self._item: SourceItem = "x" if batch == 1 else ["x"] * batch
        self._pause = pause
        self._running = 0
        self._go = asyncio.Event()

    async def tokens(self, request: Request) -> AsyncGenerator[SourceItem, None]:
        self._running += 1
        if self._running == self._count:
            self._go.set()
        await self._go.wait()
        while True:
            if self._pause is not None:
                await asyncio.sleep(self._pause)
            yield self._item


@pytest.mark.parametrize("pause", [None, 0.002], ids=["as-fast-as-it-can", "paced"])
@pytest.mark.parametrize("batch", [1, 7, 100])
async def test_fifty_streams_go_over_their_budget_by_less_than_a_batch_each(
    batch: int, pause: float | None, record_property: Callable[[str, object], None]
) -> None:
    """All running at once; what the ledger says afterwards is what was given, to the token; the next one is refused."""
    user = ada(tokens_per_day=BUDGET)
    async with serving(Together(MANY, batch, pause).tokens, settings(user)) as served:
        replies = await asyncio.gather(*[ask(served.server.port, "/chat", CHAT) for _ in range(MANY)])
        records = [await served.ended() for _ in range(MANY)]
        await settled(served)
        given = sum(record.tokens for record in records)
        over = given - BUDGET
        record_property("over", over)
        print(f"{MANY} streams, batches of {batch}, pause {pause}: over by {over} tokens of {BUDGET}")
        assert 0 <= over <= MANY * (batch - 1)
        assert await used(served, user) == given
        assert {record.outcome for record in records} == {Outcome.BUDGET}
        assert {(record.user, record.status) for record in records} == {("ada", 200)}
        for reply in replies:
            assert reply.whole
            assert reply.events[-2:] == [{"finish_reason": "length", "code": "insufficient_quota"}, "[DONE]"]
        assert sum(len(reply.events) - 2 for reply in replies) == given
        refused = await ask(served.server.port, "/chat", CHAT)
        assert (refused.status, refused.headers["x-should-retry"]) == (429, "false")
        assert refused.json["code"] == "insufficient_quota"
        assert "retry-after" not in refused.headers
        totals = served.server.app.streams.totals.users["ada"]
        assert (totals.tokens, totals.delivered) == (given, given)
        assert totals.refusals == {"insufficient_quota": 1}


# --- how it is told ---------------------------------------------------------------------------------------------


async def spent_by(path: str, body: dict[str, Any], user: UserSettings) -> tuple[Reply, StreamRecord]:
    async with serving(lambda: repeat("x"), settings(user)) as served:
        reply = await ask(served.server.port, path, body)
        return reply, await served.ended()


@pytest.mark.parametrize(
    ("user", "code"),
    [(ada(tokens_per_day=10), "insufficient_quota"), (ada(tokens_per_minute=10), "rate_limit_exceeded")],
    ids=["day", "minute"],
)
async def test_the_ai_sdks_message_is_finished_and_says_why(user: UserSettings, code: str) -> None:
    body = {"id": "c", "messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "hello"}]}]}
    reply, record = await spent_by("/api/chat", body, user)
    assert reply.events[-2:] == [
        {"type": "finish", "finishReason": "length", "messageMetadata": {"reason": code}},
        "[DONE]",
    ]
    assert (record.tokens, record.outcome) == (10, Outcome.BUDGET)


async def test_an_event_source_is_told_why_and_does_not_come_back() -> None:
    """Its last event has the id of an end, after the one that says why."""
    async with serving(lambda: repeat("x"), settings(ada(tokens_per_day=3))) as served:
        client = await served.client(
            f"GET /stream?prompt=hi HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
        )
        said = await client.read_until(b"[DONE]\n\n")
        assert b'data: {"finish_reason": "length", "code": "insufficient_quota"}\n\nid: ' in said
        assert said.count(b'{"token": "x"}') == 3
        assert b".end\ndata: [DONE]\n\n" in said


async def test_plain_text_ends_whole_with_what_there_was() -> None:
    reply, record = await spent_by("/text", CHAT, ada(tokens_per_day=10))
    assert (reply.body, reply.whole, record.outcome) == (b"x" * 10, True, Outcome.BUDGET)


async def test_openais_client_sees_an_answer_that_is_as_long_as_it_may_be_and_then_an_error() -> None:
    """finish_reason 'length' with usage and our reason; the next request fails at once, with the code of a quota."""
    async with serving(lambda: repeat("x"), settings(ada(tokens_per_day=10))) as served:
        base = f"{served.server.url}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key=KEY, max_retries=3, timeout=10) as client:
            chunks = [
                one
                async for one in await client.chat.completions.create(
                    model="m",
                    messages=[{"role": "user", "content": "hello"}],
                    stream=True,
                    stream_options={"include_usage": True},
                )
            ]
            *_, finish, last = chunks
            assert finish.choices[0].finish_reason == "length"
            assert finish.model_extra is not None
            assert finish.model_extra["rawstream"] == {"reason": "insufficient_quota"}
            assert last.usage is not None
            assert last.usage.completion_tokens == 10
            assert sum(bool(one.choices and one.choices[0].delta.content) for one in chunks) == 10
            with pytest.raises(openai.RateLimitError) as refused:
                await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "hello"}], stream=True
                )
            assert refused.value.code == "insufficient_quota"
        assert served.server.app.streams.totals.users["ada"].refusals == {"insufficient_quota": 1}, "not tried again"


# --- refunds ----------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_pays_for_what_was_made() -> None:
    """What was set aside for the rest of its answer is given back."""
    user = ada(tokens_per_day=BUDGET)

    async def five(request: Request) -> AsyncGenerator[SourceItem, None]:
        for _ in range(5):
            yield "x"
        await asyncio.Event().wait()

    async with serving(five, settings(user)) as served:
        client = await served.client(request("/chat", CHAT))
        await client.read_until(b'"x"', 5)
        assert await used(served, user) == BLOCK
        client.reset()
        record = await served.ended()
        await settled(served)
        assert (record.outcome, record.tokens) == (Outcome.CLIENT_LEFT, 5)
        assert await used(served, user) == 5
        totals = served.server.app.streams.totals.users["ada"]
        assert (totals.tokens, totals.delivered) == (5, record.delivered)


@pytest.mark.parametrize("failing", [RuntimeError("x" * 1_000_000), BudgetSpent("not the user's")])
async def test_a_source_that_fails_is_paid_for_what_it_gave(failing: Exception) -> None:
    """And the log gets no more of its words than a screenful."""
    user = ada(tokens_per_day=BUDGET)

    async def broken(request: Request) -> AsyncGenerator[SourceItem, None]:
        yield "x"
        await asyncio.sleep(0)
        raise failing

    async with serving(broken, settings(user)) as served:
        await ask(served.server.port, "/chat", CHAT)
        record = await served.ended()
        await settled(served)
        assert await used(served, user) == record.tokens == 1
        assert len(record.detail or "") < 5000


async def test_the_servers_end_settles_what_runs() -> None:
    """Cut or cancelled: the tokens that were not used are back before the ledger is closed."""
    user = ada(tokens_per_day=BUDGET)
    async with serving(lambda: repeat("x"), settings(user)) as served:
        client = await served.client(request("/chat", CHAT))
        await client.read_until(b'"x"')
        app = served.server.app
        connection = served.connection
        connection.task.cancel()
        record = await served.ended()
        await asyncio.wait([connection.task], timeout=10)
        await settled(served)
        assert record.outcome is Outcome.SHUTDOWN
        assert await app.ledger.used("ada", caps_of(user)) == [record.tokens]
        await until(lambda: app.streams.admission.streams == 0, "nothing runs")


class Slow:
    """A ledger whose settling takes until it is told."""

    def __init__(self) -> None:
        self.may_settle = asyncio.Event()
        self.refunded: list[int] = []

    async def reserve(self, user: str, caps: Any, wanted: int) -> Reservation:
        return Reservation(wanted, (1,))

    async def settle(self, user: str, caps: Any, reservation: Reservation, used: int) -> None:
        await self.may_settle.wait()
        self.refunded.append(reservation.tokens - used)

    def settle_nowait(self, user: str, caps: Any, reservation: Reservation, used: int) -> bool:
        return False

    async def used(self, user: str, caps: Any) -> list[int]:
        return [0]


async def test_a_refund_is_made_though_the_connections_task_is_cancelled_meanwhile() -> None:
    ledger = Slow()
    async with serving(lambda: repeat("x", 6), settings(ada(tokens_per_day=BUDGET))) as served:
        streams = served.server.app.streams
        streams.spending.ledger = ledger
        client = await served.client(request("/chat", CHAT))
        await client.read_until(b"[DONE]\n\n")
        await served.ended()
        task = served.connection.task
        task.cancel()
        await asyncio.wait([task], timeout=10)
        assert ledger.refunded == []
        ledger.may_settle.set()
        await streams.spending.settled()
        assert ledger.refunded == [BLOCK - 6]


# --- an upstream's own count ------------------------------------------------------------------------------------


def relayed(*pieces: bytes) -> tuple[bytes, ...]:
    return (HEAD, chunk(b"".join(pieces)), LAST_CHUNK)


def usage(completion_tokens: int) -> bytes:
    counted = {"prompt_tokens": 3, "completion_tokens": completion_tokens, "total_tokens": 3 + completion_tokens}
    return event({"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": counted})


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions", "/chat?credit=5"])
@pytest.mark.parametrize(
    ("said", "settled_for"), [((usage(57),), 57), ((usage(1),), 1), ((usage(0),), 2), ((), 2)], ids=str
)
async def test_the_upstreams_own_count_is_what_a_whole_answer_costs(
    path: str, said: tuple[bytes, ...], settled_for: int
) -> None:
    """More than passed by (thoughts), or less (several deltas to a token). None, or 0, is no count."""
    user = ada(tokens_per_day=BUDGET)
    async with FakeUpstream(answering(*relayed(delta("a"), delta("b"), FINISH, *said, DONE))) as upstream:
        configured = settings(user, upstream=upstream.url)
        async with serving(RoutedSource(configured), configured) as served:
            body = {**QUESTION, "stream": True} if path.startswith("/v1") else QUESTION
            reply = await ask(served.server.port, path, body)
            assert (reply.status, reply.whole) == (200, True)
            await settled(served)
            assert await used(served, user) == settled_for


async def test_a_budget_that_is_spent_closes_the_upstreams_answer() -> None:
    """What it would have said is not paid for."""

    async def endless(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        while True:
            await peer.send(chunk(delta("x")))

    user = ada(tokens_per_day=20)
    async with FakeUpstream(endless) as upstream:
        configured = settings(user, upstream=upstream.url)
        async with serving(RoutedSource(configured), configured) as served:
            reply = await ask(served.server.port, "/v1/chat/completions", {**QUESTION, "stream": True})
            record = await served.ended()
            async with asyncio.timeout(10):
                await upstream.left.wait()
            await settled(served)
            finish, done = reply.events[-2:]
            assert (finish["id"], finish["choices"][0]["finish_reason"], done) == ("c1", "length", "[DONE]")
            assert await used(served, user) == record.tokens >= 20


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/chat", "/text"])
async def test_thoughts_without_end_are_paid_for_whoever_is_shown_them(path: str) -> None:
    """They end with the budget. Who was told nothing until then gets 429, who was told something a whole answer."""
    thought = event(
        {"id": "c1", "choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}]}
    )

    async def thinking(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD, chunk(delta("")))
        while True:
            await peer.send(chunk(thought))
            await asyncio.sleep(0)

    user = ada(tokens_per_day=300)
    body = {**QUESTION, "stream": True}
    if path == "/api/chat":
        body = {"id": "c", "messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": "hello"}]}]}
    async with FakeUpstream(thinking) as upstream:
        configured = settings(user, upstream=upstream.url)
        async with serving(RoutedSource(configured), configured) as served:
            reply = await ask(served.server.port, path, body)
            record = await served.ended()
            async with asyncio.timeout(10):
                await upstream.left.wait()
            await settled(served)
            shown = path in ("/v1/chat/completions", "/api/chat")
            assert (reply.status, reply.whole) == (200 if shown else 429, True)
            assert record.outcome is Outcome.BUDGET
            assert 300 <= await used(served, user) < 300 + 256


# --- answers that are not streamed ------------------------------------------------------------------------------


async def test_a_whole_answer_of_our_own_ends_where_its_budget_does() -> None:
    user = ada(tokens_per_day=10)
    async with serving(lambda: repeat("x"), settings(user)) as served:
        reply = await ask(served.server.port, "/v1/chat/completions", QUESTION)
        assert reply.json["choices"][0]["message"]["content"] == "x" * 10
        assert reply.json["choices"][0]["finish_reason"] == "length"
        assert reply.json["rawstream"] == {"reason": "insufficient_quota"}
        await settled(served)
        assert await used(served, user) == 10
        refused = await ask(served.server.port, "/v1/chat/completions", QUESTION)
        assert (refused.status, refused.headers["x-should-retry"]) == (429, "false")
        assert refused.json["error"]["code"] == "insufficient_quota"
        assert served.server.app.streams.totals.users["ada"].tokens == 10


async def test_a_whole_answer_of_our_own_within_its_budget_costs_what_it_has() -> None:
    user = ada(tokens_per_day=1000)
    async with serving(lambda: repeat(["x", Token(data=DataPart("a", 1))], 30), settings(user)) as served:
        reply = await ask(served.server.port, "/v1/chat/completions", QUESTION)
        assert reply.json["choices"][0]["finish_reason"] == "stop"
        assert "rawstream" not in reply.json
        await settled(served)
        assert await used(served, user) == 30


def whole(**more: Any) -> bytes:
    message = {"role": "assistant", "content": "hello"}
    answer = {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], **more}
    body = json.dumps(answer).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, {"max_tokens": 100}),
        ({"max_tokens": 30}, {"max_tokens": 30}),
        ({"max_tokens": 3000}, {"max_tokens": 100}),
        ({"max_completion_tokens": 3000}, {"max_completion_tokens": 100}),
        ({"max_tokens": 3000, "n": 4}, {"max_tokens": 25, "n": 4}),
    ],
    ids=str,
)
async def test_an_upstream_is_asked_for_no_longer_an_answer_than_its_user_may_have(
    asked: dict[str, Any], sent: dict[str, Any]
) -> None:
    """Nobody could end it later. What it counts is what is paid."""
    user = ada(tokens_per_day=100)
    told = whole(usage={"prompt_tokens": 1, "completion_tokens": 17, "total_tokens": 18})
    async with FakeUpstream(answering(told)) as upstream:
        configured = settings(user, upstream=upstream.url)
        async with serving(RoutedSource(configured), configured) as served:
            reply = await ask(served.server.port, "/v1/chat/completions", {**QUESTION, **asked})
            assert reply.json["usage"]["completion_tokens"] == 17
            (request,) = upstream.requests
            limits = {
                key: value for key, value in request.json.items() if key in ("max_tokens", "max_completion_tokens", "n")
            }
            assert limits == sent
            await settled(served)
            assert await used(served, user) == 17


async def test_an_upstream_that_does_not_count_is_taken_at_its_most() -> None:
    user = ada(tokens_per_day=100)
    async with FakeUpstream(answering(whole())) as upstream:
        configured = settings(user, upstream=upstream.url)
        async with serving(RoutedSource(configured), configured) as served:
            await ask(served.server.port, "/v1/chat/completions", {**QUESTION, "max_tokens": 40})
            await settled(served)
            assert await used(served, user) == 40


async def test_a_user_without_a_budget_is_counted_all_the_same() -> None:
    user = ada()
    told = whole(usage={"prompt_tokens": 1, "completion_tokens": 17, "total_tokens": 18})
    async with FakeUpstream(answering(told)) as upstream:
        configured = settings(user, upstream=upstream.url)
        async with serving(RoutedSource(configured), configured) as served:
            await ask(served.server.port, "/v1/chat/completions", QUESTION)
            assert "max_tokens" not in upstream.requests[0].json
            assert served.server.app.streams.totals.users["ada"].tokens == 17


async def test_a_user_without_a_budget_streams_an_upstreams_answer_as_it_is() -> None:
    user = ada()
    async with FakeUpstream(answering(*relayed(delta("a"), delta("b"), FINISH, usage(57), DONE))) as upstream:
        configured = settings(user, upstream=upstream.url)
        async with serving(RoutedSource(configured), configured) as served:
            assert (await ask(served.server.port, "/chat", QUESTION)).whole
            assert (await served.ended()).user == "ada"
            assert served.server.app.streams.totals.users["ada"].tokens == 2


async def test_a_client_that_leaves_its_whole_answer_gets_its_tokens_back() -> None:
    user = ada(tokens_per_day=1000)
    began = asyncio.Event()

    async def three(request: Request) -> AsyncGenerator[SourceItem, None]:
        yield ["x", "y", "z"]
        began.set()
        await asyncio.Event().wait()

    async with serving(three, settings(user)) as served:
        client = await served.client(request("/v1/chat/completions", QUESTION))
        async with asyncio.timeout(10):
            await began.wait()
        client.reset()
        await until(lambda: served.server.app.streams.admission.streams == 0, "it has ended")
        await until(lambda: not served.server.app.connections, "its connection is gone")
        assert await used(served, user) == 3


# --- how many at once, and which models -------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body"), [("/chat", CHAT), ("/v1/chat/completions", QUESTION)])
async def test_a_user_has_no_more_streams_at_once_than_it_may(path: str, body: dict[str, Any]) -> None:
    """429 for the next one, whichever kind it is; when one ends there is room again."""
    go = asyncio.Event()

    async def waiting(request: Request) -> AsyncGenerator[SourceItem, None]:
        yield "x"
        await go.wait()

    async with serving(waiting, settings(ada(max_streams=2))) as served:
        clients = [await served.client(request("/chat", CHAT)) for _ in range(2)]
        for client in clients:
            await client.read_until(b'"x"')
        refused = await ask(served.server.port, path, body)
        assert refused.status == 429
        assert b'"too_many_streams"' in refused.body
        go.set()
        for client in clients:
            await client.read_until(b"[DONE]")
        await settled(served)
        assert (await ask(served.server.port, path, body)).status == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/chat", {**QUESTION, "model": "small-1"}, 200),
        ("/chat", {**QUESTION, "model": "large"}, 403),
        ("/chat", CHAT, 403),
        ("/v1/chat/completions", {**QUESTION, "model": "large", "stream": True}, 403),
        ("/v1/chat/completions", {**QUESTION, "model": "large"}, 403),
        ("/v1/chat/completions", {**QUESTION, "model": "small-2"}, 200),
    ],
)
async def test_a_user_has_the_models_that_it_may_use(path: str, body: dict[str, Any], status: int) -> None:
    """No other one, and not whichever is there when none is named."""
    user = ada(models=("small-*",), max_streams=1)
    async with serving(lambda: repeat("x", 3), settings(user)) as served:
        for _ in range(2):
            reply = await ask(served.server.port, path, body)
            assert reply.status == status, reply.body
            assert (b'"model_not_allowed"' in reply.body) == (status == 403)
            await settled(served)


async def test_what_is_refused_later_gives_back_what_was_set_aside() -> None:
    """The server is full, though the user has a budget: 503, and nothing is missing afterwards."""
    user = ada(tokens_per_day=1000, max_streams=5)
    go = asyncio.Event()

    async def waiting(request: Request) -> AsyncGenerator[SourceItem, None]:
        yield "x"
        await go.wait()

    async with serving(waiting, settings(user, max_streams=1)) as served:
        client = await served.client(request("/chat", CHAT))
        await client.read_until(b'"x"')
        for path, body in (("/chat", CHAT), ("/v1/chat/completions", QUESTION)):
            assert (await ask(served.server.port, path, body)).status == 503
        go.set()
        await client.read_until(b"[DONE]")
        await settled(served)
        assert await used(served, user) == 1
        (name,) = served.server.app.streams.totals.users
        assert name == "ada"


async def test_a_stream_can_be_read_while_another_one_is_told_that_the_budget_is_spent() -> None:
    """One connection, one request after the other: an answer that ends early leaves it in order."""
    async with serving(lambda: repeat("x"), settings(ada(tokens_per_day=4))) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.server.port)
        async with asyncio.timeout(10):
            for expected in (200, 429):
                writer.write(request("/chat", CHAT))
                assert (await read_reply(reader)).status == expected
        writer.close()

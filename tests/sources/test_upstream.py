"""The upstream source: what it asks, what it gives, and what each fault of an upstream becomes.

Numbers in the tests of faults are rows of the table of bad inputs that the server answers for.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from typing import Any

import pytest

from rawstream.errors import SettingsError, UpstreamFailed, UpstreamIdle, UpstreamRejected
from rawstream.model import CompletionSource, MeasuredTokenStream, Request, Token
from rawstream.settings import Settings
from rawstream.sources import http_connection
from rawstream.sources.upstream import UpstreamSource
from tests.sources.fake_upstream import (
    ANSWER,
    CLOSE_HEAD,
    DONE,
    FINISH,
    HEAD,
    LAST_CHUNK,
    FakeUpstream,
    Peer,
    Script,
    answering,
    answering_and_waiting,
    answering_once,
    chunk,
    delta,
    event,
)

KEY = "sk-very-secret-0123456789"
REQUEST = Request(messages=[{"role": "user", "content": "hi"}])


@asynccontextmanager
async def upstream(script: Script, **settings: Any) -> AsyncIterator[tuple[FakeUpstream, UpstreamSource]]:
    """A fake upstream, and a source that leads to it, with deadlines short enough for a test."""
    chosen: dict[str, Any] = {
        "upstream_first_token_timeout": 2.0,
        "upstream_idle_timeout": 2.0,
        "upstream_connect_timeout": 2.0,
        **settings,
    }
    async with asyncio.timeout(20), FakeUpstream(script) as fake:
        source = UpstreamSource(Settings(upstream=fake.url, **chosen))
        try:
            yield fake, source
        finally:
            await source.aclose()


async def collect(source: UpstreamSource, request: Request = REQUEST) -> list[Token]:
    stream = source.tokens(request)
    async with aclosing(stream):
        return [token async for tokens in stream for token in tokens]


async def collect_until_error(source: UpstreamSource) -> tuple[list[Token], BaseException]:
    """The tokens that came, and the error that ended them."""
    seen: list[Token] = []
    stream = source.tokens(REQUEST)
    async with aclosing(stream):
        try:
            async for tokens in stream:
                seen += tokens
        except (UpstreamFailed, UpstreamIdle) as error:
            return seen, error
    raise AssertionError("the stream ended as if it were whole")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens on sockets, which no event tells."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def texts(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


# --- what is asked


async def test_the_request_travels_on_untouched_but_for_streaming_and_usage(loop_kind: str) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "hé"}], "odd": {"kept": True}}]
    extra = {"temperature": 0.5, "tools": [{"a": 1}], "mock": {"tokens": 3}, "stream_options": {"other": 1}}
    request = Request(messages=messages, max_tokens=9, model="m1", user="u1", extra=extra)
    async with upstream(answering(HEAD + chunk(ANSWER) + LAST_CHUNK), upstream_api_key=KEY) as (fake, source):
        await collect(source, request)
    asked = fake.requests[0]
    assert asked.line == "POST /v1/chat/completions HTTP/1.1"
    assert asked.headers["authorization"] == f"bearer {KEY}"
    assert asked.headers["host"] == f"127.0.0.1:{fake.port}"
    assert asked.headers["accept-encoding"] == "identity"
    assert asked.json == {
        "messages": messages,
        "max_tokens": 9,
        "model": "m1",
        "user": "u1",
        "stream": True,
        "stream_options": {"other": 1, "include_usage": True},
        "temperature": 0.5,
        "tools": [{"a": 1}],
        "mock": {"tokens": 3},
    }
    assert extra["stream_options"] == {"other": 1}, "the request itself is not changed"


async def test_the_default_model_is_asked_for_only_when_the_client_names_none() -> None:
    async with upstream(answering(HEAD + chunk(ANSWER) + LAST_CHUNK), upstream_model="dflt") as (fake, source):
        await collect(source)
        await collect(source, Request(messages=[], model="mine"))
    assert [asked.json["model"] for asked in fake.requests] == ["dflt", "mine"]
    assert "authorization" not in fake.requests[0].headers


@pytest.mark.parametrize("url", ["ftp://x/v1", "x", "http://", "http://user:pw@host/v1", "http://host:port/v1"])
def test_a_url_that_leads_nowhere_is_refused_at_start_without_being_repeated(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        UpstreamSource(Settings(upstream=url))
    assert "pw" not in str(caught.value)


async def test_nothing_is_sent_before_the_first_token_is_asked_for() -> None:
    async with upstream(answering(HEAD)) as (fake, source):
        stream = source.tokens(REQUEST)
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert fake.connections == 0


# --- what is given


async def test_tokens_carry_text_raw_event_finish_reason_usage_and_choice(loop_kind: str) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    role = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]})
    calls = event({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0}]}, "logprobs": None}]})
    last = event({"choices": [], "usage": usage})
    second = delta("two", index=1)
    several = event({"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]})
    body = role + delta("Hi") + calls + second + several + FINISH + last + DONE
    async with upstream(answering(HEAD + chunk(body) + LAST_CHUNK)) as (_, source):
        tokens = await collect(source)
    assert [token.text for token in tokens] == ["", "Hi", "", "two", "a", "", ""]
    assert [token.index for token in tokens] == [0, 0, 0, 1, 0, 0, 0]
    assert [token.finish_reason for token in tokens] == [None, None, None, None, None, "stop", None]
    assert [b"data: " + (token.raw or b"") + b"\n\n" for token in tokens] == [
        role, delta("Hi"), calls, second, several, FINISH, last,
    ]  # fmt: skip
    assert tokens[-1].usage is not None
    assert tokens[-1].usage.total_tokens == 7


async def test_events_of_one_read_come_together_and_later_ones_later(loop_kind: str) -> None:
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(delta("a")) + chunk(delta("b")))
        await gate.wait()
        await peer.send(chunk(delta("c") + FINISH + DONE) + LAST_CHUNK)

    async with upstream(script) as (_, source):
        stream = source.tokens(REQUEST)
        first = await anext(stream)
        assert texts(first) == "ab"
        gate.set()
        assert texts([token async for tokens in stream for token in tokens]) == "c"


async def test_the_same_tokens_come_however_the_bytes_are_cut(loop_kind: str) -> None:
    wire = HEAD + b"".join(chunk(piece) for piece in (ANSWER[:40], ANSWER[40:41], ANSWER[41:])) + LAST_CHUNK
    for size in (1, 7):
        script = answering(*[wire[at : at + size] for at in range(0, len(wire), size)])
        async with upstream(script) as (_, source):
            assert texts(await collect(source)) == "Hello world"


async def test_one_answer_as_json_instead_of_a_stream_is_relayed_as_one_token() -> None:
    message = {"role": "assistant", "content": "whole", "tool_calls": [{"id": "t"}]}
    answer = {
        "id": "c", "object": "chat.completion", "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }  # fmt: skip
    body = json.dumps(answer).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with upstream(answering(head + body)) as (_, source):
        (token,) = await collect(source)
    assert (token.text, token.finish_reason) == ("whole", "stop")
    assert token.usage is not None
    relayed = json.loads(token.raw or b"")
    assert relayed["object"] == "chat.completion.chunk"
    assert relayed["choices"][0]["delta"]["tool_calls"] == [{"id": "t", "index": 0}]


async def test_whole_answers_and_models_are_passed_through_byte_for_byte(loop_kind: str) -> None:
    body = b'{ "odd":  "spacing",\n "choices": [] }'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with upstream(answering(head + body)) as (fake, source):
        assert await source.complete(Request(messages=[], extra={"stream_options": {}})) == body
        assert await source.models() == body
        assert fake.connections == 1
    assert [asked.line.split()[:2] for asked in fake.requests] == [
        ["POST", "/v1/chat/completions"],
        ["GET", "/v1/models"],
    ]
    assert fake.requests[0].json == {"messages": [], "stream": False}


def test_it_is_a_source_that_completes_and_its_streams_are_measured() -> None:
    source = UpstreamSource(Settings(upstream="http://127.0.0.1:1/v1"))
    assert isinstance(source, CompletionSource)
    assert isinstance(source.tokens(REQUEST), MeasuredTokenStream)


# --- connections


async def test_a_finished_streams_connection_is_used_again(loop_kind: str) -> None:
    async with upstream(answering(HEAD + chunk(ANSWER), LAST_CHUNK)) as (fake, source):
        for _ in range(3):
            assert texts(await collect(source)) == "Hello world"
            await until(lambda: source.client.idle_connections == 1)
        assert fake.connections == 1


async def test_the_end_of_the_body_may_come_a_little_after_done_and_nobody_waits_for_it(loop_kind: str) -> None:
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(ANSWER))
        await gate.wait()
        await peer.send(LAST_CHUNK)
        await peer.closed()

    async with upstream(script) as (_, source):
        assert texts(await collect(source)) == "Hello world"
        assert (source.client.open_connections, source.client.idle_connections) == (1, 0)
        gate.set()
        await until(lambda: source.client.idle_connections == 1)


async def test_an_upstream_that_never_ends_its_body_after_done_loses_the_connection(loop_kind: str) -> None:
    async with upstream(answering_and_waiting(HEAD + chunk(ANSWER))) as (fake, source):
        assert texts(await collect(source)) == "Hello world"
        await asyncio.wait_for(fake.left.wait(), 1)
        assert source.client.open_connections == 0


async def test_closing_a_stream_closes_its_connection_at_once(loop_kind: str) -> None:
    """Row 50, and what frees a model's slot."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        while True:
            await peer.send(chunk(delta("x")), apart=0.001)

    async with upstream(script) as (fake, source):
        stream = source.tokens(REQUEST)
        await anext(stream)
        await stream.aclose()
        await stream.aclose()
        await asyncio.wait_for(fake.left.wait(), 1)
        assert source.client.open_connections == 0


async def test_cancelling_a_waiting_stream_closes_its_connection(loop_kind: str) -> None:
    for before in (b"", HEAD, HEAD + chunk(delta("a"))):
        async with upstream(answering_and_waiting(before)) as (fake, source):
            pulling = asyncio.ensure_future(collect(source))
            await until(lambda fake=fake: bool(fake.requests))  # type: ignore[misc]  # bound early on purpose
            await asyncio.sleep(0.01)
            pulling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pulling
            await asyncio.wait_for(fake.left.wait(), 1)
            assert source.client.open_connections == 0


async def test_a_pooled_connection_closed_under_us_costs_one_safe_retry_and_no_error(loop_kind: str) -> None:
    """Row 49: the close and the next request cross each other."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(ANSWER) + LAST_CHUNK)
        if len(fake.requests) == 1:
            await peer.request()  # read, and closed without an answer
            peer.reset()

    async with upstream(script) as (fake, source):
        assert texts(await collect(source)) == "Hello world"
        assert texts(await collect(source)) == "Hello world"
        assert fake.connections == 2
        assert len(fake.requests) == 3


async def test_a_new_connection_closed_before_an_answer_is_not_tried_again() -> None:
    async with upstream(answering_once()) as (fake, source):
        with pytest.raises(UpstreamFailed):
            await collect(source)
        assert fake.connections == 1


async def test_an_idle_connection_that_ends_or_speaks_is_dropped_there_and_then(loop_kind: str) -> None:
    for surplus in (b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n"):
        close = asyncio.Event()

        async def script(peer: Peer, surplus: bytes = surplus, close: asyncio.Event = close) -> None:
            await peer.request()
            await peer.send(HEAD + chunk(ANSWER) + LAST_CHUNK)
            await close.wait()
            await peer.send(surplus)
            if not surplus:
                return
            await peer.closed()

        async with upstream(script) as (_, source):
            await collect(source)
            assert source.client.idle_connections == 1
            close.set()
            await until(lambda source=source: source.client.open_connections == 0)  # type: ignore[misc]  # as above


async def test_an_idle_connection_is_dropped_after_its_time(loop_kind: str) -> None:
    script = answering(HEAD + chunk(ANSWER) + LAST_CHUNK)
    async with upstream(script, upstream_pool_idle=0.05) as (_, source):
        await collect(source)
        assert source.client.idle_connections == 1
        await until(lambda: source.client.open_connections == 0)


async def test_no_more_connections_are_kept_than_the_pool_may_hold() -> None:
    script = answering(HEAD + chunk(ANSWER) + LAST_CHUNK)
    async with upstream(script, upstream_pool=2) as (_, source):
        await asyncio.gather(*(collect(source) for _ in range(5)))
        assert source.client.idle_connections == 2
        await until(lambda: source.client.open_connections == 2)
    async with upstream(script, upstream_pool=0) as (_, source):
        await collect(source)
        assert source.client.open_connections == 0


@pytest.mark.parametrize(
    "end",
    [LAST_CHUNK + b"EVIL!", LAST_CHUNK + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"],
    ids=["bytes", "a response"],
)
async def test_bytes_after_the_final_chunk_keep_a_connection_out_of_the_pool(end: bytes, loop_kind: str) -> None:
    """Row 48."""
    async with upstream(answering(HEAD + chunk(ANSWER) + end)) as (fake, source):
        assert texts(await collect(source)) == "Hello world"
        assert source.client.idle_connections == 0
        assert texts(await collect(source)) == "Hello world"
        assert fake.connections == 2


# --- faults before the stream


async def test_refused_is_502_at_once() -> None:
    """Row 37."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        source = UpstreamSource(Settings(upstream=f"http://127.0.0.1:{bound.getsockname()[1]}/v1"))
        with pytest.raises(UpstreamFailed, match="could not be reached") as caught:
            await collect(source)
    assert caught.value.status == 502
    assert "127.0.0.1" not in str(caught.value)


async def test_a_name_without_an_address_is_502() -> None:
    source = UpstreamSource(Settings(upstream="http://no-such-host.invalid/v1"))
    with pytest.raises(UpstreamFailed, match="could not be reached"):
        await collect(source)


@contextmanager
def leading_nowhere() -> Iterator[int]:
    """A port whose listener's queue is full: the kernel answers no further SYN."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


async def test_an_address_that_leads_nowhere_leaves_time_for_the_next(
    loop_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As hosts with IPv6 that is half there have one."""

    async def addresses(*_: object) -> list[tuple[int, tuple[str, int]]]:
        return [(socket.AF_INET, ("127.0.0.1", port)) for port in ports]

    async with upstream(answering(HEAD + chunk(ANSWER) + LAST_CHUNK), upstream_connect_timeout=1.0) as (fake, source):
        with leading_nowhere() as nowhere:
            monkeypatch.setattr(http_connection, "_addresses", addresses)
            ports = [nowhere, fake.port]
            assert texts(await collect(source)) == "Hello world"
            await source.aclose()
            ports = [nowhere, nowhere]
            with pytest.raises(UpstreamFailed, match="could not be reached within 1 s"):
                await collect(source)


async def test_a_list_of_models_may_not_take_as_long_as_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One upstream of several that says nothing would hold up the list of them all."""
    monkeypatch.setattr("rawstream.sources.upstream.LIST_WITHIN", 0.1)
    async with upstream(answering_and_waiting(), upstream_first_token_timeout=120.0) as (_, source):
        with pytest.raises(UpstreamIdle, match=r"the upstream sent no answer within 0\.1 s"):
            await source.models()


async def _close(peer: Peer) -> None:
    await peer.request()


async def _reset(peer: Peer) -> None:
    await peer.request()
    peer.reset()


OK = b"HTTP/1.1 200 OK\r\n"
STREAM = b"Content-Type: text/event-stream\r\n"


@pytest.mark.parametrize(
    "script",
    [
        _close,
        _reset,
        answering_once(b"\x00\x01garbage\xff\r\n\r\n"),
        answering_once(b"<html>HTTP/0.9 says hello</html>"),
        answering_once(b"\x15\x03\x01\x00\x02\x02\x16"),
        answering_once(OK + b"X-Long: " + b"a" * 2_000_000 + b"\r\n\r\n"),
        answering_once(OK + b"A: b\r\n" * 20_000 + b"\r\n"),
        answering_once(OK + b"A: b\r\n" * 101 + b"\r\n"),
        answering_once(OK + b"A: b\rc\r\n\r\n"),
        answering_once(OK + b"A: b\0c\r\n\r\n"),
        answering_once(OK + b"A: b\r\n folded\r\n\r\n"),
        answering_once(OK + b"A b\r\n\r\n"),
        answering_once(OK + STREAM + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + LAST_CHUNK),
        answering_once(OK + STREAM + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
        answering_once(OK + STREAM + b"Content-Length: -5\r\n\r\nhello"),
        answering_once(OK + STREAM + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + LAST_CHUNK),
        answering_once(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + LAST_CHUNK),
        answering_once(b"HTTP/2.0 200 OK\r\n\r\n"),
        answering_once(b"HTTP/1.1 999 Odd\r\n\r\n"),
        answering_once(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
        answering_once(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"),
        answering_once(b"HTTP/1.1 204 No Content\r\n\r\n"),
        answering_once(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 0\r\n\r\n"),
        answering_once(OK + b"Content-Type: text/html\r\nContent-Length: 4\r\n\r\nhtml"),
        answering_once(OK + b"Content-Length: 4\r\n\r\nhtml"),
        answering_once(OK + STREAM + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\ngzip"),
        answering_once(OK + b"Content-Type: application/json\r\nContent-Length: 4\r\n\r\n{..}"),
        answering_once(OK + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + b'{"choices": [{"ind'),
        answering_once(OK + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"),
    ],
)
async def test_an_answer_that_is_none_is_502_within_a_second_and_leaves_no_connection(
    script: Script, loop_kind: str
) -> None:
    """Rows 37, 40 and 41."""
    async with upstream(script) as (_, source):
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(UpstreamFailed) as caught:
            await collect(source)
        assert caught.value.status == 502
        assert loop.time() - began < 1
        assert source.client.open_connections - source.client.idle_connections == 0


async def _drip(peer: Peer) -> None:
    await peer.request()
    await peer.send(*[HEAD[at : at + 1] for at in range(len(HEAD))], apart=0.02)


async def _interim(peer: Peer) -> None:
    await peer.request()
    while True:
        await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n", apart=0.01)


async def _interim_flood(peer: Peer) -> None:
    await peer.request()
    while True:
        await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000)


@pytest.mark.parametrize(
    "script", [answering_and_waiting(), _drip, _interim, _interim_flood, answering_and_waiting(HEAD)]
)
async def test_an_upstream_that_gives_no_first_token_is_504_at_the_deadline(script: Script, loop_kind: str) -> None:
    """Row 38: silence, drips and endless interim answers, and a head with nothing behind it."""
    async with upstream(script, upstream_first_token_timeout=0.15) as (fake, source):
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(UpstreamIdle) as caught:
            await collect(source)
        assert caught.value.status == 504
        assert 0.14 < loop.time() - began < 1
        await asyncio.wait_for(fake.left.wait(), 1)


async def test_interim_answers_before_the_real_one_are_passed_over(loop_kind: str) -> None:
    script = answering(
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 \r\n\r\n" + HEAD, chunk(ANSWER) + LAST_CHUNK
    )
    async with upstream(script) as (_, source):
        assert texts(await collect(source)) == "Hello world"


def refusal(status: int, body: bytes, *headers: str, kind: str = "application/json") -> Script:
    lines = [f"HTTP/1.1 {status} No", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers, "", ""]
    return answering_once("\r\n".join(lines).encode() + body)


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
async def test_an_error_status_is_relayed_with_its_json_and_its_retry_headers(status: int, loop_kind: str) -> None:
    """Row 39."""
    body = b'{"error": {"message": "not now", "type": "x"}}'
    script = refusal(status, body, "Retry-After: 7", "Retry-After-Ms: 7000", "X-Should-Retry: false", "Set-Cookie: a=b")
    async with upstream(script, upstream_api_key=KEY) as (_, source):
        with pytest.raises(UpstreamRejected) as caught:
            await collect(source)
    error = caught.value
    assert (error.status, error.body, error.retry_after) == (status, body, 7.0)
    assert str(error) == "not now"
    assert error.headers == (("retry-after", "7"), ("retry-after-ms", "7000"), ("x-should-retry", "false"))


@pytest.mark.parametrize(
    "script",
    [
        refusal(500, b"<html>oops</html>", kind="text/html"),
        refusal(500, b"{broken"),
        refusal(500, b"{" + b" " * 70_000 + b"}"),
        answering_once(b"HTTP/1.1 500 Oops\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"),
        answering_once(b"HTTP/1.1 500 Oops\r\nContent-Type: application/json\r\n\r\n{"),
        refusal(500, b'{"error": "you sent %s"}' % KEY.encode()),
    ],
)
async def test_an_error_status_without_json_that_can_be_relayed_keeps_its_status(script: Script) -> None:
    async with upstream(script, upstream_api_key=KEY) as (_, source):
        with pytest.raises(UpstreamRejected) as caught:
            await collect(source)
    assert (caught.value.status, caught.value.body) == (500, None)
    assert KEY not in repr(caught.value.args) + str(caught.value.detail)


@pytest.mark.parametrize("status", [401, 403])
async def test_what_the_upstream_says_about_our_key_goes_no_further(status: int) -> None:
    body = b'{"error": {"message": "Incorrect API key provided: sk-very-s*****"}}'
    async with upstream(refusal(status, body), upstream_api_key=KEY) as (_, source):
        with pytest.raises(UpstreamRejected) as caught:
            await collect(source)
    assert (caught.value.status, caught.value.body) == (status, None)
    assert "sk-" not in str(caught.value) + str(caught.value.detail)


async def test_a_key_that_is_no_header_value_is_refused_without_being_told() -> None:
    async with upstream(answering(HEAD), upstream_api_key="sk-bad\nvalue") as (_, source):
        with pytest.raises(Exception, match="valid HTTP") as caught:
            await collect(source)
        assert "sk-bad" not in str(caught.value)


# --- faults within the stream

TWO = chunk(delta("Hello")) + chunk(delta(" world"))


async def _reset_midway(peer: Peer) -> None:
    await peer.request()
    await peer.send(HEAD + TWO, apart=0.05)
    peer.reset()


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (answering_once(HEAD), ""),
        (answering_once(HEAD + TWO), "Hello world"),
        (answering_once(HEAD + TWO + LAST_CHUNK), "Hello world"),
        (answering_once(HEAD + TWO + chunk(delta("!")[:-9])), "Hello world"),
        (answering_once(HEAD + TWO + chunk(delta("!")[:-1]) + LAST_CHUNK), "Hello world"),
        (answering_once(HEAD + TWO + chunk(delta("!"))[:-9]), "Hello world"),
        (answering_once(HEAD + TWO + chunk(FINISH)), "Hello world"),
        (answering_once(HEAD + TWO + chunk(FINISH) + b"0\r\n"), "Hello world"),
        (_reset_midway, "Hello world"),
        (answering_once(HEAD + TWO + b"zz\r\n" + ANSWER), "Hello world"),
        (answering_once(HEAD + TWO + b"0x5\r\nhello\r\n"), "Hello world"),
        (answering_once(HEAD + TWO + b"5 \r\nhello\r\n"), "Hello world"),
        (answering_once(HEAD + TWO + b"\r\n"), "Hello world"),
        (answering_once(HEAD + TWO + b"5\r\nhello!!"), "Hello world"),
        (answering_once(HEAD + TWO + b"1" * 17 + b"\r\n"), "Hello world"),
        (answering_once(OK + STREAM + b"Content-Length: 9999\r\n\r\n" + ANSWER[:-14]), "Hello world"),
        (answering_once(CLOSE_HEAD + delta("Hello") + delta(" world")), "Hello world"),
        (answering_once(CLOSE_HEAD + delta("Hello") + delta(" world") + FINISH), "Hello world"),
        (answering_once(CLOSE_HEAD + delta("Hello") + delta(" world")[:30]), "Hello"),
    ],
)
async def test_a_stream_that_is_cut_never_looks_whole_and_half_an_event_is_none(
    script: Script, text: str, loop_kind: str
) -> None:
    """Rows 42 and 47: after the head, between events, within an event, within a chunk, by RST, by bad framing."""
    async with upstream(script) as (_, source):
        tokens, error = await collect_until_error(source)
        assert texts(tokens) == text
        assert isinstance(error, UpstreamFailed)
        assert error.outcome == "upstream_failed"
        await until(lambda: source.client.open_connections - source.client.idle_connections == 0)


@pytest.mark.parametrize(
    "pieces",
    [
        (HEAD, chunk(ANSWER), LAST_CHUNK),
        (HEAD + chunk(ANSWER) + b"0\r\nTrailer: x\r\n\r\n",),
        (HEAD + chunk(ANSWER + delta("late") + DONE) + LAST_CHUNK,),
        (HEAD + chunk(ANSWER), chunk(delta("late")) + LAST_CHUNK),
        (HEAD + chunk(ANSWER[: -len(DONE)]) + LAST_CHUNK,),
        (CLOSE_HEAD + ANSWER,),
        (OK + STREAM + b"Content-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER,),
        (b"HTTP/1.0 200 OK\r\n" + STREAM + b"\r\n" + ANSWER,),
        (HEAD + b"%x;name=value\r\n" % len(ANSWER) + ANSWER + b"\r\n" + LAST_CHUNK,),
    ],
    ids=["plain", "trailer", "more after DONE", "a chunk after DONE", "no DONE", "close", "length", "1.0", "extension"],
)
async def test_a_stream_that_is_whole_ends_well(pieces: tuple[bytes, ...], loop_kind: str) -> None:
    """Row 47."""
    async with upstream(answering_once(*pieces)) as (_, source):
        assert texts(await collect(source)) == "Hello world"


async def test_an_error_told_in_the_stream_is_ours_to_tell_after_the_tokens_before_it(loop_kind: str) -> None:
    told = event({"error": {"message": "out of memory", "code": 500}})
    async with upstream(answering_once(HEAD + chunk(delta("Hello") + told + DONE) + LAST_CHUNK)) as (_, source):
        tokens, error = await collect_until_error(source)
    assert texts(tokens) == "Hello"
    assert str(error) == "out of memory"


@pytest.mark.parametrize("drip", [b": ping\n\n", b"event: x\n\n", b"d", b"\n\n", b"data:\n\n"])
async def test_pings_and_drips_are_no_progress(drip: bytes, loop_kind: str) -> None:
    """Row 43: the idle deadline is fed by events with data alone."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(delta("Hello")))
        while True:
            await peer.send(chunk(drip), apart=0.02)

    async with upstream(script, upstream_idle_timeout=0.15) as (fake, source):
        tokens, error = await collect_until_error(source)
        assert texts(tokens) == "Hello"
        assert isinstance(error, UpstreamIdle)
        assert error.status == 504
        await asyncio.wait_for(fake.left.wait(), 1)


async def test_events_feed_the_idle_deadline(loop_kind: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD, *[chunk(delta("x"))] * 6, apart=0.06)
        await peer.send(chunk(ANSWER) + LAST_CHUNK)

    async with upstream(script, upstream_idle_timeout=0.2) as (_, source):
        assert texts(await collect(source)) == "xxxxxxHello world"


async def test_a_stream_that_nobody_pulls_does_not_time_out(loop_kind: str) -> None:
    async with upstream(answering(HEAD, chunk(delta("a")), chunk(ANSWER) + LAST_CHUNK), upstream_idle_timeout=0.05) as (
        _,
        source,
    ):
        stream = source.tokens(REQUEST)
        seen = await anext(stream)
        await asyncio.sleep(0.15)  # the pause itself, three deadlines long
        seen += [token async for tokens in stream for token in tokens]
        assert texts(seen) == "aHello world"


def _endless(line: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(b"data: "))
        for _ in range(32):
            await peer.send(chunk(line * (1024 * 1024 // len(line))))
        await peer.closed()

    return script


@pytest.mark.parametrize("line", [b"a" * 1024, b"data: " + b"a" * 1017 + b"\n"], ids=["one line", "many lines"])
async def test_an_event_that_never_ends_is_cut_at_its_bound(line: bytes, loop_kind: str) -> None:
    """Row 44."""
    async with upstream(_endless(line), upstream_max_event=65536) as (fake, source):
        stream = source.tokens(REQUEST)
        with pytest.raises(UpstreamFailed, match="65536"):
            await anext(stream)
        assert stream.statistics().peak_buffered <= 2 * 65536
        await asyncio.wait_for(fake.left.wait(), 1)


@pytest.mark.parametrize(
    "body",
    [
        ANSWER.replace(b"\n", b"\r"),
        ANSWER.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + ANSWER,
        b": comment\n\n" + ANSWER,
        b"retry: 5\nid: 7\nevent: x\n" + ANSWER,
        ANSWER.replace(b"data: ", b"data:"),
    ],
    ids=["CR", "CRLF", "BOM", "comment", "fields", "no space"],
)
async def test_every_line_end_that_the_specification_knows_gives_the_same_events(body: bytes, loop_kind: str) -> None:
    """Row 46."""
    for size in (1, 1000):
        cut = [chunk(body[at : at + size]) for at in range(0, len(body), size)]
        async with upstream(answering_once(HEAD, *cut, LAST_CHUNK)) as (_, source):
            assert texts(await collect(source)) == "Hello world"


@pytest.mark.parametrize(
    "payload",
    [
        b"not json",
        b"\xff\xfe",
        b"[1]",
        b'"text"',
        b"nul\0l",
        b'{"choices": 5}',
        b"[" * 100_000,
        b'{"choices":[{"delta":3}]}',
    ],
    ids=lambda payload: payload[:20].hex(),
)
async def test_data_that_is_not_understood_is_relayed_and_raises_nothing(payload: bytes) -> None:
    """Row 46."""
    body = delta("a") + b"data: " + payload + b"\n\n" + ANSWER
    async with upstream(answering_once(HEAD + chunk(body) + LAST_CHUNK), upstream_max_event=200_000) as (_, source):
        tokens = await collect(source)
    assert [token.raw for token in tokens][1] == payload
    assert texts(tokens) == "aHello world"


async def test_the_raw_event_is_one_line_even_where_its_data_was_several() -> None:
    body = b'data: {"choices": [{"index": 0,\ndata: "delta": {"content": "x"}}]}\n\n' + FINISH + DONE
    async with upstream(answering_once(HEAD + chunk(body) + LAST_CHUNK)) as (_, source):
        tokens = await collect(source)
    assert tokens[0].text == "x"
    assert tokens[0].raw is not None
    assert b"\n" not in tokens[0].raw


# --- whole answers


@pytest.mark.parametrize("ask", [lambda source: source.complete(REQUEST), lambda source: source.models()])
async def test_whole_answers_fail_as_streams_do(ask: Callable[[UpstreamSource], Awaitable[bytes]]) -> None:
    for script in (
        answering_once(OK + b"Content-Type: text/html\r\nContent-Length: 1\r\n\r\n<"),
        answering_once(OK + b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{}"),
        answering_once(OK + b"Content-Type: application/json\r\n\r\n{"),
        _close,
    ):
        async with upstream(script) as (_, source):
            with pytest.raises(UpstreamFailed):
                await ask(source)
            assert source.client.open_connections == 0
    async with upstream(refusal(429, b'{"error": {"message": "slow down"}}', "Retry-After: 3")) as (_, source):
        with pytest.raises(UpstreamRejected) as caught:
            await ask(source)
        assert caught.value.retry_after == 3.0


# --- our key, whatever the upstream does with it


@pytest.mark.parametrize("written", [KEY, "sk/very/secret", "sk\\/very\\/secret"])
async def test_an_error_told_in_the_stream_that_quotes_our_key_is_not_passed_on(written: str) -> None:
    """The stream fails all the same; what was said stays between the upstream and us."""
    key = KEY if written == KEY else "sk/very/secret"
    told = b'data: {"error": {"message": "Incorrect API key provided: %b"}}\n\n' % written.encode()
    async with upstream(answering(HEAD + chunk(delta("Hello") + told)), upstream_api_key=key) as (_, source):
        seen, error = await collect_until_error(source)
    assert texts(seen) == "Hello"
    assert key not in str(error) + str(getattr(error, "detail", ""))
    assert "secret" not in str(error)


async def test_a_whole_answer_that_quotes_our_key_is_not_passed_on() -> None:
    """200 or not: nobody else's to read."""
    body = b'{"error": "you sent %b"}' % KEY.encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with upstream(answering(head + body), upstream_api_key=KEY) as (_, source):
        with pytest.raises(UpstreamFailed) as whole:
            await source.complete(REQUEST)
        _, streamed = await collect_until_error(source)
    assert KEY not in str(whole.value) + str(streamed)


async def test_a_retry_after_beyond_reason_is_passed_over() -> None:
    """309 digits are no number of seconds; the refusal itself is relayed."""
    async with upstream(refusal(429, b'{"error": "slow"}', "Retry-After: " + "9" * 309)) as (_, source):
        with pytest.raises(UpstreamRejected) as caught:
            await collect(source)
    assert (caught.value.status, caught.value.retry_after) == (429, None)


async def test_half_an_end_after_done_holds_up_nobody(loop_kind: str) -> None:
    """The answer is whole at [DONE]; an upstream that hangs in the last chunk costs its connection, and no time."""
    script = answering_and_waiting(HEAD + chunk(ANSWER) + b"0\r\n")
    async with upstream(script, upstream_idle_timeout=15.0) as (_, source):
        async with asyncio.timeout(5):
            assert texts(await collect(source)) == "Hello world"


async def test_pings_without_end_do_not_outlive_the_idle_deadline(loop_kind: str) -> None:
    """However densely they come: the deadline is set anew for each wait, and passes only once."""

    async def pinging(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(delta("Hello")))
        while True:
            await peer.send(chunk(b": ping\n\n"))

    async with upstream(pinging, upstream_idle_timeout=0.2) as (_, source):
        seen, error = await collect_until_error(source)
    assert texts(seen) == "Hello"
    assert isinstance(error, UpstreamIdle)

"""``rawstream.stream``: the client half reads no further than it is asked, and a cut answer never looks whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import rawstream
from rawstream.errors import MisuseError
from tests.support.flow import until

ENDLESS = {"tokens": None, "tokens_per_second": None}
KIB = 1024


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[rawstream.Server]:
    server = rawstream.Server(rawstream.Settings(port=0, drain_timeout=0, **settings))
    await server.start()
    try:
        yield server
    finally:
        server.hurry()
        await server.close(drain=0)


@asynccontextmanager
async def canned(answer: bytes, *, then_wait: bool = False) -> AsyncIterator[tuple[str, asyncio.Queue[bytes]]]:
    """A server that reads one request, answers with these bytes, and closes; and the requests that it saw."""
    seen: asyncio.Queue[bytes] = asyncio.Queue()
    left: asyncio.Queue[bytes] = asyncio.Queue()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length")
                ),
                0,
            )
            seen.put_nowait(head + await reader.readexactly(length))
            writer.write(answer)
            await writer.drain()
            if then_wait:
                left.put_nowait(await reader.read())
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions", seen
    finally:
        server.close()
        async with asyncio.timeout(5):
            await server.wait_closed()


def sse(*payloads: str, end: bool = True) -> bytes:
    """A whole answer, chunked; ``end=False`` leaves the last chunk out."""
    body = "".join(f"data: {payload}\n\n" for payload in payloads).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n" % (len(body), body) + (b"0\r\n\r\n" if end else b"")


def plain_json(status: str, body: object, *headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {len(content)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


def delta(text: str, finish: str | None = None) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


async def texts(stream: rawstream.EventStream) -> list[str]:
    async with asyncio.timeout(10):
        return [event.text async for event in stream]


# --- demand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions", "/text"])
async def test_it_reads_no_further_than_it_is_asked(loop_kind: str, path: str) -> None:
    """An endless source, unpaced: after ten events the source stands still, at a bounded distance."""
    async with serving(stall_timeout=600) as server:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "mock": ENDLESS}
        async with rawstream.stream(server.url + path, json=body) as events:
            async with asyncio.timeout(10):
                for _ in range(10):
                    await anext(events)
            stream = next(iter(server.app.streams))
            await until(lambda: stream.meter.waiting_for == "client", "the server waits for us")
            taken = stream.meter.bytes
            ahead = taken - events.statistics().bytes
            # Our kernel's receive buffer, our reader, and what the server itself may hold.
            assert ahead < 96 * KIB
            assert events.statistics().buffered <= 32 * KIB
            async with asyncio.timeout(10):
                while events.statistics().bytes < taken + 200 * KIB:
                    await anext(events)
            assert events.statistics().peak_buffered <= 32 * KIB
            await until(lambda: stream.meter.waiting_for == "client", "the server waits for us again")
            assert stream.meter.bytes - events.statistics().bytes < 96 * KIB


async def test_a_paced_reader_sets_the_pace_of_the_source(loop_kind: str) -> None:
    """Tokens pulled from the source follow the events taken, however long the reader takes."""
    async with serving(stall_timeout=600) as server:
        async with rawstream.stream(server.url + "/chat", json={"prompt": "hi", "mock": ENDLESS}) as events:
            await anext(events)
            stream = next(iter(server.app.streams))
            await until(lambda: stream.meter.waiting_for == "client", "the server waits for us")
            before = stream.meter.tokens
            for _ in range(5):
                await anext(events)
            for _ in range(20):
                await asyncio.sleep(0)
            assert stream.meter.tokens == before
            assert events.statistics().events == 6


# --- leaving ------------------------------------------------------------------------------------------------


async def one_outcome(server: rawstream.Server, outcome: str) -> None:
    await until(lambda: len(server.app.streams) == 0, "the stream has ended")
    assert {name: n for name, n in server.app.streams.totals.outcomes.items() if n} == {outcome: 1}


async def test_breaking_out_of_the_loop_stops_the_generation(loop_kind: str) -> None:
    """``break`` in a loop over the call itself closes the connection: nothing else is needed."""
    async with serving() as server:
        async with asyncio.timeout(5):
            async for event in rawstream.stream(server.url + "/chat", json={"prompt": "hi", "mock": ENDLESS}):
                assert event.text
                break
        await one_outcome(server, "client_left")


async def test_leaving_the_block_stops_the_generation(loop_kind: str) -> None:
    """``async with`` closes the connection, also when an exception leaves it; closing twice does no harm."""
    async with serving() as server:
        events = rawstream.stream(server.url + "/chat", json={"prompt": "hi", "mock": ENDLESS})

        async def fail() -> None:
            async with events:
                await anext(events)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        await one_outcome(server, "client_left")
        await events.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_cancelling_a_wait_stops_the_generation(loop_kind: str) -> None:
    """A task that is cancelled while it waits for an event leaves no connection behind."""
    async with serving() as server:
        slow = {"tokens": None, "tokens_per_second": 0.01, "first_token_seconds": 0}
        got = asyncio.Event()

        async def read() -> None:
            async with rawstream.stream(server.url + "/chat", json={"prompt": "hi", "mock": slow}) as events:
                async for _ in events:
                    got.set()

        task = asyncio.create_task(read(), name="reader")
        async with asyncio.timeout(5):
            await got.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await one_outcome(server, "client_left")


async def test_a_whole_answer_counts_as_completed(loop_kind: str) -> None:
    """Reading to the end leaves after the framing's end, so the server sees no client leave early."""
    async with serving() as server:
        mock = {"tokens": 5, "tokens_per_second": None}
        assert len(await texts(rawstream.stream(server.url + "/chat", json={"prompt": "hi", "mock": mock}))) == 5
        await one_outcome(server, "completed")


# --- dialects -----------------------------------------------------------------------------------------------


async def test_all_dialects_of_a_server_give_the_same_text() -> None:
    """``/chat``, ``/stream``, ``/text``, OpenAI's wire streamed and whole, and the AI SDK's: one answer."""
    async with serving() as server:
        url = server.url
        chat = await texts(rawstream.stream(url + "/chat", "hello", max_tokens=8))
        assert len(chat) == 8
        messages = [{"role": "user", "content": "hello"}]
        asked: list[rawstream.EventStream] = [
            rawstream.stream(url + "/chat", messages=messages, max_tokens=8),
            rawstream.stream(url + "/stream", "hello", max_tokens=8),
            rawstream.stream(url + "/stream?prompt=hello&max_tokens=8"),
            rawstream.stream(url + "/text", "hello", max_tokens=8),
            rawstream.stream(url + "/v1/chat/completions", "hello", max_tokens=8, model="m"),
            rawstream.stream(url + "/v1/chat/completions", messages=messages, max_tokens=8),
            rawstream.stream(url + "/v1/chat/completions", json={"messages": messages, "max_tokens": 8}),
        ]
        for answers in await asyncio.gather(*(texts(stream) for stream in asked)):
            assert "".join(answers) == "".join(chat)


async def test_an_event_has_its_text_its_data_and_what_came() -> None:
    """``text``, ``data`` decoded, ``raw`` as on the wire; and the stream knows its id."""
    async with serving() as server:
        async with rawstream.stream(server.url + "/stream", "hello", max_tokens=1) as events:
            assert events.id is None
            event = await anext(events)
            assert event.data == {"token": event.text}
            assert json.loads(event.raw) == event.data
            assert event.id == f"{events.id}.1"
            assert dict(events.headers)["content-type"].startswith("text/event-stream")


async def test_what_is_not_understood_is_handed_on() -> None:
    """Role chunks, other choices, usage, lists and plain text are events too; none of them is text of choice 0."""
    other = json.dumps({"choices": [{"index": 1, "delta": {"content": "no"}}]})
    odd = ['{"choices": []}', '{"choices": [7]}', "[1]", '{"choices": [{"delta": {"content": null}}]}', other, "{}"]
    legacy = json.dumps({"choices": [{"index": 0, "text": "c"}]})
    async with canned(sse(*odd, delta("a"), "b d", legacy, "[DONE]", delta("after the end"))) as (url, _):
        async with asyncio.timeout(5):
            events = [event async for event in rawstream.stream(url, "hi")]
    assert [event.text for event in events] == [*[""] * len(odd), "a", "b d", "c"]
    assert events[2].data == [1]
    assert (events[-2].data, events[-2].raw) == (None, b"b d")


async def test_ui_messages_are_understood() -> None:
    """The AI SDK's stream: its deltas are text, its error is an error."""
    parts = ['{"type":"start"}', '{"type":"text-delta","id":"t","delta":"Hel"}', '{"type":"finish"}', "[DONE]"]
    async with canned(sse(*parts)) as (url, _):
        assert "".join(await texts(rawstream.stream(url, json={"x": 1}))) == "Hel"
    async with canned(sse('{"type":"error","errorText":"broken"}', end=False)) as (url, _):
        with pytest.raises(rawstream.StreamError, match="broken"):
            await texts(rawstream.stream(url, "hi"))


async def test_text_is_cut_between_characters() -> None:
    """A character whose bytes come apart arrives whole; one that never ends is marked."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    async with canned(head + b"1\r\n\xc3\r\n2\r\n\xa9\xe2\r\n0\r\n\r\n") as (url, _):
        assert "".join(await texts(rawstream.stream(url, "hi"))) == "é\ufffd"


# --- what goes out ------------------------------------------------------------------------------------------


async def test_the_request_is_what_was_asked_for() -> None:
    """Key, own headers (which replace ours), model and messages; and never a demand for compression."""
    async with canned(sse("[DONE]")) as (url, seen):
        await texts(
            rawstream.stream(
                url,
                messages=[{"role": "user", "content": "hi"}],
                model="m",
                max_tokens=3,
                api_key="k",
                headers={"X-Mine": "1", "User-Agent": "me"},
            )
        )
        head, _, body = (await seen.get()).partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"post /v1/chat/completions http/1.1"
    for line in (b"authorization: bearer k", b"x-mine: 1", b"user-agent: me", b"accept-encoding: identity"):
        assert lines.count(line) == 1
    assert sum(line.startswith(b"user-agent:") for line in lines) == 1
    message = {"role": "user", "content": "hi"}
    assert json.loads(body) == {"messages": [message], "stream": True, "model": "m", "max_tokens": 3}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prompt": "a", "messages": []}, "give one of"),
        ({"json": {"a": object()}}, "cannot be written as JSON"),
        ({"prompt": "a", "api_key": "ké"}, "ASCII"),
        ({"prompt": "a", "timeout": 0}, "must be more than 0"),
    ],
)
def test_a_request_that_makes_no_sense_is_a_misuse(arguments: dict[str, Any], says: str) -> None:
    """Told at once, where the mistake is, before anything is sent."""
    with pytest.raises(MisuseError, match=says):
        rawstream.stream("http://127.0.0.1:1/chat", **arguments)


async def test_headers_cannot_be_injected() -> None:
    """A line end in a value is refused, not sent."""
    async with canned(sse("[DONE]")) as (url, seen):
        with pytest.raises(MisuseError):
            await texts(rawstream.stream(url, "hi", headers={"x": "a\r\ny: b"}))
        assert seen.empty()


async def test_messages_do_not_fit_an_event_source_url() -> None:
    """``/stream`` takes a prompt; that is said, with the way out."""
    with pytest.raises(MisuseError, match="/chat"):
        rawstream.stream("http://127.0.0.1:1/stream", messages=[])


# --- failures -----------------------------------------------------------------------------------------------


async def failure(stream: rawstream.EventStream) -> tuple[list[str], rawstream.StreamError]:
    """What came before, and the error."""
    got: list[str] = []

    async def read() -> None:
        async for event in stream:
            got.append(event.text)

    with pytest.raises(rawstream.StreamError) as caught:
        await asyncio.wait_for(read(), 5)
    return got, caught.value


async def test_an_error_told_in_stream_is_raised_after_what_came_before() -> None:
    """rawstream's own form: message and code, after the tokens that were good."""
    async with serving() as server:
        mock = {"tokens": 9, "tokens_per_second": None, "fail_after": 3}
        for path in ("/chat", "/v1/chat/completions"):
            body = {"messages": [{"role": "user", "content": "x"}], "stream": True, "mock": mock}
            got, error = await failure(rawstream.stream(server.url + path, json=body))
            assert len([text for text in got if text]) == 3
            assert error.code == "source_failed"
            assert "fail_after" in str(error)


async def test_an_error_in_openai_s_form_is_raised_with_its_code() -> None:
    """``{"error": {"message", "code"}}``; the type where there is no code, ours where there is neither."""
    for told, code in (
        ({"message": "late", "code": "upstream_timeout"}, "upstream_timeout"),
        ({"message": "late", "type": "server_error", "code": None}, "server_error"),
        ({"message": "late", "code": 503}, "503"),
        ({"message": "late"}, "stream_failed"),
    ):
        async with canned(sse(delta("a"), json.dumps({"error": told}), end=False)) as (url, _):
            got, error = await failure(rawstream.stream(url, "hi"))
        assert (got, str(error), error.code) == (["a"], "late", code)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (sse(delta("a"), end=False), "cut"),  # the framing is cut
        (sse(delta("a")), "cut"),  # the framing ends, the answer does not
        (sse(delta("a"), delta("", "stop"), end=False), "cut"),  # a finish reason, but a cut framing
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: " + delta("a").encode() + b"\n\n", "cut"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 9\r\n\r\na", "cut"),
    ],
)
async def test_an_answer_without_its_end_is_never_whole(answer: bytes, code: str) -> None:
    """No ``[DONE]``, no clean end: an error, whatever the framing looks like."""
    async with canned(answer) as (url, _):
        got, error = await failure(rawstream.stream(url, "hi"))
    assert got[0] == "a"
    assert error.code == code


async def test_a_server_that_sends_no_done_is_whole_after_its_finish_reason() -> None:
    """``transformers serve`` never sends ``[DONE]``: a finish reason and a clean end are enough."""
    async with canned(sse(delta("a"), delta("", "stop"))) as (url, _):
        assert "".join(await texts(rawstream.stream(url, "hi"))) == "a"


async def test_a_refusal_has_status_code_message_and_retry_after() -> None:
    """A status other than 200 is an error with what the body and the head say."""
    openai = {"error": {"message": "slow down", "type": "rate_limit", "code": "rate_limited"}}
    async with canned(plain_json("429 X", openai, "retry-after: 7")) as (url, _):
        _, error = await failure(rawstream.stream(url, "hi"))
    assert isinstance(error, rawstream.StreamRefused)
    assert (error.status, error.code, str(error), error.retry_after) == (429, "rate_limited", "slow down", 7.0)
    async with canned(plain_json("503 X", openai, "retry-after: 7", "retry-after-ms: 250")) as (url, _):
        _, error = await failure(rawstream.stream(url, "hi"))
    assert (error.status, error.retry_after) == (503, 0.25)


async def test_our_own_server_s_refusals_are_understood() -> None:
    """rawstream's form has the code beside the message."""
    async with serving() as server:
        _, error = await failure(rawstream.stream(server.url + "/chat", json={"prompt": 3}))
        assert (error.status, error.code) == (400, "bad_request")
        _, error = await failure(rawstream.stream(server.url + "/nowhere", "hi"))
        assert error.status == 404


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        (b"HTTP/1.1 302 X\r\nlocation: http://a/\r\ncontent-length: 0\r\n\r\n", 302, "redirected to 'http://a/'"),
        (b"HTTP/1.1 500 X\r\ncontent-length: 4\r\n\r\noops", 500, "status 500"),
        (b"HTTP/1.1 502 X\r\ncontent-length: 90\r\n\r\noops", 502, "status 502"),
        (b"HTTP/1.1 204 X\r\n\r\n", 204, "status 204"),
    ],
)
async def test_a_status_is_told_whatever_the_body(answer: bytes, status: int, says: str) -> None:
    """No JSON, a cut body, no body: the status is enough to say. Redirects are not followed."""
    async with canned(answer) as (url, _):
        _, error = await failure(rawstream.stream(url, "hi"))
    assert isinstance(error, rawstream.StreamRefused)
    assert error.status == status
    assert error.code == f"http_{status}"
    assert says in str(error)


async def test_what_is_no_stream_is_told() -> None:
    """A web page, or a compressed answer, is not read as tokens."""
    page = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\n<>"
    async with canned(page) as (url, _):
        _, error = await failure(rawstream.stream(url, "hi"))
    assert (error.code, str(error)) == ("not_a_stream", "the server answered with text/html, not a stream")
    packed = sse("[DONE]").replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n", 1)
    async with canned(packed) as (url, _):
        _, error = await failure(rawstream.stream(url, "hi"))
    assert error.code == "not_a_stream"
    assert "gzip" in str(error)


async def test_an_event_without_end_is_cut_at_the_bound() -> None:
    """``max_event`` bytes and no more."""
    async with canned(sse("x" * 5000, "[DONE]")) as (url, _):
        _, error = await failure(rawstream.stream(url, "hi", max_event=1000))
    assert error.code == "event_too_long"


async def test_silence_is_told_after_the_timeout() -> None:
    """No byte for ``timeout`` seconds while an event is waited for: the stream fails, and the server is left."""
    async with canned(sse(delta("a"), end=False), then_wait=True) as (url, _):
        got, error = await failure(rawstream.stream(url, "hi", timeout=0.05))
    assert (got, error.code) == (["a"], "idle")
    assert "the server was silent for 0.05 s" in str(error)


async def test_time_between_demands_does_not_count() -> None:
    """A reader may take as long as it likes: its deadline runs only while it waits."""
    async with canned(sse(*[delta("a")] * 600, "[DONE]")) as (url, _):
        async with rawstream.stream(url, "hi", timeout=0.2) as events:
            await anext(events)
            await asyncio.sleep(0.5)
            assert len(await texts(events)) == 599


async def test_nobody_there_is_told() -> None:
    """A port that nobody listens on: ``unreachable``, of a server and not of an upstream."""
    async with serving() as server:
        url = server.url
    _, error = await failure(rawstream.stream(url + "/chat", "hi"))
    assert error.code == "unreachable"
    assert str(error).startswith("the server could not be reached")

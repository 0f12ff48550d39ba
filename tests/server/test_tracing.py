"""Traces: a client's is continued and passed on; with OpenTelemetry each answer is a span, and no text is in any."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode

import rawstream
from rawstream.model import Outcome, Request, Token, Usage
from rawstream.settings import Settings
from rawstream.sources.router import RoutedSource
from rawstream.tracing import OpenTelemetry
from tests.sources.fake_upstream import (
    ANSWER,
    DONE,
    HEAD,
    LAST_CHUNK,
    FakeUpstream,
    answering,
    answering_once,
    chunk,
    delta,
    event,
)
from tests.support import raw
from tests.support.chaos import ChaosProcess
from tests.support.collector import Collector
from tests.support.program import ROOT
from tests.support.server import ServerProcess

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
SECRET = "the-prompt-that-nobody-else-may-see"
TELLING = "answer-that-nobody-else-may-see"


class Traces:
    """OpenTelemetry into memory."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = OpenTelemetry(provider, address=("chat.test", 8000))

    def spans(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.kind is kind]

    def one(self, kind: SpanKind = SpanKind.SERVER) -> tuple[ReadableSpan, dict[str, Any]]:
        (span,) = self.spans(kind)
        return span, dict(span.attributes or {})


async def ask(server: rawstream.Server, data: bytes) -> raw.Reply:
    return await asyncio.to_thread(raw.ask, server.port, data, within=10)


def completion(*, stream: bool = True, **fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": SECRET}], "stream": stream, **fields}).encode()


def post(body: bytes, **headers: str) -> bytes:
    return raw.request(
        "POST", "/v1/chat/completions", {"Content-Type": "application/json", **headers}, body, host="localhost"
    )


def upstream_settings(fake: FakeUpstream, **more: Any) -> Settings:
    return Settings(port=0, upstream=fake.url, upstream_first_token_timeout=5.0, upstream_idle_timeout=5.0, **more)


# --- passed on, without OpenTelemetry -----------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_a_clients_trace_reaches_the_upstream_without_opentelemetry(stream: bool) -> None:
    """Streamed or not, and nothing is added to a request without one."""
    whole = json.dumps({"choices": []}).encode()
    told = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(whole), whole)
    script = answering(HEAD, chunk(ANSWER), LAST_CHUNK) if stream else answering(told)
    async with asyncio.timeout(20), FakeUpstream(script) as fake:
        settings = upstream_settings(fake)
        async with rawstream.Server(settings, RoutedSource(settings)) as server:
            fields = {"traceparent": TRACEPARENT, "tracestate": "congo=t61rcWkgMzE, rojo=1"}
            assert (await ask(server, post(completion(stream=stream), **fields))).status == 200
            assert (await ask(server, post(completion(stream=stream)))).status == 200
    first, second = fake.requests
    assert first.headers["traceparent"] == TRACEPARENT
    assert first.headers["tracestate"] == "congo=t61rcwkgmze,rojo=1"
    assert not {"traceparent", "tracestate"} & second.headers.keys()


@pytest.mark.parametrize("parent", ["nonsense", TRACEPARENT.upper(), f"00-{'0' * 32}-{PARENT}-01", "x" * 2000])
async def test_what_is_no_trace_reaches_no_upstream(parent: str) -> None:
    async with asyncio.timeout(20), FakeUpstream(answering_once(HEAD, chunk(ANSWER), LAST_CHUNK)) as fake:
        settings = upstream_settings(fake)
        async with rawstream.Server(settings, RoutedSource(settings)) as server:
            fields = {"traceparent": parent, "tracestate": "congo=1"}
            assert (await ask(server, post(completion(), **fields))).status == 200
    assert not {"traceparent", "tracestate"} & fake.requests[0].headers.keys()


# --- spans ----------------------------------------------------------------------------------------------------


async def one_answer(traces: Traces, source: object, body: bytes, **headers: str) -> raw.Reply:
    """A server with this source answers one request."""
    async with asyncio.timeout(20), rawstream.Server(Settings(port=0), source, tracing=traces.tracing) as server:
        return await ask(server, post(body, **headers))


async def words(request: Request) -> AsyncIterator[str | Token]:
    for word in ("one ", "two ", TELLING):
        yield word


async def test_an_answer_is_one_span_with_the_conventions_names() -> None:
    traces = Traces()
    reply = await one_answer(
        traces, words, completion(model="small", temperature=0.5, seed=7, n=2, x="y"), **{"X-Request-Id": "r-1"}
    )
    assert reply.done
    span, said = traces.one()
    assert span.name == "chat small"
    assert span.parent is None
    assert span.status.status_code is StatusCode.UNSET
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.provider.name"] == "rawstream"
    assert said["gen_ai.request.model"] == "small"
    assert said["gen_ai.request.stream"] is True
    assert (said["gen_ai.request.temperature"], said["gen_ai.request.seed"]) == (0.5, 7)
    assert said["gen_ai.request.choice.count"] == 2
    assert said["gen_ai.response.finish_reasons"] == ("stop",)
    assert said["gen_ai.usage.output_tokens"] == 3
    assert (said["server.address"], said["server.port"]) == ("chat.test", 8000)
    assert said["http.route"] == "/v1/chat/completions"
    assert said["http.response.status_code"] == 200
    assert said["rawstream.request_id"] == "r-1"
    assert said["rawstream.outcome"] == "completed"
    assert (said["rawstream.tokens.generated"], said["rawstream.tokens.delivered"]) == (3, 3)
    assert said["gen_ai.server.time_to_first_token"] >= 0
    (first,) = span.events
    assert first.name == "first_token"
    assert (span.start_time or 0) <= first.timestamp <= (span.end_time or 0)


async def test_what_the_source_counts_and_how_it_ended_is_told() -> None:
    async def tokens(request: Request) -> AsyncIterator[list[Token]]:
        yield [Token("a"), Token("b", index=1)]
        yield [Token(finish_reason="stop"), Token(finish_reason="length", index=1)]
        yield [Token(usage=Usage(11, 22, 33))]

    traces = Traces()
    await one_answer(traces, tokens, completion(n=2))
    _, said = traces.one()
    assert said["gen_ai.response.finish_reasons"] == ("stop", "length")
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (11, 22)


async def test_a_whole_answer_is_a_span_too() -> None:
    traces = Traces()
    reply = await one_answer(traces, words, completion(stream=False, model="small"))
    assert reply.status == 200
    _, said = traces.one()
    assert said["gen_ai.request.stream"] is False
    assert said["rawstream.outcome"] == "completed"
    assert said["gen_ai.usage.output_tokens"] == 3
    assert said["gen_ai.response.finish_reasons"] == ("stop",)


@pytest.mark.parametrize("path", ["/chat", "/text", "/api/chat"])
async def test_every_way_to_ask_is_followed(path: str) -> None:
    traces = Traces()
    body: dict[str, Any] = {"prompt": SECRET}
    if path == "/api/chat":
        body = {"id": "1", "messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": SECRET}]}]}
    async with asyncio.timeout(20), rawstream.Server(Settings(port=0), words, tracing=traces.tracing) as server:
        reply = await ask(server, raw.post(path, body, traceparent=TRACEPARENT))
    assert reply.status == 200
    span, said = traces.one()
    assert said["http.route"] == path
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == f"{TRACE}-{PARENT}"


async def test_no_prompt_no_text_and_no_error_message_is_in_a_span() -> None:
    async def failing(request: Request) -> AsyncIterator[str]:
        yield TELLING
        raise ValueError(f"{request.prompt} and {TELLING}")

    async def odd(request: Request) -> AsyncIterator[Token]:
        yield Token(TELLING, finish_reason=f"because {TELLING}")

    for source in (failing, odd, words):
        traces = Traces()
        fields: dict[str, Any] = {"stop": [SECRET], "user": SECRET, "metadata": {"a": SECRET}, "seed": None}
        await one_answer(traces, source, completion(model="small", **fields))
        (span,) = traces.exporter.get_finished_spans()
        assert SECRET not in span.to_json()
        assert TELLING not in span.to_json()


async def test_a_sources_failure_is_an_error_by_its_outcome() -> None:
    async def failing(request: Request) -> AsyncIterator[str]:
        yield "a"
        raise ValueError("boom")

    traces = Traces()
    await one_answer(traces, failing, completion())
    span, said = traces.one()
    assert span.name == "chat"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert said["error.type"] == said["rawstream.outcome"] == "source_failed"
    assert "gen_ai.response.finish_reasons" not in said


async def test_names_and_numbers_from_outside_are_kept_within_what_can_be_sent() -> None:
    async def much(request: Request) -> AsyncIterator[Token]:
        yield Token("a", usage=Usage(2**70, -(2**70), 0))

    traces = Traces()
    await one_answer(traces, much, completion(model="é" * 5000, seed=2**63 - 1))
    span, said = traces.one()
    assert said["gen_ai.request.model"] == "é" * 200
    assert span.name == "chat " + "é" * 200
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (2**63 - 1, -(2**63))


async def test_long_waits_in_mid_answer_are_events_with_who_was_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a client and of a source, the one that lasts until the end too; short ones are none. Time is injected."""
    times = iter([0, 10, 10.1, 10.2, 12.2, 12.3, 14.3, 17.3])
    monkeypatch.setattr("rawstream.tracing.time_ns", lambda: round(next(times) * 1e9) + 1)
    traces = Traces()
    trace = traces.tracing.begin(Request(messages=[]), "/chat", ())  # at 0

    async def tokens() -> AsyncIterator[str]:
        for word in "abc":
            yield word

    watched = trace.watch(tokens())  # type: ignore[arg-type]  # an async generator is a token stream
    assert await anext(watched) == "a"  # asked at 10 (nobody waited for it before), there at 10.1
    assert await anext(watched) == "b"  # asked at 10.2, there at 12.2: 2 s for the source
    assert await anext(watched) == "c"  # asked at 12.3, there at 14.3: 2 s for the source
    trace.ended(Outcome.CLIENT_STALLED, None)  # at 17.3: 3 s for the client
    span, said = traces.one()
    waits = [event.attributes or {} for event in span.events]
    assert [wait["rawstream.waiting_for"] for wait in waits] == ["source", "source", "client"]
    assert [wait["rawstream.seconds"] for wait in waits] == pytest.approx([2, 2, 3])
    assert said["rawstream.stalls"] == 3
    assert said["error.type"] == "client_stalled"


# --- through a gateway ------------------------------------------------------------------------------------------


async def test_the_upstream_is_told_of_a_span_below_ours_and_ours_is_below_the_clients() -> None:
    usage = event({"id": "c1", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}})
    answer = chunk(delta("a") + delta("b") + delta(None, "tool_calls") + usage + DONE)
    traces = Traces()
    async with asyncio.timeout(20), FakeUpstream(answering_once(HEAD, answer, LAST_CHUNK)) as fake:
        settings = upstream_settings(fake)
        async with rawstream.Server(settings, RoutedSource(settings), tracing=traces.tracing) as server:
            fields = {"traceparent": TRACEPARENT, "tracestate": "congo=1"}
            assert (await ask(server, post(completion(model="m"), **fields))).done
    server_span, said = traces.one(SpanKind.SERVER)
    client_span, asked = traces.one(SpanKind.CLIENT)
    assert server_span.parent is not None
    assert client_span.parent is not None
    assert f"{server_span.parent.trace_id:032x}-{server_span.parent.span_id:016x}" == f"{TRACE}-{PARENT}"
    assert client_span.parent.span_id == server_span.context.span_id
    sent = fake.requests[0].headers
    assert sent["traceparent"] == f"00-{TRACE}-{client_span.context.span_id:016x}-01"
    assert sent["tracestate"] == "congo=1"
    assert (asked["server.address"], asked["server.port"]) == ("127.0.0.1", fake.port)
    assert asked["gen_ai.request.model"] == "m"
    assert asked["gen_ai.response.time_to_first_chunk"] > 0
    assert [event.name for event in client_span.events] == ["first_chunk"]
    for figures in (said, asked):
        assert figures["gen_ai.response.finish_reasons"] == ("tool_calls",)
        assert (figures["gen_ai.usage.input_tokens"], figures["gen_ai.usage.output_tokens"]) == (5, 2)


async def test_each_attempt_is_a_span_and_the_one_that_failed_says_so() -> None:
    refused = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    pieces = iter([(refused,), (HEAD, chunk(ANSWER), LAST_CHUNK)])

    async def script(peer: Any) -> None:
        await peer.request()
        await peer.send(*next(pieces))

    traces = Traces()
    async with asyncio.timeout(20), FakeUpstream(script) as fake:
        settings = upstream_settings(fake, upstream_retry_wait=0.0)
        async with rawstream.Server(settings, RoutedSource(settings), tracing=traces.tracing) as server:
            assert (await ask(server, post(completion()))).done
    first, second = traces.spans(SpanKind.CLIENT)
    assert (first.status.status_code, (first.attributes or {})["error.type"]) == (StatusCode.ERROR, "_OTHER")
    assert second.status.status_code is StatusCode.UNSET
    assert traces.one()[0].status.status_code is StatusCode.UNSET


async def test_an_upstream_that_breaks_off_is_an_error_of_both_spans() -> None:
    traces = Traces()
    async with asyncio.timeout(20), FakeUpstream(answering_once(HEAD, chunk(delta("a")))) as fake:
        settings = upstream_settings(fake)
        async with rawstream.Server(settings, RoutedSource(settings), tracing=traces.tracing) as server:
            await ask(server, post(completion()))
    for kind in (SpanKind.SERVER, SpanKind.CLIENT):
        span, said = traces.one(kind)
        assert (span.status.status_code, said["error.type"]) == (StatusCode.ERROR, "upstream_failed")


# --- what is not sampled ----------------------------------------------------------------------------------------


async def test_what_is_not_sampled_is_not_watched_and_is_passed_on_as_not_sampled() -> None:
    """The client's decision holds: its trace goes on, and no span is made."""
    traces = Traces(ParentBased(ALWAYS_OFF))
    async with asyncio.timeout(20), FakeUpstream(answering_once(HEAD, chunk(ANSWER), LAST_CHUNK)) as fake:
        settings = upstream_settings(fake)
        async with rawstream.Server(settings, RoutedSource(settings), tracing=traces.tracing) as server:
            fields = {"traceparent": TRACEPARENT.removesuffix("1") + "0"}
            assert (await ask(server, post(completion(), **fields))).done
    assert traces.exporter.get_finished_spans() == ()
    version, trace, _, flags = fake.requests[0].headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "00")


def test_an_unsampled_trace_hands_the_token_stream_on_as_it_is() -> None:
    async def tokens() -> AsyncIterator[str]:
        yield "a"

    stream: Any = tokens()
    trace = Traces(ALWAYS_OFF).tracing.begin(Request(messages=[]), "/chat", ())
    assert trace.watch(stream) is stream


# --- for real ---------------------------------------------------------------------------------------------------


def test_a_real_server_exports_to_a_real_collector() -> None:
    """By the standard variables, over HTTP; one request is followed through the gateway and its upstream."""
    with Collector() as collector, ChaosProcess() as chaos:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }
        with ServerProcess("--upstream", chaos.url, env=env) as server:
            reply = server.ask(post(completion(model="ok:tokens=7"), traceparent=TRACEPARENT))
            assert reply.done
            spans = collector.wait(lambda seen: len(seen) == 2)
            above, below = sorted(spans, key=lambda span: span.kind)  # SERVER is 2, CLIENT 3
            assert (above.trace, above.parent) == (TRACE, PARENT)
            assert (below.trace, below.parent) == (TRACE, above.id)
            assert above.name == "chat ok:tokens=7"
            assert above.attributes["gen_ai.usage.output_tokens"] == 7
            assert above.attributes["gen_ai.response.finish_reasons"] == ["stop"]
            assert above.service["service.name"] == "rawstream"
            assert above.service["deployment.environment.name"] == "test"
            assert ("first_token", pytest.approx(above.attributes["gen_ai.server.time_to_first_token"])) in [
                (name, figures.get("rawstream.seconds")) for name, figures in above.events
            ]
            assert not any(SECRET.encode() in body for body in collector.bodies)


def test_the_last_spans_leave_when_the_server_ends() -> None:
    with Collector() as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "chat-gateway"}
        with ServerProcess(env=env) as server:
            assert server.ask(raw.chat(tokens=3, tokens_per_second=None)).done
            assert server.stop() == 0
        (span,) = collector.wait(lambda seen: len(seen) == 1)
    assert span.service["service.name"] == "chat-gateway"


@pytest.mark.slow
def test_a_collector_that_is_not_there_costs_neither_answers_nor_the_end() -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_BSP_SCHEDULE_DELAY": "10"}
    with ServerProcess(env=env) as server:
        for _ in range(3):
            assert server.ask(raw.chat(tokens=3, tokens_per_second=None)).done
        assert server.stop(within=15) == 0


def test_traces_go_nowhere_unless_somebody_says_where() -> None:
    """``--no-otel`` and OTEL_SDK_DISABLED are obeyed, whatever else the variables say."""
    with Collector() as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        for flags, more in ((("--no-otel",), {}), ((), {"OTEL_SDK_DISABLED": "true"})):
            with ServerProcess(*flags, env={**env, **more}) as server:
                assert server.ask(raw.chat(tokens=3, tokens_per_second=None)).done
                assert server.stop() == 0
        assert collector.bodies == []


@pytest.mark.parametrize(("flags", "code"), [(("--otel",), 2), ((), 0)])
def test_without_the_extra_it_says_so(flags: tuple[str, ...], code: int, tmp_path: Path) -> None:
    """Asked for by name it is an error; by variables that may be meant for others, a warning."""
    missing = tmp_path / "opentelemetry"
    missing.mkdir()
    (missing / "__init__.py").write_text("raise ImportError('not here', name='opentelemetry')")
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    with ServerProcess(*flags, env=env, wait=False) as server:
        server.wait_line(lambda line: "pip install 'rawstream[otel]'" in line, within=20)
        if code == 0:
            server.wait_line(lambda line: line.startswith("rawstream listening"), within=20)
            assert server.stop() == 0
        assert server.wait() == code

"""Several upstreams as one source, over real sockets: where requests go, what is tried again, and what is told.

Waits are recorded and not waited, the jitter is what the test says, and breakers see the test's own clock.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Any, TypeAlias

import msgspec
import pytest

from rawstream.errors import (
    ModelNotFound,
    SettingsError,
    UpstreamFailed,
    UpstreamIdle,
    UpstreamRejected,
    UpstreamUnavailable,
    UpstreamUnreachable,
)
from rawstream.model import CompletionSource, MeasuredTokenStream, Request, SourceItem, Token
from rawstream.settings import Settings, UpstreamSettings
from rawstream.sources.breaker import State
from rawstream.sources.router import RoutedSource, RoutedStream
from tests.sources.fake_upstream import (
    ANSWER,
    HEAD,
    LAST_CHUNK,
    FakeUpstream,
    Peer,
    Script,
    answering,
    answering_and_waiting,
    chunk,
    delta,
    event,
)
from tests.support.tools import require_tool

KEYS = ("sk-first-0123456789", "sk-second-987654321")
WELL = HEAD + chunk(ANSWER) + LAST_CHUNK


def self_signed(folder: Path) -> Path:
    """A certificate that nobody trusts, with its key."""
    path = folder / "both.pem"
    subprocess.run(
        [require_tool("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(path), "-out",
         str(folder / "crt.pem"), "-days", "1", "-subj", "/CN=localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + (folder / "crt.pem").read_bytes())
    return path


Own: TypeAlias = list[dict[str, Any]]
"""What the settings say of each upstream."""


def asking(model: str | None = "m", **fields: Any) -> Request:
    return Request(messages=[{"role": "user", "content": "a secret prompt"}], model=model, **fields)


def status(code: int, *fields: str, message: str = "no", close: bool = False) -> bytes:
    """A whole answer with an error status, as OpenAI has it."""
    body = json.dumps({"error": {"message": message}}).encode()
    extra = "".join(field + "\r\n" for field in fields)
    return (
        f"HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    ).encode() + body


def listing(*names: str) -> bytes:
    """A whole answer to ``GET /models``."""
    data = [{"id": name, "object": "model", "created": 7, "owned_by": "them"} for name in names]
    body = json.dumps({"object": "list", "data": data}).encode()
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def in_turn(*answers: bytes) -> Script:
    """A script that answers the first request, on whichever connection, with the first of these; the last for good."""
    left = list(answers)

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(left.pop(0) if len(left) > 1 else left[0])

    return script


async def closing(peer: Peer) -> None:
    """Takes the request, and closes."""
    await peer.request()


async def resetting(peer: Peer) -> None:
    await peer.request()
    peer.reset()


class Bench:
    """A routed source over fake upstreams, with everything that is random or takes time in the test's hand."""

    def __init__(self, fakes: list[FakeUpstream], own: Own, **settings: Any) -> None:
        self.fakes = fakes
        self.waits: list[float] = []
        self.now = 1000.0
        self.chance = 0.5
        self.on_wait: Callable[[], Awaitable[None]] | None = None
        bounds = {"upstream_first_token_timeout": 30.0, "upstream_idle_timeout": 5.0, "upstream_connect_timeout": 2.0}
        chosen: dict[str, Any] = {**bounds, **settings}
        if "upstream" not in chosen:
            named = [
                UpstreamSettings(**{"name": f"u{index}", "url": fake.url, **changes})
                for index, (fake, changes) in enumerate(zip(fakes, own, strict=True))
            ]
            chosen["upstreams"] = tuple(named)
        self.source = RoutedSource(
            Settings(**chosen), clock=lambda: self.now, sleep=self._sleep, random=lambda: self.chance
        )

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        if self.on_wait is not None:
            await self.on_wait()

    @property
    def asked(self) -> list[int]:
        """How many requests each upstream got."""
        return [len(fake.requests) for fake in self.fakes]

    async def text(self, request: Request | None = None) -> str:
        """The whole answer's text."""
        async with aclosing(self.source.tokens(request or asking())) as stream:
            return "".join([text_of(item) async for item in stream])

    async def failure(self, request: Request | None = None) -> Any:
        """What a stream fails with."""
        with pytest.raises((UpstreamFailed, UpstreamIdle, ModelNotFound)) as caught:
            await self.text(request)
        return caught.value


def text_of(item: SourceItem) -> str:
    tokens: Any = [item] if isinstance(item, str | Token) else item
    return "".join(token if isinstance(token, str) else token.text for token in tokens)


@asynccontextmanager
async def bench(*scripts: Script, own: Own | None = None, **settings: Any) -> AsyncIterator[Bench]:
    """A routed source over one fake upstream for each script; ``own``: what the settings say of each."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(20))
        fakes = [await stack.enter_async_context(FakeUpstream(script)) for script in scripts]
        made = Bench(fakes, own or [{} for _ in scripts], **settings)
        stack.push_async_callback(made.source.aclose)
        yield made


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody can take."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


# --- where requests go --------------------------------------------------------------------------------------


async def test_a_model_goes_to_the_upstream_that_names_it_then_to_a_pattern_then_to_the_star(loop_kind: str) -> None:
    own: Own = [{"models": ("*",)}, {"models": ("llama-*",)}, {"models": ("llama-3", "other")}]
    async with bench(*[answering(WELL)] * 3, own=own) as made:
        for model, expected in (("llama-3", [0, 0, 1]), ("llama-2", [0, 1, 1]), ("gpt", [1, 1, 1])):
            assert await made.text(asking(model)) == "Hello world"
            assert made.asked == expected


async def test_a_model_that_nobody_serves_is_404_with_the_names_that_there_are() -> None:
    async with bench(*[answering(WELL)] * 2, own=[{"models": ("a", "b-*")}, {"models": ("a", "c")}]) as made:
        error = await made.failure(asking("zzz" * 100))
        assert (error.status, error.code) == (404, "model_not_found")
        assert str(error).endswith("there are: a, b-*, c")
        assert len(str(error)) < 200
        with pytest.raises(ModelNotFound):
            await made.source.complete(asking("nope"))
        assert made.asked == [0, 0]


async def test_a_client_that_names_no_model_gets_the_default_one_or_the_first_upstream() -> None:
    own: Own = [{"models": ("a", "b")}, {"models": ("c",)}]
    async with bench(*[answering(WELL)] * 2, own=own) as made:
        await made.text(asking(None))
        assert made.fakes[0].requests[0].json["model"] == "a"
    async with bench(*[answering(WELL)] * 2, own=own, upstream_model="c") as made:
        await made.text(asking(None))
        assert made.fakes[1].requests[0].json["model"] == "c"
    async with bench(*[answering(WELL)] * 2, own=[{"models": ("x*",)}, {}]) as made:
        await made.text(asking(None))
        assert "model" not in made.fakes[0].requests[0].json


async def test_an_upstream_is_asked_for_its_own_name_of_the_model_with_its_own_key() -> None:
    own: Own = [{"models": ("public",), "model": "private-7b", "api_key": KEYS[0]}, {"api_key": KEYS[1]}]
    async with bench(*[answering(WELL)] * 2, own=own) as made:
        await made.text(asking("public"))
        await made.text(asking("else"))
        first, second = (fake.requests[0] for fake in made.fakes)
    assert (first.json["model"], first.headers["authorization"]) == ("private-7b", f"bearer {KEYS[0]}")
    assert (second.json["model"], second.headers["authorization"]) == ("else", f"bearer {KEYS[1]}")


async def test_one_upstream_alone_gets_the_request_as_it_came() -> None:
    async with FakeUpstream(answering(WELL)) as fake:
        made = Bench([fake], [], upstream=fake.url, upstream_api_key=KEYS[0])
        request = asking("m", extra={"odd": [1]}, max_tokens=3)
        assert await made.text(request) == "Hello world"
        await made.source.aclose()
    asked = fake.requests[0]
    assert asked.json["odd"] == [1]
    assert (asked.json["model"], asked.json["max_tokens"]) == ("m", 3)
    assert asked.headers["authorization"] == f"bearer {KEYS[0]}"


def test_it_is_a_source_that_completes_and_its_streams_are_measured() -> None:
    source = RoutedSource(Settings(upstream="http://127.0.0.1:1/v1"))
    assert isinstance(source, CompletionSource)
    assert isinstance(source.tokens(asking()), MeasuredTokenStream)


async def test_nothing_is_sent_before_the_first_token_is_asked_for() -> None:
    async with bench(answering(WELL)) as made:
        stream = made.source.tokens(asking())
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert made.fakes[0].connections == 0


@pytest.mark.parametrize(
    ("own", "says"),
    [({"url": "ftp://x"}, "upstream 'u0': upstream: the URL must"), ({"ca": "/none.pem"}, "cannot read certificates")],
)
def test_an_unusable_upstream_is_refused_by_name_at_start(own: dict[str, Any], says: str) -> None:
    upstream = UpstreamSettings(**{"name": "u0", "url": "http://127.0.0.1:1/v1", **own})
    with pytest.raises(SettingsError, match=says):
        RoutedSource(Settings(upstreams=(upstream,)))


# --- once more ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [429, 500, 502, 503, 529])
async def test_an_error_status_is_tried_again_and_the_client_sees_nothing_of_it(code: int, loop_kind: str) -> None:
    async with bench(in_turn(status(code), status(code), WELL)) as made:
        assert await made.text() == "Hello world"
        assert made.asked == [3]
        assert made.waits == [0.5, 1.0], "half of 1 s, half of 2 s"


@pytest.mark.parametrize("script", [closing, resetting])
async def test_a_connection_that_ends_before_any_answer_is_tried_again(script: Script, loop_kind: str) -> None:
    async with bench(script) as made:
        error = await made.failure()
        assert made.asked == [4]
        assert made.waits == [0.5, 1.0, 2.0]
    assert (error.status, error.should_retry) == (502, False)
    assert str(error).startswith("the upstream failed after 4 attempts; the last: the upstream ")


async def test_a_refused_connection_is_tried_again(closed_port: int) -> None:
    made = Bench([], [], upstream=f"http://127.0.0.1:{closed_port}/v1")
    error = await made.failure()
    assert made.waits == [0.5, 1.0, 2.0]
    assert (error.status, error.code, error.should_retry) == (502, "upstream_failed", False)
    assert "Connection refused" in str(error)


async def test_with_no_retries_the_first_error_is_told_as_it_is() -> None:
    async with bench(in_turn(status(503, "Retry-After: 9")), upstream_retries=0) as made:
        error = await made.failure()
        assert (made.asked, made.waits) == ([1], [])
    assert isinstance(error, UpstreamRejected)
    assert (error.status, error.retry_after, error.should_retry, str(error)) == (503, 9.0, None, "no")
    assert error.body is not None, "the upstream's own words are relayed"


@pytest.mark.parametrize(
    "answer",
    [
        status(400),
        status(401),
        status(404),
        status(422),
        status(503, "x-should-retry: false"),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1\r\n\r\n<",
        b"HTTP/1.1 302 Found\r\nLocation: /else\r\nContent-Length: 0\r\n\r\n",
        b"garbage\r\n\r\n",
        HEAD + chunk(event({"error": {"message": "told"}})),
    ],
)
async def test_what_would_not_get_better_is_told_at_once(answer: bytes) -> None:
    """Other statuses, answers that are none, errors told in the stream: one attempt, and no second upstream."""
    async with bench(in_turn(answer), answering(WELL), own=[{}, {"weight": 0}]) as made:
        error = await made.failure()
        assert (made.asked, made.waits) == ([1, 0], [])
        assert error.should_retry is None


async def test_half_an_answer_is_told_at_once() -> None:
    """A byte of an answer means that the request was taken."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 20")

    async with bench(script) as made:
        assert (await made.failure()).should_retry is None
        assert made.asked == [1]


async def test_a_certificate_that_is_not_trusted_is_not_waited_for(tmp_path: Path) -> None:
    """It does not get better by itself; another upstream may still answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    async with FakeUpstream(answering(WELL), context) as untrusted, FakeUpstream(answering(WELL)) as other:
        made = Bench([untrusted], [{}])
        assert "certificate is not trusted" in str(await made.failure())
        assert (made.asked, made.waits) == ([0], [])
        made = Bench([untrusted, other], [{}, {"weight": 0}])
        assert await made.text() == "Hello world"
        await made.source.aclose()


async def test_silence_is_told_at_once() -> None:
    async with bench(
        answering_and_waiting(), answering(WELL), own=[{"first_token_timeout": 0.2}, {"weight": 0}]
    ) as made:
        error = await made.failure()
        assert isinstance(error, UpstreamIdle)
        assert made.asked == [1, 0]


async def test_what_breaks_off_after_a_token_is_never_tried_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(delta("a")))

    async with bench(script, answering(WELL), own=[{}, {"weight": 0}]) as made:
        async with aclosing(made.source.tokens(asking())) as stream:
            assert text_of(await anext(stream)) == "a"
            with pytest.raises(UpstreamFailed):
                await anext(stream)
        assert made.asked == [1, 0]


@pytest.mark.parametrize(
    ("field", "waits"),
    [
        ("Retry-After: 7", [7.0]),
        ("retry-after-ms: 1500", [1.5]),
        ("Retry-After: 0", [0.5]),
        ("Retry-After: soon", [0.5]),
    ],
)
async def test_retry_after_is_the_least_wait(field: str, waits: list[float]) -> None:
    async with bench(in_turn(status(429, field), WELL)) as made:
        assert await made.text() == "Hello world"
        assert made.waits == waits


async def test_retry_after_may_be_a_date() -> None:
    async with bench(in_turn(status(429, f"Retry-After: {formatdate(time() + 20, usegmt=True)}"), WELL)) as made:
        assert await made.text() == "Hello world"
        assert 18 < made.waits[0] <= 20


async def test_a_retry_after_beyond_the_longest_wait_ends_the_attempts_and_is_told() -> None:
    async with bench(in_turn(status(503), status(503, "Retry-After: 31"))) as made:
        error = await made.failure()
        assert (made.asked, made.waits) == ([2], [0.5])
    assert (error.status, error.retry_after, error.should_retry) == (503, 31.0, False)
    assert str(error) == "the upstream failed after 2 attempts; the last: no"


async def test_one_deadline_bounds_all_attempts_together() -> None:
    """A wait that would end after it is not begun; an attempt after a wait has what is left."""
    async with bench(in_turn(status(503)), upstream_first_token_timeout=1.5) as made:
        await made.failure()
        assert made.waits == [0.5, 1.0]

    slow = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if len(made.fakes[0].requests) == 1:
            await asyncio.sleep(0.3)  # longer than the half of what there is
            await peer.send(status(503))
        await slow.wait()

    async with bench(script, upstream_first_token_timeout=0.5, upstream_retry_wait=0.001) as made:
        loop = asyncio.get_running_loop()
        began = loop.time()
        error = await made.failure()
        assert 0.4 < loop.time() - began < 0.75
        assert isinstance(error, UpstreamIdle)
        assert "after 2 attempts" in str(error)
        slow.set()


async def test_a_client_that_was_told_200_gets_no_second_attempt() -> None:
    """Asked before an attempt, and again after the wait: a heartbeat may have gone out meanwhile."""
    told = False
    async with bench(in_turn(status(503), WELL)) as made:
        request = asking(is_committed=lambda: True)
        assert (await made.failure(request)).status == 503
        assert (made.asked, made.waits) == ([1], [])

        async def heartbeat() -> None:
            nonlocal told
            told = True

    async with bench(in_turn(status(503), WELL)) as made:
        made.on_wait = heartbeat
        await made.failure(asking(is_committed=lambda: told))
        assert (made.asked, made.waits) == ([1], [0.5])


async def test_a_client_that_leaves_ends_a_wait_at_once(loop_kind: str) -> None:
    waiting, ended = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with bench(in_turn(status(503), WELL)) as made:
        made.on_wait = wait
        task = asyncio.create_task(made.text())
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()
        assert made.asked == [1]


async def test_a_client_that_leaves_ends_an_attempt_at_once(loop_kind: str) -> None:
    async with bench(answering_and_waiting(HEAD)) as made:
        task = asyncio.create_task(made.text())
        await made.fakes[0].until_asked()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(made.fakes[0].left.wait(), 5)
        assert made.source.upstreams[0].source.client.open_connections == 0
        assert made.source.upstreams[0].breaker.state is State.CLOSED


async def test_whole_answers_go_the_same_way() -> None:
    body = b'{"choices": []}'
    whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with bench(in_turn(status(500), whole), in_turn(status(502))) as made:
        assert await made.source.complete(asking()) == body
        assert made.source.upstreams[0].counters.retries == 1
        assert sum(made.asked) == 3


# --- falling back -------------------------------------------------------------------------------------------


async def test_an_upstream_that_was_not_tried_yet_is_gone_to_at_once(loop_kind: str) -> None:
    async with bench(in_turn(status(503, "Retry-After: 60")), answering(WELL), own=[{}, {"weight": 0}]) as made:
        assert await made.text() == "Hello world"
        assert (made.asked, made.waits) == ([1, 1], [])
        assert made.source.upstreams[1].counters.fallbacks == 1


async def test_when_all_were_tried_it_goes_back_to_the_one_that_is_ready_first() -> None:
    scripts = in_turn(status(503, "Retry-After: 20")), in_turn(status(503), WELL), in_turn(status(503))
    async with bench(*scripts, own=[{"weight": 2}, {}, {"weight": 0}]) as made:
        assert await made.text() == "Hello world"
        assert (made.asked, made.waits) == ([1, 2, 1], [0.5])


async def test_the_attempts_are_counted_over_all_upstreams() -> None:
    async with bench(*[in_turn(status(503))] * 3) as made:
        error = await made.failure()
        assert sum(made.asked) == 4
        assert len(made.waits) == 1
    assert "after 4 attempts" in str(error)
    assert sorted(part.partition(":")[0] for part in error.detail.split("; "))[1:] == ["u0", "u1", "u2"][-3:]


# --- leaving a sick one alone -------------------------------------------------------------------------------


async def test_failures_in_a_row_open_the_breaker_and_then_nobody_is_kept_waiting(loop_kind: str) -> None:
    async with bench(in_turn(status(500)), upstream_retries=0, upstream_breaker_failures=3) as made:
        for _ in range(3):
            await made.failure()
        error = await made.failure()
        assert made.asked == [3]
    assert isinstance(error, UpstreamUnavailable)
    assert (error.status, error.code, error.retry_after, error.should_retry) == (
        503,
        "upstream_unavailable",
        5.0,
        False,
    )


async def test_after_the_pause_one_request_tries_it_and_closes_the_breaker() -> None:
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            if len(made.fakes[0].requests) <= 2:
                await peer.send(status(500))
                continue
            await gate.wait()
            await peer.send(WELL)

    async with bench(script, upstream_retries=0, upstream_breaker_failures=2) as made:
        for _ in range(2):
            await made.failure()
        made.now += 4.5
        assert (await made.failure()).retry_after == 1.0
        made.now += 0.5
        probe = asyncio.create_task(made.text())
        await made.fakes[0].until_asked(3)
        assert isinstance(await made.failure(), UpstreamUnavailable)
        gate.set()
        assert await probe == "Hello world"
        assert await made.text() == "Hello world"


async def test_a_probe_whose_client_left_is_not_the_last() -> None:
    async with bench(in_turn(status(500), b""), upstream_retries=0, upstream_breaker_failures=1) as made:
        await made.failure()
        made.now += 10
        probe = asyncio.create_task(made.text())
        await made.fakes[0].until_asked(2)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        assert made.source.upstreams[0].breaker.wait(made.now) == 0


@pytest.mark.parametrize("code", [400, 404, 429])
async def test_refusals_do_not_open_it(code: int) -> None:
    async with bench(in_turn(status(code)), upstream_retries=0, upstream_breaker_failures=1) as made:
        for _ in range(3):
            assert (await made.failure()).status == code


@pytest.mark.parametrize("pieces", [(HEAD + chunk(delta("a")),), (HEAD + chunk(delta("a")), b"zz\r\n")])
async def test_streams_that_are_cut_open_it(pieces: tuple[bytes, ...]) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)

    async with bench(script, upstream_breaker_failures=2) as made:
        for _ in range(2):
            await made.failure()
        assert isinstance(await made.failure(), UpstreamUnavailable)


async def test_silence_opens_it() -> None:
    own: Own = [{"first_token_timeout": 0.05}]
    async with bench(answering_and_waiting(), own=own, upstream_breaker_failures=1) as made:
        assert isinstance(await made.failure(), UpstreamIdle)
        assert isinstance(await made.failure(), UpstreamUnavailable)


async def test_errors_told_in_the_stream_do_not_open_it() -> None:
    """They may be the request's own fault, and one client must not take the upstream from all others."""
    told = HEAD + chunk(event({"error": {"message": "too long"}}))
    async with bench(in_turn(told), upstream_breaker_failures=1) as made:
        for _ in range(3):
            assert str(await made.failure()) == "too long"


async def test_one_that_is_left_alone_is_passed_over_for_one_that_is_well() -> None:
    own: Own = [{}, {"weight": 0}]
    async with bench(in_turn(status(500)), answering(WELL), own=own, upstream_breaker_failures=2) as made:
        for _ in range(5):
            assert await made.text() == "Hello world"
        assert made.asked == [2, 5]


async def test_retries_end_when_the_breaker_opens() -> None:
    """Here by others, while this request waited."""
    async with bench(in_turn(status(500)), upstream_breaker_failures=2) as made:

        async def another_fails() -> None:
            made.on_wait = None
            await made.failure()

        made.on_wait = another_fails
        error = await made.failure()
        assert made.asked == [2]
        assert (error.status, error.should_retry) == (500, None)


async def test_one_request_counts_once_against_its_upstream_however_often_it_was_tried() -> None:
    """One client's request that no upstream can answer does not take the upstream from all others."""
    async with bench(in_turn(*[status(500)] * 8, WELL), upstream_breaker_failures=3) as made:
        for asked in (4, 8):
            await made.failure()
            assert made.asked == [asked]
        assert await made.text() == "Hello world"
        assert made.source.upstreams[0].breaker.openings == 0


async def test_a_stream_cut_and_a_request_in_vain_leave_the_defaults_breaker_closed() -> None:
    cut = HEAD + chunk(delta("a")) + b"zz\r\n"
    async with bench(in_turn(cut, *[status(503)] * 4, WELL)) as made:
        with pytest.raises(UpstreamFailed):
            await made.text()
        assert (await made.failure()).status == 503
        assert await made.text() == "Hello world"


async def test_a_retry_that_the_budget_did_not_allow_is_not_left_to_the_sdk() -> None:
    """SDKs try a 5xx twice more by themselves, which is the load that the budget is there to prevent."""
    async with bench(in_turn(status(503)), upstream_breaker_failures=0, upstream_retry_budget=0.0) as made:
        errors = [await made.failure() for _ in range(5)]
        assert made.asked[0] < 20
    assert [error.should_retry for error in errors] == [False] * 5
    assert "attempts" not in str(errors[-1])


async def test_retries_are_a_fraction_of_the_requests() -> None:
    """A hundred requests to a sick upstream: 100 + 20 + 10 at once, and not 400."""
    async with bench(in_turn(status(503)), upstream_breaker_failures=0, upstream_retry_wait=0.0) as made:
        for _ in range(100):
            await made.failure()
        counters = made.source.upstreams[0].counters
        assert 120 <= made.asked[0] <= 130
        assert counters.requests == 100
        assert counters.retries == made.asked[0] - 100
        assert counters.attempts == made.asked[0] == counters.failures
        assert counters.budget_refusals > 0


# --- what is listed -----------------------------------------------------------------------------------------


async def test_one_upstreams_list_is_relayed_byte_for_byte() -> None:
    answer = listing("a")
    async with bench(in_turn(answer)) as made:
        assert await made.source.models() == answer.partition(b"\r\n\r\n")[2]


async def test_the_lists_of_several_are_one_each_model_once_under_the_upstream_that_has_it() -> None:
    own: Own = [{"models": ("x", "y")}, {"models": ("l*",)}, {}]
    async with bench(answering(WELL), in_turn(listing("l1", "q")), in_turn(listing("x", "z")), own=own) as made:
        told = msgspec.json.decode(await made.source.models())
    assert told["object"] == "list"
    assert [(model["id"], model["owned_by"]) for model in told["data"]] == [
        ("x", "u0"), ("y", "u0"), ("l1", "u1"), ("z", "u2"),
    ]  # fmt: skip
    assert all(model["object"] == "model" and isinstance(model["created"], int) for model in told["data"])
    assert made.asked[0] == 0


async def test_one_that_cannot_list_is_left_out_and_all_of_them_are_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async with bench(in_turn(status(500)), in_turn(listing("a"))) as made:
        assert b'"a"' in await made.source.models()
        assert "upstream u0: its models cannot be listed: status 500" in caplog.text
    async with bench(in_turn(status(500)), in_turn(status(501))) as made:
        with pytest.raises(UpstreamRejected):
            await made.source.models()


# --- what the hot path costs --------------------------------------------------------------------------------


async def test_after_the_first_token_each_step_is_the_upstreams_own(loop_kind: str) -> None:
    """No coroutine of the router's stands between the pump and the upstream's stream."""
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(delta("a")))
        await gate.wait()
        await peer.send(chunk(ANSWER) + LAST_CHUNK)

    async with bench(script) as made:
        async with aclosing(made.source.tokens(asking())) as stream:
            await anext(stream)
            step = stream.__anext__()
            assert step.cr_code.co_qualname == "UpstreamStream.__anext__"  # type: ignore[attr-defined]  # a coroutine's
            gate.set()
            await step
            assert stream.statistics().peak_buffered > 0
    assert not hasattr(RoutedStream, "__dict__") or "__slots__" in vars(RoutedStream)


# --- the log, and our keys ----------------------------------------------------------------------------------


async def test_each_retry_fallback_and_breaker_change_is_one_line_that_names_the_upstream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own: Own = [{}, {"weight": 0}]
    scripts = in_turn(*[status(500)] * 3, WELL), in_turn(*[status(503)] * 3, WELL)
    async with bench(*scripts, own=own, upstream_breaker_failures=2) as made:
        await made.failure()
        await made.failure()
        made.now += 20
        await made.text()
    lines = [record.getMessage() for record in caplog.records]
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert lines == [
        "upstream u0: status 500; falling back to u1 (attempt 2 of 4)",
        "upstream u1: status 503; trying u0 again in 0.5 s (attempt 3 of 4)",
        "upstream u0: status 500; trying u1 again in 1 s (attempt 4 of 4)",
        "upstream u0: left alone for 5 s after failures in a row; the last: status 500",
        "upstream u0: status 500; falling back to u1 (attempt 2 of 4)",
        "upstream u1: left alone for 5 s after failures in a row; the last: status 503",
        "upstream u0: its pause is over; one request tries it",
        "upstream u0: it answers again",
    ]


def quoting(key: str, *, code: int = 200) -> list[bytes]:
    """All ways in which an upstream may tell our key to whoever listens."""
    named = f"the key {key} is wrong"
    body = json.dumps({"error": {"message": named}, "key": key}).encode()
    whole = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    return [
        status(401, message=named),
        status(403, message=named),
        status(429, message=named),
        status(503, f"Retry-After: {key}", message=named),
        status(500, f"x-should-retry: {key}", f"x-key: {key}", message=named),
        whole % (200, len(body), body),
        HEAD + chunk(event({"error": {"message": named}})),
        HEAD + chunk(delta("a") + event({"error": {"message": named}})),
        b"HTTP/1.1 200 " + key.encode() + b"\r\nContent-Type: text/html\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: " + key.encode() + b"\r\n\r\n",
        key.encode() + b"\r\n\r\n",
        HEAD + key.encode() + b"\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://x/?" + key.encode() + b"\r\nContent-Length: 0\r\n\r\n",
        HEAD + chunk(b"data: " + key.encode() * 3) + LAST_CHUNK,
    ]


@pytest.mark.parametrize("retries", [0, 3])
@pytest.mark.parametrize("answer", quoting(KEYS[0]))
async def test_our_keys_reach_neither_client_nor_log_however_the_upstream_fails(
    answer: bytes, retries: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    own: Own = [{"api_key": KEYS[0]}, {"api_key": KEYS[1], "weight": 0}]
    async with bench(in_turn(answer), closing, own=own, upstream_retries=retries, upstream_breaker_failures=2) as made:
        for ask in (made.text, lambda: made.source.complete(asking())):
            for _ in range(2):
                with pytest.raises((UpstreamFailed, UpstreamIdle)) as caught:
                    await ask()
                error = caught.value
                told = repr((error, error.detail, error.headers if isinstance(error, UpstreamRejected) else ()))
                body = error.body or b"" if isinstance(error, UpstreamRejected) else b""
                for key in KEYS:
                    assert key not in told
                    assert key not in body.decode()
        with pytest.raises((UpstreamFailed, UpstreamIdle)) as caught:
            await made.source.models()
        assert not any(key in repr((caught.value, caught.value.detail)) for key in KEYS)
        assert not any(key in repr(made.source._settings) for key in KEYS)
    assert not any(key in caplog.text for key in KEYS)


async def test_a_refusal_names_no_upstream_to_the_client(closed_port: int) -> None:
    own: Own = [
        {"url": f"http://127.0.0.1:{closed_port}/v1", "name": "internal-host"},
        {"name": "other-host", "weight": 0},
    ]
    async with bench(answering(WELL), in_turn(status(500)), own=own) as made:
        error = await made.failure()
    assert "host" not in str(error)
    assert str(closed_port) not in str(error)
    assert "internal-host: " in error.detail
    assert isinstance(error, UpstreamRejected | UpstreamUnreachable | UpstreamFailed)

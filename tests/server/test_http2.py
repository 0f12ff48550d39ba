"""HTTP/2 on real sockets: every endpoint, on both loops, with TLS and without (RFC 9113)."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from h2.settings import SettingCodes

from tests.support.certificates import Certificate
from tests.support.http2 import Http2Client
from tests.support.raw import Client as RawClient
from tests.support.raw import get
from tests.support.server import ServerProcess
from tests.support.tools import require_tool
from tests.support.waiting import eventually

ENDLESS: dict[str, Any] = {"tokens": None, "tokens_per_second": None}
PACED: dict[str, Any] = {"tokens": None, "tokens_per_second": 50}
Connect = Callable[..., Http2Client]


@pytest.fixture(scope="module", params=["asyncio", "uvloop", "asyncio over TLS", "uvloop over TLS"])
def shared_server(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[ServerProcess]:
    loop, _, secured = request.param.partition(" ")
    flags, tls = (certificate.flags, certificate.trusting()) if secured else ((), None)
    with ServerProcess("--loop", loop, "--heartbeat", "0", "--stall-timeout", "2", *flags, tls=tls) as made:
        yield made


@pytest.fixture
def connect(server: ServerProcess) -> Connect:
    """A connection of HTTP/2."""

    def made(**options: object) -> Http2Client:
        tls = None
        if server.tls is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        return Http2Client(server.port, tls=tls, **options)  # type: ignore[arg-type]  # what the test gave

    return made


def cuts(server: ServerProcess, reason: str) -> int:
    """What ``/metrics`` counts for that reason."""
    text = server.ask(get("/metrics")).body.decode()
    name = f'rawstream_http2_violations_total{{reason="{reason}"}} '
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return int(float(line.removeprefix(name)))


# --- every endpoint


def test_every_endpoint_answers_over_http_2(connect: Connect) -> None:
    """On one connection, all at once."""
    messages = {"messages": [{"role": "user", "content": "a"}], "mock": {"tokens": 5, "tokens_per_second": None}}
    page = {"messages": [{"role": "user", "parts": [{"type": "text", "text": "a"}]}], "mock": {"tokens": 5}}
    with connect() as client:
        chat = client.chat(tokens=5, tokens_per_second=None)
        streamed = client.ask("POST", "/v1/chat/completions", {**messages, "stream": True})
        whole = client.ask("POST", "/v1/chat/completions", messages)
        ui = client.ask("POST", "/api/chat", page)
        source = client.ask("GET", "/stream?prompt=a&mock=%7B%22tokens%22%3A5%7D")
        text = client.ask("POST", "/text", {"prompt": "a", "mock": {"tokens": 5}})
        others = {path: client.ask("GET", path) for path in ("/healthz", "/readyz", "/v1/models", "/", "/client.js")}
        answer = client.answer(chat)
        assert (answer.status, len(answer.tokens), answer.events[-1], answer.ended) == (200, 5, "[DONE]", True)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "connection" not in answer.headers
        assert "transfer-encoding" not in answer.headers
        assert len(answer.headers["x-stream-id"]) >= 20
        assert client.answer(streamed).events[-1] == "[DONE]"
        assert client.answer(whole).json()["choices"][0]["message"]["content"]
        assert client.answer(ui).events[-1] == "[DONE]"
        assert b".end" in client.answer(source).body
        assert client.answer(text).body
        for path, number in others.items():
            assert (client.answer(number).status, path) == (200, path)


def test_head_has_no_body_and_an_end(connect: Connect) -> None:
    with connect() as client:
        for path in ("/healthz", "/chat", "/"):
            answer = client.answer(client.ask("HEAD", path))
            assert (answer.body, answer.ended) == (b"", True)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/nowhere", None, (), 404),
        ("DELETE", "/chat", None, (), 405),
        ("POST", "/chat", b"{", (("content-type", "text/plain"),), 415),
        ("POST", "/chat", b"{", (("content-type", "application/json"),), 400),
        ("POST", "/chat", b"", (("content-type", "application/json"), ("content-length", "99999999")), 413),
        ("GET", "/healthz", None, (("x-long", "a" * 20_000),), 431),
        ("GET", "/healthz", None, (("expect", "200-ok"),), 417),
        ("POST", "/streams/nobody/stop", None, (), 404),
    ],
)
def test_a_refusal_costs_its_stream_and_no_other(
    connect: Connect, method: str, path: str, body: bytes | None, headers: tuple[tuple[str, str], ...], status: int
) -> None:
    with connect() as client:
        other = client.chat(tokens=3, tokens_per_second=None)
        number = client.ask(method, path, body, headers=headers, end=status != 413)
        assert client.answer(number).status == status
        assert client.answer(other).events[-1] == "[DONE]"
        assert client.answer(client.ask("GET", "/healthz")).status == 200


def test_a_large_body_goes_up_as_its_window_is_given_back(connect: Connect) -> None:
    """8 MiB through a window of 64 KiB; more than that is 413, however it was announced."""
    prompt = {"prompt": "a" * 1_000_000, "mock": {"tokens": 2, "tokens_per_second": None}}
    with connect() as client:
        assert client.answer(client.ask("POST", "/chat", prompt)).events[-1] == "[DONE]"


def test_a_body_that_is_too_long_is_413_without_having_been_announced(connect: Connect) -> None:
    with connect() as client:
        number = client.ask("POST", "/chat", b"", headers=(("content-type", "application/json"),), end=False)
        sent = 0
        while not client.answers[number].over:
            client.until(
                lambda: client.answers[number].over or client.h2.local_flow_control_window(number) >= 16_384, "room"
            )
            if not client.answers[number].over:
                client.h2.send_data(number, b" " * 16_384)
                client.flush()
                sent += 16_384
        assert client.answers[number].status == 413
        assert 8 * 1024 * 1024 < sent <= 9 * 1024 * 1024


def test_who_expects_100_is_told_to_go_on(connect: Connect) -> None:
    fields = (("content-type", "application/json"), ("expect", "100-continue"), ("content-length", "14"))
    with connect() as client:
        number = client.ask("POST", "/chat", b"", headers=fields, end=False)
        client.until(lambda: client.answers[number].interim == [100], "100 Continue")
        client.send_body(number, b'{"prompt":"a"}', end=True)
        client.until(lambda: client.answers[number].tokens, "a token")


def test_a_failure_in_the_stream_is_told_and_then_cut(connect: Connect) -> None:
    """Its own stream is reset; a clean end would look like a whole answer."""
    with connect() as client:
        other = client.chat(tokens=20, tokens_per_second=100)
        answer = client.answer(client.chat(tokens=10, fail_after=3, tokens_per_second=None))
        assert '"error"' in answer.events[-1]
        assert (answer.ended, answer.reset) == (False, 2)
        assert client.answer(other).events[-1] == "[DONE]"


def test_a_stream_is_stopped_by_another_on_the_same_connection(connect: Connect) -> None:
    with connect() as client:
        number = client.chat(**PACED)
        client.until(lambda: client.answers[number].tokens, "a token")
        secret = client.answers[number].headers["x-stream-id"]
        assert client.answer(client.ask("POST", f"/streams/{secret}/stop")).status == 202
        assert client.answer(number).ended


# --- backpressure


@pytest.mark.parametrize("window", [65_535, 1 << 20, 1 << 24])
def test_a_client_that_does_not_read_its_socket_bounds_all_its_streams(
    server: ServerProcess, connect: Connect, window: int
) -> None:
    """However large its windows: what it was granted beyond what the kernel takes stays with the sources."""
    streams = 20
    with connect(rcvbuf=4096, window=window) as client:
        for _ in range(streams):
            client.chat(**ENDLESS)
        seen: list[tuple[str, int]] = []

        def still() -> list[dict[str, Any]]:
            live = [one for one in server.debug()["streams"] if one["bytes"]]
            before, seen[:] = list(seen), [(one["id"], one["bytes"]) for one in live]
            return live if len(live) == streams and seen == before else []

        live = eventually(still, why="all streams stand still")
        for one in live:
            assert one["buffered"]["transport"] <= 8 * 1024
            assert one["waiting_for"] in ("client", "network")
        written = sum(one["bytes"] for one in live)
        # 8 KiB for each stream, and once what one HTTP/1.1 connection may hold.
        assert written <= streams * 8 * 1024 + 64 * 1024


def test_one_stalled_stream_holds_up_nobody(server: ServerProcess, connect: Connect) -> None:
    """49 keep their pace, /healthz answers, and the stalled one holds at most 16 KiB beyond its window."""
    with connect(window=16 * 1024) as client:
        stalled = client.chat(stalled=True, **ENDLESS)
        others = [client.chat(tokens=30, tokens_per_second=50) for _ in range(49)]
        client.until(lambda: client.answers[stalled].owed == 16 * 1024, "the window is drained")
        before = time.monotonic()
        assert client.answer(client.ask("GET", "/healthz")).status == 200
        assert time.monotonic() - before < 0.5
        (one,) = [one for one in server.debug()["streams"] if (one["http2"] or {}).get("stream") == stalled]
        assert one["http2"]["window"] == 0
        assert one["waiting_for"] == "client"
        assert one["bytes"] - 16 * 1024 <= 16 * 1024
        started = time.monotonic()
        for number in others:
            assert client.answer(number).events[-1] == "[DONE]"
        assert time.monotonic() - started < 2.0


def test_a_window_that_stays_shut_is_ended_by_the_stall_deadline(server: ServerProcess, connect: Connect) -> None:
    with connect(window=0) as client:
        number = client.chat(**ENDLESS)
        other = client.ask("GET", "/healthz")
        client.until(lambda: client.answers[number].reset is not None, "the reset", within=8)
        assert client.answers[number].body == b""
        assert client.answers[other].body == b""
    server.wait_line(lambda line: '"client_stalled"' in line)


def test_a_window_made_smaller_meanwhile_is_respected(connect: Connect) -> None:
    """§6.9.2: it may be negative for a while. h2's client raises when it is sent too much."""
    with connect(window=60_000) as client:
        number = client.chat(stalled=True, **ENDLESS)
        client.until(lambda: client.answers[number].owed == 60_000, "the window is drained")
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
        client.flush()
        assert client.answer(client.ask("GET", "/healthz")).status == 200
        client.stalled.discard(number)
        client.h2.increment_flow_control_window(59_500, number)
        client.flush()
        client.until(
            lambda: client.answers[number].owed == 60_000 and len(client.answers[number].body) > 60_000, "more"
        )
        client.reset(number)


def test_a_connection_window_that_others_used_up_is_shared_fairly(connect: Connect) -> None:
    """Who got nothing gets the next of it: nobody is starved by the order of the streams."""
    with connect() as client:
        client.h2.increment_flow_control_window = lambda *_: None  # type: ignore[method-assign]  # it gives nothing back
        numbers = [client.chat(**ENDLESS) for _ in range(4)]
        client.until(lambda: sum(len(client.answers[n].body) for n in numbers) == 65_535, "the window is used up")
        before = [len(client.answers[n].body) for n in numbers]
        for _ in range(40):
            total = sum(len(client.answers[n].body) for n in numbers)
            client.frame(8, 0, 0, struct.pack(">L", 1000))
            client.h2._inbound_flow_control_window_manager.window_opened(1000)
            client.until(lambda: sum(len(client.answers[n].body) for n in numbers) >= total + 1000, "a thousand more")  # noqa: B023
        gains = [len(client.answers[n].body) - was for n, was in zip(numbers, before, strict=True)]
        assert min(gains) > 5_000


def test_fast_streams_take_turns(connect: Connect) -> None:
    with connect(window=1 << 20) as client:
        numbers = [client.chat(**ENDLESS) for _ in range(5)]
        client.until(lambda: min(len(client.answers[n].body) for n in numbers) > 100_000, "100 kB on each")
        sizes = [len(client.answers[n].body) for n in numbers]
        assert max(sizes) < 3 * min(sizes)
        for number in numbers:
            client.reset(number)


# --- ends


def test_a_reset_cancels_its_source_and_no_other(server: ServerProcess, connect: Connect) -> None:
    with connect() as client:
        left, kept = client.chat(**PACED), client.chat(**PACED)
        client.until(lambda: client.answers[left].tokens and client.answers[kept].tokens, "both stream")
        client.reset(left)
        eventually(lambda: server.debug()["totals"]["streams"] == 1, why="one is left")
        was = len(client.answers[kept].tokens)
        client.until(lambda: len(client.answers[kept].tokens) > was + 3, "the other goes on")


def test_a_reset_while_the_body_comes_ends_the_request(server: ServerProcess, connect: Connect) -> None:
    with connect() as client:
        number = client.ask("POST", "/chat", b"{", headers=(("content-type", "application/json"),), end=False)
        client.reset(number)
        assert client.answer(client.ask("GET", "/healthz")).status == 200


def test_a_lost_connection_cancels_all_its_sources(server: ServerProcess, connect: Connect) -> None:
    with connect() as client:
        numbers = [client.chat(**PACED) for _ in range(10)]
        client.until(lambda: all(client.answers[n].tokens for n in numbers), "all stream")
    eventually(lambda: server.debug()["totals"]["streams"] == 0, why="none is left")


def test_a_clients_goodbye_lets_its_streams_end(connect: Connect) -> None:
    with connect() as client:
        number = client.chat(tokens=10, tokens_per_second=50)
        client.frame(7, 0, 0, struct.pack(">LL", 0, 0))
        assert client.answer(number).events[-1] == "[DONE]"
        client.until_closed()


def test_a_drain_says_goodbye_refuses_what_is_new_and_lets_streams_end() -> None:
    with ServerProcess("--drain-timeout", "10") as server, Http2Client(server.port) as client:
        number = client.chat(tokens=50, tokens_per_second=50)
        client.until(lambda: client.answers[number].tokens, "a token")
        server.signal(signal.SIGTERM)
        goodbye = struct.pack(">HBBBLLL", 0, 8, 7, 0, 0, number, 0)
        data = b""
        client.sock.settimeout(5)
        while goodbye not in data:  # h2's client takes a GOAWAY for the end of everything, and must not see it
            chunk = client.sock.recv(65536)
            assert chunk
            data += chunk
        block = client.h2.encoder.encode(
            [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/healthz")]
        )
        client.frame(1, 5, 99, block)
        assert server.wait(within=10) == 0
        while chunk := client.sock.recv(65536):
            data += chunk
        assert b"[DONE]" in data
        assert struct.pack(">HBBBLL", 0, 4, 3, 0, 99, 7) in data


def test_an_idle_connection_is_closed_and_so_is_one_that_never_begins() -> None:
    with ServerProcess("--keepalive-timeout", "0.3", "--head-timeout", "0.4") as server:
        with Http2Client(server.port) as client:
            assert client.answer(client.ask("GET", "/healthz")).status == 200
            client.until_closed(within=3)
            assert client.gone == 0
        for first in (b"PR", b"PRI * HTTP/2.0\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            with RawClient(server.port) as raw:
                raw.send(first)
                raw.sock.settimeout(3)
                while raw.sock.recv(4096):
                    pass


# --- who does not play by the rules


def test_more_streams_than_allowed_are_refused_one_by_one() -> None:
    with ServerProcess("--http2-streams", "3") as server, Http2Client(server.port) as client:
        client.until(lambda: client.h2.remote_settings.max_concurrent_streams == 3, "the limit")
        client.h2.remote_settings = type(client.h2.remote_settings)(client=False)
        numbers = [client.chat(**PACED) for _ in range(5)]
        client.until(lambda: [client.answers[n].reset for n in numbers[3:]] == [7, 7], "REFUSED_STREAM")
        client.until(lambda: all(client.answers[n].tokens for n in numbers[:3]), "the others stream")
        assert cuts(server, "too_many_streams") == 2


def flood(client: Http2Client, one: bytes, times: int = 20_000) -> None:
    try:
        client.raw(one * times)
    except OSError:
        pass  # it has been cut already
    client.until_closed()


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (struct.pack(">HBBBL", 0, 8, 6, 0, 0) + bytes(8), "pings"),
        (struct.pack(">HBBBL", 0, 0, 4, 0, 0), "settings"),
        (struct.pack(">HBBBLL", 0, 4, 8, 0, 0, 1), "window"),
        (struct.pack(">HBBBL", 0, 5, 2, 0, 1) + bytes(5), "priorities"),
        (struct.pack(">HBBBL", 0, 1, 99, 0, 1) + b"a", "unknown"),
    ],
    ids=["pings", "settings", "window", "priorities", "unknown"],
)
def test_a_flood_is_cut_and_counted(server: ServerProcess, connect: Connect, one: bytes, reason: str) -> None:
    before = cuts(server, reason)
    with connect() as client:
        flood(client, one)
    assert cuts(server, reason) == before + 1


def test_ten_thousand_rapid_resets_leave_nothing_behind(server: ServerProcess, connect: Connect) -> None:
    """No source runs on, memory is flat, and another connection's requests are answered meanwhile."""
    memory = server.rss()
    with connect() as other, connect() as client:
        literal = b"\x82\x86\x41\x09localhost\x04\x10/stream?prompt=a"
        frames = bytearray()
        for number in range(1, 20_001, 2):
            frames += struct.pack(">I", len(literal))[1:] + struct.pack(">BBI", 1, 5, number) + literal
            frames += struct.pack(">HBBBLL", 0, 4, 3, 0, number, 8)
        waits: list[float] = []
        over = threading.Event()

        def ask() -> None:
            while not over.is_set() or len(waits) < 20:
                began = time.monotonic()
                assert other.answer(other.ask("GET", "/healthz")).status == 200
                waits.append(time.monotonic() - began)

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask)
            try:
                flood(client, bytes(frames), 1)
            finally:
                over.set()
            asking.result(10)
        assert client.gone in (11, None)
        assert max(waits) < 0.5
    assert server.debug()["totals"]["streams"] == 0
    assert server.rss() - memory < 16 * 1024 * 1024


def test_who_floods_and_reads_nothing_is_cut_all_the_same(server: ServerProcess, connect: Connect) -> None:
    """Its patience is spent before the 64 KiB of control frames that may wait for it: nothing piles up."""
    memory = server.rss()
    with connect(rcvbuf=4096) as client:
        flood(client, struct.pack(">HBBBL", 0, 8, 6, 0, 0) + bytes(8), 200_000)
    assert server.rss() - memory < 16 * 1024 * 1024


# --- other people's clients


def test_curl_speaks_it_with_and_without_tls(server: ServerProcess) -> None:
    how = ["--http2", "-k"] if server.tls is not None else ["--http2-prior-knowledge"]
    done = subprocess.run(
        [require_tool("curl"), "-sS", "-N", *how, "-w", "%{http_version}", "--json", '{"prompt":"a"}',
         f"{server.url}/chat", "-m", "10"],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert done.stdout.endswith("data: [DONE]\n\n2")


def test_httpx_streams(server: ServerProcess) -> None:
    """Fifty at a time on one connection."""

    async def all_of_them() -> set[tuple[str, int, bool]]:
        async with httpx.AsyncClient(http1=False, http2=True, verify=False, timeout=10) as client:
            body = {"prompt": "a", "mock": {"tokens": 5, "tokens_per_second": 100}}
            answers = await asyncio.gather(*[client.post(f"{server.url}/chat", json=body) for _ in range(50)])
        return {(one.http_version, one.status_code, one.text.endswith("data: [DONE]\n\n")) for one in answers}

    assert asyncio.run(all_of_them()) == {("HTTP/2", 200, True)}


def test_h2load_finds_no_error(server: ServerProcess) -> None:
    done = subprocess.run(
        [require_tool("h2load"), "-n", "1000", "-c", "10", "-m", "100", f"{server.url}/healthz"],
        capture_output=True, text=True, timeout=60, check=True, env={**os.environ},
    )  # fmt: skip
    assert "1000 succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout


def test_nghttp_streams(server: ServerProcess) -> None:
    done = subprocess.run(
        [require_tool("nghttp"), "--no-verify-peer", f"{server.url}/stream?prompt=a&mock=%7B%22tokens%22%3A5%7D"],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert ".end" in done.stdout

"""Clients that misbehave while a stream runs, leave in every way, or take nothing (rows 25 to 29 and 32)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import FLAGS
from tests.support import raw
from tests.support.raw import ENDLESS, Client, chat, get, post
from tests.support.recording import Record
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

KiB = 1024
MiB = 1024 * KiB
SLOW: dict[str, Any] = {"tokens": 30, "tokens_per_second": 60}


# --- 25, 26: bytes during a stream -----------------------------------------------------------------------------


def test_fifty_requests_sent_during_a_stream_are_answered_after_it_in_order(server: ServerProcess) -> None:
    """Row 25: the stream is not disturbed, and pipelined requests wait for their turn."""
    with Client(server.port) as client:
        client.send(chat(**SLOW))
        reply = client.head()
        client.send(b"".join(get("/healthz", x_request_id=f"id{number}") for number in range(50)))
        reply.body = b"".join(client.parts())
        assert (len(reply.tokens), reply.done) == (30, True)
        answers = [client.reply() for _ in range(50)]
    assert [answer.header("x-request-id") for answer in answers] == [f"id{number}" for number in range(50)]
    assert {answer.status for answer in answers} == {200}


def test_fifty_streams_in_one_pipeline_do_not_mix(server: ServerProcess) -> None:
    """Row 25: streams behind a stream, each whole and under its own id."""
    with Client(server.port) as client:
        for number in range(50):
            client.send(chat(request_id=f"s{number}", tokens=number + 1, tokens_per_second=None))
        for number in range(50):
            reply = client.reply()
            assert reply.header("x-request-id") == f"s{number}"
            assert (len(reply.tokens), reply.done) == (number + 1, True)


@pytest.mark.parametrize("what", ["requests", "a body", "binary"])
def test_who_floods_a_running_stream_is_cut_and_costs_no_memory(server: ServerProcess, what: str) -> None:
    """Row 26: 64 MB of surplus bytes. At most 16 KiB are kept; then the connection goes, and its stream with it."""
    block = {"requests": get("/healthz") * 1000, "a body": b"a" * 64 * KiB, "binary": b"\0\xff" * 32 * KiB}[what]
    before = server.rss()
    with Client(server.port) as client:
        client.send(chat(request_id=f"flood {what}".replace(" ", "-"), tokens=None, tokens_per_second=50))
        client.head()
        sent = 0
        while sent < 64 * MiB and client.try_send(block):
            sent += len(block)
        assert sent < 64 * MiB
        assert server.rss() - before < 2 * MiB
        client.rest()
    line = server.ended(f"flood {what}".replace(" ", "-"))
    assert (line["outcome"], line["ended_by"]) == ("client_misbehaved", "client")


def test_sixteen_kilobytes_are_kept_for_later(server: ServerProcess) -> None:
    """Row 26, the other side: what fits the allowance is no offence."""
    with Client(server.port) as client:
        client.send(chat(**SLOW))
        reply = client.head()
        count = 16 * KiB // len(get("/healthz"))
        client.send(get("/healthz") * count)
        reply.body = b"".join(client.parts())
        assert reply.done
        assert [client.reply().status for _ in range(count)] == [200] * count


# --- 27: half-close --------------------------------------------------------------------------------------------


def test_a_complete_get_is_answered_after_a_half_close(server: ServerProcess) -> None:
    """Row 27: FIN after a request says that no other follows, not that nobody listens."""
    with Client(server.port) as client:
        reply = client.send(get("/v1/models")).half_close().reply()
        assert (reply.status, reply.whole) == (200, True)
        assert client.rest() == b""


@pytest.mark.parametrize("when", ["with the request", "mid stream"])
def test_a_fin_during_a_stream_means_that_the_client_has_left(server: ServerProcess, when: str) -> None:
    """Row 27: browsers and curl close their side when they go; nothing else may tell us."""
    name = f"fin-{when.replace(' ', '-')}"
    with Client(server.port) as client:
        client.send(chat(request_id=name, tokens=None, tokens_per_second=100))
        if when == "mid stream":
            client.head()
            client.until(b"token")
        client.half_close()
        client.rest(within=1)
    assert server.ended(name, within=1)["outcome"] == "client_left"


def test_half_close_continue_serves_the_whole_stream() -> None:
    """Row 27: with ``--half-close continue`` a FIN is no end, whenever it comes."""
    with ServerProcess(*FLAGS, "--half-close", "continue") as server:
        for early in (True, False):
            with Client(server.port) as client:
                client.send(chat(**SLOW))
                if early:
                    client.half_close()
                reply = client.head()
                first = client.until(b"token")
                if not early:
                    client.half_close()
                reply.body = first + b"".join(client.parts())
                assert (len(reply.tokens), reply.done) == (30, True)
                assert client.rest() == b""
        with Client(server.port) as client:  # and who leaves altogether is still seen to leave
            client.send(chat(request_id="gone", tokens=None, tokens_per_second=100))
            client.head()
            client.half_close()
            client.until(b"token")
        assert server.ended("gone", within=2)["outcome"] == "client_left"
        server.assert_steady()


# --- 28: leaving -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return Record(tmp_path_factory.mktemp("record") / "events.jsonl")


@pytest.fixture(scope="module")
def recording_server(record: Record) -> Iterator[ServerProcess]:
    with ServerProcess(*FLAGS, "--source", "tests.support.recording:tokens", env=record.env) as server:
        yield server
        server.assert_steady()


MOMENTS = ["right after the request", "before the first token", "mid stream", "while stalled"]


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("when", MOMENTS)
def test_whoever_leaves_takes_the_source_along(
    recording_server: ServerProcess, record: Record, how: str, when: str
) -> None:
    """Row 28: within a second the generator has been closed and its ``finally`` has run, at whatever moment."""
    server = recording_server
    prompt = f"{how}-{when}".replace(" ", "-")
    slow = when == "before the first token"
    pause = {"before the first token": 30.0, "mid stream": 0.01}.get(when, 0.0)
    client = Client(server.port, rcvbuf=4096)
    client.send(post("/chat", {"prompt": prompt, "pause": pause}, x_request_id=prompt))
    if when != "right after the request":
        record.opened(prompt)
    if when == "mid stream":
        client.head()
        client.until(b"token")
    if when == "while stalled":
        eventually(lambda: server.debug()["streams"][0]["state"] == "paused", why="the client is full")
    if how == "rst":
        client.reset()
    else:
        client.close()
    line = server.ended(prompt, within=2)
    assert line["outcome"] == "client_left"
    if when != "right after the request" or record.events(prompt):
        closed = record.closed(prompt)
        assert not slow or closed["yielded"] == 0
    server.assert_steady()


def test_a_reset_before_the_request_is_complete_starts_nothing(recording_server: ServerProcess, record: Record) -> None:
    """Row 28: half a request is no request."""
    data = post("/chat", {"prompt": "half"})
    for cut in (10, len(data) - 5):
        client = Client(recording_server.port)
        client.send(data[:cut])
        client.reset()
    recording_server.assert_steady()
    assert record.events("half") == []


def test_a_source_that_raises_is_told_without_its_secrets(recording_server: ServerProcess) -> None:
    """A source's own exception: its type for the client, its text for the log alone, and no clean end."""
    body = {"prompt": "fails", "count": 3, "fail": True}
    reply = raw.ask(recording_server.port, post("/chat", {**body, "pause": 0.01}, x_request_id="fails"))
    assert reply.error is not None
    assert reply.error["code"] == "source_failed"
    assert not reply.done
    assert not reply.whole
    assert b"secret detail" not in reply.body
    line = recording_server.ended("fails")
    assert line["outcome"] == "source_failed"
    assert "secret detail" in line["detail"]
    recording_server.forgive("secret detail")  # the user's own code's traceback, not ours


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_source_that_swallows_its_cancellation_is_closed_all_the_same(loop: str, tmp_path: Path) -> None:
    """Row 28: users' code catches what it should not. The stream still ends as what it is, and the source too."""
    record = Record(tmp_path / "events.jsonl")
    flags = (*FLAGS, "--loop", loop, "--source", "tests.support.recording:stubborn")
    with ServerProcess(*flags, env=record.env) as server:
        with Client(server.port) as client:
            client.send(post("/chat", {"prompt": "stubborn"}, x_request_id="stubborn"))
            client.head()
            client.until(b"token")
        assert server.ended("stubborn")["outcome"] == "client_left"
        record.closed("stubborn")
        server.assert_steady()


# --- 29, 32: taking nothing ------------------------------------------------------------------------------------


def test_who_reads_nothing_is_evicted_and_nobody_else_notices(server: ServerProcess) -> None:
    """Row 29: five that read nothing go at the stall deadline; one that reads gets every token on time meanwhile."""
    stalled = [Client(server.port, rcvbuf=4096) for _ in range(5)]
    for number, client in enumerate(stalled):
        client.send(chat(request_id=f"stalled{number}", **ENDLESS))
    with Client(server.port) as reader:
        reply = reader.ask(chat(request_id="reader", tokens=80, tokens_per_second=50), within=10)
    assert (len(reply.tokens), reply.done) == (80, True)
    assert server.ended("reader")["seconds"] < 2.2
    for number, client in enumerate(stalled):
        line = server.ended(f"stalled{number}", within=3)
        assert (line["outcome"], line["ended_by"]) == ("client_stalled", "client")
        assert 0.9 < line["seconds"] < 2.0
        assert line["tokens"] <= 600, "the source was paused meanwhile"
        assert line["seconds_client"] > 0.8
        client.rest()
        client.close()


@pytest.mark.slow
def test_a_slow_reader_is_not_a_stalled_one(server: ServerProcess) -> None:
    """Row 29, the other side: who takes something in each stall time is served for as long as it takes."""
    with Client(server.port, rcvbuf=4096) as client:
        client.send(chat(request_id="sipping", **ENDLESS))
        client.head()
        for _ in range(7):
            time.sleep(0.4)  # this reader's pace
            left = 4096
            while left > 0:
                assert client.more(size=left)
                left -= len(client.take())
        assert server.debug()["streams"][0]["age"] > 2.5
    assert server.ended("sipping")["outcome"] == "client_left"


@pytest.mark.skipif(sys.platform != "linux", reason="a socket filter makes the peer vanish; Linux only")
@pytest.mark.parametrize("moment", ["while tokens flow", "while the source is silent", "idle"])
def test_a_peer_that_vanishes_without_a_word_is_let_go(server: ServerProcess, moment: str) -> None:
    """Row 32: no FIN, no RST, no acknowledgement: the deadlines for a stall or an idle connection free it.

    A silent source is where only a heartbeat can find out that nobody is there.
    """
    if moment == "while the source is silent":
        with ServerProcess(*FLAGS, "--heartbeat", "0.3") as beating:
            with Client(beating.port) as client:
                client.send(chat(request_id="vanished", tokens=None, tokens_per_second=100, first_token_seconds=60))
                client.head()
                client.vanish()
                assert beating.ended("vanished", within=4)["outcome"] == "client_stalled"
                beating.assert_steady()
        return
    with Client(server.port) as client:
        if moment == "idle":
            client.ask(get("/healthz"))
            client.vanish()
        else:
            client.send(chat(request_id="vanished", tokens=None, tokens_per_second=100))
            client.head()
            client.vanish()
            assert server.ended("vanished", within=4)["outcome"] == "client_stalled"
        server.assert_steady()

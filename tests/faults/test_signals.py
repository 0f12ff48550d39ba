"""How the process ends, and what does not end it (row 34)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import raw
from tests.support.raw import ENDLESS, Client, chat, get, post
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

SLOW: dict[str, Any] = {"tokens": None, "tokens_per_second": 100}
BOTH = [signal.SIGTERM, signal.SIGINT]


def streaming(server: ServerProcess, request_id: str, **mock: Any) -> Client:
    """A client whose stream has begun."""
    client = Client(server.port)
    client.send(chat(request_id=request_id, **(mock or SLOW)))
    client.head()
    client.until(b"token")
    return client


def refused(port: int) -> bool:
    try:
        Client(port).close()
    except ConnectionError:
        return True
    return False


def until_cut(client: Client) -> bytes:
    """All of the body that still comes. AssertionError when it then ends cleanly."""
    got = b""
    try:
        while (part := client.body_part(within=2)) is not None:
            got += part
    except EOFError:
        return got
    raise AssertionError("the body ended as if it were whole")


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


@pytest.mark.parametrize("number", BOTH, ids=lambda number: number.name)
def test_an_idle_server_ends_at_once_with_code_0(number: signal.Signals) -> None:
    """Connections that are idle between two requests have nothing to wait for: they are closed, and it ends."""
    with ServerProcess() as server:
        with Client(server.port) as idle, Client(server.port) as silent:
            idle.ask(get("/healthz"))
            began = time.monotonic()
            server.signal(number)
            assert idle.rest(within=1) == b""
            assert silent.rest(within=1) == b""
            assert server.wait(within=2) == 0
            assert time.monotonic() - began < 1


@pytest.mark.parametrize("number", BOTH, ids=lambda number: number.name)
def test_streams_may_finish_in_the_time_of_grace(number: signal.Signals) -> None:
    """Those that run go on to their own end; nobody new is let in; then it exits with 0, without waiting longer."""
    with ServerProcess("--drain-timeout", "10") as server:
        with Client(server.port) as client:
            client.send(chat(request_id="last", tokens=40, tokens_per_second=100))
            reply = client.head()
            first = client.until(b"token")
            server.signal(number)
            server.wait_line(lambda line: "ending" in line)
            eventually(lambda: refused(server.port), within=1, why="new connections are refused")
            reply.body = first + b"".join(client.parts())
            assert (len(reply.tokens), reply.done) == (40, True)
            assert client.rest() == b"", "the connection is closed after it"
        assert server.wait(within=2) == 0
        assert server.ended("last")["outcome"] == "completed"


def test_readiness_goes_first() -> None:
    """While streams finish, whoever can still ask is told 503 draining, and that this was the last answer."""
    with ServerProcess("--drain-timeout", "10") as server:
        assert raw.ask(server.port, get("/readyz")).status == 200
        with Client(server.port) as client:
            client.send(chat(tokens=30, tokens_per_second=100))
            client.head()
            client.send(get("/readyz") + get("/healthz"))
            server.signal(signal.SIGTERM)
            list(client.parts())
            reply = client.reply()
            assert (reply.status, reply.json()["status"]) == (503, "draining")
            assert reply.header("connection") == "close"
            assert client.rest() == b""
        assert server.wait(within=2) == 0


def test_after_the_grace_streams_are_told_and_cut() -> None:
    """An in-stream error with code ``shutdown``, never ``[DONE]``, never a clean end; and still exit code 0."""
    with ServerProcess("--drain-timeout", "0.3") as server:
        clients = [streaming(server, f"cut{number}") for number in range(3)]
        waiting = Client(server.port)
        waiting.send(chat(request_id="early", tokens=5, tokens_per_second=None, first_token_seconds=60))
        eventually(lambda: server.debug()["totals"]["streams"] == 4)
        server.signal(signal.SIGTERM)
        for number, client in enumerate(clients):
            got = until_cut(client)
            assert b'"code": "shutdown"' in got
            assert b"[DONE]" not in got
            assert server.ended(f"cut{number}")["outcome"] == "shutdown"
            client.close()
        reply = waiting.reply()
        assert (reply.status, reply.json()["code"]) == (503, "shutdown"), "before its first token: a real status"
        assert reply.header("retry-after")
        waiting.close()
        assert server.ended("early")["outcome"] == "shutdown"
        assert server.wait(within=2) == 0


def test_nobody_holds_up_the_end() -> None:
    """A client that takes nothing, one in the middle of its head, one in the middle of its body: cut, exit code 0."""
    with ServerProcess("--drain-timeout", "0.2", "--cancel-timeout", "0.5", "--flush-timeout", "0.2") as server:
        stalled = Client(server.port, rcvbuf=4096)
        stalled.send(chat(request_id="stalled", **ENDLESS))
        half = Client(server.port).send(b"GET /healthz HT")
        body = Client(server.port).send(chat()[:-3])
        whole = Client(server.port).send(post("/v1/chat/completions", {"messages": [{"role": "user"}]}))
        eventually(lambda: any(s["state"] == "paused" for s in server.debug()["streams"]), why="it is full")
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait(within=3) == 0
        assert time.monotonic() - began < 1.5
        assert server.ended("stalled")["outcome"] in ("shutdown", "client_stalled")
        for client in (stalled, half, body, whole):
            client.close()


@pytest.mark.parametrize("second", BOTH, ids=lambda number: number.name)
def test_a_second_signal_ends_it_now(second: signal.Signals) -> None:
    """Whatever grace is left. Streams are cut (never ended cleanly), each with its outcome; exit code 0."""
    with ServerProcess("--drain-timeout", "60") as server:
        client = streaming(server, "now")
        server.signal(signal.SIGTERM)
        server.wait_line(lambda line: "ending" in line)
        client.until(b"token")
        began = time.monotonic()
        server.signal(second)
        assert server.wait(within=2) == 0
        assert time.monotonic() - began < 1
        assert b"[DONE]" not in until_cut(client)
        client.close()
        assert server.ended("now")["outcome"] == "shutdown"


@pytest.mark.parametrize("number", [signal.SIGPIPE, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_that_end_nothing(number: signal.Signals) -> None:
    """A stream does not notice them."""
    with ServerProcess() as server:
        with Client(server.port) as client:
            client.send(chat(tokens=40, tokens_per_second=100))
            reply = client.head()
            for _ in range(3):
                server.signal(number)
            reply.body = b"".join(client.parts())
            assert (len(reply.tokens), reply.done) == (40, True)
        server.assert_steady()


def test_a_process_that_was_stopped_goes_on_where_it_was() -> None:
    """SIGSTOP for longer than the stall and idle deadlines, then SIGCONT: who reads is not blamed for the pause."""
    with ServerProcess("--stall-timeout", "0.5", "--heartbeat", "0") as server:
        with Client(server.port) as client:
            client.send(chat(request_id="frozen", tokens=100, tokens_per_second=100))
            reply = client.head()
            first = client.until(b"token")
            server.signal(signal.SIGSTOP)
            eventually(lambda: stopped(server.pid))
            time.sleep(1.0)  # time that passes for the deadlines
            os.kill(server.pid, signal.SIGCONT)
            reply.body = first + b"".join(client.parts())
            assert (len(reply.tokens), reply.done) == (100, True)
        server.assert_steady()


def test_a_client_that_dies_while_the_process_is_stopped_is_noticed_afterwards() -> None:
    """What happened meanwhile is seen at SIGCONT, and the stop itself ended nothing."""
    with ServerProcess("--heartbeat", "0") as server:
        client = streaming(server, "died")
        server.signal(signal.SIGSTOP)
        eventually(lambda: stopped(server.pid))
        client.reset()
        server.signal(signal.SIGCONT)
        assert server.ended("died", within=1)["outcome"] == "client_left"
        server.assert_steady()


def test_sigterm_while_stopped_is_obeyed_at_cont() -> None:
    """As process managers do it: TERM, then CONT."""
    with ServerProcess() as server:
        server.signal(signal.SIGSTOP)
        eventually(lambda: stopped(server.pid))
        server.signal(signal.SIGTERM)
        server.signal(signal.SIGCONT)
        assert server.wait(within=2) == 0

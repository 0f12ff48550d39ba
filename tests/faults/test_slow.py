"""Clients that are slow to ask: silence, drips, and idle connections (rows 30 and 31)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support import raw
from tests.support.raw import Client, chat, get, request
from tests.support.server import ServerProcess
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ServerProcess]:
    """Half a second for a head, a body, and an idle connection."""
    with ServerProcess(
        "--head-timeout", "0.5", "--body-timeout", "0.5", "--keepalive-timeout", "0.5", "--heartbeat", "0"
    ) as made:
        yield made


def drip(client: Client, data: bytes, pause: float) -> float:
    """Send a byte at a time until the peer answers or closes, which must be before the last; the seconds that took."""
    began = time.monotonic()
    for at in range(len(data)):
        if not client.try_send(data[at : at + 1]):
            break
        client.sock.settimeout(pause)
        try:
            if client.sock.recv(1, 2):  # MSG_PEEK: is there an answer?
                break
        except TimeoutError:
            continue
        except ConnectionResetError:
            break
    else:
        raise AssertionError("it was all sent, and nobody minded")
    return time.monotonic() - began


def test_who_connects_and_says_nothing_is_closed_at_the_head_deadline(server: ServerProcess) -> None:
    """Row 30: the time for a head runs from the connection on. Nothing was asked, and nothing is answered: browsers
    connect ahead of need, and would take a 408 for the answer to what they ask next."""
    began = time.monotonic()
    with Client(server.port) as client:
        rest = client.rest()
        assert time.monotonic() - began > 0.4
        assert rest == b""


@pytest.mark.parametrize("first", [b"", b"\r\n"])
def test_a_head_that_drips_in_is_refused_at_its_deadline(server: ServerProcess, first: bytes) -> None:
    """Row 30: each byte is progress, and the deadline is for the whole head all the same."""
    with Client(server.port) as client:
        client.send(first)
        took = drip(client, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100, 0.05)
        assert took > 0.4
        assert client.reply().status == 408
        client.rest()


def test_a_second_head_that_drips_in_is_refused_too(server: ServerProcess) -> None:
    """Row 30: after an answer the same holds, counted from the head's first byte."""
    with Client(server.port) as client:
        client.ask(get("/healthz"))
        took = drip(client, b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 100, 0.05)
        assert took > 0.4
        assert client.reply().status == 408
        client.rest()


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_that_drips_in_is_refused_at_its_deadline(server: ServerProcess, framing: str) -> None:
    """Row 30: the same for a body, however it is framed, and nothing was started for it."""
    fields = {"Content-Type": "application/json"}
    fields |= {"Content-Length": "1000"} if framing == "length" else {"Transfer-Encoding": "chunked"}
    opened = server.debug()["totals"]["opened"]
    with Client(server.port) as client:
        client.send(request("POST", "/chat", fields))
        data = b" " * 100 if framing == "length" else b"1\r\n \r\n" * 20
        took = drip(client, data, 0.05)
        assert took > 0.4
        reply = client.reply()
        assert (reply.status, reply.header("connection")) == (408, "close")
        client.rest()
    assert server.debug()["totals"]["opened"] == opened


def test_a_body_that_nobody_wants_has_a_deadline_too(server: ServerProcess) -> None:
    """Row 30: also where the answer does not depend on the body."""
    with Client(server.port) as client:
        client.send(request("GET", "/healthz", {"Content-Length": "1000"}))
        drip(client, b" " * 100, 0.05)
        assert client.reply().status in (200, 408)
        client.rest()


def test_an_idle_connection_is_closed_without_a_word_at_its_limit(server: ServerProcess) -> None:
    """Row 31: a client that reuses the connection must not find an unasked-for answer there."""
    with Client(server.port) as client:
        client.ask(get("/healthz"))
        began = time.monotonic()
        assert client.rest() == b""
        assert time.monotonic() - began > 0.4


def test_a_stream_is_not_idle_however_long_its_source_is_silent(server: ServerProcess) -> None:
    """Row 31: the limit for idle connections, and the one for heads, are off while an answer is owed."""
    with Client(server.port) as client:
        reply = client.ask(chat(tokens=2, tokens_per_second=None, first_token_seconds=1.1))
        assert (len(reply.tokens), reply.done) == (2, True)


def test_500_idle_connections_hinder_nobody(server: ServerProcess) -> None:
    """Row 31: with them open, a stream goes on; then they are closed, all of them, at their limit."""
    idle = [Client(server.port) for _ in range(500)]
    for client in idle:
        client.send(get("/healthz"))
    for client in idle:
        assert client.reply().status == 200
    reply = raw.ask(server.port, chat(tokens=20, tokens_per_second=100))
    assert (len(reply.tokens), reply.done) == (20, True)
    eventually(lambda: server.debug()["totals"]["connections"] == 1, why="only we are left")
    for client in idle:
        client.close()

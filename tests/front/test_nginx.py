"""nginx: what each line of the README's site is for, shown by nginx as Debian ships it, which lacks it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.front.behind import PATHS, SOURCE, asking, in_step, stall
from tests.front.sources import FAILURE
from tests.support import raw
from tests.support.fronts import Nginx, change, nginx_as_debian_ships, nginx_buffering, nginx_gzip, nginx_readme
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(*SOURCE, "--heartbeat", "0", "--stall-timeout", "1") as made:
        yield made
        made.assert_steady()


@pytest.fixture(scope="module")
def shipped(server: ServerProcess) -> Iterator[Nginx]:
    """nginx as Debian ships it."""
    with Nginx(nginx_as_debian_ships(), server.port) as made:
        yield made


@pytest.mark.parametrize("path", PATHS)
def test_as_debian_ships_it_our_header_is_enough_for_every_stream(shipped: Nginx, path: str) -> None:
    """``x-accel-buffering: no`` turns off the buffering that is on, over HTTP/1.0 too."""
    in_step(shipped, path, 30)


def test_where_that_header_is_ignored_the_stream_is_held_back(server: ServerProcess) -> None:
    """The control: no token at all arrives, not even the head. ``proxy_buffering off`` is for this nginx."""
    with Nginx(nginx_buffering(), server.port) as front, pytest.raises(AssertionError, match="no response head"):
        in_step(front, "/chat", 1, deadline=1)
    off = nginx_as_debian_ships("proxy_ignore_headers X-Accel-Buffering;", "proxy_buffering off;")
    with Nginx(off, server.port) as front:
        in_step(front, "/chat", 30)


def test_a_buffering_nginx_takes_what_the_source_makes_onto_its_disk(server: ServerProcess) -> None:
    """The control of backpressure: a reader that reads nothing, and 20 MB made for it. A buffer is not a stall."""
    with Nginx(nginx_buffering(), server.port) as front, raw.Client(front.port, rcvbuf=4096) as client:
        client.send(asking("/chat"))
        eventually(lambda: any(stream["bytes"] > 20e6 for stream in server.debug()["streams"]), within=20)


def test_without_sndbuf_the_kernel_alone_takes_megabytes(server: ServerProcess) -> None:
    """``listen … sndbuf=16k`` is what bounds the bytes between us and a client that does not read."""
    with Nginx(change(nginx_readme(), ("listen 80", "listen 80;")), server.port) as front:
        line = stall(front, server, within=20)
    assert line["outcome"] == "client_stalled"
    assert line["bytes"] > 1e6


def test_event_streams_may_be_compressed_where_nothing_is_buffered(server: ServerProcess) -> None:
    """gzip flushes each token (it costs CPU, and saves little); only a client that asks for it gets it."""
    with Nginx(nginx_gzip(), server.port) as front:
        in_step(front, "/chat", 10)
        with raw.Client(front.port) as client:
            reply = client.ask(asking("/chat", headers={"Accept-Encoding": "gzip"}, count=3))
        assert reply.header("content-encoding") == "gzip"
        assert raw.ask(front.port, asking("/chat", count=3)).header("content-encoding") is None


def test_as_debian_ships_it_bodies_of_more_than_a_megabyte_are_refused(shipped: Nginx) -> None:
    """``client_max_body_size``: 1 MB by default."""
    with raw.Client(shipped.port) as client:
        client.try_send(asking("/chat", count=1, padding="a" * 2_000_000))
        assert client.head().status == 413


@pytest.mark.parametrize("request_buffering", ["on", "off"])
def test_our_own_refusal_of_a_body_passes_while_nginx_still_sends_it(
    server: ServerProcess, request_buffering: str
) -> None:
    """A 413 that is followed by a reset would be nginx's 502."""
    limit = f"client_max_body_size 20m; proxy_request_buffering {request_buffering};"
    with Nginx(change(nginx_readme(), ("client_max_body_size", limit)), server.port) as front:
        for _ in range(5):
            with raw.Client(front.port) as client:
                client.try_send(asking("/chat", count=1, padding="a" * 9_000_000))
                assert client.head().status == 413


def test_as_debian_ships_it_everybody_is_let_in(shipped: Nginx) -> None:
    """The control of ``return 404``: rawstream takes nginx for somebody on this machine, which it is."""
    assert raw.ask(shipped.port, raw.get("/debug/streams")).status == 200


def test_as_debian_ships_it_each_request_is_a_new_connection_to_us(shipped: Nginx, server: ServerProcess) -> None:
    """``keepalive``, ``proxy_http_version 1.1`` and an empty ``Connection`` together keep them."""
    with raw.Client(shipped.port) as client:
        assert client.ask(asking("/chat", count=2)).done
        eventually(lambda: server.debug()["totals"]["connections"] == 1, why="only the asking connection is left")


def test_as_debian_ships_it_a_killed_server_looks_like_a_whole_answer() -> None:
    """HTTP/1.0 to us has no framing: text that stops in the middle is given to the client with a clean end.

    It is ``proxy_http_version 1.1`` that makes the cut visible (``test_both``).
    """
    with ServerProcess(*SOURCE) as server, Nginx(nginx_as_debian_ships(), server.port) as front:
        with raw.Client(front.port) as client:
            client.send(asking("/text", silence=60)).head()
            client.until(b"t1.")
            server.process.kill()
            server.wait()
            assert client.body_part() is None, "a clean end"


@pytest.mark.parametrize("path", PATHS)
def test_a_failure_is_seen_as_a_cut_even_as_debian_ships_it(shipped: Nginx, server: ServerProcess, path: str) -> None:
    """A failing stream ends with a reset, which nginx does not take for an end, as it does a FIN."""
    with raw.Client(shipped.port) as client:
        reply = client.ask(asking(path, count=3, fail=1))
    server.wait_line(lambda line: FAILURE in line)
    server.forgive(FAILURE)
    assert (reply.status, reply.whole, reply.done) == (200, False, False)


def _answer_and_close(listener: socket.socket, body: bytes) -> None:
    with closing(listener.accept()[0]) as peer:
        peer.recv(65536)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + body)


def test_a_close_delimited_answer_that_is_cut_ends_cleanly_behind_nginx() -> None:
    """Why rawstream sends chunks to whoever speaks HTTP/1.1: half an event, and nginx says that this was all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        half = b'data: {"token": "hal'
        thread = threading.Thread(target=_answer_and_close, args=(listener, half), name="cut upstream")
        thread.start()
        with Nginx(nginx_readme(), listener.getsockname()[1]) as front:
            reply = raw.ask(front.port, asking("/chat"))
        thread.join(10)
    assert (reply.body, reply.whole) == (half, True)

"""What rawstream promises behind nginx and behind HAProxy, with the README's configurations as they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.front.behind import PATHS, SOURCE, asking, in_step, leave, new_id, stall
from tests.front.sources import FAILURE
from tests.support import raw
from tests.support.fronts import Front, HAProxy, Nginx, haproxy_readme, nginx_readme
from tests.support.server import ServerProcess

pytestmark = pytest.mark.real

FRONTS: dict[str, Callable[[int], Front]] = {
    "nginx": lambda port: Nginx(nginx_readme(), port),
    "haproxy": lambda port: HAProxy(haproxy_readme(), port),
}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(*SOURCE, "--heartbeat", "0", "--stall-timeout", "1") as made:
        yield made
        made.assert_steady()


@pytest.fixture(scope="module", params=list(FRONTS))
def front(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Front]:
    with FRONTS[request.param](server.port) as made:
        yield made


@pytest.mark.parametrize("path", PATHS)
def test_each_token_arrives_before_the_next_is_made(front: Front, path: str) -> None:
    """30 tokens in step; an added delay of 40 ms (Nagle and delayed ACKs) or 200 ms a token would show too."""
    assert in_step(front, path, 30) < 1.2


@pytest.mark.parametrize("when", ["flowing", "silent", "waiting", "unread"])
def test_a_client_that_leaves_closes_the_source(front: Front, server: ServerProcess, when: str) -> None:
    """At once, without waiting for a token or a heartbeat to be written."""
    line, seconds = leave(front, server, when, within=2)
    assert line["outcome"] == "client_left"
    assert seconds < 0.5


def test_a_client_that_reads_nothing_stops_the_source(
    front: Front, server: ServerProcess, record_property: Callable[[str, object], None]
) -> None:
    """Some buffers of the proxy's and the kernels' fill up, then the source waits, and the stall deadline ends it."""
    line = stall(front, server, within=10)
    record_property("bytes_ahead", line["bytes"])
    assert line["outcome"] == "client_stalled"
    assert line["bytes"] < 256 * 1024


@pytest.mark.parametrize("path", PATHS)
def test_a_failure_is_told_and_seen_as_a_cut(front: Front, server: ServerProcess, path: str) -> None:
    """The error event arrives (where the dialect has one), and the answer is not whole."""
    with raw.Client(front.port) as client:
        reply = client.ask(asking(path, count=3, fail=1))
    server.wait_line(lambda line: FAILURE in line)
    server.forgive(FAILURE)
    assert (reply.status, reply.whole, reply.done) == (200, False, False)
    assert b"t3." in reply.body
    assert (b'"error"' in reply.body) == (path != "/text")


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_answer_is_whole(front: Front, path: str) -> None:
    with raw.Client(front.port) as client:
        reply = client.ask(asking(path, count=3))
    assert (reply.status, reply.whole) == (200, True)
    assert reply.done == (path != "/text")


def test_a_server_that_dies_is_seen_as_a_cut() -> None:
    """Even one that is killed: its answer never looks whole, not even as text, which has no last word."""
    for make in FRONTS.values():
        for path in PATHS:
            with ServerProcess(*SOURCE) as server, make(server.port) as front, raw.Client(front.port) as client:
                client.send(asking(path, silence=60)).head()
                client.until(b"t1.")
                server.process.kill()
                server.wait()
                with pytest.raises(EOFError):
                    client.until(b"no such token")


def test_a_server_that_is_not_there_is_a_502_or_503(front: Front) -> None:
    with front.__class__(nginx_readme() if isinstance(front, Nginx) else haproxy_readme(), 1) as alone:
        assert raw.ask(alone.port, asking("/chat")).status in (502, 503)


def test_bodies_of_several_megabytes_pass(front: Front) -> None:
    """As images in data URLs make them; past rawstream's own limit the answer is 413."""
    with raw.Client(front.port) as client:
        assert client.ask(asking("/chat", count=1, padding="a" * 6_000_000)).done
    for _ in range(5):  # while the body is still on its way: who closes too early has it lost
        with raw.Client(front.port) as client:
            client.try_send(asking("/chat", count=1, padding="a" * 9_000_000))
            assert client.head().status == 413


def test_refusals_pass_as_they_are(front: Front) -> None:
    """Status, JSON and headers of an answer that is no stream."""
    reply = raw.ask(front.port, raw.post("/chat", {"messages": 1}))
    assert reply.status == 400
    assert set(reply.json()) == {"error", "code"}
    assert raw.ask(front.port, raw.request("POST", "/chat", {}, b"{}")).status == 415


@pytest.mark.parametrize("name", FRONTS)
def test_one_connection_serves_many_requests(name: str) -> None:
    """From the client to the proxy, and from the proxy to us."""
    with ServerProcess(*SOURCE) as server, FRONTS[name](server.port) as front, raw.Client(front.port) as client:
        for _ in range(5):
            assert client.ask(asking("/chat", count=2)).done
            # Ours that asks, and the proxy's.
            assert server.debug()["totals"]["connections"] == 2


def test_the_request_id_passes_both_ways(front: Front, server: ServerProcess) -> None:
    """A client's own id is in our log and in its answer; without one it is told ours."""
    mine = new_id("mine")
    assert raw.ask(front.port, asking("/chat", request_id=mine, count=1)).header("x-request-id") == mine
    assert server.ended(mine)["outcome"] == "completed"
    assert raw.ask(front.port, raw.get("/healthz")).header("x-request-id")


def test_what_is_for_this_machine_alone_stays_so(front: Front) -> None:
    """To rawstream a proxy on the same machine is a loopback peer: it must not let others in."""
    for path in ("/debug/streams", "/debug/events", "/lab/runs", "/%64ebug/streams", "//debug/streams", "/debug"):
        reply = raw.ask(front.port, raw.request("GET", path, host="localhost"))
        assert (path, reply.status) == (path, 404)

"""HAProxy: what each line of the README's section is for, shown by HAProxy as Debian ships it, which lacks it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.front.behind import SOURCE, asking, in_step, leave, stall
from tests.support import raw
from tests.support.fronts import HAProxy, change, haproxy_as_debian_ships, haproxy_readme
from tests.support.server import ServerProcess

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(*SOURCE, "--heartbeat", "0", "--stall-timeout", "1") as made:
        yield made
        made.assert_steady()


@pytest.fixture(scope="module")
def shipped(server: ServerProcess) -> Iterator[HAProxy]:
    """HAProxy as Debian ships it."""
    with HAProxy(haproxy_as_debian_ships(), server.port) as made:
        yield made


def test_as_debian_ships_it_tokens_come_late(shipped: HAProxy) -> None:
    """In step, but 200 ms late each: HAProxy asks the kernel to wait for more. ``option http-no-delay`` ends that."""
    assert in_step(shipped, "/chat", 5) > 0.5
    assert in_step(shipped, "/text", 5) > 0.5


@pytest.mark.parametrize("when", ["silent", "waiting"])
def test_as_debian_ships_it_a_client_that_leaves_is_not_noticed(
    shipped: HAProxy, server: ServerProcess, when: str
) -> None:
    """Not before something is written to it: a silent source goes on. ``option abortonclose`` ends that."""
    with pytest.raises(AssertionError, match="no such line"):
        leave(shipped, server, when, within=1)


def test_abortonclose_in_a_backend_section_does_nothing_for_this(server: ServerProcess) -> None:
    """The side that sees the client is the frontend: the option must stand in ``listen`` or ``defaults``."""
    parts = haproxy_as_debian_ships().replace(
        "listen rawstream\n    bind :80\n",
        "frontend web\n    bind :80\n    default_backend rawstream\n\nbackend rawstream\n    option abortonclose\n",
    )
    with HAProxy(parts, server.port) as front, pytest.raises(AssertionError, match="no such line"):
        leave(front, server, "silent", within=1)
    everywhere = parts.replace("    mode http\n", "    mode http\n    option abortonclose\n")
    with HAProxy(everywhere, server.port) as front:
        assert leave(front, server, "silent", within=2)[0]["outcome"] == "client_left"


def test_heartbeats_show_the_server_that_such_a_client_has_left() -> None:
    """Without the option the second heartbeat does it, or so: the first one is answered with a reset."""
    with ServerProcess(*SOURCE, "--heartbeat", "0.3") as server:
        with HAProxy(haproxy_as_debian_ships(), server.port) as front:
            line, seconds = leave(front, server, "silent", within=5)
    assert line["outcome"] == "client_left"
    assert seconds < 2


def test_without_smaller_buffers_the_kernel_takes_megabytes(server: ServerProcess) -> None:
    """``tune.rcvbuf.server`` and ``tune.sndbuf.client`` bound the bytes between us and a client that does not read."""
    with HAProxy(
        change(haproxy_readme(), ("tune.rcvbuf.server", ""), ("tune.sndbuf.client", "")), server.port
    ) as front:
        line = stall(front, server, within=20)
    assert line["outcome"] == "client_stalled"
    assert line["bytes"] > 1e6


def test_with_httpclose_a_cut_is_still_a_cut() -> None:
    """``option httpclose`` costs a connection per request; the chunks that show a cut stay."""
    closing = change(haproxy_readme(), ("mode http", "mode http\n    option httpclose"))
    with ServerProcess(*SOURCE) as server, HAProxy(closing, server.port) as front, raw.Client(front.port) as client:
        reply = client.send(asking("/text", silence=60)).head()
        assert (reply.header("transfer-encoding"), reply.header("connection")) == ("chunked", "close")
        client.until(b"t1.")
        server.process.kill()
        server.wait()
        with pytest.raises(EOFError):
            client.until(b"no such token")

"""What one client that reads nothing costs: the numbers that this server is about.

The client sets SO_RCVBUF to 4096 before it connects, and never reads; the mock's tokens are without end and unpaced.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.certificates import Certificate
from tests.support.raw import ENDLESS, chat, post
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

KiB = 1024

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what the kernel holds")


@pytest.fixture(scope="module", params=["asyncio", "uvloop", "asyncio over TLS", "uvloop over TLS"])
def shared_server(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[ServerProcess]:
    """Both loops: their transports buffer in different ways. The bounds over TLS are the same."""
    loop, _, secured = request.param.partition(" ")
    flags, tls = (certificate.flags, certificate.trusting()) if secured else ((), None)
    with ServerProcess("--loop", loop, "--heartbeat", "0", *flags, tls=tls) as made:
        yield made


def stalled(server: ServerProcess) -> dict[str, Any]:
    """What ``/debug/streams`` shows of a stalled stream, once its figures stand still."""

    def still() -> dict[str, Any] | None:
        now: list[dict[str, Any]] = server.debug()["streams"]
        if not now or now[0]["waiting_for"] not in ("client", "network") or now[0]["age"] < 0.25:
            return None
        before, seen[:] = list(seen), [(now[0]["tokens"], now[0]["buffered"])]
        return now[0] if before == seen else None

    seen: list[Any] = []
    return eventually(lambda: still() or {}, why="the stream stands still")


def held(stream: dict[str, Any]) -> int:
    """Bytes on the server: in its transport and in its kernel."""
    buffered = stream["buffered"]
    return int(buffered["transport"] + buffered["kernel_unsent"] + buffered["kernel_unacked"])


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions", "/text"])
def test_a_stalled_client_costs_at_most_16_kib_and_600_tokens(server: ServerProcess, path: str) -> None:
    """On both loops, for each dialect (plain text has more tokens to the byte, and is bounded by bytes)."""
    with server.connect(rcvbuf=4096) as client:
        if path == "/chat":
            client.send(chat(**ENDLESS))
        else:
            body = {"messages": [{"role": "user", "content": "a"}], "stream": True, "mock": ENDLESS}
            client.send(post(path, body))
        stream = stalled(server)
        assert stream["state"] == "paused"
        assert held(stream) <= 16 * KiB
        if path != "/text":
            assert stream["tokens"] <= 600
        assert stream["bytes"] <= 24 * KiB, "all of it: what the client's kernel took, too"


@pytest.mark.parametrize("rcvbuf", [16 * KiB, 64 * KiB, 256 * KiB, None])
def test_a_large_window_changes_nothing(server: ServerProcess, rcvbuf: int | None) -> None:
    """A browser's window is not 4 KiB. Linux fills its last segment past TCP_NOTSENT_LOWAT, up to 64 KiB; we do not."""
    with server.connect(rcvbuf=rcvbuf) as client:
        client.send(chat(**ENDLESS))
        buffered = stalled(server)["buffered"]
        # What is sent and not acknowledged is in the client's kernel by now, which takes its time to say so.
        assert buffered["transport"] + buffered["kernel_unsent"] <= 16 * KiB


def test_few_small_writes_wait_at_a_time(server: ServerProcess) -> None:
    """A source that gives one token at a time is stopped sooner: each write that waits costs more than it holds."""
    with server.connect(rcvbuf=4096) as client:
        client.send(chat(**ENDLESS, suspend=True))
        stream = stalled(server)
        assert stream["state"] == "paused"
        assert 0 < stream["buffered"]["transport"] <= 8 * 64


def test_a_users_own_marks_are_obeyed() -> None:
    """``--write-high 1MiB`` holds about 1 MiB, and a warning says what that costs."""
    with ServerProcess("--write-high", "1MiB", "--heartbeat", "0") as server:
        with server.connect(rcvbuf=4096) as client:
            client.send(chat(**ENDLESS))
            stream = stalled(server)
            assert 0.95 * 1024 * KiB < stream["buffered"]["transport"] < 1.05 * 1024 * KiB
        server.wait_line(lambda line: "will be held for each stalled client" in line)
        server.assert_steady()


def test_after_a_stall_the_client_gets_every_byte(server: ServerProcess) -> None:
    """Pausing loses nothing and reorders nothing: 20,000 tokens to a reader that stalls now and then."""
    with server.connect() as quick:
        expected = quick.ask(chat(tokens=20_000, tokens_per_second=None)).body
    with server.connect(rcvbuf=4096) as client:
        client.send(chat(tokens=20_000, tokens_per_second=None))
        client.head()
        stalled(server)
        got = bytearray()
        for number, part in enumerate(client.parts()):
            got += part
            if number == 20:
                stalled(server)
    assert bytes(got) == expected


def test_reading_one_piece_lets_about_one_piece_be_produced(server: ServerProcess) -> None:
    """Demand is what the client takes: reading 8 KiB makes the source give about that much more, not megabytes."""
    with server.connect(rcvbuf=4096) as client:
        client.send(chat(**ENDLESS))
        before = stalled(server)
        left = 8 * KiB
        while left > 0:
            assert client.more(size=left)
            left -= len(client.take())
        after = eventually(lambda: _moved(server, before))
        assert 4 * KiB <= after["bytes"] - before["bytes"] <= 24 * KiB


def _moved(server: ServerProcess, before: dict[str, Any]) -> dict[str, Any]:
    stream = stalled(server)
    return stream if stream["bytes"] > before["bytes"] else {}

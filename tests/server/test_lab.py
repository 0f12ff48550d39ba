"""The wrong disciplines: the same bytes as ``/chat``, the wrong way, and no danger to the machine."""

from __future__ import annotations

import socket
import sys
import time
from typing import Any

import pytest

from tests.support import raw
from tests.support.raw import ENDLESS, Client, chat, get
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

KiB = 1024
MiB = 1024 * KiB
WRONG = ["/chat-broken", "/chat-whole", "/chat-drain"]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what the kernel holds")


def only_stream(server: ServerProcess) -> dict[str, Any]:
    streams = server.debug()["streams"]
    return streams[0] if streams else {}


@pytest.mark.parametrize("path", WRONG)
@pytest.mark.parametrize(
    "mock", [{"tokens": 20, "tokens_per_second": 200}, {"tokens": 5000, "tokens_per_second": None}]
)
def test_the_wrong_disciplines_say_the_same_bytes(server: ServerProcess, path: str, mock: dict[str, Any]) -> None:
    """Nothing but the discipline differs: same body, same headers."""
    right, wrong = (raw.ask(server.port, chat(one, **mock)) for one in ("/chat", path))
    assert wrong.body == right.body
    assert (wrong.whole, wrong.done) == (True, True)
    varying = {"date", "x-request-id", "x-stream-id"}
    assert [pair for pair in wrong.headers if pair[0] not in varying] == [
        pair for pair in right.headers if pair[0] not in varying
    ]


def test_whole_says_nothing_before_it_has_everything(server: ServerProcess) -> None:
    """The first byte comes after the last token was made; ``/chat`` has it after the first."""

    def first_byte(path: str) -> float:
        with Client(server.port) as client:
            began = time.monotonic()
            client.send(chat(path, tokens=20, tokens_per_second=40))
            client.head()
            took = time.monotonic() - began
            list(client.parts())
            return took

    assert first_byte("/chat-whole") > 0.45
    assert first_byte("/chat") < 0.2


def test_broken_grows_with_a_client_that_takes_nothing_until_the_cap_cuts_it() -> None:
    """It buffers without bound, up to ``lab_memory``; then the stream ends, and the memory comes back."""
    with ServerProcess("--lab-memory", "24MiB", "--flush-timeout", "0.3") as server:
        before = server.rss()
        with Client(server.port, rcvbuf=4096) as client:
            client.send(chat("/chat-broken", request_id="cap", **ENDLESS))
            eventually(lambda: server.debug()["totals"]["buffered"] > 8 * MiB, why="the buffer grows")
            line = server.ended("cap")
        assert line["outcome"] == "budget"
        assert "lab_memory" in line["detail"]
        assert line["bytes"] > 20 * MiB
        assert server.rss() - before < 64 * MiB
        server.assert_steady()


def test_whole_is_refused_at_the_cap() -> None:
    """An answer without end is collected up to ``lab_memory``; nothing was sent yet, so a status says why."""
    with ServerProcess("--lab-memory", "8MiB") as server:
        reply = raw.ask(server.port, chat("/chat-whole", request_id="whole", **ENDLESS))
        assert (reply.status, reply.json()["code"]) == (503, "memory_exhausted")
        assert server.ended("whole")["outcome"] == "budget"
        server.assert_steady()


@pytest.mark.slow
def test_a_demonstration_does_not_touch_the_others() -> None:
    """While ``/chat-broken`` fills its cap, ``/chat`` is neither refused nor paused: the lab's memory is its own."""
    with ServerProcess("--lab-memory", "32MiB", "--max-buffered-bytes", "1MiB", "--flush-timeout", "0.3") as server:
        with Client(server.port, rcvbuf=4096) as client:
            client.send(chat("/chat-broken", request_id="cap", **ENDLESS))
            eventually(lambda: server.debug()["totals"]["buffered"] > 2 * MiB)
            assert raw.ask(server.port, chat(tokens=20, tokens_per_second=100)).done
            assert server.ended("cap")["outcome"] == "budget"
        server.assert_steady()


def test_broken_goes_on_for_a_client_that_has_left_but_not_for_ever() -> None:
    """It notices nothing: tokens are made after the client has gone, for ``lab_overrun`` seconds; ``/chat`` stops."""
    with ServerProcess("--lab-overrun", "0.6") as server:
        with Client(server.port) as client:
            client.send(chat("/chat-broken", request_id="broken", tokens=None, tokens_per_second=100))
            client.head()
            client.until(b"token")
        at_leaving = only_stream(server)["tokens"]
        eventually(lambda: only_stream(server)["tokens"] > at_leaving + 20, why="it goes on")
        line = server.ended("broken")
        assert line["outcome"] == "client_left"
        assert "went on" in line["detail"]
        assert 0.5 < line["seconds"] < 2
        with Client(server.port) as client:
            client.send(chat(request_id="right", tokens=None, tokens_per_second=100))
            client.head()
            client.until(b"token")
        assert server.ended("right")["tokens"] <= 5
        server.assert_steady()


@linux_only
def test_drain_alone_lets_the_kernel_take_megabytes(server: ServerProcess) -> None:
    """For a stalled client ``await drain()`` with default buffers pulls at least 50 times what ``/chat`` does."""

    def pulled(path: str) -> tuple[int, int]:
        with Client(server.port, rcvbuf=4096) as client:
            client.send(chat(path, **ENDLESS))
            seen = [-1]

            def still() -> bool:
                stream = only_stream(server)
                tokens = stream.get("tokens", 0)
                same = tokens == seen[0] and stream.get("state") == "paused"
                seen[0] = tokens
                time.sleep(0.1)  # between two looks
                return same

            eventually(still, within=20, why=f"{path} has filled every buffer there is")
            buffered = only_stream(server)["buffered"]
        eventually(lambda: not server.debug()["streams"])
        return seen[0], buffered["kernel_unsent"] + buffered["kernel_unacked"] + buffered["transport"]

    right_tokens, right_held = pulled("/chat")
    wrong_tokens, wrong_held = pulled("/chat-drain")
    assert wrong_tokens > 50 * right_tokens
    assert wrong_held > 50 * right_held
    assert right_held <= 16 * KiB


@linux_only
def test_a_wrong_discipline_leaves_no_trace_on_its_connection(server: ServerProcess) -> None:
    """After ``/chat-drain`` with its large buffers, ``/chat`` on the same connection is bounded as ever."""
    with Client(server.port, rcvbuf=4096) as client:
        assert client.ask(chat("/chat-drain", tokens=5000, tokens_per_second=None)).done
        client.send(chat(**ENDLESS))
        eventually(lambda: only_stream(server).get("state") == "paused" and only_stream(server)["age"] > 0.3)
        buffered = only_stream(server)["buffered"]
        assert buffered["transport"] + buffered["kernel_unsent"] + buffered["kernel_unacked"] <= 16 * KiB


@pytest.mark.parametrize(
    ("flags", "there"),
    [
        ((), True),
        (("--no-lab",), False),
        (("--host", "0.0.0.0"), False),
        (("--host", "0.0.0.0", "--lab"), True),
        (("--host", "127.0.0.2"), True),
    ],
    ids=lambda value: " ".join(value) or "default" if isinstance(value, tuple) else "",
)
def test_the_lab_is_there_on_loopback_only_unless_said_otherwise(flags: tuple[str, ...], there: bool) -> None:
    """No wrong discipline is exposed to a network by accident."""
    with ServerProcess(*flags, wait=False) as server:
        line = server.wait_line(lambda text: text.startswith("rawstream listening on "), within=20)
        port = int(line.rsplit(":", 1)[1])
        host = "127.0.0.2" if "127.0.0.2" in flags else "127.0.0.1"
        for path in WRONG:
            with Client(port, host=host) as client:
                assert client.ask(chat(path, tokens=1)).status == (200 if there else 404)


def own_address() -> str | None:
    """An address of this machine that is not a loopback one. (Connecting a UDP socket sends nothing.)"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if address.startswith("127.") else address


def test_debug_is_answered_to_loopback_peers_only() -> None:
    """Who comes in by another address gets 403 for ``/debug``, and the service itself as everybody does."""
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but the loopback's: THIS IS NOT TESTED")
    with ServerProcess("--host", "0.0.0.0") as server:
        for host, status in ((address, 403), ("127.0.0.1", 200)):
            with Client(server.port, host=host) as client:
                reply = client.ask(get("/debug/streams"))
                assert reply.status == status
                assert client.ask(get("/healthz")).status == 200
                assert status == 200 or reply.json()["code"] == "forbidden"
        server.assert_steady()

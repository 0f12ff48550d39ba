"""No descriptors left (row 33)."""

from __future__ import annotations

import resource

from tests.faults.conftest import FLAGS
from tests.support import raw
from tests.support.raw import Client, chat, get
from tests.support.server import ServerProcess
from tests.support.waiting import eventually


def starved(server: ServerProcess) -> list[str]:
    return [line for line in server.stderr.splitlines() if "cannot accept" in line]


def test_accepting_pauses_below_the_descriptor_limit() -> None:
    """Of 100 connections, half of 64 descriptors' worth is taken in, the rest waits in the backlog; nobody is hurt."""
    with ServerProcess(*FLAGS, "--head-timeout", "30", descriptors=64) as server:
        with Client(server.port) as streaming:
            streaming.send(chat(tokens=None, tokens_per_second=100))
            streaming.head()
            crowd = [Client(server.port) for _ in range(100)]
            eventually(lambda: server.fds() >= 36, why="as many are accepted as may be")
            streaming.until(b"token")
            for _ in range(20):
                streaming.until(b"token")
            assert server.fds() < 56, "it stops at its own limit, not at the system's"
            assert starved(server) == []
            crowd[-1].send(get("/healthz"))
            for client in crowd[:-1]:
                client.close()
            assert crowd[-1].reply(within=3).status == 200, "who waited in the backlog is served when there is room"
            crowd[-1].close()
        server.assert_steady()


def test_when_descriptors_run_out_all_the_same_it_rests_says_so_once_and_recovers() -> None:
    """EMFILE from accept(): running streams go on, no spin, one line in the log, and back within a second."""
    with ServerProcess(*FLAGS) as server:
        with Client(server.port) as streaming:
            streaming.send(chat(tokens=None, tokens_per_second=100))
            streaming.head()
            soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
            # Below what is open already: no accept() can succeed, however low a descriptor is free.
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (4, hard))
            waiting = Client(server.port)
            waiting.send(get("/healthz"))
            eventually(lambda: starved(server), why="it says that it cannot accept")
            cpu = server.cpu_seconds()
            for _ in range(100):  # a second of streaming
                streaming.until(b"token")
            assert server.cpu_seconds() - cpu < 0.5, "it spins"
            assert len(starved(server)) == 1, "it floods the log"
            assert "Too many open files" in starved(server)[0]
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, hard))
            assert waiting.reply(within=1).status == 200
            waiting.close()
            assert raw.ask(server.port, get("/healthz")).status == 200
        server.assert_steady()


def test_max_connections_is_obeyed() -> None:
    """The operator's own limit, below the descriptors': the next one waits until somebody leaves."""
    with ServerProcess(*FLAGS, "--max-connections", "3", "--head-timeout", "30") as server:
        held = [Client(server.port) for _ in range(3)]
        for client in held:
            client.send(chat(tokens=None, tokens_per_second=100))
            client.head()
        late = Client(server.port)
        late.send(get("/debug/streams"))
        for _ in range(30):
            held[1].until(b"token")
        late.sock.settimeout(0.05)
        try:
            assert not late.sock.recv(1), "answered over the limit"
            raise AssertionError("closed instead of left waiting")
        except TimeoutError:
            pass
        held[0].close()
        assert late.reply(within=2).json()["totals"]["connections"] == 3
        for client in (*held, late):
            client.close()
        server.assert_steady()

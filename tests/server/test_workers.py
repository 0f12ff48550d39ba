"""Several workers: they share a port, come back, hand over, and tell together what they did."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from rawstream.cli.supervisor import next_wait
from rawstream.cli.worker_process import how_it_ended
from rawstream.limits.division import divided
from rawstream.server.balance import ABSENT, Balance, Counts
from rawstream.server.merging import Exposition, signed
from rawstream.settings import Settings, UserSettings
from tests.support import raw
from tests.support.certificates import Certificate, make_certificate
from tests.support.raw import Client, Reply, chat, get
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

LOOK = get("/debug/streams")


def worker_at(client: Client) -> int:
    """The process at the other end."""
    worker: int = client.ask(LOOK).json()["worker"]
    return worker


def one_each(server: ServerProcess, count: int, stack: ExitStack) -> dict[int, Client]:
    """A connection to each of ``count`` workers, by process. AssertionError when there are not so many."""
    found: dict[int, Client] = {}
    until = time.monotonic() + 10
    while len(found) < count:
        assert time.monotonic() < until, f"only {len(found)} workers answer"
        client = stack.enter_context(Client(server.port))
        found.setdefault(worker_at(client), client)
    return found


def workers_of(server: ServerProcess, count: int) -> set[int]:
    with ExitStack() as stack:
        return set(one_each(server, count, stack))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def begin(client: Client, request_id: str, tokens: int, rate: float = 100) -> Reply:
    """A stream that has begun."""
    client.send(chat(request_id=request_id, tokens=tokens, tokens_per_second=rate))
    return client.head()


def assert_whole(client: Client, reply: Reply, tokens: int) -> None:
    """The rest of the stream comes, every token of it."""
    reply.body = b"".join(client.parts())
    assert (len(reply.tokens), reply.done) == (tokens, True)


def figures(text: bytes) -> dict[str, float]:
    """An exposition's samples."""
    lines = (line for line in text.decode().splitlines() if line and not line.startswith("#"))
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines)}


def metrics(server: ServerProcess) -> dict[str, float]:
    reply = server.ask(get("/metrics"))
    assert reply.status == 200
    return figures(reply.body)


@pytest.fixture(scope="module")
def shared() -> Iterator[ServerProcess]:
    with ServerProcess("--workers", "4") as server:
        yield server


# --- serving --------------------------------------------------------------------------------------------------


def test_all_workers_answer_on_one_port_and_it_is_said_once(shared: ServerProcess) -> None:
    """Each is a process of its own, and none of them is the one that was started. The line names the real port."""
    pids = workers_of(shared, 4)
    assert shared.pid not in pids
    assert shared.port > 0
    assert [line for line in shared.stderr.splitlines() if "listening on" in line] == [
        f"rawstream listening on http://127.0.0.1:{shared.port}"
    ]


@pytest.mark.parametrize("how", ["one by one", "at once"])
def test_connections_are_spread_evenly(shared: ServerProcess, how: str) -> None:
    """Of 200 connections that stay, each of 4 workers has 50, give or take a quarter."""
    eventually(lambda: metrics(shared)["rawstream_connections"] <= 1, why="nobody else is connected")
    with ExitStack() as stack:
        if how == "one by one":
            clients = [stack.enter_context(Client(shared.port)) for _ in range(200)]
        else:
            gate = threading.Barrier(20)
            clients = []

            def connect() -> None:
                gate.wait(10)
                clients.extend([Client(shared.port) for _ in range(10)])

            threads = [threading.Thread(target=connect) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            for client in clients:
                stack.enter_context(client)
        spread = Counter(worker_at(client) for client in clients)
    assert sum(spread.values()) == 200
    assert len(spread) == 4
    assert 37 <= min(spread.values()) <= max(spread.values()) <= 63, spread


def test_the_metrics_of_any_worker_are_the_sum_of_all(shared: ServerProcess) -> None:
    """Counters, buckets and gauges are added; what is of a process has its label; one's own can be asked for."""
    before = metrics(shared)
    with ExitStack() as stack:
        clients = one_each(shared, 4, stack)
        for number, client in enumerate(clients.values(), start=1):
            for _ in range(number):
                client.send(chat(tokens=5, tokens_per_second=None))
                assert client.reply().done
        eventually(
            lambda: (
                metrics(shared)['rawstream_streams_ended_total{outcome="completed"}']
                == before['rawstream_streams_ended_total{outcome="completed"}'] + 10
            )
        )
        sums = [figures(client.ask(get("/metrics")).body) for client in clients.values()]
        own = [figures(client.ask(get("/metrics?worker=own")).body) for client in clients.values()]
    opened = "rawstream_streams_opened_total"
    tokens = 'rawstream_tokens_total{kind="generated"}'
    whole = 'rawstream_e2e_request_latency_seconds_bucket{le="+Inf"}'
    for merged in sums:
        assert merged[opened] - before[opened] == 10
        assert merged[tokens] - before[tokens] == 50
        assert merged[opened] == sum(one[opened] for one in own)
        assert merged[whole] == sum(one[whole] for one in own)
        assert merged["rawstream_connections"] >= 4
        assert (merged["rawstream_workers"], merged["rawstream_workers_unreachable"]) == (4, 0)
        assert {f'process_cpu_seconds_total{{worker="{slot}"}}' for slot in range(1, 5)} <= merged.keys()
    assert len({one[opened] for one in own}) > 1, "each tells its own"


def test_a_sibling_that_does_not_answer_holds_up_nobody(shared: ServerProcess) -> None:
    """It is told that it is missing, and no counter falls for it."""
    with ExitStack() as stack:
        clients = one_each(shared, 4, stack)
        before = metrics(shared)
        stopped, *_ = clients
        os.kill(stopped, signal.SIGSTOP)
        try:
            asked = next(client for pid, client in clients.items() if pid != stopped)
            began = time.monotonic()
            after = figures(asked.ask(get("/metrics")).body)
            assert time.monotonic() - began < 2
        finally:
            os.kill(stopped, signal.SIGCONT)
    assert (after["rawstream_workers"], after["rawstream_workers_unreachable"]) == (3, 1)
    assert [
        key for key, value in before.items() if "_total" in key and "process_" not in key and after[key] < value
    ] == []


def test_the_shared_server_is_as_before(shared: ServerProcess) -> None:
    shared.assert_no_traceback()
    assert metrics(shared)["rawstream_workers"] == 4


# --- death ----------------------------------------------------------------------------------------------------


def test_a_worker_that_was_killed_comes_back_and_the_others_streams_do_not_notice() -> None:
    """It is said how it ended. What it had told counts on: no counter falls."""
    with ServerProcess("--workers", "2") as server, ExitStack() as stack:
        clients = one_each(server, 2, stack)
        victim, survivor = clients
        for _ in range(3):
            clients[victim].send(chat(tokens=5, tokens_per_second=None))
            assert clients[victim].reply().done
        before = metrics(server)
        reply = begin(clients[survivor], "survivor", 150)
        os.kill(victim, signal.SIGKILL)
        server.wait_line(lambda line: f"(pid {victim}) ended with SIGKILL" in line and "starts in 0.5 s" in line)
        during = metrics(server)
        server.wait_line(lambda line: " accepts" in line, within=15)
        assert_whole(clients[survivor], reply, 150)
        now = workers_of(server, 2)
        assert survivor in now
        assert victim not in now
        after = metrics(server)
        for key, value in before.items():
            if "_total" in key and not key.startswith("process_"):
                assert value <= during[key] <= after[key], key
        assert after["rawstream_streams_opened_total"] == before["rawstream_streams_opened_total"] + 1
        assert after["rawstream_workers"] == 2


def test_when_the_supervisor_is_killed_the_workers_end_by_themselves() -> None:
    """Gracefully: what streams goes on to its end, nobody new is let in, and nothing is left behind."""
    server = ServerProcess("--workers", "2")
    try:
        with ExitStack() as stack:
            clients = one_each(server, 2, stack)
            directory = directory_of(next(iter(clients)))
            replies = {pid: begin(client, f"orphan{pid}", 60) for pid, client in clients.items()}
            server.signal(signal.SIGKILL)
            assert server.process.wait(5) == -signal.SIGKILL
            eventually(lambda: refused(server.port), why="nobody new is let in")
            for pid, client in clients.items():
                assert_whole(client, replies[pid], 60)
        eventually(lambda: not any(running(pid) for pid in clients), why="the workers have ended")
        assert not directory.exists()
        server.wait()
        server.assert_no_traceback()
    finally:
        server.bury()


def directory_of(pid: int) -> Path:
    """Where a worker and its siblings talk."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    (counts,) = [line.split()[-1] for line in maps if line.endswith("/counts")]
    return Path(counts).parent


def refused(port: int) -> bool:
    try:
        Client(port).close()
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize(
    ("flags", "says", "code"),
    [
        (("--source", "nowhere_at_all:x"), "there is no module 'nowhere_at_all'", 2),
        (("--uds", "/nowhere/at/all"), "rawstream: cannot listen on /nowhere/at/all", 1),
    ],
)
def test_what_cannot_start_is_one_line_and_ends_it_all(flags: tuple[str, ...], says: str, code: int) -> None:
    """Not one line for each worker, and the exit code of a single process."""
    with ServerProcess("--workers", "3", *flags, wait=False) as server:
        assert server.wait(within=20) == code
        assert len([line for line in server.stderr.splitlines() if says in line]) == 1, server.stderr


def test_a_worker_that_dies_at_once_ends_the_start_with_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    path = {"PYTHONPATH": os.pathsep.join((os.getcwd(), str(tmp_path)))}
    with ServerProcess("--workers", "2", "--source", "dies:x", env=path, wait=False) as server:
        assert server.wait(within=20) == 1
        assert "ended with SIGKILL before it accepted" in server.stderr


# --- its end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_lets_streams_finish_on_all_workers(number: signal.Signals) -> None:
    """Then it ends, with exit code 0, and takes its directory along."""
    with ServerProcess("--workers", "2", "--drain-timeout", "10") as server, ExitStack() as stack:
        clients = one_each(server, 2, stack)
        directory = directory_of(next(iter(clients)))
        replies = {pid: begin(client, f"last{pid}", 60) for pid, client in clients.items()}
        server.signal(number)
        eventually(lambda: refused(server.port), why="nobody new is let in")
        for pid, client in clients.items():
            assert_whole(client, replies[pid], 60)
        assert server.wait() == 0
        assert not any(running(pid) for pid in clients)
        assert not directory.exists()


def test_a_second_signal_ends_all_workers_now() -> None:
    with ServerProcess("--workers", "2", "--drain-timeout", "60") as server, ExitStack() as stack:
        clients = one_each(server, 2, stack)
        for pid, client in clients.items():
            begin(client, f"now{pid}", 10_000)
        server.signal(signal.SIGTERM)
        eventually(lambda: refused(server.port), why="it ends")
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - began < 2
        for pid in clients:
            assert server.ended(f"now{pid}")["outcome"] == "shutdown"


@pytest.mark.slow
def test_a_worker_that_does_not_end_is_killed(tmp_path: Path) -> None:
    """Nobody waits for ever for a process that hangs."""
    with ServerProcess(
        "--workers", "2", "--drain-timeout", "0", "--cancel-timeout", "0.1", "--flush-timeout", "0.1"
    ) as server:
        stopped, _ = workers_of(server, 2)
        os.kill(stopped, signal.SIGSTOP)
        server.signal(signal.SIGTERM)
        assert server.wait(within=15) == 0
        assert f"(pid {stopped}) does not end: killed" in server.stderr


# --- reload ---------------------------------------------------------------------------------------------------


class _Load:
    """Clients that come and go, until it is enough; each must get its whole answer."""

    def __init__(self, port: int, clients: int) -> None:
        self.answered = 0
        self.wrong: list[str] = []
        self._port = port
        self._enough = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._come_and_go, daemon=True) for _ in range(clients)]

    def __enter__(self) -> _Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(20)

    def _come_and_go(self) -> None:
        while not self._enough.is_set():
            try:
                with Client(self._port, deadline=15) as client:
                    client.send(chat(tokens=2, tokens_per_second=None))
                    reply = client.reply()
                ok = reply.status == 200 and reply.done
                said = f"{reply.status} {reply.body!r}"
            except (OSError, AssertionError) as error:
                ok, said = False, repr(error)
            with self._lock:
                self.answered += ok
                if not ok:
                    self.wrong.append(said)


@pytest.mark.slow
def test_a_reload_loses_no_connection_and_no_stream() -> None:
    """SIGHUP under 200 live streams and clients that come and go: all get all of it, from old workers or from new."""
    with ServerProcess("--workers", "2", log_format="text") as server, ExitStack() as stack:
        old = workers_of(server, 2)
        streams = [stack.enter_context(Client(server.port, deadline=45)) for _ in range(200)]
        replies = [begin(client, f"long{number}", 300, 30) for number, client in enumerate(streams)]
        before = metrics(server)
        with _Load(server.port, 50) as load:
            for _ in range(2):
                answered = load.answered
                seen = len(server.lines)
                server.signal(signal.SIGHUP)
                eventually(
                    lambda seen=seen: any("new workers accept" in line for line in server.lines[seen:]),  # type: ignore[misc]
                    within=30,
                )
                eventually(lambda answered=answered: load.answered > answered + 300, within=20)  # type: ignore[misc]
        assert load.wrong == []
        assert load.answered > 600
        for client, reply in zip(streams, replies, strict=True):
            assert_whole(client, reply, 300)
        eventually(lambda: not any(running(pid) for pid in old), within=15, why="the old workers have ended")
        assert not workers_of(server, 2) & old
        after = metrics(server)
        falling = [
            key for key, value in before.items() if "_total" in key and "process_" not in key and after[key] < value
        ]
        assert falling == []
        assert after["rawstream_streams_opened_total"] == load.answered + 200


def test_a_reload_takes_up_code_settings_and_certificate(tmp_path: Path) -> None:
    """And what is wrong with them is one line, and changes nothing."""
    first, second = make_certificate(tmp_path, "first"), make_certificate(tmp_path, "second")
    used = Certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    config, source = tmp_path / "rawstream.toml", tmp_path / "mine.py"

    def install(made: Certificate, tokens: str, settings: str) -> None:
        used.cert.write_bytes(made.cert.read_bytes())
        used.key.write_bytes(made.key.read_bytes())
        source.write_text(tokens)
        config.write_text(settings)

    def says() -> list[str]:
        reply = server.ask(chat())
        assert reply.status == 200
        return reply.tokens

    def reload(until: str) -> None:
        seen = len(server.lines)
        server.signal(signal.SIGHUP)
        eventually(lambda: any(until in line for line in server.lines[seen:]), within=20, why=until)

    install(first, "def tokens():\n    return ['old']\n", 'source = "mine:tokens"\n')
    path = {"PYTHONPATH": os.pathsep.join((os.getcwd(), str(tmp_path)))}
    flags = ("--workers", "2", "--config", str(config), *used.flags)
    with ServerProcess(*flags, env=path, tls=first.trusting(), log_format="text") as server:
        with server.connect() as client:
            old = worker_at(client)
        install(first, "def tokens():\n    return ['new']\n", "stall_timeuot = 3\n")
        reload("SIGHUP: everything stays as it was: " + str(config) + ":1: there is no setting 'stall_timeuot'")
        install(first, "def tokens(:\n", 'source = "mine:tokens"\n')
        reload("SIGHUP: everything stays as it was: a worker")
        server.forgive("Traceback")  # it is shown where the error in one's own source is
        assert says() == ["old"]
        install(second, "def tokens():\n    return ['new']\n", 'source = "mine:tokens"\nbacklog = 7\n')
        reload("new workers accept")
        server.tls = second.trusting()
        assert says() == ["new"]
        assert "the listening sockets are kept; a restart changes backlog" in server.stderr
        eventually(lambda: not running(old), within=15)


# --- other ways in --------------------------------------------------------------------------------------------


def test_workers_share_a_unix_socket_and_it_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with ServerProcess("--workers", "2", "--uds", str(path)) as server:
        assert server.url == f"unix:{path}"
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(str(path))) for _ in range(10)]
            assert len({worker_at(client) for client in clients}) == 2
        server.signal(signal.SIGHUP)
        server.wait_line(lambda line: "new workers accept" in line, within=20)
        with Client(str(path)) as client:
            assert client.ask(chat(tokens=2)).done
        assert server.stop() == 0
    assert not path.exists()


def test_any_worker_answers_on_the_admin_port() -> None:
    """It is theirs together: none of them has to have it alone."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with ServerProcess("--workers", "2", "--admin", f"127.0.0.1:{port}", wait=False) as server:
        server.wait_line(lambda line: line.startswith("rawstream listening on"), within=20)
        for _ in range(5):
            assert figures(raw.ask(port, get("/metrics")).body)["rawstream_workers"] == 2
        assert server.stop() == 0


# --- sums -----------------------------------------------------------------------------------------------------


def test_the_wait_before_a_restart_doubles_and_forgets() -> None:
    """0.5 s, then twice as long each time, 30 s at most; after a minute of life as if nothing had been."""
    waits = [0.0]
    for _ in range(9):
        waits.append(next_wait(waits[-1], 1.0))
    assert waits[1:] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert next_wait(30.0, 60.0) == 0.5


def test_how_a_process_ended_is_said_in_words() -> None:
    assert [how_it_ended(code) for code in (0, 3, -9, -11, -250)] == [
        "exit status 0",
        "exit status 3",
        "SIGKILL",
        "SIGSEGV",
        "signal 250",
    ]


ONE = """\
# HELP rawstream_tokens_total Tokens.
# TYPE rawstream_tokens_total counter
rawstream_tokens_total{kind="a b"} 3.0
# HELP rawstream_streams Streams.
# TYPE rawstream_streams gauge
rawstream_streams 2.0
# HELP rawstream_longest_hold_seconds Longest.
# TYPE rawstream_longest_hold_seconds gauge
rawstream_longest_hold_seconds 0.25
# HELP process_open_fds Number.
# TYPE process_open_fds gauge
process_open_fds{worker="1"} 7.0
"""


def test_expositions_are_added_up() -> None:
    """All but what is the longest of all, and what has a label of its own; of the ended, the counters only."""
    merged = Exposition()
    merged.add(ONE)
    merged.add(ONE.replace("2.0", "5.0").replace("0.25", "0.5").replace('worker="1"', 'worker="2"'))
    merged.add(ONE, ended=True)
    merged.gauge("rawstream_workers", "Workers.", 2)
    assert figures(merged.text().encode()) == {
        'rawstream_tokens_total{kind="a b"}': 9,
        "rawstream_streams": 7,
        "rawstream_longest_hold_seconds": 0.5,
        'process_open_fds{worker="1"}': 7,
        'process_open_fds{worker="2"}': 7,
        "rawstream_workers": 2,
    }
    again = Exposition()
    again.add(merged.text())
    assert again.text() == merged.text()


def test_what_is_of_a_process_is_signed() -> None:
    assert signed("# HELP process_x X\nprocess_x 1.0\nother 2.0\n", 3) == (
        '# HELP process_x X\nprocess_x{worker="3"} 1.0\nother 2.0\n'
    )


def test_who_has_clearly_more_connections_lets_others_go_first(tmp_path: Path) -> None:
    """Compared with those that accept; one that is not there is waited for by nobody."""
    counts = Counts.create(tmp_path / "counts")
    ours = Balance(Counts(tmp_path / "counts"), 2)
    assert not ours.ahead(1000), "alone"
    counts.put(1, 10)
    counts.put(3, 20)
    assert [ours.ahead(count) for count in (0, 10, 11, 12)] == [False, False, False, True]
    counts.put(1, ABSENT)
    assert not ours.ahead(21)
    ours.tell(7)
    assert counts.others(3) == [7]
    ours.tell(None)
    assert counts.others(3) == []


def test_limits_that_each_process_counts_are_divided() -> None:
    """Rounded up, and said; with Redis only what is not counted there."""
    users = (UserSettings(name="a", max_streams=3, tokens_per_minute=100), UserSettings(name="b"))
    keys: dict[str, Any] = {"users": users}
    part, said = divided(Settings(**keys), 4)
    assert [(user.max_streams, user.tokens_per_minute) for user in part.users] == [(1, 25), (None, None)]
    assert said is not None
    assert "max_streams, tokens_per_minute" in said
    part, said = divided(Settings(redis="redis://127.0.0.1:6379/0", **keys), 4)
    assert (part.users[0].max_streams, part.users[0].tokens_per_minute) == (1, 100)
    assert divided(Settings(**keys), 1) == (Settings(**keys), None)
    assert divided(Settings(), 4) == (Settings(), None)

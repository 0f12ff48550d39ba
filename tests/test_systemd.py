"""systemd: what it is told, when, and the sockets that it hands over; and the README's unit is one that it takes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import rawstream
from rawstream import config as configuration
from rawstream.settings import Settings
from rawstream.systemd import ServiceManager, handed_over
from tests.support import raw
from tests.support.program import command
from tests.support.server import ServerProcess
from tests.support.tools import require_tool
from tests.test_readme import README, section

PID = 4711


class Manager:
    """A service manager's end of ``NOTIFY_SOCKET``."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(10)
        self.socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self.heard: list[dict[str, str]] = []

    def next(self) -> dict[str, str]:
        """The next message, by variable."""
        lines = self.socket.recv(4096).decode().split("\n")
        message = dict(line.split("=", 1) for line in lines)
        self.heard.append(message)
        return message

    def until(self, name: str) -> dict[str, str]:
        """The next message that holds ``name``."""
        while name not in (message := self.next()):
            pass
        return message


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    kind: str = request.param
    made = Manager(
        str(tmp_path / "notify") if kind == "path" else f"@rawstream-test-{os.getpid()}-{time.monotonic_ns()}"
    )
    with made.socket:
        yield made


# --- one process ------------------------------------------------------------------------------------------------


async def test_ready_status_reload_and_stop_are_told_in_systemds_words(manager: Manager) -> None:
    environ = {"NOTIFY_SOCKET": manager.address, "PATH": "/bin"}
    service = ServiceManager(environ)
    assert environ == {"PATH": "/bin"}  # no child takes it for its own
    service.ready(lambda: "two\nlines")
    assert manager.next() == {"READY": "1", "MAINPID": str(os.getpid()), "STATUS": "two lines"}
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    service.reloading()
    told = manager.next()
    assert told["RELOADING"] == "1"
    assert before <= int(told["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    service.reloaded("fine")
    assert manager.next() == {"READY": "1", "STATUS": "fine"}
    service.stopping("ending")
    assert manager.next() == {"STOPPING": "1", "STATUS": "ending"}
    service.close()
    service.stopping("again")
    manager.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.socket.recv(1)


async def test_the_watchdog_is_fed_from_the_loop_at_half_its_time(tmp_path: Path) -> None:
    """Not by a thread: a loop that hangs must be seen to hang."""
    manager = Manager(str(tmp_path / "notify"))
    with manager.socket:
        environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(PID)}
        service = ServiceManager(environ, PID)
        assert environ == {}
        service.ready(lambda: "")
        began = time.monotonic()
        async with asyncio.timeout(10):
            for _ in range(4):
                assert await asyncio.to_thread(manager.until, "WATCHDOG") == {"WATCHDOG": "1"}
        assert time.monotonic() - began >= 0.19
        service.close()


@pytest.mark.parametrize(
    "variables",
    [
        {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(PID + 1)},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {},
    ],
)
async def test_a_watchdog_that_is_not_ours_is_not_fed(variables: dict[str, str], tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    with manager.socket:
        service = ServiceManager({"NOTIFY_SOCKET": manager.address, **variables}, PID)
        service.ready(lambda: "")
        assert len(service._timers) == 1  # the status
        service.close()


@pytest.mark.parametrize("address", ["", "@", "vsock:2:1", "relative"])
async def test_without_a_socket_of_ours_nothing_is_told(address: str) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"}, PID)
    assert not service.listens
    service.ready(lambda: pytest.fail("nobody asks for the status"))
    service.reloading()
    service.reloaded("")
    service.stopping("")
    service.close()


async def test_a_manager_that_is_gone_or_does_not_read_costs_nothing(tmp_path: Path) -> None:
    """The queue of a datagram socket is short; nothing here waits for it, and no error comes of it."""
    gone = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    gone.ready(lambda: "")
    gone.close()
    manager = Manager(str(tmp_path / "notify"))
    with manager.socket:
        service = ServiceManager({"NOTIFY_SOCKET": manager.address})
        for _ in range(2000):
            service.stopping("ending")
        service.close()


async def test_the_status_is_told_when_it_changes_and_only_then(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    with manager.socket:
        service = ServiceManager({"NOTIFY_SOCKET": manager.address})
        service.ready(lambda: "0 streams")
        service._tell_status("0 streams")
        service._tell_status("1 stream")
        assert [manager.next()["STATUS"], manager.next()["STATUS"]] == ["0 streams", "1 stream"]
        service.close()


# --- sockets that are handed over -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variables", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": str(PID + 1), "LISTEN_FDS": "1"}, {"LISTEN_PID": str(PID)}]
)
def test_no_socket_is_taken_over_that_was_not_meant_for_us(variables: dict[str, str]) -> None:
    environ = {**variables, "LISTEN_FDNAMES": "x"}
    assert handed_over(environ, PID) == []
    assert environ == {}


HANDING = """
import os, socket, sys
listener = socket.socket({family}, socket.{kind})
listener.bind({address!r})
{listen}
if listener.fileno() == 3:
    listener.set_inheritable(True)
else:
    os.dup2(listener.fileno(), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = "1"
os.execv(sys.argv[1], sys.argv[1:])
"""


def handing(monkeypatch: pytest.MonkeyPatch, family: str, address: object, *, kind: str = "SOCK_STREAM") -> None:
    """From here on servers are started the way systemd starts one with a socket unit."""
    listen = "listener.listen()" if kind == "SOCK_STREAM" else ""
    script = HANDING.format(family=family, address=address, kind=kind, listen=listen)
    own = command()
    monkeypatch.setattr("tests.support.program.command", lambda: [own[0], "-c", script, *own])


def test_a_server_serves_on_the_socket_that_systemd_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever port the settings name."""
    handing(monkeypatch, "socket.AF_INET", ("127.0.0.1", 0))
    with ServerProcess("--port", "1") as server:
        assert server.port > 1
        assert server.ask(raw.chat(tokens=3, tokens_per_second=None)).done
        server.assert_steady()


async def test_who_connects_during_a_restart_waits_at_the_socket_and_is_answered() -> None:
    """systemd keeps its own copy of the socket: ours can be closed, and nobody is refused."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        async with asyncio.timeout(20):
            async with rawstream.Server(Settings(port=0), sockets=[held.dup()]) as first:
                assert first.port == port
            with await asyncio.to_thread(raw.Client, port) as client:
                client.send(raw.get("/healthz"))
                async with rawstream.Server(Settings(port=0), sockets=[held.dup()]):
                    assert (await asyncio.to_thread(client.reply)).status == 200


def test_a_unix_socket_can_be_handed_over_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    handing(monkeypatch, "socket.AF_UNIX", path)
    with ServerProcess() as server:
        assert server.url == f"unix:{path}"
        assert raw.ask(path, raw.chat(tokens=3, tokens_per_second=None)).done


def test_what_is_no_listening_socket_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    handing(monkeypatch, "socket.AF_INET", ("127.0.0.1", 0), kind="SOCK_DGRAM")
    with ServerProcess(wait=False) as server:
        assert server.wait() == 1
        assert "LISTEN_FDS: descriptor 3 is not a listening stream socket" in server.stderr


# --- a real process -----------------------------------------------------------------------------------------------


def test_a_service_says_ready_once_it_accepts_and_stopping_before_it_ends(manager: Manager) -> None:
    env = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "400000"}
    with ServerProcess(env=env, wait=False) as server:
        told = manager.until("READY")
        assert told["MAINPID"] == str(server.pid)
        port = int(re.findall(r"http://127\.0\.0\.1:(\d+); 0 streams", told["STATUS"])[0])
        assert raw.ask(port, raw.get("/healthz")).status == 200
        manager.until("WATCHDOG")
        with raw.Client(port) as client:
            client.send(raw.chat(tokens=None, tokens_per_second=20)).head()
            server.signal(signal.SIGTERM)
            assert manager.until("STOPPING")["STATUS"].endswith("; 1 stream")
            manager.until("WATCHDOG")  # also while it drains
        assert server.wait() == 0


def test_a_reload_is_begun_and_ended_around_sighup(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    with manager.socket, ServerProcess(env={"NOTIFY_SOCKET": manager.address}) as server:
        manager.until("READY")
        server.signal(signal.SIGHUP)
        assert manager.until("RELOADING")["MONOTONIC_USEC"].isdecimal()
        assert manager.next()["READY"] == "1"


# --- the README's unit --------------------------------------------------------------------------------------------


def unit(name: str) -> str:
    """A unit file between the README's markers."""
    found = re.fullmatch(r"```(?:ini|sh)\n(.+)\n```", section(name), re.DOTALL)
    assert found is not None
    return found[1] + "\n"


def directives() -> dict[str, list[str]]:
    told: dict[str, list[str]] = {}
    for line in unit("unit").splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            told.setdefault(name, []).append(value)
    return told


def test_the_units_time_to_stop_is_longer_than_ours() -> None:
    settings = Settings()
    (stop,) = directives()["TimeoutStopSec"]
    assert int(stop) > settings.drain_timeout + settings.cancel_timeout + 5  # the last spans


def test_the_units_command_is_one_that_the_server_takes(tmp_path: Path) -> None:
    """With its configuration, once the files that it names are there."""
    (start,) = directives()["ExecStart"]
    program, *arguments = start.split()
    assert program.endswith("/rawstream")
    assert arguments == ["serve", "--config", "/etc/rawstream/rawstream.toml"]
    written = re.fullmatch(r"```toml\n(.+)```", section("unit-config"), re.DOTALL)
    assert written is not None
    (tmp_path / "upstream-key").write_text("sk-1")
    config = tmp_path / "rawstream.toml"
    config.write_text(written[1].replace("/run/credentials/rawstream.service", str(tmp_path)))
    loaded = configuration.load({}, {}, str(config))
    assert loaded.warnings == []
    assert loaded.settings.upstreams[0].api_key == "sk-1"


def test_the_certificate_is_where_certbots_hook_puts_it() -> None:
    for file in re.findall(r'ssl_\w+ = "(.+)"', section("unit-config")):
        assert file in unit("certbot")


def test_every_credential_that_the_configuration_reads_is_loaded() -> None:
    loaded = {value.partition(":")[0] for value in directives()["LoadCredential"]}
    read = set(re.findall(r"/run/credentials/rawstream\.service/([\w.-]+)", section("unit-config")))
    assert loaded == read


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """``systemd-analyze verify`` has nothing to say, but that the program is not installed where the unit has it."""
    analyze = require_tool("systemd-analyze")
    installed = tmp_path / "rawstream"
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    for name in ("unit", "socket-unit"):
        suffix = "service" if name == "unit" else "socket"
        text = re.sub(r"/\S+/bin/rawstream", str(installed), unit(name))
        (tmp_path / f"rawstream.{suffix}").write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(tmp_path / "rawstream.service"), str(tmp_path / "rawstream.socket")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if "rawstream" in line]
    assert (done.returncode, said) == (0, [])


def test_systemd_finds_the_unit_well_protected(tmp_path: Path) -> None:
    """By ``systemd-analyze security``, as the README says (10 is unprotected)."""
    analyze = require_tool("systemd-analyze")
    (tmp_path / "rawstream.service").write_text(unit("unit"))
    done = subprocess.run(
        [analyze, "security", "--offline=yes", "--no-pager", str(tmp_path / "rawstream.service")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    (level,) = re.findall(r"Overall exposure level for rawstream\.service: ([\d.]+)", done.stdout)
    assert f"the exposure as {level} of 10" in README


def test_certbots_hook_is_a_shell_script_that_reloads(tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text(unit("certbot"))
    subprocess.run(["sh", "-n", str(hook)], check=True, timeout=10)
    assert "systemctl reload rawstream" in hook.read_text()

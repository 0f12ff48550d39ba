"""``rawstream serve`` as a process of its own, and what can be seen of it from outside.

Rule 1: the port is the one that its "listening" line names; nothing is guessed.
Rule 2: whatever a test did to it, it can be asked whether it is as before (``assert_steady``).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support import raw
from tests.support.program import Program
from tests.support.waiting import eventually

_LISTENING = "rawstream listening on "
_ADMIN = "rawstream admin on "


class ServerProcess(Program):
    """A running server. Use with ``with``; leaving the block ends it and asserts that nothing went wrong."""

    def __init__(
        self,
        *flags: str,
        env: Mapping[str, str] | None = None,
        descriptors: int | None = None,
        log_format: str = "json",
        wait: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``flags`` go to ``rawstream serve``; ``descriptors`` is its RLIMIT_NOFILE, soft and hard.

        ``tls``: how to speak with a server that was given a certificate.
        """
        self.flags = flags
        self.tls = tls
        flags = ("--port", "0", *flags) if not {"--port", "--uds"} & set(flags) else flags

        def limit() -> None:
            if descriptors is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

        super().__init__("serve", "--log-format", log_format, *flags, env=env, before=limit)
        self.url = ""
        self.port = 0
        self.admin_port: int | None = None
        """Where ``--admin`` listens."""
        self._fds = 0
        if wait:
            try:
                self._wait_until_listening()
            except BaseException:
                self.bury()
                raise

    def _wait_until_listening(self) -> None:
        line = self.wait_line(lambda text: text.startswith(_LISTENING), within=20)
        self.url = line.removeprefix(_LISTENING).strip()
        if not self.url.startswith("unix:"):
            self.port = int(self.url.rsplit(":", 1)[1])
            if "--admin" in self.flags:
                line = self.wait_line(lambda text: text.startswith(_ADMIN), within=20)
                self.admin_port = int(line.rsplit(":", 1)[1])
            assert self.ask(raw.get("/healthz")).status == 200
            self.settle()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self.process.poll() is None:
                code = self.stop()
                if kind is None:
                    assert code == 0, f"exit code {code}:\n{self.stderr[-3000:]}"
            if kind is None:
                self.assert_no_traceback()
        finally:
            self.bury()

    # --- talking to it ---------------------------------------------------------------------------------------

    def connect(self, **options: Any) -> raw.Client:
        """A connection of one's own."""
        return raw.Client(self.port, tls=self.tls, **options)

    def ask(self, data: bytes, *, within: float = raw.DEADLINE) -> raw.Reply:
        """One request on a connection of its own."""
        with self.connect() as client:
            return client.ask(data, within=within)

    # --- what it says ----------------------------------------------------------------------------------------

    def logs(self) -> list[dict[str, Any]]:
        """The JSON log lines so far."""
        with self._news:
            return [json.loads(line) for line in self.lines if line.startswith("{")]

    def ended(self, request_id: str, *, within: float = 5.0) -> dict[str, Any]:
        """The log line of the stream of that request. AssertionError when there is none in time."""

        def is_it(line: str) -> bool:
            return line.startswith("{") and '"stream ended"' in line and json.loads(line)["request_id"] == request_id

        line: dict[str, Any] = json.loads(self.wait_line(is_it, within=within))
        return line

    def forgive(self, text: str) -> None:
        """Forget the lines that hold ``text``: the test provoked them."""
        with self._news:
            self.lines = [line for line in self.lines if text not in line]

    def assert_no_traceback(self) -> None:
        """Nothing on stderr looks like a bug of ours."""
        for mark in ("Traceback", '"exception"', "never retrieved", "never awaited", "Exception ignored"):
            assert mark not in self.stderr, f"{mark} on stderr:\n{self.stderr[-4000:]}"

    # --- what it holds ---------------------------------------------------------------------------------------

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def rss(self) -> int:
        """Resident memory, bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def debug(self) -> dict[str, Any]:
        """``GET /debug/streams``."""
        reply = self.ask_operator(raw.request("GET", "/debug/streams", host="localhost"))
        assert reply.status == 200
        answer: dict[str, Any] = reply.json()
        return answer

    def ask_operator(self, data: bytes) -> raw.Reply:
        """One request where the operator asks: on the admin port, if there is one."""
        return self.ask(data) if self.admin_port is None else raw.ask(self.admin_port, data)

    def settle(self) -> None:
        """Take the present number of descriptors for the normal one, when nobody but us is connected."""
        own = 1 if self.admin_port is None else 0
        eventually(lambda: self.debug()["totals"]["connections"] == own, why="only our own connection is left")
        self._fds = self._fds_at_rest()

    def _fds_at_rest(self) -> int:
        with self.connect() as client:
            client.ask(raw.get("/healthz"))
            return self.fds() - 1

    def assert_steady(self, *, within: float = 5.0) -> None:
        """A fresh request is answered, no stream and no descriptor is left, and nothing looks like a bug."""
        reply = self.ask(raw.get("/healthz"))
        assert (reply.status, reply.whole) == (200, True)
        eventually(lambda: self.debug()["totals"]["streams"] == 0, within=within, why="no stream is left")
        eventually(
            lambda: self.fds() <= self._fds,
            within=within,
            why=f"descriptors are {self._fds} again, not {self.fds()}",
        )
        self.assert_no_traceback()

    # --- its end ---------------------------------------------------------------------------------------------

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, *, within: float = 10.0) -> int:
        """Its exit code; afterwards all that it said is there."""
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {within:g} s:\n{self.stderr[-2000:]}") from None
        self.said_all(within)
        return code

    def stop(self, *, within: float = 10.0) -> int:
        """SIGTERM twice: end now. The exit code."""
        self.signal(signal.SIGTERM)
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGTERM)
        return self.wait(within=within)

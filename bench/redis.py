"""A Redis server of the benchmark's own: on its own core, in memory, ended with it.

What it is asked for what it counted is said over a plain socket: the harness needs no client library for it.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Final, NamedTuple, Self

from bench.host import free_port, pinned

_CALLS: Final = re.compile(rb"cmdstat_(\w+):calls=(\d+)")
_CPU: Final = re.compile(rb"used_cpu_(?:sys|user):([\d.]+)")


def missing() -> str | None:
    """Why there can be no Redis, or None."""
    return None if shutil.which("redis-server") else "redis-server is not installed (apt-get install redis-server)"


class RedisFailed(RuntimeError):
    """It did not start, or does not answer; the message says how."""


class Counted(NamedTuple):
    """What it did since its start."""

    asked: int
    """Commands that clients sent: round trips, where they do not send several at a time."""
    appended: int
    """XADD, in scripts as well."""
    cpu: float
    """Seconds."""

    def since(self, before: Counted) -> Counted:
        return Counted(self.asked - before.asked, self.appended - before.appended, self.cpu - before.cpu)


class Redis:
    """One running server."""

    def __init__(self, cores: Iterable[int]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-redis-")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        program = shutil.which("redis-server")
        if program is None:
            raise RedisFailed(missing())
        said = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        argv = pinned([program, *said, "--dir", self._folder.name], cores)
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 10
        while True:
            try:
                self.counted()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > until:
                    self.close()
                    raise RedisFailed(f"redis-server does not answer on port {self.port}") from None
                time.sleep(0.02)
            else:
                return

    def counted(self) -> Counted:
        """What it did so far. Raises OSError."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
            sock.sendall(b"INFO everything\r\nQUIT\r\n")
            said = b""
            while part := sock.recv(1 << 16):
                said += part
        calls = {found[1]: int(found[2]) for found in _CALLS.finditer(said)}
        asked = sum(calls.get(name, 0) for name in (b"evalsha", b"eval", b"xread"))
        return Counted(asked, calls.get(b"xadd", 0), sum(float(found[1]) for found in _CPU.finditer(said)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it. Idempotent."""
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

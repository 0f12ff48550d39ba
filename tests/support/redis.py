"""A real redis-server of one's own, which can be killed, stopped and started again on its port."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType

from tests.support.tools import require_tool
from tests.support.waiting import eventually


class RedisServer:
    """A running ``redis-server``. Use with ``with``. It keeps what it is told in ``folder`` when it ends politely."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = require_tool("redis-server")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it (again), with what it has kept; return when it answers."""
        flags = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--loglevel", "warning"]
        self.process = subprocess.Popen([self._program, *flags], stdout=subprocess.DEVNULL)
        eventually(lambda: self.command("PING").startswith(b"+PONG"), why="redis-server answers", within=10)

    def command(self, *words: str) -> bytes:
        """The raw reply to one command; b'' when it cannot be reached."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as sock:
                sock.sendall((" ".join(words) + "\r\n").encode())
                return sock.recv(65536)
        except OSError:
            return b""

    def kill(self) -> None:
        """SIGKILL: what it was told since its last save is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        """SIGTERM, after saving."""
        assert self.process is not None
        self.command("SAVE")
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)

    def freeze(self) -> None:
        """SIGSTOP: it accepts connections and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

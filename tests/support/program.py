"""A ``rawstream`` command as a process of its own, and what it says on stderr.

Rule 1: it starts with a clean environment: no settings of whoever runs the tests.
Rule 2: leaving its ``with`` block ends it, in whatever way the test ended.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def command() -> list[str]:
    """The ``rawstream`` command: this source tree's, or what RAWSTREAM_COMMAND says (an installed one)."""
    given = os.environ.get("RAWSTREAM_COMMAND")
    return shlex.split(given) if given else [sys.executable, "-c", "from rawstream.cli import main; main()"]


class Program:
    """The process. Whoever inherits says when it has come up, and how it ends."""

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        """``arguments`` of ``rawstream``; ``before``: called in the new process before the program is."""
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAWSTREAM_")}
        self.process = subprocess.Popen(
            [*command(), *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            env={**clean, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
            preexec_fn=before,
            text=True,
        )
        self._reader = threading.Thread(target=self._collect, name="stderr", daemon=True)
        self._reader.start()

    def _collect(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def bury(self) -> None:
        """Kill it, if it still runs, and keep nothing of it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        if self.process.stderr is not None:
            self.process.stderr.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> str:
        with self._news:
            return "\n".join(self.lines)

    def wait_line(self, wanted: Callable[[str], bool], *, within: float = 5.0) -> str:
        """The first line on stderr that is wanted. AssertionError when there is none in time."""
        until = time.monotonic() + within
        at = 0
        with self._news:
            while True:
                for line in self.lines[at:]:
                    if wanted(line):
                        return line
                at = len(self.lines)
                left = until - time.monotonic()
                if left <= 0 or self._ended:
                    raise AssertionError("no such line on stderr:\n" + "\n".join(self.lines[-40:]))
                self._news.wait(left)

    def said_all(self, within: float = 10.0) -> None:
        """Wait until there is no more to come: it has ended."""
        self._reader.join(within)

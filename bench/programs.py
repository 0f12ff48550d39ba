"""The generator and the fake upstream as Python sees them: a process that speaks one JSON object per line, both ways.

Rule 1: every wait has a deadline; a program that dies or falls silent is an error that says which.
Rule 2: they run on the cores that the server does not have.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.build import NoCompiler, compiled
from bench.host import pinned


class ProgramFailed(RuntimeError):
    """A helper program died, complained, or did not answer in time."""


class Program:
    """A child process that takes and gives JSON lines."""

    def __init__(self, argv: Sequence[str], cores: Iterable[int], *, prefix: Sequence[str] = ()) -> None:
        self.name = Path(argv[0]).name
        self._process = subprocess.Popen(
            [*prefix, *pinned(argv, cores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=Path(__file__).resolve().parent.parent,  # where ``-m bench.pygen`` is found
        )
        self.pid = self._process.pid
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, name=f"read {self.name}", daemon=True).start()

    def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        with contextlib.closing(os.fdopen(os.dup(stdout.fileno()), "rb")) as lines:
            for line in lines:
                try:
                    self._lines.put(json.loads(line))
                except ValueError:
                    self._lines.put({"event": "error", "message": f"not JSON: {line[:200]!r}"})
        self._lines.put(None)

    def say(self, **command: Any) -> None:
        """Send one command."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(command).encode() + b"\n")
        except BrokenPipeError as error:
            raise ProgramFailed(f"{self.name} has died") from error

    def hear(self, event: str, timeout: float) -> dict[str, Any]:
        """The next answer of this kind, letting others pass; ProgramFailed after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                answer = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise ProgramFailed(f"{self.name}: no '{event}' within {timeout:g} s") from None
            if answer is None:
                raise ProgramFailed(f"{self.name} has died (exit {self._process.wait()})")
            if answer["event"] == "error":
                raise ProgramFailed(f"{self.name}: {answer['message']}")
            if answer["event"] == event:
                return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Generator(Program):
    """The load generator: groups of connections, each reading in its own manner."""

    def __init__(
        self,
        cores: Iterable[int],
        expected: Path,
        *,
        python: bool = False,
        tls: bool = False,
        prefix: Sequence[str] = (),
    ) -> None:
        """``tls``: groups may ask for TLS; only the program in C can, else ProgramFailed says what is missing."""
        fallback = [sys.executable, "-m", "bench.pygen"]
        if tls:
            try:
                argv = [str(compiled("generator", tls=True))]
            except NoCompiler as error:
                raise ProgramFailed(f"no generator that speaks TLS: {error}") from None
        elif python:
            argv = fallback
        else:
            try:
                argv = [str(compiled("generator"))]
            except NoCompiler:
                argv = fallback
        super().__init__(argv, cores, prefix=prefix)
        self.say(cmd="expect", path=str(expected))

    def group(self, name: str, **settings: Any) -> None:
        """Describe a group of connections (see ``gen/generator.c``); after ``run`` it starts at once."""
        self.say(cmd="group", name=name, **settings)

    def run(self) -> None:
        self.say(cmd="run")

    def streaming(self, timeout: float) -> dict[str, Any] | None:
        """Wait until every stream has begun (or failed); None when that took longer."""
        try:
            return self.hear("streaming", timeout)
        except ProgramFailed as error:
            if "within" in str(error):
                return None
            raise

    def snap(self, *, whole: bool = False) -> dict[str, Any]:
        """Counters so far; with ``whole`` the histograms too."""
        self.say(cmd="snap", whole=whole)
        return self.hear("snap", 15)

    def reset(self) -> None:
        """Forget the histograms: the measurement begins here."""
        self.say(cmd="reset")

    def leave(self, group: str, *, every_ms: float, rst: bool = False) -> None:
        self.say(cmd="leave", group=group, every_ms=every_ms, rst=int(rst))

    def stop(self) -> dict[str, Any]:
        """End it and get the whole result."""
        self.say(cmd="stop")
        return self.hear("result", 60)


class Upstream(Program):
    """The fast fake upstream (C only)."""

    def __init__(self, cores: Iterable[int], expected: Path) -> None:
        super().__init__([str(compiled("upstream"))], cores)
        self.say(cmd="serve", port=0, path=str(expected))
        self.port = int(self.hear("listening", 5)["port"])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def answer(self, *, tokens: int | None, rate: float | None) -> None:
        """What each answer begun from now on is: so many tokens (None: endless) at this pace (None: unpaced)."""
        self.say(cmd="set", tokens=tokens or 0, rate=rate or 0)
        self.hear("set", 5)

    def stats(self) -> dict[str, Any]:
        """``bytes`` that our kernel took, ``outq`` of them still waiting here, ``opened``, ``closed``, ``tokens`` …"""
        self.say(cmd="stats")
        return self.hear("stats", 15)


def write_expected(path: Path, tokens: Iterable[str]) -> Path:
    """The tokens of a stream, as the C programs read them."""
    with path.open("wb") as out:
        for token in tokens:
            data = token.encode()
            out.write(struct.pack("=I", len(data)) + data)
    return path

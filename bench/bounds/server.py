"""``rawstream serve`` as a process of its own, on its core; what it says of itself, and what the system says of it."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.bounds.clients import fetch
from bench.bounds.table import CannotMeasure
from bench.certificate import make_certificate
from bench.sample import KernelQueues, Queues, cpu_seconds, process_tree

_SOURCES = Path(__file__).with_name("sources")
OWN_SOURCE = "bounds_source:for_bounds"
"""For ``--source``: the source that waits, repeats and writes down its ends as it is told (``sources/``)."""


def proportional_bytes(pid: int) -> int:
    """PSS of the process tree: what it has of memory, pages that it shares counted by its share."""
    total = 0
    for each in process_tree(pid):
        with contextlib.suppress(OSError, StopIteration):
            with open(f"/proc/{each}/smaps_rollup") as file:
                total += next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    if not total:
        raise CannotMeasure(f"process {pid} has ended")
    return total


def more_descriptors() -> None:
    """Raise the limit of this process as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Rawstream:
    """A running server; ended when the block is left."""

    def __init__(self, cores: Iterable[int], *flags: str, tls: bool = False) -> None:
        """``tls``: it speaks https, with a certificate made for it."""
        self.tls = tls
        self._folder = tempfile.TemporaryDirectory(prefix="bounds-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        self.events_file = folder / "events"
        self.events_file.touch()
        self.log_file = folder / "log"
        if tls:
            made = make_certificate(folder)
            flags = (*flags, "--ssl-certfile", str(made.cert), "--ssl-keyfile", str(made.key))
        chosen = set(cores)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAWSTREAM_")}
        paths = [str(_SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]

        def prepare() -> None:
            os.sched_setaffinity(0, chosen)
            more_descriptors()

        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rawstream", "serve", "--port", "0", "--log-format", "json", *flags],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=folder,
                env={**clean, "PYTHONPATH": os.pathsep.join(paths), "BOUNDS_EVENTS_FILE": str(self.events_file)},
                preexec_fn=prepare,
            )
        self.pid = self._process.pid
        try:
            self.port = self._listening()
            self.queues = KernelQueues()
        except BaseException:
            self._end()
            raise

    def _listening(self, timeout: float = 20.0) -> int:
        until = time.monotonic() + timeout
        while time.monotonic() < until and self._process.poll() is None:
            for line in self.log_file.read_text().splitlines():
                if line.startswith(f"rawstream listening on {self._scheme}://"):
                    return int(line.rsplit(":", 1)[1])
            time.sleep(0.02)
        raise CannotMeasure(f"rawstream did not start: {self.log_file.read_text()[-500:]}")

    @property
    def _scheme(self) -> str:
        return "https" if self.tls else "http"

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def debug(self) -> dict[str, Any]:
        """``GET /debug/streams``."""
        answer: dict[str, Any] = json.loads(fetch(self.port, "/debug/streams", tls=self.tls))
        return answer

    def totals(self) -> dict[str, Any]:
        found: dict[str, Any] = self.debug()["totals"]
        return found

    def kernel(self) -> Queues:
        """The send queues of all its connections, as the kernel has them."""
        return self.queues.of_port(self.port)

    def memory(self) -> int:
        """Bytes of the process (PSS)."""
        return proportional_bytes(self.pid)

    def cpu(self) -> float:
        return cpu_seconds(self.pid)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def events(self) -> list[tuple[str, str, int, int]]:
        """What its own source wrote: ``(open or close, name, monotonic ns, yields)``."""
        found = []
        for line in self.events_file.read_text().splitlines():
            kind, name, at, yields = line.split()
            found.append((kind, name, int(at), int(yields)))
        return found

    def ended_streams(self) -> list[dict[str, Any]]:
        """The log's lines for streams that have ended; ``time`` as seconds since the epoch."""
        found = []
        for text in self.log_file.read_text().splitlines():
            if text.startswith("{"):
                line = json.loads(text)
                if line.get("message") == "stream ended":
                    line["time"] = datetime.datetime.fromisoformat(line["time"]).timestamp()
                    found.append(line)
        return found

    def _end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.send_signal(number)
                self._process.wait(timeout=0.5)
        self._process.wait(timeout=10)
        self._folder.cleanup()

    def close(self) -> None:
        self.queues.close()
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def wait_for(holds: Callable[[], Any], what: str, timeout: float = 10.0, every: float = 0.02) -> Any:
    """The first true value of ``holds()``; CannotMeasure, naming ``what``, after ``timeout`` seconds."""
    until = time.monotonic() + timeout
    while not (value := holds()):
        if time.monotonic() > until:
            raise CannotMeasure(f"not within {timeout:g} s: {what}")
        time.sleep(every)
    return value


def level_off(
    read: Callable[[], float], *, still: float = 1.0, timeout: float = 20.0, every: float = 0.1
) -> tuple[float, bool]:
    """Read until the value has stood still for ``still`` seconds. The last value, and whether it did."""
    until = time.monotonic() + timeout
    last, since = read(), time.monotonic()
    while time.monotonic() < until:
        time.sleep(every)
        value = read()
        if value != last:
            last, since = value, time.monotonic()
        elif time.monotonic() - since >= still:
            return last, True
    return last, False


def come_to_rest(cpu: Callable[[], float], *, still: float = 0.5, timeout: float = 90.0) -> None:
    """Wait until a server uses no CPU time to speak of (what it does for a question of ours would count)."""
    until = time.monotonic() + timeout
    before = cpu()
    while time.monotonic() < until:
        time.sleep(still)
        now = cpu()
        if now - before <= 0.02 * still:
            return
        before = now

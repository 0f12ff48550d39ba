"""The machine: which cores there are for whom, and what a reader must know of it."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple


class Cores(NamedTuple):
    """Who runs where. One core each where there are enough; with one core, everybody shares it (and it is marked)."""

    server: frozenset[int]
    generator: frozenset[int]
    upstream: frozenset[int]
    apart: bool
    usable: tuple[int, ...]
    """All of them."""


def cores() -> Cores:
    """Share out the cores that this process may use."""
    usable = sorted(os.sched_getaffinity(0))
    server, generator = usable[0], usable[1 % len(usable)]
    upstream = usable[2] if len(usable) > 2 else generator
    return Cores(frozenset({server}), frozenset({generator}), frozenset({upstream}), len(usable) > 1, tuple(usable))


def free_port() -> int:
    """A TCP port that is free on loopback now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_PIN = """
import os, resource, sys
if sys.argv[1]:
    os.sched_setaffinity(0, [int(core) for core in sys.argv[1].split(",")])
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
for files in (65536, most):
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(files, most), max(files, most)))
        break
    except (ValueError, OSError):
        pass
os.execvp(sys.argv[2], sys.argv[2:])
"""


def _priority(threads: Iterable[int], policy: int, level: int) -> bool:
    for thread in threads:
        try:
            os.sched_setscheduler(thread, policy, os.sched_param(level))
        except PermissionError:
            return False
        except ProcessLookupError:
            continue  # it has ended meanwhile
    return True


@contextlib.contextmanager
def undisturbed(*pids: int) -> Iterator[bool]:
    """Real-time priority (SCHED_FIFO) for all threads of these processes while the block runs (0: this process).

    Yields whether that is allowed (root); where it is not, nothing is changed.
    """
    threads = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            threads += [int(name) for name in os.listdir(f"/proc/{pid or os.getpid()}/task")]
    allowed = _priority(threads, os.SCHED_FIFO, 1)
    try:
        yield allowed
    finally:
        if allowed:
            _priority(threads, os.SCHED_OTHER, 0)


def pinned(argv: Sequence[str], on: Iterable[int]) -> list[str]:
    """argv that runs a command on these cores (none: on any), with as many open files as it may have (root: 65,536)."""
    return [sys.executable, "-SEc", _PIN, ",".join(str(core) for core in sorted(on)), *argv]


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "?"


def _first_line(*argv: str) -> str:
    if shutil.which(argv[0]) is None:
        return "not installed"
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "?"
    return (done.stdout or done.stderr).strip().splitlines()[0] if (done.stdout or done.stderr).strip() else "?"


def environment() -> dict[str, Any]:
    """Kernel, CPU, memory, versions and the kernel settings on which the figures depend."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in _read("/proc/cpuinfo").splitlines()
            if line.startswith("model name")
        ),
        "?",
    )
    memory = next(
        (int(line.split()[1]) // 1024 for line in _read("/proc/meminfo").splitlines() if line.startswith("MemTotal")), 0
    )
    packages = {}
    for name in ("rawstream", "uvloop", "h11", "msgspec"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": f"{model}, {os.cpu_count()} cores",
        "memory_mib": memory,
        "python": sys.version.split()[0],
        "packages": packages,
        "node": _first_line("node", "--version"),
        "compiler": _first_line("cc", "--version"),
        "sysctl": {
            name: _read(f"/proc/sys/net/{name.replace('.', '/')}")
            for name in (
                "ipv4.tcp_wmem",
                "ipv4.tcp_rmem",
                "core.wmem_max",
                "ipv4.tcp_congestion_control",
                "ipv4.tcp_notsent_lowat",
            )
        },
        "load_before": os.getloadavg()[0],
    }

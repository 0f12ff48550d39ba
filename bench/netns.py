"""Two network namespaces with a thin, shaped pipe between them (needs root and iproute2; says so otherwise)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

CLONE_NEWNET = 0x40000000


class NoNamespaces(RuntimeError):
    """Namespaces cannot be made here; the message says why."""


@dataclass(frozen=True)
class ThinPipe:
    """The server's namespace, the client's, and the address that the server has for the client."""

    server: str
    client: str
    address: str
    rate_bits: int

    def prefix(self, name: str) -> list[str]:
        """What to put before a command to run it in this namespace."""
        return ["ip", "netns", "exec", name]


def _ip(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoNamespaces(f"{' '.join(words)}: {done.stderr.strip()}")


def why_not() -> str | None:
    """Why there can be no thin pipe here; None when there can."""
    if os.geteuid() != 0:
        return "the thin pipe needs root (network namespaces)"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"the thin pipe needs iproute2's '{tool}'"
    return None


@contextlib.contextmanager
def thin_pipe(rate_bits: int = 400_000) -> Iterator[ThinPipe]:
    """``server`` ──tbf──▶ ``client``; both namespaces are gone afterwards. NoNamespaces when it cannot be."""
    reason = why_not()
    if reason is not None:
        raise NoNamespaces(reason)
    mark = f"rsb{os.getpid()}"
    pipe = ThinPipe(f"{mark}s", f"{mark}c", "10.213.0.1", rate_bits)
    try:
        for name in (pipe.server, pipe.client):
            _ip("ip", "netns", "add", name)
            _ip("ip", "-n", name, "link", "set", "lo", "up")
        _ip(
            "ip", "link", "add", "thin0", "netns", pipe.server,
            "type", "veth", "peer", "name", "thin1", "netns", pipe.client,
        )  # fmt: skip
        _ip("ip", "-n", pipe.server, "addr", "add", "10.213.0.1/24", "dev", "thin0")
        _ip("ip", "-n", pipe.client, "addr", "add", "10.213.0.2/24", "dev", "thin1")
        _ip("ip", "-n", pipe.server, "link", "set", "thin0", "up")
        _ip("ip", "-n", pipe.client, "link", "set", "thin1", "up")
        # a burst of one full packet, and at most 400 ms of data waiting in the pipe itself
        _ip(
            "tc", "-n", pipe.server, "qdisc", "add", "dev", "thin0", "root", "tbf",
            "rate", f"{rate_bits}bit", "burst", "3200", "latency", "400ms",
        )  # fmt: skip
        yield pipe
    finally:
        for name in (pipe.server, pipe.client):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Sockets that this thread makes inside the block belong to that namespace, also after it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{name}") as there:
        if libc.setns(there.fileno(), CLONE_NEWNET) != 0:
            raise NoNamespaces(os.strerror(ctypes.get_errno()))
        try:
            yield
        finally:
            libc.setns(here.fileno(), CLONE_NEWNET)

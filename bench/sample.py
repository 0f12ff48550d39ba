"""What a process tree costs: CPU time, memory, and the kernel's send queues of its sockets. Linux only.

Rule 1: CPU is user + system time of the whole tree, from /proc (10 ms steps).
Rule 2: memory is resident memory *and* what waits in the kernel's socket buffers: a server that fills those has
        not saved anything.
Rule 3: kernel queues come from the kernel itself (NETLINK_SOCK_DIAG), not from a guess: ``queued`` is bytes written
        by the server and not yet acknowledged by the client's kernel, ``held`` is the memory that the kernel
        charges for them (SK_MEMINFO wmem_queued).
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

TICK: Final = os.sysconf("SC_CLK_TCK")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def process_tree(pid: int) -> list[int]:
    """The process and all that descend from it; the empty list when it has gone."""
    found, todo = [], [pid]
    while todo:
        current = todo.pop()
        try:
            tasks = os.listdir(f"/proc/{current}/task")
        except OSError:
            continue
        found.append(current)
        for task in tasks:
            try:
                with open(f"/proc/{current}/task/{task}/children") as file:
                    todo.extend(int(child) for child in file.read().split())
            except OSError:
                continue
    return found


def cpu_seconds(pid: int) -> float:
    """User + system time of the tree so far, children that have ended included."""
    return sum(own_cpu_seconds(each) for each in process_tree(pid))


def own_cpu_seconds(pid: int) -> float:
    """User + system time of one process so far, and of children of its own that have ended; 0 when it has gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return sum(int(fields[i]) for i in (11, 12, 13, 14)) / TICK


def cpu_by_name(pid: int) -> dict[str, float]:
    """The same for each program of the tree, by its name; children that have ended are not in it."""
    found: dict[str, float] = {}
    for each in process_tree(pid):
        try:
            with open(f"/proc/{each}/stat", "rb") as file:
                before, _, after = file.read().rpartition(b")")
        except OSError:
            continue
        name, fields = before.partition(b"(")[2].decode(errors="replace"), after.split()
        found[name] = found.get(name, 0.0) + sum(int(fields[i]) for i in (11, 12)) / TICK
    return found


def waited_seconds(pid: int) -> float:
    """Seconds for which the tree's main threads could have run so far, and had no core to run on."""
    total = 0
    for each in process_tree(pid):
        try:
            with open(f"/proc/{each}/schedstat") as file:
                total += int(file.read().split()[1])
        except (OSError, IndexError):  # the kernel may not keep it
            continue
    return total / 1e9


def write_calls(pid: int) -> int:
    """write() and writev() calls of the tree so far, all descriptors (``syscw``; the kernel does not count send())."""
    total = 0
    for each in process_tree(pid):
        try:
            with open(f"/proc/{each}/io") as file:
                total += next(int(line.split()[1]) for line in file if line.startswith("syscw:"))
        except (OSError, StopIteration):
            continue
    return total


def core_seconds(on: Iterable[int]) -> float:
    """Seconds for which programs (not interrupts) have kept these cores busy, since boot."""
    wanted = {f"cpu{core}" for core in on}
    total = 0
    with open("/proc/stat") as file:
        for line in file:
            name, *fields = line.split()
            if name in wanted:
                total += sum(int(fields[i]) for i in (0, 1, 2))  # user, nice, system
    return total / TICK


def resident_bytes(pid: int) -> int:
    """Resident memory of the tree; pages that several of its processes share are counted once (PSS)."""
    tree = process_tree(pid)
    total = 0
    for each in tree:
        try:
            if len(tree) > 1:
                with open(f"/proc/{each}/smaps_rollup") as file:
                    total += next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
            else:
                with open(f"/proc/{each}/statm") as file:
                    total += int(file.read().split()[1]) * PAGE
        except (OSError, StopIteration):
            continue
    return total


class Queues(NamedTuple):
    """Of all established connections whose local (or remote) port this is."""

    sockets: int
    queued: int
    """Bytes written and not yet acknowledged by the peer's kernel."""
    held: int
    """Bytes of kernel memory charged for them."""
    unread: int
    """Bytes received and not yet read (the clients' side, when asked by remote port)."""


_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_STATES: Final = (1 << 1) | (1 << 4) | (1 << 5) | (1 << 8)  # ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT
_SKMEMINFO: Final = 7
_INFO: Final = 2
_DATA_SEGS_OUT: Final = 156
"""Where ``struct tcp_info`` has tcpi_data_segs_out (linux/tcp.h)."""


class KernelQueues:
    """A netlink socket to ask for TCP queues through; it belongs to the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        self._socket.settimeout(5)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._lock = threading.Lock()

    def close(self) -> None:
        self._socket.close()

    def of_port(self, port: int, *, remote: bool = False) -> Queues:
        """Totals over the connections of this local port (the server's side), or remote port (its clients')."""
        sockets = queued = held = unread = 0
        for data, at, option in self._of_port(port, _SKMEMINFO, remote):
            rqueue, wqueue = struct.unpack_from("=II", data, at + 16 + 56)
            sockets += 1
            queued += wqueue
            unread += rqueue
            if option:
                held += struct.unpack_from("=I", data, option + 5 * 4)[0]
        return Queues(sockets, queued, held, unread)

    def packets_of_port(self, port: int) -> int:
        """Packets with data that the open connections of this local port have sent (on loopback of up to 64 KiB)."""
        found = self._of_port(port, _INFO, False)
        return sum(struct.unpack_from("=I", data, option + _DATA_SEGS_OUT)[0] for data, _, option in found if option)

    def _of_port(self, port: int, wanted: int, remote: bool) -> Iterator[tuple[bytes, int, int]]:
        """A dump's messages for this port: the data, where its message begins, where the extension (0: absent)."""
        with self._lock:
            request = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 1 << (wanted - 1), 0, _STATES)
            request += bytes(48)
            # flags: NLM_F_REQUEST | NLM_F_DUMP
            self._socket.send(struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, 0x301, 1, 0) + request)
            while True:
                data = self._socket.recv(1 << 18)
                at = 0
                while at < len(data):
                    length, kind = struct.unpack_from("=IH", data, at)
                    if kind == 3:  # NLMSG_DONE
                        return
                    if kind == 2:  # NLMSG_ERROR
                        raise OSError(-struct.unpack_from("=i", data, at + 16)[0], "sock_diag refused")
                    source, target = struct.unpack_from("!HH", data, at + 20)
                    if (target if remote else source) == port:
                        yield data, at, _extension(data, at + 16 + 72, at + length, wanted)
                    at += (length + 3) & ~3


def _extension(data: bytes, at: int, end: int, wanted: int) -> int:
    """Where the payload of this attribute begins; 0 when there is none."""
    while at + 4 <= end:
        size, which = struct.unpack_from("=HH", data, at)
        if which == wanted:
            return at + 4
        if size < 4:
            break
        at += (size + 3) & ~3
    return 0


@dataclass
class Samples:
    """Series of (seconds since the sampler's start, bytes)."""

    resident: list[tuple[float, float]] = field(default_factory=list)
    queued: list[tuple[float, float]] = field(default_factory=list)
    held: list[tuple[float, float]] = field(default_factory=list)
    total: list[tuple[float, float]] = field(default_factory=list)
    """Resident + queued: what the rule of "rising or level" looks at."""
    guarded_at: float | None = None
    """When the server passed the memory guard, if it did."""


class Sampler:
    """Samples a server's memory and queues from a thread, and cries out once it passes the guard."""

    def __init__(
        self,
        pid: int,
        port: int,
        queues: KernelQueues,
        *,
        every: float = 0.25,
        guard: float = float("inf"),
        on_guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.samples = Samples()
        self._pid, self._port, self._queues = pid, port, queues
        self._every, self._guard, self._on_guard = every, guard, on_guard
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    @property
    def guarded(self) -> bool:
        """The server passed the guard and was ended."""
        return self.samples.guarded_at is not None

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._every, time.monotonic())
            resident = resident_bytes(self._pid)
            if not resident:
                return
            queues = self._queues.of_port(self._port)
            at = round(time.monotonic() - self._began, 3)
            samples = self.samples
            samples.resident.append((at, resident))
            samples.queued.append((at, queues.queued))
            samples.held.append((at, queues.held))
            samples.total.append((at, resident + queues.queued))
            if resident + queues.queued > self._guard:
                samples.guarded_at = at
                self._on_guard()
                return

    def stop(self) -> Samples:
        """End sampling; what was seen."""
        self._ended.set()
        self._thread.join(timeout=10)
        return self.samples

"""What systemd and a service tell each other: ``sd_notify(3)``, the watchdog, and sockets that are handed over.

Rule 1: without ``NOTIFY_SOCKET`` nothing is told, and without ``LISTEN_PID`` naming us no socket is taken over.
Rule 2: telling never waits and never fails: a service manager that does not listen costs a service nothing.
Rule 3: the variables are read once and then removed, so that no child takes them for its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

_FIRST_DESCRIPTOR: Final = 3
"""SD_LISTEN_FDS_START."""
_STATUS_EVERY: Final = 10.0
"""Seconds between two looks at whether the status has changed."""


class ServiceManager:
    """The one who started us, where it wants to be told how we do. One instance for a process, on its event loop."""

    def __init__(self, environ: MutableMapping[str, str], pid: int | None = None) -> None:
        """Takes ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` out of ``environ``."""
        self._address = _address(environ.pop("NOTIFY_SOCKET", ""))
        self._watchdog = _watchdog_seconds(
            environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", ""), os.getpid() if pid is None else pid
        )
        self._socket: socket.socket | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._status: str | None = None

    @property
    def listens(self) -> bool:
        """Is there anybody to tell?"""
        return self._address is not None

    def ready(self, status: Callable[[], str]) -> None:
        """We accept. From now on the watchdog is fed from the event loop, and ``status()`` is told when it changes."""
        if self._address is None:
            return
        self._status = status()
        self._tell(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={_line(self._status)}")
        self._repeat(_STATUS_EVERY, lambda: self._tell_status(status()))
        if self._watchdog is not None:
            # Half of it, as sd_watchdog_enabled(3) asks: one turn of the loop may be late.
            self._repeat(self._watchdog / 2, lambda: self._tell("WATCHDOG=1"))

    def reloading(self) -> None:
        """A reload begins; ``reloaded()`` says that it is over. ``Type=notify-reload`` wants the time along with it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self, status: str) -> None:
        """A reload is over, well or not."""
        self._status = status
        self._tell(f"READY=1\nSTATUS={_line(status)}")

    def stopping(self, status: str) -> None:
        """We end. The watchdog is fed on: running streams may take a while."""
        self._status = status
        self._tell(f"STOPPING=1\nSTATUS={_line(status)}")

    def close(self) -> None:
        """Tell nothing any more. Idempotent."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._address = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell_status(self, status: str) -> None:
        if status != self._status:
            self._status = status
            self._tell(f"STATUS={_line(status)}")

    def _repeat(self, every: float, what: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        place = len(self._timers)

        def again() -> None:
            what()
            self._timers[place] = loop.call_later(every, again)

        self._timers.append(loop.call_later(every, again))

    def _tell(self, message: str) -> None:
        if self._address is None:
            return
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            pass  # nobody there, or its queue is full: it is the manager that is told, not we who need it


def _address(told: str) -> bytes | None:
    """The socket's address: a path, or with ``@`` an abstract name. Any other kind (vsock) is not ours."""
    if told.startswith("@") and len(told) > 1:
        return b"\0" + os.fsencode(told[1:])
    return os.fsencode(told) if told.startswith("/") else None


def _watchdog_seconds(microseconds: str, pid: str, ours: int) -> float | None:
    """How long we may be silent; None: as long as we like (``sd_watchdog_enabled(3)``)."""
    if not microseconds.isdecimal() or int(microseconds) <= 0 or (pid and pid != str(ours)):
        return None
    return int(microseconds) / 1_000_000


def _line(status: str) -> str:
    return status.replace("\n", " ")


def handed_over(environ: MutableMapping[str, str], pid: int | None = None) -> list[socket.socket]:
    """The listening sockets that systemd opened for us (``sd_listen_fds(3)``); none where it opened none.

    Takes ``LISTEN_PID``, ``LISTEN_FDS`` and ``LISTEN_FDNAMES`` out of ``environ``. Raises OSError for a descriptor
    that is not a listening stream socket.
    """
    meant = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if meant != str(os.getpid() if pid is None else pid) or not count.isdecimal():
        return []
    sockets: list[socket.socket] = []
    for descriptor in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count)):
        os.set_inheritable(descriptor, False)
        one = socket.socket(fileno=descriptor)
        if one.type != socket.SOCK_STREAM or not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(f"LISTEN_FDS: descriptor {descriptor} is not a listening stream socket")
        one.setblocking(False)
        sockets.append(one)
    return sockets

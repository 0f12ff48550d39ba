"""What the kernel holds for us, and how to bound it.

Rule 1: every option set here is a setting, and 0 leaves the kernel's own default.
Rule 2: a figure that the system cannot give is None, never a guess. ``TCP_NOTSENT_LOWAT``, ``SIOCOUTQ`` and
        ``TCP_INFO`` are Linux's; elsewhere the bound on unsent bytes is the socket's send buffer, and the levels
        are unknown.

Theory of operation: ``drain()`` waits for the *transport* buffer alone. Below it the kernel takes megabytes more
(tcp_wmem, autotuned) unless ``TCP_NOTSENT_LOWAT`` says how many unsent bytes are enough.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import sys
from typing import Final, NamedTuple, Protocol

LINUX: Final = sys.platform == "linux"
_TCP_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if LINUX else None)
_SIOCOUTQ: Final = 0x5411  # linux/sockios.h: bytes in the send queue, sent but unacknowledged ones included
_SIOCOUTQNSD: Final = 0x894B  # linux/sockios.h: bytes in the send queue that were not sent yet
_KERNEL_DEFAULT_LOWAT: Final = 0xFFFFFFFF


class SocketLike(Protocol):
    """What ``transport.get_extra_info("socket")`` gives, on asyncio and on uvloop."""

    def fileno(self) -> int: ...

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


class OptionSocket(Protocol):
    @property
    def family(self) -> int: ...

    def setsockopt(self, level: int, optname: int, value: int, /) -> None: ...


class KernelQueue(NamedTuple):
    """Bytes in a socket's send queue."""

    unsent: int
    unacked: int

    @property
    def total(self) -> int:
        return self.unsent + self.unacked


class TcpInfo(NamedTuple):
    """The part of Linux's ``struct tcp_info`` that tells who waits for whom. Times in seconds, windows in bytes."""

    rtt: float
    snd_wnd: int | None
    """Receive window of the peer; None before Linux 5.4."""
    busy: float
    rwnd_limited: float
    sndbuf_limited: float
    bytes_acked: int


def bound_send_side(sock: OptionSocket, *, notsent_lowat: int, sndbuf: int) -> None:
    """Set ``TCP_NODELAY``, ``TCP_NOTSENT_LOWAT`` and ``SO_SNDBUF`` on a connected socket; on a Unix one that last."""
    if sndbuf:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if notsent_lowat:
            set_notsent_lowat(sock, notsent_lowat)


def set_notsent_lowat(sock: OptionSocket, value: int) -> bool:
    """Set ``TCP_NOTSENT_LOWAT`` in bytes; 0 returns to the kernel's default. False where there is no such option."""
    if _TCP_NOTSENT_LOWAT is None:
        return False
    unsigned = value or _KERNEL_DEFAULT_LOWAT
    signed = struct.unpack("i", struct.pack("I", unsigned))[0]
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, signed)
    return True


def _ioctl_int(fd: int, request: int) -> int | None:
    value = array.array("i", [0])
    try:
        fcntl.ioctl(fd, request, value)
    except OSError:  # closed meanwhile, or not a TCP socket
        return None
    return value[0]


def send_queue(fd: int) -> KernelQueue | None:
    """How many bytes the kernel holds for the peer of ``fd``; None where the system cannot tell."""
    if not LINUX or fd < 0:
        return None
    total = _ioctl_int(fd, _SIOCOUTQ)
    if total is None:
        return None
    unsent = _ioctl_int(fd, _SIOCOUTQNSD)
    if unsent is None:  # a Unix socket: all of it waits for the reader
        return KernelQueue(unsent=total, unacked=0)
    # Two calls: an acknowledgement may come between them.
    return KernelQueue(unsent=unsent, unacked=max(0, total - unsent))


def unsent(fd: int) -> int:
    """Bytes in the send queue of ``fd`` that were not sent yet; 0 where the system cannot tell (about 0.6 µs)."""
    return (_ioctl_int(fd, _SIOCOUTQNSD) or 0) if LINUX and fd >= 0 else 0


def send_sealed(sock: socket.socket, data: bytes) -> int:
    """Send what the kernel takes of ``data``, and let nothing be appended to it; the number of bytes taken.

    ``TCP_NOTSENT_LOWAT`` is looked at when the kernel needs a new buffer, not when it appends to the last one, which
    grows to 64 KiB. ``MSG_EOR`` ends that buffer, so that the mark is looked at again (net/ipv4/tcp.c,
    ``tcp_sendmsg_locked``). Raises OSError when the connection is broken.
    """
    try:
        return sock.send(data, socket.MSG_EOR)
    except (BlockingIOError, InterruptedError):
        return 0


_TCP_INFO_SIZE: Final = 232
_TCP_INFO_MINIMUM: Final = 192


def parse_tcp_info(raw: bytes) -> TcpInfo | None:
    """Read ``struct tcp_info`` (linux/tcp.h); None when the kernel gave too little of it."""
    if len(raw) < _TCP_INFO_MINIMUM:
        return None
    (rtt,) = struct.unpack_from("I", raw, 68)
    (bytes_acked,) = struct.unpack_from("Q", raw, 120)
    busy, rwnd_limited, sndbuf_limited = struct.unpack_from("QQQ", raw, 168)
    snd_wnd: int | None = None
    if len(raw) >= _TCP_INFO_SIZE:
        (snd_wnd,) = struct.unpack_from("I", raw, 228)
    return TcpInfo(rtt / 1e6, snd_wnd, busy / 1e6, rwnd_limited / 1e6, sndbuf_limited / 1e6, bytes_acked)


def tcp_info(sock: SocketLike) -> TcpInfo | None:
    """``TCP_INFO`` of a socket (about 1 µs); None where the system, or this kind of socket, has none."""
    if not LINUX or sock.fileno() < 0:  # closed: uvloop's socket then raises ValueError, asyncio's OSError
        return None
    try:
        return parse_tcp_info(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE))
    except (OSError, ValueError):  # ValueError: uvloop, of a socket that was closed meanwhile
        return None

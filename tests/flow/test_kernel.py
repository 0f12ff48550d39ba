"""What the kernel holds for us: bounded by options, read by ioctl, and unknown where the system cannot tell."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from rawstream.flow import kernel

linux_only = pytest.mark.skipif(not kernel.LINUX, reason="Linux gives these figures")


@contextlib.contextmanager
def tcp_pair(rcvbuf: int = 4096) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(sender, receiver that reads nothing)."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        receiver.settimeout(10)
        receiver.connect(listening.getsockname())
        sender, _ = listening.accept()
        with sender:
            sender.setblocking(False)
            yield sender, receiver


def notsent_lowat(sock: socket.socket) -> int:
    return struct.unpack("I", sock.getsockopt(socket.IPPROTO_TCP, 25, 4))[0]  # type: ignore[no-any-return]  # struct's


@linux_only
def test_a_tcp_socket_gets_what_was_asked_for() -> None:
    with tcp_pair() as (sender, _):
        kernel.bound_send_side(sender, notsent_lowat=5000, sndbuf=20_000)
        assert sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert notsent_lowat(sender) == 5000
        assert sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 40_000  # Linux doubles it, for its own part


@linux_only
def test_zero_leaves_the_kernels_own_default() -> None:
    with tcp_pair() as (sender, _):
        before = (sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), notsent_lowat(sender))
        kernel.bound_send_side(sender, notsent_lowat=0, sndbuf=0)
        assert (sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), notsent_lowat(sender)) == before


@linux_only
def test_the_low_water_mark_can_be_given_back() -> None:
    with tcp_pair() as (sender, _):
        assert kernel.set_notsent_lowat(sender, 4096)
        assert kernel.set_notsent_lowat(sender, 0)
        assert notsent_lowat(sender) == 0xFFFFFFFF


def test_a_unix_socket_has_no_tcp_options_and_gets_none() -> None:
    left, right = socket.socketpair()
    with left, right:
        kernel.bound_send_side(left, notsent_lowat=4096, sndbuf=20_000)
        assert left.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 20_000


def test_a_system_without_the_option_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_TCP_NOTSENT_LOWAT", None)
    with tcp_pair() as (sender, _):
        assert not kernel.set_notsent_lowat(sender, 4096)
        kernel.bound_send_side(sender, notsent_lowat=4096, sndbuf=0)


@linux_only
def test_the_send_queue_counts_what_the_receiver_has_not_taken() -> None:
    with tcp_pair() as (sender, _):
        assert kernel.send_queue(sender.fileno()) == (0, 0)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += sender.send(b"x" * 4096)
        queue = kernel.send_queue(sender.fileno())
        assert queue is not None
        assert queue.unsent > 0
        assert queue.unacked >= 0
        assert queue.unsent < queue.total + 1 <= sent + 1


@linux_only
def test_the_low_water_mark_bounds_what_the_kernel_takes() -> None:
    """Without it a socket takes hundreds of kilobytes for a receiver that reads nothing; with it, hardly more."""

    def taken(lowat: int) -> int:
        with tcp_pair() as (sender, _):
            kernel.bound_send_side(sender, notsent_lowat=lowat, sndbuf=0)
            import select

            poll = select.poll()
            poll.register(sender, select.POLLOUT)
            while poll.poll(50):  # writable, as an event loop sees it
                sender.send(b"x" * 2048)
            queue = kernel.send_queue(sender.fileno())
            assert queue is not None
            return queue.unsent

    assert taken(4096) <= 8 * 1024
    assert taken(0) > 64 * 1024


@linux_only
def test_a_sealed_write_stops_what_the_low_water_mark_lets_through() -> None:
    """Linux appends to its last segment whatever the mark says; after a sealed write it has to look at the mark."""

    def taken(sealed: bool) -> int:
        with tcp_pair(64 * 1024) as (sender, _):
            kernel.bound_send_side(sender, notsent_lowat=4096, sndbuf=0)
            for _ in range(5000):
                if sealed and kernel.unsent(sender.fileno()) >= 4096:
                    if not kernel.send_sealed(sender, b"x" * 2048):
                        break
                    continue
                try:
                    sender.send(b"x" * 2048)
                except BlockingIOError:
                    break
            return kernel.unsent(sender.fileno())

    assert taken(sealed=True) <= 9 * 1024
    assert taken(sealed=False) > 16 * 1024


def test_a_broken_connection_cannot_be_sealed() -> None:
    """The error is the caller's to judge."""
    left, right = socket.socketpair()
    right.close()
    with left, pytest.raises(OSError):
        kernel.send_sealed(left, b"x")


@linux_only
def test_on_a_unix_socket_all_that_waits_is_unsent() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.send(b"hello")
        queue = kernel.send_queue(left.fileno())
        assert queue is not None
        assert queue.unsent == queue.total > 0


def test_a_closed_socket_has_no_queue() -> None:
    sock = socket.socket()
    fd = sock.fileno()
    sock.close()
    assert kernel.send_queue(sock.fileno()) is None
    assert kernel.send_queue(fd) is None
    assert kernel.unsent(sock.fileno()) == kernel.unsent(fd) == 0


def test_other_systems_have_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """None, never a guess."""
    monkeypatch.setattr(kernel, "LINUX", False)
    with tcp_pair() as (sender, _):
        assert kernel.send_queue(sender.fileno()) is None
        assert kernel.tcp_info(sender) is None


@linux_only
def test_tcp_info_counts_what_was_acknowledged() -> None:
    with tcp_pair() as (sender, receiver):
        sender.send(b"x" * 1000)
        assert len(receiver.recv(1000, socket.MSG_WAITALL)) == 1000
        info = kernel.tcp_info(sender)
        assert info is not None
        assert info.bytes_acked >= 1000
        assert 0 < info.rtt < 10
        assert info.snd_wnd is None or info.snd_wnd >= 0


def test_a_unix_socket_has_no_tcp_info() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert kernel.tcp_info(left) is None


def test_tcp_info_is_read_as_the_kernel_header_has_it() -> None:
    raw = bytearray(232)
    struct.pack_into("I", raw, 68, 1500)
    struct.pack_into("Q", raw, 120, 77)
    struct.pack_into("QQQ", raw, 168, 1_000_000, 2_000_000, 3_000_000)
    struct.pack_into("I", raw, 228, 65535)
    assert kernel.parse_tcp_info(bytes(raw)) == kernel.TcpInfo(0.0015, 65535, 1.0, 2.0, 3.0, 77)
    older = kernel.parse_tcp_info(bytes(raw[:228]))
    assert older is not None
    assert older.snd_wnd is None
    assert kernel.parse_tcp_info(bytes(raw[:191])) is None

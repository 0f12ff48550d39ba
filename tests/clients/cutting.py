"""Something between client and gateway that fails: it passes an answer on for a while, and then no more.

Rule 1: what it passes on is untouched, up to the end of a whole chunk (RFC 9112 §7.1) or into the next one; no error
        event tells what happened.
Rule 2: what it does then is chosen by the port that it was reached at.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import socketserver
import struct
import threading
from types import TracebackType
from typing import Final

PATIENCE: Final = 10.0
"""Seconds without a byte after which a connection is given up."""
CHUNKS: Final = 5
"""Chunks of an answer that are passed on."""


class Cut(enum.Enum):
    """How an answer ends."""

    BETWEEN = "closed between two chunks"
    INSIDE = "closed inside a chunk"
    RESET = "reset (RST)"
    CLEAN = "ended as if it were whole, as a careless proxy does it"


class CuttingRelay:
    """Listens at ``url`` until the ``with`` block is left. Every answer through it ends after ``CHUNKS`` chunks."""

    def __init__(self, gateway_port: int, cut: Cut) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # the client may be gone first
                    _relay(self.request, gateway_port, cut)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._server.block_on_close = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="cutting relay")

    def __enter__(self) -> CuttingRelay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE)
        self._server.server_close()


def _relay(client: socket.socket, gateway_port: int, cut: Cut) -> None:
    client.settimeout(PATIENCE)
    with socket.create_connection(("127.0.0.1", gateway_port), PATIENCE) as gateway:
        _pass_request(client, gateway)
        with gateway.makefile("rb") as answer:
            for line in iter(answer.readline, b"\r\n"):
                client.sendall(line)
            client.sendall(b"\r\n")
            for _ in range(CHUNKS):
                size = answer.readline()
                client.sendall(size + answer.read(int(size, 16) + 2))
            if cut is Cut.INSIDE:
                size = answer.readline()
                client.sendall(size + answer.read(int(size, 16) // 2))
    if cut is Cut.RESET:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        return
    if cut is Cut.CLEAN:
        client.sendall(b"0\r\n\r\n")
    client.shutdown(socket.SHUT_WR)
    while client.recv(65536):
        pass  # until the client has seen it; what it still says is lost, as everything on a dead connection


def _pass_request(client: socket.socket, gateway: socket.socket) -> None:
    """One request, its body by its Content-Length."""
    with client.makefile("rb", buffering=0) as request:
        length = 0
        for line in iter(request.readline, b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
            gateway.sendall(line)
        gateway.sendall(b"\r\n")
        while length:
            body = request.read(length)
            assert body, "the client left before its request was whole"
            gateway.sendall(body)
            length -= len(body)

"""Clients of raw sockets: they read nothing, or slowly, or leave.

Rule 1: ``SO_RCVBUF`` is set before connect; afterwards it has no effect on the window that was agreed on.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final

from bench.certificate import trusting_all

RECEIVE_BUFFER: Final = 4096
ENDLESS: Final = {"tokens": None, "tokens_per_second": None}
"""The mock's options: without end, as fast as it is pulled."""


def post(path: str, body: Mapping[str, Any]) -> bytes:
    """The bytes of a POST with a JSON body."""
    text = json.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(text)}"
    return f"{head}\r\n\r\n{text}".encode()


def chat(path: str = "/chat", name: str = "bench", **more: Any) -> bytes:
    """A chat request; without options, to the endless unpaced mock."""
    return post(path, {"prompt": name, **(more or {"mock": ENDLESS})})


def completion(**more: Any) -> bytes:
    """A streaming chat completion."""
    body = {"model": "bench", "stream": True, "messages": [{"role": "user", "content": "hi"}], **more}
    return post("/v1/chat/completions", body)


def connect(port: int, request: bytes, *, receive_buffer: int = RECEIVE_BUFFER, tls: bool = False) -> socket.socket:
    """A connection that has sent its request, and reads nothing; ``tls``: after its handshake."""
    made = socket.socket()
    if receive_buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.settimeout(10)
    try:
        made.connect(("127.0.0.1", port))
        if tls:
            made = trusting_all().wrap_socket(made)
        made.sendall(request)
    except BaseException:
        made.close()
        raise
    return made


def reset(link: socket.socket) -> None:
    """Leave with a reset."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


def read_until(link: socket.socket, mark: bytes, count: int = 1) -> bytes:
    """Receive, a little at a time, until ``mark`` has come ``count`` times; EOFError at the end."""
    got = b""
    while got.count(mark) < count:
        data = link.recv(4096)
        if not data:
            raise EOFError(f"ended without {mark!r}: {got[-200:]!r}")
        got += data
    return got


def read_all(link: socket.socket) -> bytes:
    """Receive until the peer closes."""
    got = b""
    while data := link.recv(65536):
        got += data
    return got


def fetch(port: int, path: str, *, tls: bool = False) -> bytes:
    """The body of a GET; ValueError when the answer is not 200."""
    request = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode()
    with connect(port, request, receive_buffer=0, tls=tls) as link:
        head, blank, body = read_all(link).partition(b"\r\n\r\n")
    if not blank or b" 200 " not in head.split(b"\r\n")[0] + b" ":
        raise ValueError(f"GET {path}: {head[:80]!r}")
    if b"transfer-encoding: chunked" in head.lower():
        whole = b""
        while body:
            size, _, rest = body.partition(b"\r\n")
            if not int(size, 16):
                break
            whole += rest[: int(size, 16)]
            body = rest[int(size, 16) + 2 :]
        return whole
    return body

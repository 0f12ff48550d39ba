"""An HTTP client that does as it is told: any bytes, any pace, any receive buffer. One blocking socket.

Rule 1: every wait has a deadline, and says what it waited for.
Rule 2: it judges nothing. What came, and whether it came whole, is in the ``Reply``.
"""

from __future__ import annotations

import ctypes
import json
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

DEADLINE = 5.0
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h


@dataclass
class Reply:
    """One answer."""

    status: int
    reason: str
    version: str
    headers: list[tuple[str, str]]
    """Names in lower case, in the order they came."""
    body: bytes = b""
    whole: bool = False
    """The body came to the end that its framing promised."""
    raw: bytes = b""
    """The head as it came."""
    interim: list[int] = field(default_factory=list)
    """1xx answers that came before."""

    def header(self, name: str) -> str | None:
        """The only value of a header; None: not sent. AssertionError when it came more than once."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """The ``data`` of the events of a stream (one line each, as all our dialects have them)."""
        return data_lines(self.body)

    @property
    def tokens(self) -> list[str]:
        """The tokens of a ``/chat`` or ``/stream`` answer."""
        decoded = [json.loads(event) for event in self.events if event.startswith("{")]
        return [event["token"] for event in decoded if "token" in event]

    @property
    def error(self) -> dict[str, Any] | None:
        """The in-stream error of a ``/chat`` or ``/stream`` answer."""
        for event in self.events:
            if event.startswith('{"error"'):
                decoded: dict[str, Any] = json.loads(event)
                return decoded
        return None

    @property
    def done(self) -> bool:
        return "[DONE]" in self.events


def data_lines(body: bytes) -> list[str]:
    """The ``data`` fields of whole lines in an event stream."""
    lines = body.decode().split("\n")[:-1]
    return [line.removeprefix("data:").removeprefix(" ") for line in lines if line.startswith("data:")]


def request(
    method: str,
    target: str,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
    *,
    version: str = "1.1",
    host: str | None = "localhost",
) -> bytes:
    """The bytes of one request."""
    lines = [f"{method} {target} HTTP/{version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    lines += [f"{name}: {value}" for name, value in pairs]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def get(target: str, **headers: str) -> bytes:
    return request("GET", target, {name.replace("_", "-"): value for name, value in headers.items()})


def post(target: str, value: object, **headers: str) -> bytes:
    """A POST with a JSON body."""
    named = {"Content-Type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
    return request("POST", target, named, json.dumps(value).encode())


def chat(path: str = "/chat", *, request_id: str | None = None, **mock: object) -> bytes:
    """A streaming request to the mock source. Without options: its 200 tokens at 50 a second."""
    body: dict[str, object] = {"prompt": "hello"}
    if mock:
        body["mock"] = mock
    return post(path, body, **({"x_request_id": request_id} if request_id else {}))


ENDLESS: dict[str, Any] = {"tokens": None, "tokens_per_second": None}
"""The mock's options for tokens without end, as fast as they are pulled."""


class Client:
    """One connection. Close it, or use it with ``with``."""

    def __init__(
        self,
        address: int | str,
        *,
        rcvbuf: int | None = None,
        host: str = "127.0.0.1",
        deadline: float = DEADLINE,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``address``: a TCP port on ``host``, or the path of a Unix socket. ``rcvbuf``: SO_RCVBUF, before connect.

        ``tls``: speak https. An end without ``close_notify`` then counts as a reset.
        """
        self.deadline = deadline
        self.was_reset = False
        self.at_end = False
        self._received = bytearray()
        self._framing: tuple[str, int] = ("none", 0)
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        if rcvbuf is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.sock.settimeout(deadline)
        try:
            self.sock.connect(address if isinstance(address, str) else (host, address))
            if tls is not None:
                self.sock = tls.wrap_socket(self.sock, server_hostname=host, suppress_ragged_eofs=False)
        except BaseException:
            self.sock.close()
            raise
        if family != socket.AF_UNIX:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- sending ---------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> Client:
        """Send all of it. Raises OSError when the peer has closed."""
        self.sock.settimeout(self.deadline)
        self.sock.sendall(data)
        return self

    def try_send(self, data: bytes) -> bool:
        """Send; False when the peer closed meanwhile (its answer can still be read)."""
        try:
            self.send(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def half_close(self) -> Client:
        """FIN: no more will be sent, but we still read."""
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def reset(self) -> None:
        """RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def vanish(self) -> None:
        """From now on nothing that comes is even acknowledged, as when the peer's machine has lost its power.

        A socket filter that lets nothing through does it (``SO_ATTACH_FILTER``, classic BPF ``ret 0``; Linux).
        """
        program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))

    def close(self) -> None:
        self.sock.close()

    # --- receiving -------------------------------------------------------------------------------------------

    def more(self, deadline: float | None = None, what: str = "data", *, size: int = 65536) -> bool:
        """Receive some more; False at the end (a reset is one). AssertionError at the deadline (monotonic)."""
        if self.at_end:
            return False
        until = time.monotonic() + self.deadline if deadline is None else deadline
        left = until - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self.sock.settimeout(left)
            data = self.sock.recv(size)
        except TimeoutError:
            raise AssertionError(f"no {what} in time; received {len(self._received)} bytes more") from None
        except (ConnectionResetError, ssl.SSLEOFError):
            self.was_reset = True
            data = b""
        if not data:
            self.at_end = True
            return False
        self._received += data
        return True

    def take(self) -> bytes:
        """What was received and not used yet."""
        data = bytes(self._received)
        self._received.clear()
        return data

    def head(self, *, method: str = "GET", within: float | None = None) -> Reply:
        """The head of the next answer; 1xx ones before it are noted. AssertionError when the peer closes first."""
        until = time.monotonic() + (self.deadline if within is None else within)
        interim: list[int] = []
        while True:
            while (end := self._received.find(b"\r\n\r\n")) < 0:
                if not self.more(until, "response head"):
                    raise AssertionError(f"closed before a response head; received {bytes(self._received[:200])!r}")
            raw = bytes(self._received[: end + 4])
            del self._received[: end + 4]
            reply = _parse_head(raw)
            if reply.status >= 200:
                break
            interim.append(reply.status)
        reply.interim = interim
        self._framing = _framing(reply, method)
        return reply

    def body_part(self, *, within: float | None = None) -> bytes | None:
        """Some more of the body; None: it is whole. Raises EOFError when it was cut."""
        until = time.monotonic() + (self.deadline if within is None else within)
        while True:
            kind, left = self._framing
            if kind == "none" or (kind == "length" and left == 0):
                return None
            if kind == "chunked":
                chunk = self._chunk()
                if chunk is not None:
                    if chunk:
                        return chunk
                    self._framing = ("none", 0)
                    return None
            elif self._received:
                part = bytes(self._received[:left]) if kind == "length" else bytes(self._received)
                del self._received[: len(part)]
                if kind == "length":
                    self._framing = (kind, left - len(part))
                return part
            if not self.more(until, "body"):
                if kind == "close" and not self.was_reset:
                    self._framing = ("none", 0)
                    return None
                raise EOFError("the body was cut")

    def _chunk(self) -> bytes | None:
        line = self._received.find(b"\r\n")
        if line < 0:
            return None
        size = int(self._received[:line], 16)
        end = line + 2 + size + 2
        if len(self._received) < end:
            return None
        assert self._received[end - 2 : end] == b"\r\n", "a chunk does not end where it says"
        data = bytes(self._received[line + 2 : end - 2])
        del self._received[:end]
        return data

    def parts(self, *, within: float | None = None) -> Iterator[bytes]:
        """The parts of the body as they come, to its end. Raises EOFError when it was cut."""
        while (part := self.body_part(within=within)) is not None:
            yield part

    def reply(self, *, method: str = "GET", within: float | None = None) -> Reply:
        """A whole answer; ``whole`` is False when its body was cut."""
        reply = self.head(method=method, within=within)
        until = time.monotonic() + (self.deadline if within is None else within)
        parts: list[bytes] = []
        try:
            while (part := self.body_part(within=until - time.monotonic())) is not None:
                parts.append(part)
            reply.whole = True
        except EOFError:
            pass
        reply.body = b"".join(parts)
        return reply

    def until(self, marker: bytes, *, within: float | None = None) -> bytes:
        """The body from here until it holds ``marker``. Raises EOFError when it ends before."""
        until = time.monotonic() + (self.deadline if within is None else within)
        got = b""
        while marker not in got:
            part = self.body_part(within=until - time.monotonic())
            if part is None:
                raise EOFError(f"the body ended without {marker!r}")
            got += part
        return got

    def ask(self, data: bytes, *, within: float | None = None) -> Reply:
        """Send a request and read its answer."""
        return self.send(data).reply(method=data.split(b" ", 1)[0].decode("latin-1"), within=within)

    def rest(self, *, within: float | None = None) -> bytes:
        """All that comes until the peer closes. AssertionError when it does not close in time."""
        until = time.monotonic() + (self.deadline if within is None else within)
        while self.more(until, "end of the connection"):
            pass
        return self.take()


def _parse_head(raw: bytes) -> Reply:
    start, *lines = raw.decode("latin-1").split("\r\n")[:-2]
    version, status, reason = ([*start.split(" ", 2), ""])[:3]
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        assert colon, f"not a header line: {line!r}"
        headers.append((name.lower(), value.strip()))
    return Reply(int(status), reason, version, headers, raw=raw)


def _framing(reply: Reply, method: str) -> tuple[str, int]:
    if method == "HEAD" or reply.status in (204, 304):
        return "none", 0
    if reply.header("transfer-encoding") == "chunked":
        return "chunked", 0
    length = reply.header("content-length")
    return ("close", 0) if length is None else ("length", int(length))


def ask(address: int | str, data: bytes, *, within: float = DEADLINE) -> Reply:
    """One request on a connection of its own."""
    with Client(address) as client:
        return client.ask(data, within=within)

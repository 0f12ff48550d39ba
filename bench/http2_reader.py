"""A client of HTTP/2 for the bench: begins many streams on a connection, counts their tokens, resets them.

Rule 1: it reads all that there is, and its windows are never shut: what waits, waits at the server.
Rule 2: it looks at frames by their nine bytes, and decodes heads alone: it must not be the bottleneck.
Rule 3: it knows what became of each stream, so that a run without tokens says why.
"""

from __future__ import annotations

import json
import selectors
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from hpack import Decoder, Encoder

from bench.serving import Server, ServerFailed

_WINDOW: Final = 1 << 30
"""Bytes that each stream and the connection are granted at once: a stream of 50 tokens/s needs a week for them, a
hundred on one connection two hours. (2³¹ − 1 may be granted.)"""
_READ: Final = 1 << 18
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_CANCEL: Final = 8


class Http2Reader:
    """One connection."""

    def __init__(self, server: Server, path: str) -> None:
        """Raises ServerFailed when TLS agrees on something else than HTTP/2."""
        self._path = path
        self.sock = server.connect(10, alpn=("h2",) if server.peer.tls else ())
        if isinstance(self.sock, ssl.SSLSocket) and self.sock.selected_alpn_protocol() != "h2":
            self.sock.close()
            raise ServerFailed(f"{server.peer.name} does not speak HTTP/2 by ALPN")
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tokens: dict[int, int] = {}
        """Of each stream that was begun."""
        self.frames = 0
        """DATA frames, those without tokens included."""
        self.over: set[int] = set()
        """Streams that have ended, in whatever way."""
        self.told: Counter[str] = Counter()
        """What else the server said: statuses, resets, GOAWAY."""
        self._kept = b""
        self._encoder, self._decoder = Encoder(), Decoder()
        settings = _frame(_SETTINGS, 0, 0, struct.pack(">HL", 4, _WINDOW))
        self._send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + _frame(_WINDOW_UPDATE, 0, 0, _long(_WINDOW)))

    def begin(self, mock: Mapping[str, object], prompts: Sequence[str]) -> list[int]:
        """Ask on a stream each; their numbers."""
        out, begun = [], []
        for prompt in prompts:
            stream = 2 * len(self.tokens) + 1
            self.tokens[stream] = 0
            begun.append(stream)
            body = json.dumps({"prompt": prompt, "mock": dict(mock)}).encode()
            fields = [(":method", "POST"), (":scheme", "http"), (":authority", "bench"), (":path", self._path)]
            fields += [("content-type", "application/json"), ("content-length", str(len(body)))]
            out += [_frame(_HEADERS, 4, stream, self._encoder.encode(fields)), _frame(_DATA, 1, stream, body)]
        self._send(b"".join(out))
        return begun

    def reset(self, stream: int) -> int:
        """Give a stream up; monotonic ns just before it was said."""
        at = time.monotonic_ns()
        self._send(_frame(_RST_STREAM, 0, stream, _long(_CANCEL)))
        self.over.add(stream)
        return at

    def close(self) -> int:
        """Leave without a word; monotonic ns just before."""
        at = time.monotonic_ns()
        self.sock.close()
        return at

    def read(self) -> None:
        """All that is there. Raises ConnectionError when the server has closed."""
        try:
            while True:
                data = self.sock.recv(_READ)
                if not data:
                    raise ConnectionError(f"the server closed the connection ({self.says()})")
                self._take(data)
                if not isinstance(self.sock, ssl.SSLSocket):
                    return  # TLS gives one record at a time, and keeps what nobody asks for: a selector does not see it
        except (BlockingIOError, ssl.SSLWantReadError):
            return

    def says(self) -> str:
        """What became of its streams, for people."""
        told = ", ".join(f"{count} × {what}" for what, count in sorted(self.told.items()))
        begun = sum(map(bool, self.tokens.values()))
        return (
            f"{begun} of {len(self.tokens)} streams with tokens, {len(self.over)} over; {told or 'nothing else said'}"
        )

    def _send(self, data: bytes) -> None:
        self.sock.settimeout(10)
        self.sock.sendall(data)
        self.sock.setblocking(False)

    def _take(self, data: bytes) -> None:
        if self._kept:
            data = self._kept + data
        at, length = 0, len(data)
        while length - at >= 9:
            high, low, kind, flags, stream = struct.unpack_from(">HBBBL", data, at)
            end = at + 9 + (high << 8 | low)
            if end > length:
                break
            if kind == _DATA:
                self.frames += 1
                self.tokens[stream] += data.count(b'"token"', at, end)
                if flags & 1:
                    self.over.add(stream)
            else:
                self._other(kind, flags, stream, data[at + 9 : end])
            at = end
        self._kept = data[at:]

    def _other(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _HEADERS:
            fields = self._decoder.decode(payload, raw=True)
            self.told[f"status {dict(fields).get(b':status', b'?').decode()}"] += 1
            if flags & 1:
                self.over.add(stream)
        elif kind == _RST_STREAM:
            self.told[f"reset {struct.unpack('>L', payload)[0]}"] += 1
            self.over.add(stream)
        elif kind == _GOAWAY:
            self.told[f"GOAWAY {struct.unpack_from('>L', payload, 4)[0]}"] += 1
        elif kind in (_SETTINGS, _PING) and not flags & 1:
            self._send(_frame(kind, 1, 0, payload if kind == _PING else b""))


def read_for(readers: Sequence[Http2Reader], seconds: float) -> None:
    """Read what comes on all of them for so long."""
    with selectors.DefaultSelector() as selector:
        for reader in readers:
            selector.register(reader.sock, selectors.EVENT_READ, reader)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                key.data.read()


def _long(value: int) -> bytes:
    return struct.pack(">L", value)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload

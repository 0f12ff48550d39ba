"""A hundred streams on one connection of HTTP/2, a thousand on ten: what a token costs, and whether all get theirs."""

from __future__ import annotations

import json
import selectors
import socket
import struct
import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from hpack import Encoder

from bench.peers import Peer
from bench.results import Measurement
from bench.scenarios.base import Bench, Column, Goal, Scale, Scenario, lasting

RATE: Final = 50
STREAMS: Final = 100
CONNECTIONS: Final = {"one": 1, "ten": 10}
SECONDS: Final = {"full": 10.0, "short": 5.0, "toy": 1.0}
WARM: Final = 1.0
_WINDOW: Final = 1 << 24
_SPEAKS: Final = ("rawstream", "hypercorn-starlette")
"""Who takes HTTP/2 on a plain port from a client that begins with it."""


class _Connection:
    """Reads frames and counts tokens by stream; grants windows that last for the run."""

    def __init__(self, port: int, path: str, mock: dict[str, object]) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.tokens = dict.fromkeys(range(1, 2 * STREAMS, 2), 0)
        self.ended = 0
        self._kept = b""
        body = json.dumps({"prompt": "bench", "mock": mock}).encode()
        encoder = Encoder()
        out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, struct.pack(">HL", 4, _WINDOW))
        out += _frame(8, 0, 0, struct.pack(">L", _WINDOW))
        for stream in self.tokens:
            fields = [(":method", "POST"), (":scheme", "http"), (":authority", "bench"), (":path", path)]
            head = encoder.encode([*fields, ("content-type", "application/json"), ("content-length", str(len(body)))])
            out += _frame(1, 4, stream, head) + _frame(0, 1, stream, body)
        self.sock.sendall(out)
        self.sock.setblocking(False)

    def read(self) -> None:
        """What is there. Raises ConnectionError when the server has closed."""
        data = self.sock.recv(1 << 18)
        if not data:
            raise ConnectionError("the server closed the connection")
        data = self._kept + data
        at = 0
        while len(data) - at >= 9:
            high, low, kind, flags, stream = struct.unpack_from(">HBBBL", data, at)
            end = at + 9 + (high << 8 | low)
            if end > len(data):
                break
            if kind == 0 and stream in self.tokens:
                self.tokens[stream] += data.count(b'"token"', at, end)
            if kind == 4 and not flags & 1:
                self.sock.sendall(_frame(4, 1, 0, b""))
            if kind == 3 or (kind in (0, 1) and flags & 1):
                self.ended += 1
            at = end
        self._kept = data[at:]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _read(connections: Sequence[_Connection], seconds: float) -> None:
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.sock, selectors.EVENT_READ, connection)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                key.data.read()


class Multiplexed(Scenario):
    name = "multiplexed"
    title = "Multiplexed: 100 streams at 50 tokens/s on each connection of HTTP/2"
    about = (
        f"{STREAMS} streams of {RATE} tokens/s on one connection, and on each of ten. CPU per token is taken while all "
        "of them run. Fairness is the slowest stream's tokens over the fastest's. Only servers that take HTTP/2 on a "
        "plain port take part; the reader is Python, in the bench's own process."
    )
    part_titles = MappingProxyType({"one": "1 connection", "ten": "10 connections"})
    columns = (
        Column("us_per_token", "CPU per token", "µs", "less", 2, ratio=True),
        Column("fairness", "slowest over fastest", "", "more", 3),
        Column("complete", "streams that ran", "of all", "more", 3),
    )
    goals = (Goal("one", "fairness", ">=", 0.95, "every stream gets its tokens"),)
    bars = ("us_per_token",)

    def parts(self, scale: Scale) -> Sequence[str]:
        return ("one",) if scale == "toy" else ("one", "ten")

    def wants(self, peer: Peer, part: str) -> bool:
        return peer.name in _SPEAKS

    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        return lasting(SECONDS, scale, stretch) + WARM + 2

    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        seconds = bench.lasting(SECONDS)
        mock: dict[str, object] = {"tokens": int((seconds + 60) * RATE), "tokens_per_second": RATE}
        with bench.server(peer) as server:
            connections = [_Connection(server.port, peer.paths["chat"], mock) for _ in range(CONNECTIONS[part])]
            try:
                _read(connections, WARM)
                before = [dict(connection.tokens) for connection in connections]
                cpu = server.cpu()
                _read(connections, seconds)
                cpu = server.cpu() - cpu
            finally:
                for connection in connections:
                    connection.sock.close()
            made = [
                connection.tokens[stream] - was[stream]
                for connection, was in zip(connections, before, strict=True)
                for stream in was
            ]
            if not any(made):
                found.failure = "no token came"
                return
            found.values["us_per_token"] = cpu / sum(made) * 1e6
            found.values["fairness"] = min(made) / max(made)
            found.values["complete"] = sum(map(bool, made)) / len(made)

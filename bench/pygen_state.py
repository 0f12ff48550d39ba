"""What the Python generator knows of a group of connections, and of each of them."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any

from bench.pygen_response import Histogram, Response

COUNTERS = (
    "connected", "answered", "begun", "completed", "cut", "wrong", "bad_status", "failed", "closed_by_server",
    "reconnects", "left", "reads", "bytes", "tokens",
)  # fmt: skip


@dataclass
class Group:
    settings: dict[str, Any]
    expected: list[str]
    connections: list[Connection] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    settled: int = 0
    last_first_token_us: int = 0
    first_wrong: str = ""
    gap: Histogram = field(default_factory=Histogram)
    late: Histogram = field(default_factory=Histogram)
    answer: Histogram = field(default_factory=Histogram)
    first: Histogram = field(default_factory=Histogram)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.settings.get(name, {"mode": "fast", "dialect": "tokens", "count": 1}.get(name, 0))


@dataclass
class Connection:
    group: Group
    index: int
    link: socket.socket | None = None
    life: str = "unborn"
    settled: bool = False
    request: bytes = b""
    started: int = 0
    first: int = 0
    last: int = 0
    first_us: int = -1
    left_at: int = 0
    answers: int = 0
    arrivals: list[int] = field(default_factory=list)
    response: Response | None = None

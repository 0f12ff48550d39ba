"""HTTP/2's frames as they pass, before anybody acts on them (RFC 9113 §4, §10.5). No I/O, no clock.

Rule 1: a frame is judged by its nine bytes of header, when they have come: too long a frame, too long a header block,
        too many frames that cost the peer nothing are refused before their bytes are kept. (h2 4.4 keeps all of a
        frame, up to 16 MiB, before it looks at its length, and 64 frames of one header block.)
Rule 2: what costs the peer nothing and us something is paid for from ``Patience``. Who has none left is told to calm
        down (ENHANCE_YOUR_CALM), and is gone.
Rule 3: bytes are passed on as they came, except GOAWAY: h2 takes it for the end of everything, while to the peer's
        streams that have begun it means nothing (§6.8).
"""

from __future__ import annotations

import struct
from typing import Final

from h2.errors import ErrorCodes

from rawstream.errors import ProtocolViolation

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client says first (§3.4)."""
HEADER: Final = 9
"""Bytes of a frame's header (§4.1)."""
MAX_FRAME: Final = 16 * 1024
"""Longest frame, in bytes of payload: SETTINGS_MAX_FRAME_SIZE as it is if nobody says anything."""
MAX_BLOCK: Final = 64 * 1024
"""Longest header block, in bytes as sent: one frame and its CONTINUATIONs. One that is longer than ``max_head`` and
not longer than this is answered with 431."""
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
_ACK: Final = 1
_END_HEADERS: Final = 4

REASONS: Final = (
    "continuation",
    "data",
    "framing",
    "header_list",
    "malformed",
    "pings",
    "preface",
    "priorities",
    "requests",
    "resets",
    "settings",
    "too_many_streams",
    "unknown",
    "unread",
    "window",
)
"""Why a connection was cut, or a stream refused, that broke the rules of HTTP/2. A closed set."""
_SPENT_ON: Final = {
    DATA: "data",
    HEADERS: "requests",
    PRIORITY: "priorities",
    RST_STREAM: "resets",
    SETTINGS: "settings",
    PING: "pings",
    WINDOW_UPDATE: "window",
    CONTINUATION: "continuation",
}
_COST: Final = {SETTINGS: 5.0}
"""Of one frame; 1 where nothing is said. Settings may change all windows, and are answered."""
_SMALL_DATA: Final = 64
"""Bytes. DATA that carries less costs more to take than to send, and is paid for, too."""


class Http2Violation(ProtocolViolation):
    """The peer broke the rules of HTTP/2, or our patience. ``reason``: one of ``REASONS``."""

    code = "http2_violation"

    def __init__(
        self, reason: str, message: str, *, detail: str | None = None, error: ErrorCodes = ErrorCodes.PROTOCOL_ERROR
    ) -> None:
        super().__init__(message, detail=detail)
        self.reason = reason
        self.error = error
        """What the peer is told."""


class Patience:
    """How much a peer may ask of us that costs it nothing. Plain arithmetic.

    It comes back with time, up to what it began with, and with what is done for the peer, up to four times that: who
    was sent a thousand frames may give back the windows of a thousand at once.
    """

    START: Final = 1000.0
    A_STREAM: Final = 2.0
    """More to begin with, for each stream that may be open."""
    A_SECOND: Final = 100.0
    AN_ANSWER: Final = 10.0
    A_DATA_FRAME: Final = 2.0
    A_RESET: Final = 14.0
    """Cost of a stream that ends in a reset, whoever sent it: a request that is taken back at once is the cheapest way
    to make work (CVE-2023-44487), and so is one that makes us take it back (CVE-2025-8671)."""

    __slots__ = ("_at", "_spent", "_start", "left")

    def __init__(self, now: float, streams: int) -> None:
        self._start = self.left = self.START + self.A_STREAM * streams
        self._at = now
        self._spent: dict[str, float] = {}

    def earn(self, worth: float) -> None:
        self.left = min(4 * self._start, self.left + worth)

    def spend(self, reason: str, cost: float, now: float) -> None:
        """Raises Http2Violation when that was too much, naming what most was spent on."""
        if self.left < self._start:
            self.left = min(self._start, self.left + (now - self._at) * self.A_SECOND)
        self._at = now
        self.left -= cost
        self._spent[reason] = self._spent.get(reason, 0.0) + cost
        if self.left < 0:
            most = max(self._spent, key=lambda reason: self._spent[reason])
            raise Http2Violation(
                most, "the peer asks for too much that costs it nothing", error=ErrorCodes.ENHANCE_YOUR_CALM
            )


class Frames:
    """Reads the headers of frames in a connection's bytes, however these are cut into pieces."""

    __slots__ = ("_begun", "_block", "_farewell", "_left", "_partial", "_patience", "goodbye")

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._left = len(PREFACE)
        """Bytes of the present frame that are still to come."""
        self._partial = b""
        self._begun = False
        self._block = -1
        """Bytes of the header block that is not complete yet; -1: there is none."""
        self._farewell: bytearray | None = None
        """The payload of a GOAWAY, as far as it is here."""
        self.goodbye: int | None = None
        """The code of the peer's GOAWAY, once it has said it."""

    def look(self, data: bytes, now: float) -> bytes:
        """What h2 may see of ``data``. Raises Http2Violation."""
        if self._partial:
            data = self._partial + data
            self._partial = b""
        at, end = 0, len(data)
        seen = 0  # up to here it has been passed on, or dropped
        passed: list[bytes] = []
        while True:
            step = min(self._left, end - at)
            if self._farewell is not None:
                self._farewell += data[at : at + step]
                seen = at + step
            at += step
            self._left -= step
            if self._left:
                break
            if self._farewell is not None:
                self._said_goodbye(self._farewell)
            if end - at < HEADER:
                self._partial = data[at:]
                break
            high, low, kind, flags, stream = struct.unpack_from(">HBBBL", data, at)
            stream &= 0x7FFF_FFFF
            size = self._left = high << 8 | low
            self._judge(kind, flags, size, now)
            if kind == GOAWAY and not stream and size >= 8:
                passed.append(data[seen:at])
                seen = at + HEADER
                self._farewell = bytearray()
            at += HEADER
        if not passed and not self._partial and not seen:
            return data
        passed.append(data[seen:at])
        return b"".join(passed)

    def _said_goodbye(self, payload: bytearray) -> None:
        self._farewell = None
        (self.goodbye,) = struct.unpack_from(">L", payload, 4)

    def _judge(self, kind: int, flags: int, size: int, now: float) -> None:
        if size > MAX_FRAME:
            raise Http2Violation("framing", f"a frame of {size} bytes is too long", error=ErrorCodes.FRAME_SIZE_ERROR)
        if not self._begun:
            self._begun = True
            if kind != SETTINGS or flags & _ACK:
                raise Http2Violation("preface", "a connection begins with SETTINGS")
        if kind != DATA or size < _SMALL_DATA:
            self._patience.spend(_SPENT_ON.get(kind, "unknown"), _COST.get(kind, 1.0), now)
        if self._block >= 0 or kind == HEADERS:
            self._block = max(self._block, 0) + size
            if self._block > MAX_BLOCK:
                raise Http2Violation("continuation", "the header block is too long", error=ErrorCodes.ENHANCE_YOUR_CALM)
            if flags & _END_HEADERS:
                self._block = -1

"""The bodies of HTTP/1.1 responses (RFC 9112 §6, §7), as a client reads them: framed bytes in, data out. No I/O.

Rule 1: body bytes do not pass through h11 (10 µs per chunk). They are decoded here, many chunks in a few steps.
Rule 2: framing is read to the letter; whatever else it holds is ``UpstreamFailed``.
Rule 3: a body says how it ended. Cut before its own end: ``UpstreamFailed``. Ended by the closing of the connection
        (``CloseBody``): only the caller, who knows the content, can tell whether it is whole.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final, TypeAlias

from rawstream.errors import UpstreamFailed
from rawstream.wire.guard import TOKEN

MAX_LINE: Final = 16 + 256 + 2
"""Bytes of a chunk's size line: 16 digits, an extension of 256 bytes, CRLF."""
MAX_TRAILERS: Final = 8 * 1024

_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,16}")
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e]*)?\r\n")
_SIZE_LINE_SO_FAR: Final = re.compile(rb"[0-9A-Fa-f]{0,16}(?:(?<=[0-9A-Fa-f])(?:;[\t\x20-\x7e]*)?\r?)?")
_TRAILER: Final = re.compile(rf"{TOKEN}+:[\t\x20-\x7e\x80-\xff]*\r\n".encode())
_CUT: Final = "the upstream cut its stream"


class _Sizes(dict[bytes, int]):
    """Chunk sizes by their text, so that a common one costs a look-up. -1: not a plain size."""

    _MOST: Final = 4096

    def __missing__(self, text: bytes) -> int:
        size = int(text, 16) if _SIZE.fullmatch(text) else -1
        if len(self) < self._MOST and len(text) <= 4:
            self[text] = size
        return size


_SIZES: Final = _Sizes()


class LengthBody:
    """A body of announced length."""

    __slots__ = ("_left", "ended", "surplus")
    fault: ClassVar[None] = None

    def __init__(self, length: int) -> None:
        self._left = length
        self.ended = length == 0
        self.surplus = False
        """Did bytes come after the end? Then nobody knows what the connection's next bytes are."""

    @property
    def buffered(self) -> int:
        return 0

    def decode(self, data: bytes) -> bytes:
        """The body's part of ``data``."""
        if len(data) > self._left:
            self.surplus = True
            data = data[: self._left]
        self._left -= len(data)
        self.ended = self._left == 0
        return data

    def eof(self) -> None:
        """The connection ended. Raises UpstreamFailed when that was before the body's end."""
        if not self.ended:
            raise UpstreamFailed(_CUT, detail=f"{self._left} bytes of the announced length are missing")


class CloseBody:
    """A body that lasts as long as the connection."""

    __slots__ = ("ended", "surplus")
    fault: ClassVar[None] = None

    def __init__(self) -> None:
        self.ended = False
        self.surplus = False

    @property
    def buffered(self) -> int:
        return 0

    def decode(self, data: bytes) -> bytes:
        return data

    def eof(self) -> None:
        self.ended = True


class ChunkedBody:
    """A body in the chunked coding (RFC 9112 §7.1). Strict; extensions and trailers are checked and dropped.

    Theory of operation: an event stream comes as many small chunks whose data holds no CRLF. Between two chunks a
    split at CRLF therefore gives sizes and data in turn; when every size is its data's length, they *are* the chunks.
    Whatever else there is goes element by element.
    """

    __slots__ = ("_closing", "_left", "_tail", "_trailers", "ended", "fault", "surplus")

    def __init__(self) -> None:
        self._left = 0
        """Bytes of the present chunk's data that are still to come."""
        self._closing = False
        """Is the CRLF after a chunk's data due?"""
        self._trailers = -1
        """Bytes that trailers may still take; -1: not there yet."""
        self._tail = b""
        """The start of an unfinished element: a size line, a CRLF, a trailer."""
        self.fault: UpstreamFailed | None = None
        """What was wrong after good data: the data is given out first, this is to be raised next."""
        self.ended = False
        self.surplus = False

    @property
    def buffered(self) -> int:
        """Bytes taken that belong to an unfinished element."""
        return len(self._tail)

    def decode(self, data: bytes) -> bytes:
        """The data of the chunks in ``data``, joined. Raises UpstreamFailed for bad framing.

        Good data that came before a fault is given out first; ``fault`` is then set.
        """
        pieces: list[bytes] = []
        try:
            self._take(self._tail + data if self._tail else data, pieces)
        except UpstreamFailed as fault:
            self.fault = fault
            if not pieces:
                raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _take(self, data: bytes, pieces: list[bytes]) -> None:
        """Decode element by element, or many chunks at once; keep the start of an unfinished element."""
        self._tail = b""
        tried = False
        while data and not self.ended and not self._tail:
            if self._left:
                pieces.append(data[: self._left])
                data = data[self._left :]
                self._left -= len(pieces[-1])
                self._closing = not self._left
            elif self._closing:
                if not b"\r\n".startswith(data[:2]):
                    raise UpstreamFailed("the upstream's chunk is not followed by CRLF")
                self._closing = len(data) < 2
                self._tail = data if self._closing else b""
                data = data[2:]
            elif self._trailers >= 0:
                data = self._trailer(data)
            elif tried:
                data = self._size(data)
            else:
                tried = True
                data = _whole_chunks(data, pieces)
        if self.ended and data:
            self.surplus = True

    def eof(self) -> None:
        """The connection ended. Raises UpstreamFailed when that was before the last chunk."""
        if self.fault is not None:
            raise self.fault
        if not self.ended:
            raise UpstreamFailed(_CUT, detail="the connection ended before the last chunk")

    def _size(self, data: bytes) -> bytes:
        end = data.find(b"\n", 0, MAX_LINE) + 1
        if not end:
            if len(data) >= MAX_LINE or not _SIZE_LINE_SO_FAR.fullmatch(data):
                raise UpstreamFailed("the upstream's chunk size is malformed")
            self._tail = data
            return b""
        match = _SIZE_LINE.fullmatch(data, 0, end)
        if match is None:
            raise UpstreamFailed("the upstream's chunk size is malformed")
        self._left = int(match.group(1), 16)
        if not self._left:
            self._trailers = MAX_TRAILERS
        return data[end:]

    def _trailer(self, data: bytes) -> bytes:
        end = data.find(b"\n", 0, self._trailers) + 1
        if not end:
            if len(data) >= self._trailers:
                raise UpstreamFailed("the upstream's trailers are too long")
            self._tail = data
            return b""
        if end == 2 and data[0] == 13:
            self.ended = True
        elif not _TRAILER.fullmatch(data, 0, end):
            raise UpstreamFailed("the upstream's trailers are malformed")
        self._trailers -= end
        return data[end:]


def _whole_chunks(data: bytes, pieces: list[bytes]) -> bytes:
    """Add the data of the whole chunks at the front of ``data`` to ``pieces``, if all are plain; return the rest."""
    parts = data.split(b"\r\n")
    pairs = (len(parts) - 1) // 2
    sizes = [_SIZES[text] for text in parts[0 : 2 * pairs : 2]]
    if 0 in sizes:
        # The last chunk, and what follows it: element by element.
        pairs = sizes.index(0)
        del sizes[pairs:]
    chunks = parts[1 : 2 * pairs : 2]
    if sizes != list(map(len, chunks)):
        return data
    pieces += chunks
    return b"\r\n".join(parts[2 * pairs :])


Body: TypeAlias = LengthBody | CloseBody | ChunkedBody

"""Reading and writing the chunked transfer coding (RFC 9112 §7.1), without I/O.

Rule 1: the decoder takes from the front of the buffer exactly what it has decoded; what follows the body stays.
Rule 2: a size line is judged before its data is waited for; sizes that add up to more than ``max_body`` are refused
        when they are announced, not when they have arrived.
Rule 3: good data that came before a fault is handed out first, so any cutting into reads gives the same events.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from rawstream.errors import ProtocolViolation
from rawstream.wire.guard import TOKEN, body_too_large, field_fault

MAX_EXTENSION: Final = 256
"""Longest chunk extension, in bytes per chunk. Nobody uses them; 64 KiB ones are an attack (CVE-2023-39326)."""
MAX_TRAILERS: Final = 8 * 1024
"""Longest trailer section, in bytes; it is checked and dropped."""

_MAX_LINE: Final = 16 + MAX_EXTENSION + 2
_EXTENSION: Final = (
    rf'(?:[ \t]*;[ \t]*{TOKEN}+(?:[ \t]*=[ \t]*(?:{TOKEN}+|"(?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t -~])*"))?)'
)
_SIZE_LINE: Final = re.compile(rf"([0-9A-Fa-f]{{1,16}})((?>{_EXTENSION}*))\r\n".encode())
_SIZE_LINE_SO_FAR: Final = re.compile(rb"[0-9A-Fa-f]{0,16}(?:(?<=[0-9A-Fa-f])(?:[ \t;][\t\x20-\x7e]*)?\r?)?")


class EndOfBody(enum.Enum):
    """The sentinel that ends a body."""

    END_OF_BODY = "END_OF_BODY"


END_OF_BODY: Final = EndOfBody.END_OF_BODY


class _Expect(enum.Enum):
    SIZE = 1
    DATA = 2
    DATA_END = 3
    TRAILERS = 4
    NOTHING = 5


_SHORT: Final = tuple(b"%x\r\n" % size for size in range(256))
"""Size lines of the chunks that hold a single token, made once."""


def frame_chunk(data: bytes) -> bytes:
    """``data`` as one chunk; ``b""`` for no data (an empty chunk would end the body)."""
    size = len(data)
    if 0 < size < 256:
        return _SHORT[size] + data + b"\r\n"
    return b"%x\r\n%b\r\n" % (size, data) if data else b""


class ChunkDecoder:
    """Decodes one chunked body from the front of a buffer."""

    __slots__ = ("_expect", "_left", "_max_body", "_remaining")

    def __init__(self, max_body: int) -> None:
        """``max_body``: most bytes of decoded data."""
        self._expect = _Expect.SIZE
        self._max_body = max_body
        self._left = max_body
        self._remaining = 0
        """Bytes: of the present chunk's data in DATA, of room for trailers in TRAILERS."""

    def take(self, buffer: bytearray) -> bytes | EndOfBody | None:
        """Decode what ``buffer`` holds and remove it from there.

        Returns the data (joined), END_OF_BODY after the trailers, None when more bytes are needed.
        Raises ProtocolViolation: 400 for bad framing, 413 over ``max_body``, 431 for too long trailers.
        """
        pieces: list[bytes] = []
        position = 0
        fault: ProtocolViolation | None = None
        while self._expect is not _Expect.NOTHING:
            try:
                step = self._step(buffer, position, pieces)
            except ProtocolViolation as violation:
                fault = violation
                break
            if not step:
                break
            position += step
        del buffer[:position]
        if pieces:
            return b"".join(pieces)
        if fault is not None:
            raise fault
        return END_OF_BODY if self._expect is _Expect.NOTHING else None

    def _step(self, buffer: bytearray, position: int, pieces: list[bytes]) -> int:
        """Decode one element at ``position``. Returns how many bytes it took; 0: it is not complete."""
        if self._expect is _Expect.DATA:
            data = bytes(buffer[position : position + self._remaining])
            if data:
                pieces.append(data)
                self._remaining -= len(data)
                if not self._remaining:
                    self._expect = _Expect.DATA_END
            return len(data)
        if self._expect is _Expect.DATA_END:
            ending = buffer[position : position + 2]
            if not b"\r\n".startswith(ending):
                raise ProtocolViolation("a chunk's data is not followed by CRLF")
            if len(ending) < 2:
                return 0
            self._expect = _Expect.SIZE
            return 2
        if self._expect is _Expect.SIZE:
            return self._size(buffer, position)
        return self._trailer(buffer, position)

    def _size(self, buffer: bytearray, position: int) -> int:
        end = buffer.find(b"\n", position, position + _MAX_LINE) + 1
        line = bytes(buffer[position : end or position + _MAX_LINE])
        if not end:
            if len(line) == _MAX_LINE or not _SIZE_LINE_SO_FAR.fullmatch(line):
                raise _bad_size_line()
            return 0
        match = _SIZE_LINE.fullmatch(line)
        if match is None or len(match.group(2)) > MAX_EXTENSION:
            raise _bad_size_line()
        size = int(match.group(1), 16)
        if size > self._left:
            raise body_too_large(self._max_body)
        self._left -= size
        self._remaining = size or MAX_TRAILERS
        self._expect = _Expect.DATA if size else _Expect.TRAILERS
        return len(line)

    def _trailer(self, buffer: bytearray, position: int) -> int:
        end = buffer.find(b"\n", position, position + self._remaining) + 1
        if not end:
            if len(buffer) - position >= self._remaining:
                raise ProtocolViolation("the trailers are too long", status=431, code="head_too_large")
            return 0
        line = bytes(buffer[position:end])
        if line == b"\r\n":
            self._expect = _Expect.NOTHING
            return 2
        fault = field_fault(line)
        if fault is not None:
            raise fault
        self._remaining -= len(line)
        return len(line)


def _bad_size_line() -> ProtocolViolation:
    return ProtocolViolation("a chunk's size line is malformed, or its extension is too long")

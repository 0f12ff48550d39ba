"""Random ids. Unguessable, and cheap: the kernel is asked for a block at a time (a system call costs 2 µs here)."""

from __future__ import annotations

import os

_BLOCK = 4096


class RandomIds:
    """Hands out bytes of ``os.urandom`` as hexadecimal text, each byte once."""

    __slots__ = ("_at", "_block", "_pid")

    def __init__(self) -> None:
        self._block = b""
        self._at = 0
        self._pid = 0

    def __call__(self, size: int) -> str:
        """``size`` random bytes, as ``2 * size`` hexadecimal digits. A forked process never repeats its parent's."""
        start = self._at
        end = start + size
        if end > len(self._block) or self._pid != os.getpid():
            self._block = os.urandom(max(_BLOCK, size))
            self._pid = os.getpid()
            start, end = 0, size
        self._at = end
        return self._block[start:end].hex()


random_id = RandomIds()

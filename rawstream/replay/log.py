"""The replay log of one generation: complete frames, bounded in bytes, read by position.

Rule 1: what is appended is whole events; what is read is whole events. A reader never sees half of one.
Rule 2: it holds about ``window`` bytes. The oldest events go first, but none that the writer says to keep; who still
        needs what is gone is told (``FellBehind``), never given something else instead.
Rule 3: nothing here waits. Whoever wants to know of news registers a callback.

Theory of operation: positions are bytes since the beginning. Events are numbered from 1; each piece of the log knows
the number of its first event, and within a piece events are told apart by the blank line that ends each of them
(WHATWG HTML §9.2.5).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final, NamedTuple

from rawstream.errors import RawstreamError

PIECE: Final = 4 * 1024
"""Bytes from which on a piece is complete: many small appends cost no more memory than a few large ones."""
_BLANK: Final = b"\n\n"


class FellBehind(RawstreamError):
    """What is asked for has left the window. To be told, and not to be retried with the same position."""

    status = 410
    code = "replay_gone"
    outcome = "client_stalled"
    should_retry = False


class Shelf:
    """What all logs of one process hold together, and the window that leaves for each. Plain numbers."""

    __slots__ = ("held", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        """Bytes that each log may keep now."""
        self.held = 0
        """Bytes in all of them."""


class _Piece(NamedTuple):
    start: int
    """Position of its first byte."""
    first: int
    """Number of its first event."""
    data: bytes | bytearray


class Log:
    """Frames of one generation, and how it ended."""

    __slots__ = ("_listeners", "_pieces", "_shelf", "end", "ended", "events", "failure", "start")

    def __init__(self, shelf: Shelf | int) -> None:
        """``shelf``, or its window alone: bytes that are kept; at least the last append is, however large."""
        self._shelf = Shelf(shelf) if isinstance(shelf, int) else shelf
        self._pieces: list[_Piece] = []
        self.start = 0
        """Position of the oldest byte kept."""
        self.end = 0
        """Position after the newest."""
        self.events = 0
        """Events appended, in all."""
        self.ended = False
        self.failure: RawstreamError | None = None
        """Why the generation failed, if it did: to be told after the last event."""
        self._listeners: dict[object, Callable[[], None]] = {}

    @property
    def window(self) -> int:
        """Bytes that are kept."""
        return self._shelf.window

    @property
    def held(self) -> int:
        """Bytes in it."""
        return self.end - self.start

    @property
    def first(self) -> int:
        """Number of the oldest event kept, or of the next one."""
        return self._pieces[0].first if self._pieces else self.events + 1

    def begin_at(self, position: int, events: int) -> None:
        """It is a copy that begins later: so many bytes and events came before. To be said before anything else."""
        self.start = self.end = position
        self.events = events

    def append(self, frames: bytes, keep: int | None = None) -> None:
        """Whole events. Wakes the listeners. ``keep``: from this position on nothing goes, whatever the window."""
        pieces = self._pieces
        if not pieces or len(pieces[-1].data) >= PIECE:
            if pieces:
                pieces[-1] = pieces[-1]._replace(data=bytes(pieces[-1].data))
            pieces.append(_Piece(self.end, self.events + 1, bytearray()))
        data = pieces[-1].data
        assert isinstance(data, bytearray)
        data += frames
        self.end += len(frames)
        self.events += frames.count(_BLANK)
        before = self.start + len(frames)
        last = self.end - self._shelf.window if keep is None else min(keep, self.end - self._shelf.window)
        while len(pieces) > 1 and pieces[1].start <= last:
            del pieces[0]
            self.start = pieces[0].start
        self._shelf.held -= self.start - before
        self._tell()

    def leave_shelf(self) -> None:
        """It is not kept any more: what still reads it keeps it alone."""
        self._shelf.held -= self.held
        self._shelf = Shelf(self._shelf.window)

    def finish(self, frames: bytes = b"", keep: int | None = None) -> None:
        """The last events, and the proper end."""
        self.ended = True
        if frames:
            self.append(frames, keep)
        else:
            self._tell()

    def fail(self, failure: RawstreamError) -> None:
        """The end, with a failure."""
        self.failure = failure
        self.finish()

    def position_after(self, event: int) -> int:
        """Where the event after number ``event`` begins (0: the first one). Raises FellBehind, ValueError.

        ValueError: there is no such event (yet).
        """
        if event < 0 or event > self.events:
            raise ValueError(f"there is no event {event}")
        if event == self.events:
            return self.end
        at = bisect_right(self._pieces, event + 1, key=lambda piece: piece.first) - 1
        if at < 0:
            raise FellBehind("what came after that event is not kept any more; ask anew")
        piece = self._pieces[at]
        offset = 0
        for _ in range(event + 1 - piece.first):
            offset = piece.data.index(_BLANK, offset) + len(_BLANK)
        return piece.start + offset

    def read(self, position: int, most: int) -> bytes:
        """Whole events from ``position`` on: about ``most`` bytes, at least one event; b'' at the end.

        Raises FellBehind when the window has passed the position.
        """
        if position < self.start:
            raise FellBehind("this reader was too slow: what it needs next is not kept any more; reconnect")
        if position >= self.end:
            return b""
        at = bisect_right(self._pieces, position, key=lambda piece: piece.start) - 1
        piece = self._pieces[at]
        offset = position - piece.start
        if len(piece.data) - offset <= most:
            return bytes(piece.data[offset:])
        cut = piece.data.rfind(_BLANK, offset, offset + most)
        if cut < 0:
            cut = piece.data.index(_BLANK, offset)
        return bytes(piece.data[offset : cut + len(_BLANK)])

    def listen(self, listener: object, callback: Callable[[], None]) -> None:
        """Call ``callback`` at each append, and at the end, until ``forget(listener)``."""
        self._listeners[listener] = callback

    def forget(self, listener: object) -> None:
        """Idempotent."""
        self._listeners.pop(listener, None)

    def _tell(self) -> None:
        for callback in list(self._listeners.values()):
            callback()

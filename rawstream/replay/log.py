"""The replay log of one generation: complete frames, bounded in bytes, read by position.

Rule 1: what is appended is whole events; what is read is whole events. A reader never sees half of one.
Rule 2: it holds about ``window`` bytes, and at most two pieces more. The oldest events go first, but none that the
        writer says to keep; who still needs what is gone is told (``FellBehind``), never given something else instead.
Rule 3: nothing here waits. Whoever wants to know of news registers a callback.

Theory of operation: positions are bytes since the beginning. Events are numbered from 1; each piece of the log knows
the number of its first event, and within a piece events are told apart by the blank line that ends each of them
(WHATWG HTML §9.2.5). What comes is only put down, in the tail; it is joined when it makes a piece, or when somebody
reads it from here. Whether something old may go is asked as often as a piece is made.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final, NamedTuple

from rawstream.errors import RawstreamError

PIECE: Final = 2 * 1024
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
    data: bytes


Keep = Callable[[], int | None]
"""Says from which position on nothing may go; None: the window alone decides."""
Heard = Callable[[bytes, int], None]
"""Told the frames that were just appended, and how many events they are; b'' and 0 at an end without any."""


class Log:
    """Frames of one generation, and how it ended."""

    __slots__ = (
        "_heard",
        "_listeners",
        "_pieces",
        "_shelf",
        "_tail",
        "_tail_first",
        "_tail_start",
        "end",
        "ended",
        "events",
        "failure",
        "start",
    )

    def __init__(self, shelf: Shelf | int) -> None:
        """``shelf``, or its window alone: bytes that are kept; at least the last append is, however large."""
        self._shelf = Shelf(shelf) if isinstance(shelf, int) else shelf
        self._pieces: list[_Piece] = []
        self._tail: list[bytes] = []
        """What came after the last piece."""
        self._tail_start = 0
        self._tail_first = 1
        self.start = 0
        """Position of the oldest byte kept."""
        self.end = 0
        """Position after the newest."""
        self.events = 0
        """Events appended, in all."""
        self.ended = False
        self.failure: RawstreamError | None = None
        """Why the generation failed, if it did: to be told after the last event."""
        self._listeners: dict[object, Heard] = {}
        self._heard: tuple[Heard, ...] = ()

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
        return self._pieces[0].first if self._pieces else self._tail_first

    def begin_at(self, position: int, events: int) -> None:
        """It is a copy that begins later: so many bytes and events came before. To be said before anything else."""
        self.start = self.end = self._tail_start = position
        self.events = events
        self._tail_first = events + 1

    def append(self, frames: bytes, keep: Keep | None = None) -> None:
        """Whole events. Tells the listeners. ``keep``: from which position on nothing goes, whatever the window."""
        size = len(frames)
        self._tail.append(frames)
        self.end += size
        events = frames.count(_BLANK)
        self.events += events
        self._shelf.held += size
        if self.end - self._tail_start >= PIECE:
            self._make_piece(keep)
        for callback in self._heard:
            callback(frames, events)

    def _make_piece(self, keep: Keep | None) -> None:
        """Of the tail; and let go of the oldest."""
        pieces = self._pieces
        pieces.append(self._last)
        self._tail = []
        self._tail_start = self.end
        self._tail_first = self.events + 1
        last = self.end - self._shelf.window
        kept = None if keep is None else keep()
        if kept is not None and kept < last:
            last = kept
        before = self.start
        while len(pieces) > 1 and pieces[1].start <= last:
            del pieces[0]
            self.start = pieces[0].start
        self._shelf.held -= self.start - before

    @property
    def _last(self) -> _Piece:
        """The tail as a piece."""
        tail = self._tail
        if len(tail) > 1:
            tail[:] = [b"".join(tail)]
        return _Piece(self._tail_start, self._tail_first, tail[0] if tail else b"")

    def leave_shelf(self) -> None:
        """It is not kept any more: what still reads it keeps it alone."""
        self._shelf.held -= self.held
        self._shelf = Shelf(self._shelf.window)

    def finish(self, frames: bytes = b"", keep: Keep | None = None) -> None:
        """The last events, and the proper end."""
        self.ended = True
        if frames:
            self.append(frames, keep)
        else:
            for callback in self._heard:
                callback(b"", 0)

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
        if event + 1 >= self._tail_first:
            piece = self._last
        else:
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
        if position >= self._tail_start:
            piece = self._last
        else:
            piece = self._pieces[bisect_right(self._pieces, position, key=lambda piece: piece.start) - 1]
        offset = position - piece.start
        if len(piece.data) - offset <= most:
            return piece.data[offset:]
        cut = piece.data.rfind(_BLANK, offset, offset + most)
        if cut < 0:
            cut = piece.data.index(_BLANK, offset)
        return piece.data[offset : cut + len(_BLANK)]

    def listen(self, listener: object, callback: Heard) -> None:
        """Call ``callback`` at each append, and at the end, until ``forget(listener)``. It must not raise."""
        if listener not in self._listeners:
            self._listeners[listener] = callback
            self._heard = tuple(self._listeners.values())

    def forget(self, listener: object) -> None:
        """Idempotent."""
        if self._listeners.pop(listener, None) is not None:
            self._heard = tuple(self._listeners.values())

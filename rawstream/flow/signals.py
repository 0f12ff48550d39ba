"""What a client says beside its stream: a small bounded mailbox with one reader.

Rule 1: it is bounded. When ``MOST_UNREAD`` signals wait, ``put`` refuses the next one, and whoever sent it is told.
Rule 2: a signal leaves the mailbox in the step that returns it: a wait that is cancelled loses none.
Rule 3: it ends with its stream. What was put before the end is still read; after that the iteration is over.
Rule 4: until somebody sends or waits it holds nothing: thousands of streams have one and never use it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

from rawstream.errors import MisuseError

MOST_UNREAD: Final = 64
"""Signals that may wait for a source which does not read them."""


def leave(signals: Signals | None, value: Any) -> str:
    """Leave a signal. What became of it: ``put``, ``full``, ``ended``, or ``none``: nobody reads signals there."""
    if signals is None:
        return "none"
    if signals.closed:
        return "ended"
    return "put" if signals.put(value) else "full"


class Signals:
    """``model.Request.signals``: an async iterator of what was ``put``, in order. One reader at a time.

    The server refers to it weakly: where the source has let go of it, nobody can read signals any more.
    """

    __slots__ = ("__weakref__", "_more", "_unread", "closed")

    def __init__(self) -> None:
        self._unread: deque[Any] | None = None
        self._more: asyncio.Future[None] | None = None
        self.closed = False
        """Has the stream ended?"""

    def __len__(self) -> int:
        """Signals that nobody has read yet."""
        return 0 if self._unread is None else len(self._unread)

    def put(self, value: Any) -> bool:
        """Leave a signal. False, and nothing is left: ``MOST_UNREAD`` wait already, or the stream has ended."""
        if self.closed or len(self) >= MOST_UNREAD:
            return False
        if self._unread is None:
            self._unread = deque()
        self._unread.append(value)
        self._wake()
        return True

    def close(self) -> None:
        """The stream has ended: nothing more will come. Idempotent."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        more, self._more = self._more, None
        if more is not None and not more.done():
            more.set_result(None)

    def __aiter__(self) -> Signals:
        return self

    async def __anext__(self) -> Any:
        """The next signal. StopAsyncIteration once the stream has ended and all were read.

        Raises MisuseError while another reader waits. Cancel-safe: a cancelled wait takes nothing.
        """
        while not self._unread:
            if self.closed:
                raise StopAsyncIteration
            if self._more is not None:
                raise MisuseError("somebody waits for this stream's signals already: there can be one reader")
            more = self._more = asyncio.get_running_loop().create_future()
            try:
                await more
            finally:
                if self._more is more:
                    self._more = None
        value = self._unread.popleft()
        if not self._unread:
            self._unread = None
        return value

"""The ``GET /stream`` dialect: what ``/chat`` says, for a browser's ``EventSource``.

    retry: 1740
    id: 7f3a.1
    data: {"token": "Hello"}

    id: 7f3a.end
    data: [DONE]

Rule 1: every token has an id, ``<stream>.<n>``, n from 1; the end's is ``<stream>.end``. EventSource takes a
        normal end for a reason to reconnect, and this id, which comes back as ``Last-Event-ID``, says that
        there is nothing more.
Rule 2: an error has no id, so that a reconnect after it names the last token that arrived.
Rule 3: a heartbeat is a comment line and no blank one. After an id, httpx-sse (and who took its decoder over) makes an
        empty event of a blank line that the specification gives no meaning (WHATWG HTML §9.2.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from zlib import crc32

from rawstream.model import Headers, TokenItem
from rawstream.wire.chat_tokens import ended_early, error_event
from rawstream.wire.json_text import quote_all, quoted
from rawstream.wire.sse import EVENT_STREAM_HEADERS, encode_event, utf8

_LEAST_RETRY: Final = 1000
_RETRIES: Final = 2000


def retry_of(stream_id: str) -> int:
    """Milliseconds, 1000 to 3000, by the random id: what lost its connections at once does not come back at once."""
    return _LEAST_RETRY + crc32(utf8(stream_id)) % (_RETRIES + 1)


class EventSource:
    """Implements ``rawstream.model.Dialect``.

    ``retry_ms`` is how long the browser waits before it reconnects (milliseconds; None: it is not told). Raises
    ValueError when ``stream_id`` holds CR, LF or NUL, or when ``retry_ms`` is negative.
    """

    __slots__ = ("_end", "_id", "_opening", "sent")

    name: str = "event-source"
    heartbeat: bytes = b": hb\n"
    headers: Headers = EVENT_STREAM_HEADERS

    def __init__(self, stream_id: str, retry_ms: int | None = 2000) -> None:
        if retry_ms is not None and retry_ms < 0:
            raise ValueError(f"retry_ms must be 0 or more milliseconds, not {retry_ms}")
        self._end = encode_event("[DONE]", id=f"{stream_id}.end")
        self._id = utf8(f"id: {stream_id}.")
        self._opening = b"" if retry_ms is None else b"retry: %d\n" % retry_ms
        self.sent = 0
        """Tokens sent so far: the number in the last id."""

    def head(self) -> bytes:
        return b""

    def encode(self, items: Sequence[TokenItem]) -> bytes:
        if len(items) == 1 and items[0].__class__ is str and items[0]:
            # The paced stream: a token at a time. Half the time of the general way.
            self.sent = number = self.sent + 1
            frame = b'%b%d\ndata: {"token": %b}\n\n' % (self._id, number, quoted(items[0]))
            return self._open(frame) if self._opening else frame
        start = self._id
        number = self.sent
        frames = []
        for string in quote_all(items):
            number += 1
            frames.append(b'%b%d\ndata: {"token": %b}\n\n' % (start, number, string))
        self.sent = number
        return self._open(b"".join(frames)) if frames else b""

    def error(self, message: str, code: str) -> bytes:
        return self._open(error_event(message, code))

    def stopped(self, reason: str) -> bytes:
        return self.terminal("stop")

    def terminal(self, finish_reason: str | None = None, reason: str | None = None) -> bytes:
        return self._open(ended_early(finish_reason, reason) + self._end)

    def _open(self, frames: bytes) -> bytes:
        """``retry`` goes with the first event, whichever it is."""
        opening, self._opening = self._opening, b""
        return opening + frames

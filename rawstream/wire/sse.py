"""Server-sent events, both directions, as WHATWG HTML §9.2 ("Server-sent events") defines them.

Rule 1: what is encoded cannot be injected into. Whatever the text, one call makes one event: line ends in
        ``data`` become several ``data:`` lines, and CR, LF and NUL in ``id`` or ``event`` are refused.
Rule 2: what is parsed does not depend on how the bytes were split, and never holds more than ``max_event``
        and one feed.
Rule 3: an event that was not finished by a blank line did not happen.

The parser has two paths. Upstreams send ``data: {…}\\n\\n`` over and over, so a feed that consists of
nothing else is split in one step; everything else goes line by line. Before either, all line ends become
LF, which makes CR, CRLF and a CRLF cut in two no case of their own further down.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rawstream.model import Headers

EVENT_STREAM_HEADERS: Final[Headers] = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache, no-transform"),
    ("x-accel-buffering", "no"),
)
"""Headers that every event stream carries: nobody on the way may keep, change or collect it."""

HEARTBEAT: Final = b": hb\n\n"
"""The comment that keeps a connection alive, as fetch readers and the AI SDK survive it, where events have no ids."""

DONE: Final = b"data: [DONE]\n\n"
"""The terminal event. Two SDKs compare it with ``===``, so it is exactly this."""

_BOM: Final = b"\xef\xbb\xbf"
_FIELD: Final = len(b"data: ")
_MAX_NAME: Final = 4096
"""Longest ``id`` or ``event`` kept: they outlive their line, and nobody's is anywhere near."""
_MAX_RETRY_DIGITS: Final = 15
"""Over 30,000 years in milliseconds. A longer one is not worth the time its conversion takes."""


class EventTooLong(ValueError):
    """One event, or one line, is longer than the parser's ``max_event``. The parser is done for, and so are events
    that the same feed may have finished before it."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One dispatched event."""

    data: bytes
    """The ``data`` lines, joined by LF."""
    event: str = "message"
    id: str = ""
    """The last event id as of this event: ids stick until another one is sent."""

    @property
    def text(self) -> str:
        """``data`` as text; what is not UTF-8 becomes U+FFFD, as the specification's decoder has it."""
        return self.data.decode("utf-8", "replace")


# --- encoding -----------------------------------------------------------------------------------------------


def utf8(text: str) -> bytes:
    """The UTF-8 form of any ``str``. Surrogate pairs are joined, lone ones become U+FFFD; never raises."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def encode_event(data: str, *, event: str | None = None, id: str | None = None, retry: int | None = None) -> bytes:
    """One event, whole, with its closing blank line.

    ``retry`` is in milliseconds. Line ends in ``data`` (CR, LF, CRLF) arrive as LF. Raises ValueError when
    ``event`` or ``id`` hold CR, LF or NUL, or when ``retry`` is negative.
    """
    lines = []
    if id is not None:
        lines.append(b"id: " + _one_line("id", id))
    if event is not None:
        lines.append(b"event: " + _one_line("event", event))
    if retry is not None:
        if retry < 0:
            raise ValueError(f"retry must be 0 or more milliseconds, not {retry}")
        lines.append(b"retry: %d" % retry)
    lines += [b"data: " + line for line in _lines(data)]
    return b"\n".join(lines) + b"\n\n"


def comment(text: str) -> bytes:
    """Comment lines, one for each line of ``text``; they dispatch nothing.

    No blank line follows: add ``b"\\n"`` where the reader wants one (the OpenAI wire's readers do not).
    """
    return b"".join([b": " + line + b"\n" for line in _lines(text)])


def _lines(text: str) -> list[bytes]:
    # Not splitlines(): that splits at U+2028, form feeds and others, which are plain characters here.
    return utf8(text).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


def _one_line(field: str, value: str) -> bytes:
    if "\n" in value or "\r" in value or "\0" in value:
        raise ValueError(f"{field} must not hold CR, LF or NUL: {value[:80]!r}")
    return utf8(value)


# --- parsing ------------------------------------------------------------------------------------------------


class Parser:
    """An incremental parser: bytes in, whole events out, any chunking.

    ``max_event`` (bytes) bounds the data of one event and the length of one line. ``last_id`` is what a
    reconnect would send as ``Last-Event-ID``; ``retry`` is the last reconnection time asked for, in
    milliseconds, or None.
    """

    __slots__ = (
        "_after_cr",
        "_data",
        "_dead",
        "_event",
        "_id",
        "_started",
        "_tail",
        "last_id",
        "max_event",
        "retry",
    )

    def __init__(self, max_event: int = 1024 * 1024) -> None:
        self.max_event = max_event
        self.last_id = ""
        self.retry: int | None = None
        self._data = bytearray()
        """Data of the event under way, each line closed by LF: empty exactly when it has had no data line."""
        self._tail = bytearray()
        """The unfinished line."""
        self._event = ""
        self._id = ""
        self._started = False
        self._after_cr = False
        self._dead = False

    @property
    def buffered(self) -> int:
        """Bytes taken and not yet given out: the event under way."""
        return len(self._data) + len(self._tail)

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes; give the events they finish. Raises EventTooLong, from then on at every call."""
        data = self._prepare(data)
        payloads, rest = self._split(data)
        id = self.last_id
        events = [Event(payload, "message", id) for payload in payloads]
        if rest:
            events += self._careful(rest)
        return events

    def feed_data(self, data: bytes) -> list[bytes]:
        """As ``feed``, but only each event's data: all that a relay needs, for less."""
        data = self._prepare(data)
        payloads, rest = self._split(data)
        if rest:
            payloads += [event.data for event in self._careful(rest)]
        return payloads

    def _prepare(self, data: bytes) -> bytes:
        """Whole lines and the start of the next one, ended by LF alone; b'' while no line is finished."""
        if self._dead:
            raise EventTooLong(f"an event was longer than {self.max_event} bytes")
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if not self._started:
            data = bytes(self._tail) + data
            self._tail.clear()
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._tail += data
                return b""
            self._started = True
            data = data.removeprefix(_BOM)
        if b"\n" not in data:
            self._keep(data)
            return b""
        if self._tail:
            data = bytes(self._tail) + data
            self._tail.clear()
        return data

    def _split(self, data: bytes) -> tuple[list[bytes], bytes]:
        """The fast path: the data of all whole events, if they are of the plain kind, and the rest."""
        if self._data or self._event or not data.startswith(b"data: "):
            return [], data
        end = data.rfind(b"\n\n")
        if end < 0:
            return [], data
        payloads = data[_FIELD:end].split(b"\n\ndata: ")
        # Only the separators may hold line ends; one more anywhere, and this is not the plain case.
        if data.count(b"\n", 0, end) != 2 * (len(payloads) - 1):
            return [], data
        if end > self.max_event and max(map(len, payloads)) > self.max_event:
            raise self._too_long()
        self.last_id = self._id
        return payloads, data[end + 2 :]

    def _careful(self, data: bytes) -> list[Event]:
        """The line path, for anything that the specification allows."""
        events: list[Event] = []
        lines = data.split(b"\n")
        tail = lines.pop()
        for line in lines:
            if line:
                self._line(line)
                continue
            self.last_id = self._id
            if self._data:
                events.append(Event(bytes(memoryview(self._data)[:-1]), self._event or "message", self._id))
                # A new one rather than clear(): a big event's memory goes with it.
                self._data = bytearray()
            self._event = ""
        self._keep(tail)
        return events

    def _line(self, line: bytes) -> None:
        # Every line counts while it lasts, as it does in _keep: else the verdict would depend on the splits.
        if len(self._data) + len(line) > self.max_event + _FIELD:
            raise self._too_long()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data += value
            self._data += b"\n"
            if len(self._data) > self.max_event + 1:
                raise self._too_long()
        elif name == b"event":
            self._event = self._short(value)
        elif name == b"id":
            if b"\0" not in value:
                self._id = self._short(value)
        elif name == b"retry" and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
            self.retry = int(value)

    def _short(self, value: bytes) -> str:
        if len(value) > _MAX_NAME:
            raise self._too_long()
        return value.decode("utf-8", "replace")

    def _keep(self, tail: bytes) -> None:
        if len(self._data) + len(self._tail) + len(tail) > self.max_event + _FIELD:
            raise self._too_long()
        self._tail += tail

    def _too_long(self) -> EventTooLong:
        self._dead = True
        self._data.clear()
        self._tail.clear()
        return EventTooLong(f"an event is longer than {self.max_event} bytes")

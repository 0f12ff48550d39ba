"""Many answers on one HTTP/2 connection: h2's client, which gives back the window of what is read.

Rule 1: what is not read is not given back: the window of its stream runs dry, and the connection's does not.
Rule 2: it counts, and keeps nothing: no byte of an answer is held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError, StreamClosedError
from h2.settings import SettingCodes, Settings

CONNECTION_WINDOW: Final = 65_535
"""Bytes that all streams together are granted (RFC 9113 §6.9.2)."""
_READ: Final = 64 * 1024


class Answer:
    """What comes on one stream."""

    __slots__ = ("arrived", "number", "over", "owed", "reads", "status")

    def __init__(self, number: int) -> None:
        self.number = number
        self.reads = True
        """Is it read? Set by ``Multiplexed.read()``."""
        self.status: int | None = None
        self.arrived = 0
        """Bytes, in all."""
        self.owed = 0
        """Bytes that arrived and whose window was not given back."""
        self.over = False
        """It has ended, or the server gave it up."""


class Multiplexed:
    """The reader. Ask, and then ``go_on()``; more can be asked meanwhile."""

    def __init__(self, window: int, news: Callable[[], None], *, share: float = 0.0) -> None:
        """``window``: bytes that each stream is granted. ``news``: called when something came. ``share``: the part of
        a window that is used before it is given back, as browsers do it; 0: every byte at once."""
        self.answers: dict[int, Answer] = {}
        self.greeted = asyncio.Event()
        """The server has spoken HTTP/2."""
        self._news = news
        self._owed = 0
        """What the connection's window lacks."""
        self._at = (max(1, int(window * share)), max(1, int(CONNECTION_WINDOW * share)))
        """From how many bytes on a stream's window, and the connection's, are given back."""
        self._writer: asyncio.StreamWriter | None = None
        self._h2 = H2Connection(H2Configuration(client_side=True))
        self._h2.local_settings = Settings(client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window})
        self._h2.initiate_connection()

    def ask(self, tokens_per_second: float | None) -> Answer:
        """Begin an answer without an end."""
        body = {"prompt": "windows", "mock": {"tokens": None, "tokens_per_second": tokens_per_second}}
        fields = [
            (":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", "/chat"),
            ("content-type", "application/json"),
        ]  # fmt: skip
        number = self._h2.get_next_available_stream_id()
        self._h2.send_headers(number, fields)
        self._h2.send_data(number, msgspec.json.encode(body), end_stream=True)
        self._send()
        answer = self.answers[number] = Answer(number)
        return answer

    def read(self, answer: Answer, reads: bool) -> None:
        """From now on it is read, or is not."""
        answer.reads = reads
        self._give_back(answer, 1)
        self._send()

    async def go_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Until it is cancelled, the server has closed, or says that it will: in words. Raises OSError."""
        self._writer = writer
        self._send()
        while data := await reader.read(_READ):
            try:
                events = self._h2.receive_data(data)
            except ProtocolError as error:
                return f"the server broke HTTP/2: {error}"
            for event in events:
                self._take(event)
            for answer in self.answers.values():
                self._give_back(answer, self._at[0])
            if self._owed >= self._at[1]:
                self._h2.increment_flow_control_window(self._owed)
                self._owed = 0
            self._send()
            self._news()
            if any(isinstance(event, ConnectionTerminated) for event in events):
                return "the server ends the connection"
            await writer.drain()
        return "the server closed the connection"

    def _take(self, event: Event) -> None:
        if isinstance(event, RemoteSettingsChanged):
            self.greeted.set()
            return
        answer = self.answers.get(getattr(event, "stream_id", None) or 0)
        if answer is None:
            return
        if isinstance(event, DataReceived):
            taken = event.flow_controlled_length or 0
            answer.arrived += taken
            answer.owed += taken
            self._owed += taken
        elif isinstance(event, ResponseReceived):
            answer.status = _status(event)
        elif isinstance(event, StreamEnded | StreamReset):
            answer.over = True

    def _give_back(self, answer: Answer, at: int) -> None:
        if answer.reads and not answer.over and answer.owed >= at:
            with suppress(StreamClosedError):
                self._h2.increment_flow_control_window(answer.owed, answer.number)
            answer.owed = 0

    def _send(self) -> None:
        if self._writer is not None:
            self._writer.write(self._h2.data_to_send())


def _status(event: ResponseReceived) -> int:
    fields: dict[Any, Any] = dict(event.headers or ())
    return int(fields.get(b":status") or fields[":status"])

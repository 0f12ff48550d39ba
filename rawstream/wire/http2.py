"""HTTP/2, the server's side (RFC 9113): frames in, requests out, and back. No I/O, no clock.

Rule 1: h2 keeps the protocol: its state machines, HPACK, windows. What passes before it (``http2_frames.py``) and what
        a request must be (``http2_request.py``) is ours.
Rule 2: a fault of one stream costs that stream; a fault of the connection costs the connection, with the code that
        says why (§5.4). Where h2 knows no difference (a body of another length than announced) it is the connection's.
Rule 3: more streams than were allowed are refused one by one (§5.1.2): a client may not know the limit yet.
Rule 4: data is written as far as the stream's window, the connection's, and the caller's permission go, never further.
Rule 5: the window of the connection is given back when data comes, that of a stream when it is read: who is not read
        holds up nobody else, and holds one window's worth.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import DenialOfServiceError, FlowControlError, H2Error
from h2.settings import SettingCodes, Settings

from rawstream.errors import ProtocolViolation
from rawstream.wire.guard import HeadLimits, RequestHead
from rawstream.wire.http2_frames import (
    DATA,
    GOAWAY,
    MAX_BLOCK,
    MAX_FRAME,
    Frames,
    Http2Violation,
    Patience,
)
from rawstream.wire.http2_request import CONNECTION_FIELDS, check_field, read_request, refused

_WINDOW: Final = 65_535
"""Bytes of a request's body that may be on their way: the initial window as it is if nobody says anything (§6.9.2)."""
_GIVE_BACK: Final = 16 * 1024
"""Bytes of window that are given back at a time."""
_TABLE: Final = 4096
"""Most bytes of the table that the heads of our answers are told by: the peer may offer gigabytes (§10.5)."""
_NO_LIMIT: Final = 2**31 - 1
_NOT_SENT: Final = frozenset(name.decode() for name in CONNECTION_FIELDS)


class Began(NamedTuple):
    """A request. ``fault``: it is not one that may be acted upon; the head is good for a refusal alone."""

    stream: int
    head: RequestHead
    fault: ProtocolViolation | None


class Body(NamedTuple):
    """Some of a request's body. It takes window until it is ``consumed``."""

    stream: int
    data: bytes


class Complete(NamedTuple):
    """The request is over."""

    stream: int


class Opened(NamedTuple):
    """There may be more room to write in: on one stream, or (0) on all."""

    stream: int


class Reset(NamedTuple):
    """The peer has given the stream up."""

    stream: int


class Refused(NamedTuple):
    """The stream broke the rules, and was given up; it may not have begun."""

    stream: int
    fault: Http2Violation


class Gone(NamedTuple):
    """The peer begins nothing more. ``error``: nor does it want anything of what has begun."""

    error: bool


Happening: TypeAlias = Began | Body | Complete | Opened | Reset | Refused | Gone


class Limits(NamedTuple):
    """Bytes, and counts."""

    head: HeadLimits
    streams: int
    """Streams at a time."""


class _Connection(H2Connection):
    MAX_CLOSED_STREAMS = 256
    """Of how many closed streams it is remembered how they ended. (65,536 come to 5 MB for each connection.)"""


class Http2:
    """One connection. Feed it what arrives, look at ``to_send()`` after each call."""

    __slots__ = ("_due", "_frames", "_h2", "_limits", "_open", "_owed", "_patience", "_taken")

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._patience = Patience(now, limits.streams)
        self._frames = Frames(self._patience)
        # What is malformed is found here, and costs its stream; h2 would end the connection.
        config = H2Configuration(
            client_side=False,
            header_encoding=None,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._h2 = h2 = _Connection(config)
        told = {
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.head.max_head,
        }
        h2.local_settings = Settings(client=False, initial_values=told)
        h2.initiate_connection()
        # What was told is judged here, stream by stream; h2 would end the connection.
        h2.local_settings = Settings(
            client=False, initial_values={**told, SettingCodes.MAX_CONCURRENT_STREAMS: _NO_LIMIT}
        )
        h2.decoder.max_header_list_size = MAX_BLOCK
        self._open: set[int] = set()
        """Streams whose answer is not over."""
        self._due: dict[int, int] = {}
        """Bytes that are still to come of bodies whose length was announced."""
        self._owed: dict[int, int] = {}
        """Bytes of window that were taken, are free, and were not given back yet; 0: the connection's."""
        self._taken = 0

    # --- in

    def receive(self, data: bytes, now: float) -> list[Happening]:
        """What happened. Raises Http2Violation; ``to_send()`` then holds the GOAWAY that says so."""
        happened: list[Happening] = []
        said = self._frames.goodbye
        try:
            for event in self._events(self._frames.look(data, now)):
                self._take(event, happened, now)
        except Http2Violation as violation:
            self._end(violation.error)
            raise
        if self._frames.goodbye is not None and said is None:
            happened.append(Gone(self._frames.goodbye != ErrorCodes.NO_ERROR))
        if self._taken >= _GIVE_BACK:
            self._h2.increment_flow_control_window(self._taken)
            self._taken = 0
        return happened

    def _events(self, data: bytes) -> list[Event]:
        try:
            return self._h2.receive_data(data)
        except DenialOfServiceError as error:
            raise Http2Violation(
                "header_list", "the header list is too long", detail=str(error), error=ErrorCodes.ENHANCE_YOUR_CALM
            ) from None
        except H2Error as error:
            reason = "window" if isinstance(error, FlowControlError) else "framing"
            raise Http2Violation(
                reason,
                f"HTTP/2 was broken: {type(error).__name__}",
                detail=str(error),
                error=getattr(error, "error_code", ErrorCodes.PROTOCOL_ERROR),
            ) from None

    def _end(self, error: ErrorCodes) -> None:
        """Say why the connection ends, where h2 has not said it. Nothing more is said on any stream."""
        self._open.clear()
        if self._h2.state_machine.state is not ConnectionState.CLOSED:
            self._h2.close_connection(error)

    def _take(self, event: Event, happened: list[Happening], now: float) -> None:
        if isinstance(event, RequestReceived):
            assert event.stream_id is not None
            happened.append(self._request(event, event.stream_id, now))
        elif isinstance(event, WindowUpdated):
            happened.append(Opened(event.stream_id or 0))
        elif isinstance(event, RemoteSettingsChanged):
            if self._h2.encoder.header_table_size > _TABLE:
                self._h2.encoder.header_table_size = _TABLE
            happened.append(Opened(0))
        elif isinstance(event, DataReceived | StreamEnded | StreamReset | TrailersReceived):
            number = event.stream_id
            assert number is not None
            if isinstance(event, DataReceived):
                self._data(event, number, happened)
            elif number not in self._open:
                pass  # the answer is over, or the stream was refused: the rest of its request is of no interest
            elif isinstance(event, StreamReset):
                self._forget(number)
                overflow = Http2Violation("window", "the window was opened too far")
                happened.append(Reset(number) if event.remote_reset else Refused(number, overflow))
            elif isinstance(event, TrailersReceived):
                self._trailers(event, number, happened, now)
            else:
                self._ended(number, happened, now)
            if isinstance(event, StreamReset):
                self._patience.spend("resets", Patience.A_RESET, now)

    def _request(self, event: RequestReceived, stream: int, now: float) -> Happening:
        ended = event.stream_ended is not None
        fields = [(bytes(name), bytes(value)) for name, value in event.headers or ()]
        if len(self._open) >= self._limits.streams:
            fault = Http2Violation("too_many_streams", f"there are {self._limits.streams} streams already")
            return self._refuse(stream, fault, now, ErrorCodes.REFUSED_STREAM)
        self._open.add(stream)
        try:
            head = read_request(fields, self._limits.head, ended=ended)
        except Http2Violation as violation:
            return self._refuse(stream, violation, now)
        except ProtocolViolation as fault:
            return Began(stream, refused(fields), fault)
        if head.content_length is not None and not ended:
            self._due[stream] = head.content_length
        return Began(stream, head, None)

    def _refuse(
        self, stream: int, fault: Http2Violation, now: float, code: ErrorCodes = ErrorCodes.PROTOCOL_ERROR
    ) -> Refused:
        self.reset(stream, code)
        self._patience.spend("requests", Patience.A_RESET / 2, now)
        return Refused(stream, fault)

    def _data(self, event: DataReceived, stream: int, happened: list[Happening]) -> None:
        data, size = event.data or b"", event.flow_controlled_length or 0
        self._taken += size
        if stream not in self._open:
            return
        if stream in self._due:
            self._due[stream] -= len(data)
        self.consumed(stream, size - len(data))  # padding
        if data:
            happened.append(Body(stream, data))

    def _trailers(self, event: TrailersReceived, stream: int, happened: list[Happening], now: float) -> None:
        """They are looked at, and not used: nothing here asks for any."""
        try:
            for name, value in event.headers or ():
                check_field(name, value)
        except Http2Violation as violation:
            happened.append(self._refuse(stream, violation, now))

    def _ended(self, stream: int, happened: list[Happening], now: float) -> None:
        if self._due.pop(stream, 0):
            fault = Http2Violation("malformed", "the body is shorter than was announced")
            happened.append(self._refuse(stream, fault, now))
        else:
            happened.append(Complete(stream))

    def consumed(self, stream: int, size: int) -> None:
        """``size`` bytes of the request's body were read: their window is given back."""
        if size and stream in self._open:
            owed = self._owed.get(stream, 0) + size
            if owed >= _GIVE_BACK:
                try:
                    self._h2.increment_flow_control_window(owed, stream)
                except H2Error:
                    pass  # the peer gave it up in the bytes that are being taken: that is told next
                owed = 0
            self._owed[stream] = owed

    # --- out

    def to_send(self) -> bytes:
        """What must be written to the peer, in order, before any ``data()`` that is made after it."""
        return self._h2.data_to_send()

    def is_open(self, stream: int) -> bool:
        """May the answer go on?"""
        return stream in self._open

    def head(self, stream: int, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """The answer's head. Does nothing where the peer has given the stream up."""
        if stream not in self._open:
            return
        fields = [(":status", str(status))]
        fields += [(name.lower(), value) for name, value in headers if name.lower() not in _NOT_SENT]
        self._h2.send_headers(stream, fields)

    @property
    def window(self) -> int:
        """Bytes that all streams together may send now."""
        return self._h2.outbound_flow_control_window

    def stream_window(self, stream: int) -> int:
        """Bytes that the stream may send as far as its own window goes; it may be negative (§6.9.2)."""
        known = self._h2.streams.get(stream)
        return 0 if known is None else known.outbound_flow_control_window

    def room(self, stream: int) -> int:
        """Bytes of DATA that may be written now: the stream's window and the connection's, one frame at most."""
        if stream not in self._open:
            return 0
        return max(0, min(self.stream_window(stream), self._h2.outbound_flow_control_window, MAX_FRAME))

    def data(self, stream: int, data: bytes, *, end: bool) -> bytes:
        """One DATA frame, to be written after ``to_send()``. ``data`` must not be longer than ``room()``.

        The last one is h2's own, which closes the stream; the others change nothing in it but the windows, and are
        made here: h2 takes 20 µs for one.
        """
        h2 = self._h2
        if end:
            self._forget(stream)
            self._patience.earn(Patience.AN_ANSWER)
            h2.send_data(stream, data, end_stream=True)
            return h2.data_to_send()
        self._patience.earn(Patience.A_DATA_FRAME)
        size = len(data)
        h2.streams[stream].outbound_flow_control_window -= size
        h2.outbound_flow_control_window -= size
        return struct.pack(">HBBBL", size >> 8, size & 255, DATA, 0, stream) + data

    def reset(self, stream: int, code: ErrorCodes) -> None:
        """Give the stream up, with a reason."""
        self._forget(stream)
        try:
            self._h2.reset_stream(stream, code)
        except H2Error:
            pass  # it is over already

    def _forget(self, stream: int) -> None:
        self._open.discard(stream)
        self._due.pop(stream, None)
        self._owed.pop(stream, None)

    def farewell(self) -> bytes:
        """GOAWAY without an error: what has begun goes on, nothing more begins (§6.8).

        Made here: h2 takes its own for the end of everything.
        """
        last = self._h2.highest_inbound_stream_id
        return struct.pack(">HBBBLLL", 0, 8, GOAWAY, 0, 0, last, ErrorCodes.NO_ERROR)

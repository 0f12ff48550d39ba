"""HTTP/2, the server's side (RFC 9113): frames in, requests out, and back. No I/O, no clock.

Rule 1: h2 keeps the protocol: its state machines, HPACK, windows, and what it refuses by itself. What it leaves to its
        user is here: a request must be one that HTTP/1.1's guard would let through, too.
Rule 2: a fault of one stream costs that stream; a fault of the connection costs the connection, with the code that
        says why (§5.4).
Rule 3: what costs the peer nothing and us something is counted (``Patience``): resets, pings, settings, window updates,
        empty frames. Who sends too many of them is told to calm down (ENHANCE_YOUR_CALM), and is gone.
Rule 4: data is written as far as the stream's window, the connection's, and the caller's permission go, never further.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

import msgspec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingReceived,
    PriorityUpdated,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    UnknownFrameReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error, StreamClosedError
from h2.settings import SettingCodes

from rawstream.errors import ProtocolViolation
from rawstream.wire.guard import HeadLimits, RequestHead, read_head

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client says first (§3.4)."""
_GOAWAY: Final = 7
_MOST_FRAME: Final = 16 * 1024
_NOT_SENT: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "upgrade", "proxy-connection"})
"""Fields of HTTP/1.1's connections, which have no place here (§8.2.2)."""


class Http2Violation(ProtocolViolation):
    """The connection broke the rules of HTTP/2, or our patience; it is closed."""

    code = "http2_violation"


class Began(NamedTuple):
    """A request. ``fault``: it is not one that may be acted upon; the head is good for a refusal alone."""

    stream: int
    head: RequestHead
    fault: ProtocolViolation | None


class Body(NamedTuple):
    stream: int
    data: bytes
    size: int
    """Bytes of window that it took, padding included: to be given back."""


class Complete(NamedTuple):
    """The request is over."""

    stream: int


class Opened(NamedTuple):
    """There may be more room to write in: on one stream, or (0) on all."""

    stream: int


class Reset(NamedTuple):
    """The peer has given the stream up."""

    stream: int


class Gone(NamedTuple):
    """The peer begins nothing more."""


Happening: TypeAlias = Began | Body | Complete | Opened | Reset | Gone


class Patience:
    """How much a peer may ask of us that costs it nothing. Plain arithmetic.

    It begins with ``START``, comes back with time and with work that is done for the peer, and never exceeds ``START``.
    """

    START: Final = 1000.0
    A_SECOND: Final = 100.0
    A_REQUEST: Final = 10.0
    A_DATA_FRAME: Final = 2.0
    OF_A_RESET: Final = 5.0

    __slots__ = ("_at", "left")

    def __init__(self, now: float) -> None:
        self.left = self.START
        self._at = now

    def earn(self, worth: float) -> None:
        self.left = min(self.START, self.left + worth)

    def spend(self, cost: float, now: float) -> bool:
        """False: that was too much."""
        self.earn((now - self._at) * self.A_SECOND)
        self._at = now
        self.left -= cost
        return self.left >= 0


class Limits(NamedTuple):
    """Bytes, and counts."""

    head: HeadLimits
    streams: int
    """Streams at a time."""


class Http2:
    """One connection. Feed it what arrives, look at ``to_send()`` after each call."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._patience = Patience(now)
        config = H2Configuration(client_side=False, header_encoding=None)
        self._h2 = H2Connection(config)
        self._h2.local_settings.update(
            {
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: limits.head.max_head,
                SettingCodes.ENABLE_PUSH: 0,
            }
        )
        self._h2.decoder.max_header_list_size = limits.head.max_head
        self._h2.initiate_connection()
        self._open: set[int] = set()
        """Streams whose answer is not over."""

    # --- in

    def receive(self, data: bytes, now: float) -> list[Happening]:
        """What happened. Raises Http2Violation; ``to_send()`` then holds the GOAWAY that says so."""
        try:
            events = self._h2.receive_data(data)
        except H2Error as error:
            raise Http2Violation(f"HTTP/2 was broken: {type(error).__name__}", detail=str(error)) from None
        except (ValueError, KeyError, IndexError, UnicodeError) as error:  # from frames that h2 does not foresee
            self._h2.close_connection(ErrorCodes.PROTOCOL_ERROR)
            raise Http2Violation("HTTP/2 was broken", detail=repr(error)) from None
        happened: list[Happening] = []
        for event in events:
            if self._cost_of(event, now):
                self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
                raise Http2Violation("the peer asks for too much that costs it nothing")
            self._take(event, happened)
        return happened

    def _cost_of(self, event: Event, now: float) -> bool:
        """Is this one too many?"""
        if isinstance(event, RequestReceived):
            self._patience.earn(Patience.A_REQUEST)
            return False
        if isinstance(event, StreamReset):
            # A request that is taken back at once is the cheapest way to make work (CVE-2023-44487).
            return not self._patience.spend(Patience.A_REQUEST + Patience.OF_A_RESET, now)
        if isinstance(event, DataReceived):
            return not event.data and not self._patience.spend(1, now)
        cheap = PingReceived | RemoteSettingsChanged | WindowUpdated | PriorityUpdated | UnknownFrameReceived
        return isinstance(event, cheap | TrailersReceived) and not self._patience.spend(1, now)

    def _take(self, event: Event, happened: list[Happening]) -> None:
        if isinstance(event, RequestReceived):
            assert event.stream_id is not None
            self._open.add(event.stream_id)
            happened.append(self._request(event, event.stream_id))
        elif isinstance(event, DataReceived):
            assert event.stream_id is not None
            happened.append(Body(event.stream_id, event.data or b"", event.flow_controlled_length or 0))
        elif isinstance(event, StreamEnded):
            assert event.stream_id is not None
            happened.append(Complete(event.stream_id))
        elif isinstance(event, StreamReset):
            assert event.stream_id is not None
            self._open.discard(event.stream_id)
            happened.append(Reset(event.stream_id))
        elif isinstance(event, WindowUpdated):
            happened.append(Opened(event.stream_id or 0))
        elif isinstance(event, RemoteSettingsChanged):
            happened.append(Opened(0))
        elif isinstance(event, ConnectionTerminated):
            happened.append(Gone())

    def _request(self, event: RequestReceived, stream: int) -> Began:
        """The request as HTTP/1.1 would have put it, so that one guard looks at all requests."""
        pseudo: dict[bytes, bytes] = {}
        fields: list[bytes] = []
        cookies: list[bytes] = []
        named = False
        for name, value in event.headers or ():
            if name.startswith(b":"):
                pseudo[name] = value
            elif name == b"cookie":
                cookies.append(value)  # §8.2.3: it may come in pieces
            elif name != b"host":
                fields.append(name + b": " + value)
            else:
                named = True
                pseudo.setdefault(b":authority", value)
        if cookies:
            fields.append(b"cookie: " + b"; ".join(cookies))
        method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
        lines = [b"%b %b HTTP/1.1" % (method, path)]
        if b":authority" in pseudo or named:
            lines.append(b"host: " + pseudo.get(b":authority", b""))
        raw = b"\r\n".join([*lines, *fields, b"", b""])
        ended = event.stream_ended is not None
        try:
            head = read_head(raw, self._limits.head)
        except ProtocolViolation as fault:
            return Began(stream, _refused(method), fault)
        complete = ended or head.content_length == 0
        return Began(stream, msgspec.structs.replace(head, version="2", has_body=not complete), None)

    def consumed(self, stream: int, size: int) -> None:
        """``size`` bytes of the request's body were read: their window is given back."""
        if size:
            try:
                self._h2.acknowledge_received_data(size, stream)
            except (H2Error, ValueError):
                pass  # the stream is over: nobody sends on it any more

    # --- out

    def to_send(self) -> bytes:
        """What must be written to the peer, in order."""
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

    def room(self, stream: int) -> int:
        """Bytes of DATA that may be written now: the stream's window and the connection's, one frame at most."""
        if stream not in self._open:
            return 0
        try:
            window = self._h2.local_flow_control_window(stream)
        except StreamClosedError:
            return 0
        return max(0, min(window, self._h2.max_outbound_frame_size, _MOST_FRAME))

    def data(self, stream: int, data: bytes, *, end: bool) -> None:
        """One DATA frame. ``data`` must not be longer than ``room()``."""
        self._patience.earn(Patience.A_DATA_FRAME)
        self._h2.send_data(stream, data, end_stream=end)
        if end:
            self._open.discard(stream)

    def reset(self, stream: int, code: ErrorCodes) -> None:
        """Give the stream up, with a reason."""
        self._open.discard(stream)
        try:
            self._h2.reset_stream(stream, code)
        except H2Error:
            pass  # it is over already

    def farewell(self) -> bytes:
        """GOAWAY without an error: what has begun goes on, nothing more begins (§6.8).

        Made here: h2 takes its own for the end of everything.
        """
        last = self._h2.highest_inbound_stream_id
        return struct.pack(">HBBBLLL", 0, 8, _GOAWAY, 0, 0, last, ErrorCodes.NO_ERROR)


def _refused(method: bytes) -> RequestHead:
    """A head of a request that is refused whatever it says."""
    return RequestHead(
        method="HEAD" if method == b"HEAD" else "GET",
        target="",
        path="",
        query="",
        host=None,
        version="2",
        headers=(),
        keep_alive=True,
        has_body=False,
        content_length=None,
        expects_continue=False,
        chunked=False,
    )

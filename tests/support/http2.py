"""An HTTP/2 client that does as it is told: streams, windows, resets, and frames that no proper client sends.

Rule 1: every wait has a deadline, and says what it waited for.
Rule 2: a window is given back when the test says so, or never.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    InformationalResponseReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes, Settings

from tests.support.raw import data_lines

DEADLINE = 5.0


class Answer:
    """What came on one stream so far."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.interim: list[int] = []
        self.body = b""
        self.owed = 0
        """Bytes of window that were taken and not given back."""
        self.ended = False
        self.reset: int | None = None
        """The code, when the server gave the stream up."""

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    @property
    def events(self) -> list[str]:
        return data_lines(self.body)

    @property
    def tokens(self) -> list[str]:
        decoded = [json.loads(event) for event in self.events if event.startswith("{")]
        return [event["token"] for event in decoded if "token" in event]

    def json(self) -> Any:
        return json.loads(self.body)


class Http2Client:
    """One connection. Use with ``with``."""

    def __init__(
        self,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        rcvbuf: int | None = None,
        window: int = 65_535,
        deadline: float = DEADLINE,
    ) -> None:
        """``window``: what each stream is granted at first, and the connection in all if that is more."""
        self.deadline = deadline
        self.answers: dict[int, Answer] = {}
        self.gone: int | None = None
        """The code of the server's GOAWAY."""
        self.closed = False
        self.stalled: set[int] = set()
        """Streams whose window is not given back."""
        sock = socket.socket()
        if rcvbuf is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.settimeout(deadline)
        sock.connect(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock: socket.socket = sock
        if tls is not None:
            tls.set_alpn_protocols(["h2"])
            self.sock = secured = tls.wrap_socket(sock, server_hostname="localhost")
            assert secured.selected_alpn_protocol() == "h2"
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.local_settings = Settings(client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.h2.initiate_connection()
        if window > 65_535:
            self.h2.increment_flow_control_window(window - 65_535)
        self.flush()

    def __enter__(self) -> Http2Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.sock.close()

    # --- saying

    def flush(self) -> None:
        self.sock.settimeout(self.deadline)
        self.sock.sendall(self.h2.data_to_send())

    def raw(self, data: bytes) -> None:
        """Bytes that h2 would not send."""
        self.sock.settimeout(self.deadline)
        self.sock.sendall(data)

    def frame(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        """One frame as it is given."""
        self.raw(struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: tuple[tuple[str, str], ...] = (),
        end: bool = True,
        stalled: bool = False,
    ) -> int:
        """Begin a request; the number of its stream. ``body``: JSON, or bytes."""
        number = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "http"), (":authority", "localhost"), (":path", path), *headers]
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        if data is not None and not isinstance(body, bytes):
            fields.append(("content-type", "application/json"))
        self.answers[number] = Answer()
        if stalled:
            self.stalled.add(number)
        self.h2.send_headers(number, fields, end_stream=end and data is None)
        if data is not None:
            self.send_body(number, data, end=end)
        self.flush()
        return number

    def send_body(self, number: int, data: bytes, *, end: bool) -> None:
        """As the server's window allows."""
        while data:
            self.flush()
            self.until(lambda: self.h2.local_flow_control_window(number) > 0, "room for the request's body")
            room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size, len(data))
            self.h2.send_data(number, data[:room], end_stream=end and room == len(data))
            data = data[room:]
        self.flush()

    def chat(self, path: str = "/chat", *, stalled: bool = False, **mock: object) -> int:
        """A streaming request to the mock source."""
        body: dict[str, object] = {"prompt": "hello", "mock": mock}
        return self.ask("POST", path, body, stalled=stalled)

    def give_back(self, number: int) -> None:
        """The stream is read again."""
        self.stalled.discard(number)
        owed, self.answers[number].owed = self.answers[number].owed, 0
        if owed and not self.answers[number].over:
            self.h2.increment_flow_control_window(owed, number)
        self.flush()

    def reset(self, number: int, code: int = 8) -> None:
        """RST_STREAM, CANCEL unless told otherwise."""
        self.h2.reset_stream(number, code)
        self.flush()

    # --- hearing

    def more(self, until: float, what: str) -> None:
        """Receive some more. AssertionError at the deadline (monotonic)."""
        left = until - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self.sock.settimeout(left)
            data = self.sock.recv(65536)
        except TimeoutError:
            raise AssertionError(f"no {what} in time") from None
        except (ConnectionResetError, ssl.SSLError):
            data = b""
        if not data:
            self.closed = True
            return
        for event in self.h2.receive_data(data):
            self._take(event)
        if out := self.h2.data_to_send():
            try:
                self.sock.sendall(out)
            except OSError:
                pass  # it has closed; what it said last is read all the same

    def _take(self, event: object) -> None:
        if isinstance(event, ConnectionTerminated):
            self.gone = int(event.error_code or 0)
            return
        number = getattr(event, "stream_id", None)
        answer = self.answers.get(number) if isinstance(number, int) else None
        if answer is None or not isinstance(number, int):
            return
        if isinstance(event, ResponseReceived):
            answer.headers = {str(name): str(value) for name, value in event.headers or ()}
            answer.status = int(answer.headers[":status"])
        elif isinstance(event, InformationalResponseReceived):
            answer.interim += [int(str(value)) for name, value in event.headers or () if str(name) == ":status"]
        elif isinstance(event, DataReceived):
            size = event.flow_controlled_length or 0
            answer.body += event.data or b""
            if size:
                self.h2.increment_flow_control_window(size)
            if number in self.stalled:
                answer.owed += size
            elif size and event.stream_ended is None:
                try:
                    self.h2.increment_flow_control_window(size, number)
                except StreamClosedError:
                    pass  # its end came in the same piece
        elif isinstance(event, StreamEnded):
            answer.ended = True
        elif isinstance(event, StreamReset):
            answer.reset = int(event.error_code or 0)

    def until(self, holds: Callable[[], object], what: str, *, within: float | None = None) -> None:
        """Read until ``holds()``. AssertionError when it does not in time, or the server closes before."""
        end = time.monotonic() + (self.deadline if within is None else within)
        while not holds():
            assert not self.closed, f"the server closed before: {what}"
            self.more(end, what)

    def answer(self, number: int, *, within: float | None = None) -> Answer:
        """A whole answer."""
        self.until(lambda: self.answers[number].over, f"the end of stream {number}", within=within)
        return self.answers[number]

    def until_closed(self, *, within: float | None = None) -> None:
        end = time.monotonic() + (self.deadline if within is None else within)
        while not self.closed:
            self.more(end, "the end of the connection")

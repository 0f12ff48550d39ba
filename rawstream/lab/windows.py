"""Windows: many streams on one HTTP/2 connection, one of which is not read.

The reader is h2's client on a plain socket. It gives back the window of what it reads: the connection's for all
streams, the stream's own for all but one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived
from h2.settings import SettingCodes, Settings

from rawstream.lab.experiments import Finding, Report, Show, laboratory, size
from rawstream.server.app import App

STREAMS: Final = 20
WINDOW: Final = 16 * 1024
_RATE: Final = 200
_SECONDS: Final = 2.0
_LONGEST: Final = 10.0


class _Reader:
    """One connection with many streams."""

    def __init__(self, stalled: int) -> None:
        self.stalled = stalled
        self.read: dict[int, int] = {}
        """Bytes, by stream."""
        self.drained = asyncio.Event()
        """All streams run, and the window of the one that is not read is used up."""
        self._h2 = H2Connection(H2Configuration(client_side=True))
        self._h2.local_settings = Settings(client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: WINDOW})
        self._h2.initiate_connection()

    def ask(self, stream: int, tokens_per_second: float | None) -> None:
        """Begin a stream without an end."""
        body = {"prompt": "windows", "mock": {"tokens": None, "tokens_per_second": tokens_per_second}}
        fields = [
            (":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", "/chat"),
            ("content-type", "application/json"),
        ]  # fmt: skip
        self.read[stream] = 0
        self._h2.send_headers(stream, fields)
        self._h2.send_data(stream, msgspec.json.encode(body), end_stream=True)

    async def go_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read until it is cancelled, or the server has closed."""
        writer.write(self._h2.data_to_send())
        while data := await reader.read(64 * 1024):
            for event in self._h2.receive_data(data):
                if isinstance(event, DataReceived) and event.stream_id is not None:
                    taken = event.flow_controlled_length or 0
                    self.read[event.stream_id] += taken
                    if taken:
                        self._h2.increment_flow_control_window(taken)
                        if event.stream_id != self.stalled:
                            self._h2.increment_flow_control_window(taken, event.stream_id)
            if self.read[self.stalled] >= WINDOW and all(self.read.values()):
                self.drained.set()
            writer.write(self._h2.data_to_send())


@asynccontextmanager
async def _reading(app: App, reader: _Reader) -> AsyncIterator[None]:
    host, port = app.sockets[0].getsockname()[:2]
    stream, writer = await asyncio.open_connection(host, port)
    task = asyncio.create_task(reader.go_on(stream, writer), name="windows")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        writer.close()


def _levels(app: App) -> dict[int, dict[str, Any]]:
    """What ``/debug/streams`` shows, by stream of the connection."""
    now = asyncio.get_running_loop().time()
    shown = [stream.snapshot(now) for stream in app.streams]
    return {one["http2"]["stream"]: one for one in shown if one["http2"] is not None}


async def windows(show: Show) -> Report:
    """Twenty streams on one connection; the first is not read, and may run as fast as it is pulled."""
    numbers = range(1, 2 * STREAMS, 2)
    reader = _Reader(stalled=numbers[0])
    async with laboratory(http2_streams=STREAMS) as (app, _):
        for number in numbers:
            reader.ask(number, None if number == reader.stalled else _RATE)
        async with _reading(app, reader):
            async with asyncio.timeout(_LONGEST):
                await reader.drained.wait()
            before = _levels(app)
            await asyncio.sleep(_SECONDS)
            after = _levels(app)
    made = {number: after[number]["tokens"] - before[number]["tokens"] for number in numbers}
    stalled = after[reader.stalled]
    held = stalled["bytes"] - reader.read[reader.stalled]
    others = sorted(made[number] / _SECONDS for number in numbers if number != reader.stalled)
    findings = [
        Finding(
            "who does not read a stream lets that stream's window drain to zero",
            f"stream {reader.stalled} was granted {size(WINDOW)}, and has {stalled['http2']['window']} left; the "
            f"connection's window is open ({size(stalled['http2']['connection_window'])})",
        ),
        Finding(
            "its source stops, after a few KB more",
            f"{made[reader.stalled]} tokens in {_SECONDS:g} s; {size(held)} are held for it; it waits for the "
            f"{stalled['waiting_for']}",
        ),
        Finding(
            "the others on the same connection do not notice",
            f"the other {len(others)} made {others[0]:.0f} to {others[-1]:.0f} tokens/s, of {_RATE} asked for",
        ),
    ]
    figures = {
        "window": stalled["http2"]["window"],
        "connection_window": stalled["http2"]["connection_window"],
        "waiting_for": stalled["waiting_for"],
        "held": held,
        "made": made[reader.stalled],
        "slowest_other": others[0],
        "asked": _RATE,
        "streams": STREAMS,
    }
    return Report(
        "windows", "Many streams share one connection. Whom does one that is not read hold up?", findings, figures
    )

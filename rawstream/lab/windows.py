"""Windows: many streams on one HTTP/2 connection, one of which is not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from rawstream.lab.experiments import Finding, Report, Show, laboratory, size
from rawstream.lab.multiplexed import Multiplexed
from rawstream.lab.readers import address_of
from rawstream.server.app import App

STREAMS: Final = 20
WINDOW: Final = 16 * 1024
_RATE: Final = 200
_SECONDS: Final = 2.0
_LONGEST: Final = 10.0


@asynccontextmanager
async def _reading(app: App, client: Multiplexed) -> AsyncIterator[None]:
    stream, writer = await asyncio.open_connection(*address_of(app)[:2])
    task = asyncio.create_task(client.go_on(stream, writer), name="windows")
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
    drained = asyncio.Event()

    def look() -> None:
        """Do all streams run, and is the window of the one that is not read used up?"""
        if stalled.arrived >= WINDOW and all(answer.arrived for answer in client.answers.values()):
            drained.set()

    client = Multiplexed(WINDOW, look)
    stalled = client.ask(None)
    client.read(stalled, False)
    others = [client.ask(_RATE).number for _ in range(STREAMS - 1)]
    async with laboratory(http2_streams=STREAMS) as (app, _):
        async with _reading(app, client):
            async with asyncio.timeout(_LONGEST):
                await drained.wait()
            before = _levels(app)
            await asyncio.sleep(_SECONDS)
            after = _levels(app)
    made = {number: after[number]["tokens"] - before[number]["tokens"] for number in client.answers}
    shown = after[stalled.number]
    held = shown["bytes"] - stalled.arrived
    rates = sorted(made[number] / _SECONDS for number in others)
    findings = [
        Finding(
            "who does not read a stream lets that stream's window drain to zero",
            f"stream {stalled.number} was granted {size(WINDOW)}, and has {shown['http2']['window']} left; the "
            f"connection's window is open ({size(shown['http2']['connection_window'])})",
        ),
        Finding(
            "its source stops, after a few KB more",
            f"{made[stalled.number]} tokens in {_SECONDS:g} s; {size(held)} are held for it; it waits for the "
            f"{shown['waiting_for']}",
        ),
        Finding(
            "the others on the same connection do not notice",
            f"the other {len(rates)} made {rates[0]:.0f} to {rates[-1]:.0f} tokens/s, of {_RATE} asked for",
        ),
    ]
    figures = {
        "window": shown["http2"]["window"],
        "connection_window": shown["http2"]["connection_window"],
        "waiting_for": shown["waiting_for"],
        "held": held,
        "made": made[stalled.number],
        "slowest_other": rates[0],
        "asked": _RATE,
        "streams": STREAMS,
    }
    return Report(
        "windows", "Many streams share one connection. Whom does one that is not read hold up?", findings, figures
    )

"""The order of relief when too much is buffered: refuse new streams, pause sources, cut the largest stalled one."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from rawstream import Server, Settings
from rawstream.limits.admission import Relief
from rawstream.model import StreamRecord
from tests.support import raw
from tests.support.raw import ENDLESS, Client, chat

DEADLINE = 10.0


class Ends:
    """The records of the streams that ended."""

    def __init__(self) -> None:
        self.records: list[StreamRecord] = []

    def stream_started(self, stream_id: str, path: str, dialect: str) -> None:
        pass

    def stream_ended(self, record: StreamRecord) -> None:
        self.records.append(record)


async def until(condition: Callable[[], object]) -> None:
    """Let the server run until ``condition()`` holds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.005)


async def still(level: Callable[[], int]) -> int:
    """A level once it stands still: the kernel takes its part in several goes."""
    before, now = -1, level()
    end = time.monotonic() + DEADLINE
    while now == 0 or now != before:
        assert time.monotonic() < end, "it does not stand still"
        await asyncio.sleep(0.1)
        before, now = now, level()
    return now


async def test_each_step_has_its_mark_and_is_undone_below_it(loop_kind: str) -> None:
    """1 times the limit refuses, 1.1 times pauses, 1.25 times cuts; below it all goes on as before."""
    ends = Ends()
    settings = Settings(port=0, heartbeat=0, drain_timeout=0, write_high=32 * 1024, log_level="error")
    async with Server(settings, observers=(ends,)) as server, AsyncExitStack() as cleanup:
        app = server.app

        def limit(buffered: float) -> Relief:
            """Look at the memory under a limit of so many bytes."""
            app.governor.settings = dataclasses.replace(settings, max_buffered_bytes=max(1, int(buffered)))
            return app.governor.relieve()

        def talk(mock: dict[str, Any], rcvbuf: int | None = None) -> Client:
            client = cleanup.enter_context(Client(server.port, rcvbuf=rcvbuf))
            client.send(chat(**mock))
            client.head()
            return client

        stalled: list[Client] = [await asyncio.to_thread(talk, ENDLESS, 4096) for _ in range(2)]
        buffered = await still(lambda: sum(stream.process_buffered() for stream in app.streams))
        assert buffered > 32 * 1024

        assert limit(buffered * 1.01) is Relief.NONE
        assert limit(buffered / 1.05) is Relief.REFUSE
        refused = await asyncio.to_thread(raw.ask, server.port, chat(tokens=1))
        assert (refused.status, refused.json()["code"]) == (503, "memory_exhausted")
        assert refused.header("retry-after")

        assert limit(buffered * 10) is Relief.NONE
        reader = await asyncio.to_thread(talk, {"tokens": 20_000, "tokens_per_second": 20_000, "batch": 20})
        reading = asyncio.create_task(asyncio.to_thread(lambda: b"".join(reader.parts())))
        slowed = list(app.streams)[-1]
        assert limit(buffered / 1.15) is Relief.PAUSE
        await until(lambda: slowed.meter.waiting_for == "client")
        pulled = slowed.meter.tokens
        await asyncio.sleep(0.05)  # a thousand tokens' time
        assert slowed.meter.tokens == pulled, "a paused source gives nothing, whoever reads"
        assert ends.records == []

        assert limit(buffered / 1.3) is Relief.CUT
        await until(lambda: ends.records)
        assert [record.outcome for record in ends.records] == ["client_stalled"]
        assert app.governor.cuts == 1
        assert "buffered" in (ends.records[0].detail or "")
        assert len(app.streams) == 2, "one is enough for this look"

        assert limit(buffered * 10) is Relief.NONE
        assert (await reading).count(b'"token"') == 20_000, "who was paused goes on and loses nothing"
        assert (await asyncio.to_thread(raw.ask, server.port, chat(tokens=1))).status == 200
        for client in (*stalled, reader):
            client.close()
        await until(lambda: len(app.streams) == 0)
        assert app.streams.admission.streams == 0

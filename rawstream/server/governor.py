"""The memory governor: what is buffered in all streams together, and the steps against too much of it.

The order is: let go of answers that have ended, then ``limits.admission.Relief``: refuse new streams, pause sources,
cut the largest stalled stream. The streams of the lab's wrong disciplines are left out: they have a cap of their own.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from rawstream.limits.admission import Relief, relief
from rawstream.server.stream import Stream
from rawstream.server.streams import Streams
from rawstream.settings import Settings

log = logging.getLogger("rawstream")

_LOOK: Final = 0.25
"""Seconds between two looks."""


class Governor:
    """Looks at the memory of one process's streams, and relieves it."""

    def __init__(self, settings: Settings, streams: Streams) -> None:
        self.settings = settings
        self._streams = streams
        self._look: asyncio.TimerHandle | None = None
        self.most_buffered = 0
        """The most bytes that were ever seen buffered in all."""
        self.cuts = 0
        """Streams that were cut."""

    def start(self) -> None:
        """Look every ``_LOOK`` seconds from now on. On the running loop."""
        self._look = asyncio.get_running_loop().call_later(_LOOK, self._look_and_go_on)

    def stop(self) -> None:
        """Look no more. Idempotent."""
        if self._look is not None:
            self._look.cancel()

    def _look_and_go_on(self) -> None:
        self.start()
        self.relieve()

    def relieve(self) -> Relief:
        """Look at how much is buffered in all, and take the step that asks for."""
        sizes = [(stream.process_buffered(), stream) for stream in self._streams if not stream.lab]
        generations = self._streams.generations
        buffered = sum(size for size, _ in sizes) + generations.held
        if buffered > self.settings.max_buffered_bytes:
            # First what is kept of answers that have ended, in case somebody comes back.
            held = generations.held
            generations.let_go(max(0, held - (buffered - self.settings.max_buffered_bytes)))
            buffered -= held - generations.held
        self.most_buffered = max(self.most_buffered, buffered)
        step = relief(buffered, self.settings.max_buffered_bytes)
        admission = self._streams.admission
        if step != admission.relief:
            log.warning("%d bytes are buffered for slow readers: %s", buffered, step.name.lower())
        admission.relief = step
        pausing = self._streams.pausing
        if pausing is not None:
            if step >= Relief.PAUSE:
                pausing.clear()
            else:
                pausing.set()
        if step is Relief.CUT:
            self._cut_largest(sizes)
        return step

    def _cut_largest(self, sizes: list[tuple[int, Stream]]) -> None:
        """Cut the stream that holds most, among those that wait for their client."""
        stalled = [pair for pair in sizes if pair[1].meter.waiting_for == "client"]
        if stalled:
            _, stream = max(stalled, key=lambda pair: pair[0])
            self.cuts += 1
            stream.cut_for_memory()

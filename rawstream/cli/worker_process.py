"""A worker as its supervisor sees it: a process, and the link to it.

Rule 1: it is told to end once, in the way that fits: politely over the link where others accept in its place, by
        SIGTERM where all end. A second SIGTERM is for a supervisor in a hurry.
Rule 2: however it is told, it has a deadline, and is killed after that.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from time import monotonic
from typing import Final

from rawstream.server.worker_link import READY, RETIRE, Place
from rawstream.settings import Settings

_COMING_UP: Final = 60.0
"""Seconds until a worker accepts: a source of one's own may load a model first."""
_TO_STOP: Final = 2.0
"""Seconds until a worker that is told to retire accepts no more."""
_LEAVING: Final = 5.0
"""Seconds beyond a worker's own deadlines, until it is killed."""


def how_it_ended(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


class NotUp(Exception):
    """A worker did not come up. The exit code for it."""

    def __init__(self, worker: WorkerProcess, code: int | None) -> None:
        why = f"did not accept within {_COMING_UP:g} s" if code is None else f"ended with {how_it_ended(code)}"
        super().__init__(f"a worker (pid {worker.pid}) {why} before it accepted")
        self.code = code if code is not None and code > 0 else 1
        self.has_said_why = code is not None and code > 0


class Generation:
    """Workers that are started with the same settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.leaving = asyncio.Event()
        """None of its workers is started again."""
        self.keepers: list[asyncio.Task[None]] = []

    @property
    def grace(self) -> float:
        """Seconds that its workers may take to end."""
        return self.settings.drain_timeout + self.hurry

    @property
    def hurry(self) -> float:
        """Seconds that they may take when it hurries."""
        return 2 * self.settings.cancel_timeout + self.settings.flush_timeout + _LEAVING


class WorkerProcess:
    """A process, and the link to it."""

    def __init__(
        self, generation: Generation, place: Place, process: asyncio.subprocess.Process, link: socket.socket
    ) -> None:
        self.generation = generation
        self.place = place
        self.accepts = False
        self.pid = process.pid
        self.told_to_end = False
        self.overdue: asyncio.TimerHandle | None = None
        self.began = monotonic()
        self._receiving = False
        self._over = False
        self._process = process
        self._link = link

    async def ready(self) -> str:
        """Its URL, once it accepts. Raises NotUp; then it has ended."""
        said = b""
        try:
            async with asyncio.timeout(_COMING_UP):
                while not said.endswith(b"\n"):
                    data = await self._receive()
                    if not data:
                        raise ConnectionResetError
                    said += data
        except ConnectionError:
            raise NotUp(self, await self.ended()) from None
        except TimeoutError:
            self.kill()
            await self.ended()
            raise NotUp(self, None) from None
        self.accepts = True
        return said.removeprefix(READY).decode().strip()

    async def ended(self) -> int:
        """Its exit status. Cancel-safe."""
        return await self._process.wait()

    def retire(self) -> None:
        """Others accept in its place: it finishes what it has, or is killed when its time is over. Idempotent."""
        if self.told_to_end:
            return
        if not self.accepts:
            self.terminate()
        else:
            self.told_to_end = True
            with contextlib.suppress(OSError):
                self._link.send(RETIRE + b"\n")
        self.overdue = asyncio.get_running_loop().call_later(self.generation.grace + _LEAVING, self.kill)

    async def retired(self) -> None:
        """It accepts no more, or does not say so in time. After ``retire()``."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_TO_STOP):
                await self._receive()  # it says nothing else, or has ended

    def terminate(self) -> None:
        """End gracefully; the second time at once."""
        self.told_to_end = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _receive(self) -> bytes:
        """What it says next; b'' when it has ended. The link stays open for as long as somebody waits on it."""
        self._receiving = True
        try:
            return await asyncio.get_running_loop().sock_recv(self._link, 4096)
        finally:
            self._receiving = False
            if self._over:
                self._link.close()

    def close(self) -> None:
        """It has ended."""
        self._over = True
        if not self._receiving:
            self._link.close()
        if self.overdue is not None:
            self.overdue.cancel()

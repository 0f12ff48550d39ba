"""What several workers tell together: ``/metrics`` of any of them is the sum of all.

Rule 1: each worker answers its siblings on a Unix socket of its own, in a directory that only this user may enter.
Rule 2: whoever is asked looks at the others then; nothing is sent around while nobody asks.
Rule 3: a worker writes down what it tells before it tells it. Who ends, however it ends, leaves that behind, and the
        supervisor adds it to what all that ended before have left: no counter falls.
Rule 4: a sibling that does not answer within a second holds up nobody: what it told last counts, and that it is
        missing is told too.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from rawstream.server.endpoints.operations import require_operator
from rawstream.server.exchange import Exchange
from rawstream.server.merging import Exposition, signed
from rawstream.server.neighbours import KIND
from rawstream.server.router import Router
from rawstream.server.worker_link import Place

log = logging.getLogger("rawstream")

_DEADLINE: Final = 1.0
"""Seconds for all siblings together, who answer at the same time."""
_WHOLE: Final = "# whole\n"
"""The last line of what a sibling says."""
_ENDED: Final = "ended"
_KEPT: Final = 64
"""Numbers of ended workers that are remembered: their files are removed at once, so that few could do."""
_TRIES: Final = 5


class _Sibling(NamedTuple):
    answered: bool
    text: str
    """What it says, or what it told last."""


Text = Callable[[], Coroutine[Any, Any, bytes]]


class Siblings:
    """One worker's part. ``start()``, then ``aclose()``."""

    def __init__(self, place: Place, own: Text) -> None:
        """``own``: this process's exposition."""
        self._place = place
        self._own = own
        self._server: asyncio.Server | None = None

    def register(self, *routers: Router) -> None:
        """Answer ``/metrics`` for all."""
        for router in routers:
            router.add("GET", "/metrics", self._metrics, access="operator")

    async def start(self) -> None:
        """Answer siblings from now on. Raises OSError."""
        path = self._place.path / f"{self._place.serial}.sock"
        self._server = await asyncio.start_unix_server(self._answer, path)

    async def aclose(self) -> None:
        """Leave the last figures behind, and answer no more. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            await self.own()
            server.close()

    async def _metrics(self, exchange: Exchange) -> None:
        """For Prometheus."""
        require_operator(exchange)
        own = parse_qs(exchange.head.query).get("worker") == ["own"]
        body = (await self.own() if own else await self.all()).encode()
        await exchange.respond(200, [("content-type", CONTENT_TYPE_PLAIN_0_0_4), ("cache-control", "no-store")], body)

    async def own(self) -> str:
        """This worker's figures, written down before anybody hears of them."""
        text = signed((await self._own()).decode(), self._place.slot)
        try:
            _write(self._place.path / f"{self._place.serial}.prom", text)
        except OSError as error:  # the disk is full, or the supervisor gone, and the directory with it
            log.debug("the figures could not be written down: %s", error)
        return text

    async def all(self) -> str:
        """Everybody's figures. Cancel-safe."""
        directory = self._place.path
        for _ in range(_TRIES):
            buried = _read(directory / _ENDED)
            siblings = await self._ask(_numbers(buried))
            if _read(directory / _ENDED) == buried:
                break  # nobody's figures went from its own file into the common one while we looked
        merged = Exposition()
        merged.add(await self.own())
        for sibling in siblings:
            merged.add(sibling.text, ended=not sibling.answered)
        merged.add(buried, ended=True)
        answered = sum(sibling.answered for sibling in siblings)
        merged.gauge("rawstream_workers", "Worker processes that run and answer.", 1 + answered)
        merged.gauge(
            "rawstream_workers_unreachable",
            "Worker processes that did not answer; what they told last is counted.",
            len(siblings) - answered,
        )
        return merged.text()

    async def _ask(self, buried: frozenset[int]) -> list[_Sibling]:
        """All the others, but those that are buried."""
        directory = self._place.path
        serials = sorted(_serials(directory) - buried - {self._place.serial})
        answers = await asyncio.gather(*(_ask(directory / f"{serial}.sock") for serial in serials))
        return [
            _Sibling(answer is not None, _read(directory / f"{serial}.prom") if answer is None else answer)
            for serial, answer in zip(serials, answers, strict=True)
        ]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write((await self.own() + _WHOLE).encode())
            await writer.drain()
        except OSError:
            pass  # it did not wait
        finally:
            writer.close()


async def _ask(path: Path) -> str | None:
    """What the worker at ``path`` says; None: nothing, or not all of it."""
    writer = None
    try:
        async with asyncio.timeout(_DEADLINE):
            reader, writer = await asyncio.open_unix_connection(path)
            text = (await reader.read(-1)).decode()
    except (OSError, TimeoutError):
        return None
    finally:
        if writer is not None:
            writer.close()
    return text.removesuffix(_WHOLE) if text.endswith(_WHOLE) else None


def _serials(directory: Path) -> set[int]:
    names = (name.partition(".") for name in os.listdir(directory))
    return {int(serial) for serial, _, kind in names if kind in ("sock", "prom") and serial.isdecimal()}


# --- what is left behind --------------------------------------------------------------------------------------


def _numbers(buried: str) -> frozenset[int]:
    """The numbers of the workers whose figures are in the common file."""
    first, _, _ = buried.partition("\n")
    return frozenset(map(int, first.removeprefix("#").split()))


def bury(directory: Path, serial: int) -> None:
    """The worker has ended: what it told last goes to what is left of all. For the supervisor. Raises OSError."""
    buried, own = _read(directory / _ENDED), directory / f"{serial}.prom"
    left = Exposition()
    for text in (buried, _read(own)):
        left.add(text, ended=True)
    numbers = sorted({*_numbers(buried), serial})[-_KEPT:]
    _write(directory / _ENDED, f"#{' '.join(map(str, numbers))}\n{left.text()}")
    for path in (own, directory / f"{serial}.sock", directory / f"{serial}.{KIND}"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _write(path: Path, text: str) -> None:
    """All of it or nothing: whoever reads meanwhile sees what was there before."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)

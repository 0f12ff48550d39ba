"""A source that writes down what happens to it: ``--source tests.support.recording:tokens``.

One line of JSON per event goes to the file that RAWTEST_RECORD names, so that another process can see that a
generation was closed, and how many tokens it had given until then.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from rawstream import Request
from tests.support.waiting import eventually

VARIABLE = "RAWTEST_RECORD"


def _note(what: str, request: Request, yielded: int) -> None:
    line = {"event": what, "prompt": request.prompt, "yielded": yielded, "at": time.monotonic()}
    with open(os.environ[VARIABLE], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


async def stubborn(request: Request) -> AsyncGenerator[str, None]:
    """A source that does not take a cancellation for an end: it says one thing more, and waits again."""
    _note("open", request, 0)
    yielded = 0
    try:
        while True:
            try:
                await asyncio.sleep(60 if yielded else 0.01)
            except asyncio.CancelledError:
                if yielded > 1:
                    raise
            yielded += 1
            yield "still here "
    finally:
        _note("close", request, yielded)


async def tokens(request: Request) -> AsyncGenerator[str, None]:
    """``count`` tokens (without end by default), after ``pause`` seconds each (0 by default: as fast as pulled)."""
    count = request.extra.get("count")
    pause = float(request.extra.get("pause", 0))
    text = str(request.extra.get("text", "token "))
    yielded = 0
    _note("open", request, 0)
    try:
        while count is None or yielded < count:
            if pause:
                await asyncio.sleep(pause)
            yielded += 1
            yield text
        if request.extra.get("fail"):
            raise RuntimeError("secret detail of the source")
    finally:
        _note("close", request, yielded)


class Record:
    """The file, read from the test's side."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    @property
    def env(self) -> dict[str, str]:
        return {VARIABLE: str(self.path)}

    def events(self, prompt: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [event for event in found if event["prompt"] == prompt]

    def closed(self, prompt: str, *, within: float = 1.0) -> dict[str, Any]:
        """The note of the close of the generation for ``prompt``. AssertionError when it is not closed in time."""
        return eventually(
            lambda: next((event for event in self.events(prompt) if event["event"] == "close"), None) or {},
            within=within,
            why=f"the source of {prompt!r} is closed",
        )

    def opened(self, prompt: str, *, within: float = 5.0) -> dict[str, Any]:
        return eventually(
            lambda: next(iter(self.events(prompt)), None) or {},
            within=within,
            why=f"the source of {prompt!r} began",
        )

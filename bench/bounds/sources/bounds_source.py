"""A source that waits, repeats and writes down its ends as the request's ``"bounds"`` says. Only the standard library.

``wait``: seconds before each token (null: none, and it never suspends) · ``first``: seconds before the first one ·
``texts``: what to say, over and over · ``repeat``: each text so many times over · ``count``: how many yields (null:
without end) · ``batch``: tokens per yield. The name of a generation is its prompt. The prompt ``tasks`` answers with
the number of tasks in this process.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

_path: Final = os.environ.get("BOUNDS_EVENTS_FILE")
_file: Final = os.open(_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if _path else -1


def _note(kind: str, name: str, at: int, yields: int) -> None:
    if _file >= 0:
        os.write(_file, f"{kind} {name} {at} {yields}\n".encode())


async def _run(name: str, options: dict[str, Any]) -> AsyncGenerator[str | list[str], None]:
    wait, batch = options.get("wait"), options.get("batch", 1)
    texts = [text * options.get("repeat", 1) for text in options.get("texts", [" token"])]
    count = options.get("count")
    yields = 0
    _note("open", name, time.monotonic_ns(), 0)
    try:
        if (first := options.get("first", wait)) is not None:
            await asyncio.sleep(first)
        while count is None or yields < count:
            if yields and wait is not None:
                await asyncio.sleep(wait)
            text = texts[yields % len(texts)]
            yields += 1
            yield text if batch == 1 else [text] * batch
    finally:
        _note("close", name, time.monotonic_ns(), yields)


async def _tasks() -> AsyncGenerator[str, None]:
    yield str(len(asyncio.all_tasks()))


class _ForBounds:
    name = "bounds"

    def tokens(self, request: Any) -> AsyncGenerator[str | list[str], None] | AsyncGenerator[str, None]:
        if request.prompt == "tasks":
            return _tasks()
        return _run(request.prompt or "-", request.extra.get("bounds") or {})

    async def aclose(self) -> None:
        """Nothing is shared between generations."""


for_bounds: Final = _ForBounds()

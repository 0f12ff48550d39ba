"""A source for servers behind a proxy: ``--source tests.front.sources:tokens``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from rawstream import Request

FAILURE = "the test asked for it"
_FIELDS = ("count", "first", "silence", "pause", "fail")


async def tokens(request: Request) -> AsyncGenerator[str, None]:
    """``t1. t2. …``, without end or ``count`` of them, as fast as they are pulled.

    ``first``: seconds before the first; ``silence``: seconds before the second; ``pause``: seconds before each other;
    ``fail``: fail at the end.
    """
    extra = {name: float(request.extra[name]) for name in _FIELDS if name in request.extra}
    number = 0
    while number < extra.get("count", float("inf")):
        number += 1
        name = {1: "first", 2: "silence"}.get(number, "pause")
        if extra.get(name):
            await asyncio.sleep(extra[name])
        yield f"t{number}. "
    if extra.get("fail"):
        raise RuntimeError(FAILURE)

"""A source that writes down what is asked of it: opened, each batch pulled, closed. For ``rawstream serve --source``.

A prompt that begins with "wait" gets no token before it is given up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from time import monotonic

import rawstream

TALLY = "RAWSTREAM_TEST_TALLY"
"""The environment variable that names the file: a line per event, with the time on CLOCK_MONOTONIC."""

BATCH = 8
"""Tokens that become ready together."""

BETWEEN = 0.3
"""Seconds between two batches: far more than a browser takes to close a connection."""


def _write(event: str) -> None:
    with Path(os.environ[TALLY]).open("a", encoding="utf-8") as tally:
        tally.write(f"{event} {monotonic():.6f}\n")


async def tokens(request: rawstream.Request) -> AsyncGenerator[list[str], None]:
    """Batches of tokens without end."""
    _write("opened")
    try:
        if request.prompt.startswith("wait"):
            await asyncio.sleep(600)
        while True:
            _write("pulled")
            yield ["word "] * BATCH
            await asyncio.sleep(BETWEEN)
    finally:
        _write("closed")

"""The mock source that all Python peers share: same tokens, same pacing, same counters.

Rule 1: it is pulled; the handler's ``async for`` is the demand.
Rule 2: only the standard library, and only what the handler needs: this is part of every measured process.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import AsyncGenerator
from typing import Any, Final, TypeVar

T = TypeVar("T", str, bytes)

_WORDS: Final = """
the of and to in is that it was for on are as with his they at be this from have or by one had not but
what all were when we there can an your which their said if do will each about how up out them then she
many some so these would other into has more her two like him see time could no make than first been its
who now people my made over
""".split()  # noqa: SIM905 (a list of 96 strings reads worse)


def _tokens(count: int) -> tuple[str, ...]:
    state = 1
    made = []
    for _ in range(count):
        state = (state * 1103515245 + 12345) % 2147483648
        made.append(" " + _WORDS[(state >> 16) % len(_WORDS)])
    return tuple(made)


TOKENS: Final = _tokens(1009)
"""Token i of any stream is ``TOKENS[i % PERIOD]``; 1009 is a prime, so that no plausible loss goes unseen."""

PERIOD: Final = len(TOKENS)

_TWICE: Final = list(TOKENS * 2)

stats: Final[dict[str, int]] = {"pulled": 0, "opened": 0, "closed": 0}
"""What ``GET /stats`` answers."""

_numbers: Final = itertools.count(1)
_events_path: Final = os.environ.get("BENCH_EVENTS_FILE")
_events: Final = os.open(_events_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if _events_path else None


def _event(line: str) -> None:
    if _events is not None:
        os.write(_events, line.encode())


def parse(body: bytes) -> tuple[str, dict[str, Any], bool]:
    """Prompt, ``mock`` and ``joined`` of a request body."""
    decoded = json.loads(body)
    return str(decoded.get("prompt", "")), decoded.get("mock") or {}, bool(decoded.get("joined"))


def tokens(prompt: str, mock: dict[str, Any]) -> AsyncGenerator[str | list[str], None]:
    """Tokens, singly or (``batch`` > 1) in lists, at an absolute schedule or as fast as they are pulled."""
    return source(prompt, mock, _TWICE)


async def source(prompt: str, mock: dict[str, Any], items: list[T]) -> AsyncGenerator[T | list[T], None]:
    """The same with ``items`` for tokens; they stand there twice over, so a batch is one slice."""
    limit: int | None = mock.get("tokens", 200)
    rate: float | None = mock.get("tokens_per_second", 50.0)
    batch = min(int(mock.get("batch") or 1), PERIOD)
    suspend = bool(mock.get("suspend"))
    number = next(_numbers)
    name = prompt.rpartition("#")[2].strip() if "#" in prompt else str(number)
    sent = 0
    opened = time.monotonic_ns()
    stats["opened"] += 1
    _event(f"open {name} {opened}\n")
    start = opened / 1e9 + float(mock.get("first_token_seconds") or 0.0)
    try:
        if rate is None:
            ahead = start - time.monotonic()
            if ahead > 0:
                await asyncio.sleep(ahead)
        while limit is None or sent < limit:
            if rate is not None:
                ahead = start + sent / rate - time.monotonic()
                if ahead > 0:
                    await asyncio.sleep(ahead)
            elif suspend:
                await asyncio.sleep(0)
            at = sent % PERIOD
            if batch == 1:
                sent += 1
                stats["pulled"] += 1
                yield items[at]
            else:
                ready = batch if limit is None else min(batch, limit - sent)
                sent += ready
                stats["pulled"] += ready
                yield items[at : at + ready]
    finally:
        stats["closed"] += 1
        _event(f"close {name} {time.monotonic_ns()} {sent}\n")


def frame(item: str | list[str]) -> str:
    """The SSE text of one pull: JSON made per token, several tokens joined."""
    if isinstance(item, str):
        return f"data: {json.dumps({'token': item})}\n\n"
    return "".join([f"data: {json.dumps({'token': token})}\n\n" for token in item])


DONE: Final = "data: [DONE]\n\n"


async def events(body: bytes) -> AsyncGenerator[str, None]:
    """The generator that every tutorial has: a token, a ``data:`` line; with ``joined`` one text for all of a pull."""
    prompt, mock, joined = parse(body)
    async for item in tokens(prompt, mock):
        if joined or isinstance(item, str):
            yield frame(item)
        else:
            for token in item:
                yield frame(token)
    yield DONE


class _ForRawstream:
    """The same source as rawstream's ``--source`` takes it: an object with ``tokens(request)``."""

    name = "bench"

    def tokens(self, request: Any) -> AsyncGenerator[str | list[str], None]:
        return tokens(request.prompt, request.extra.get("mock") or {})

    async def aclose(self) -> None:
        """Nothing is shared between generations."""


for_rawstream: Final = _ForRawstream()

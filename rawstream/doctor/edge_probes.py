"""The measurements behind ``rawstream doctor URL``: one coroutine each, one value each. Nothing is judged here."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Final

import msgspec

from rawstream.doctor.asking import SMALL, Asker, End, Exchange, refusal, spoken
from rawstream.doctor.finding import CannotExamine
from rawstream.doctor.recording import Arrival
from rawstream.doctor.sight import ASK_EVERY, RawstreamEye, State
from rawstream.doctor.target import Target
from rawstream.errors import RawstreamError

BROWSER: Final = "gzip, deflate, br, zstd"
"""What browsers accept."""
ANSWER: Final = 300
"""Tokens of an ordinary answer, at most."""
LONG: Final = 4000
"""Tokens of an answer that is not read to its end, at most."""
_WHOLE_WITHIN: Final = 60.0
_COMPRESSED_WITHIN: Final = 5.0
_PACED: Final = {"tokens": 100, "tokens_per_second": 50}
_ENDLESS: Final = {"tokens": None, "tokens_per_second": 50}
_FAST: Final = {"tokens": None, "tokens_per_second": 50_000, "batch": 50}
"""More than any buffer on the way takes in some seconds, and less than what harms a server that takes no heed."""
FAILS_AFTER: Final = 5
_A_FEW: Final = 3
_STALLED_FOR: Final = 8.0
_UNCHANGED_FOR: Final = 1.0
_CANCEL_WITHIN: Final = 5.0
_LOOK_EVERY: Final = 0.1


class Look(msgspec.Struct, frozen=True):
    """A whole answer: its head, how it arrived, how it ended."""

    headers: tuple[tuple[str, str], ...]
    framing: str
    version: str
    request_id: str
    """The ``x-request-id`` that was sent."""
    head_at: float
    arrivals: tuple[Arrival, ...]
    tokens: int
    bytes: int
    legible: bool
    sse: bool
    heartbeats: tuple[float, ...]
    done: bool
    terminal: bool
    error: str | None
    end: End
    why: str
    reusable: bool
    closes: bool
    """The head says that the connection closes."""

    def header(self, name: str) -> str:
        return ", ".join(value for key, value in self.headers if key == name)


class Cancel(msgspec.Struct, frozen=True):
    """What became of a generation whose client left."""

    through: str
    """Where it could be seen; '': nowhere, and nothing else is known."""
    seconds: float | None = None
    """Until it had ended; None: it still ran after ``watched``."""
    watched: float = _CANCEL_WITHIN
    made_after: int | None = None
    """Tokens made after the client had left."""
    ended_early: bool = False
    """The answer was over before it could be left."""


class Stall(msgspec.Struct, frozen=True):
    """What a generation did whose client did not read."""

    through: str
    samples: tuple[tuple[float, State], ...] = ()
    """Seconds since the reader stopped, and the state then."""
    read_tokens: int = 0
    read_bytes: int = 0
    ended: bool = False
    """It had ended before it could stop."""


class Silence(msgspec.Struct, frozen=True):
    """An answer that says nothing for a while."""

    asked: float
    """How long the silence was to be, seconds."""
    longest: float
    """The longest time without a byte that was survived."""
    cut_at: float | None
    """Seconds without a byte after which the connection was cut; None: it was not."""
    total: float
    heartbeats: tuple[float, ...] = ()
    status: int = 200
    why: str = ""


async def answer(asker: Asker, target: Target, *, mock: bool) -> Look:
    """An ordinary answer, read as fast as it comes. Raises CannotExamine when there is none."""
    wanted = target.wanted(max_tokens=ANSWER, mock=_PACED if mock else None)
    return await _look(asker, target, wanted, "identity", _WHOLE_WITHIN)


async def compressed(asker: Asker, target: Target, *, mock: bool) -> Look:
    """The same as a browser asks for it: it takes compression. Read for a few seconds."""
    wanted = target.wanted(max_tokens=ANSWER, mock=_PACED if mock else None)
    return await _look(asker, target, wanted, BROWSER, _COMPRESSED_WITHIN)


async def failing(asker: Asker, target: Target) -> Look | CannotExamine:
    """An answer that fails in mid-stream, as the mock can; or the status that it failed with."""
    wanted = target.wanted(mock={**_PACED, "fail_after": FAILS_AFTER})
    try:
        return await _look(asker, target, wanted, "identity", _COMPRESSED_WITHIN)
    except CannotExamine as told:
        if told.status >= 500:
            return told
        raise


async def _look(asker: Asker, target: Target, wanted: Any, encoding: str, within: float) -> Look:
    try:
        exchange = await asker.open(wanted, accept_encoding=encoding)
    except RawstreamError as error:
        raise CannotExamine(f"{target.url}: {spoken(error)}", detail=error.detail) from None
    async with exchange:
        if exchange.head.status != 200:
            raise await refusal(exchange, target.url)
        end = await exchange.read(lambda _: False, within=within)
        return _seen(exchange, end)


def _seen(exchange: Exchange, end: End) -> Look:
    head, recording = exchange.head, exchange.recording
    return Look(
        headers=head.headers,
        framing=head.framing,
        version=head.version,
        request_id=exchange.request_id,
        head_at=exchange.head_at,
        arrivals=tuple(recording.arrivals),
        tokens=recording.tokens,
        bytes=recording.bytes,
        legible=recording.legible,
        sse=recording.sse,
        heartbeats=tuple(recording.heartbeats),
        done=recording.done,
        terminal=recording.terminal or bool(recording.finish_reasons),
        error=recording.error,
        end=end,
        why=exchange.why,
        reusable=end == "clean" and exchange.reusable,
        closes="close" in exchange.header("connection").lower(),
    )


async def cancel(asker: Asker, target: Target, eye: RawstreamEye, *, mock: bool) -> Cancel:
    """Leave in mid-stream, and watch the server."""
    await eye.remember()
    wanted = target.wanted(max_tokens=LONG, mock=_ENDLESS if mock else None)
    async with await asker.open(wanted, rcvbuf=SMALL) as exchange:
        # What is held back on the way is no reason to wait: the head tells that the generation runs.
        await exchange.read(lambda seen: seen.tokens >= _A_FEW or exchange.elapsed > 1, within=2.0)
        sight = await eye.find(exchange)
        before = None if sight is None else await sight.look()
        if sight is None or before is None:
            return Cancel("", ended_early=sight is not None)
        await exchange.aclose()
    clock = asyncio.get_running_loop().time
    began, last = clock(), before
    while (now := await sight.look()) is not None:
        last = now
        if clock() - began > _CANCEL_WITHIN:
            break
        await asyncio.sleep(ASK_EVERY)
    seconds = None if now is not None else clock() - began
    if now is not None and sight.stop is not None:
        await sight.stop()
    made = None if last.tokens is None or before.tokens is None else last.tokens - before.tokens
    return Cancel(sight.through, seconds, made_after=made)


async def stall(asker: Asker, target: Target, eye: RawstreamEye, *, mock: bool) -> Stall:
    """Stop reading, and watch the server until it stops too."""
    await eye.remember()
    wanted = target.wanted(max_tokens=LONG, mock=_FAST if mock else None)
    async with await asker.open(wanted, rcvbuf=SMALL) as exchange:
        sight = await eye.find(exchange)
        if sight is None:
            return Stall("")
        recording = exchange.recording
        clock = asyncio.get_running_loop().time
        began = clock()
        samples: list[tuple[float, State]] = []
        changed_at = 0.0
        while (at := clock() - began) < _STALLED_FOR:
            state = await sight.look()
            if state is None:
                return Stall(sight.through, tuple(samples), recording.tokens, recording.bytes, ended=True)
            if not samples or state.tokens != samples[-1][1].tokens:
                changed_at = at
            samples.append((at, state))
            if at - changed_at > _UNCHANGED_FOR:
                break
            await asyncio.sleep(_LOOK_EVERY)
        await exchange.aclose()
    if await sight.until_gone(1.0) is None and sight.stop is not None:
        await sight.stop()
    return Stall(sight.through, tuple(samples), recording.tokens, recording.bytes)


async def silence(asker: Asker, target: Target, seconds: float, *, mock: bool, model: str | None) -> Silence:
    """Ask for an answer that is silent at first, and see whether the way to it lives through that."""
    options = {"tokens": 1, "first_token_seconds": seconds} if mock else None
    wanted = target.wanted(max_tokens=ANSWER, mock=options, model=model)
    clock = asyncio.get_running_loop().time
    began = clock()
    try:
        exchange = await asker.open(wanted, within=seconds + 5)
    except RawstreamError as error:
        total = clock() - began
        cut = total if total < seconds else None
        return Silence(seconds, total, cut, total, why=spoken(error))
    async with exchange:
        status = exchange.head.status
        if status != 200:
            return Silence(seconds, exchange.head_at, exchange.head_at, exchange.head_at, status=status)
        left = max(0.1, seconds + 5 - exchange.elapsed)
        end = await exchange.read(lambda seen: exchange.elapsed > seconds and seen.tokens > 0, within=left)
        total = exchange.elapsed
        moments = [0.0, exchange.head_at, *(arrival.at for arrival in exchange.recording.arrivals)]
        longest = max((b - a for a, b in itertools.pairwise(moments)), default=0.0)
        seen = exchange.recording
        broken = end == "cut" or (end == "clean" and not (seen.tokens or seen.terminal))
        cut = total - moments[-1] if broken else None
        if end == "time":
            longest = max(longest, total - moments[-1])
        return Silence(seconds, longest, cut, total, tuple(seen.heartbeats), why=exchange.why)

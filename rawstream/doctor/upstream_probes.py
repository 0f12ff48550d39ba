"""The measurements behind ``rawstream doctor --upstream URL``. Nothing is judged here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec

from rawstream.doctor.asking import SMALL, Asker, End, Exchange, refusal, spoken
from rawstream.doctor.finding import CannotExamine
from rawstream.doctor.recording import Recording
from rawstream.doctor.sight import ASK_EVERY, ModelServerEye, State
from rawstream.doctor.target import Target, Wanted
from rawstream.errors import RawstreamError

SHORT: Final = 32
"""Tokens of an answer whose form is of interest."""
LONG: Final = 4000
"""Tokens of an answer that nobody reads: more than the kernels between hold (some 200 bytes each)."""
STALLED_FOR: Final = 8.0
"""Seconds without a read."""
KEPT_FOR: Final = 10.0
"""Longest look at an idle connection, seconds."""
NOBODY: Final = "no-such-model-rawstream-doctor"
_WITHIN: Final = 60.0
_WHOLE_WITHIN: Final = 20.0
_FREED_WITHIN: Final = 10.0
_AT_ONCE: Final = 0.2
"""A gap of this length between two reads: what came before was there already."""
_UNCHANGED_FOR: Final = 1.0
_LOOK_EVERY: Final = 0.1


class Shape(msgspec.Struct, frozen=True):
    """A streamed answer's form."""

    status: int
    content_type: str
    framing: str
    first_token: float | None
    """Seconds until the first token; None: none came."""
    seconds: float
    tokens: int
    arrivals: int
    role: bool
    finish_reasons: tuple[str, ...]
    usage: int
    usage_alone: bool
    done: bool
    after_done: int
    heartbeats: int
    error: str | None
    end: End
    why: str
    promised: str
    """Its ``keep-alive`` field."""
    reusable: bool
    """Its connection could take another request."""


class Whole(msgspec.Struct, frozen=True):
    """An answer that was not to be streamed, or an error."""

    status: int
    content_type: str
    body: Any
    """Its JSON; None: it is none."""


class Unread(msgspec.Struct, frozen=True):
    """What it did while nobody read."""

    eye: str
    """What was asked for its state; '': nothing can be."""
    samples: tuple[tuple[float, State | None], ...]
    """Seconds since the reader stopped; the state then (None: it had ended)."""
    read: int
    """Tokens taken before the reader stopped."""
    later: int
    """Tokens that came without a pause when reading went on."""
    later_bytes: int
    later_seconds: float
    whole: bool
    """The answer's end was among them."""
    wanted: int | None
    """Tokens asked for; None: without end."""


class Freed(msgspec.Struct, frozen=True):
    """How soon a closed connection ended the generation."""

    eye: str
    seconds: float | None
    """None: not within ``watched``, or nothing can be asked."""
    watched: float = _FREED_WITHIN
    made_after: int | None = None
    next_first_token: float | None = None
    """A new request's first token right after the close, seconds; where nothing can be asked."""
    ended_early: bool = False


class Manner(msgspec.Struct, frozen=True):
    """What may be asked of this server beyond OpenAI's fields."""

    eye: ModelServerEye | None
    mock: bool

    @property
    def extra(self) -> dict[str, Any]:
        """What makes an answer long: llama.cpp can be told not to end one by itself."""
        if self.mock:
            return {"mock": {"tokens": None, "tokens_per_second": 2000, "batch": 2}}
        return {"ignore_eos": True} if self.eye is not None and self.eye.name == "llama.cpp" else {}


async def models(asker: Asker, target: Target) -> Whole:
    """``GET /models``."""
    answer = await asker.aside("GET", models_url(target), target.headers)
    return Whole(0, "", None) if answer is None else Whole(answer[0], "", answer[1])


def models_url(target: Target) -> str:
    return target.url.rstrip("/").removesuffix("/chat/completions") + "/models"


def _request(target: Target, *, max_tokens: int, **more: Any) -> Wanted:
    plain = target.wanted(max_tokens=max_tokens)
    content = {**msgspec.json.decode(plain.body), **more}
    if "mock" in content and content["mock"].get("tokens", 0) is None:
        del content["max_tokens"]
    return msgspec.structs.replace(plain, body=msgspec.json.encode(content))


async def shape(asker: Asker, target: Target, *, include_usage: bool) -> Shape:
    """A short streamed answer. Raises CannotExamine when there is none."""
    seen, exchange = await shape_and_exchange(asker, target, include_usage=include_usage)
    await exchange.aclose()
    return seen


async def shape_and_exchange(asker: Asker, target: Target, *, include_usage: bool = False) -> tuple[Shape, Exchange]:
    """The same, and the exchange, whose connection is still open: the caller closes it. Raises CannotExamine."""
    more: dict[str, Any] = {"stream_options": {"include_usage": True}} if include_usage else {}
    try:
        exchange = await asker.open(_request(target, max_tokens=SHORT, **more))
    except RawstreamError as error:
        raise CannotExamine(f"{target.url}: {spoken(error)}", detail=error.detail) from None
    try:
        if exchange.head.status != 200:
            raise await refusal(exchange, target.url)
        return _shape_of(exchange, await exchange.read(_too_long, within=_WITHIN)), exchange
    except BaseException:
        await exchange.aclose()
        raise


def _too_long(seen: Recording) -> bool:
    return seen.tokens > 4 * SHORT  # a token may come as several deltas, but not as so many


def _shape_of(exchange: Exchange, end: End) -> Shape:
    seen = exchange.recording
    return Shape(
        status=exchange.head.status,
        content_type=exchange.header("content-type"),
        framing=exchange.head.framing,
        first_token=next((one.at for one in seen.arrivals if one.tokens), None),
        seconds=exchange.elapsed,
        tokens=seen.tokens,
        arrivals=len(seen.arrivals),
        role=seen.role,
        finish_reasons=tuple(seen.finish_reasons),
        usage=seen.usage,
        usage_alone=seen.usage_alone,
        done=seen.done,
        after_done=seen.after_terminal,
        heartbeats=len(seen.heartbeats),
        error=seen.error,
        end=end,
        why=exchange.why,
        promised=exchange.header("keep-alive"),
        reusable=end == "clean" and exchange.reusable,
    )


async def whole(asker: Asker, target: Target, *, model: str | None = None) -> Whole:
    """An answer that is not streamed; or, for a model that nobody has, an error."""
    more = {"stream": False} | ({} if model is None else {"model": model})
    async with await asker.open(_request(target, max_tokens=SHORT, **more)) as exchange:
        body = await exchange.body(within=_WHOLE_WITHIN)
        try:
            told = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            told = None
        return Whole(exchange.head.status, exchange.header("content-type"), told)


async def unread(asker: Asker, target: Target, manner: Manner) -> Unread:
    """Take a first token, then read nothing for some seconds, then everything that is there."""
    eye = manner.eye
    if eye is not None:
        await eye.remember()
    wanted = _request(target, max_tokens=LONG, **manner.extra)
    async with await asker.open(wanted, rcvbuf=SMALL) as exchange:
        if exchange.head.status != 200:
            raise await refusal(exchange, target.url)
        await exchange.read(lambda seen: seen.tokens > 0, within=_WITHIN)
        seen = exchange.recording
        samples = await _watch(eye)
        tokens, size, at = seen.tokens, seen.bytes, exchange.elapsed
        whole = await _at_once(exchange)
        measured = Unread(
            eye="" if eye is None else eye.name,
            samples=tuple(samples),
            read=tokens,
            later=seen.tokens - tokens,
            later_bytes=seen.bytes - size,
            later_seconds=seen.arrivals[-1].at - at if seen.bytes > size else 0.0,
            whole=whole,
            wanted=None if manner.mock else LONG,
        )
    if eye is not None:
        await eye.until_gone(_FREED_WITHIN)  # or the next probe would take this one for its own
    return measured


async def _watch(eye: ModelServerEye | None) -> list[tuple[float, State | None]]:
    if eye is None:
        await asyncio.sleep(STALLED_FOR)
        return []
    clock = asyncio.get_running_loop().time
    began, changed_at = clock(), 0.0
    samples: list[tuple[float, State | None]] = []
    while (at := clock() - began) < STALLED_FOR:
        state = await eye.look()
        if not samples or state != samples[-1][1]:
            changed_at = at
        samples.append((at, state))
        if at - changed_at > _UNCHANGED_FOR * (1 if state is not None else 0.3):
            break
        await asyncio.sleep(_LOOK_EVERY)
    return samples


async def _at_once(exchange: Exchange) -> bool:
    """Read what comes without a pause. True: the answer's end was among it."""
    stop = exchange.elapsed + 3.0
    while exchange.elapsed < stop:
        end = await exchange.read(_longer_than(len(exchange.recording.arrivals)), within=_AT_ONCE)
        if end != "enough":
            return end == "clean"
    return False


def _longer_than(count: int) -> Callable[[Recording], bool]:
    return lambda seen: len(seen.arrivals) > count


async def freed(asker: Asker, target: Target, manner: Manner) -> Freed:
    """Leave in mid-answer, and see how long it is before the server has noticed."""
    eye = manner.eye
    if eye is not None:
        await eye.remember()
    wanted = _request(target, max_tokens=LONG, **manner.extra)
    clock = asyncio.get_running_loop().time
    async with await asker.open(wanted, rcvbuf=SMALL) as exchange:
        if exchange.head.status != 200:
            raise await refusal(exchange, target.url)
        end = await exchange.read(lambda seen: seen.tokens > 2, within=_WITHIN)
        before = None if eye is None else await eye.look()
        if end != "enough":
            return Freed("", None, ended_early=True)
    began = clock()
    if eye is None:
        again = await shape(asker, target, include_usage=False)
        return Freed("", None, next_first_token=again.first_token)
    if before is None:
        return Freed(eye.name, None, ended_early=True)
    last = before
    while (now := await eye.look()) is not None and clock() - began < _FREED_WITHIN:
        last = now
        await asyncio.sleep(ASK_EVERY)
    made = None if last.tokens is None or before.tokens is None else last.tokens - before.tokens
    return Freed(eye.name, None if now is not None else clock() - began, made_after=made)

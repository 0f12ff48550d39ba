"""The mock source: readable text at a chosen pace, in bursts, without end, or breaking off, as asked.

Rule 1: a running generation is one suspended async generator and nothing more: no list, no task, no timer.
Rule 2: it generates only while somebody waits for it. After a pause it goes on at its pace, no faster.
Rule 3: a request that makes no sense is refused in ``tokens()``, before anything has started.
Rule 4: the same prompt and seed give the same tokens.
Rule 5: of several choices (``n``) the first is what it would be alone, and all go at its pace.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Final

import msgspec

from rawstream.errors import BadRequest, SourceFailed
from rawstream.model import Request, SourceItem, Token
from rawstream.sources.mock_text import LARGEST_BATCH, LOOP, TOKENS, start
from rawstream.sources.pacing import LONG_WAIT, Pacer, next_due
from rawstream.wire.json_body import check_count

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Rate = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
_Batch = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_BATCH)]

ENDLESS: Final = 2**62
MOST_CHOICES: Final = 8


class MockOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The request's ``"mock": {…}``."""

    tokens: _Count | None = 200
    """How many tokens; None is without end."""
    tokens_per_second: _Rate | None = 50.0
    """The pace; None is as fast as it is pulled."""
    batch: _Batch = 1
    """Tokens that become ready together."""
    suspend: bool = False
    """Give way to the event loop once per token."""
    first_token_seconds: _Seconds | None = None
    """How long the first token takes, in seconds; None is as long as the others."""
    seed: int | str = 0
    """Another seed is another answer to the same prompt."""
    fail_after: _Count | None = None
    """Raise ``SourceFailed`` after this many tokens."""


class MockStatistics(msgspec.Struct, frozen=True, gc=False):
    """What a mock source has done so far."""

    tokens: int
    """Tokens that were pulled, in all."""
    opened: int
    """Generations that began (their first token was asked for)."""
    closed: int
    """Generations that ended, in whatever way."""
    running: int
    peak_running: int


def options(request: Request) -> MockOptions:
    """The mock's options in a request. Raises ``BadRequest``, naming the field, when they make no sense."""
    try:
        return msgspec.convert(request.extra.get("mock", {}), MockOptions)
    except msgspec.ValidationError as error:
        raise BadRequest(f"mock: {str(error).replace('`$.', '`')}") from None


class MockSource:
    """A source that needs nothing. One instance serves any number of streams of one event loop."""

    def __init__(self, name: str = "mock") -> None:
        self.name = name
        self._tokens = 0
        self._opened = 0
        self._closed = 0
        self._peak = 0
        self._pacer: Pacer | None = None

    def tokens(self, request: Request) -> AsyncGenerator[SourceItem, None]:
        """A new generation. Raises ``BadRequest`` when ``mock`` or ``n`` in ``request.extra`` make no sense."""
        chosen = options(request)
        choices = check_count(request.extra.get("n"), "n", MOST_CHOICES) or 1
        total = ENDLESS if chosen.tokens is None else chosen.tokens
        last = None
        if request.max_tokens is not None and request.max_tokens < total:
            total, last = request.max_tokens, "length"
        fails = chosen.fail_after is not None and chosen.fail_after <= total
        if fails and chosen.fail_after is not None:
            total, last = chosen.fail_after, None
        at = start(request.prompt, chosen.seed)
        first = self._generate(chosen, at, total, last, fails)
        return first if choices == 1 else self._beside(first, at, choices)

    async def aclose(self) -> None:
        """Nothing is shared, so there is nothing to release."""

    def statistics(self) -> MockStatistics:
        """What was pulled and what runs, as of now."""
        return MockStatistics(self._tokens, self._opened, self._closed, self._opened - self._closed, self._peak)

    async def _generate(
        self, chosen: MockOptions, at: int, left: int, last: str | None, fails: bool
    ) -> AsyncGenerator[SourceItem, None]:
        """``left`` tokens from position ``at``, the last one saying ``last``; then, perhaps, the failure."""
        self._opened += 1
        self._peak = max(self._peak, self._opened - self._closed)
        interval = chosen.batch / chosen.tokens_per_second if chosen.tokens_per_second else 0.0
        batch, suspend, length = chosen.batch, chosen.suspend, len(TOKENS)
        unpaced = not interval and not suspend
        first = True
        try:
            pacer = self._pacer_here()
            due = now = pacer.loop.time()
            waited = chosen.first_token_seconds is not None
            if chosen.first_token_seconds is not None:
                due += chosen.first_token_seconds
                await pacer.wait_until(due)
            while left:
                if waited:
                    waited = False  # the first token has had its wait, however late that ended
                elif interval:
                    now = pacer.loop.time()
                    due = next_due(due, interval, now)
                    if due - now > LONG_WAIT:
                        await asyncio.sleep(due - now)
                    elif due > now:
                        await pacer.at(due)
                if suspend:
                    await asyncio.sleep(0)
                if first or left <= batch:
                    size = min(batch, left)
                    left -= size
                    self._tokens += size
                    yield _edge(LOOP[at : at + size], first, None if left else last)
                    first = False
                    at = (at + size) % length
                elif batch > 1:
                    left -= batch
                    self._tokens += batch
                    yield LOOP[at : at + batch]
                    at = (at + batch) % length
                else:
                    run = min(left - 1, length - at) if unpaced else 1
                    left -= run
                    for position in range(at, at + run):
                        self._tokens += 1
                        yield LOOP[position]
                    at = (at + run) % length
            if fails:
                raise SourceFailed("the mock source failed, as it was asked to (fail_after)")
        finally:
            self._closed += 1

    async def _beside(
        self, first: AsyncGenerator[SourceItem, None], at: int, choices: int
    ) -> AsyncGenerator[SourceItem, None]:
        """``first``, and beside each of its tokens one of every other choice, which starts further on in the text."""
        length, step = len(TOKENS), 0
        starts = [at + number * (length // choices) for number in range(1, choices)]
        async with aclosing(first):
            async for item in first:
                batch: list[str | Token] = []
                for token in (item,) if isinstance(item, str | Token) else item:
                    batch.append(token)
                    reason = token.finish_reason if isinstance(token, Token) else None
                    for index, start_at in enumerate(starts, 1):
                        text = TOKENS[(start_at + step) % length]
                        batch.append(Token(text if step else text.lstrip(), finish_reason=reason, index=index))
                    step += 1
                self._tokens += len(batch) - len(batch) // choices
                yield batch

    def _pacer_here(self) -> Pacer:
        loop = asyncio.get_running_loop()
        if self._pacer is None or self._pacer.loop is not loop:
            self._pacer = Pacer(loop)
        return self._pacer


def _edge(tokens: tuple[str, ...], first: bool, finish_reason: str | None) -> SourceItem:
    """The first item, without its leading space; the last, with its finish reason unless that is ``stop``."""
    items: list[str | Token] = list(tokens)
    if first:
        items[0] = tokens[0].lstrip()
    if finish_reason is not None:
        final = items[-1]
        items[-1] = Token(text=final if isinstance(final, str) else final.text, finish_reason=finish_reason)
    return items[0] if len(items) == 1 else items

"""Credit: a demand that is exact to the token, for clients that say what they have consumed.

Rule 1: the source has never made more than ``ahead`` tokens beyond what the client says it has consumed.
Rule 2: what the client says is a total and never falls, so that saying it twice, or late, changes nothing.
Rule 3: credit is a second permission, not another one: the response must have room too.
Rule 4: a client that waits for nothing is not waited for: whoever gives no credit is stalled (``owed``).

Theory of operation: TCP's buffers hide up to hundreds of KB of an answer from any server; what the client's kernel
has taken may never be read. Only the client knows what it has consumed. Where it says so, ``CreditSink`` stands
between the pump and the delivery and lets one token pass at a time, and none without credit; ``OneByOne`` hands a
source's batches on singly. A source that makes several tokens in one step is asked once for all of them; what there
is no credit for waits here, and is counted as the source's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import cast

from rawstream.errors import BadRequest, MisuseError
from rawstream.flow.meter import Meter
from rawstream.flow.pump import Sink
from rawstream.model import SourceItem, SourceStatistics, Token, TokenItem, TokenStream


class Credit:
    """How many tokens the client has asked for, in all."""

    __slots__ = ("_more", "ahead", "consumed")

    def __init__(self, ahead: int) -> None:
        """``ahead``: tokens that may be made beyond those consumed. Raises MisuseError below 1."""
        if ahead < 1:
            raise MisuseError(f"credit must be at least 1 token, not {ahead}")
        self.ahead = ahead
        self.consumed = 0
        """Tokens that the client says it has consumed, in all."""
        self._more: asyncio.Future[None] | None = None

    @property
    def limit(self) -> int:
        """Tokens that may be made, in all."""
        return self.consumed + self.ahead

    def grant(self, consumed: int, made: int) -> None:
        """The client has consumed ``consumed`` tokens in all, of ``made``. Less than before changes nothing.

        Raises BadRequest when it claims more than there were.
        """
        if consumed > made:
            raise BadRequest(f"{consumed} tokens cannot have been consumed: {made} were made so far")
        if consumed > self.consumed:
            self.consumed = consumed
            more, self._more = self._more, None
            if more is not None and not more.done():
                more.set_result(None)

    @property
    def owed(self) -> bool:
        """Does the source wait for credit?"""
        return self._more is not None

    async def wait(self, made: int) -> None:
        """Wait until token number ``made + 1`` may be made. Cancel-safe. One waiter."""
        while made >= self.limit:
            more = self._more = asyncio.get_running_loop().create_future()
            try:
                await more
            finally:
                if self._more is more:
                    self._more = None


class CreditSink:
    """A sink that has room for one token at a time, and only where there is credit for it."""

    __slots__ = ("_credit", "_meter", "_sink")

    def __init__(self, sink: Sink, credit: Credit, meter: Meter) -> None:
        """``meter`` counts the tokens of the stream that ``sink`` belongs to."""
        self._sink = sink
        self._credit = credit
        self._meter = meter

    @property
    def room(self) -> int:
        """1 or 0: any frame uses it up, and so credit is looked at before each token."""
        return 1 if self._meter.tokens < self._credit.limit and self._sink.room > 0 else 0

    async def wait_room(self) -> int:
        """Wait for credit, then for room. Raises what the sink raises. Cancel-safe."""
        meter, credit = self._meter, self._credit
        if meter.tokens >= credit.limit:
            meter.wait("client", monotonic())
            try:
                await credit.wait(meter.tokens)
            finally:
                meter.waited(monotonic())
        if self._sink.room <= 0:
            await self._sink.wait_room()
        return 1

    def put_nowait(self, frames: bytes, now: float) -> bool:
        return self._sink.put_nowait(frames, now)


class OneByOne:
    """A token stream that gives what another one gives, one token at a time."""

    __slots__ = ("_held", "_stream")

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream
        self._held: deque[TokenItem] = deque()

    def __aiter__(self) -> OneByOne:
        return self

    async def __anext__(self) -> SourceItem:
        """The next token. Cancel-safe as the stream underneath is."""
        while not self._held:
            item = await self._stream.__anext__()
            if isinstance(item, str | Token):
                return item
            self._held.extend(item)
        return self._held.popleft()

    async def aclose(self) -> None:
        """Close the stream underneath; what waits here is dropped. Idempotent."""
        self._held.clear()
        await self._stream.aclose()

    def statistics(self) -> SourceStatistics:
        """What the stream underneath holds, and what waits here (bytes of text and of raw events)."""
        held = sum(_size(item) for item in self._held)
        inner = getattr(self._stream, "statistics", None)
        if inner is None:
            return SourceStatistics(buffered=held, peak_buffered=held)
        below = cast(SourceStatistics, inner())
        return SourceStatistics(buffered=below.buffered + held, peak_buffered=below.peak_buffered + held)


def _size(item: TokenItem) -> int:
    text = item if isinstance(item, str) else item.text
    raw = b"" if isinstance(item, str) else item.raw or b""
    return len(text.encode("utf-8", "surrogatepass")) + len(raw)

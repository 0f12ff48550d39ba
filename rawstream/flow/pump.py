"""The heart: tokens from a source to a response, and never a token that nobody has room for.

Rule 1: permission before production. Wait until the response may take more, then ask the source, then encode, then
        write. What has been asked for and not yet been written counts against the permission.
Rule 2: where several tokens are ready, they go out together; the moment the source has to wait, what is ready goes.
Rule 3: no stream holds the event loop for longer than ``hold`` seconds, whether or not its source ever waits
        (``drain()`` on an unpaused transport does not yield).
Rule 4: a heartbeat goes out between two events, never while paused; it may come before the first token.
Rule 5: the head leaves with the first frame of either kind: the commit point.

Theory of operation: two halves with a sink between them. *Produce* (source → frames) drives the source's
``__anext__`` by hand for its first step. Either it returns a token at once, which is kept to be joined with the
next, or it is about to suspend: then what is kept is put into the sink, and only then does the task wait.
*Deliver* (frames → response) is the usual sink; a replay log can stand in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Sequence
from time import monotonic
from types import coroutine
from typing import Any, Final, Protocol, cast

from rawstream.errors import RawstreamError
from rawstream.flow.meter import Meter
from rawstream.flow.timings import Timings
from rawstream.model import Dialect, Headers, Response, SourceItem, Token, TokenItem, TokenStream

_SLICE: Final = 64
"""Tokens encoded at a time, however many one batch holds."""

_Step = Coroutine[Any, None, SourceItem]


class Sink(Protocol):
    """Where frames go. One producer."""

    @property
    def room(self) -> int:
        """Bytes that may be put before permission must be asked for again; 0: there is none now."""
        ...

    async def wait_room(self) -> int:
        """Wait for permission; return how far it goes, in bytes."""
        ...

    def put_nowait(self, frames: bytes, now: float) -> bool:
        """Take whole frames, at ``now``. Never waits. False: ask for permission before any more are put."""
        ...


@coroutine
def _rest_of(step: _Step, awaited: Any, meter: Meter, clock: Callable[[], float]) -> Generator[Any, Any, SourceItem]:
    """Await the rest of a step whose first part ran already and gave ``awaited`` to wait for.

    ``meter`` is told when the stream gets the loop back: what the step still does then is no waiting.
    """
    while True:
        try:
            yield awaited
        except GeneratorExit:
            step.close()
            raise
        except BaseException as error:
            meter.held_since = clock()
            try:
                awaited = step.throw(error)
            except StopIteration as done:
                return cast(SourceItem, done.value)
        else:
            meter.held_since = clock()
            try:
                awaited = step.send(None)
            except StopIteration as done:
                return cast(SourceItem, done.value)


@coroutine
def _abandon(step: _Step, meter: Meter, clock: Callable[[], float]) -> Generator[Any, Any, None]:
    """Cancel a step that waits, and await its end: a generator in the middle of a step cannot be closed."""
    try:
        awaited = step.throw(asyncio.CancelledError())
        yield from _rest_of(step, awaited, meter, clock)
    except (asyncio.CancelledError, Exception):
        pass  # over, in whatever way (a token, an end, a complaint): the error that led here is the one that is told


def count_tokens(items: Sequence[TokenItem]) -> int:
    """Tokens of text among ``items``: an upstream's role, finish and usage events are not tokens."""
    return len([None for item in items if item.__class__ is str or cast(Token, item).text])


async def produce(
    stream: TokenStream,
    dialect: Dialect,
    sink: Sink,
    meter: Meter,
    *,
    write_size: int,
    hold: float,
    clock: Callable[[], float] = monotonic,
) -> bytes:
    """Pull ``stream`` to its end through ``dialect`` into ``sink``; return the last frames, not put yet.

    They are returned so that they can leave in one write with the dialect's terminal event. Whatever ends the
    source, all that it gave before is put. Cancelling is safe: the source's own wait is cancelled. Closing
    ``stream`` is the caller's part (``aclosing``).
    """
    advance = cast(Callable[[], _Step], stream.__anext__)
    frames: list[bytes] = []  # encoded, and not put yet
    size = 0  # of them, in bytes
    allowance = 0  # bytes that may still be put before permission is asked for again
    limit = 0  # the size at which the frames are put: a write's, or what is left of the allowance
    large: Sequence[TokenItem] | None = None  # a batch of which only the part before ``at`` was encoded
    at = 0
    now = meter.held_since = held_since = clock()
    try:
        while True:
            if size >= limit:
                if size and allowance > 0:
                    allowance = allowance - size if sink.put_nowait(b"".join(frames), now) else 0
                    frames.clear()
                    size = 0
                if allowance <= 0:
                    allowance = sink.room
                    if allowance <= 0:
                        allowance = await sink.wait_room()
                        now = meter.held_since = held_since = clock()
                limit = allowance if allowance < write_size else write_size
                continue
            waited = False
            if large is None:
                step = advance()
                try:
                    awaited = step.send(None)
                except StopIteration as ready:
                    item: SourceItem = ready.value
                else:
                    now = clock()
                    if size:
                        try:
                            allowance = allowance - size if sink.put_nowait(b"".join(frames), now) else 0
                        except BaseException:
                            await _abandon(step, meter, clock)
                            raise
                        frames.clear()
                        size = 0
                        limit = allowance if allowance < write_size else write_size
                    meter.waiting_since = now
                    meter.waiting_for = "source"
                    item = await _rest_of(step, awaited, meter, clock)
                    held_since = meter.held_since
                    meter.source_seconds += held_since - now
                    meter.waiting_for = None
                    waited = True
                del step
                kind = item.__class__
                batch = cast("Sequence[TokenItem]", (item,) if kind is str or kind is Token else item)
                del item
                if len(batch) > _SLICE:
                    large, at = batch, 0
                    continue
            else:
                batch = large[at : at + _SLICE]
                at += _SLICE
                if at >= len(large):
                    large = None
            frame = dialect.encode(batch)
            if frame:
                meter.tokens += len(batch) if batch[0].__class__ is str else count_tokens(batch)
                frames.append(frame)
                size += len(frame)
            elif not batch:
                allowance = limit = 0  # others may have used what was allowed
            del batch
            del frame
            if waited:
                now = held_since
                continue
            now = clock()
            if now - held_since > hold:
                if size:
                    allowance = allowance - size if sink.put_nowait(b"".join(frames), now) else 0
                    frames.clear()
                    size = limit = 0
                await asyncio.sleep(0)
                meter.held_since = held_since = clock()
    except StopAsyncIteration:
        return b"".join(frames)
    except Exception:
        if size:
            sink.put_nowait(b"".join(frames), now)
        raise


class Delivery:
    """Frames → response, with backpressure: the sink of every ordinary stream."""

    __slots__ = ("_dialect", "_headers", "_may", "_response", "_timings", "last_write", "meter", "pausing")

    def __init__(
        self,
        response: Response,
        dialect: Dialect,
        meter: Meter,
        headers: Headers,
        pausing: asyncio.Event | None = None,
        timings: Timings | None = None,
    ) -> None:
        """``pausing``, when given and not set, keeps the source waiting whatever the response says.

        ``timings``: where it is counted how long each write took to come about.
        """
        self._response = response
        self._dialect = dialect
        self._headers = headers
        self.meter = meter
        self.pausing = pausing
        self._timings = timings
        self._may = 0
        """Bytes that may be passed on before permission is asked for again."""
        self.last_write = meter.started_at

    @property
    def committed(self) -> bool:
        """Has the head left?"""
        return self.meter.committed

    @property
    def room(self) -> int:
        """Bytes that may be written now; 0: wait."""
        if self.pausing is not None and not self.pausing.is_set():
            return 0
        return self._response.room

    async def wait_room(self) -> int:
        """Permission, and how far it goes in bytes. Raises when the client is gone. Cancel-safe."""
        response = self._response
        if self.pausing is not None and not self.pausing.is_set():
            self.meter.wait("client", monotonic())
            await self.pausing.wait()
            self.meter.waited(monotonic())
        room = response.room
        while room <= 0:
            self.meter.wait("client", monotonic())
            await response.wait_writable()
            self.meter.waited(monotonic())
            room = response.room
        return room

    def _commit(self) -> bytes:
        self.meter.committed = True
        self._response.start(200, self._headers)
        return self._dialect.head()

    def put_nowait(self, frames: bytes, now: float) -> bool:
        """Write whole frames at ``now``; the first write carries the head. False: permission must be asked for."""
        if not frames:
            return True
        self._may = 0
        meter = self.meter
        if meter.first_write_at is None:
            if not meter.committed:
                frames = self._commit() + frames
            meter.first_write_at = now
        may_go_on = self._response.write_nowait(frames)
        if self._timings is not None:
            meter.time_write(self._timings, now)
        self.last_write = now
        meter.writes += 1
        meter.bytes += len(frames)
        return may_go_on

    def pass_on(self, frames: bytes, tokens: int, came_at: float) -> bool:
        """Write whole frames for the stream while it waits for its source: whoever has them has them written.

        ``came_at``: when they came. False: nothing was written, since the stream does something else, there is no
        room for all of them, or the client is gone; the stream must see to it itself. Never waits, never raises.
        """
        meter = self.meter
        size = len(frames)
        may = self._may
        if may < size:
            may = self.room
        if may < size or meter.waiting_for != "source" or (self.pausing is not None and not self.pausing.is_set()):
            return False
        meter.held_since = came_at
        meter.tokens += tokens
        try:
            self._may = may - size if self.put_nowait(frames, monotonic()) else 0
        except Exception:
            # Whatever it is, it is this stream's trouble, which meets it itself, and not of whoever has the frames.
            meter.tokens -= tokens
            return False
        return True

    def settle(self) -> None:
        """Bring the timings up to date."""
        if self._timings is not None:
            self.meter.settle(self._timings)

    def heartbeat(self) -> bool:
        """Send one, if the dialect has one, the source is what we wait for, and there is room. False: none was sent."""
        beat = self._dialect.heartbeat
        if not beat or self.meter.waiting_for != "source" or self._response.room <= 0:
            return False
        if not self.meter.committed:
            beat = self._commit() + beat
        self._may = 0
        self._response.write_nowait(beat)
        self.last_write = monotonic()
        self.meter.bytes += len(beat)
        return True

    async def finish(self, frames: bytes, finish_reason: str | None = None, reason: str | None = None) -> None:
        """The last frames, the terminal event (``Dialect.terminal``) and the clean end of the body, in one write."""
        begin = b"" if self.meter.committed else self._commit()
        await self._finish(begin + frames + self._dialect.terminal(finish_reason, reason))

    async def stop(self, reason: str) -> None:
        """The end of an answer that was stopped on purpose, as the dialect tells it, and the clean end of the body."""
        begin = b"" if self.meter.committed else self._commit()
        await self._finish(begin + self._dialect.stopped(reason))

    async def _finish(self, last: bytes) -> None:
        meter = self.meter
        now = monotonic()
        if self._timings is not None:
            meter.time_write(self._timings, now)
        self.last_write = now
        if meter.first_write_at is None:
            meter.first_write_at = now
        meter.bytes += len(last)
        meter.writes += 1
        meter.waited(now)  # for the source's end
        meter.wait("client", now)
        try:
            await self._response.finish(last)
        finally:
            meter.waited(monotonic())

    async def fail(self, error: RawstreamError) -> None:
        """After the commit point: the in-stream error where the dialect has one, then the framing cut short."""
        last = self._dialect.error(str(error), error.code)
        self.meter.bytes += len(last)
        await self._response.cut(last)

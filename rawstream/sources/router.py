"""Several upstreams as one source: chosen by model and weight, tried again and given up where that helps.

Rule 1: an attempt ends with its first token. What comes after it is the client's; nothing is tried a second time.
        The client's 200 ends it too, which a heartbeat may bring (``Request.is_committed``).
Rule 2: an upstream that was not tried yet is gone to at once; going back to one waits, and takes from its budget.
Rule 3: one deadline bounds all attempts of a request together.
Rule 4: once tokens flow, this module is not in their way: each step is the upstream stream's own.
Rule 5: the log names upstreams, never keys. Clients are told neither, but for who owns a model in a list.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import msgspec

from rawstream.errors import ModelNotFound, RawstreamError, SettingsError
from rawstream.model import NO_SIGNALS, Request, SourceItem, SourceStatistics, Usage
from rawstream.settings import Settings
from rawstream.sources import attempts
from rawstream.sources.course import Course
from rawstream.sources.model_list import merged_models
from rawstream.sources.upstream import UpstreamStream
from rawstream.sources.upstreams import Permit, Upstream, upstreams_of

T = TypeVar("T")
_LONGEST_NAME: Final = 100
"""Characters of a model's name that an error repeats."""
_MOST_NAMES: Final = 50


class RoutedSource:
    """Tokens from whichever upstream serves the model and is well. Serves one event loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = random.random,
    ) -> None:
        """``settings`` must name an upstream. Raises SettingsError when one of them is unusable."""
        self.name = "upstream"
        self._settings = settings
        self.clock = clock
        self._sleep = sleep
        self._random = random
        self.upstreams = [Upstream(own, settings, clock()) for own in upstreams_of(settings)]
        if not self.upstreams:
            raise SettingsError("no upstream is named")
        self._offers = [upstream.own.models for upstream in self.upstreams]
        self._created = int(time.time())

    # --- the source

    def tokens(self, request: Request) -> RoutedStream:
        """A new generation; where it goes is decided with the first demand."""
        request.signals = NO_SIGNALS  # no upstream takes any, and who sends some is to be told
        return RoutedStream(self, request)

    async def complete(self, request: Request) -> bytes:
        """The whole answer: an upstream's JSON, untouched. Raises as ``RoutedStream.__anext__``. Cancelling is safe."""
        return await self.attempt(request, self._complete_at)

    async def models(self) -> bytes:
        """The body of ``GET /v1/models``: the one upstream's own, or that of all together. Cancelling is safe.

        Raises what the last upstream raised when none of them could tell.
        """
        if len(self.upstreams) == 1 and self.upstreams[0].own.models == ("*",):
            return await self.upstreams[0].source.models()
        offers = [(upstream.own, upstream.source.models) for upstream in self.upstreams]
        return await merged_models(offers, self._created)

    async def aclose(self) -> None:
        """Close all connections to all upstreams."""
        for upstream in self.upstreams:
            await upstream.source.aclose()

    async def _complete_at(self, upstream: Upstream, permit: Permit, request: Request, due: float) -> bytes:
        ended: BaseException | None = None
        try:
            return await upstream.source.complete(request, due=due)
        except BaseException as error:
            ended = error
            raise
        finally:
            upstream.ended(permit, self.clock(), ended)

    # --- who serves a model

    def fitting(self, request: Request) -> tuple[list[Upstream], Request]:
        """The upstreams that serve the request's model, and the request with that model. Raises ModelNotFound."""
        model = request.model or self._settings.upstream_model
        if model is None:
            first = self.upstreams[0]
            model = next((name for name in first.own.models if "*" not in name), None)
            if model is None:
                anybody = [upstream for upstream in self.upstreams if "*" in upstream.own.models]
                return (anybody if first in anybody else [first]), request
        found = attempts.closest(self._offers, model)
        if not found:
            known = list(dict.fromkeys(name for upstream in self.upstreams for name in upstream.own.models))
            shown = ", ".join(known[:_MOST_NAMES]) + (", …" if len(known) > _MOST_NAMES else "")
            raise ModelNotFound(f"no upstream serves the model {model[:_LONGEST_NAME]!r}; there are: {shown}")
        if request.model != model:
            request = msgspec.structs.replace(request, model=model)
        return [self.upstreams[index] for index in found], request

    # --- attempts

    async def attempt(
        self, request: Request, go: Callable[[Upstream, Permit, Request, float], Coroutine[Any, Any, T]]
    ) -> T:
        """What ``go(upstream, permit, request, due)`` gives at the first upstream where it succeeds.

        ``due`` is by when the answer must have begun (the loop's clock). Raises ModelNotFound, UpstreamUnavailable, or
        what the attempts came to. Cancelling is safe: it ends a wait, or an attempt, at once.
        """
        fitting, request = self.fitting(request)
        due_in = fitting[0].timeout
        if len(fitting) > 1:
            order = attempts.weighted_order([upstream.own.weight for upstream in fitting], self._random)
            fitting = [fitting[index] for index in order]
            due_in = max(upstream.timeout for upstream in fitting)
        course = Course(fitting, self._settings, self.clock, self._random)
        loop_time = asyncio.get_running_loop().time
        due = loop_time() + due_in
        upstream, permit = course.first()
        while True:
            try:
                limit = min(due, loop_time() + upstream.timeout)
                return await go(upstream, permit, upstream.asked(request), limit)
            except RawstreamError as error:
                course.failed(upstream, error)
                over = not attempts.is_retryable(error) or request.is_committed()
            step = None if over else course.next(due - loop_time())
            if step is None:
                raise course.verdict()
            upstream, wait = step
            if wait > 0:
                await self._sleep(wait)
                if request.is_committed():
                    raise course.verdict()
            admitted = course.admit(upstream)
            if admitted is None:
                raise course.verdict()
            permit = admitted


class RoutedStream:
    """One generation. Its first step finds the upstream; all others are that upstream's."""

    __slots__ = ("_inner", "_request", "_source")

    def __init__(self, source: RoutedSource, request: Request) -> None:
        self._source = source
        self._request: Request | None = request
        self._inner: UpstreamStream | None = None

    def __aiter__(self) -> RoutedStream:
        return self

    def __anext__(self) -> Coroutine[Any, Any, SourceItem]:
        """The tokens of the next read. Raises ModelNotFound, UpstreamUnavailable, UpstreamFailed, UpstreamIdle,
        UpstreamRejected. Cancelling is safe: it ends the generation, a wait between attempts too.
        """
        inner = self._inner
        return self._first() if inner is None or self._request is not None else inner.__anext__()

    @property
    def usage(self) -> Usage | None:
        """What the upstream counted, as it told last."""
        return None if self._inner is None else self._inner.usage

    def statistics(self) -> SourceStatistics:
        """What the upstream's stream holds."""
        return SourceStatistics() if self._inner is None else self._inner.statistics()

    async def aclose(self) -> None:
        """Stop the generation: its connection is closed at once. Idempotent."""
        self._request = None
        if self._inner is not None:
            await self._inner.aclose()

    async def _first(self) -> SourceItem:
        request = self._request
        if request is None:
            raise StopAsyncIteration
        try:
            return await self._source.attempt(request, self._begin)
        finally:
            self._request = None

    async def _begin(self, upstream: Upstream, permit: Permit, request: Request, due: float) -> SourceItem:
        clock = self._source.clock
        self._inner = stream = upstream.source.tokens(
            request, due=due, on_end=lambda error: upstream.ended(permit, clock(), error)
        )
        item = await stream.__anext__()
        upstream.answered(permit)
        return item

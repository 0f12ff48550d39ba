"""``/v1/chat/completions`` and ``/v1/models``: OpenAI's wire.

Rule 1: what an upstream said is relayed whole. A non-streaming answer of an upstream is its own JSON, untouched.
Rule 2: errors before the commit point have a real status, OpenAI's JSON, and the headers that SDKs obey.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable
from contextlib import aclosing
from time import monotonic
from typing import Final

import msgspec

from rawstream.errors import ClientError, LimitReached, RawstreamError, SourceFailed, StreamDeadline, UpstreamRejected
from rawstream.flow.interrupt import Interruption
from rawstream.flow.pump import count_tokens
from rawstream.limits.budget import Lease
from rawstream.model import CompletionSource, Outcome, Request, Source, Token, Usage
from rawstream.server.exchange import Exchange, error_headers
from rawstream.server.leaving import CANCEL, Asked
from rawstream.server.resuming import Resuming
from rawstream.server.router import Router
from rawstream.server.spending import Tab
from rawstream.server.streams import Streams
from rawstream.server.traces import begin_trace
from rawstream.sources.limited import limited
from rawstream.wire import openai
from rawstream.wire.answer_limits import limits_of
from rawstream.wire.json_body import BadField, check_count
from rawstream.wire.openai_requests import decode_request


def _error_type(error: RawstreamError) -> str:
    if isinstance(error, LimitReached):
        return "rate_limit_error" if error.status == 429 else "server_error"
    return "invalid_request_error" if isinstance(error, ClientError) else "server_error"


def refusal(error: RawstreamError) -> tuple[list[tuple[str, str]], bytes]:
    """OpenAI's error body, or the upstream's own, and the headers that SDKs obey."""
    headers = error_headers(error)
    body: bytes | None = None
    if isinstance(error, UpstreamRejected):
        told = {name for name, _ in headers}
        headers.extend(header for header in error.headers if header[0].lower() not in told)
        body = error.body
    if body is None:
        param = error.param if isinstance(error, BadField) else None
        body = openai.error_body(str(error), _error_type(error), error.code, param)
    return headers, body


MAX_ANSWER: Final = 4 * 1024 * 1024
"""Characters that are collected for an answer that is not streamed: the one place that holds a whole answer."""


MOST_WHOLE: Final = 4096
"""Tokens that are set aside for an answer which is not streamed, and whose client names no limit."""


class _Counted(msgspec.Struct):
    usage: Usage | None = None


def completion_tokens(body: bytes) -> int | None:
    """What the upstream counted for a whole answer; None: it does not say."""
    try:
        usage = msgspec.json.decode(body, type=_Counted).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if usage is None else max(0, usage.completion_tokens)


async def capped(request: Request, tab: Tab, lease: Lease) -> int:
    """Hold a request for a whole answer to what its user may have: the tokens that its choices may come to.

    An upstream's answer cannot be ended when its budget is spent, so that its limit is set before.
    """
    limits = limits_of(request)
    choices = check_count(request.extra.get("n"), "n") or 1
    wanted = MOST_WHOLE if limits is None or limits.max_tokens is None else limits.max_tokens
    await tab.lease_for(wanted * choices)
    each = max(1, min(wanted, lease.granted // choices))
    if request.extra.get("max_completion_tokens") is not None:
        request.extra = {**request.extra, "max_completion_tokens": each}
        request.max_tokens = None
    else:
        request.max_tokens = each
    return each * choices


class CompletionEndpoints:
    """The handlers, over one source and one registry of streams."""

    def __init__(self, streams: Streams, source: Source, resuming: Resuming) -> None:
        self.streams = streams
        self.source = source
        self.resuming = resuming
        self._started = int(time.time())

    def register(self, router: Router) -> None:
        router.add("POST", "/v1/chat/completions", self.completions, json=True, refusal=refusal, access="generate")
        router.add("GET", "/v1/models", self.models, refusal=refusal)

    def completions(self, exchange: Exchange) -> Awaitable[None]:
        request, stream, include_usage = decode_request(exchange.content)
        source = limited(self.source, request)
        asked = Asked.of(exchange, request, CANCEL)
        if not stream:
            return self._whole(exchange, request, source)
        created = int(time.time())
        model = request.model or self.source.name

        def dialect_of(stream_id: str) -> openai.OpenAIChat:
            return openai.OpenAIChat(
                id=f"chatcmpl-{stream_id}", created=created, model=model, include_usage=include_usage
            )

        return self.resuming.run(exchange, request, source, dialect_of, asked)

    async def _whole(self, exchange: Exchange, request: Request, source: Source) -> None:
        """A non-streaming answer. The client leaving cancels it as it would a stream."""
        if exchange.user is None:
            body = await self._made(exchange, request, source, None)
        else:
            tab = await self.streams.spending.open(exchange.user, self.streams.model_of(request, source))
            try:
                body = await self._made(exchange, request, source, tab)
                self.streams.totals.of_user(tab.user.name).spent(tab.used, tab.used)
            finally:
                await self.streams.spending.close(tab)
        await exchange.respond_json(body)

    async def _made(self, exchange: Exchange, request: Request, source: Source, tab: Tab | None) -> bytes:
        connection = exchange.connection
        interruption = Interruption()
        self.streams.whole.enter(interruption)
        connection.stream_begins(interruption.interrupt)
        timeout = self.streams.settings.stream_timeout
        late = StreamDeadline(f"the answer took longer than {timeout:g} s")
        trace = begin_trace(self.streams.tracing, request, exchange.head, exchange.path)
        outcome = Outcome.SHUTDOWN
        connection.set_deadline(monotonic() + timeout, lambda: interruption.interrupt(late))
        try:
            async with interruption:
                body = await self._whole_body(request, source, tab)
            outcome = Outcome.COMPLETED
            if trace is not None:
                trace.answered(body)
        except RawstreamError as error:
            outcome = Outcome(error.outcome)
            raise
        except Exception:
            outcome = Outcome.SOURCE_FAILED
            raise
        finally:
            if trace is not None:
                trace.ended(outcome, None)
            connection.stream_ends()
            self.streams.whole.leave(interruption)
        return body

    async def _whole_body(self, request: Request, source: Source, tab: Tab | None) -> bytes:
        if isinstance(source, CompletionSource):
            if tab is None or tab.lease is None:
                body = await source.complete(request)
                if tab is not None:
                    tab.used = completion_tokens(body) or 0
                return body
            most = await capped(request, tab, tab.lease)
            body = await source.complete(request)
            told = completion_tokens(body)
            tab.used = most if told is None else told
            return body
        tokens: list[str | Token] = []
        size = passed = 0
        spent: LimitReached | None = None
        hold, held_since = self.streams.settings.hold, monotonic()
        async with aclosing(source.tokens(request)) as stream:
            async for item in stream:
                batch = (item,) if isinstance(item, str | Token) else item
                size += sum(len(token if isinstance(token, str) else token.text) for token in batch)
                if size > MAX_ANSWER:
                    raise SourceFailed(f"the answer is longer than {MAX_ANSWER} characters; ask for a stream")
                tokens.extend(batch)
                if tab is not None:
                    passed += count_tokens(batch)
                    tab.count(passed, whole=False)
                    spent = await tab.lease_for(passed + 1)
                    if spent is not None:
                        break
                if len(tokens) > MAX_ANSWER:
                    raise SourceFailed(f"the answer has more than {MAX_ANSWER} tokens; ask for a stream")
                if monotonic() - held_since > hold:
                    await asyncio.sleep(0)
                    held_since = monotonic()
        return openai.whole_answer(
            tokens,
            id=f"chatcmpl-{secrets.token_hex(12)}",
            model=request.model or self.source.name,
            created=int(time.time()),
            finish_reason=None if spent is None else "length",
            reason=None if spent is None else spent.code,
        )

    async def models(self, exchange: Exchange) -> None:
        if isinstance(self.source, CompletionSource):
            body = await self.source.models()
        else:
            body = openai.models_body([self.source.name], created=self._started)
        await exchange.respond_json(body)

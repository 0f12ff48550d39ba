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

from rawstream.errors import ClientError, LimitReached, RawstreamError, SourceFailed, StreamDeadline, UpstreamRejected
from rawstream.flow.interrupt import Interruption
from rawstream.model import CompletionSource, Outcome, Request, Source, Token
from rawstream.server.exchange import Exchange, error_headers
from rawstream.server.router import Router
from rawstream.server.streams import Streams
from rawstream.server.traces import begin_trace
from rawstream.sources.limited import limited
from rawstream.wire import openai
from rawstream.wire.json_body import BadField
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


class CompletionEndpoints:
    """The handlers, over one source and one registry of streams."""

    def __init__(self, streams: Streams, source: Source) -> None:
        self.streams = streams
        self.source = source
        self._started = int(time.time())

    def register(self, router: Router) -> None:
        router.add("POST", "/v1/chat/completions", self.completions, json=True, refusal=refusal)
        router.add("GET", "/v1/models", self.models, refusal=refusal)

    def completions(self, exchange: Exchange) -> Awaitable[None]:
        request, stream, include_usage = decode_request(exchange.content)
        source = limited(self.source, request)
        if not stream:
            return self._whole(exchange, request, source)
        created = int(time.time())
        model = request.model or self.source.name

        def dialect_of(stream_id: str) -> openai.OpenAIChat:
            return openai.OpenAIChat(
                id=f"chatcmpl-{stream_id}", created=created, model=model, include_usage=include_usage
            )

        return self.streams.run(exchange, request, source, dialect_of)

    async def _whole(self, exchange: Exchange, request: Request, source: Source) -> None:
        """A non-streaming answer. The client leaving cancels it as it would a stream."""
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
                body = await self._whole_body(request, source)
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
        await exchange.respond_json(body)

    async def _whole_body(self, request: Request, source: Source) -> bytes:
        if isinstance(source, CompletionSource):
            return await source.complete(request)
        tokens: list[str | Token] = []
        size = 0
        hold, held_since = self.streams.settings.hold, monotonic()
        async with aclosing(source.tokens(request)) as stream:
            async for item in stream:
                batch = (item,) if isinstance(item, str | Token) else item
                size += sum(len(token if isinstance(token, str) else token.text) for token in batch)
                if size > MAX_ANSWER:
                    raise SourceFailed(f"the answer is longer than {MAX_ANSWER} characters; ask for a stream")
                tokens.extend(batch)
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
        )

    async def models(self, exchange: Exchange) -> None:
        if isinstance(self.source, CompletionSource):
            body = await self.source.models()
        else:
            body = openai.models_body([self.source.name], created=self._started)
        await exchange.respond_json(body)

"""``/v1/chat/completions`` and ``/v1/models``: OpenAI's wire.

Rule 1: what an upstream said is relayed whole. A non-streaming answer of an upstream is its own JSON, untouched.
Rule 2: errors before the commit point have a real status, OpenAI's JSON, and the headers that SDKs obey.
"""

from __future__ import annotations

import secrets
import time
from contextlib import aclosing

from rawstream.errors import ClientError, LimitReached, RawstreamError, UpstreamRejected
from rawstream.flow.interrupt import Interruption
from rawstream.model import CompletionSource, Request, Source, Token, TokenStream
from rawstream.server.exchange import Exchange
from rawstream.server.router import Router
from rawstream.server.streams import Streams
from rawstream.wire import openai


def _error_type(error: RawstreamError) -> str:
    if isinstance(error, LimitReached):
        return "rate_limit_error" if error.status == 429 else "server_error"
    return "invalid_request_error" if isinstance(error, ClientError) else "server_error"


async def refuse(exchange: Exchange, error: RawstreamError) -> None:
    """Answer with OpenAI's error body, or with the upstream's own."""
    headers: list[tuple[str, str]] = []
    body: bytes | None = None
    if isinstance(error, UpstreamRejected):
        headers.extend(
            header for header in error.headers if header[0].lower() != "retry-after" or not error.retry_after
        )
        body = error.body
    if error.code == "insufficient_quota":
        headers.append(("x-should-retry", "false"))
    if body is None:
        body = openai.error_body(str(error), _error_type(error), error.code)
    await exchange.refuse(error, body, headers)


class CompletionEndpoints:
    """The handlers, over one source and one registry of streams."""

    def __init__(self, streams: Streams, source: Source) -> None:
        self.streams = streams
        self.source = source
        self._started = int(time.time())

    def register(self, router: Router) -> None:
        router.add("POST", "/v1/chat/completions", self.completions, json=True)
        router.add("GET", "/v1/models", self.models)

    async def completions(self, exchange: Exchange) -> None:
        try:
            request, stream, include_usage = openai.decode_request(exchange.content)
            if stream:
                await self._stream(exchange, request, include_usage)
            else:
                await self._whole(exchange, request)
        except RawstreamError as error:
            if exchange.started:
                raise
            await refuse(exchange, error)

    async def _stream(self, exchange: Exchange, request: Request, include_usage: bool) -> None:
        created = int(time.time())
        model = request.model or self.source.name

        def tokens_of(stream_id: str) -> TokenStream:
            request.id = stream_id
            return self.source.tokens(request)

        def dialect_of(stream_id: str) -> openai.OpenAIChat:
            return openai.OpenAIChat(
                id=f"chatcmpl-{stream_id}", created=created, model=model, include_usage=include_usage
            )

        await self.streams.run(exchange, tokens_of, dialect_of, refuse=refuse)

    async def _whole(self, exchange: Exchange, request: Request) -> None:
        """A non-streaming answer. The client leaving cancels it as it would a stream."""
        connection = exchange.connection
        interruption = Interruption()
        self.streams.admission.enter()
        connection.interrupt = interruption.interrupt
        try:
            async with interruption:
                body = await self._whole_body(request)
        finally:
            connection.interrupt = None
            self.streams.admission.leave()
        await exchange.respond_json(body)

    async def _whole_body(self, request: Request) -> bytes:
        if isinstance(self.source, CompletionSource):
            return await self.source.complete(request)
        tokens: list[str | Token] = []
        async with aclosing(self.source.tokens(request)) as stream:
            async for item in stream:
                tokens.extend((item,) if isinstance(item, str | Token) else item)
        return openai.whole_answer(
            tokens,
            id=f"chatcmpl-{secrets.token_hex(12)}",
            model=request.model or self.source.name,
            created=int(time.time()),
        )

    async def models(self, exchange: Exchange) -> None:
        if isinstance(self.source, CompletionSource):
            try:
                body = await self.source.models()
            except RawstreamError as error:
                await refuse(exchange, error)
                return
        else:
            body = openai.models_body([self.source.name], created=self._started)
        await exchange.respond_json(body)

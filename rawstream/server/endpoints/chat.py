"""``/chat``, ``/stream`` and ``/text``: rawstream's own three ways to stream an answer."""

from __future__ import annotations

from collections.abc import Callable

from rawstream.model import Dialect, Request, Source, TokenStream
from rawstream.server.exchange import Exchange
from rawstream.server.router import Router
from rawstream.server.streams import Discipline, Streams, with_backpressure
from rawstream.wire.chat_tokens import ChatTokens
from rawstream.wire.event_source import EventSource
from rawstream.wire.json_body import decode_chat, from_query
from rawstream.wire.plain_text import PlainText


class ChatEndpoints:
    """The handlers, over one source and one registry of streams."""

    def __init__(self, streams: Streams, source: Source) -> None:
        self.streams = streams
        self.source = source

    def register(self, router: Router) -> None:
        router.add("POST", "/chat", self.chat, json=True)
        router.add("GET", "/stream", self.event_source)
        router.add("POST", "/text", self.text, json=True)
        router.add("GET", "/text", self.text)

    async def chat(self, exchange: Exchange) -> None:
        await self.stream(exchange, decode_chat(exchange.content), lambda _: ChatTokens())

    async def text(self, exchange: Exchange) -> None:
        head = exchange.head
        request = decode_chat(exchange.content) if head.method == "POST" else from_query(head.query)
        await self.stream(exchange, request, lambda _: PlainText())

    async def event_source(self, exchange: Exchange) -> None:
        """For ``EventSource``: a client that has seen the end of its stream must not start another one."""
        last = exchange.head.header("last-event-id")
        if last is not None and last.endswith(".end"):
            await exchange.respond(204, ())
            return
        await self.stream(exchange, from_query(exchange.head.query), EventSource)

    async def stream(
        self,
        exchange: Exchange,
        request: Request,
        dialect_of: Callable[[str], Dialect],
        *,
        discipline: Discipline = with_backpressure,
        lab: bool = False,
    ) -> None:
        """Answer with a stream of ``request``'s tokens; HEAD gets the head that the stream would have."""
        if exchange.head.method == "HEAD":
            exchange.start(200, dialect_of("0").headers)
            await exchange.finish()
            return

        def tokens_of(stream_id: str) -> TokenStream:
            request.id = stream_id
            return self.source.tokens(request)

        await self.streams.run(exchange, tokens_of, dialect_of, discipline=discipline, lab=lab)

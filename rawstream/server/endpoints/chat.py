"""``/chat``, ``/stream`` and ``/text``: rawstream's own three ways to stream an answer.

The handlers are plain functions that return the coroutine of the stream: nothing of the request stays in memory
while the answer runs.
"""

from __future__ import annotations

from collections.abc import Awaitable

from rawstream.model import Source
from rawstream.server.exchange import Exchange
from rawstream.server.router import Router
from rawstream.server.streams import Discipline, Streams
from rawstream.sources.limited import limited
from rawstream.wire.chat_tokens import ChatTokens
from rawstream.wire.event_source import EventSource
from rawstream.wire.json_body import decode_chat, from_query
from rawstream.wire.plain_text import PlainText


def chat_tokens(stream_id: str) -> ChatTokens:
    """The dialect of ``/chat``, which does not show the stream's id."""
    return ChatTokens()


def plain_text(stream_id: str) -> PlainText:
    return PlainText()


class ChatEndpoints:
    """The handlers, over one source and one registry of streams."""

    def __init__(self, streams: Streams, source: Source) -> None:
        self.streams = streams
        self.source = source

    def register(self, router: Router) -> None:
        router.add("POST", "/chat", self.chat, json=True, access="generate")
        router.add("GET", "/stream", self.event_source, access="generate")
        router.add("POST", "/text", self.text, json=True, access="generate")
        router.add("GET", "/text", self.text, access="generate")

    def chat(self, exchange: Exchange, discipline: Discipline | None = None) -> Awaitable[None]:
        request = decode_chat(exchange.content)
        return self.streams.run(exchange, request, limited(self.source, request), chat_tokens, discipline)

    def text(self, exchange: Exchange) -> Awaitable[None]:
        head = exchange.head
        request = decode_chat(exchange.content) if head.method == "POST" else from_query(head.query)
        return self.streams.run(exchange, request, limited(self.source, request), plain_text)

    def event_source(self, exchange: Exchange) -> Awaitable[None]:
        """For ``EventSource``: a client that has seen the end of its stream must not start another one."""
        head = exchange.head
        last = head.header("last-event-id")
        if last is not None and last.endswith(".end"):
            return exchange.respond(204, ())
        request = from_query(head.query)
        return self.streams.run(exchange, request, limited(self.source, request), EventSource)

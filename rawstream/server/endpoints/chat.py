"""``/chat``, ``/stream`` and ``/text``: rawstream's own three ways to stream an answer.

The handlers are plain functions that return the coroutine of the stream: nothing of the request stays in memory
while the answer runs.
"""

from __future__ import annotations

from collections.abc import Awaitable

from rawstream.model import Request, Source
from rawstream.replay.log import FellBehind
from rawstream.server.exchange import Exchange
from rawstream.server.leaving import CANCEL, Asked, refuse_resuming
from rawstream.server.resuming import Resuming
from rawstream.server.router import Router
from rawstream.server.streams import Discipline, Streams
from rawstream.sources.limited import limited
from rawstream.wire.chat_tokens import ChatTokens
from rawstream.wire.event_source import EventSource, retry_of
from rawstream.wire.json_body import decode_chat, from_query
from rawstream.wire.plain_text import PlainText


def chat_tokens(stream_id: str) -> ChatTokens:
    """The dialect of ``/chat``, which does not show the stream's id."""
    return ChatTokens()


def numbered_tokens(stream_id: str) -> EventSource:
    """The dialect of a ``/chat`` that can be resumed: each event has an id."""
    return EventSource(stream_id, retry_ms=None)


def events(stream_id: str) -> EventSource:
    """The dialect of ``/stream``. Each stream's clients are told a time of their own to come back after."""
    return EventSource(stream_id, retry_of(stream_id))


def plain_text(stream_id: str) -> PlainText:
    return PlainText()


class ChatEndpoints:
    """The handlers, over one source and one registry of streams."""

    def __init__(self, streams: Streams, source: Source, resuming: Resuming) -> None:
        self.streams = streams
        self.source = source
        self.resuming = resuming

    def register(self, router: Router) -> None:
        router.add("POST", "/chat", self.chat, json=True, access="generate")
        router.add("GET", "/stream", self.event_source, access="generate")
        router.add("POST", "/text", self.text, json=True, access="generate")
        router.add("GET", "/text", self.text, access="generate")

    def chat(self, exchange: Exchange, discipline: Discipline | None = None) -> Awaitable[None]:
        request = decode_chat(exchange.content)
        if discipline is not None:
            return self.streams.run(exchange, request, limited(self.source, request), chat_tokens, discipline)
        last = exchange.head.header("last-event-id")
        return self._begin(exchange, request) if last is None else self._after(exchange, request, last)

    def _begin(self, exchange: Exchange, request: Request) -> Awaitable[None]:
        asked = Asked.of(exchange, request, CANCEL)
        dialect_of = numbered_tokens if asked.resumable else chat_tokens
        return self.resuming.run(exchange, request, limited(self.source, request), dialect_of, asked)

    async def _after(self, exchange: Exchange, request: Request, last: str) -> None:
        if not await self.resuming.after(exchange, last):
            answering = self._begin(exchange, request)
            del request
            await answering

    def text(self, exchange: Exchange) -> Awaitable[None]:
        head = exchange.head
        request = decode_chat(exchange.content) if head.method == "POST" else from_query(head.query)
        refuse_resuming(exchange, request, "plain text has no event ids to resume by; use /chat or /stream")
        return self.streams.run(exchange, request, limited(self.source, request), plain_text)

    async def event_source(self, exchange: Exchange) -> None:
        """For ``EventSource``: a client that comes back goes on where it was; who has seen the end gets 204."""
        head = exchange.head
        last = head.header("last-event-id")
        try:
            if last is not None and await self.resuming.after(exchange, last):
                return
        except FellBehind:
            if self.resuming.default() != CANCEL:
                raise
            # Where answers are not kept (resume_grace = 0) EventSource knows nothing of that: it gets a new one.
        request = from_query(head.query)
        asked = Asked.of(exchange, request, self.resuming.default())
        answering = self.resuming.run(exchange, request, limited(self.source, request), events, asked)
        del request, asked
        await answering

"""``/api/chat``: what the AI SDK's ``useChat`` talks to, as a UI message stream (version 1).

Rule 1: an error before the commit point is a real status with the message as its whole body, in plain text: the
        hook shows what it gets as ``error.message``.
Rule 2: an answer that goes on with an assistant's message has that message's id: under another one the page would
        show it twice.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Final

from rawstream.errors import BadRequest, RawstreamError
from rawstream.model import Source
from rawstream.server.exchange import Exchange, error_headers
from rawstream.server.ids import random_id
from rawstream.server.leaving import Asked
from rawstream.server.resuming import Resuming
from rawstream.server.router import Router
from rawstream.server.streams import Streams
from rawstream.sources.limited import limited
from rawstream.wire.ui_messages import UIMessages
from rawstream.wire.ui_replay import compact
from rawstream.wire.ui_requests import decode_chat_request

_CHAT_ID: Final = re.compile(r"[A-Za-z0-9._~:@%+=-]{1,128}")
"""Ids that pages make (the SDK: 16 letters and digits; often UUIDs), as they stand in a URL."""


def refusal(error: RawstreamError) -> tuple[list[tuple[str, str]], bytes]:
    """The message alone, and the headers that go with the error."""
    headers = [header for header in error_headers(error) if header[0] != "content-type"]
    return [("content-type", "text/plain; charset=utf-8"), *headers], str(error).encode("utf-8", "replace")


class UIChatEndpoints:
    """The handlers, over one source and one registry of streams."""

    def __init__(self, streams: Streams, source: Source, resuming: Resuming) -> None:
        self.streams = streams
        self.source = source
        self.resuming = resuming

    def register(self, router: Router) -> None:
        router.add("POST", "/api/chat", self.chat, json=True, refusal=refusal, access="generate")
        router.add("GET", "/api/chat/{id}/stream", self.resume, refusal=refusal)

    def chat(self, exchange: Exchange) -> Awaitable[None]:
        asked = decode_chat_request(exchange.content)
        request, continues = asked.request, asked.continues

        def dialect_of(stream_id: str) -> UIMessages:
            # Not the stream's id, which is a secret: messages are stored and shared.
            return UIMessages(continues or random_id(12))

        chat = asked.chat_id if asked.chat_id and _CHAT_ID.fullmatch(asked.chat_id) else None
        resumed = Asked.of(exchange, request, self.resuming.default(), chat)
        return self.resuming.run(exchange, request, limited(self.source, request), dialect_of, resumed)

    async def resume(self, exchange: Exchange) -> None:
        """The chat's answer that is being made: what has passed, told shorter, and then as it comes.

        204: there is nothing to resume, which the hook takes for an answer. Raises FellBehind (410).
        """
        chat = exchange.param("id")
        if _CHAT_ID.fullmatch(chat) is None:
            raise BadRequest("this is not the id of a chat")
        generation = await self.resuming.of_chat(exchange, chat)
        if generation is not None:
            beginning = await self.resuming.beginning(generation)
            if generation.running or generation.log.events:
                await self.resuming.read(exchange, generation, beginning, compact)
                return
        await exchange.respond(204, ())

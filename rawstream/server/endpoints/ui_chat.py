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
from rawstream.server.router import Router
from rawstream.server.streams import Streams
from rawstream.sources.limited import limited
from rawstream.wire.ui_messages import UIMessages
from rawstream.wire.ui_requests import decode_chat_request

_CHAT_ID: Final = re.compile(r"[A-Za-z0-9._~:@%+=-]{1,128}")
"""Ids that pages make (the SDK: 16 letters and digits; often UUIDs), as they stand in a URL."""


def refusal(error: RawstreamError) -> tuple[list[tuple[str, str]], bytes]:
    """The message alone, and the headers that go with the error."""
    headers = [header for header in error_headers(error) if header[0] != "content-type"]
    return [("content-type", "text/plain; charset=utf-8"), *headers], str(error).encode("utf-8", "replace")


class UIChatEndpoints:
    """The handlers, over one source and one registry of streams."""

    def __init__(self, streams: Streams, source: Source) -> None:
        self.streams = streams
        self.source = source

    def register(self, router: Router) -> None:
        router.add("POST", "/api/chat", self.chat, json=True, refusal=refusal, access="generate")
        router.add("GET", "/api/chat/{id}/stream", self.resume, refusal=refusal)

    def chat(self, exchange: Exchange) -> Awaitable[None]:
        asked = decode_chat_request(exchange.content)
        request, continues = asked.request, asked.continues

        def dialect_of(stream_id: str) -> UIMessages:
            # Not the stream's id, which is a secret: messages are stored and shared.
            return UIMessages(continues or random_id(12))

        return self.streams.run(exchange, request, limited(self.source, request), dialect_of)

    async def resume(self, exchange: Exchange) -> None:
        """204: there is nothing to resume, which the hook takes for an answer."""
        if _CHAT_ID.fullmatch(exchange.param("id")) is None:
            raise BadRequest("this is not the id of a chat")
        await exchange.respond(204, ())

"""A source that tells the page more than text: a progress that passes, a citation that stays, and the usage."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from rawstream.model import DataPart, Request, Token, Usage


async def tokens(request: Request) -> AsyncGenerator[str | Token, None]:
    """For ``rawstream serve --source``."""
    yield Token(data=DataPart("progress", {"step": 1, "of": "zwei"}))
    yield "Hello "
    yield Token(data=DataPart("source", ["a", "b"], transient=False))
    yield "world"
    yield Token(finish_reason="stop", usage=Usage(3, 2, 5))

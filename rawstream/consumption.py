"""Saying what was consumed: the client's half of credit (``rawstream.stream(url, credit=N)``).

Rule 1: an event was consumed when the next one is asked for, and not when it arrived.
Rule 2: totals are told, half a credit at a time: the answer flows on while one is under way, unless N is 1.
Rule 3: a stream that has ended needs no credit (404); a server that gives none is told apart from a slow one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec

from rawstream.answers import StreamError
from rawstream.errors import MisuseError, UpstreamFailed, UpstreamIdle
from rawstream.sources.http_client import HttpClient

_ENDPOINTS: Final = ("/v1/chat/completions", "/chat", "/stream", "/text")
_ENDED: Final = 404


def with_credit(url: str, credit: int) -> str:
    """``url``, asking for ``credit`` tokens. Raises MisuseError where events are not tokens, or it is below 1."""
    if credit < 1:
        raise MisuseError(f"credit must be at least 1 token, not {credit}")
    if urlsplit(url).path.endswith("/text"):
        raise MisuseError("credit needs events, and plain text has none: ask …/chat")
    return url + ("&" if "?" in url else "?") + f"credit={credit}"


class Consumption:
    """Counts the tokens of one stream that were consumed, and tells the server."""

    def __init__(
        self, client: HttpClient, url: str, stream_id: str | None, fields: Sequence[tuple[str, str]], credit: int
    ) -> None:
        """``fields``: the stream's own request fields. Raises StreamError when the server named no stream."""
        if stream_id is None:
            raise StreamError("the server gives no credit: its answer has no x-stream-id", code="no_credit")
        split = urlsplit(url)
        ending = next((end for end in _ENDPOINTS if split.path.endswith(end)), split.path)
        path = split.path.removesuffix(ending) + f"/streams/{stream_id}/credit"
        self._url = split._replace(path=path, query="", fragment="").geturl()
        self._client = client
        self._fields = [
            *(field for field in fields if field[0] != "content-type"),
            ("content-type", "application/json"),
        ]
        self._step = max(1, credit // 2)
        self.tokens = 0
        """Consumed, in all."""
        self.told = 0
        """Of these, told to the server."""

    async def consumed(self, tokens: int, timeout: float) -> None:
        """``tokens`` more were consumed. Raises StreamError when that cannot be told within ``timeout`` seconds."""
        self.tokens += tokens
        if self.tokens - self.told < self._step:
            return
        told = self.tokens
        body = msgspec.json.encode({"consumed": told})
        try:
            response = await self._client.open("POST", self._url, self._fields, body, head_timeout=timeout)
        except (UpstreamFailed, UpstreamIdle) as error:
            raise StreamError(
                "the server could not be told what was consumed", code="credit", detail=str(error)
            ) from None
        await response.finish()
        if response.status not in (204, _ENDED):
            raise StreamError(f"the server refused the credit with status {response.status}", code="credit")
        self.told = told

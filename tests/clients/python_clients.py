"""The Python clients of the matrix, each used as its own documentation shows it.

Rule 1: a client's code here is what its user would write. It catches nothing and repairs nothing.
Rule 2: what came is told piece by piece (``Piece``); what a client raises is its verdict, and is kept (``Reading``).
Rule 3: an async client is left by cancelling its task, a sync one by closing its iteration.
"""

from __future__ import annotations

import asyncio
import json
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple
from urllib.parse import urlencode

from pydantic import SecretStr

import rawstream
from tests.support.tools import require_module

# LangChain brings LangSmith, which sends what it traces to its maker. Not from here, whatever the environment says.
os.environ.update(LANGSMITH_TRACING="false", LANGSMITH_TRACING_V2="false", LANGCHAIN_TRACING_V2="false")

if TYPE_CHECKING:
    import httpx
    import httpx_sse
    import langchain_openai
    import openai
    import requests
else:
    openai = require_module("openai")
    httpx = require_module("httpx")
    httpx_sse = require_module("httpx_sse")
    langchain_openai = require_module("langchain_openai")
    requests = require_module("requests")

NO_KEY: Final = SecretStr("none")
TIMEOUT: Final = 10.0
"""Seconds of silence that a client bears."""
PATIENCE: Final = 20.0
"""Seconds that an async client's whole answer may take (a sync one's: pytest's own timeout)."""


class Piece(NamedTuple):
    """What a client handed out at once."""

    text: str = ""
    end: str | None = None
    """What told the end: OpenAI's finish reason, or ``[DONE]``."""
    usage: int | None = None
    """Completion tokens, where the client has a place for them."""
    failure: str | None = None
    """A failure that the client hands out as an event of the stream, as JSON."""


@dataclass
class Reading:
    """What came of one request."""

    pieces: list[Piece] = field(default_factory=list)
    error: Exception | None = None
    """What the client raised."""

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def ends(self) -> list[str]:
        return [piece.end for piece in self.pieces if piece.end is not None]

    @property
    def usages(self) -> list[int]:
        return [piece.usage for piece in self.pieces if piece.usage is not None]

    @property
    def failure(self) -> str | None:
        return next((piece.failure for piece in self.pieces if piece.failure is not None), None)


class Ask(NamedTuple):
    """What is asked for."""

    url: str
    """Of the server, without a path."""
    model: str
    user: str = "somebody"
    """By which the upstream's generation can be told from others."""

    @property
    def body(self) -> dict[str, Any]:
        """For ``/chat`` and ``/text``."""
        return {"prompt": "hello", "model": self.model, "user": self.user}

    @property
    def query(self) -> str:
        return urlencode(self.body)

    @property
    def messages(self) -> Any:
        return [{"role": "user", "content": "hello"}]


class Client(ABC):
    """One row of the matrix."""

    row: ClassVar[str]
    package: ClassVar[str]
    end: ClassVar[str | None]
    """What tells this client's user that the answer was whole; None: nothing."""
    counts: ClassVar[bool] = False
    """Has a place for usage."""

    @property
    def version(self) -> str:
        return version(self.package)

    @abstractmethod
    def read(self, ask: Ask, *, leave_after: int | None = None) -> Reading:
        """The whole answer, or its first ``leave_after`` pieces with text: then the client leaves, in its own way."""

    @abstractmethod
    def refusal(self, error: Exception) -> tuple[int, str]:
        """The status in an error that the client raised, and what it says: our message and code."""


class SyncClient(Client):
    @abstractmethod
    def pieces(self, ask: Ask) -> Generator[Piece, None, None]: ...

    def read(self, ask: Ask, *, leave_after: int | None = None) -> Reading:
        reading = Reading()
        try:
            with closing(self.pieces(ask)) as pieces:
                for piece in pieces:
                    reading.pieces.append(piece)
                    if sum(bool(piece.text) for piece in reading.pieces) == leave_after:
                        break
        except Exception as error:  # whatever it is: it is what is asked about
            reading.error = error
        return reading


class AsyncClient(Client):
    @abstractmethod
    def pieces(self, ask: Ask) -> AsyncGenerator[Piece, None]: ...

    def read(self, ask: Ask, *, leave_after: int | None = None) -> Reading:
        return asyncio.run(asyncio.wait_for(self._read(ask, leave_after), PATIENCE))

    async def _read(self, ask: Ask, leave_after: int | None) -> Reading:
        reading = Reading()
        enough = asyncio.Event()

        async def take() -> None:
            async with aclosing(self.pieces(ask)) as pieces:
                async for piece in pieces:
                    reading.pieces.append(piece)
                    if sum(bool(piece.text) for piece in reading.pieces) == leave_after:
                        enough.set()

        reader = asyncio.create_task(take(), name="reader")
        leaver = asyncio.create_task(enough.wait(), name="leaver")
        await asyncio.wait((reader, leaver), return_when=asyncio.FIRST_COMPLETED)
        leaver.cancel()
        if not reader.done():
            reader.cancel()
        try:
            await reader
        except asyncio.CancelledError:
            assert enough.is_set()
        except Exception as error:  # whatever it is: it is what is asked about
            reading.error = error
        return reading


# --- openai ---------------------------------------------------------------------------------------------------


def openai_refusal(error: Exception) -> tuple[int, str]:
    assert isinstance(error, openai.APIStatusError), repr(error)
    return error.status_code, f"{error.message} {error.code}"


def chunk_as_piece(chunk: Any) -> Piece:
    """An ``openai`` chunk."""
    usage = None if chunk.usage is None else chunk.usage.completion_tokens
    if not chunk.choices:
        return Piece(usage=usage)
    choice = chunk.choices[0]
    return Piece(choice.delta.content or "", choice.finish_reason, usage)


class OpenAISync(SyncClient):
    row = "openai (PyPI), sync"
    package = "openai"
    end = "finish_reason"
    counts = True

    def pieces(self, ask: Ask) -> Generator[Piece, None, None]:
        with openai.OpenAI(base_url=f"{ask.url}/v1", api_key="none", timeout=TIMEOUT) as client:
            with client.chat.completions.create(
                model=ask.model,
                messages=ask.messages,
                user=ask.user,
                stream=True,
                stream_options={"include_usage": True},
            ) as stream:
                for chunk in stream:
                    yield chunk_as_piece(chunk)

    def refusal(self, error: Exception) -> tuple[int, str]:
        return openai_refusal(error)


class OpenAIAsync(AsyncClient):
    row = "openai (PyPI), async"
    package = "openai"
    end = "finish_reason"
    counts = True

    async def pieces(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        async with openai.AsyncOpenAI(base_url=f"{ask.url}/v1", api_key="none", timeout=TIMEOUT) as client:
            async with await client.chat.completions.create(
                model=ask.model,
                messages=ask.messages,
                user=ask.user,
                stream=True,
                stream_options={"include_usage": True},
            ) as stream:
                async for chunk in stream:
                    yield chunk_as_piece(chunk)

    def refusal(self, error: Exception) -> tuple[int, str]:
        return openai_refusal(error)


# --- LangChain ------------------------------------------------------------------------------------------------


def langchain_piece(message: Any) -> Piece:
    """An ``AIMessageChunk``."""
    usage = None if message.usage_metadata is None else message.usage_metadata["output_tokens"]
    return Piece(message.text, message.response_metadata.get("finish_reason"), usage)


class LangChainSync(SyncClient):
    row = "langchain-openai, stream"
    package = "langchain-openai"
    end = "finish_reason"
    counts = True

    def pieces(self, ask: Ask) -> Generator[Piece, None, None]:
        with openai.DefaultHttpxClient() as http:
            model = langchain_openai.ChatOpenAI(
                model=ask.model,
                base_url=f"{ask.url}/v1",
                api_key=NO_KEY,
                stream_usage=True,
                timeout=TIMEOUT,
                http_client=http,
                model_kwargs={"user": ask.user},
            )
            for message in model.stream("hello"):
                yield langchain_piece(message)

    def refusal(self, error: Exception) -> tuple[int, str]:
        return openai_refusal(error)


class LangChainAsync(AsyncClient):
    row = "langchain-openai, astream"
    package = "langchain-openai"
    end = "finish_reason"
    counts = True

    async def pieces(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        async with openai.DefaultAsyncHttpxClient() as http:
            model = langchain_openai.ChatOpenAI(
                model=ask.model,
                base_url=f"{ask.url}/v1",
                api_key=NO_KEY,
                stream_usage=True,
                timeout=TIMEOUT,
                http_async_client=http,
                model_kwargs={"user": ask.user},
            )
            async for message in model.astream("hello"):
                yield langchain_piece(message)

    def refusal(self, error: Exception) -> tuple[int, str]:
        return openai_refusal(error)


# --- server-sent events, read by hand -------------------------------------------------------------------------


def event_as_piece(data: str) -> Piece:
    """The data of one event of ``/chat`` or ``/stream``."""
    if data == "[DONE]":
        return Piece(end="[DONE]")
    told = json.loads(data)
    return Piece(failure=data) if "error" in told else Piece(told["token"])


def httpx_refusal(error: Exception) -> tuple[int, str]:
    assert isinstance(error, httpx.HTTPStatusError), repr(error)
    return error.response.status_code, error.response.text


class HttpxSseSync(SyncClient):
    row = "httpx-sse, sync, POST"
    package = "httpx-sse"
    end = "[DONE]"

    def request(self, ask: Ask) -> tuple[str, str, dict[str, Any]]:
        return "POST", f"{ask.url}/chat", {"json": ask.body}

    def pieces(self, ask: Ask) -> Generator[Piece, None, None]:
        method, url, given = self.request(ask)
        with httpx.Client(timeout=TIMEOUT) as client:
            with httpx_sse.connect_sse(client, method, url, **given) as source:
                if source.response.is_error:
                    source.response.read()
                source.response.raise_for_status()
                for event in source.iter_sse():
                    yield event_as_piece(event.data)

    def refusal(self, error: Exception) -> tuple[int, str]:
        return httpx_refusal(error)


class HttpxSseSyncGet(HttpxSseSync):
    row = "httpx-sse, sync, GET"

    def request(self, ask: Ask) -> tuple[str, str, dict[str, Any]]:
        return "GET", f"{ask.url}/stream", {"params": ask.body}


class HttpxSseAsync(AsyncClient):
    row = "httpx-sse, async, POST"
    package = "httpx-sse"
    end = "[DONE]"

    def request(self, ask: Ask) -> tuple[str, str, dict[str, Any]]:
        return "POST", f"{ask.url}/chat", {"json": ask.body}

    async def pieces(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        method, url, given = self.request(ask)
        async with httpx.AsyncClient(timeout=TIMEOUT) as client:
            async with httpx_sse.aconnect_sse(client, method, url, **given) as source:
                if source.response.is_error:
                    await source.response.aread()
                source.response.raise_for_status()
                async for event in source.aiter_sse():
                    yield event_as_piece(event.data)

    def refusal(self, error: Exception) -> tuple[int, str]:
        return httpx_refusal(error)


class HttpxSseAsyncGet(HttpxSseAsync):
    row = "httpx-sse, async, GET"

    def request(self, ask: Ask) -> tuple[str, str, dict[str, Any]]:
        return "GET", f"{ask.url}/stream", {"params": ask.body}


class Requests(SyncClient):
    row = "requests"
    package = "requests"
    end = "[DONE]"

    def pieces(self, ask: Ask) -> Generator[Piece, None, None]:
        with requests.Session() as session:
            with session.post(f"{ask.url}/chat", json=ask.body, stream=True, timeout=TIMEOUT) as response:
                if not response.ok:
                    _ = response.content  # or it is not there when the session is closed
                response.raise_for_status()
                for line in response.iter_lines(decode_unicode=True):
                    if line.startswith("data: "):
                        yield event_as_piece(line.removeprefix("data: "))

    def refusal(self, error: Exception) -> tuple[int, str]:
        assert isinstance(error, requests.HTTPError), repr(error)
        return error.response.status_code, error.response.text


# --- plain text -----------------------------------------------------------------------------------------------


class PlainHttpx(SyncClient):
    row = "httpx"
    package = "httpx"
    end = None

    def pieces(self, ask: Ask) -> Generator[Piece, None, None]:
        with httpx.Client(timeout=TIMEOUT) as client:
            with client.stream("POST", f"{ask.url}/text", json=ask.body) as response:
                if response.is_error:
                    response.read()
                response.raise_for_status()
                for text in response.iter_text():
                    yield Piece(text)

    def refusal(self, error: Exception) -> tuple[int, str]:
        return httpx_refusal(error)


# --- our own --------------------------------------------------------------------------------------------------


class Ours(AsyncClient):
    """It raises where an answer is not whole, so that reaching the end of the loop is the end."""

    row = "rawstream.stream, POST"
    package = "rawstream"
    end = None

    def stream(self, ask: Ask) -> rawstream.EventStream:
        return rawstream.stream(f"{ask.url}/chat", json=ask.body, timeout=TIMEOUT)

    async def pieces(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        async with self.stream(ask) as events:
            async for event in events:
                usage = event.data.get("usage") if isinstance(event.data, dict) else None
                yield Piece(event.text, usage=None if usage is None else usage["completion_tokens"])

    def refusal(self, error: Exception) -> tuple[int, str]:
        assert isinstance(error, rawstream.StreamRefused), repr(error)
        return error.status, f"{error} {error.code}"


class OursGet(Ours):
    row = "rawstream.stream, GET"

    def stream(self, ask: Ask) -> rawstream.EventStream:
        return rawstream.stream(f"{ask.url}/stream?{ask.query}", timeout=TIMEOUT)


class OursOpenAI(Ours):
    row = "rawstream.stream, OpenAI's wire"
    counts = True

    def stream(self, ask: Ask) -> rawstream.EventStream:
        asked = {"model": ask.model, "messages": ask.messages, "user": ask.user, "stream": True}
        asked["stream_options"] = {"include_usage": True}
        return rawstream.stream(f"{ask.url}/v1/chat/completions", json=asked, timeout=TIMEOUT)


_KINDS: Final[tuple[type[Client], ...]] = (
    OpenAISync,
    OpenAIAsync,
    LangChainSync,
    LangChainAsync,
    HttpxSseSync,
    HttpxSseAsync,
    HttpxSseSyncGet,
    HttpxSseAsyncGet,
    Requests,
    PlainHttpx,
    Ours,
    OursGet,
    OursOpenAI,
)
CLIENTS: Final[dict[str, Client]] = {kind.row: kind() for kind in _KINDS}

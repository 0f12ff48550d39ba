"""An OpenAI-compatible upstream as a source: one request per generation, read as the tokens are asked for.

Rule 1: nothing is read from the upstream that nobody asked for. A stream that is not pulled holds what its bounded
        buffers hold, and its deadline does not run.
Rule 2: a stream is whole when it said ``[DONE]``, or when it gave a finish reason and its framing ended cleanly
        (``transformers serve`` sends no ``[DONE]``). Any other end is ``UpstreamFailed``.
Rule 3: only events with data are progress. Comments, pings and drips of an unfinished event feed no deadline.
Rule 4: the request travels on as it came, but for ``stream`` and ``stream_options.include_usage``.
Rule 5: our key is in the request's head and nowhere else: what the upstream says about it is not passed on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

import msgspec

from rawstream.errors import MisuseError, SettingsError, UpstreamFailed, UpstreamIdle, UpstreamRejected
from rawstream.model import Headers, Request, SourceStatistics, Token, Usage
from rawstream.settings import MiB, Settings
from rawstream.sources.http_client import HttpClient, HttpResponse, origin_of
from rawstream.sources.openai_events import DONE, answer_as_token, append_tokens, message_of
from rawstream.wire.sse import EventTooLong, Parser

OnEnd: TypeAlias = Callable[[BaseException | None], None]

MAX_ANSWER: Final = 16 * MiB
"""Bytes of a whole, non-streamed answer."""
MAX_REJECTION: Final = 64 * 1024
"""Bytes of an error's body that are relayed."""
LIST_WITHIN: Final = 10.0
"""Seconds in which a list of models must begin, for which nothing is generated."""
REJECTION_WAIT: Final = 5.0
"""Seconds that an error's body may take; without it the status is relayed all the same."""
_RELAYED: Final = ("retry-after", "retry-after-ms", "x-should-retry")
_COMPLETIONS: Final = "/chat/completions"
_MODELS: Final = "/models"
_PORTS: Final = {"http": 80, "https": 443}


class UpstreamSource:
    """Tokens from ``settings.upstream``. One instance, and its connection pool, serves one event loop."""

    def __init__(self, settings: Settings, name: str = "upstream") -> None:
        """Raises SettingsError when ``settings.upstream`` is not a URL of a place to connect to."""
        self.name = name
        self._settings = settings
        split = urlsplit(settings.upstream or "")
        try:
            origin_of(split)
        except MisuseError as error:
            raise SettingsError(f"upstream: {error}") from None
        self._base = split
        first = settings.upstream_first_token_timeout
        self._within = {_COMPLETIONS: first, _MODELS: min(first, LIST_WITHIN)}
        self._late = {path: f"the upstream sent no answer within {time:g} s" for path, time in self._within.items()}
        self._urls = {path: _below(split, path) for path in (_COMPLETIONS, _MODELS)}
        self.client = HttpClient(settings)
        self.idle_timeout = settings.upstream_idle_timeout
        self.idle_late = f"the upstream sent no token for {self.idle_timeout:g} s"
        self.first_token_late = f"the upstream sent no token within {settings.upstream_first_token_timeout:g} s"

    def tokens(self, request: Request, *, due: float | None = None, on_end: OnEnd | None = None) -> UpstreamStream:
        """A new generation; the request is sent with the first demand.

        ``due``: when the first event must be there (the loop's clock; default: ``upstream_first_token_timeout`` after
        the first demand). ``on_end`` is told once how it ended: None when it was whole, else the error; CancelledError
        when it was closed before.
        """
        return UpstreamStream(self, request, due, on_end)

    async def complete(self, request: Request, *, due: float | None = None) -> bytes:
        """The whole answer: the upstream's JSON, untouched (16 MiB at most).

        Raises UpstreamFailed, UpstreamIdle (nothing by ``due``, or within ``upstream_first_token_timeout``),
        UpstreamRejected. Cancelling is safe: the connection is closed.
        """
        body = msgspec.json.encode(self._body(request, stream=False))
        return await self._whole("POST", _COMPLETIONS, body, due, self._trace(request))

    async def models(self) -> bytes:
        """The body of the upstream's ``GET /models``, untouched. Raises as ``complete`` does."""
        return await self._whole("GET", _MODELS, b"")

    async def aclose(self) -> None:
        """Close all connections, those of running generations too."""
        await self.client.aclose()

    async def start(self, request: Request, due: float) -> HttpResponse:
        """Send a streaming request; the response's head has status 200. Raises as ``complete`` does."""
        body = msgspec.json.encode(self._body(request, stream=True))
        return await self._open("POST", _COMPLETIONS, body, "text/event-stream", due, self._trace(request))

    def _trace(self, request: Request) -> Headers:
        """What to tell the upstream of what this request is a part of."""
        if request.trace is None:
            return ()
        base, model = self._base, request.model or self._settings.upstream_model
        return request.trace.upstream_asked(base.hostname or "", base.port or _PORTS[base.scheme], model)

    def _body(self, request: Request, *, stream: bool) -> dict[str, Any]:
        body = dict(request.extra)
        body["messages"] = request.messages
        body["stream"] = stream
        asked = {"max_tokens": request.max_tokens, "model": request.model or self._settings.upstream_model}
        asked["user"] = request.user
        body.update((key, value) for key, value in asked.items() if value is not None)
        options = body.pop("stream_options", None)
        if stream:
            body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        return body

    async def _open(
        self, method: str, path: str, body: bytes, accept: str, due: float | None, told: Headers = ()
    ) -> HttpResponse:
        """The response to a request, if its status is 200 and it is there by ``due``."""
        settings = self._settings
        timeout = self._within[path] if due is None else max(0.0, due - asyncio.get_running_loop().time())
        headers = [("accept", accept), ("accept-encoding", "identity"), ("user-agent", "rawstream")]
        if body:
            headers.append(("content-type", "application/json"))
        if settings.upstream_api_key:
            headers.append(("authorization", f"Bearer {settings.upstream_api_key}"))
        headers.extend(told)
        response = await self.client.open(
            method, self._urls[path], headers, body, head_timeout=timeout, late=self._late[path]
        )
        try:
            if response.status >= 400:
                raise await self._rejection(response)
            if response.status != 200:
                raise _not_an_answer(response)
            if response.head.header("content-encoding") not in (None, "", "identity"):
                raise UpstreamFailed("the upstream compressed its answer, which it was asked not to do")
        except BaseException:
            await response.aclose()
            raise
        return response

    async def _whole(self, method: str, path: str, body: bytes, due: float | None = None, told: Headers = ()) -> bytes:
        response = await self._open(method, path, body, "application/json", due, told)
        try:
            if media_type(response) != "application/json":
                raise UpstreamFailed(f"the upstream answered with {self.kind_of(response)} instead of JSON")
            body = await read_json(response, self._settings.upstream_idle_timeout)
        finally:
            await response.aclose()
        if self.quotes_key(body):
            raise UpstreamFailed("the upstream's answer quotes our credentials")
        return body

    def quotes_key(self, said: bytes) -> bool:
        """Does what the upstream said hold our key? Then it is nobody else's to read."""
        key = (self._settings.upstream_api_key or "").encode()
        if not key:
            return False
        lowered = key.lower()  # content types are told in lower case
        return key in said or lowered in said or key in said.replace(b"\\/", b"/")

    def kind_of(self, response: HttpResponse) -> str:
        """The content type, as far as it may be told."""
        kind = media_type(response)
        return "an unusual type" if len(kind) > 100 or self.quotes_key(kind.encode()) else kind

    async def _rejection(self, response: HttpResponse) -> UpstreamRejected:
        """The upstream's own refusal, as far as it may be passed on."""
        status = response.status
        headers = tuple(
            (name, value)
            for name, value in response.head.headers
            if name in _RELAYED and not self.quotes_key(value.encode())
        )
        retry_after = response.head.header("retry-after")
        known = retry_after is not None and retry_after.isdecimal() and len(retry_after) <= 9
        seconds = float(retry_after) if retry_after is not None and known else None
        message, body = f"the upstream answered with status {status}", None
        if status in (401, 403):
            # It is our key, not the client's, that was refused; and the text may quote it.
            message = "the upstream refused the credentials that it was given"
        elif media_type(response) == "application/json":
            body = await self._rejection_body(response)
        if body is not None:
            told = msgspec.json.decode(body)
            message = (message_of(told.get("error")) if isinstance(told, dict) else None) or message
        return UpstreamRejected(message, status=status, body=body, retry_after=seconds, headers=headers)

    async def _rejection_body(self, response: HttpResponse) -> bytes | None:
        """The JSON of an error's body; None when there is none that can be relayed."""
        try:
            body = await read_json(response, REJECTION_WAIT, MAX_REJECTION)
        except (UpstreamFailed, UpstreamIdle):
            return None
        return None if self.quotes_key(body) else body


class UpstreamStream:
    """One generation. Each step gives the tokens of one read of the socket, however many they are."""

    __slots__ = (
        "_clock",
        "_due",
        "_failure",
        "_finish_seen",
        "_on_end",
        "_parser",
        "_request",
        "_response",
        "_source",
        "_whole",
        "usage",
    )

    def __init__(self, source: UpstreamSource, request: Request, due: float | None, on_end: OnEnd | None) -> None:
        self._source = source
        self._request: Request | None = request
        self._response: HttpResponse | None = None
        self._parser = Parser(source._settings.upstream_max_event)
        self._clock: Callable[[], float] = time.monotonic
        self._due = due
        """When the first event must be there (the loop's clock); None: it was."""
        self._on_end = on_end
        self._failure: UpstreamFailed | None = None
        """What the upstream told in-stream, after tokens that are handed out first."""
        self._finish_seen = False
        self._whole = False
        """Is the answer complete, as far as its content goes?"""
        self.usage: Usage | None = None
        """What the upstream counted, as it told last: in the last event of a read, where an answer ends."""

    def __aiter__(self) -> UpstreamStream:
        return self

    def statistics(self) -> SourceStatistics:
        """Bytes taken from the socket and not yet handed on, as of now and at most."""
        held = self._held()
        peak = self._response.peak_buffered if self._response is not None else 0
        return SourceStatistics(held, max(peak, held))

    def _held(self) -> int:
        return self._parser.buffered + (self._response.buffered if self._response is not None else 0)

    async def __anext__(self) -> list[Token]:
        """The tokens of the next read. Raises UpstreamFailed, UpstreamIdle, UpstreamRejected.

        Cancelling is safe: it ends the generation.
        """
        try:
            if self._request is not None:
                answer = await self._begin(self._request)
                if answer is not None:
                    self.usage = answer.usage
                    return [answer]
            response = self._response
            if self._failure is not None:
                raise self._failure
            if response is not None and not self._whole and (tokens := await self._next_tokens(response)):
                return tokens
        except BaseException as error:
            self._ended(error)
            await self.aclose()
            raise
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop the generation: unless it is over, its connection is closed at once. Idempotent."""
        self._request = None
        self._ended(None if self._whole else asyncio.CancelledError())
        response, self._response = self._response, None
        if response is None:
            return
        if self._whole:
            await response.finish()
        else:
            await response.aclose()

    def _ended(self, error: BaseException | None) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(error)

    async def _begin(self, request: Request) -> Token | None:
        """Send the request. Returns the answer if it came whole, as JSON, and not as a stream."""
        settings = self._source._settings
        self._request = None
        self._clock = asyncio.get_running_loop().time
        if self._due is None:
            self._due = self._clock() + settings.upstream_first_token_timeout
        self._response = response = await self._source.start(request, self._due)
        kind = media_type(response)
        if kind == "application/json":
            body = await read_json(response, settings.upstream_idle_timeout)
            if self._source.quotes_key(body):
                raise UpstreamFailed("the upstream's answer quotes our credentials")
            self._whole = True
            return answer_as_token(body)
        if kind != "text/event-stream":
            named = self._source.kind_of(response)
            raise UpstreamFailed(f"the upstream answered with {named} instead of an event stream")
        return None

    async def _next_tokens(self, response: HttpResponse) -> list[Token]:
        """The tokens of the first read that holds any; none at the stream's proper end."""
        source = self._source
        if self._due is not None:
            due, late = self._due, source.first_token_late
        else:
            due, late = self._clock() + source.idle_timeout, source.idle_late
        parser = self._parser
        while True:
            data = response.read_nowait()
            if data is None:
                if self._clock() >= due:
                    raise UpstreamIdle(late)
                response.set_deadline(due, late, while_waiting=True)  # anew: it passes unheard while nobody waits
                await response.more()
                continue
            if not data:
                self._judge_end(response)
                return []
            try:
                payloads = parser.feed_data(data)
            except EventTooLong as error:
                raise UpstreamFailed(f"the upstream sent {error}") from None
            if payloads:
                tokens = self._tokens(payloads)
                if tokens or self._whole:
                    self._due = None
                    return tokens
                if self._failure is not None:
                    raise self._failure

    def _tokens(self, payloads: list[bytes]) -> list[Token]:
        if DONE in payloads:
            self._whole = True
            del payloads[payloads.index(DONE) :]
        tokens: list[Token] = []
        try:
            append_tokens(payloads, tokens)
        except UpstreamFailed as failure:
            quoted = self._source.quotes_key(b"\n".join(payloads))
            self._failure = UpstreamFailed("the upstream failed") if quoted else failure
            self._whole = False
        if tokens and tokens[-1].usage is not None:
            self.usage = tokens[-1].usage
        if not self._finish_seen:
            for token in tokens:
                if token.finish_reason is not None:
                    self._finish_seen = True
        return tokens

    def _judge_end(self, response: HttpResponse) -> None:
        """The body is over without ``[DONE]``: rule 2."""
        if not (self._finish_seen and response.self_delimited):
            raise UpstreamFailed("the upstream's stream ended before it was complete")
        self._whole = True


def _below(base: SplitResult, path: str) -> str:
    """The URL of ``path`` below an upstream's own, whose query stays."""
    return base._replace(path=base.path.rstrip("/") + path, fragment="").geturl()


def media_type(response: HttpResponse) -> str:
    """The content type without its parameters, in lower case; ``an unnamed type`` when there is none."""
    named = (response.head.header("content-type") or "").partition(";")[0].strip().lower()
    return named or "an unnamed type"


async def read_json(response: HttpResponse, timeout: float, most: int = MAX_ANSWER) -> bytes:
    """The whole body, which must be JSON of ``most`` bytes, within ``timeout`` seconds.

    Raises UpstreamFailed, UpstreamIdle. Cancelling is safe; close the response afterwards in any case.
    """
    at = asyncio.get_running_loop().time() + timeout
    response.set_deadline(at, f"the upstream did not finish its answer within {timeout:g} s")
    pieces: list[bytes] = []
    size = 0
    while data := await response.read_some():
        pieces.append(data)
        size += len(data)
        if size > most:
            raise UpstreamFailed(f"the upstream's answer is longer than {most} bytes")
    body = b"".join(pieces)
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamFailed("the upstream's answer is not JSON, or not all of it") from None
    return body


def _not_an_answer(response: HttpResponse) -> UpstreamFailed:
    if 300 <= response.status < 400:
        return UpstreamFailed("the upstream sent a redirect, which is not followed")
    return UpstreamFailed(f"the upstream answered with status {response.status}, which holds no answer")

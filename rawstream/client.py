"""``rawstream.stream``: the client half. It reads no further than it is asked.

Rule 1: nothing is taken from the network that nobody asked for. Between two events the connection is not read; what
        can wait on this side is bounded by ``receive_buffer`` (the kernel) and ``read_limit`` (the reader).
Rule 2: an answer is whole only when its terminal event said so. Any other end raises.
Rule 3: however the iteration ends, the connection is closed there and then, and so the generation stops.
Rule 4: the answer's form is told by its content type and by each event, not by the URL.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec

from rawstream.answers import StreamError, StreamEvent, StreamRefused, read_event, refusal_of
from rawstream.consumption import Consumption, with_credit
from rawstream.errors import MisuseError, RawstreamError, UpstreamFailed, UpstreamIdle
from rawstream.settings import Settings
from rawstream.sources.http_client import HttpClient, HttpResponse
from rawstream.wire.sse import EventTooLong, Parser

_DONE: Final = b"[DONE]"
_LEAVE: Final = 0.1
"""Seconds after the terminal event that the framing may take to end (SDKs wait as long)."""
_MOST_WHOLE: Final = 16 * 1024 * 1024
"""Bytes of an answer that comes as one JSON document."""
_MOST_REFUSAL: Final = 64 * 1024
_REFUSAL_WAIT: Final = 5.0


class StreamStatistics(msgspec.Struct, frozen=True, gc=False):
    """What a stream has taken so far."""

    events: int
    """Events handed out."""
    bytes: int
    """Body bytes taken from the connection."""
    buffered: int
    """Of these, bytes not yet handed out."""
    peak_buffered: int


def stream(
    url: str,
    prompt: str | None = None,
    *,
    messages: Sequence[Mapping[str, Any]] | None = None,
    json: Mapping[str, Any] | None = None,
    model: str | None = None,
    max_tokens: int | None = None,
    api_key: str | None = None,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
    receive_buffer: int = 16 * 1024,
    read_limit: int = 8 * 1024,
    max_event: int = 1024 * 1024,
    connect_timeout: float = 5.0,
    timeout: float = 120.0,
    ca_file: str | None = None,
    credit: int | None = None,
) -> EventStream:
    """Ask ``url`` and iterate over the answer's events, taking no more from the network than is asked for.

    ::

        async for event in rawstream.stream("http://127.0.0.1:8000/chat", "hello"):
            print(event.text, end="", flush=True)

    The URL is a whole one: ``…/chat``, ``…/text``, ``…/stream`` of a rawstream server, or ``…/v1/chat/completions``
    of anything OpenAI-compatible. Give one of ``prompt``, ``messages`` (OpenAI's shape), or ``json``, which is posted
    as it stands; with none of them the URL is fetched with GET.

    ``receive_buffer`` (bytes; ``SO_RCVBUF``, 0 leaves it to the kernel), ``read_limit`` (bytes) and ``max_event``
    (bytes) bound what waits on this side. ``timeout`` is the longest silence, in seconds, while an event is waited
    for; the time between two demands does not count.

    ``credit`` (tokens) makes the demand exact, where the server is a rawstream: its source never runs more than that
    many tokens ahead of what was consumed here, whatever the network's buffers would take. An event is consumed when
    the next one is asked for. It costs the server a request for each half of it.

    Raises MisuseError for a request that makes no sense. Iterating raises StreamRefused (a status other than 200) and
    StreamError. A loop over the call itself closes the connection when it is left; where the stream is kept in a
    variable, use ``async with`` or ``aclose()``. Cancelling is safe: it closes the connection, and the stream ends.
    """
    if sum(thing is not None for thing in (prompt, messages, json)) > 1:
        raise MisuseError("give one of prompt, messages and json")
    method, url, body = _request(url, prompt, messages, json, model, max_tokens)
    if credit is not None:
        url = with_credit(url, credit)
    fields = [("accept", "text/event-stream, text/plain, application/json"), ("accept-encoding", "identity")]
    fields.append(("user-agent", "rawstream"))
    if method == "POST":
        fields.append(("content-type", "application/json"))
    if api_key:
        fields.append(("authorization", f"Bearer {api_key}"))
    for name, value in headers.items() if isinstance(headers, Mapping) else headers or ():
        fields = [field for field in fields if field[0] != name.lower()]
        fields.append((name.lower(), value))
    if not all(f"{name}{value}".isascii() for name, value in fields):
        raise MisuseError("header fields and the API key must be ASCII")
    try:
        bounds = Settings(
            upstream_rcvbuf=receive_buffer,
            upstream_read_limit=read_limit,
            upstream_max_event=max_event,
            upstream_connect_timeout=connect_timeout,
            upstream_first_token_timeout=timeout,
            upstream_pool=0 if credit is None else 1,
            upstream_ca=ca_file,
        )
    except ValueError as error:
        raise MisuseError(str(error).removeprefix("upstream_")) from None
    return EventStream(_Call(method, url, fields, body, bounds, credit))


class EventStream:
    """An answer under way: an async iterator of ``StreamEvent``, and a context manager that closes it.

    The request goes out with the first demand. One task may iterate at a time.
    """

    def __init__(self, call: _Call) -> None:
        self._call = call
        # The generator must not refer to this object: dropping it closes the connection without the garbage collector.
        self._events = _events(call)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> StreamEvent:
        return await self._events.__anext__()

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection, now; the server then stops generating. Idempotent."""
        await self._events.aclose()

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The response's header fields, names in lower case. Empty before the first event."""
        return self._call.headers

    @property
    def id(self) -> str | None:
        """rawstream's id of the stream (``x-stream-id``), once the answer has begun."""
        return dict(self._call.headers).get("x-stream-id")

    def statistics(self) -> StreamStatistics:
        call = self._call
        return StreamStatistics(call.events, call.taken, call.buffered(), call.peak)


class _Call:
    """One request and what has become of it."""

    def __init__(
        self,
        method: str,
        url: str,
        fields: list[tuple[str, str]],
        body: bytes,
        bounds: Settings,
        credit: int | None = None,
    ) -> None:
        self.method = method
        self.url = url
        self.fields = fields
        self.body = body
        self.bounds = bounds
        self.credit = credit
        self.headers: tuple[tuple[str, str], ...] = ()
        self.response: HttpResponse | None = None
        self.events = 0
        self.taken = 0
        self.waiting = 0
        """Bytes of events that are parsed and not yet handed out, and of the one under way."""
        self.peak = 0

    def buffered(self) -> int:
        return self.waiting + (0 if self.response is None else self.response.buffered)

    async def read(self) -> bytes:
        """The next bytes of the body; b'' at its end. Raises StreamError."""
        assert self.response is not None
        timeout = self.bounds.upstream_first_token_timeout
        self.response.set_deadline(
            asyncio.get_running_loop().time() + timeout, f"the server was silent for {timeout:g} s"
        )
        data = await self.response.read_some()
        self.response.clear_deadline()
        self.taken += len(data)
        self.peak = max(self.peak, self.buffered() + len(data))
        return data


def _request(
    url: str,
    prompt: str | None,
    messages: Sequence[Mapping[str, Any]] | None,
    json: Mapping[str, Any] | None,
    model: str | None,
    max_tokens: int | None,
) -> tuple[str, str, bytes]:
    """Method, URL and body."""
    path = urlsplit(url).path
    content: dict[str, Any]
    if json is not None:
        content = dict(json)
    elif prompt is None and messages is None:
        return "GET", url, b""
    else:
        openai = path.endswith("/chat/completions")
        if messages is not None or openai:
            content = {"messages": messages if messages is not None else [{"role": "user", "content": prompt}]}
        else:
            content = {"prompt": prompt}
        content |= {"stream": True} if openai else {}
    content |= {name: value for name, value in (("model", model), ("max_tokens", max_tokens)) if value is not None}
    if json is None and path.endswith("/stream"):
        if messages is not None:
            raise MisuseError("an EventSource URL takes a prompt: give messages to …/chat")
        return "GET", url + ("&" if "?" in url else "?") + urlencode(content, errors="replace"), b""
    try:
        return "POST", url, msgspec.json.encode(content)
    except (TypeError, ValueError) as error:
        raise MisuseError(f"the request cannot be written as JSON: {error}") from None


# --- the answer ---------------------------------------------------------------------------------------------


async def _events(call: _Call) -> AsyncGenerator[StreamEvent, None]:
    client = HttpClient(call.bounds)
    try:
        response = await client.open(
            call.method,
            call.url,
            call.fields,
            call.body,
            head_timeout=call.bounds.upstream_first_token_timeout,
        )
        call.response = response
        call.headers = response.head.headers
        if response.status != 200:
            raise await _refusal(response)
        coding = response.head.header("content-encoding")
        if coding not in (None, "", "identity"):
            raise StreamError(f"the server compressed its answer ({coding}), uninvited", code="not_a_stream")
        kind = (response.head.header("content-type") or "").partition(";")[0].strip().lower()
        reader = _READERS.get(kind)
        if reader is None:
            said = kind or "no content type"
            raise StreamError(f"the server answered with {said}, not a stream", code="not_a_stream")
        consumption: Consumption | None = None
        if call.credit is not None:
            stream_id = response.head.header("x-stream-id")
            consumption = Consumption(client, call.url, stream_id, call.fields, call.credit)
        async with aclosing(reader(call, response)) as events:
            async for event in events:
                call.events += 1
                yield event
                if consumption is not None and (event.text or _is_token(event.data)):
                    await consumption.consumed(1, call.bounds.upstream_first_token_timeout)
    except UpstreamIdle as error:
        raise StreamError(_ours(error), code="idle", status=504, detail=error.detail) from None
    except UpstreamFailed as error:
        code = "unreachable" if call.response is None else "cut"
        raise StreamError(_ours(error), code=code, detail=error.detail) from None
    finally:
        await client.aclose()
        call.response = None


def _is_token(data: Any) -> bool:
    """Does this event count as a token for the server, though its text is not of choice 0?"""
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list) or not choices:
        return False
    said = next((one for one in choices if isinstance(one, dict) and one.get("index", 0) == 0), choices[0])
    delta = said.get("delta") if isinstance(said, dict) else None
    return bool(delta.get("content")) if isinstance(delta, dict) else False


async def _server_sent(call: _Call, response: HttpResponse) -> AsyncGenerator[StreamEvent, None]:
    """Server-sent events of any of the dialects."""
    parser = Parser(call.bounds.upstream_max_event)
    finished = False
    while data := await call.read():
        try:
            events = parser.feed(data)
        except EventTooLong as error:
            raise StreamError(str(error), code="event_too_long") from None
        del data
        # Decoded one by one, as they are asked for: what waits here is bytes, not objects.
        call.waiting = sum(len(event.data) for event in events) + parser.buffered
        for event in events:
            if event.data == _DONE:
                await _leave(response)
                return
            decoded, text, finishes = read_event(event.data)
            finished = finished or finishes
            call.waiting -= len(event.data)
            yield StreamEvent(text, decoded, event.data, event.id)
    if not (finished and response.self_delimited):
        raise StreamError("the answer ended without its terminal event: it is not whole", code="cut")
    # A server that sends no [DONE] (transformers serve), but said how the answer ended, and ended it cleanly.


async def _leave(response: HttpResponse) -> None:
    """After the terminal event: let the framing end, so that the server sees a client that had everything."""
    response.set_deadline(asyncio.get_running_loop().time() + _LEAVE, "")
    try:
        while await response.read_some():
            pass
    except (UpstreamFailed, UpstreamIdle):
        pass  # the answer was whole before


async def _plain(call: _Call, response: HttpResponse) -> AsyncGenerator[StreamEvent, None]:
    """``text/plain``: the pieces as they come, cut between characters. The framing's end is the terminal."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while data := await call.read():
        if text := decoder.decode(data):
            yield StreamEvent(text, None, data)
    if text := decoder.decode(b"", True):
        yield StreamEvent(text)


async def _whole(call: _Call, response: HttpResponse) -> AsyncGenerator[StreamEvent, None]:
    """A server that does not stream: its whole answer is one event."""
    body = bytearray()
    while data := await call.read():
        body += data
        if len(body) > _MOST_WHOLE:
            raise StreamError(f"the answer is longer than {_MOST_WHOLE} bytes", code="event_too_long")
    decoded, text, _ = read_event(bytes(body))
    yield StreamEvent(text, decoded, bytes(body))


_READERS: Final = {"text/event-stream": _server_sent, "text/plain": _plain, "application/json": _whole}


async def _refusal(response: HttpResponse) -> StreamRefused:
    """A status other than 200, with what the body says about it."""
    response.set_deadline(asyncio.get_running_loop().time() + _REFUSAL_WAIT, "")
    body = bytearray()
    try:
        while len(body) < _MOST_REFUSAL and (data := await response.read_some()):
            body += data
    except (UpstreamFailed, UpstreamIdle):
        pass  # the status says enough
    return refusal_of(response.status, bytes(body), response.head.header("location"), _retry_after(response))


def _retry_after(response: HttpResponse) -> float | None:
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = response.head.header(name)
        if value is not None and value.isdecimal() and len(value) < 10:
            return float(value) / unit
    return None


def _ours(error: RawstreamError) -> str:
    """The HTTP client speaks of upstreams; to whoever iterates here, it is the server."""
    return str(error).replace("the upstream", "the server")

"""OpenTelemetry: one span for each answer, and one below it for each time that an upstream is asked for it.

Rule 1: no prompt, no text and no error message is in a span. What comes from outside is a name, cut at 200
        characters, a word of a known shape, or a number.
Rule 2: what nobody samples is not watched: its trace is passed on, and nothing more.
Rule 3: nothing here waits. Spans leave in the SDK's own thread; only ``shutdown`` waits, and not for long.

Names are those of OpenTelemetry's GenAI conventions (in development; as of July 2026) where they have one, else
``rawstream.…``. Needs the extra: ``pip install 'rawstream[otel]'``.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from time import time_ns
from typing import Any, Final, cast

import msgspec
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from rawstream.model import (
    Headers,
    Outcome,
    Request,
    SourceItem,
    SourceStatistics,
    StreamRecord,
    Token,
    TokenStream,
    Trace,
    Usage,
)
from rawstream.server.traces import PassedOn

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_SECOND: Final = 1_000_000_000
_STALL: Final = 1 * _SECOND
"""Nanoseconds: a wait in mid-answer that is worth an event."""
_MOST_STALLS: Final = 32
"""Events of this kind in one span; the rest is counted."""
_LONGEST_NAME: Final = 200
_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_LARGEST_BODY: Final = 1024 * 1024
"""Bytes of a whole answer that is looked into for its usage; a longer one would hold up others."""
_FINE: Final = frozenset({Outcome.COMPLETED, Outcome.STOPPED, Outcome.BUDGET, Outcome.CLIENT_LEFT})
"""Ends that are nobody's error."""
_NUMBERS: Final = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
}
_EXIT_WAIT: Final = 5.0
"""Seconds that the last spans may take to leave."""


class OpenTelemetry:
    """``model.Tracing`` by OpenTelemetry: what is begun here becomes spans of ``provider``."""

    def __init__(self, provider: TracerProvider, *, address: tuple[str, int] | None = None) -> None:
        """``address``: where clients reach this server."""
        self._provider = provider
        self._tracer = provider.get_tracer("rawstream")
        self._address: dict[str, AttributeValue] = {}
        if address is not None:
            self._address = {"server.address": address[0], "server.port": address[1]}

    def begin(self, request: Request, path: str, sent: Headers) -> Trace:
        """The span of an answer, below the client's, where the client told us (``sent``) of one."""
        context = _PROPAGATOR.extract(dict(sent), Context())
        attributes = {"gen_ai.provider.name": "rawstream", "http.route": path, **self._address, **_asked(request)}
        span = self._tracer.start_span(_name(request.model), context, SpanKind.SERVER, attributes)
        if not span.is_recording():
            return PassedOn(_fields(span))
        return _Followed(self, span, _numbers(request))

    def begin_upstream(self, parent: Span, host: str, port: int, model: str | None, numbers: Mapping[str, Any]) -> Span:
        """The span of one attempt at an upstream."""
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",  # the API that it speaks; whose it is cannot be known
            "server.address": host,
            "server.port": port,
            **numbers,
        }
        if model is not None:
            attributes["gen_ai.request.model"] = _cut(model)
        return self._tracer.start_span(_name(model), set_span_in_context(parent), SpanKind.CLIENT, attributes)

    def shutdown(self, timeout: float = _EXIT_WAIT) -> None:
        """Let the last spans leave, for at most ``timeout`` seconds. Blocks."""
        end = getattr(self._provider, "shutdown", None)
        if end is not None:
            # A collector that does not answer is tried again for longer than a server may take to end.
            thread = threading.Thread(target=end, name="last spans", daemon=True)
            thread.start()
            thread.join(timeout)


def from_environment(host: str, port: int) -> OpenTelemetry:
    """To wherever the standard ``OTEL_…`` variables say, by OTLP over HTTP."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    ours = Resource({"service.name": "rawstream"})
    # What the environment says of this service (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) goes before ours.
    told = {
        name: value
        for name, value in Resource.create().attributes.items()
        if not (name == "service.name" and str(value).startswith("unknown_service"))
    }
    provider = SdkProvider(resource=ours.merge(Resource(told)), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OpenTelemetry(provider, address=(host, port) if port else None)


# --- one request ----------------------------------------------------------------------------------------------


class _Followed:
    """``model.Trace`` of a request that is sampled."""

    __slots__ = ("_begun", "_finish", "_numbers", "_span", "_telemetry", "_upstream", "_usage", "_watched")

    def __init__(self, telemetry: OpenTelemetry, span: Span, numbers: dict[str, AttributeValue]) -> None:
        self._telemetry = telemetry
        self._span = span
        self._numbers = numbers
        self._begun = time_ns()
        self._upstream: Span | None = None
        """The attempt that is under way, or was the last."""
        self._watched: _Watched | None = None
        self._finish: dict[int, str] = {}
        self._usage: Usage | None = None

    def upstream_asked(self, host: str, port: int, model: str | None) -> Headers:
        if self._upstream is not None:
            _fail(self._upstream, "_OTHER")  # the convention's word for one that is not known
            self._upstream.end()
        self._upstream = self._telemetry.begin_upstream(self._span, host, port, model, self._numbers)
        return _fields(self._upstream)

    def watch(self, tokens: TokenStream) -> TokenStream:
        self._watched = _Watched(tokens, self)
        return self._watched

    def saw(self, token: Token) -> None:
        """A token that may say how the answer ended, or what it took."""
        if token.finish_reason is not None:
            self._finish[token.index] = token.finish_reason
        if token.usage is not None:
            self._usage = token.usage

    def stalled(self, by: str, since: int, now: int, number: int) -> None:
        """The ``number``-th wait that was long, for ``by``, from ``since`` (both nanoseconds)."""
        if number <= _MOST_STALLS:
            waited: dict[str, AttributeValue] = {
                "rawstream.waiting_for": by,
                "rawstream.seconds": (now - since) / _SECOND,
            }
            self._span.add_event("stall", waited, now)

    def answered(self, body: bytes) -> None:
        if len(body) > _LARGEST_BODY:
            return
        try:
            told = msgspec.json.decode(body, type=_Told)
        except msgspec.ValidationError:
            return  # an upstream's own ways; it was relayed as it came
        except msgspec.DecodeError:
            return
        self._usage = told.usage
        self._finish = {
            place: choice.finish_reason for place, choice in enumerate(told.choices) if choice.finish_reason is not None
        }

    def ended(self, outcome: Outcome, record: StreamRecord | None) -> None:
        span, now = self._span, time_ns()
        watched, self._watched = self._watched, None
        said = self._said(outcome, record)
        span.set_attributes(said)
        span.set_attribute("rawstream.outcome", outcome.value)
        span.set_attribute("gen_ai.request.stream", record is not None)
        if record is not None:
            span.set_attributes(_figures(record))
            if record.first_token_seconds is not None:
                at = self._begun + round(record.first_token_seconds * _SECOND)
                span.add_event("first_token", {"rawstream.seconds": record.first_token_seconds}, at)
        if watched is not None:
            watched.close_books(now)
            span.set_attribute("rawstream.stalls", watched.stalls)
        if self._upstream is not None:
            self._end_upstream(self._upstream, watched, said, outcome, now)
        if outcome not in _FINE:
            _fail(span, outcome.value)
        span.end(now)

    def _end_upstream(
        self, span: Span, watched: _Watched | None, said: dict[str, AttributeValue], outcome: Outcome, now: int
    ) -> None:
        span.set_attributes(said)
        if watched is not None and watched.first_at:
            span.set_attribute("gen_ai.response.time_to_first_chunk", (watched.first_at - self._begun) / _SECOND)
            span.add_event("first_chunk", timestamp=watched.first_at)
        if outcome in (Outcome.UPSTREAM_FAILED, Outcome.UPSTREAM_IDLE):
            _fail(span, outcome.value)
        span.end(watched.ended_at if watched is not None and watched.ended_at else now)

    def _said(self, outcome: Outcome, record: StreamRecord | None) -> dict[str, AttributeValue]:
        """How the answer ended, and what it took."""
        said: dict[str, AttributeValue] = {}
        reasons = [self._finish[place] for place in sorted(self._finish)]
        if not reasons and outcome is Outcome.COMPLETED:
            reasons = ["stop"]
        if reasons:
            said["gen_ai.response.finish_reasons"] = [
                reason if _WORD.fullmatch(reason) else "_OTHER" for reason in reasons[:128]
            ]
        usage = self._usage
        if usage is not None:
            said["gen_ai.usage.input_tokens"] = _int64(usage.prompt_tokens)
            said["gen_ai.usage.output_tokens"] = _int64(usage.completion_tokens)
        elif record is not None:
            said["gen_ai.usage.output_tokens"] = record.tokens
        return said


class _Watched:
    """A token stream that is looked at as it passes: when it began, how it ended, who was waited for."""

    __slots__ = ("_followed", "_inner", "_since", "ended_at", "first_at", "stalls")

    def __init__(self, inner: TokenStream, followed: _Followed) -> None:
        self._inner = inner
        self._followed = followed
        self._since = 0
        """Since when nobody has asked for more; 0: somebody does."""
        self.first_at = 0
        self.ended_at = 0
        self.stalls = 0

    def __aiter__(self) -> _Watched:
        return self

    async def __anext__(self) -> SourceItem:
        """The next item, as it came. Cancel-safe as the stream underneath is."""
        asked = time_ns()
        if asked - self._since > _STALL and self._since:
            self._stall("client", self._since, asked)
        self._since = 0
        try:
            item = await self._inner.__anext__()
        except BaseException:
            self.ended_at = time_ns()
            raise
        self._since = now = time_ns()
        if not self.first_at:
            self.first_at = now
        elif now - asked > _STALL:
            self._stall("source", asked, now)
        if item.__class__ is not str:
            for token in (item,) if isinstance(item, Token) else item:
                if isinstance(token, Token) and (token.finish_reason is not None or token.usage is not None):
                    self._followed.saw(token)
        return item

    async def aclose(self) -> None:
        """Close the stream underneath. Idempotent."""
        await self._inner.aclose()
        if not self.ended_at:
            self.ended_at = time_ns()

    def statistics(self) -> SourceStatistics:
        """What the stream underneath holds."""
        inner = getattr(self._inner, "statistics", None)
        return SourceStatistics() if inner is None else cast(SourceStatistics, inner())

    def close_books(self, now: int) -> None:
        """A client that was waited for until the end was waited for."""
        until = self.ended_at or now
        if self._since and until - self._since > _STALL:
            self._stall("client", self._since, until)

    def _stall(self, by: str, since: int, now: int) -> None:
        self.stalls += 1
        self._followed.stalled(by, since, now, self.stalls)


# --- what is said, and in which words ---------------------------------------------------------------------------


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Told(msgspec.Struct):
    """What of a whole answer is looked at."""

    usage: Usage | None = None
    choices: list[_Choice] = []


def _cut(name: str) -> str:
    """A name from outside, as an attribute can hold it."""
    return name[:_LONGEST_NAME].encode("utf-8", "replace").decode()


def _int64(number: int) -> int:
    """What OTLP can carry; a larger number would cost the whole batch its export."""
    return max(-(2**63), min(number, 2**63 - 1))


def _name(model: str | None) -> str:
    return "chat" if model is None else f"chat {_cut(model)}"


def _asked(request: Request) -> dict[str, AttributeValue]:
    asked: dict[str, AttributeValue] = {"gen_ai.operation.name": "chat", **_numbers(request)}
    if request.model is not None:
        asked["gen_ai.request.model"] = _cut(request.model)
    return asked


def _numbers(request: Request) -> dict[str, AttributeValue]:
    """The request's parameters that are numbers; never its messages."""
    numbers: dict[str, AttributeValue] = {}
    if request.max_tokens is not None:
        numbers["gen_ai.request.max_tokens"] = _int64(request.max_tokens)
    for field, name in _NUMBERS.items():
        value = request.extra.get(field)
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[name] = _int64(value) if isinstance(value, int) else value
    choices = request.extra.get("n")
    if isinstance(choices, int) and not isinstance(choices, bool) and choices != 1:
        numbers["gen_ai.request.choice.count"] = _int64(choices)
    return numbers


def _figures(record: StreamRecord) -> dict[str, AttributeValue]:
    """A stream's figures, by which its span is found from its log line, and the other way round."""
    figures: dict[str, AttributeValue] = {
        "http.response.status_code": record.status,
        "rawstream.stream": record.id,
        "rawstream.request_id": record.request_id,
        "rawstream.dialect": record.dialect,
        "rawstream.ended_by": record.ended_by,
        "rawstream.tokens.generated": record.tokens,
        "rawstream.tokens.delivered": record.delivered,
        "rawstream.seconds.source": record.seconds_source,
        "rawstream.seconds.client": record.seconds_client,
        "rawstream.seconds.network": record.seconds_network,
    }
    if record.first_token_seconds is not None:
        figures["gen_ai.server.time_to_first_token"] = record.first_token_seconds
    return figures


def _fail(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _fields(span: Span) -> Headers:
    """The header fields that tell an upstream of ``span``."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, set_span_in_context(span, Context()))
    return tuple(carrier.items())

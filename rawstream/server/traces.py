"""What a request is a part of: the trace that its client began, passed on, or followed where somebody follows it.

Rule 1: without a client's ``traceparent`` and without ``Tracing`` there is no trace, and it costs one look.
"""

from __future__ import annotations

from rawstream.model import Headers, Outcome, Request, StreamRecord, TokenStream, Trace, Tracing
from rawstream.wire.guard import RequestHead
from rawstream.wire.trace_context import trace_fields


class PassedOn:
    """A trace that nobody follows here: each upstream is told what the client told us."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Headers) -> None:
        self._fields = fields

    def upstream_asked(self, host: str, port: int, model: str | None) -> Headers:
        return self._fields

    def watch(self, tokens: TokenStream) -> TokenStream:
        return tokens

    def answered(self, body: bytes) -> None:
        """Nobody looks."""

    def ended(self, outcome: Outcome, record: StreamRecord | None) -> None:
        """Nobody notes it."""


def begin_trace(tracing: Tracing | None, request: Request, head: RequestHead, path: str) -> Trace | None:
    """The trace of a request that begins to be answered, noted in it; None: it has none."""
    parent = head.header("traceparent")
    sent = () if parent is None else trace_fields(parent, head.header("tracestate"))
    if tracing is not None:
        request.trace = tracing.begin(request, path, sent)
    elif sent:
        request.trace = PassedOn(sent)
    return request.trace

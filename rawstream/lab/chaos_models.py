"""What a model name asks of ``rawstream chaos``: the one list of healthy models and of faults. Pure.

Rule 1: this registry is the only list: ``rawstream chaos --list``, ``GET /v1/models``, the errors for wrong names and
        the README's table follow from it.
Rule 2: a name is ``NAME`` or ``NAME:key=value,key=value``. What is wrong with it is told to whoever asked, by name.
Rule 3: a fault in mid-stream comes after ``tokens`` tokens, so that there is something to lose.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from rawstream.errors import BadRequest

__all__ = ["MODELS", "Asked", "Model", "read_model"]

FOREVER: Final = 600.0
"""Seconds that a silence lasts unless it is told otherwise: longer than anybody's patience in a test."""


class Parameter(NamedTuple):
    """What may follow a model's name."""

    default: float
    unit: str
    least: float = 0
    most: float = 1e9
    whole: bool = True


class Model(NamedTuple):
    """One way to behave."""

    name: str
    kind: str
    """``healthy``, or what the fault is about: the headings of the list."""
    does: str
    """One line."""
    parameters: Mapping[str, Parameter]


class Asked(NamedTuple):
    """A model as a request named it."""

    model: Model
    text: str
    """Exactly as it came: what ``times`` counts by."""
    values: Mapping[str, float]

    def seconds(self, name: str) -> float:
        """A parameter as it is."""
        return self.values[name]

    def count(self, name: str) -> int:
        """A parameter that is a whole number."""
        return int(self.values[name])


def _tokens(default: int) -> Parameter:
    return Parameter(default, "tokens", most=10_000_000)


def _seconds(default: float) -> Parameter:
    return Parameter(default, "seconds", most=86_400, whole=False)


_RATE: Final = Parameter(0, "tokens/s, 0 = at once", most=1_000_000, whole=False)
_MID: Final = {"tokens": _tokens(5), "rate": _RATE}
_SIZE: Final = Parameter(32, "MiB", least=1, most=65_536)
_HOLD: Final = {"seconds": _seconds(FOREVER)}
_INTERVAL: Final = Parameter(0.5, "seconds", least=0.001, most=3600, whole=False)
_NONE: Final[Mapping[str, Parameter]] = {}

_BEFORE: Final = "instead of an answer"
_SLOW: Final = "silence before the answer"
_STATUS: Final = "another status"
_OTHER: Final = "another kind of answer"
_CUT: Final = "dies in mid-stream"
_ERROR: Final = "tells an error"
_STALL: Final = "stalls in mid-stream"
_HUGE: Final = "too much"
_BYTES: Final = "strange bytes"
_END: Final = "strange ends"
_POOL: Final = "connection reuse"

_ALL: Final = (
    Model("ok", "healthy", "a whole answer",
          {"tokens": _tokens(20), "rate": _RATE, "batch": Parameter(1, "tokens per write", least=1, most=10_000)}),
    Model("endless", "healthy", "tokens until the client leaves",
          {"rate": Parameter(100, "tokens/s, 0 = at once", most=1_000_000, whole=False)}),
    Model("unicode", "healthy", "non-ASCII text, each byte in a TCP segment of its own, chunks cut inside characters",
          {"tokens": _tokens(5)}),
    Model("slow-first", "healthy", "silence before the first token, then as ok",
          {"seconds": _seconds(2), "tokens": _tokens(20), "rate": _RATE}),
    Model("tools", "healthy", "a tool call in pieces, finish_reason tool_calls", {"tokens": _tokens(5), "rate": _RATE}),
    Model("reasoning", "healthy", "reasoning_content, then text", {"tokens": _tokens(20), "rate": _RATE}),
    Model("choices", "healthy", "as many choices as n asks for, in turns", {"tokens": _tokens(20), "rate": _RATE}),

    Model("reset-before-head", _BEFORE, "resets the connection (RST) once it has the request", _NONE),
    Model("close-before-head", _BEFORE, "closes the connection (FIN) once it has the request", _NONE),
    Model("garbage", _BEFORE, "answers with binary rubbish", _NONE),
    Model("http09", _BEFORE, "answers with a body and no head, as HTTP/0.9 did", _NONE),
    Model("huge-head", _BEFORE, "a head of 2 MB in one field",
          {"kilobytes": Parameter(2048, "KiB", least=1, most=1_048_576)}),
    Model("many-fields", _BEFORE, "a head of 20,000 fields", {"fields": Parameter(20_000, "fields", most=10_000_000)}),
    Model("bad-fields", _BEFORE, "a head with a bare CR and a NUL in its fields", _NONE),

    Model("silent", _SLOW, "takes the request and says nothing", _HOLD),
    Model("drip-head", _SLOW, "one byte of the head at a time, for ever", {"interval": _INTERVAL}),
    Model("endless-1xx", _SLOW, "103 Early Hints, again and again",
          {"interval": Parameter(0.1, "seconds", least=0.001, most=3600, whole=False)}),

    Model("status", _STATUS, "an error status with a JSON error (401 and 403 quote the key that they were given)",
          {"code": Parameter(500, "status", least=400, most=599),
           "retry_after": Parameter(-1, "seconds, -1 = not sent", least=-1, most=86_400, whole=False),
           "times": Parameter(0, "failures before it is well, 0 = always")}),
    Model("redirect", _STATUS, "302 to somewhere else",
          {"code": Parameter(302, "status", least=300, most=399)}),

    Model("html", _OTHER, "200 with a page of HTML", _NONE),
    Model("json", _OTHER, "a whole JSON answer where a stream was asked for", {"tokens": _tokens(20)}),
    Model("not-json", _OTHER, "200 application/json that is none", _NONE),
    Model("gzip", _OTHER, "a gzip-coded answer that nobody asked for", {"tokens": _tokens(20)}),
    Model("no-content", _OTHER, "204", _NONE),
    Model("length-and-te", _OTHER, "Content-Length together with Transfer-Encoding", {"tokens": _tokens(20)}),

    Model("die-after-head", _CUT, "closes after the head", _NONE),
    Model("die-between-events", _CUT, "closes between two events", _MID),
    Model("die-mid-event", _CUT, "closes in the middle of an event, its chunk whole", _MID),
    Model("die-mid-chunk", _CUT, "closes in the middle of a chunk", _MID),
    Model("reset-mid-stream", _CUT, "resets the connection (RST)", _MID),
    Model("bad-chunk-size", _CUT, "a chunk whose size is no number", _MID),
    Model("short-length", _CUT, "closes before its Content-Length is reached", _MID),

    Model("error-in-stream", _ERROR, "tokens, then data: {\"error\": …}, then the end", _MID),
    Model("error-first", _ERROR, "200, and data: {\"error\": …} before any token", _NONE),

    Model("stall", _STALL, "silence between two events", {**_MID, **_HOLD}),
    Model("stall-mid-event", _STALL, "silence in the middle of an event", {**_MID, **_HOLD}),
    Model("drip", _STALL, "an event that comes one byte at a time and never ends", {**_MID, "interval": _INTERVAL}),
    Model("pings-only", _STALL, "comment lines instead of tokens", {**_MID, "interval": _INTERVAL}),

    Model("huge-event", _HUGE, "one event of 32 MiB", {**_MID, "megabytes": _SIZE}),
    Model("endless-line", _HUGE, "a line that never ends", _MID),
    Model("endless-multiline", _HUGE, "an event of data lines that never ends", _MID),
    Model("flood", _HUGE, "394 MB of tokens, as fast as they are taken",
          {"megabytes": Parameter(376, "MiB", least=1, most=65_536)}),

    Model("cr-only", _BYTES, "lines that end in CR", {"tokens": _tokens(5)}),
    Model("split-crlf", _BYTES, "lines that end in CRLF, CR and LF in chunks of their own", {"tokens": _tokens(5)}),
    Model("bom", _BYTES, "a byte order mark first", {"tokens": _tokens(5)}),
    Model("invalid-utf8", _BYTES, "an event that is not UTF-8", _MID),
    Model("nul", _BYTES, "a NUL in an event", _MID),
    Model("junk-data", _BYTES, "events that are not JSON, or JSON of the wrong shape", _MID),

    Model("no-done", _END, "a clean end without [DONE]", {"tokens": _tokens(5), "rate": _RATE}),
    Model("after-done", _END, "more events after [DONE]", {"tokens": _tokens(5)}),
    Model("close-delimited", _END, "a whole answer that the closing of the connection ends", {"tokens": _tokens(5)}),
    Model("close-delimited-cut", _END, "the same, cut in the middle of an event", _MID),

    Model("trailing-bytes", _POOL, "a second answer that nobody asked for, after the end of the first",
          {"tokens": _tokens(5)}),
    Model("close-pooled", _POOL, "closes a kept connection when its second request comes", {"tokens": _tokens(5)}),
    Model("deaf", _POOL, "goes on writing after the client has left, until it cannot",
          {"rate": Parameter(1000, "tokens/s, 0 = at once", most=1_000_000, whole=False)}),
)  # fmt: skip

MODELS: Final[Mapping[str, Model]] = {model.name: model for model in _ALL}


def read_model(text: str) -> Asked:
    """What a request's ``model`` means.

    Raises BadRequest: 404 ``model_not_found`` with names that are near, or 400 ``bad_parameter``.
    """
    name, colon, rest = text.partition(":")
    model = MODELS.get(name)
    if model is None:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise BadRequest(
            f"there is no model {name[:80]!r}{hint} (GET /v1/models names all)", status=404, code="model_not_found"
        )
    values = {key: parameter.default for key, parameter in model.parameters.items()}
    if colon and rest:
        for pair in rest.split(","):
            key, _, value = pair.partition("=")
            values[key.strip()] = _value(model, key.strip(), value.strip())
    return Asked(model, text, values)


def _value(model: Model, key: str, text: str) -> float:
    parameter = model.parameters.get(key)
    if parameter is None:
        known = ", ".join(model.parameters) or "none"
        raise BadRequest(f"{model.name} has no parameter {key[:80]!r} (it has: {known})", code="bad_parameter")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    fits = parameter.least <= value <= parameter.most and not (parameter.whole and value % 1)
    if not fits:
        kind = "a whole number" if parameter.whole else "a number"
        raise BadRequest(
            f"{model.name}: {key} must be {kind} from {parameter.least:g} to {parameter.most:g} ({parameter.unit}), "
            f"not {text[:80]!r}",
            code="bad_parameter",
        )
    return value

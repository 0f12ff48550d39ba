"""OpenAI's chat completions wire, the answering side: ``POST /v1/chat/completions`` and ``GET /v1/models``.

Rule 1: what an upstream said travels on untouched: its event's JSON, byte for byte. Events are made here
        only where nobody upstream said them: for sources of our own, and for an end that we brought about.
Rule 2: one id, one ``created``, one model throughout. In a relay they are the upstream's.
Rule 3: every choice has one finish chunk; then the usage, if asked for; then ``[DONE]``.
Rule 4: never an ``id:``, a ``retry:`` or an event name, and a heartbeat without a blank line: openai-python
        takes any of these for an event, and fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from rawstream.model import Headers, Token, TokenItem, Usage
from rawstream.wire.json_text import NotText, as_token, quote, quote_strings, quoted
from rawstream.wire.sse import DONE, EVENT_STREAM_HEADERS

_ROLE: Final = b'{"role":"assistant","content":""}'
_END: Final = b"}\n\n"
_END_WITHOUT_USAGE: Final = b',"usage":null}\n\n'
"""The end of a chunk where usage was asked for: it is announced in each, and given in the last."""

_FINISHED: Final = ""
"""In place of a finish reason: this choice's finish chunk has gone out."""

_LESSONS: Final = 4
"""Events to look at for the upstream's id: some begin with one that has none (Azure's prompt filter results)."""


class _Identity(msgspec.Struct):
    id: str | None = None
    created: int | float | None = None
    model: str | None = None


class _Shape(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None


class OpenAIChat:
    """The streaming answer. Implements ``rawstream.model.Dialect``.

    ``created`` is in Unix seconds. ``prompt_tokens`` is what usage says when nobody counted the prompt.
    ``include_usage`` is the client's ``stream_options.include_usage``.
    """

    __slots__ = (
        "_choices", "_close", "_created", "_end", "_lessons", "_model", "_open", "_relaying", "_start",
        "_usage", "_usage_sent", "completion_tokens", "include_usage", "prompt_tokens",
    )  # fmt: skip

    name: str = "openai"
    heartbeat: bytes = b": hb\n"
    headers: Headers = EVENT_STREAM_HEADERS

    def __init__(
        self, *, id: str, created: int, model: str, include_usage: bool = False, prompt_tokens: int = 0
    ) -> None:
        self.include_usage = include_usage
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        """Deltas seen so far: the completion's length, where nobody says better."""
        self._choices: dict[int, str | None] = {}
        """The choices begun: None, the finish reason that their source gave, or ``_FINISHED``."""
        self._usage: Usage | None = None
        self._usage_sent = False
        self._relaying = False
        self._lessons = _LESSONS
        self._end = _END_WITHOUT_USAGE if include_usage else _END
        self._close = b'},"logprobs":null,"finish_reason":null}]' + self._end
        self._identify(id, created, model)

    def head(self) -> bytes:
        """Nothing: the role chunk goes with the first token, as an upstream brings its own."""
        return b""

    def encode(self, items: Sequence[TokenItem]) -> bytes:
        if items and isinstance(items[0], str):
            try:
                return self._say(quote_strings(items))
            except NotText:
                pass
        elif self._relaying and not self._lessons:
            frames = self._relay_text(items)
            if frames is not None:
                return frames
        return b"".join([self._item(as_token(item)) for item in items])

    def _relay_text(self, items: Sequence[TokenItem]) -> bytes | None:
        """A relay's common case, in one go: text for choices that have begun. None: something else is among them."""
        choices = self._choices
        raws: list[bytes] = []
        for token in items:
            if token.__class__ is not Token:
                return None
            text, raw, finish_reason, usage, index = (
                token.text,
                token.raw,
                token.finish_reason,
                token.usage,
                token.index,
            )
            if not text or raw is None or finish_reason or usage is not None or index not in choices:
                return None
            raws.append(raw)
        frames = b"data: " + b"\n\ndata: ".join(raws) + b"\n\n"
        if frames.count(b"\n") != 2 * len(raws) or b"\r" in frames:
            return None
        self.completion_tokens += len(raws)
        return frames

    def error(self, message: str, code: str) -> bytes:
        return b"data: " + error_body(message, _error_type(code), code) + b"\n\n"

    def stopped(self, reason: str) -> bytes:
        return self.terminal("stop")

    def terminal(self, finish_reason: str | None = None, reason: str | None = None) -> bytes:
        """Finish chunks that have not been sent, usage if asked for and not sent, ``[DONE]``: one write.

        ``reason`` stands in them as ``"rawstream":{"reason":…}``, which no SDK minds.

        A relay's open choices get a finish chunk only with ``finish_reason`` given: we know why *we* ended
        it, and do not make up why the upstream did.
        """
        frames = []
        if not self._choices and not self._relaying:
            frames.append(self._begin(0))
        for index, told in self._choices.items():
            said = finish_reason or told or (None if self._relaying else "stop")
            if told != _FINISHED and said:
                frames.append(self._chunk(index, b"{}", quote(said), _extension(reason)))
                self._choices[index] = _FINISHED
        if self.include_usage and not self._usage_sent:
            frames.append(self._usage_chunk())
            self._usage_sent = True
        frames.append(DONE)
        return b"".join(frames)

    # --- sources of our own

    def _say(self, strings: list[bytes]) -> bytes:
        """Content chunks of choice 0."""
        if not strings:
            return b""
        self.completion_tokens += len(strings)
        start, close = self._open, self._close
        # One token at a time is the common case, and need not build a separator of some 200 bytes.
        body = start + (strings[0] if len(strings) == 1 else (close + start).join(strings)) + close
        return body if 0 in self._choices else self._begin(0) + body

    def _item(self, token: Token) -> bytes:
        if token.raw is not None:
            return self._relay(token, token.raw)
        index = token.index
        frames = b""
        if token.text:
            frames = self._begin(index) if index not in self._choices else b""
            frames += self._chunk(index, b'{"content":' + quoted(token.text) + b"}")
            self.completion_tokens += 1
        if token.finish_reason:
            frames = frames if index in self._choices else self._begin(index)
            self._choices[index] = token.finish_reason
        if token.usage is not None:
            self._usage = token.usage
        return frames

    def _begin(self, index: int) -> bytes:
        self._choices[index] = None
        return self._chunk(index, _ROLE)

    def _chunk(self, index: int, delta: bytes, finish_reason: bytes = b"null", more: bytes = b"") -> bytes:
        return b'%b"choices":[{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}]%b%b' % (
            self._start, index, delta, finish_reason, more, self._end,
        )  # fmt: skip

    def _usage_chunk(self) -> bytes:
        usage = self._usage or _count(self.prompt_tokens, self.completion_tokens)
        return self._start + b'"choices":[],"usage":' + msgspec.json.encode(usage) + _END

    # --- an upstream's events

    def _relay(self, token: Token, raw: bytes) -> bytes:
        self._relaying = True
        if self._lessons:
            self._learn(raw)
        if token.usage is not None:
            self._usage = token.usage
            if not _has_choices(raw):
                self._usage_sent = self.include_usage
                return _event(raw) if self.include_usage else b""
        index = token.index
        begun = index in self._choices
        if token.finish_reason:
            self._choices[index] = _FINISHED
        elif not begun:
            self._choices[index] = None
        # A delta without text may be a tool call's or a thought's, and counts; the role chunk and the end
        # do not.
        if token.text or (begun and not token.finish_reason):
            self.completion_tokens += 1
        return _event(raw)

    def _learn(self, raw: bytes) -> None:
        """Take over who the upstream says it is, for the chunks that we may have to add."""
        self._lessons -= 1
        try:
            said = msgspec.json.decode(raw, type=_Identity)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # Not our business: it is relayed as it is.
            return
        if said.id:
            self._lessons = 0
            self._identify(said.id, int(said.created or self._created), said.model or self._model)

    def _identify(self, id: str, created: int, model: str) -> None:
        self._created, self._model = created, model
        self._start = b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,' % (
            quote(id), created, quote(model),
        )  # fmt: skip
        self._open = self._start + b'"choices":[{"index":0,"delta":{"content":'


def _extension(reason: str | None) -> bytes:
    """Our own field in a chunk or an answer that we ended early; b'' when there is no reason to tell."""
    return b"" if reason is None else b',"rawstream":{"reason":' + quote(reason) + b"}"


def _event(raw: bytes) -> bytes:
    if b"\n" in raw or b"\r" in raw:
        # The event came as several data lines, and leaves as several.
        raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\ndata: ")
    return b"data: " + raw + b"\n\n"


def _has_choices(raw: bytes) -> bool:
    try:
        return bool(msgspec.json.decode(raw, type=_Shape).choices)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True


def _count(prompt_tokens: int, completion_tokens: int) -> Usage:
    return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)


# --- bodies -------------------------------------------------------------------------------------------------


def whole_answer(
    items: Iterable[TokenItem],
    *,
    id: str,
    created: int,
    model: str,
    finish_reason: str | None = None,
    reason: str | None = None,
    prompt_tokens: int = 0,
) -> bytes:
    """The ``chat.completion`` object for an answer that was not streamed. ``finish_reason`` overrides the tokens'.

    ``reason``: why it was ended early, as in a stream.
    """
    contents: dict[int, list[str]] = {0: []}
    reasons: dict[int, str] = {}
    usage: Usage | None = None
    for token in map(as_token, items):
        if token.text:
            contents.setdefault(token.index, []).append(token.text)
        if token.finish_reason:
            contents.setdefault(token.index, [])
            reasons[token.index] = token.finish_reason
        usage = token.usage or usage
    choices = [
        b'{"index":%d,"message":{"role":"assistant","content":%b},"logprobs":null,"finish_reason":%b}'
        % (index, quote("".join(pieces)), quote(finish_reason or reasons.get(index, "stop")))
        for index, pieces in sorted(contents.items())
    ]
    usage = usage or _count(prompt_tokens, sum(map(len, contents.values())))
    return b'{"id":%b,"object":"chat.completion","created":%d,"model":%b,"choices":[%b],"usage":%b%b}' % (
        quote(id), created, quote(model), b",".join(choices), msgspec.json.encode(usage), _extension(reason),
    )  # fmt: skip


def error_body(message: str, type: str, code: str, param: str | None = None) -> bytes:
    """The body of every error on this wire, and the data of an in-stream one. ``param``: the field that is wrong."""
    return b'{"error":{"message":%b,"type":%b,"param":%b,"code":%b}}' % (
        quote(message), quote(type), b"null" if param is None else quote(param), quote(code),
    )  # fmt: skip


def _error_type(code: str) -> str:
    return code if code == "insufficient_quota" else "server_error"


def models_body(ids: Iterable[str], created: int) -> bytes:
    """The body of ``GET /v1/models``. ``created`` is in Unix seconds."""
    models = [b'{"id":%b,"object":"model","created":%d,"owned_by":"rawstream"}' % (quote(id), created) for id in ids]
    return b'{"object":"list","data":[' + b",".join(models) + b"]}"

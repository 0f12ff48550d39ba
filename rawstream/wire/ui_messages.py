"""The AI SDK's UI message stream, version 1: what ``useChat`` reads.

    data: {"type":"start","messageId":"m1"}
    data: {"type":"start-step"}
    data: {"type":"text-start","id":"t1"}
    data: {"type":"text-delta","id":"t1","delta":"Hello"}        any number of these
    data: {"type":"text-end","id":"t1"}
    data: {"type":"finish-step"}
    data: {"type":"finish","finishReason":"stop"}
    data: [DONE]

Rule 1: order is all. A delta before its start, or a type that the client does not know, is fatal to it. One part
        of text or of thoughts is open at a time; what comes between two of them ends the first.
Rule 2: tokens that are ready together become one delta: the client renders once for each.
Rule 3: a failure is ``error`` and nothing after it; a stop is ``abort`` and the end. A disconnect is neither.
Rule 4: an upstream's event is decoded only where it may hold more than text: a token of text costs what it costs
        in the other dialects.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from rawstream.errors import SourceFailed
from rawstream.model import DataPart, Headers, Token, TokenItem, Usage
from rawstream.wire.deltas import CallPiece, ToolCall, ToolCalls, read_beside
from rawstream.wire.json_text import as_token, quote, quoted
from rawstream.wire.sse import DONE, EVENT_STREAM_HEADERS, HEARTBEAT

UI_MESSAGE_HEADERS: Final[Headers] = (*EVENT_STREAM_HEADERS, ("x-vercel-ai-ui-message-stream", "v1"))

_END: Final = b"}\n\n"
_TEXT, _THOUGHT = b"text", b"reasoning"
_FIRST_TEXT: Final = b'data: {"type":"text-delta","id":"t1","delta":'
"""Most answers are one text: they share this."""
_DATA_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

_FINISH_REASONS: Final = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content-filter",
    "tool_calls": "tool-calls",
    "function_call": "tool-calls",
}
"""OpenAI's words to the SDK's. Anything else is 'other': the client checks against a closed list."""


class UIMessages:
    """Implements ``rawstream.model.Dialect``. ``message_id`` becomes the id of the assistant's message.

    Choice 0 alone is shown: a message has one content.
    """

    __slots__ = ("_calls", "_delta", "_finish_reason", "_message_id", "_open", "_part", "_texts", "_thoughts", "_usage")

    name: str = "ui-messages"
    heartbeat: bytes = HEARTBEAT
    headers: Headers = UI_MESSAGE_HEADERS

    def __init__(self, message_id: str) -> None:
        self._message_id = message_id
        self._delta = b""
        """How a text delta begins; b'' while no text part is open."""
        self._open: bytes | None = None
        """The part that is open: ``_TEXT``, ``_THOUGHT`` or None."""
        self._part = b""
        """Its id, as JSON."""
        self._texts = 0
        self._thoughts = 0
        self._calls: ToolCalls | None = None
        self._finish_reason: str | None = None
        self._usage: Usage | None = None

    def head(self) -> bytes:
        """The message and its one step begin. Parts begin with what they hold."""
        return b'data: {"type":"start","messageId":' + quote(self._message_id) + b'}\n\ndata: {"type":"start-step"}\n\n'

    def encode(self, items: Sequence[TokenItem]) -> bytes:
        """Raises TypeError for what is no token, and SourceFailed for a data part that cannot be sent."""
        if self._delta and items and items[0].__class__ is str:
            # The common case: text goes on.
            if len(items) == 1:
                return self._delta + quoted(items[0]) + _END if items[0] else b""
            try:
                text = "".join(cast("Sequence[str]", items))
            except TypeError:
                pass
            else:
                return self._delta + quoted(text) + _END if text else b""
        frames: list[bytes] = []
        texts: list[str] = []
        for item in items:
            if item.__class__ is str:
                texts.append(item)
                continue
            token = item if item.__class__ is Token else as_token(item)
            if token.text and self._delta and not token.finish_reason and token.usage is None and token.data is None:
                # Nothing but text. An event with thoughts or calls beside its text comes where they meet: at the
                # begin of a text, or as the whole answer, which has a finish reason.
                if not token.index:
                    texts.append(token.text)
                continue
            self._take(token, texts, frames)
        self._write(texts, frames)
        return b"".join(frames)

    def error(self, message: str, code: str) -> bytes:
        """``code`` has no place in this protocol; the message is all that the client shows."""
        return b'data: {"type":"error","errorText":' + quote(message) + _END

    def stopped(self, reason: str) -> bytes:
        """The end of an answer that was stopped on purpose; it takes the place of ``terminal``."""
        return self._close() + b'data: {"type":"abort","reason":' + quote(reason) + _END + DONE

    def terminal(self, finish_reason: str | None = None, reason: str | None = None) -> bytes:
        """What is open ends, calls are told whole, and the message is finished, with its usage where it is known.

        Its metadata holds ``reason`` too, where there is one.
        """
        frames = [self._close()]
        self._end_calls(frames)
        said = _FINISH_REASONS.get(finish_reason or self._finish_reason or "stop", "other")
        frames.append(b'data: {"type":"finish-step"}\n\ndata: {"type":"finish","finishReason":' + quote(said))
        metadata = [] if self._usage is None else [b'"usage":' + _usage(self._usage)]
        if reason is not None:
            metadata.append(b'"reason":' + quote(reason))
        if metadata:
            frames.append(b',"messageMetadata":{' + b",".join(metadata) + b"}")
        return b"".join([*frames, _END, DONE])

    # --- parts

    def _write(self, texts: list[str], frames: list[bytes]) -> None:
        """Add ``texts``, which it empties, to the open text part, or begin one."""
        text = "".join(texts)
        texts.clear()
        if text:
            if not self._delta:
                frames.append(self._begin(_TEXT))
            frames.append(self._delta + quoted(text) + _END)

    def _begin(self, kind: bytes) -> bytes:
        """Close what is open and open a part of ``kind``."""
        closing = self._close()
        self._open = kind
        if kind is _TEXT:
            self._texts += 1
            self._part = b'"t%d"' % self._texts
            more = b'data: {"type":"text-delta","id":' + self._part + b',"delta":'
            self._delta = _FIRST_TEXT if self._texts == 1 else more
        else:
            self._thoughts += 1
            self._part = b'"r%d"' % self._thoughts
        return closing + b'data: {"type":"' + kind + b'-start","id":' + self._part + _END

    def _close(self) -> bytes:
        """The end of the open part; b'' when none is open."""
        kind, self._open, self._delta = self._open, None, b""
        return b"" if kind is None else b'data: {"type":"' + kind + b'-end","id":' + self._part + _END

    def _take(self, token: Token, texts: list[str], frames: list[bytes]) -> None:
        """All that a token holds, in the order thoughts, text, calls. ``texts`` wait to be joined with the next."""
        if token.usage is not None:
            self._usage = token.usage
        if token.data is not None:
            self._write(texts, frames)
            self._take_data(token.data, frames)
        if token.index:
            return
        calls: list[CallPiece] = []
        if token.raw is not None:
            thought, calls = read_beside(token.raw)
            if thought:
                self._write(texts, frames)
                if self._open is not _THOUGHT:
                    frames.append(self._begin(_THOUGHT))
                frames.append(b'data: {"type":"reasoning-delta","id":%b,"delta":%b}\n\n' % (self._part, quote(thought)))
        texts.append(token.text)
        for piece in calls:
            self._write(texts, frames)
            self._take_call(piece, frames)
        if token.finish_reason:
            self._finish_reason = token.finish_reason
            self._write(texts, frames)
            self._end_calls(frames)

    def _take_data(self, part: DataPart, frames: list[bytes]) -> None:
        if _DATA_NAME.fullmatch(part.name) is None:
            raise SourceFailed(f"a data part's name is 1 to 64 letters, digits, '-' and '_', not {part.name[:64]!r}")
        try:
            value = _one_line(msgspec.json.encode(part.value))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise SourceFailed(f"the data part {part.name} holds what JSON cannot: {error}") from None
        if not part.transient:
            # It is kept in the message, where it came: between two texts.
            frames.append(self._close())
        end = b',"transient":true}\n\n' if part.transient else _END
        frames.append(b'data: {"type":"data-%b","data":%b%b' % (part.name.encode(), value, end))

    # --- tool calls

    def _take_call(self, piece: CallPiece, frames: list[bytes]) -> None:
        if self._calls is None:
            self._calls = ToolCalls()
        call, over = self._calls.take(piece)
        if over is not None:
            frames.append(_ended(over))
        fresh = piece.arguments
        if call.name and not call.told:
            # A call begins when its name is known; what came before goes with the first delta.
            call.told = True
            fresh = call.so_far
            frames.append(self._close())
            frames.append(
                b'data: {"type":"tool-input-start","toolCallId":%b,"toolName":%b}\n\n'
                % (quote(call.id), quote(call.name))
            )
        if call.told and fresh and not call.too_long:
            frames.append(
                b'data: {"type":"tool-input-delta","toolCallId":%b,"inputTextDelta":%b}\n\n'
                % (quote(call.id), quote(fresh))
            )

    def _end_calls(self, frames: list[bytes]) -> None:
        if self._calls is not None:
            frames.append(self._close())
            frames.extend(map(_ended, self._calls.take_all()))


def _ended(call: ToolCall) -> bytes:
    """A call's input as a whole, or why there is none."""
    fault = call.fault()
    told: dict[str, Any] = {
        "type": "tool-input-available" if fault is None else "tool-input-error",
        "toolCallId": call.id,
        "toolName": call.name or "unknown",
        "input": call.arguments if fault is not None else msgspec.Raw(call.arguments.encode()),
    }
    if fault is not None:
        told["errorText"] = fault
    return b"data: " + _one_line(msgspec.json.encode(told)) + b"\n\n"


def _one_line(json: bytes) -> bytes:
    """Line ends are possible in JSON that somebody else made, where they stand between its tokens."""
    return json.replace(b"\n", b" ").replace(b"\r", b" ")


def _usage(usage: Usage) -> bytes:
    """In the SDK's words (``LanguageModelUsage``)."""
    return b'{"inputTokens":%d,"outputTokens":%d,"totalTokens":%d}' % (
        usage.prompt_tokens, usage.completion_tokens, usage.total_tokens,
    )  # fmt: skip

"""What an OpenAI chunk holds beside text: thoughts and pieces of tool calls; and tool calls put together again.

Rule 1: what is not understood is passed over, not judged: nothing here raises, whatever an upstream sent.
Rule 2: pieces belong together by their ``index``. Some servers send every call under index 0, or none, each with
        an id and a name of its own: that, too, is another call.
Rule 3: arguments are kept until they are whole, so their sum is bounded; and so are names, and calls.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

MAX_ARGUMENTS: Final = 512 * 1024
"""Characters of tool arguments kept for one answer. Real ones stay below a few KiB; a file written by a tool may
have hundreds."""
MAX_CALLS: Final = 128
"""Calls of one answer that are under way together. With one more the first of them counts as over."""

MAX_NAME: Final = 64 * 1024
"""Characters of a call's id, and of its name. Real ones have some dozens; but some gateways put thoughts, signed, into
their ids."""

_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Delta(msgspec.Struct, gc=False):
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    index: int = 0


class _Chunk(msgspec.Struct, gc=False):
    choices: tuple[_Choice, ...] | None = None


class CallPiece(NamedTuple):
    """One entry of a delta's ``tool_calls``; '' where it says nothing."""

    at: int | None
    """Its ``index``."""
    id: str
    name: str
    arguments: str


class Beside(NamedTuple):
    """What choice 0 of a chunk says beside its text."""

    thought: str
    calls: list[CallPiece]


NOTHING: Final = Beside("", [])
_decode: Final = msgspec.json.Decoder(_Chunk).decode


def read_beside(raw: bytes) -> Beside:
    """Thoughts (``reasoning_content``, as DeepSeek and vLLM have them, or ``reasoning``) and tool calls in ``raw``."""
    try:
        choices = _decode(raw).choices
    except _UNREADABLE:
        return NOTHING
    delta = next((choice.delta for choice in choices or () if choice.index == 0), None)
    if delta is None:
        return NOTHING
    thought = next((said for said in (delta.reasoning_content, delta.reasoning) if said and isinstance(said, str)), "")
    calls = delta.tool_calls if isinstance(delta.tool_calls, list) else ()
    return Beside(thought, [_piece(call) for call in calls if isinstance(call, dict)])


def _piece(call: dict[str, Any]) -> CallPiece:
    function = call.get("function")
    if not isinstance(function, dict):
        function = {}
    at, arguments = call.get("index"), function.get("arguments")
    if isinstance(arguments, dict):
        # Not a piece of JSON text but the thing itself, as Ollama once had it.
        arguments = msgspec.json.encode(arguments).decode()
    return CallPiece(
        at if isinstance(at, int) else None,
        _text(call.get("id"))[:MAX_NAME],
        _text(function.get("name"))[:MAX_NAME],
        _text(arguments),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


class ToolCall:
    """A call that is being told."""

    __slots__ = ("_pieces", "id", "name", "told", "too_long")

    def __init__(self, id: str) -> None:
        self.id = id
        self.name = ""
        self.told = False
        """Has its reader been told that it began?"""
        self.too_long = False
        """More was told than is kept: what is kept is not all."""
        self._pieces: list[str] = []

    def keep(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)

    @property
    def held(self) -> int:
        """Pieces that are kept."""
        return len(self._pieces)

    @property
    def so_far(self) -> str:
        """What was told of the arguments, as it came."""
        return "".join(self._pieces)

    @property
    def arguments(self) -> str:
        """The arguments, now that they are whole; ``{}`` when nothing was told: some servers say "none" so."""
        return self.so_far.strip() or "{}"

    def fault(self) -> str | None:
        """What is wrong with the call, now that it is over; None: its arguments are JSON."""
        if not self.name:
            return "the call names no tool"
        if self.too_long:
            return f"the arguments of all calls are longer than {MAX_ARGUMENTS} characters"
        try:
            msgspec.json.decode(self.arguments)
        except _UNREADABLE:
            return "the arguments are not valid JSON"
        return None


class ToolCalls:
    """The calls of one answer."""

    __slots__ = ("_calls", "_last", "_made", "_size")

    def __init__(self) -> None:
        self._calls: dict[int, ToolCall] = {}
        self._last = 0
        self._made = 0
        self._size = 0

    def take(self, piece: CallPiece) -> tuple[ToolCall, ToolCall | None]:
        """The call that ``piece`` belongs to, its arguments kept; and one that this shows to be over."""
        over = None
        index = self._last if piece.at is None else piece.at
        call = self._calls.get(index)
        if call is not None and piece.id and piece.name and call.name and piece.id != call.id:
            over = self._calls.pop(index)
            call = None
        if call is None:
            if len(self._calls) >= MAX_CALLS:
                over = self._calls.pop(next(iter(self._calls)))
            self._made += 1
            call = self._calls[index] = ToolCall(piece.id or f"call_{self._made}")
        self._last = index
        call.name = call.name or piece.name
        self._size += len(piece.arguments)
        if self._size <= MAX_ARGUMENTS:
            call.keep(piece.arguments)
        else:
            call.too_long = True
        return call, over

    def take_all(self) -> list[ToolCall]:
        """The calls that are not over yet, in the order they began: now they are."""
        calls = list(self._calls.values())
        self._calls.clear()
        return calls

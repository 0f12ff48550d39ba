"""Where an answer of a source of our own ends before the source does: ``max_tokens`` and ``stop``. No I/O.

Rule 1: each choice ends for itself; the answer is over when all of them are.
Rule 2: what a token holds beside its text (usage, data) is never lost.
Rule 3: one string that a source yields is one token. At ``max_tokens`` none is asked for that would be thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from rawstream.model import Request, Token, TokenItem
from rawstream.wire.json_body import check_count
from rawstream.wire.json_text import as_token
from rawstream.wire.stop_sequences import StopSequences, read_stop


class Limits(msgspec.Struct, frozen=True):
    """What a request says about its answer's end."""

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    choices: int = 1


def limits_of(request: Request) -> Limits | None:
    """The limits in ``request``; None: it has none. Raises BadRequest.

    ``max_completion_tokens`` is the newer name of ``max_tokens``; the lower one counts.
    """
    extra: dict[str, Any] = request.extra
    newer = check_count(extra.get("max_completion_tokens"), "max_completion_tokens")
    most = min((count for count in (request.max_tokens, newer) if count is not None), default=None)
    stop = read_stop(extra.get("stop"))
    if most is None and not stop:
        return None
    return Limits(most, stop, check_count(extra.get("n"), "n") or 1)


class _Choice:
    __slots__ = ("ended", "stop", "tokens")

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.stop = StopSequences(stop) if stop else None
        self.tokens = 0
        self.ended = False


class LimitedAnswer:
    """One answer on its way."""

    __slots__ = ("_choices", "_limits", "_running")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._choices: dict[int, _Choice] = {}
        self._running = limits.choices

    @property
    def over(self) -> bool:
        """Have all choices ended? Then nothing more need be asked for."""
        return self._running <= 0

    def take(self, items: Sequence[TokenItem]) -> list[TokenItem]:
        """What goes out of ``items``, which came together."""
        out: list[TokenItem] = []
        for item in items:
            if item.__class__ is str and self.passes(item):
                out.append(item)
            else:
                self._take(item, out)
        return out

    def passes(self, text: str) -> bool:
        """Does ``text`` of choice 0 go out as it is, the common case? Then it is counted, and need not be taken."""
        choice = self._choices.get(0)
        if choice is None or not text or choice.ended or choice.tokens + 1 == self._limits.max_tokens:
            return False
        if choice.stop is not None and not choice.stop.passes(text):
            return False
        choice.tokens += 1
        return True

    def end(self) -> list[TokenItem]:
        """What was held back, now that the source has ended."""
        held = [(index, choice.stop.end()) for index, choice in self._choices.items() if choice.stop is not None]
        return [Token(text, index=index) for index, text in held if text]

    def _take(self, item: TokenItem, out: list[TokenItem]) -> None:
        token = as_token(item)
        choice = self._choices.get(token.index)
        if choice is None:
            choice = self._choices[token.index] = _Choice(self._limits.stop)
        text, reason = token.text, token.finish_reason
        if choice.ended:
            text, reason = "", None
        elif text:
            text, reason = self._say(choice, text, reason)
        if reason is not None and not choice.ended:
            if choice.stop is not None:
                text += choice.stop.end()
            choice.ended = True
            self._running -= 1
        if text == token.text and reason == token.finish_reason:
            out.append(item)
        elif text or reason or token.usage is not None or token.data is not None:
            # Its event, if it has one, says something else now.
            out.append(msgspec.structs.replace(token, text=text, finish_reason=reason, raw=None))

    def _say(self, choice: _Choice, text: str, reason: str | None) -> tuple[str, str | None]:
        """The text that goes out, and why the choice ends with it, if it does."""
        choice.tokens += 1
        if choice.stop is not None:
            text, hit = choice.stop.feed(text)
            if hit:
                return text, "stop"
        if reason is None and choice.tokens == self._limits.max_tokens:
            reason = "length"
        return text, reason

"""Where an answer stops: at a stop sequence of the client's, wherever the tokens' edges lie.

Rule 1: what goes out does not depend on how the text was cut into tokens. The answer ends before the sequence that
        is complete first; of two that end together, before the longer one.
Rule 2: held back is what may yet turn out to be the begin of a sequence, and not a character more.
Rule 3: the time does not depend on what the text and the sequences are, but on their lengths alone
        (Knuth, Morris and Pratt, SIAM J. Comput. 6, 1977).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from rawstream.wire.json_body import BadField, kind_of

MOST: Final = 4
"""Sequences in one request, as OpenAI has it."""
LONGEST: Final = 1000
"""Characters of one. Real ones are a word or two; this much, at most, is held back."""


def read_stop(value: Any) -> tuple[str, ...]:
    """A body's ``stop``: null, a string, or a list of up to 4 of them. Raises BadRequest."""
    if value is None:
        return ()
    sequences = [value] if isinstance(value, str) else value
    if not isinstance(sequences, list) or not all(isinstance(one, str) for one in sequences):
        raise BadField(f"stop must be a string or a list of strings, not {kind_of(value)}", "stop")
    if len(sequences) > MOST:
        raise BadField(f"stop holds {len(sequences)} sequences; {MOST} are possible", "stop")
    if not all(0 < len(one) <= LONGEST for one in sequences):
        raise BadField(f"a stop sequence is 1 to {LONGEST} characters long", "stop")
    return tuple(sequences)


def _borders(sequence: str) -> list[int]:
    """For each prefix's length: the length of the longest shorter prefix that it ends with."""
    borders = [0, 0]
    length = 0
    for character in sequence[1:]:
        while length and sequence[length] != character:
            length = borders[length]
        if sequence[length] == character:
            length += 1
        borders.append(length)
    return borders


class StopSequences:
    """Looks for some sequences, none of them empty, in one text that comes piece by piece."""

    __slots__ = ("_borders", "_held", "_matched", "_none_begins", "_sequences")

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = tuple(sequences)
        self._borders = [_borders(sequence) for sequence in self._sequences]
        self._matched = [0] * len(self._sequences)
        """How much of each sequence the text so far ends with, in characters."""
        self._held = ""
        firsts = "".join({re.escape(sequence[0]) for sequence in self._sequences})
        self._none_begins = re.compile(f"[^{firsts}]*").fullmatch

    def passes(self, text: str) -> bool:
        """Does ``text`` go out as it is? Then it need not be fed."""
        return not self._held and self._none_begins(text) is not None

    def feed(self, text: str) -> tuple[str, bool]:
        """What may go out now; and whether a sequence is complete, which ends the answer: nothing is fed after it."""
        if self.passes(text):
            return text, False
        matched = self._matched
        known = len(self._held)
        text = self._held + text
        for position in range(known, len(text)):
            character = text[position]
            hit = 0
            for number, sequence in enumerate(self._sequences):
                length, borders = matched[number], self._borders[number]
                while length and sequence[length] != character:
                    length = borders[length]
                if sequence[length] == character:
                    length += 1
                matched[number] = length
                if length == len(sequence) > hit:
                    hit = length
            if hit:
                self._held = ""
                return text[: position + 1 - hit], True
        begun = len(text) - max(matched)
        self._held = text[begun:]
        return text[:begun], False

    def end(self) -> str:
        """What was held back, now that nothing comes after it."""
        held, self._held = self._held, ""
        return held

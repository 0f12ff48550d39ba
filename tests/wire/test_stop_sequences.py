"""Stop sequences: found wherever the tokens' edges lie, and nothing held back that need not be."""

from __future__ import annotations

from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawstream.wire.stop_sequences import StopSequences


def run(sequences: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    """What goes out for each piece (and at the end), and whether a sequence was met."""
    core = StopSequences(sequences)
    out = []
    for piece in pieces:
        text, hit = core.feed(piece)
        out.append(text)
        if hit:
            return out, True
    return [*out, core.end()], False


@pytest.mark.parametrize(
    ("sequences", "pieces", "out", "hit"),
    [
        (["END"], ["some", " text"], ["some", " text", ""], False),
        (["END"], ["a END b"], ["a "], True),
        (["END"], ["a E", "N", "D b"], ["a ", "", ""], True),
        (["END"], ["a E", "NE", "xt"], ["a ", "EN", "Ext", ""], False),
        (["END"], ["a EN"], ["a ", "EN"], False),
        (["\n\n"], ["a\n", "\nb"], ["a", ""], True),
        (["\n\n"], ["a\n", "b"], ["a", "\nb", ""], False),
        (["aab"], ["aa", "a", "b"], ["", "a", ""], True),
        (["abc", "b"], ["a", "b"], ["", "a"], True),
        (["bc", "abc"], ["xabc"], ["x"], True),
        (["]", "^-"], ["a^", "]"], ["a", "^"], True),
        (["é♪"], ["caf", "é", "♪"], ["caf", "", ""], True),
    ],
)
def test_an_answer_ends_before_the_sequence_and_holds_back_only_its_begin(
    sequences: list[str], pieces: list[str], out: list[str], hit: bool
) -> None:
    """Across tokens, within one, with false starts, several sequences, characters of any kind."""
    assert run(sequences, pieces) == (out, hit)


def expected(sequences: list[str], text: str) -> tuple[str, bool]:
    """By looking at every prefix: the first that ends with a sequence, without the longest such one."""
    for end in range(len(text) + 1):
        found = [len(sequence) for sequence in sequences if text[:end].endswith(sequence)]
        if found:
            return text[: end - max(found)], True
    return text, False


TEXT = st.text("ab\n]", max_size=14)


@given(st.lists(st.text("ab\n]", min_size=1, max_size=4), min_size=1, max_size=4), st.lists(TEXT, max_size=6))
def test_how_the_text_is_cut_into_tokens_changes_nothing(sequences: list[str], pieces: list[str]) -> None:
    """The same text goes out, whole or character by character; and what is held back is the begin of a sequence."""
    text = "".join(pieces)
    wanted = expected(sequences, text)
    for cut in (pieces, [text], list(text)):
        out, hit = run(sequences, cut)
        assert ("".join(out), hit) == wanted
    core, gone = StopSequences(sequences), ""
    for number, character in enumerate(text, 1):
        now, hit = core.feed(character)
        gone += now
        if hit:
            return
        held = text[len(gone) : number]
        assert not held or any(sequence.startswith(held) for sequence in sequences)


def test_nobody_can_make_it_slow() -> None:
    """A sequence that almost matches at every position takes time in proportion to the text, not to its square."""
    core = StopSequences(["a" * 20_000 + "b"])
    begun = perf_counter()
    for _ in range(2_000):
        core.feed("a" * 20)
    assert perf_counter() - begun < 5

"""Where an answer of a source of our own ends before its source does."""

from __future__ import annotations

from typing import Any

import pytest

from rawstream.model import DataPart, Request, Token, TokenItem, Usage
from rawstream.wire.answer_limits import LimitedAnswer, Limits, limits_of
from rawstream.wire.json_body import BadField


def ask(max_tokens: int | None = None, **extra: Any) -> Request:
    return Request([{"role": "user", "content": "hi"}], max_tokens=max_tokens, extra=extra)


def test_a_request_without_limits_has_none() -> None:
    """And costs nothing."""
    assert limits_of(ask(stop=None, n=3)) is None
    assert limits_of(ask(stop=[], max_completion_tokens=None)) is None


def test_both_names_of_the_limit_count_and_the_lower_one_most() -> None:
    """``max_completion_tokens`` is what OpenAI calls it now."""
    assert limits_of(ask(3)) == Limits(3)
    assert limits_of(ask(max_completion_tokens=4)) == Limits(4)
    assert limits_of(ask(3, max_completion_tokens=4)) == Limits(3)
    assert limits_of(ask(5, max_completion_tokens=4, stop="x", n=2)) == Limits(4, ("x",), 2)


@pytest.mark.parametrize("stop", [5, {"a": 1}, ["a", 5], [""], "", ["a"] * 5, "x" * 1001])
def test_sequences_that_make_no_sense_are_refused(stop: object) -> None:
    """By name."""
    with pytest.raises(BadField, match="stop") as refused:
        limits_of(ask(stop=stop))
    assert refused.value.param == "stop"


def test_the_last_token_says_length_and_nothing_comes_after_it() -> None:
    """Empty texts are no tokens; what came together stays together."""
    answer = LimitedAnswer(Limits(3))
    assert answer.take(["a", "", Token("b")]) == ["a", "", Token("b")]
    assert not answer.over
    assert answer.take(["c", "d"]) == [Token("c", finish_reason="length")]
    assert answer.over
    assert answer.end() == []


@pytest.mark.parametrize("stop", [(), ("END",)])
def test_each_text_counts_once_however_it_came(stop: tuple[str, ...]) -> None:
    """One by one, together, as tokens, empty ones not; the fifth is the last."""
    batches: list[list[TokenItem]] = [["a", "b", "", "c", "d"], ["a", Token("b"), "c", "", Token("d")]]
    for items in batches:
        answer = LimitedAnswer(Limits(5, stop))
        assert answer.take(items) == items
        assert answer.take(["e", "f"]) == [Token("e", finish_reason="length")]
        one_by_one = LimitedAnswer(Limits(5, stop))
        assert [one_by_one.take((item,)) for item in [*items, "e", "f"]] == [
            *([item] for item in items),
            [Token("e", finish_reason="length")],
            [],
        ]


def test_the_sources_own_finish_reason_counts() -> None:
    """Also with the last token that is possible; held text goes out with it."""
    answer = LimitedAnswer(Limits(1, ("abc",)))
    last = Token("ab", finish_reason="content_filter")
    assert answer.take([last]) == [last]
    assert answer.over
    told = LimitedAnswer(Limits(stop=("abc",)))
    assert told.take(["xab"]) == [Token("x")]
    assert told.take([Token(finish_reason="stop")]) == [Token("ab", finish_reason="stop")]


def test_a_sequence_ends_the_answer_with_stop() -> None:
    """Across tokens; what follows it is gone, but for what is no text."""
    answer = LimitedAnswer(Limits(stop=("END",)))
    assert answer.take(["a", " E", "ND"]) == ["a", Token(" "), Token("", finish_reason="stop")]
    usage, data = Token("x", usage=Usage(1, 2, 3)), Token("y", finish_reason="length", data=DataPart("d", 1))
    assert answer.take(["b", usage, data]) == [Token(usage=usage.usage), Token(data=data.data)]


def test_at_the_limit_what_was_held_back_goes_out() -> None:
    """It was no sequence after all, and was counted."""
    answer = LimitedAnswer(Limits(2, ("END",)))
    assert answer.take(["aE", "N"]) == [Token("a"), Token("EN", finish_reason="length")]


def test_at_the_sources_end_what_was_held_back_goes_out() -> None:
    """Of each choice."""
    answer = LimitedAnswer(Limits(stop=("END",), choices=2))
    out: list[TokenItem] = ["aE", Token("bEN", index=1), Token("c", index=1)]
    assert answer.take(out) == [Token("a"), Token("b", index=1), Token("ENc", index=1)]
    assert answer.end() == [Token("E")]


def test_each_choice_ends_for_itself() -> None:
    """The answer is over with the last of them."""
    answer = LimitedAnswer(Limits(2, choices=2))
    assert answer.take(["a", "b", "c", Token("d", index=1)]) == [
        "a",
        Token("b", finish_reason="length"),
        Token("d", index=1),
    ]
    assert not answer.over
    assert answer.take(["e", Token("f", index=1)]) == [Token("f", finish_reason="length", index=1)]
    assert answer.over


def test_an_event_of_the_sources_own_is_kept_as_long_as_it_is_true() -> None:
    """Where the text is another, it says something else."""
    answer = LimitedAnswer(Limits(stop=("END",)))
    whole = Token("a", raw=b"{}")
    assert answer.take([whole, Token("bE", raw=b"{}")]) == [whole, Token("b")]

"""JSON strings: any text has one, none breaks a line, and the table that makes them fast stays small."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawstream.model import Token
from rawstream.wire.json_text import (
    MAX_ENTRIES,
    MAX_LENGTH,
    NotText,
    as_token,
    join_texts,
    quote,
    quote_all,
    quote_strings,
    quoted,
    texts,
)
from rawstream.wire.sse import utf8


class Word(str):
    """A user's own kind of string."""

    __slots__ = ()


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_has_a_json_string_that_fits_one_line(text: str) -> None:
    """It reads back as the text (lone surrogates as U+FFFD), holds no control character, and is UTF-8, not escapes."""
    for make in (quote, quoted, quoted):
        form = make(text)
        assert json.loads(form) == utf8(text).decode()
        assert min(form) >= 0x20
    assert quote("é😀") == '"é😀"'.encode()


def test_a_subclass_of_str_is_a_text_too() -> None:
    """Users' libraries yield such; nothing is lost."""
    assert quote(Word("hi")) == b'"hi"'
    assert quote_all([Word("a"), "b"]) == [b'"a"', b'"b"']


def test_the_table_stays_within_its_bounds() -> None:
    """However many texts pass, and however long, what is kept is bounded."""
    table = getattr(quoted, "__self__")  # noqa: B009  # a bound method; its type does not say so
    for number in range(2 * MAX_ENTRIES):
        quoted(f"word {number}")
        assert len(table) <= MAX_ENTRIES
    quoted("x" * (MAX_LENGTH + 1))
    assert max(map(len, table)) <= MAX_LENGTH


MIXED = ["a", "", Token("b"), Token("c", index=1), Token(""), "d"]


@pytest.mark.parametrize(
    ("items", "shown"), [(MIXED, ["a", "b", "d"]), (MIXED[2:], ["b", "d"]), (["x", "", "y"], ["x", "y"])]
)
def test_only_what_a_reader_of_text_sees_counts(items: list[str | Token], shown: list[str]) -> None:
    """Choice 0, no empty texts; strings and tokens in any mixture."""
    assert texts(items) == shown
    assert quote_all(items) == [quote(text) for text in shown]
    assert join_texts(items) == "".join(shown)


def test_the_quick_way_says_when_it_met_something_else() -> None:
    """``quote_strings`` is for strings alone, and does not guess."""
    assert quote_strings(["a", "", "b"]) == [b'"a"', b'"b"']
    with pytest.raises(NotText):
        quote_strings(["a", Token("b")])


def test_nothing_comes_of_nothing() -> None:
    """No items, no texts."""
    assert (texts([]), quote_all([]), join_texts([])) == ([], [], "")


@pytest.mark.parametrize("bad", [5, b"bytes", 1.5])
def test_a_source_that_yields_something_else_is_told_what(bad: object) -> None:
    """A number is not quietly made a token of."""
    items: list[str | Token] = ["a", bad]  # type: ignore[list-item]  # the mistake under test
    for take in (texts, quote_all, join_texts):
        with pytest.raises(TypeError, match=type(bad).__name__):
            take(items)
    with pytest.raises(TypeError, match="str or Token"):
        as_token(bad)  # type: ignore[arg-type]  # the mistake under test

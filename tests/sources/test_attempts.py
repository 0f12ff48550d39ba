"""Which upstream serves a model, what is tried again, how long is waited, what is told in the end."""

from __future__ import annotations

import random
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawstream.errors import (
    RawstreamError,
    UpstreamComplained,
    UpstreamFailed,
    UpstreamIdle,
    UpstreamRejected,
    UpstreamUnreachable,
)
from rawstream.sources import attempts

NOW = 1_800_000_000.0


def rejected(status: int, *headers: tuple[str, str]) -> UpstreamRejected:
    return UpstreamRejected("no", status=status, body=b"{}", headers=headers)


@pytest.mark.parametrize(
    ("models", "name", "rank"),
    [
        (("gpt", "*"), "gpt", 0), (("g*", "gpt"), "gpt", 0), (("g*",), "gpt", 1), (("*t",), "gpt", 1),
        (("g*t",), "gpt", 1), (("*",), "gpt", 2), (("g*", "*"), "x", 2), (("gp",), "gpt", None), (("G*",), "gpt", None),
        (("a.c",), "abc", None), (("a[b]*",), "a[b]c", 1), (("a?c",), "abc", None), (("*", "a"), "*", 2),
        (("a*\n*",), "a\n\nb", 1),
    ],
)  # fmt: skip
def test_a_model_is_named_by_itself_or_a_pattern_or_a_star(
    models: tuple[str, ...], name: str, rank: int | None
) -> None:
    """``*`` stands for any characters; all others stand for themselves."""
    if name == "*":
        rank = 0  # it is the very name
    assert attempts.rank(models, name) == rank


def test_a_long_name_is_no_work_for_a_pattern_of_several_stars() -> None:
    """Looking at a megabyte of a client's choice again for each place in it would hold up all streams for an hour."""
    assert attempts.rank(("*gpt*mini*x",), "gpt-mini-" * 100_000) is None


def test_the_closest_ones_serve_a_model_and_the_others_do_not() -> None:
    offers = [("*",), ("llama-*",), ("llama-3",), ("llama-3", "*"), ("other",)]
    assert attempts.closest(offers, "llama-3") == [2, 3]
    assert attempts.closest(offers, "llama-2") == [1]
    assert attempts.closest(offers, "gpt") == [0, 3]
    assert attempts.closest(offers[4:], "gpt") == []


def test_weights_are_shares_and_a_weight_of_nought_comes_last() -> None:
    generator = random.Random(1)
    firsts = [0, 0, 0]
    for _ in range(4000):
        order = attempts.weighted_order([3.0, 1.0, 0.0], generator.random)
        assert sorted(order) == [0, 1, 2]
        assert order[-1] == 2
        firsts[order[0]] += 1
    assert 2850 < firsts[0] < 3150


@given(nth=st.integers(0, 2000), longest=st.floats(0.0, 100.0), chance=st.floats(0.0, 1.0, exclude_max=True))
def test_waits_are_anything_up_to_twice_the_last_and_never_above_the_longest(
    nth: int, longest: float, chance: float
) -> None:
    """Full jitter: the whole range from nought is used."""
    wait = attempts.full_jitter(nth, longest, lambda: chance)
    assert 0.0 <= wait <= longest
    if nth < 60:
        assert wait <= 2.0**nth
        assert wait == pytest.approx(chance * min(2.0**nth, longest))


@pytest.mark.parametrize(
    ("error", "again", "failure"),
    [
        (UpstreamUnreachable("x"), True, True),
        (rejected(429), True, False),
        (rejected(500), True, True),
        (rejected(503), True, True),
        (rejected(599), True, True),
        (rejected(503, ("x-should-retry", "false")), False, True),
        (rejected(400), False, False),
        (rejected(401), False, False),
        (rejected(404), False, False),
        (rejected(408), False, False),
        (UpstreamFailed("cut, or not HTTP"), False, True),
        (UpstreamIdle("silent"), False, True),
        (UpstreamComplained("told in the stream"), False, None),
        (RawstreamError("ours"), False, None),
    ],
)
def test_what_is_tried_again_and_what_speaks_against_the_upstream(
    error: RawstreamError, again: bool, failure: bool | None
) -> None:
    """Tried again: what no generation can have come of. Against it: all but refusals and what it told itself."""
    assert (attempts.is_retryable(error), attempts.is_failure(error)) == (again, failure)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ((("retry-after", "7"),), 7.0),
        ((("retry-after", " 1.5 "),), 1.5),
        ((("retry-after", formatdate(NOW + 90, usegmt=True)),), 90.0),
        ((("retry-after", formatdate(NOW - 90, usegmt=True)),), 0.0),
        ((("retry-after-ms", "250"), ("retry-after", "1")), 0.25),
        ((("retry-after-ms", "soon"), ("retry-after", "1")), 1.0),
        ((("retry-after", "-1"),), None),
        ((("retry-after", "9" * 40),), None),
        ((("retry-after", "Fri, 99 Foo 2026"),), None),
        ((("retry-after", "inf"),), None),
        ((), None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: tuple[tuple[str, str], ...], seconds: float | None) -> None:
    """Milliseconds, seconds, a date (RFC 9110, section 10.2.3); what cannot be understood asks for nothing."""
    assert attempts.retry_after(rejected(503, *headers), NOW) == seconds


@given(st.text(max_size=40))
def test_no_retry_after_breaks_anything(text: str) -> None:
    asked = attempts.retry_after(rejected(503, ("retry-after", text)), NOW)
    assert asked is None or asked >= 0


def test_one_attempt_is_told_as_it_was() -> None:
    error = rejected(503, ("x-should-retry", "true"))
    assert attempts.final_error([("a", error)], NOW) is error


def test_several_attempts_are_told_with_their_number_and_the_last_cause() -> None:
    """Status and Retry-After are the last one's; SDKs are told not to try again; names are for the log alone."""
    last = rejected(503, ("retry-after", "9"), ("x-should-retry", "true"))
    told = attempts.final_error([("first", UpstreamUnreachable("gone", detail="10.0.0.1:80")), ("second", last)], NOW)
    assert isinstance(told, UpstreamRejected)
    assert str(told) == "the upstream failed after 2 attempts; the last: no"
    assert (told.status, told.retry_after, told.should_retry, told.body) == (503, 9.0, False, None)
    assert told.headers == (("retry-after", "9"),)
    assert told.detail == "first: gone (10.0.0.1:80); second: status 503"


@pytest.mark.parametrize("last", [UpstreamIdle("silent"), UpstreamFailed("cut"), UpstreamUnreachable("gone")])
def test_the_final_error_ends_the_stream_as_the_last_cause_would(last: RawstreamError) -> None:
    told = attempts.final_error([("a", UpstreamUnreachable("gone")), ("a", last)], NOW)
    assert (told.status, told.code, told.outcome) == (last.status, last.code, last.outcome)
    assert told.should_retry is False

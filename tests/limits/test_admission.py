"""Who is let in: counted once, left once, and refused with the right words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawstream.errors import LimitReached, MemoryExhausted, TooManyStreams
from rawstream.limits.admission import Admission, Relief, relief


@pytest.mark.parametrize(
    ("buffered", "expected"),
    [
        (0, Relief.NONE),
        (999, Relief.NONE),
        (1000, Relief.REFUSE),
        (1099, Relief.REFUSE),
        (1100, Relief.PAUSE),
        (1249, Relief.PAUSE),
        (1250, Relief.CUT),
        (10**9, Relief.CUT),
    ],
)
def test_memory_is_relieved_in_the_stated_order(buffered: int, expected: Relief) -> None:
    """Refuse new streams, then pause sources, then cut: each at its own mark."""
    assert relief(buffered, 1000) is expected


def test_one_stream_too_many_is_refused_and_costs_nobody_else_anything() -> None:
    admission = Admission(2)
    admission.enter()
    admission.enter()
    with pytest.raises(TooManyStreams) as refusal:
        admission.enter()
    assert (refusal.value.status, refusal.value.retry_after) == (503, 1.0)
    assert (admission.streams, admission.refused, admission.opened) == (2, 1, 2)
    admission.leave()
    admission.enter()
    assert (admission.streams, admission.peak) == (2, 2)


@pytest.mark.parametrize("step", list(Relief))
def test_new_streams_are_refused_from_the_first_step_of_relief_on(step: Relief) -> None:
    admission = Admission(10)
    admission.relief = step
    if step is Relief.NONE:
        admission.enter()
        assert admission.streams == 1
        return
    with pytest.raises(MemoryExhausted) as refusal:
        admission.enter()
    assert refusal.value.status == 503
    assert (admission.streams, admission.refused) == (0, 1)


def test_leaving_without_having_entered_is_an_error() -> None:
    """A count that went below zero would let in one too many, for ever."""
    with pytest.raises(RuntimeError, match="never entered"):
        Admission(1).leave()


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 8))
def test_the_count_is_that_of_those_inside_whatever_the_order(entering: list[bool], limit: int) -> None:
    admission = Admission(limit)
    inside = 0
    for enters in entering:
        if enters:
            try:
                admission.enter()
            except LimitReached:
                assert inside == limit
            else:
                inside += 1
        elif inside:
            admission.leave()
            inside -= 1
        assert admission.streams == inside <= limit
    for _ in range(inside):
        admission.leave()
    assert admission.streams == 0

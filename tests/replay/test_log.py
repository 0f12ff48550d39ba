"""The replay log: whole events, in order, bounded; and the truth for who is too late."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawstream.errors import UpstreamFailed
from rawstream.replay.log import PIECE, FellBehind, Log, Shelf


def event(number: int, size: int = 0) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (number, b"x" * size)


@given(
    appends=st.lists(st.lists(st.integers(0, 3000), min_size=1, max_size=5), min_size=1, max_size=30),
    most=st.integers(1, 10_000),
    resume=st.integers(0, 200),
)
def test_reading_from_any_event_gives_exactly_what_came_after_it(
    appends: list[list[int]], most: int, resume: int
) -> None:
    """However it was appended, and however it is read."""
    log = Log(1 << 30)
    events: list[bytes] = []
    for sizes in appends:
        new = [event(len(events) + 1 + at, size) for at, size in enumerate(sizes)]
        events += new
        log.append(b"".join(new))
    resume = min(resume, len(events))
    assert log.events == len(events)
    position = log.position_after(resume)
    got = b""
    while part := log.read(position, most):
        assert part.endswith(b"\n\n")
        assert len(part) <= max(most, max(map(len, events)))
        got += part
        position += len(part)
    assert got == b"".join(events[resume:])


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=100), st.integers(1, 20_000))
def test_it_holds_its_window_a_piece_and_its_tail_at_most(sizes: list[int], window: int) -> None:
    log = Log(window)
    for number, size in enumerate(sizes, start=1):
        log.append(event(number, size))
        assert log.held <= window + 2 * PIECE + 5100
    assert log.end - log.start == log.held
    assert log.read(log.start, 1 << 30).startswith(b"id: ")


def test_what_left_the_window_is_said_to_be_gone() -> None:
    log = Log(2 * PIECE)
    for number in range(1, 101):
        log.append(event(number, 1000))
    with pytest.raises(FellBehind) as gone:
        log.position_after(3)
    assert (gone.value.status, gone.value.code, gone.value.should_retry) == (410, "replay_gone", False)
    with pytest.raises(FellBehind):
        log.read(0, 100)
    assert log.read(log.position_after(99), 1 << 20) == event(100, 1000)


@pytest.mark.parametrize("number", [-1, 4, 10**9])
def test_an_event_that_never_was_is_no_position(number: int) -> None:
    log = Log(1000)
    log.append(event(1) + event(2) + event(3))
    with pytest.raises(ValueError, match="no event"):
        log.position_after(number)


def test_an_empty_log_begins_at_its_end() -> None:
    log = Log(1000)
    assert (log.position_after(0), log.read(0, 10)) == (0, b"")


def test_listeners_hear_of_appends_and_of_the_end_until_they_are_forgotten() -> None:
    log = Log(1000)
    heard: list[int] = []
    log.listen("a", lambda frames, events: heard.append(log.end))
    log.append(event(1))
    log.finish(event(2))
    log.forget("a")
    log.forget("a")
    log.append(event(3))
    assert heard == [len(event(1)), len(event(1) + event(2))]
    assert log.ended
    assert log.failure is None


def test_a_failure_is_kept_for_whoever_comes_later() -> None:
    log = Log(1000)
    heard: list[None] = []
    log.listen("a", lambda frames, events: heard.append(None))
    failure = UpstreamFailed("it broke")
    log.fail(failure)
    assert (log.ended, log.failure, len(heard)) == (True, failure, 1)


def test_what_is_to_be_kept_is_kept_whatever_the_window() -> None:
    log = Log(PIECE)
    for number in range(1, 51):
        log.append(event(number, 1000), keep=lambda: 3000)
    assert log.start <= 3000
    for number in range(51, 54):
        log.append(event(number, 1000))
    assert log.start > 40_000


def test_a_shelf_knows_what_all_of_its_logs_hold_and_how_much_each_may() -> None:
    shelf = Shelf(2 * PIECE)
    one, two = Log(shelf), Log(shelf)
    for number in range(1, 101):
        one.append(event(number, 500))
        two.append(event(number, 50))
    assert shelf.held == one.held + two.held
    shelf.window = PIECE
    for number in range(101, 106):
        one.append(event(number, 500))
    assert one.held < 4 * PIECE
    one.leave_shelf()
    assert shelf.held == two.held
    one.append(event(106, 500))
    assert shelf.held == two.held
    assert one.read(one.position_after(105), 1 << 20) == event(106, 500)

"""The clocks of one stream, with time that passes on demand."""

from __future__ import annotations

import pytest

from rawstream.flow.watch import Finding, StreamWatch


def watch(*, heartbeat: float = 15.0, stall: float = 30.0, life: float = 1800.0) -> StreamWatch:
    return StreamWatch(100.0, heartbeat=heartbeat, stall_timeout=stall, stream_timeout=life)


def test_a_client_that_takes_nothing_while_bytes_wait_is_stalled_after_the_timeout() -> None:
    one = watch(heartbeat=0)
    assert one.look(100.0, taken=5, waiting=10) is Finding.FINE
    assert one.look(129.9, taken=5, waiting=4000) is Finding.FINE
    assert one.look(130.0, taken=5, waiting=4000) is Finding.STALLED


def test_a_client_that_takes_anything_at_all_is_not_stalled_however_slow() -> None:
    one = watch(heartbeat=0)
    for step in range(100):
        assert one.look(100.0 + 29 * step, taken=step, waiting=8000) is not Finding.STALLED or 29 * step >= 1800


def test_a_client_for_whom_nothing_waits_is_not_stalled() -> None:
    """The source is slow: that is not the client's fault, and its time starts when bytes wait for it again."""
    one = watch(heartbeat=0)
    assert one.look(200.0, taken=7, waiting=0) is Finding.FINE
    assert one.look(225.0, taken=7, waiting=1) is Finding.FINE
    assert one.look(230.0, taken=7, waiting=1) is Finding.STALLED


def test_silence_on_the_wire_asks_for_a_heartbeat() -> None:
    one = watch()
    assert one.look(114.9, taken=0, waiting=0) is Finding.FINE
    assert one.look(115.0, taken=0, waiting=0) is Finding.SILENT
    one.last_write = 115.0
    assert one.look(116.0, taken=0, waiting=0) is Finding.FINE


def test_without_a_heartbeat_silence_is_fine() -> None:
    assert watch(heartbeat=0).look(1000.0, taken=0, waiting=0) is Finding.FINE


def test_a_stall_is_found_even_when_a_heartbeat_is_due_too() -> None:
    one = watch()
    one.look(100.0, taken=1, waiting=1)
    assert one.look(130.0, taken=1, waiting=1) is Finding.STALLED


def test_a_stream_has_one_life() -> None:
    one = watch()
    assert one.look(1899.9, taken=1, waiting=0) is Finding.SILENT
    assert one.look(1900.0, taken=2, waiting=0) is Finding.TOO_LONG


@pytest.mark.parametrize(
    ("now", "last_write", "expected"),
    [
        (100.0, 100.0, 107.5),  # a quarter of the stall timeout
        (100.0, 91.0, 106.0),  # the heartbeat comes first
        (100.0, 85.0, 107.5),  # it was due and could not be sent: not looked for again and again
        (1895.0, 1895.0, 1900.0),  # the end of its life
    ],
)
def test_the_next_look_is_at_whatever_comes_first(now: float, last_write: float, expected: float) -> None:
    one = watch()
    one.last_write = last_write
    assert one.next_look(now) == expected


def test_a_stall_is_seen_within_one_and_a_quarter_of_its_timeout() -> None:
    """Whenever the client stops: looking only when ``next_look`` says finds it in time."""
    for stops_at in (100.0, 101.0, 105.3, 107.4):
        one = watch(heartbeat=0)
        now = one.next_look(100.0)
        while one.look(now, taken=int(min(now, stops_at) * 1000), waiting=1) is Finding.FINE:
            now = one.next_look(now)
        assert stops_at + 30.0 <= now <= stops_at + 1.25 * 30.0

"""When an upstream is left alone, and how often it is gone back to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rawstream.sources.breaker import TRANSITIONS, Breaker, Event, RetryBudget, State


def tripped(failures: int = 3, pause: float = 10.0, now: float = 0.0) -> Breaker:
    """A breaker that has just opened."""
    breaker = Breaker(failures, pause)
    for _ in range(failures):
        permit = breaker.admit(now)
        assert permit is not None
        breaker.failed(permit, now)
    assert breaker.state is State.OPEN
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    breaker = Breaker(3, 10.0)
    for _ in range(5):
        for _ in range(2):
            breaker.failed(breaker.admit(0.0) or 0, 0.0)
        breaker.well(breaker.admit(0.0) or 0)
    assert breaker.state is State.CLOSED
    assert tripped(3).openings == 1


def test_a_request_counts_once_however_often_it_was_tried() -> None:
    """Two requests with four attempts each are two failures, not eight."""
    breaker = Breaker(3, 10.0)
    for _ in range(2):
        for again in (False, True, True, True):
            breaker.failed(breaker.admit(0.0) or 0, 0.0, again=again)
    before = breaker.state
    breaker.failed(breaker.admit(0.0) or 0, 0.0)
    assert (before, breaker.state) == (State.CLOSED, State.OPEN)


def test_a_probe_that_is_its_requests_second_attempt_counts_all_the_same() -> None:
    breaker = tripped(pause=10.0)
    probe = breaker.admit(10.0)
    assert probe is not None
    breaker.failed(probe, 11.0, again=True)
    assert (breaker.state, breaker.wait(11.0)) == (State.OPEN, 10.0)


def test_while_it_is_open_nobody_goes_and_the_time_until_the_probe_is_told() -> None:
    breaker = tripped(pause=10.0, now=100.0)
    assert (breaker.admit(100.0), breaker.admit(109.9)) == (None, None)
    assert (breaker.wait(100.0), breaker.wait(107.0)) == (10.0, 3.0)
    assert breaker.wait(200.0) == 0.0


def test_after_the_pause_one_request_goes_and_only_one() -> None:
    breaker = tripped(pause=10.0)
    assert breaker.admit(10.0) is not None
    assert (breaker.state, breaker.admit(10.0), breaker.wait(10.0) > 0) == (State.HALF_OPEN, None, True)


def test_the_probe_closes_it_with_the_beginning_of_its_answer() -> None:
    breaker = tripped(pause=10.0)
    probe = breaker.admit(10.0)
    assert probe is not None
    breaker.answered(probe)
    assert breaker.state is State.CLOSED


def test_a_slow_probe_holds_up_others_for_a_pause_and_no_longer() -> None:
    """Its prompt may take two minutes. The upstream may be well again all the while."""
    breaker = tripped(pause=10.0)
    slow = breaker.admit(10.0)
    assert slow is not None
    assert (breaker.admit(19.9), breaker.wait(12.0)) == (None, 1.0)
    assert breaker.wait(19.5) == pytest.approx(0.5)
    quick = breaker.admit(20.0)
    assert quick is not None
    assert breaker.admit(20.0) is None
    breaker.answered(quick)
    breaker.failed(slow, 21.0)
    assert breaker.state is State.CLOSED


def test_a_failed_probe_opens_it_for_another_pause() -> None:
    breaker = tripped(pause=10.0)
    probe = breaker.admit(12.0)
    assert probe is not None
    breaker.failed(probe, 13.0)
    assert (breaker.admit(22.9), breaker.wait(20.0)) == (None, 3.0)
    assert breaker.admit(23.0) is not None


def test_a_probe_whose_client_left_makes_room_for_the_next_at_once() -> None:
    breaker = tripped(pause=10.0)
    probe = breaker.admit(10.0)
    assert probe is not None
    breaker.lost(probe)
    assert breaker.admit(10.0) is not None


def test_what_was_begun_before_it_changed_says_nothing() -> None:
    """Streams that were cut when the upstream went away end after it came back, some of them well."""
    breaker = Breaker(3, 10.0)
    old = [breaker.admit(0.0) or 0 for _ in range(10)]
    for permit in old[:3]:
        breaker.failed(permit, 0.0)
    for permit in old[3:5]:
        breaker.well(permit)
    states = [breaker.state]
    probe = breaker.admit(10.0)
    assert probe is not None
    breaker.failed(old[5], 10.0)
    states.append(breaker.state)
    breaker.answered(probe)
    for permit in old[6:]:
        breaker.failed(permit, 11.0)
    states.append(breaker.state)
    assert states == [State.OPEN, State.HALF_OPEN, State.CLOSED]


def test_no_failures_at_all_are_counted_when_it_is_switched_off() -> None:
    breaker = Breaker(0, 10.0)
    for _ in range(100):
        breaker.failed(breaker.admit(0.0) or 0, 0.0)
    assert breaker.state is State.CLOSED


def test_every_event_leads_somewhere_and_every_state_can_be_left() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event)
    assert {state for state, _ in TRANSITIONS} == set(State) == set(TRANSITIONS.values())


class AnyCourse(RuleBasedStateMachine):
    """Requests come, end and time passes in any order."""

    @initialize(failures=st.integers(1, 4))
    def begin(self, failures: int) -> None:
        self.most = failures
        self.breaker = Breaker(failures, 10.0)
        self.now = 0.0
        self.running: list[int] = []
        self.opened_at = self.probed_at = float("-inf")

    @rule(seconds=st.floats(0.0, 20.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_request_comes(self) -> None:
        before = self.breaker.state
        permit = self.breaker.admit(self.now)
        if before is State.OPEN:
            assert (permit is not None) == (self.now >= self.opened_at + 10.0)
        if before is State.HALF_OPEN:
            assert (permit is not None) == (self.now >= self.probed_at + 10.0)
        if permit is not None:
            assert self.breaker.wait(self.now) == (0.0 if before is State.CLOSED else 1.0)
            self.probed_at = self.now
            self.running.append(permit)

    @rule(index=st.integers(0, 50), how=st.sampled_from(["failed", "well", "lost", "answered"]), again=st.booleans())
    def one_ends(self, index: int, how: str, again: bool) -> None:
        if not self.running:
            return
        before = self.breaker.state
        permit = self.running[index % len(self.running)]
        if how != "answered":
            self.running.remove(permit)
        if how == "failed":
            self.breaker.failed(permit, self.now, again=again)
            if self.breaker.state is State.OPEN and before is not State.OPEN:
                self.opened_at = self.now
                assert before is State.HALF_OPEN or not again
        else:
            getattr(self.breaker, how)(permit)
            if before is State.CLOSED:
                assert self.breaker.state is State.CLOSED, "only failures open it"
            if self.breaker.state is State.OPEN and before is State.HALF_OPEN:
                self.opened_at = float("-inf")  # a probe was lost: the next one may go at once

    @invariant()
    def nobody_waits_for_longer_than_the_pause(self) -> None:
        if hasattr(self, "breaker"):
            assert 0.0 <= self.breaker.wait(self.now) <= 10.000001


TestAnyCourse = AnyCourse.TestCase
TestAnyCourse.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


@given(
    ratio=st.floats(0.0, 1.0),
    steps=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.floats(0.0, 5.0)), max_size=60),
)
def test_retries_stay_a_fraction_of_the_requests(ratio: float, steps: list[tuple[int, int, float]]) -> None:
    """However many are asked for: at most ``ratio`` per request, ten at once, and one each five seconds."""
    budget = RetryBudget(ratio, 0.0)
    now = 0.0
    requests = retries = 0
    for arrived, failed, seconds in steps:
        now += seconds
        for _ in range(arrived):
            budget.request()
        requests += arrived
        retries += sum(budget.take(now) for _ in range(failed))
        assert retries <= 10 + ratio * requests + now / 5 + 1e-6


def test_a_sick_upstream_gets_a_fifth_more_and_not_four_times_as_much() -> None:
    """A thousand requests within a second, each of which would be tried four times."""
    budget = RetryBudget(0.2, 0.0)
    retries = 0
    for number in range(1000):
        budget.request()
        retries += sum(budget.take(number / 1000) for _ in range(3))
    assert 200 <= retries <= 211


@pytest.mark.parametrize("ratio", [0.0, 0.2])
def test_a_few_requests_may_always_be_tried_again(ratio: float) -> None:
    """One request a minute that fails twice never runs out."""
    budget = RetryBudget(ratio, 0.0)
    for now in range(0, 6000, 60):
        budget.request()
        assert budget.take(float(now))
        assert budget.take(float(now))

"""Token budgets: never over, exactly refunded, renewed in time."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rawstream.errors import BudgetSpent, LimitReached, RateLimited
from rawstream.limits.budget import DAY, MINUTE, Cap, Lease, MemoryLedger, share


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> MemoryLedger:
    return MemoryLedger(clock)


DAILY = (Cap(1000, DAY),)


@given(st.integers(-10, 10_000), st.integers(1, 1000))
def test_a_share_is_never_more_than_is_left_or_wanted_and_never_nothing(left: int, wanted: int) -> None:
    got = share(left, wanted)
    assert got <= wanted
    assert got <= max(0, left)
    assert (got > 0) == (left > 0)


async def test_what_is_reserved_is_used_until_it_is_refunded(ledger: MemoryLedger) -> None:
    lease = Lease(ledger, "ada", DAILY)
    await lease.more()
    assert lease.granted == 125
    assert await ledger.used("ada", DAILY) == [125]
    await lease.close(5)
    assert await ledger.used("ada", DAILY) == [5]
    await lease.close(5)
    assert await ledger.used("ada", DAILY) == [5], "closed once"


async def test_users_have_budgets_of_their_own(ledger: MemoryLedger) -> None:
    await ledger.reserve("ada", DAILY, 100)
    assert await ledger.used("bob", DAILY) == [0]


async def test_more_than_was_leased_is_charged(ledger: MemoryLedger) -> None:
    """The upstream's own count is larger: the user pays for it."""
    lease = Lease(ledger, "ada", DAILY)
    await lease.more()
    await lease.close(700)
    assert await ledger.used("ada", DAILY) == [700]


async def test_a_lease_goes_on_until_the_budget_is_spent_and_refunds_make_room(ledger: MemoryLedger) -> None:
    lease = Lease(ledger, "ada", DAILY)
    while lease.granted < 1000:
        await lease.more()
    with pytest.raises(BudgetSpent) as spent:
        await lease.more()
    assert (spent.value.status, spent.value.code, spent.value.should_retry) == (429, "insufficient_quota", False)
    assert "renewed in 86400 s" in str(spent.value)
    await lease.close(990)
    assert (await ledger.reserve("ada", DAILY, 100)).tokens == 1


async def test_a_window_ends_and_a_new_one_begins_with_its_first_token(ledger: MemoryLedger, clock: Clock) -> None:
    cap = (Cap(10, MINUTE),)
    for _ in range(10):
        await ledger.reserve("ada", cap, 1)
    clock.now += 59
    with pytest.raises(RateLimited) as limited:
        await ledger.reserve("ada", cap, 1)
    assert limited.value.retry_after == 1
    clock.now += 1
    assert await ledger.used("ada", cap) == [0]
    clock.now += 30
    await ledger.reserve("ada", cap, 1)
    clock.now += 59
    assert await ledger.used("ada", cap) == [1]


async def test_what_is_refunded_after_its_window_is_gone_with_it(ledger: MemoryLedger, clock: Clock) -> None:
    cap = (Cap(100, MINUTE),)
    old = Lease(ledger, "ada", cap)
    await old.more()
    clock.now += 61
    await ledger.reserve("ada", cap, 10)
    await old.close(0)
    assert await ledger.used("ada", cap) == [10]


async def test_a_refund_for_a_user_that_was_never_seen_changes_nothing(ledger: MemoryLedger) -> None:
    reservation = await ledger.reserve("ada", DAILY, 10)
    await ledger.settle("bob", DAILY, reservation, 0)
    assert await ledger.used("bob", DAILY) == [0]


async def test_a_lease_over_several_windows_is_settled_in_each(ledger: MemoryLedger, clock: Clock) -> None:
    """The minute's first window has ended; the day's has not, and gets its refund from both reservations."""
    caps = (Cap(1000, MINUTE), Cap(10_000, DAY))
    lease = Lease(ledger, "ada", caps)
    await lease.more()
    await lease.more()
    first = lease.granted
    clock.now += 61
    await lease.more()
    second = lease.granted - first
    assert await ledger.used("ada", caps) == [second, first + second]
    await lease.close(first + 3)
    assert await ledger.used("ada", caps) == [3, first + 3]


async def test_the_tightest_cap_decides_and_nothing_is_taken_from_the_others(ledger: MemoryLedger) -> None:
    caps = (Cap(10_000, MINUTE), Cap(5, DAY))
    for _ in range(5):
        assert (await ledger.reserve("ada", caps, 100)).tokens == 1
    with pytest.raises(BudgetSpent):
        await ledger.reserve("ada", caps, 100)
    assert await ledger.used("ada", caps) == [5, 5]


class ManyStreams(RuleBasedStateMachine):
    """Streams of one user come, take batches as their leases allow, and go; in any order."""

    BATCH = 7

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.ledger = MemoryLedger(self.clock)
        self.running: list[tuple[Lease, list[int]]] = []
        self.given = 0
        self.most_running = 0

    @initialize(budget=st.integers(1, 500))
    def begin(self, budget: int) -> None:
        self.caps = (Cap(budget, DAY),)

    @staticmethod
    def done(step: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that never waits: the memory ledger's are of that kind."""
        try:
            step.send(None)
        except StopIteration:
            return
        raise AssertionError("it waited")

    @rule()
    def opens(self) -> None:
        lease = Lease(self.ledger, "ada", self.caps)
        try:
            self.done(lease.more())
        except LimitReached:
            return
        self.running.append((lease, [0]))
        self.most_running = max(self.most_running, len(self.running))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 1000), batch=st.integers(1, BATCH))
    def takes_a_batch(self, which: int, batch: int) -> None:
        """As the sink does: permission while something is left of the lease, then a whole batch of the source's."""
        lease, used = self.running[which % len(self.running)]
        if used[0] >= lease.granted:
            try:
                self.done(lease.more())
            except LimitReached:
                self.closes(which)
                return
        used[0] += batch
        self.given += batch

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 1000))
    def closes(self, which: int) -> None:
        lease, used = self.running.pop(which % len(self.running))
        self.done(lease.close(used[0]))

    @invariant()
    def is_never_over_by_more_than_a_batch_for_each_stream(self) -> None:
        if hasattr(self, "caps"):
            assert self.given <= self.caps[0].tokens + self.most_running * (self.BATCH - 1)

    def teardown(self) -> None:
        while self.running:
            self.closes(0)
        if hasattr(self, "caps"):
            window = self.ledger._windows.get(("ada", DAY))
            assert (0 if window is None else window.used) == self.given, "every refund is exact"


TestManyStreams = ManyStreams.TestCase

"""The fleet on paper: its arithmetic holds together, and its outage loses nobody."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.fleet.model import (
    Figures,
    Machine,
    Plan,
    Role,
    first_to_break,
    limits,
    needs,
    redis_cores,
    xadd_per_stream,
)
from bench.fleet.simulation import POLICIES, Outage, fixed, jittered, simulate, spread_needed
from bench.fleet.tables import everything

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
FIGURES = Figures()
MACHINE = Machine()
SIZES = st.integers(1, 10_000_000)
ROLES: st.SearchStrategy[Role] = st.sampled_from(["source", "gateway"])


@given(SIZES, SIZES, ROLES, st.booleans(), st.booleans())
def test_more_streams_never_take_less(one: int, other: int, role: Role, tls: bool, resumable: bool) -> None:
    few, many = (
        needs(FIGURES, MACHINE, Plan(size, role=role, tls=tls, resumable=resumable)) for size in sorted((one, other))
    )
    assert few.cores <= many.cores
    assert few.machines <= many.machines
    assert few.gib <= many.gib
    assert few.redis_shards <= many.redis_shards
    assert few.xadd_per_second <= many.xadd_per_second


@given(SIZES, ROLES)
def test_the_machines_have_what_the_plan_takes(size: int, role: Role) -> None:
    """No resource is short: cores, memory, network, ports and descriptors fit the machines that were named."""
    found = needs(FIGURES, MACHINE, Plan(size, role=role))
    assert found.machines * MACHINE.cores >= found.cores
    assert found.machines * MACHINE.gib >= found.gib
    assert found.machines * MACHINE.gbit >= found.gbit
    assert found.ports_per_upstream <= MACHINE.upstream_ports
    assert found.descriptors_per_process <= MACHINE.descriptors_per_process / 2


@given(SIZES)
def test_tls_and_a_gateway_cost_more(size: int) -> None:
    gateway = needs(FIGURES, MACHINE, Plan(size))
    assert needs(FIGURES, MACHINE, Plan(size, role="source")).cores <= gateway.cores
    assert needs(FIGURES, MACHINE, Plan(size, tls=False)).gib < gateway.gib


def test_without_resume_there_is_no_redis() -> None:
    plan = Plan(1_000_000, resumable=False)
    found = needs(FIGURES, MACHINE, plan)
    assert (found.redis_shards, found.xadd_per_second, found.redis_gib) == (0, 0, 0)
    assert not [one for one in limits(FIGURES, MACHINE, plan) if "Redis" in one.what]
    assert first_to_break(FIGURES, MACHINE, plan) == limits(FIGURES, MACHINE, plan)[0]


@pytest.mark.parametrize(("flush", "measured"), [(0.010, 25.0), (0.050, 13.0)])
def test_the_line_goes_through_what_was_measured(flush: float, measured: float) -> None:
    """Within 5 % at both measured intervals."""
    assert xadd_per_stream(FIGURES, flush) == pytest.approx(measured, rel=0.05)


@given(st.floats(0, 10), st.floats(0, 10))
def test_a_longer_flush_never_takes_more_of_redis(one: float, other: float) -> None:
    short, long = sorted((one, other))
    assert xadd_per_stream(FIGURES, long) <= xadd_per_stream(FIGURES, short) <= FIGURES.tokens_per_second
    assert redis_cores(FIGURES, 1000, long) <= redis_cores(FIGURES, 1000, short)


def test_a_stream_is_never_flushed_more_often_than_it_has_tokens() -> None:
    assert xadd_per_stream(replace(FIGURES, tokens_per_second=2), 0.010) == 2


@given(SIZES)
def test_limits_come_with_the_least_in_front(size: int) -> None:
    found = [one.streams for one in limits(FIGURES, MACHINE, Plan(size))]
    assert found == sorted(found)
    assert found[0] > 0


@given(
    st.integers(0, 2000),
    st.floats(50, 5000),
    st.integers(1, 500),
    st.sampled_from(sorted(POLICIES)),
    st.floats(0, 20),
    st.integers(0, 9),
)
@settings(deadline=None, max_examples=40)
def test_no_client_is_lost_or_made(
    clients: int, rate: float, queue: int, policy: str, seconds: float, seed: int
) -> None:
    """At whatever moment one looks, each client is away, queued or served."""
    seen = simulate(Outage(clients, rate, queue), POLICIES[policy], seed=seed, seconds=seconds)
    assert seen.served + seen.queued + seen.away == clients
    assert seen.peak_queue <= queue
    assert (seen.all_served_s is not None) == (seen.served == clients)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_all_are_back_in_the_end_and_not_sooner_than_the_capacity_allows(policy: str) -> None:
    outage = Outage(2000, 1000, 200)
    seen = simulate(outage, POLICIES[policy])
    assert seen.all_served_s is not None
    assert seen.all_served_s >= spread_needed(outage) - 0.02


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_jitter_lowers_the_peak(seed: int) -> None:
    """Together they come within 100 ms; spread over 2 s, no 100 ms has more than a tenth of them."""
    outage = Outage(2000, 2000, 10_000)
    together, spread = simulate(outage, fixed, seed=seed), simulate(outage, jittered, seed=seed)
    assert together.peak_arrivals == outage.clients
    assert spread.peak_arrivals < outage.clients / 10
    assert spread.peak_queue < together.peak_queue / 2


def test_the_seed_decides() -> None:
    outage = Outage(3000, 1000, 300)
    assert simulate(outage, jittered, seed=1) == simulate(outage, jittered, seed=1)
    assert simulate(outage, jittered, seed=1) != simulate(outage, jittered, seed=2)


@pytest.mark.parametrize("outage", [Outage(1, 0, 1), Outage(1, 1, 0)])
def test_a_fleet_that_accepts_nobody_is_refused(outage: Outage) -> None:
    with pytest.raises(ValueError, match="nobody accepts"):
        simulate(outage, fixed)


def test_the_readme_shows_what_is_printed() -> None:
    """The section between the markers is the output of ``python -m bench.fleet``."""
    found = re.search(r"<!-- fleet:start -->\n(.*?)\n<!-- fleet:end -->", README, re.DOTALL)
    assert found is not None
    assert found[1] == everything()

"""Runs scenarios fairly: rounds interleaved between peers, order reversed every other round, a fresh process each.

Rule 1: a peer that fails is a result ("failed: why"), not the end of the run.
Rule 2: results are saved after every measurement; an interrupted run is a shorter one.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.host import Cores, cores, environment, free_port
from bench.netns import NoNamespaces
from bench.peers import Peer, make_context
from bench.peers._source import TOKENS
from bench.programs import ProgramFailed, write_expected
from bench.results import Measurement, Results
from bench.scenarios.base import Bench, Scale, Scenario
from bench.serving import ServerFailed


@dataclass(frozen=True)
class Step:
    """One measurement to make."""

    scenario: Scenario
    part: str
    peer: Peer
    round: int


def plan(scenarios: Iterable[Scenario], peers: Sequence[Peer], scale: Scale, repeats: int | None = None) -> list[Step]:
    """Every measurement in its order: scenario, part, round, peer; odd rounds go through the peers backwards."""
    steps = []
    for scenario in scenarios:
        rounds = repeats or scenario.repeats[scale]
        for part in scenario.parts(scale):
            wanted = [peer for peer in peers if scenario.wants(peer, part)]
            for number in range(rounds):
                for peer in wanted if number % 2 == 0 else reversed(wanted):
                    steps.append(Step(scenario, part, peer, number))
    return steps


def describe(peers: Iterable[Peer]) -> dict[str, dict[str, str | None]]:
    """For the report: kind, version, notes, and why a peer is missing."""
    found: dict[str, dict[str, str | None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        context = make_context(free_port(), Path(folder), upstream_url="http://127.0.0.1:9")
        for peer in peers:
            missing = peer.missing(context)
            found[peer.name] = {
                "kind": peer.kind,
                "version": None if missing else peer.version(context),
                "notes": peer.notes,
                "missing": missing,
            }
    return found


def run(
    steps: Sequence[Step],
    results: Results,
    *,
    scale: Scale,
    save: Callable[[Results], object] = lambda results: None,
    before: Callable[[Step], None] = lambda step: None,
    after: Callable[[Step, Measurement], None] = lambda step, found: None,
    tick: Callable[[str], None] = lambda text: None,
    python_generator: bool = False,
    stretch: float = 1.0,
    on_cores: Cores | None = None,
) -> Results:
    """Make the measurements and put them into ``results``; KeyboardInterrupt ends it with what there is."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bench = Bench(
            cores=on_cores or cores(),
            expected=write_expected(Path(folder) / "expected", TOKENS),
            scale=scale,
            tick=tick,
            python_generator=python_generator,
            stretch=stretch,
        )
        usual = os.sched_getaffinity(0)
        os.sched_setaffinity(0, bench.cores.generator)  # sampling must not disturb the server
        try:
            for step in steps:
                before(step)
                found = measure(bench, step)
                results.measurements.append(found)
                save(results)
                after(step, found)
        finally:
            os.sched_setaffinity(0, usual)
    return results


def measure(bench: Bench, step: Step) -> Measurement:
    """One measurement; what goes wrong in it is noted in it."""
    found = Measurement(step.scenario.name, step.part, step.peer.name, step.round)
    bench.foreign = 0.0
    began = time.monotonic()
    try:
        step.scenario.measure(bench, step.peer, step.part, found)
    except (ServerFailed, ProgramFailed, NoNamespaces, OSError, ValueError) as error:
        found.failure = f"{type(error).__name__}: {error}"
    if bench.cores.apart:
        found.values["foreign_cpu"] = bench.foreign
        if bench.foreign > 0.05 and not found.values.get("real_time"):
            found.marks.append(f"disturbed: other programs used {bench.foreign:.0%} of the server's core")
    found.values = {key: round(value, 6) for key, value in found.values.items()}
    found.values["wall_seconds"] = round(time.monotonic() - began, 1)
    if not bench.cores.apart and "one core for all" not in found.marks:
        found.marks.append("one core for all")
    return found


def new_results(scale: Scale, peers: Mapping[str, Peer], settings: Mapping[str, object]) -> Results:
    """Results with everything a reader must know, and no measurement yet."""
    chosen = cores()
    return Results(
        environment=environment(),
        settings={
            "scale": scale,
            "server_core": sorted(chosen.server),
            "generator_core": sorted(chosen.generator),
            "upstream_core": sorted(chosen.upstream),
            **settings,
        },
        peers=describe(peers.values()),
    )

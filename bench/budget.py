"""How long a run takes, and what to do when it may not: durations first, then the peers that say least.

Rule 1: nothing is left out unsaid: what was shortened, and who was left out where, stands in the results' settings.
Rule 2: rawstream, the peers that a goal is measured against, the typical peer and gateways are never left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.runner import Step
from bench.scenarios.base import Scale, Scenario

SHORTEST: Final = 0.5
"""Durations are not shortened beyond this share: what a run must fill (buffers, a ramp) would not fill."""

LONG: Final = 20.0
"""Seconds: a peer is left out only of scenarios that take at least so long for it."""

TYPICAL: Final = "uvicorn-starlette-h11"
"""What most tutorials use; the README's table has a column for it."""

KEPT_LONGEST: Final = ("node-express", "go-nethttp", "floor-drain", "node-http", "granian-starlette", "aiohttp")


@dataclass(frozen=True)
class Fitted:
    """A plan that fits (or comes as near as it can)."""

    steps: list[Step]
    stretch: float
    """Durations are multiplied by this."""
    left_out: dict[str, list[str]]
    """Scenario to peers."""
    seconds: float


def seconds_of(steps: Sequence[Step], scale: Scale, stretch: float = 1.0) -> float:
    """What these measurements will take, roughly."""
    return sum(step.scenario.estimate(scale, step.part, stretch) for step in steps)


def fit(steps: Sequence[Step], scale: Scale, budget: float) -> Fitted:
    """Shorten durations until the plan takes ``budget`` seconds, then leave peers out of the long scenarios."""
    stretch = 1.0
    while seconds_of(steps, scale, stretch) > budget and stretch > SHORTEST:
        stretch = round(stretch - 0.05, 2)
    kept, left_out = list(steps), dict[str, list[str]]()
    total = seconds_of(kept, scale, stretch)
    for scenario, name in _expendable(kept, scale, stretch):
        if total <= budget:
            break
        kept = [step for step in kept if (step.scenario, step.peer.name) != (scenario, name)]
        left_out.setdefault(scenario.name, []).append(name)
        total = seconds_of(kept, scale, stretch)
    return Fitted(kept, stretch, left_out, total)


def _expendable(steps: Sequence[Step], scale: Scale, stretch: float) -> list[tuple[Scenario, str]]:
    """Who may be left out of what: the least telling peer first, of each the longest scenario first."""
    costs: dict[tuple[Scenario, str], float] = {}
    for step in steps:
        pair = (step.scenario, step.peer.name)
        costs[pair] = costs.get(pair, 0.0) + step.scenario.estimate(scale, step.part, stretch)

    def rank(name: str) -> int:
        return -KEPT_LONGEST.index(name) if name in KEPT_LONGEST else -len(KEPT_LONGEST)

    kinds = {step.peer.name: step.peer.kind for step in steps}
    found = [
        (scenario, name)
        for (scenario, name), cost in costs.items()
        if cost >= LONG
        and not scenario.for_all
        and (kinds[name] in ("server", "floor") or name == "rawstream-drain")
        and name != TYPICAL
        and name not in {goal.of for goal in scenario.goals}
    ]
    return sorted(found, key=lambda pair: (rank(pair[1]), -costs[pair]))

"""A regional outage cuts many streams at once; when do their clients come back, and who makes them wait?

A discrete simulation in steps of 10 ms, deterministic by its seed. Rule: a client is in one place at any time (away,
queued, served), so that their sum never changes. A client that finds the queue full is refused, and comes back by its
policy, one attempt further; nobody gives up. (A kernel whose backlog is full drops the SYN, and the client's kernel
asks again after 1 s, 2 s, 4 s …: a wait of the same kind, that no policy sees.)
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

STEP_S: Final = 0.010
BUCKET_STEPS: Final = 10  # arrivals are told per 100 ms

Policy = Callable[[random.Random, int], float]
"""Seconds until the next try, by the attempt's number (0 is the first)."""


def fixed(chance: random.Random, attempt: int) -> float:
    """``retry: 2000`` for everybody."""
    return 2.0


def jittered(chance: random.Random, attempt: int) -> float:
    """What rawstream tells: another ``retry`` of 1 to 3 s for each stream."""
    return chance.uniform(1.0, 3.0)


def full_jitter(chance: random.Random, attempt: int) -> float:
    """A random part of 1 s, 2 s, 4 s … at most 30 s. A client's own doing: ``EventSource`` knows one number alone."""
    return chance.uniform(0.0, min(30.0, 2.0 ** min(attempt, 5)))


POLICIES: Final[dict[str, Policy]] = {
    "fixed 2 s": fixed,
    "jitter 1–3 s": jittered,
    "full jitter, 1 s doubling": full_jitter,
}


@dataclass(frozen=True)
class Outage:
    """``clients`` cut at once; who is left takes ``accepts_per_second``, and holds ``queue`` of them at most."""

    clients: int
    accepts_per_second: float
    queue: int


@dataclass(frozen=True)
class Course:
    """What came of it."""

    served: int
    away: int
    queued: int
    refusals: int
    peak_arrivals: int
    """Per 100 ms."""
    peak_queue: int
    peak_wait_s: float
    """The longest queue, in seconds of work."""
    all_served_s: float | None
    """None: not within the time simulated."""


def accepts_per_second(cores: float, spare: float, cost_s: float) -> float:
    """What ``cores`` of which ``spare`` (a share) is free accept, each connection at ``cost_s`` of CPU."""
    return cores * spare / cost_s


def spread_needed(outage: Outage) -> float:
    """Seconds over which the clients must come back, evenly, so that no queue grows."""
    return outage.clients / outage.accepts_per_second


def simulate(outage: Outage, policy: Policy, *, seed: int = 7, seconds: float = 300.0) -> Course:
    """Runs until all are served, or for ``seconds``. Raises ValueError where nobody could ever be served."""
    if outage.accepts_per_second <= 0 or outage.queue <= 0:
        raise ValueError("nobody accepts")
    chance = random.Random(seed)
    away: dict[int, Counter[int]] = {}

    def leave(now: int, attempt: int) -> None:
        step = now + max(1, round(policy(chance, attempt) / STEP_S))
        away.setdefault(step, Counter())[attempt] += 1

    for _ in range(outage.clients):
        leave(0, 0)
    buckets: Counter[int] = Counter()
    served = queued = refusals = peak_queue = 0
    credit = 0.0
    step = 0
    while served < outage.clients and step * STEP_S < seconds:
        step += 1
        for attempt, number in sorted(away.pop(step, Counter[int]()).items()):
            buckets[step // BUCKET_STEPS] += number
            taken = min(number, outage.queue - queued)
            queued += taken
            for _ in range(number - taken):
                refusals += 1
                leave(step, attempt + 1)
        peak_queue = max(peak_queue, queued)
        # Capacity that nobody wanted is lost, but for the part of a client that one step could not finish.
        credit += outage.accepts_per_second * STEP_S
        done = min(queued, int(credit))
        credit = credit - done if queued > done else min(credit - done, 1.0)
        queued -= done
        served += done
    return Course(
        served=served,
        away=sum(sum(group.values()) for group in away.values()),
        queued=queued,
        refusals=refusals,
        peak_arrivals=max(buckets.values(), default=0),
        peak_queue=peak_queue,
        peak_wait_s=peak_queue / outage.accepts_per_second,
        all_served_s=round(step * STEP_S, 2) if served == outage.clients else None,
    )

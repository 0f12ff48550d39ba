"""Two versions of rawstream as a gateway, interleaved in one run: what a change costs.

Rule 1: a version is a folder with a source tree (it is run with PYTHONPATH), or the path of an installed ``rawstream``.
        What is run is asked for its path, so that one version is not measured twice under two names.
Rule 2: rounds alternate, and every other one is reversed; the ratio of each round is taken within the round, so that
        what disturbs a whole round disturbs both.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.host import cores
from bench.peers import Peer, PeerContext, all_peers
from bench.peers._source import TOKENS
from bench.programs import write_expected
from bench.results import Measurement
from bench.runner import Step, measure
from bench.scenarios import all_scenarios
from bench.scenarios.base import Bench, Scale
from bench.trend import Spread, spread

FIGURES: Final = (
    ("first", "added_p50_us", "added first token p50, µs"),
    ("first", "us_per_request", "CPU per request of one token, µs"),
    ("paced", "us_per_token", "CPU per relayed token, 200 streams × 50 tokens/s, µs"),
    ("unpaced", "us_per_token", "CPU per relayed token, 50 unpaced streams, µs"),
)
"""Part of the scenario gateway, figure, what it is."""
PARTS: Final = tuple(dict.fromkeys(part for part, _, _ in FIGURES))

MOST: Final = 1.1
"""After over before."""


class NoVersion(ValueError):
    """There is no rawstream at this path; the message says what was tried."""


def version(name: str, path: Path) -> Peer:
    """The gateway peer of this version; NoVersion when it cannot be run."""
    path = path.resolve()
    if path.is_dir():
        program, env = [sys.executable, "-m", "rawstream"], {"PYTHONPATH": str(path)}
        argv = [sys.executable, "-c", "import rawstream; print(rawstream.__file__)"]
        # Not in the working directory, which comes first on the path of ``-c``.
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                argv, capture_output=True, text=True, check=False, timeout=30, cwd=folder, env={**os.environ, **env}
            )
        if done.returncode or not Path(done.stdout.strip()).resolve().is_relative_to(path):
            raise NoVersion(f"{path} has no rawstream: {(done.stdout or done.stderr).strip()[-200:]}")
    elif os.access(path, os.X_OK):
        program, env = [str(path)], {"PYTHONPATH": ""}
    else:
        raise NoVersion(f"{path} is neither a folder nor a program")

    def command(ctx: PeerContext) -> list[str]:
        where = ["--host", ctx.host, "--port", str(ctx.port), "--log-level", "warning"]
        settings = [f"{key}={value}" for key, value in env.items()]
        return ["env", *settings, *program, "serve", *where, "--upstream", f"{ctx.upstream}/v1"]

    return replace(all_peers()["rawstream-gateway"], command=command, notes=f"{name}: {path}")


@dataclass(frozen=True)
class Compared:
    """One figure of both versions."""

    label: str
    before: Spread | None
    after: Spread | None
    ratio: Spread | None
    """Of the rounds' ratios."""
    marks: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.ratio is not None and self.ratio.median <= MOST


def compare(
    before: Path,
    after: Path,
    *,
    parts: Sequence[str] = PARTS,
    rounds: int = 5,
    scale: Scale = "full",
    tick: Callable[[str], None] = lambda text: None,
) -> list[Compared]:
    """Measure both, ``rounds`` times each part."""
    versions = {"before": version("before", before), "after": version("after", after)}
    scenario = all_scenarios()["gateway"]
    found: dict[tuple[str, str], list[Measurement]] = {}
    usual = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        expected = write_expected(Path(folder) / "expected", TOKENS)
        bench = Bench(cores=cores(), expected=expected, scale=scale)
        os.sched_setaffinity(0, bench.cores.generator)
        try:
            for number in range(rounds):
                for part in parts:
                    for name in versions if number % 2 == 0 else reversed(versions):
                        tick(f"round {number + 1} of {rounds} · {part} · {name}")
                        seen = measure(bench, Step(scenario, part, versions[name], number))
                        found.setdefault((part, name), []).append(seen)
        finally:
            os.sched_setaffinity(0, usual)
    return [
        compared(key, label, found[part, "before"], found[part, "after"])
        for part, key, label in FIGURES
        if part in parts
    ]


def compared(key: str, label: str, before: Sequence[Measurement], after: Sequence[Measurement]) -> Compared:
    """One figure of the rounds of both."""

    def values(runs: Sequence[Measurement]) -> list[float]:
        return [run.values[key] for run in runs if run.counts and key in run.values]

    ratios = [
        new.values[key] / old.values[key]
        for old, new in zip(before, after, strict=True)
        if old.counts and new.counts and old.values.get(key) and key in new.values
    ]
    marks: dict[tuple[str, str], str] = {}  # one of each kind for each version: "disturbed" has another share each time
    for name, runs in (("before", before), ("after", after)):
        for run in runs:
            for text in [*run.marks, *([f"FAILED: {run.failure}"] if run.failure else [])]:
                marks.setdefault((name, text.partition(":")[0]), f"{name}: {text}")
    return Compared(label, spread(values(before)), spread(values(after)), spread(ratios), tuple(marks.values()))

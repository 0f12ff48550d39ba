"""Rows, verdicts, and the table that is made of them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from bench.host import Cores, cores, environment

KIB = 1024
MIB = 1024 * 1024


class CannotMeasure(RuntimeError):
    """Something that the row needs is missing, or did not work; the row fails, and says why."""


@dataclass(frozen=True)
class Verdict:
    """What came out of a row."""

    passed: bool
    measured: str
    comparison: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    """The numbers, in bytes, seconds and counts, for ``--json``."""


@dataclass
class Bench:
    """What a row gets: the cores, the options, and somebody to tell how far it is."""

    quick: bool = False
    llamacpp_url: str | None = None
    llamacpp_python: str | None = None
    out: TextIO = sys.stderr
    cores: Cores = field(default_factory=cores)
    shared: dict[str, Any] = field(default_factory=dict)
    """Measurements that several rows look at."""

    def once(self, name: str, measure: Callable[[Bench], Any]) -> Any:
        """``measure(self)``, the first time; what it gave, from then on."""
        if name not in self.shared:
            self.shared[name] = measure(self)
        return self.shared[name]

    def say(self, what: str) -> None:
        """A progress line; over itself on a terminal."""
        if self.out.isatty():
            self.out.write(f"\r\033[K{what}")
            self.out.flush()


@dataclass(frozen=True)
class Row:
    """One promise."""

    name: str
    title: str
    must: str
    measure: Callable[[Bench], Verdict]


@dataclass
class Result:
    row: Row
    verdict: Verdict
    seconds: float


def run(rows: Sequence[Row], bench: Bench) -> list[Result]:
    """Measure the rows, one after the other, telling how far it is."""
    os.sched_setaffinity(0, bench.cores.generator)
    results = []
    for number, row in enumerate(rows, 1):
        bench.say(f"[{number}/{len(rows)}] {row.title} …")
        began = time.monotonic()
        try:
            verdict = row.measure(bench)
        except (CannotMeasure, OSError, ValueError, RuntimeError) as error:
            verdict = Verdict(False, f"not measured: {type(error).__name__}: {error}")
        result = Result(row, verdict, time.monotonic() - began)
        bench.say("")
        word = "pass" if verdict.passed else "FAIL"
        line = f"[{number}/{len(rows)}] {word} {row.name}: {verdict.measured} ({result.seconds:.0f} s)\n"
        bench.out.write(line)
        bench.out.flush()
        results.append(result)
    return results


def markdown(results: Sequence[Result]) -> str:
    """The table."""
    lines = ["| row | must reach | measured | for comparison, in the same run | |", "|---|---|---|---|---|"]
    for result in results:
        row, verdict = result.row, result.verdict
        cells = (row.title, row.must, verdict.measured, verdict.comparison, "pass" if verdict.passed else "**FAIL**")
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> str:
    """Everything, with the machine it was measured on."""
    rows = [
        {"row": each.row.name, "title": each.row.title, "must": each.row.must, "seconds": round(each.seconds, 1)}
        | asdict(each.verdict)
        for each in results
    ]
    return json.dumps({"machine": environment(), "rows": rows}, indent=1)


def kib(count: float) -> str:
    """Bytes as people read them."""
    if count >= MIB:
        return f"{count / MIB:,.1f} MiB"
    return f"{count / KIB:,.1f} KiB"

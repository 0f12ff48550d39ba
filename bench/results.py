"""What was measured: plain values that go to results.json and come back from it.

Rule 1: the report is made from this file alone, so it can be made again, elsewhere, later.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.trend import Spread, spread

Points = list[tuple[float, float]]


@dataclass
class Measurement:
    """One peer, one part of a scenario, once."""

    scenario: str
    part: str
    peer: str
    round: int
    values: dict[str, float] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    """Values that are no numbers: "rising", "level"."""
    series: dict[str, Points] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)
    """What the reader must know: "generator-bound", "saturated", "killed at the memory guard"."""
    failure: str | None = None
    """Why there is no figure: it did not start, or what it sent was wrong."""

    @property
    def counts(self) -> bool:
        """Its values are the server's own."""
        return self.failure is None and "generator-bound" not in self.marks


@dataclass
class Results:
    """A whole run."""

    environment: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    peers: dict[str, dict[str, str | None]] = field(default_factory=dict)
    """By name: kind, version, notes, missing."""
    measurements: list[Measurement] = field(default_factory=list)

    def of(self, scenario: str, part: str | None = None, peer: str | None = None) -> list[Measurement]:
        return [
            m
            for m in self.measurements
            if m.scenario == scenario and (part is None or m.part == part) and (peer is None or m.peer == peer)
        ]

    def parts(self, scenario: str) -> list[str]:
        return list(dict.fromkeys(m.part for m in self.of(scenario)))

    def peers_of(self, scenario: str, part: str | None = None) -> list[str]:
        """In the order of results.peers, then of appearance."""
        seen = dict.fromkeys(m.peer for m in self.of(scenario, part))
        known = [name for name in self.peers if name in seen]
        return known + [name for name in seen if name not in known]

    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(m.scenario for m in self.measurements))

    def spread(self, scenario: str, part: str, peer: str, key: str) -> Spread | None:
        """Median and range of a value over the rounds that count."""
        return spread([m.values[key] for m in self.of(scenario, part, peer) if m.counts and key in m.values])

    def words(self, scenario: str, part: str, peer: str, key: str) -> str | None:
        """The word of the worst round: "rising" beats "level"."""
        found = [m.words[key] for m in self.of(scenario, part, peer) if key in m.words]
        return None if not found else next((word for word in found if word != "level"), found[0])

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "results.json"
        partial = folder / "results.json.partial"
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n")
        partial.replace(path)
        return path

    @classmethod
    def load(cls, folder: Path) -> Results:
        data = json.loads((folder / "results.json").read_text())
        measurements = [Measurement(**m) for m in data.pop("measurements")]
        return cls(**data, measurements=measurements)

    def merge(self, more: Iterable[Measurement], replace: Sequence[str] = ()) -> None:
        """Take over measurements; those of the scenarios named in ``replace`` go first."""
        self.measurements = [m for m in self.measurements if m.scenario not in replace] + list(more)

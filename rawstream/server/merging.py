"""Expositions of several processes as one: Prometheus' text format, read and added up.

Rule 1: counters, buckets and gauges are added; of a gauge that says whether something is so, the worst counts.
Rule 2: of a process that has ended its counters stay, so that none falls; its gauges went with it.
Rule 3: text in, text out. It is the text that we write ourselves (one sample a line, no timestamps), nobody else's.
"""

from __future__ import annotations

from typing import Final

_MOST: Final = frozenset(
    f"rawstream_{name}"
    for name in ("longest_hold_seconds", "draining", "build_info", "memory_relief", "upstream_breaker_open")
)
"""Gauges of which the largest counts: they say that something is so anywhere."""
_LEAST: Final = frozenset({"rawstream_redis_up"})
_OF_A_PROCESS: Final = ("process_", "python_")
_LASTING: Final = frozenset({"counter", "histogram"})


class _Family:
    __slots__ = ("help", "kind", "name", "samples")

    def __init__(self, name: str) -> None:
        self.name = name
        self.help = ""
        self.kind = "untyped"
        self.samples: dict[str, float] = {}


class Exposition:
    """What was added up so far."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def add(self, text: str, *, ended: bool = False) -> None:
        """Add what one process says. ``ended``: it is no more; what it counted stays. Raises ValueError."""
        family = None
        for line in text.splitlines():
            if line.startswith("# "):
                mark, _, rest = line[2:].partition(" ")
                name, _, told = rest.partition(" ")
                if mark == "HELP":
                    family = self._families.setdefault(name, _Family(name))
                    family.help = told
                elif mark == "TYPE" and family is not None:
                    family.kind = told
            elif line and family is not None:
                if ended and (family.kind not in _LASTING or family.name.startswith(_OF_A_PROCESS)):
                    continue
                key, _, value = line.rpartition(" ")
                before, now = family.samples.get(key), float(value)
                if before is not None:
                    most, least = family.name in _MOST, family.name in _LEAST
                    now = max(before, now) if most else min(before, now) if least else before + now
                family.samples[key] = now

    def gauge(self, name: str, help: str, value: float) -> None:
        """A gauge of one's own."""
        family = self._families[name] = _Family(name)
        family.help, family.kind = help, "gauge"
        family.samples[name] = float(value)

    def text(self) -> str:
        """All of it."""
        lines: list[str] = []
        for family in self._families.values():
            if family.samples:
                lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
                lines += [f"{key} {value!r}" for key, value in family.samples.items()]
        return "\n".join([*lines, ""])


def signed(text: str, worker: int) -> str:
    """The text with the label ``worker`` on what is of the process itself (``process_…``, ``python_info``)."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if line.startswith(_OF_A_PROCESS):
            name, _, value = line.rpartition(" ")
            labels = f'{{worker="{worker}"' + (f",{name.partition('{')[2]}" if "{" in name else "}")
            lines[at] = f"{name.partition('{')[0]}{labels} {value}"
    return "\n".join([*lines, ""])

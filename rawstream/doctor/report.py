"""A report, for people and for machines."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

import msgspec
from rich.console import Console
from rich.text import Text

from rawstream.doctor.finding import Finding, Report, plural, span

_MARKS: Final = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "bad": ("✗", "bold red"), "unknown": ("?", "cyan")}
_NARROWEST: Final = 20
_CALLED: Final = {"bad": "bad", "warn": "to mind", "unknown": "cannot tell", "ok": "well"}


def as_json(report: Report) -> str:
    """One JSON object, indented."""
    whole = {**msgspec.to_builtins(report), "exit_code": report.exit_code}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode()


def summary(report: Report) -> str:
    """How many findings of each kind."""
    counts = [(sum(one.verdict == verdict for one in report.findings), word) for verdict, word in _CALLED.items()]
    told = ", ".join(f"{count} {word}" for count, word in counts if count)
    return f"{told} · {plural(report.requests, 'request')}, {span(report.seconds)}"


def show(console: Console, report: Report) -> None:
    """Finding by finding: a mark, what was seen, why it matters, what to do."""
    indent = max((len(finding.name) for finding in report.findings), default=0) + 4
    width = max(console.width - 1, indent + _NARROWEST)
    for finding in report.findings:
        mark, style = _MARKS[finding.verdict]
        head = Text.assemble((f"{mark} ", style), (f"{finding.name:{indent - 2}}", "bold"))
        for label, text in _parts(finding):
            start = head if label is None else Text.assemble(" " * indent, (label, "dim"))
            hanging = " " * (indent + len(label or ""))
            first, *more = textwrap.wrap(text, width - len(hanging), break_long_words=False, break_on_hyphens=False)
            console.print(start.append(first), soft_wrap=True)
            for line in more:
                console.print(Text(hanging + line), soft_wrap=True)
    console.print()
    console.print(Text(summary(report), style="dim"))


def _parts(finding: Finding) -> Iterator[tuple[str | None, str]]:
    yield None, f"cannot tell: {finding.seen}" if finding.verdict == "unknown" else finding.seen
    if finding.why:
        yield "why  ", finding.why
    if finding.remedy and finding.verdict != "ok":
        yield "do   ", finding.remedy

"""The report: Markdown for reading, a table for the terminal, a table for the README. Made from results.json alone.

Rule 1: medians with min–max over the repeats that count; a run whose generator was the bottleneck does not
        count, and says so.
Rule 2: every goal is judged, also the missed ones; one that cannot be judged says why.
Rule 3: where a peer is ahead of rawstream, the report says so, by how much, and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.results import Results
from bench.scenarios import Scenario, all_scenarios
from bench.scenarios.base import Column, Goal
from bench.trend import RULE, Spread

OURS = (
    "rawstream",
    "rawstream-gateway",
    "rawstream-tls",
    "rawstream-everything",
    "rawstream-gateway-everything",
)
"""Peers that are rawstream as it is meant to be used."""


def number(value: float, digits: int) -> str:
    """With thousands separators, and no more digits than say something."""
    if digits and abs(value) >= 1000:
        digits = 0
    text = f"{value:,.{digits}f}"
    return text.replace("-0", "0") if float(text.replace(",", "")) == 0 else text


def cell(spread: Spread | None, column: Column) -> str:
    """A median, and its range when there is more than one round."""
    if spread is None:
        return "–"
    text = number(spread.median, column.digits)
    least, most = number(spread.least, column.digits), number(spread.most, column.digits)
    return text if least == most else f"{text} ({least}–{most})"


@dataclass(frozen=True)
class Verdict:
    """One goal, judged."""

    scenario: str
    goal: Goal
    reached: bool | None
    """None: it could not be judged."""
    measured: str
    bound: str
    why_not: str = ""

    @property
    def word(self) -> str:
        return {True: "reached", False: "**missed**", None: "not judged"}[self.reached]


def ours(results: Results, scenario: Scenario, part: str) -> str | None:
    """Which peer of this part is rawstream itself."""
    peers = results.peers_of(scenario.name, part)
    return next((name for name in scenario.us if name in peers), None)


def judge(results: Results, scenario: Scenario) -> Iterator[Verdict]:
    """Every goal of a scenario."""
    columns = {column.key: column for column in scenario.columns}
    for goal in scenario.goals:
        if goal.part not in results.parts(scenario.name):
            continue
        column = columns[goal.key]
        sign = "≤" if goal.relation == "<=" else "≥"
        measured = results.spread(scenario.name, goal.part, goal.peer, goal.key)
        bound: float | None = goal.limit
        text, why_not = f"{sign} {number(goal.limit, column.digits)}", ""
        if goal.of is not None:
            other = results.spread(scenario.name, goal.part, goal.of, goal.key)
            bound = goal.limit * other.median if other else None
            text = f"{sign} {goal.limit:g} × {goal.of}" + (
                f" = {number(bound, column.digits)}" if bound is not None else ""
            )
            if other is None:
                why_not = absence(results, scenario.name, goal.part, goal.of)
        if measured is None:
            why_not = absence(results, scenario.name, goal.part, goal.peer)
        reached = None
        if measured is not None and bound is not None:
            reached = measured.median <= bound if goal.relation == "<=" else measured.median >= bound
        yield Verdict(
            scenario.name,
            goal,
            reached,
            cell(measured, column) + (f" {column.unit}" if column.unit and measured else ""),
            text,
            why_not,
        )


def absence(results: Results, scenario: str, part: str, peer: str) -> str:
    """Why a peer has no figure here."""
    missing = results.peers.get(peer, {}).get("missing")
    if missing:
        return f"{peer} is missing: {missing}"
    runs = results.of(scenario, part, peer)
    if not runs:
        return f"{peer} was not part of this run"
    failures = [run.failure for run in runs if run.failure]
    if failures:
        return f"{peer} failed: {failures[0]}"
    if any("generator-bound" in run.marks for run in runs):
        return f"{peer}: the generator was the bottleneck"
    return f"{peer} has no such figure"


def table(results: Results, scenario: Scenario, part: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one part: figures, ratios to rawstream, words and marks."""
    name = scenario.name
    peers = results.peers_of(name, part)
    us = ours(results, scenario, part)
    used = [column for column in scenario.columns if any(column.key in run.values for run in results.of(name, part))]
    words = [word for word in scenario.words if any(word[0] in run.words for run in results.of(name, part))]
    header = ["peer"]
    for column in used:
        header.append(f"{column.label}{f', {column.unit}' if column.unit else ''}")
        if column.ratio and us and len(peers) > 1:
            header.append("× rawstream")
    header += [label for _, label in words]
    notes = any(remarks(results, name, part, peer) for peer in peers)
    if notes:
        header.append("remarks")
    rows = []
    for peer in peers:
        row = [peer]
        for column in used:
            spread = results.spread(name, part, peer, column.key)
            row.append(cell(spread, column))
            if column.ratio and us and len(peers) > 1:
                base = results.spread(name, part, us, column.key)
                row.append(f"{spread.median / base.median:.2f}" if spread and base and base.median > 0 else "–")
        row += [results.words(name, part, peer, key) or "–" for key, _ in words]
        if notes:
            row.append(remarks(results, name, part, peer))
        rows.append(row)
    return header, rows


def remarks(results: Results, scenario: str, part: str, peer: str) -> str:
    """What the reader must know of these runs, failures first."""
    runs = results.of(scenario, part, peer)
    found = [f"FAILED: {run.failure}" for run in runs if run.failure]
    bound = sum("generator-bound" in run.marks for run in runs)
    if bound:
        found.append(f"generator-bound in {bound} of {len(runs)} rounds: not the server's figure, left out")
    found += [mark for run in runs for mark in run.marks if mark not in ("generator-bound", "one core for all")]
    return "; ".join(dict.fromkeys(text.replace("|", "\\|").replace("\n", " ")[:300] for text in found))


def winners(results: Results, scenario: Scenario, part: str) -> list[str]:
    """Sentences: which peer is ahead of rawstream, in which figure, by how much."""
    us = ours(results, scenario, part)
    if us is None:
        return []
    said = []
    for column in scenario.columns:
        base = results.spread(scenario.name, part, us, column.key)
        if base is None or column.better is None:
            continue
        ahead = []
        for peer in results.peers_of(scenario.name, part):
            seen = results.spread(scenario.name, part, peer, column.key)
            if peer == us or seen is None or peer.startswith("rawstream"):
                continue
            better = seen.median < base.median if column.better == "less" else seen.median > base.median
            if better and seen.median != base.median:
                ahead.append((seen.median, f"{peer} ({number(seen.median, column.digits)})"))
        if ahead:
            names = ", ".join(text for _, text in sorted(ahead, reverse=column.better == "more"))
            unit = f" {column.unit}" if column.unit else ""
            said.append(f"{column.label} ({number(base.median, column.digits)}{unit} here): {names}")
    return said


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [
        "| " + " | ".join(header) + " |",
        "|" + "|".join("---" if i == 0 else "--:" for i in range(len(header))) + "|",
    ]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def markdown(results: Results, plots: Sequence[str] = ()) -> str:
    """The whole report."""
    env, settings = results.environment, results.settings
    lines = [
        "# rawstream beside the servers people use",
        "",
        f"Run on {settings.get('date', '?')}, scale “{settings.get('scale')}”.",
        "",
    ]
    if settings.get("scale") != "full":
        lines += [
            "Sizes and times named in the texts are those of the full form; this one was smaller: a first look.",
            "",
        ]
    lines += ["## What was to be reached", ""]
    verdicts = [verdict for scenario in present(results) for verdict in judge(results, scenario)]
    lines += markdown_table(
        ["scenario", "goal", "measured", "bound", "verdict"],
        [
            [v.scenario, v.goal.label, v.measured, v.bound, v.word + (f" ({v.why_not})" if v.why_not else "")]
            for v in verdicts
        ],
    )
    for scenario in present(results):
        lines += ["", f"## {scenario.title}", "", scenario.about, ""]
        for part in results.parts(scenario.name):
            title = scenario.part_titles.get(part, part)
            lines += [f"### {title[0].upper()}{title[1:]}", ""]
            lines += markdown_table(*table(results, scenario, part))
            ahead = winners(results, scenario, part)
            if ahead:
                lines += ["", "Ahead of rawstream: " + "; ".join(ahead) + "."]
            lines.append("")
        if scenario.wins and any(winners(results, scenario, part) for part in results.parts(scenario.name)):
            lines += [f"*Why a peer may be ahead:* {scenario.wins}", ""]
        lines += [
            f"![{plot}]({plot})" for plot in plots if plot.startswith(f"{scenario.name}.") and plot.endswith(".png")
        ]
    lines += ["", "## How it was measured", "", *conditions(results), "", "### The machine", ""]
    lines += [
        f"* kernel {env.get('kernel')}, {env.get('cpu')}, {env.get('memory_mib')} MiB",
        f"* Python {env.get('python')}; {', '.join(f'{k} {v}' for k, v in env.get('packages', {}).items())}; Node "
        f"{env.get('node')}; {env.get('compiler')}",
        f"* {'; '.join(f'{k} = {v}' for k, v in env.get('sysctl', {}).items())}",
        f"* load average before the run: {env.get('load_before', 0):.2f} (a busy machine gives worse figures to "
        "everybody)",
        f"* settings: {', '.join(f'{k} = {v}' for k, v in settings.items() if k != 'left_out')}",
        "", "### The peers", "",
    ]  # fmt: skip
    lines += markdown_table(
        ["peer", "kind", "version", "how it is configured"],
        [
            [
                name,
                str(about["kind"]),
                str(about["version"] or f"MISSING: {about['missing']}"),
                str(about["notes"]).replace("|", "\\|"),
            ]
            for name, about in results.peers.items()
        ],
    )
    return "\n".join(lines) + "\n"


def conditions(results: Results) -> list[str]:
    """The rules of the measurement, in words."""
    settings = results.settings
    return [
        f"* Servers run on core {settings.get('server_core')}, the load generator on "
        f"{settings.get('generator_core')}, the fake upstream on {settings.get('upstream_core')}. Each server has one "
        "worker and a fresh process for each measurement, warmed up by 20 short answers.",
        "* Rounds are interleaved between the peers, their order is reversed every other round; figures are medians "
        "(min–max) over the rounds.",
        "* A run whose generator used 90 % or more of its core is marked “generator-bound” and left out of every "
        "figure.",
        "* A run during which other programs used more than 5 % of the server's core is marked “disturbed”: its CPU "
        "per token stands, its latencies are worse than the server's own.",
        "* CPU is user + system time of the whole process tree; memory is resident memory (proportional where a tree "
        "shares pages) *and* the bytes in the send queues of the server's kernel.",
        "* Clients set SO_RCVBUF, where it is given, before connect(). Every token of every stream is compared with "
        "the expected one, in order; a stream counts as complete only with its terminal event, a clean end of body, "
        "and the number of tokens asked for.",
        "* All servers of Python share one source (`bench/peers/_source.py`); Node's and Go's are the same, line by "
        "line.",
        f"* {RULE}",
        *[f"* Left out of {name} for time: {', '.join(left)}." for name, left in settings.get("left_out", {}).items()],
        *[
            f"* Not in this run: {name} ({about['missing']})."
            for name, about in results.peers.items()
            if about["missing"]
        ],
    ]


def present(results: Results) -> list[Scenario]:
    """The scenarios of these results, in the order of the report."""
    measured = set(results.scenarios())
    return [scenario for name, scenario in all_scenarios().items() if name in measured]


README_MORE: Final = (
    ("slow_fifth", "memory", "grown_mib"),
    ("thin_pipe", "one reader", "ahead_seconds"),
    ("handshakes", "full", "us_per_handshake"),
    ("handshakes", "resumed", "us_per_handshake"),
    ("tls_paced", "steady", "us_per_token"),
)
"""What stands in the README's table although it has no goal."""

TYPICAL: Final = ("uvicorn-starlette-h11", "httpx-gateway", "uvicorn-tls-h11")
"""What most people have: uvicorn + Starlette, as server and (with httpx) as gateway; uvicorn's own https."""


def readme(results: Results) -> str:
    """One compact table: a row per question, what was to be reached, and whether it was."""
    rows = []
    for scenario in present(results):
        judged: dict[tuple[str, str], list[Verdict]] = {}
        for verdict in judge(results, scenario):
            judged.setdefault((verdict.goal.part, verdict.goal.key), []).append(verdict)
        for name, part, key in README_MORE:
            if name == scenario.name and part in results.parts(name):
                judged.setdefault((part, key), [])
        order = {key: at for at, key in enumerate(results.parts(scenario.name))}
        for (part, key), verdicts in sorted(judged.items(), key=lambda each: order[each[0][0]]):
            column = next(column for column in scenario.columns if column.key == key)
            rows.append(_readme_row(results, scenario, part, column, verdicts))
    env, settings = results.environment, results.settings
    lines = markdown_table(
        ["scenario", "rawstream", "best peer", "uvicorn + Starlette", "goal", "verdict"],
        rows,
    )
    lines += [
        "",
        f"Measured {settings.get('date', '?')[:10]} on {env.get('cpu')}, {env.get('kernel')}, Python "
        f"{env.get('python')} (scale “{settings.get('scale')}”): medians, by `{_command(settings)}`. As a gateway, "
        "“uvicorn + Starlette” relays with httpx. Best of the servers people use; the bare floors, which the goals "
        "name, are none.",
    ]
    return "\n".join(lines) + "\n"


def _command(settings: Mapping[str, object]) -> str:
    scale, budget = settings.get("scale"), settings.get("budget_minutes")
    return (
        "python -m bench run all"
        + (f" --{scale}" if scale != "full" else "")
        + (f" --budget {budget:g}" if budget else "")
    )


def _readme_row(
    results: Results, scenario: Scenario, part: str, column: Column, verdicts: Sequence[Verdict]
) -> list[str]:
    def shown(peer: str) -> str:
        spread = results.spread(scenario.name, part, peer, column.key)
        return number(spread.median, column.digits) if spread else "–"

    peers = results.peers_of(scenario.name, part)
    found: list[tuple[float, str]] = []
    for peer in peers:
        spread = results.spread(scenario.name, part, peer, column.key)
        if spread and results.peers.get(peer, {}).get("kind") in ("server", "gateway", "tls", "http2"):
            found.append((spread.median, peer))
    best = (max if column.better == "more" else min)(found, default=None)
    us = next((verdict.goal.peer for verdict in verdicts), ours(results, scenario, part)) or OURS[0]
    typical = next((peer for peer in TYPICAL if peer in peers), "")
    title = scenario.part_titles.get(part, part)
    unit = f", {column.unit}" if column.unit else ""
    words = [verdict.word for verdict in verdicts]
    return [
        f"{scenario.name} ({title}): {column.label}{unit}",
        shown(us),
        f"{shown(best[1])} ({best[1]})" if best else "–",
        shown(typical),
        "; ".join(verdict.bound for verdict in verdicts) or "–",
        ", ".join(words if len(set(words)) > 1 else words[:1]) or "–",
    ]

"""The pictures: bars per figure, lines over time; PNG for the report, SVG too. Needs matplotlib (extra ``bench``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.report import OURS as OUR_PEERS
from bench.report import present
from bench.results import Results
from bench.scenarios.base import Scenario

OURS, OTHERS, DISCIPLINES, FLOOR = "#0b6e4f", "#9aa5b1", "#c44536", "#5b7db1"
MIB = 1024 * 1024


class NoMatplotlib(RuntimeError):
    """matplotlib is not installed: ``pip install -e '.[bench]'``."""


def colour(peer: str, kind: str | None) -> str:
    if peer in OUR_PEERS:
        return OURS
    if peer.startswith("rawstream"):
        return DISCIPLINES
    return FLOOR if kind == "floor" else OTHERS


def draw(results: Results, folder: Path) -> list[str]:
    """Draw all plots into the folder; their file names. NoMatplotlib when that cannot be."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise NoMatplotlib("no plots: matplotlib is not installed (pip install -e '.[bench]')") from error
    names: list[str] = []

    def save(name: str, paint: Callable[[Any], None], height: float) -> None:
        figure, axes = pyplot.subplots(figsize=(9, height))
        paint(axes)
        axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        for suffix in ("png", "svg"):
            figure.savefig(folder / f"{name}.{suffix}", dpi=110)
            names.append(f"{name}.{suffix}")
        pyplot.close(figure)

    for scenario in present(results):
        for part in results.parts(scenario.name):
            mark = f"{scenario.name}.{_plain(part)}"
            for key in scenario.bars:
                bars = _bars(results, scenario, part, key)
                if bars:
                    paint = partial(_paint_bars, results=results, scenario=scenario, part=part, key=key, bars=bars)
                    save(f"{mark}.{key}", paint, 0.9 + 0.32 * len(bars))
            for key, title, unit in scenario.series:
                lines = _lines(results, scenario, part, key)
                if lines:
                    title = f"{title} ({part})"
                    paint = partial(_paint_lines, results=results, lines=lines, title=title, unit=unit, key=key)
                    save(f"{mark}.{_plain(key)}", paint, 4.6)
    return names


def _plain(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text)


def _bars(results: Results, scenario: Scenario, part: str, key: str) -> list[tuple[str, float, float, float]]:
    found = []
    for peer in results.peers_of(scenario.name, part):
        spread = results.spread(scenario.name, part, peer, key)
        if spread:
            found.append((peer, spread.median, spread.least, spread.most))
    return found


def _paint_bars(
    axes: Any, results: Results, scenario: Scenario, part: str, key: str, bars: list[tuple[str, float, float, float]]
) -> None:
    column = next(column for column in scenario.columns if column.key == key)
    bars = sorted(bars, key=lambda bar: bar[1], reverse=column.better != "more")
    colours = [colour(peer, results.peers.get(peer, {}).get("kind")) for peer, *_ in bars]
    values = [median for _, median, *_ in bars]
    errors = [[m - low for _, m, low, _ in bars], [high - m for _, m, _, high in bars]]
    axes.barh([peer for peer, *_ in bars], values, color=colours, xerr=errors, ecolor="#555555", capsize=2)
    positive = [value for value in values if value > 0]
    if scenario.log_bars and len(positive) == len(values) and max(positive) > 20 * min(positive):
        axes.set_xscale("log")
    for y, value in enumerate(values):
        axes.annotate(
            f" {value:,.{0 if value >= 1000 else column.digits}f}", (max(value, 0), y), va="center", fontsize=8
        )
    axes.margins(x=0.12)
    better = {"less": " (less is better)", "more": " (more is better)", None: ""}[column.better]
    axes.set_xlabel(f"{column.label}{f', {column.unit}' if column.unit else ''}{better}")
    axes.set_title(f"{scenario.name}: {scenario.part_titles.get(part, part)}", fontsize=10)


def _lines(results: Results, scenario: Scenario, part: str, key: str) -> list[tuple[str, list[tuple[float, float]]]]:
    found = []
    for peer in results.peers_of(scenario.name, part):
        runs = [run for run in results.of(scenario.name, part, peer) if run.series.get(key)]
        if runs:
            found.append((peer, runs[0].series[key]))
    return found


def _paint_lines(
    axes: Any, results: Results, lines: list[tuple[str, list[tuple[float, float]]]], title: str, unit: str, key: str
) -> None:
    most = 0.0
    law = key.startswith("growth:")
    for peer, points in lines:
        scale = MIB if unit == "MiB" else 1
        values = [y / scale for _, y in points]
        most = max([most, *values])
        kind = results.peers.get(peer, {}).get("kind")
        mine = colour(peer, kind) != OTHERS
        axes.plot(
            [x for x, _ in points],
            values,
            label=peer,
            linewidth=2.2 if mine else 1.2,
            marker="o" if law else None,
            color=colour(peer, kind) if mine else None,
        )
    if not law and most > 200:
        axes.set_yscale("symlog", linthresh=50)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(key.removeprefix("growth:") if law else "seconds")
    axes.set_ylabel(unit)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7, ncol=2)

"""The command line: ``python -m bench list | run | report | before-after | peers``."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import build, netns, report
from bench.before_after import MOST, PARTS, NoVersion, compare
from bench.budget import fit
from bench.peers import Peer, all_peers
from bench.plots import NoMatplotlib, draw
from bench.results import Measurement, Results
from bench.runner import Step, describe, new_results, plan
from bench.runner import run as run_steps
from bench.scenarios import Scenario, all_scenarios
from bench.scenarios.base import Scale
from bench.trend import Spread

RESULTS: Final = Path(__file__).resolve().parent / "results"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """rawstream beside the servers people use: honest figures and pictures, on your own machine."""


@main.command("list")
def list_all() -> None:
    """Scenarios and peers, and what is missing here."""
    console = Console()
    table = Table(title="scenarios", title_justify="left")
    for column in ("name", "what", "parts"):
        table.add_column(column)
    for scenario in all_scenarios().values():
        table.add_row(scenario.name, scenario.title, ", ".join(scenario.parts("full")))
    console.print(table)
    _show_peers(console, all_peers())


def _show_peers(console: Console, peers: dict[str, Peer]) -> None:
    table = Table(title="peers", title_justify="left")
    for column in ("name", "kind", "version"):
        table.add_column(column)
    for name, about in describe(peers.values()).items():
        table.add_row(name, about["kind"], about["version"] or f"[red]missing:[/red] {about['missing']}")
    console.print(table)


def choose_peers(text: str | None, peers: dict[str, Peer]) -> dict[str, Peer]:
    """The peers of a comma-separated list, by name or its beginning; all (but ``rawstream-mock``) for None."""
    if not text:
        return {name: peer for name, peer in peers.items() if name != "rawstream-mock"}
    chosen: dict[str, Peer] = {}
    for word in (word.strip() for word in text.split(",")):
        found = [word] if word in peers else [name for name in peers if name.startswith(word)]
        if not found:
            raise click.BadParameter(f"no peer is called {word!r}; there are {', '.join(peers)}", param_hint="--peers")
        chosen |= {name: peers[name] for name in found}
        if word == "rawstream":  # its other forms are the same program
            chosen |= {name: peers[name] for name in report.OURS}
    return {name: peer for name, peer in peers.items() if name in chosen}


def choose_scenarios(names: Sequence[str]) -> list[Scenario]:
    scenarios = all_scenarios()
    if "all" in names:
        return list(scenarios.values())
    for name in names:
        if name not in scenarios:
            raise click.BadParameter(
                f"no scenario is called {name!r}; there are {', '.join(scenarios)}", param_hint="SCENARIO"
            )
    return [scenario for name, scenario in scenarios.items() if name in names]


@main.command()
@click.argument("scenario", nargs=-1, required=True, metavar="SCENARIO...|all")
@click.option("--peers", "peer_names", help="Comma-separated names, or beginnings of names. Default: all.")
@click.option("--short", is_flag=True, help="One round and shorter runs: a first look, not a result.")
@click.option("--toy", is_flag=True, hidden=True, help="As small as can be: shows that it runs.")
@click.option(
    "--repeats", type=click.IntRange(1, 50), help="Rounds per measurement (default: the scenario's own, 1 to 3)."
)
@click.option(
    "--budget",
    type=click.FloatRange(min=1),
    metavar="MINUTES",
    help="Shorten durations (to a half at most), then leave peers out of long scenarios, until it takes about so long. "
    "The report says what that did.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the results. Default: bench/results/<date>. An existing one is added to.",
)
@click.option(
    "--python-generator",
    is_flag=True,
    help="Use the slow generator in Python (also what happens without a C compiler).",
)
@click.option("--plots/--no-plots", default=True, help="Draw plots at the end.")
def run(
    scenario: tuple[str, ...], peer_names: str | None, short: bool, toy: bool, repeats: int | None,
    budget: float | None, out: Path | None, python_generator: bool, plots: bool,
) -> None:  # fmt: skip
    """Measure one or more scenarios, or all of them."""
    console = Console()
    _check_host()
    scale: Scale = "toy" if toy else "short" if short else "full"
    scenarios = choose_scenarios(scenario)
    peers = choose_peers(peer_names, all_peers())
    folder = out or RESULTS / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    date = datetime.datetime.now().isoformat(timespec="seconds")
    if not python_generator:
        _compile(console)
    results = new_results(scale, peers, {"date": date, "repeats": repeats or "per scenario"})
    if (folder / "results.json").exists():
        earlier = Results.load(folder)
        if earlier.settings.get("scale", scale) != scale:
            raise click.ClickException(
                f"{folder} holds a run of scale {earlier.settings['scale']}: choose another --out"
            )
        results.settings["left_out"] = dict(earlier.settings.get("left_out", {}))
        replaced = [each.name for each in scenarios]
        results.measurements = [m for m in earlier.measurements if m.scenario not in replaced]
        results.peers = {**earlier.peers, **results.peers}
    missing = {name: about["missing"] for name, about in results.peers.items() if about["missing"]}
    for name, why in missing.items():
        if name in peers:
            console.print(f"[yellow]missing:[/yellow] {name}: {why}")
    _say_what_cannot_be(console, scenarios)
    able = [peer for name, peer in peers.items() if name not in missing]
    steps = plan(scenarios, able, scale, repeats)
    if not steps:
        raise click.ClickException(
            "nothing to measure: none of these peers takes part in these scenarios, or all are missing"
        )
    fitted = fit(steps, scale, budget * 60 if budget else float("inf"))
    if budget:
        results.settings["budget_minutes"] = budget
    if fitted.stretch != 1:
        results.settings["durations"] = f"× {fitted.stretch:g}"
    if fitted.left_out:
        results.settings["left_out"] = {**results.settings.get("left_out", {}), **fitted.left_out}
        for name, left in fitted.left_out.items():
            console.print(f"[yellow]left out for time:[/yellow] {name}: {', '.join(left)}")
    steps, estimate = fitted.steps, fitted.seconds
    if results.environment["load_before"] > 0.5:
        load = results.environment["load_before"]
        console.print(f"[yellow]this machine is busy[/yellow] (load {load:.1f}): latencies will be worse for everybody")
    console.print(f"{len(steps)} measurements, about {max(1, round(estimate / 60))} minutes; results in {folder}")
    _run(console, steps, results, folder, scale, python_generator, fitted.stretch)
    _finish(console, results, folder, plots=plots)


def _check_host() -> None:
    if not sys.platform.startswith("linux"):
        raise click.ClickException(
            "the harness needs Linux: it reads /proc and asks the kernel for its queues (NETLINK_SOCK_DIAG)"
        )


def _compile(console: Console) -> None:
    try:
        for name in ("generator", "upstream"):
            build.compiled(name)
    except build.NoCompiler as error:
        console.print(f"[yellow]{error}[/yellow]\nThe Python generator is used; the gateway scenario cannot run.")


def _say_what_cannot_be(console: Console, scenarios: Sequence[Scenario]) -> None:
    reason = netns.why_not()
    if reason and any(scenario.name == "thin_pipe" for scenario in scenarios):
        console.print(f"[yellow]thin_pipe will fail:[/yellow] {reason}")


def _run(
    console: Console, steps: Sequence[Step], results: Results, folder: Path, scale: Scale, python_generator: bool,
    stretch: float,
) -> None:  # fmt: skip
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=False) as progress:
        task = progress.add_task("starting", total=len(steps))

        def before(step: Step) -> None:
            progress.update(
                task, description=f"{step.scenario.name} · {step.part} · {step.peer.name} · round {step.round + 1}"
            )

        def after(step: Step, found: Measurement) -> None:
            progress.advance(task)
            if found.failure:
                progress.console.print(
                    f"[red]failed:[/red] {found.scenario} · {found.part} · {found.peer}: {found.failure[:400]}"
                )
            elif found.marks:
                progress.console.print(
                    f"[yellow]note:[/yellow] {found.scenario} · {found.part} · {found.peer}: {'; '.join(found.marks)}"
                )

        try:
            run_steps(
                steps,
                results,
                scale=scale,
                save=lambda r: r.save(folder),
                before=before,
                after=after,
                tick=lambda text: progress.update(task, description=text),
                python_generator=python_generator,
                stretch=stretch,
            )
        except KeyboardInterrupt:
            console.print("\ninterrupted: the report covers what there is")
            time.sleep(0.1)


def _finish(console: Console, results: Results, folder: Path, *, plots: bool) -> None:
    if not results.measurements:
        return
    results.save(folder)
    drawn: list[str] = []
    if plots:
        try:
            drawn = draw(results, folder)
        except NoMatplotlib as error:
            console.print(f"[yellow]{error}[/yellow]")
    (folder / "report.md").write_text(report.markdown(results, drawn))
    show(console, results)
    console.print(f"report: {folder / 'report.md'}" + (f" · {len(drawn) // 2} plots (PNG and SVG)" if drawn else ""))


def show(console: Console, results: Results) -> None:
    """The tables in the terminal."""
    for scenario in report.present(results):
        for part in results.parts(scenario.name):
            header, rows = report.table(results, scenario, part)
            table = Table(title=f"{scenario.name}: {scenario.part_titles.get(part, part)}", title_justify="left")
            for i, head in enumerate(header):
                table.add_column(head, justify="left" if i == 0 or head == "remarks" else "right", overflow="fold")
            for row in rows:
                table.add_row(*row, style="bold" if row[0] in report.OURS else None)
            console.print(table)
    verdicts = [verdict for scenario in report.present(results) for verdict in report.judge(results, scenario)]
    if verdicts:
        table = Table(title="what was to be reached", title_justify="left")
        for head in ("scenario", "goal", "measured", "bound", "verdict"):
            table.add_column(head, overflow="fold")
        colours = {True: "green", False: "red", None: "yellow"}
        for verdict in verdicts:
            word = verdict.word.strip("*") + (f": {verdict.why_not}" if verdict.why_not else "")
            table.add_row(
                verdict.scenario,
                verdict.goal.label,
                verdict.measured,
                verdict.bound,
                f"[{colours[verdict.reached]}]{word}[/]",
            )
        console.print(table)


@main.command("report")
@click.argument(
    "folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="[DIR]"
)
@click.option("--readme", is_flag=True, help="Print the tables for the README instead.")
@click.option("--plots/--no-plots", default=True, help="Draw the plots again.")
def report_again(folder: Path | None, readme: bool, plots: bool) -> None:
    """Make the report (of DIR, else of the latest run) again from its results.json."""
    if folder is None:
        folders = sorted(path.parent for path in RESULTS.glob("*/results.json"))
        if not folders:
            raise click.ClickException("there are no results yet: python -m bench run all")
        folder = folders[-1]
    try:
        results = Results.load(folder)
    except FileNotFoundError:
        raise click.ClickException(f"{folder} has no results.json") from None
    if readme:
        click.echo(report.readme(results))
        return
    _finish(Console(), results, folder, plots=plots)


@main.command("before-after")
@click.option(
    "--before",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="A source tree, or an installed rawstream program.",
)
@click.option("--after", type=click.Path(exists=True, path_type=Path), required=True, help="The other one.")
@click.option("--rounds", type=click.IntRange(1, 50), default=5, show_default=True)
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, help="Default: all.")
@click.option("--short", is_flag=True, help="Shorter runs: a first look.")
@click.option("--toy", is_flag=True, hidden=True)
def before_after(before: Path, after: Path, rounds: int, parts: tuple[str, ...], short: bool, toy: bool) -> None:
    """Two versions of the gateway, interleaved: added first token, CPU per relayed token. Status 1 past 1.1 ×."""
    console = Console()
    _check_host()
    _compile(console)
    scale: Scale = "toy" if toy else "short" if short else "full"
    with console.status("starting") as status:
        try:
            found = compare(before, after, parts=parts or PARTS, rounds=rounds, scale=scale, tick=status.update)
        except NoVersion as error:
            raise click.ClickException(str(error)) from None
    table = Table(title=f"medians (min-max) of {rounds} rounds", title_justify="left")
    for head in ("", "before", "after", f"after ÷ before, must ≤ {MOST}", "", "remarks"):
        table.add_column(head, overflow="fold")
    for each in found:
        table.add_row(
            each.label,
            _spread(each.before, 1),
            _spread(each.after, 1),
            _spread(each.ratio, 3),
            "[green]pass[/]" if each.passed else "[red]FAIL[/]",
            "; ".join(each.marks),
        )
    console.print(table)
    if not all(each.passed for each in found):
        raise SystemExit(1)


def _spread(value: Spread | None, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value.median:,.{digits}f} ({value.least:,.{digits}f}-{value.most:,.{digits}f})"


@main.command()
@click.option("--install", is_flag=True, help="Set the peers up in a private environment (bench/.peers).")
@click.option("--apt", is_flag=True, help="Also install missing programs with apt-get (nginx, Go, Node). Needs root.")
def peers(install: bool, apt: bool) -> None:
    """The peers, and what is missing; --install sets them up."""
    console = Console()
    if install:
        from bench.peers.install import install as install_peers

        for problem in install_peers(lambda text: console.print(text), apt=apt):
            console.print(f"[yellow]could not be had:[/yellow] {problem}")
    _show_peers(console, all_peers())

"""``rawstream lab …``: the experiments of the course, in the terminal.

Rule 1: everything drawn and said is measured, in this process, now.
Rule 2: on a terminal the tanks are drawn while they fill; into a pipe goes the report alone, with ``--json`` as JSON.
Rule 3: Ctrl-C ends it cleanly: sockets closed, sources closed, exit code 130.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import click
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rawstream.client import stream
from rawstream.errors import RawstreamError
from rawstream.lab import experiments
from rawstream.lab.experiments import Report, Show
from rawstream.lab.pairing import pairing as pair

_STOPPED: Final = 130
_TANKS: Final = (
    ("program", "source"),
    ("transport", "transport"),
    ("kernel, unsent", "kernel_unsent"),
    ("network", "kernel_unacked"),
    ("client's kernel", "client_kernel"),
)
_WIDTH: Final = 12
_EMPTY_AT: Final = 100.0
_FULL_AT: Final = 10e6


def tank(size: int | None) -> Text:
    """A bar, in steps of the logarithm: empty at 100 bytes, full at 10 MB."""
    if size is None:
        return Text("not known here", style="dim")
    share = 0.0 if size <= _EMPTY_AT else min(1.0, math.log(size / _EMPTY_AT) / math.log(_FULL_AT / _EMPTY_AT))
    filled = round(share * _WIDTH)
    style = "green" if size < 64 * 1024 else "yellow" if size < 1_000_000 else "red"
    bar = Text("█" * filled, style=style)
    bar.append("░" * (_WIDTH - filled), style="dim")
    return bar.append("\n" + experiments.size(size))


def picture(question: str, sample: dict[str, Any] | None) -> Group:
    """The lanes of one sample, as tanks."""
    table = Table(expand=False, pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("lane")
    table.add_column("source", min_width=14)
    for name, _ in _TANKS:
        table.add_column(name, min_width=_WIDTH)
    table.add_column("read", justify="right")
    notes: list[Text] = []
    for lane in [] if sample is None else sample["lanes"]:
        goes = lane["state"] == "running"
        made = Text("▶ " if goes else "■ ", style="green" if goes else "bold")
        made.append(f"{lane['tokens']['made']:,}\n{lane['rate']['made']:,.0f}/s")
        tanks = [tank(lane["bytes"][key]) for _, key in _TANKS]
        table.add_row(lane["lane"], made, *tanks, f"{lane['tokens']['read']:,}\n{lane['rate']['read']:,.0f}/s")
        notes.append(Text(f"{lane['lane']}: {lane['why']}", style="dim"))
    elapsed = "" if sample is None else f"  {sample['elapsed']:.1f} s"
    title = Text(question, style="bold").append(elapsed, style="dim not bold")
    return Group(title, Text(), table, *notes)


def print_report(console: Console, report: Report) -> None:
    """Claim by claim, in plain sentences."""
    console.print(Text(report.question, style="bold"))
    for finding in report.findings:
        console.print(Text("\nclaimed   ", style="dim").append(finding.claim, style="default"), soft_wrap=True)
        console.print(Text("measured  ", style="dim").append(finding.measured, style="bold"), soft_wrap=True)


def run(name: str, question: str, experiment: Callable[[Show], Awaitable[Report]], as_json: bool) -> int:
    """Run an experiment and print what came of it; the exit code."""
    console = Console(highlight=False)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            if as_json or not console.is_terminal:
                report = runner.run(_whole(experiment, lambda sample: None))
            else:
                with Live(picture(question, None), console=console, refresh_per_second=10, transient=True) as live:
                    report = runner.run(_whole(experiment, lambda sample: live.update(picture(question, sample))))
    except KeyboardInterrupt:
        return _STOPPED
    except (RawstreamError, OSError) as error:
        click.echo(f"rawstream: lab {name}: {error}", err=True)
        return 1
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        print_report(console, report)
    return 0


async def _whole(experiment: Callable[[Show], Awaitable[Report]], show: Show) -> Report:
    return await experiment(show)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _ask(url: str, json: dict[str, Any], credit: int | None) -> AsyncIterator[Any]:
    return stream(url, json=json, credit=credit)


@click.group(short_help="Experiments: see and measure backpressure.")
def lab() -> None:
    """Experiments on a server of their own in this process, with real sockets: what the course claims, measured.

    Each takes some seconds and ends by itself. On a terminal it draws where the bytes are while they move (the
    bars are logarithmic: empty at 100 bytes, full at 10 MB). The live page shows the same and more: start
    'rawstream serve' and open http://127.0.0.1:8000/.
    """


_json = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, and draw nothing.")


@lab.command("stall", short_help="A client stops reading: what does it cost?")
@_json
def stall(as_json: bool) -> None:
    """One client that reads nothing: how far the source runs ahead, with small and large receive buffers and with
    credit, and when the client is cut. About 8 s."""
    sys.exit(run("stall", "What does a client cost that stops reading?", experiments.stall, as_json))


@lab.command("eager", short_help="The server writes as fast as tokens are made.")
@_json
def eager(as_json: bool) -> None:
    """Twenty slow readers, eagerly and by rawstream, side by side; then they leave. About 8 s."""
    sys.exit(run("eager", "What if the server just writes as fast as tokens are made?", experiments.eager, as_json))


@lab.command("drain", short_help="Is 'await drain()' enough?")
@_json
def drain(as_json: bool) -> None:
    """A stalled client, by drain() with default buffers and by rawstream, until neither moves any more. About 5 s."""
    sys.exit(run("drain", "Is `await drain()` enough?", experiments.drain, as_json))


@lab.command("who-holds-the-bytes", short_help="Four disciplines, one stalled client: where is its answer?")
@_json
def who_holds_the_bytes(as_json: bool) -> None:
    """The same 60,000 tokens for a client that reads nothing, by all four disciplines: who holds them. About 5 s."""
    question = "A client stops reading. Where is its answer?"
    sys.exit(run("who-holds-the-bytes", question, experiments.who_holds_the_bytes, as_json))


@lab.command("pairing", short_help="Is a token made only when one is read?")
@_json
def pairing(as_json: bool) -> None:
    """Yields per read: eagerly, in one process, over TCP, and over TCP with credit=1. About 4 s."""
    sys.exit(run("pairing", "Is a token made only when one is read?", lambda show: pair(show, _ask), as_json))

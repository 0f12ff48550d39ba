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
from rawstream.lab import experiments, flapping
from rawstream.lab.experiments import Report, Show
from rawstream.lab.pairing import pairing as pair
from rawstream.lab.windows import windows as share

_STOPPED: Final = 130
_TANKS: Final = ("source", "transport", "kernel_unsent", "kernel_unacked", "client_kernel")
_TITLES: Final = ("in the program", "transport", "kernel, unsent", "network", "client's kernel")
_SHORT_TITLES: Final = ("program", "transport", "kernel", "network", "client")
_WIDE: Final = 110
"""Columns of a terminal from which there is room for the long titles."""
_EMPTY_AT: Final = 100.0
_FULL_AT: Final = 10e6


def tank(size: int | None, width: int) -> Text:
    """A bar, in steps of the logarithm: empty at 100 bytes, full at 10 MB."""
    if size is None:
        return Text("not known", style="dim")
    share = 0.0 if size <= _EMPTY_AT else min(1.0, math.log(size / _EMPTY_AT) / math.log(_FULL_AT / _EMPTY_AT))
    filled = round(share * width)
    style = "green" if size < 64 * 1024 else "yellow" if size < 1_000_000 else "red"
    return Text.assemble(
        ("█" * filled, style), ("░" * (width - filled), "dim"), "\n", experiments.size(size).replace("bytes", "B")
    )


def picture(question: str, sample: dict[str, Any] | None, columns: int) -> Group:
    """The lanes of one sample, as tanks."""
    wide = columns >= _WIDE
    table = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), header_style="dim")
    table.add_column("lane", no_wrap=True)
    table.add_column("made", min_width=9, no_wrap=True)
    width = 12 if wide else 8
    for title in _TITLES if wide else _SHORT_TITLES:
        table.add_column(title, min_width=width, no_wrap=True)
    table.add_column("read", no_wrap=True)
    notes: list[Text] = []
    for lane in [] if sample is None else sample["lanes"]:
        goes = lane["state"] == "running"
        made = Text.assemble(
            ("▶ " if goes else "■ ", "green" if goes else "bold"),
            f"{lane['tokens']['made']:,}\n{lane['rate']['made']:,.0f}/s",
        )
        tanks = [tank(lane["bytes"][key], width) for key in _TANKS]
        table.add_row(lane["lane"], made, *tanks, f"{lane['tokens']['read']:,}\n{lane['rate']['read']:,.0f}/s")
        notes.append(Text(f"{lane['lane']}: {lane['why']}", style="dim"))
    elapsed = "" if sample is None else f"  {sample['elapsed']:.1f} s"
    return Group(Text.assemble((question, "bold"), (elapsed, "dim")), Text(), table, Text(), *notes)


def print_report(console: Console, report: Report) -> None:
    """Claim by claim, in plain sentences."""
    console.print(Text(report.question, style="bold"))
    for finding in report.findings:
        console.print(Text.assemble(("\nclaimed   ", "dim"), finding.claim), soft_wrap=True)
        console.print(Text.assemble(("measured  ", "dim"), (finding.measured, "bold")), soft_wrap=True)


def run(name: str, question: str, experiment: Callable[[Show], Awaitable[Report]], as_json: bool) -> int:
    """Run an experiment and print what came of it; the exit code."""
    console = Console(highlight=False)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            if as_json or not console.is_terminal:
                report = runner.run(_whole(experiment, lambda sample: None))
            else:
                first = picture(question, None, console.width)
                with Live(first, console=console, refresh_per_second=10, transient=True) as live:

                    def show(sample: dict[str, Any]) -> None:
                        live.update(picture(question, sample, console.width))

                    report = runner.run(_whole(experiment, show))
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
    credit, and when the client is cut. About 6 s."""
    sys.exit(run("stall", "What does a client cost that stops reading?", experiments.stall, as_json))


@lab.command("eager", short_help="The server writes as fast as tokens are made.")
@_json
def eager(as_json: bool) -> None:
    """Twenty slow readers, eagerly and by rawstream, side by side; then they leave. About 11 s."""
    sys.exit(run("eager", "What if the server just writes as fast as tokens are made?", experiments.eager, as_json))


@lab.command("drain", short_help="Is 'await drain()' enough?")
@_json
def drain(as_json: bool) -> None:
    """A stalled client, by drain() with default buffers and by rawstream, until neither moves any more. About 3 s."""
    sys.exit(run("drain", "Is `await drain()` enough?", experiments.drain, as_json))


@lab.command("who-holds-the-bytes", short_help="Four disciplines, one stalled client: where is its answer?")
@_json
def who_holds_the_bytes(as_json: bool) -> None:
    """The same 60,000 tokens for a client that reads nothing, by all four disciplines: who holds them. About 3 s."""
    question = "A client stops reading. Where is its answer?"
    sys.exit(run("who-holds-the-bytes", question, experiments.who_holds_the_bytes, as_json))


@lab.command("flap", short_help="Connections break: what does an answer cost?")
@_json
def flap(as_json: bool) -> None:
    """A hundred readers whose connections break four times each: who begins anew, and who resumes. About 8 s."""
    sys.exit(run("flap", "What does a flapping connection cost?", flapping.flap, as_json))


@lab.command("pairing", short_help="Is a token made only when one is read?")
@_json
def pairing(as_json: bool) -> None:
    """Yields per read: eagerly, in one process, over TCP, and over TCP with credit=1. About 4 s."""
    sys.exit(run("pairing", "Is a token made only when one is read?", lambda show: pair(show, _ask), as_json))


@lab.command("windows", short_help="Many streams share one HTTP/2 connection, one is not read.")
@_json
def windows(as_json: bool) -> None:
    """Twenty streams on one connection: the window of the one that is not read, its source, and the others. About
    3 s."""
    question = "Many streams share one connection. Whom does one that is not read hold up?"
    sys.exit(run("windows", question, share, as_json))

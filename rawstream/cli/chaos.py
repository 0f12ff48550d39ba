"""``rawstream chaos``: an upstream that breaks on demand, as a process.

Rule 1: one line on stderr says where it listens, once it accepts; scripts wait for that line.
Rule 2: Ctrl-C and SIGTERM end it at once and cleanly: exit code 0.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from itertools import groupby
from typing import Final

import click

from rawstream.errors import MisuseError
from rawstream.lab.chaos import ChaosUpstream
from rawstream.lab.chaos_certificates import MODES
from rawstream.lab.chaos_models import MODELS, Model

_PORT: Final = click.IntRange(0, 65535)

_HELP = """An OpenAI-compatible upstream that behaves as the request's model says, for trying what clients and
gateways make of it: 'ok' answers well, 'die-mid-event' dies in the middle of an event, and so on.
'--list' shows every model; parameters follow a colon: 'stall:tokens=3,seconds=10'.

\b
  rawstream chaos
  rawstream serve --upstream http://127.0.0.1:9400/v1
  rawstream chat --model die-mid-event hello

\b
What it saw of its clients is at http://127.0.0.1:9400/chaos/state: who left, when, after how many tokens.
With --tls its certificate, to be trusted, is at http://127.0.0.1:9400/chaos/certificate.
"""


@click.command("chaos", short_help="An upstream that fails in every way, on demand.", help=_HELP)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", type=_PORT, default=9400, show_default=True, metavar="N", help="TCP port; 0 picks a free one.")
@click.option("--list", "list_models", is_flag=True, help="Print every model with its parameters, and end.")
@click.option(
    "--tls",
    type=click.Choice(list(MODES)),
    help="Serve over TLS too, with a certificate made for the occasion: "
    + "; ".join(f"{k}: {v}" for k, v in MODES.items())
    + ".",
)
@click.option(
    "--tls-port", type=_PORT, default=9443, show_default=True, metavar="N", help="TCP port for TLS; 0 picks a free one."
)
def chaos(host: str, port: int, list_models: bool, tls: str | None, tls_port: int) -> None:
    """Run it. (The help page is ``_HELP``.)"""
    if list_models:
        click.echo(listing())
        return
    try:
        upstream = ChaosUpstream(host, port, tls=tls, tls_port=tls_port)
    except MisuseError as error:
        if error.detail:
            click.echo(error.detail.rstrip(), err=True)
        click.echo(f"rawstream: chaos: {error}", err=True)
        sys.exit(1)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        sys.exit(runner.run(_run(upstream)))


def listing() -> str:
    """All models, by what they are about."""
    lines: list[str] = []
    for kind, models in groupby(MODELS.values(), key=lambda model: model.kind):
        lines += ["", kind] if lines else [kind]
        for model in models:
            lines.append(f"  {model.name:<22}{model.does}")
            if model.parameters:
                lines.append(f"  {'':<22}  {_parameters(model)}")
    return "\n".join(lines)


def _parameters(model: Model) -> str:
    shown = [f"{name}={parameter.default:g} ({parameter.unit})" for name, parameter in model.parameters.items()]
    return ", ".join(shown)


async def _run(upstream: ChaosUpstream) -> int:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ending.set)
    try:
        await upstream.start()
    except OSError as error:
        click.echo(f"rawstream: chaos: {error.strerror or error}", err=True)
        return 1
    try:
        if upstream.tls_port:
            click.echo(f"rawstream chaos listening on {upstream.tls_url}", err=True)
        click.echo(f"rawstream chaos listening on {upstream.url}", err=True)
        await ending.wait()
    finally:
        await upstream.close()
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop

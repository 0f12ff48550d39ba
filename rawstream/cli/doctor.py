"""``rawstream doctor``: examine a deployment, or a model server.

Rule 1: what it will do is said before it is done, on stderr; the report goes to stdout.
Rule 2: exit code 0: nothing bad; 1: something is; 2: asked wrongly, or nothing there to examine; 130: Ctrl-C.
Rule 3: keys are sent, and never shown.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

import click
from rich.console import Console

from rawstream.doctor import edge, upstream
from rawstream.doctor.edge import EdgeOptions
from rawstream.doctor.finding import Report
from rawstream.doctor.report import as_json, show
from rawstream.doctor.target import PROMPT, target_of
from rawstream.errors import RawstreamError

_STOPPED: Final = 130
_CANNOT: Final = 2


@click.command(short_help="Examine a deployment, or a model server.")
@click.argument("url", metavar="URL")
@click.option(
    "--upstream", "as_upstream", is_flag=True, help="URL is a model server (up to and with /v1): how does it behave?"
)
@click.option("--model", metavar="NAME", help="The model to ask for.")
@click.option(
    "--api-key",
    metavar="KEY",
    help="Sent as 'Authorization: Bearer …'; also RAWSTREAM_API_KEY, and OPENAI_API_KEY for a model server.",
)
@click.option(
    "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Sent with each request; may be repeated."
)
@click.option("--prompt", default=PROMPT, metavar="TEXT", help="What to ask; the answer should take some seconds.")
@click.option(
    "--body", type=click.File("rb"), metavar="FILE", help="A JSON body to post instead of one made here ('-': stdin)."
)
@click.option(
    "--idle",
    type=click.FloatRange(1, 3600),
    default=70.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a silence to try.",
)
@click.option("--quick", is_flag=True, help="Do not look for idle cuts.")
@click.option("--idle-model", metavar="NAME", help="A model that is silent at first, for the look for idle cuts.")
@click.option(
    "--server",
    metavar="URL",
    help="The rawstream server's own address, where it can be asked directly: proves cancels and waits.",
)
@click.option(
    "--mock/--no-mock", default=None, help="Whether rawstream's mock answers there (default: asks /v1/models)."
)
@click.option("--ca", metavar="FILE", help="PEM file of certificate authorities to trust (default: the system's).")
@click.option("--json", "json", is_flag=True, help="Print the report as JSON.")
def doctor(
    url: str,
    as_upstream: bool,
    model: str | None,
    api_key: str | None,
    headers: tuple[str, ...],
    prompt: str,
    body: Any,
    idle: float,
    quick: bool,
    idle_model: str | None,
    server: str | None,
    mock: bool | None,
    ca: str | None,
    json: bool,
) -> None:
    """Does the deployment at URL stream, proxies and CDN included? Each finding comes with its remedy.

    \b
    Examples:
      rawstream doctor https://your.host/chat
      rawstream doctor --quick --header 'Cookie: session=…' https://your.host/api/chat
      rawstream doctor --server http://127.0.0.1:8000 https://your.host/chat
      rawstream doctor --upstream http://127.0.0.1:9301/v1

    It sends your own request a handful of times: reads one answer, leaves one, stops reading one, and waits through
    a silence. The dialect is told by the path (/chat, /v1/chat/completions, /api/chat, /stream, /text).
    Exit code: 0 nothing bad, 1 something is, 2 nothing to examine.
    """
    fields = [_field(header) for header in headers]
    key = api_key or os.environ.get("RAWSTREAM_API_KEY") or (os.environ.get("OPENAI_API_KEY") if as_upstream else None)
    if key and not any(name.lower() == "authorization" for name, _ in fields):
        fields.append(("authorization", f"Bearer {key}"))
    content = None if body is None else body.read()
    try:
        target = target_of(url, headers=tuple(fields), prompt=prompt, model=model, body=content)
    except RawstreamError as error:
        raise click.UsageError(str(error)) from None
    if as_upstream:
        if target.kind != "openai":
            raise click.UsageError("--upstream wants the URL up to and with /v1, as 'rawstream serve --upstream' does")
        click.echo(f"examining the model server at {target.url}: {upstream.forecast()}", err=True)
        sys.exit(_run(lambda say: upstream.examine(target, ca=ca, say=say), json))
    options = EdgeOptions(None if quick else idle, idle_model, server, ca, mock)
    click.echo(f"examining {target.url}: {edge.forecast(options)}", err=True)
    sys.exit(_run(lambda say: edge.examine(target, options, say), json))


def _field(header: str) -> tuple[str, str]:
    name, colon, value = header.partition(":")
    if not colon or not name.strip():
        raise click.UsageError(f"--header wants 'NAME: VALUE', not {name[:40]!r}")
    return name.strip(), value.strip()


def _run(examine: Callable[[Callable[[str], None]], Coroutine[Any, Any, Report]], json: bool) -> int:
    """Examine, and print what came of it; the exit code."""
    try:
        with asyncio.Runner() as runner:
            report = runner.run(examine(lambda line: click.echo(f"  … {line}", err=True)))
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        return _STOPPED
    except (RawstreamError, OSError) as error:
        click.echo(f"rawstream: doctor: {error}", err=True)
        return _CANNOT
    if json:
        click.echo(as_json(report))
    else:
        show(Console(highlight=False), report)
    return report.exit_code

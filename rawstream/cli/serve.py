"""``rawstream serve``: the server process, from its settings to its exit code.

Rule 1: one line on stderr says where it listens, once it accepts; scripts wait for that line.
Rule 2: the first SIGTERM or SIGINT ends it gracefully, the second at once. Both are a clean end: exit code 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from rawstream import config
from rawstream.cli.options import ServeCommand, setting_options
from rawstream.errors import RawstreamError, SettingsError
from rawstream.settings import Settings

if TYPE_CHECKING:
    from rawstream.api import Server
    from rawstream.model import Source

log = logging.getLogger("rawstream")


@click.command("serve", cls=ServeCommand, params=setting_options(), short_help="Start the server.")
@click.option("--config", "config_file", metavar="FILE", help="Read settings from this TOML file.")
def serve(config_file: str | None, **flags: Any) -> None:
    """Start the server."""
    try:
        loaded = config.load(flags, os.environ, config_file)
        code = run(loaded)
    except SettingsError as error:
        if error.detail:
            click.echo(error.detail.rstrip(), err=True)
        click.echo(f"rawstream: {error}", err=True)
        sys.exit(2)
    sys.exit(code)


def run(loaded: config.Loaded) -> int:
    """Serve until a signal ends it. The exit code. Raises SettingsError."""
    from rawstream.server import logs

    settings = loaded.settings
    if settings.workers > 1:
        where = loaded.origins.get("workers", "the default")
        raise SettingsError(f"workers: {settings.workers} (from {where}): for now one process serves; leave it at 1")
    loop_factory = _loop_factory(settings)
    logs.set_up(settings.log_format, settings.log_level)
    source = make_source(settings)
    for warning in loaded.warnings:
        log.warning("%s", warning)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_serve(settings, source))


def make_source(settings: Settings) -> Source:
    """The source that the settings name. Raises SettingsError."""
    if settings.source is not None:
        from rawstream.sources.loading import load_source

        return load_source(settings.source)
    if settings.upstream is not None:
        from rawstream.sources.upstream import UpstreamSource

        try:
            return UpstreamSource(settings)
        except RawstreamError as error:
            raise SettingsError(str(error), detail=error.detail) from None
    from rawstream.sources.mock import MockSource

    return MockSource()


def _loop_factory(settings: Settings) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop; None for asyncio's own."""
    if settings.loop == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if settings.loop == "uvloop":
            raise SettingsError("loop: 'uvloop' was asked for and is not installed (pip install uvloop)") from None
        return None
    return uvloop.new_event_loop


async def _serve(settings: Settings, source: Source) -> int:
    from rawstream.api import Server

    server = Server(settings, source)
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end(name: str) -> None:
        if ending.is_set():
            log.info("%s again: ending at once", name)
            server.hurry()
        else:
            log.info("%s: ending; running streams have %g s (again: at once)", name, settings.drain_timeout)
            ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number.name)
    loop.add_signal_handler(signal.SIGHUP, log.info, "SIGHUP: ignored; settings are read once, at start")
    try:
        await server.start()
    except OSError as error:
        await source.aclose()
        click.echo(f"rawstream: {error.strerror or error}", err=True)
        return 1
    remove_socket = _own_socket(settings)
    _announce(server, settings)
    try:
        await ending.wait()
        await server.close()
    finally:
        remove_socket()
    log.info("ended")
    return 0


def _announce(server: Server, settings: Settings) -> None:
    lines = [f"rawstream listening on {server.url}"]
    if sys.stderr.isatty() and settings.log_format == "text" and settings.log_level in ("debug", "info"):
        if settings.uds is not None:
            where = f"--unix-socket {settings.uds} http://localhost/chat"
        else:
            where = f"{server.url}/chat"
        lines.append(f'try: curl -N --json \'{{"prompt":"hello"}}\' {where}')
    # A closed stderr must not end the server.
    with contextlib.suppress(OSError):
        print("\n".join(lines), file=sys.stderr, flush=True)


def _own_socket(settings: Settings) -> Callable[[], None]:
    """A function that removes our Unix socket's file, unless another server has taken the path meanwhile."""
    path = settings.uds
    if path is None:
        return lambda: None
    ours = os.stat(path)

    def remove() -> None:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(path), ours):
                os.unlink(path)

    return remove

"""``rawstream serve``: the server process, from its settings to its exit code.

Rule 1: one line on stderr says where it listens, once it accepts; scripts wait for that line.
Rule 2: the first SIGTERM or SIGINT ends it gracefully, the second at once. Both are a clean end: exit code 0.
Rule 3: what a user can get wrong is one line and exit code 2 (a setting) or 1 (what came of it), never a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import click

from rawstream import config
from rawstream.api import Server
from rawstream.cli.options import ServeCommand, setting_options, size_text
from rawstream.cli.traces import open_traces
from rawstream.errors import SettingsError
from rawstream.flow import kernel
from rawstream.model import Source, Tracing
from rawstream.server import logs
from rawstream.settings import Settings
from rawstream.sources.loading import load_source
from rawstream.sources.mock import MockSource
from rawstream.sources.router import RoutedSource
from rawstream.systemd import ServiceManager, handed_over

log = logging.getLogger("rawstream")


@click.command("serve", cls=ServeCommand, params=setting_options(), short_help="Start the server.")
@click.option("--config", "config_file", metavar="FILE")
def serve(config_file: str | None, **flags: Any) -> None:
    """Start the server. (The help page is made by ``ServeCommand``.)"""
    try:
        code = run(config.load(flags, os.environ, config_file))
    except SettingsError as error:
        if error.detail:
            click.echo(error.detail.rstrip(), err=True)
        for line in str(error).splitlines():
            click.echo(f"rawstream: {line}", err=True)
        sys.exit(2)
    sys.exit(code)


def run(loaded: config.Loaded) -> int:
    """Serve until a signal ends it; the exit code. Raises SettingsError."""
    settings = loaded.settings
    if settings.workers > 1:
        where = loaded.origins["workers"]
        raise SettingsError(
            f"workers: {settings.workers} (from {where}): for now one process serves, so only 1 is valid"
        )
    loop_factory = _loop_factory(settings)
    logs.set_up(settings.log_format, settings.log_level)
    source = make_source(settings)
    tracing = open_traces(settings, os.environ)
    for warning in [*loaded.warnings, held_warning(settings, kernel_takes(settings))]:
        if warning is not None:
            log.warning("%s", warning)
    # What is there now stays: the collector need not look at it again with every thousand streams.
    gc.collect()
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(_serve(settings, source, tracing))
    finally:
        if tracing is not None:
            tracing.shutdown()


def make_source(settings: Settings) -> Source:
    """The source that the settings name. Raises SettingsError."""
    if settings.source is not None:
        return load_source(settings.source)
    if settings.upstream is not None or settings.upstreams:
        return RoutedSource(settings)
    return MockSource()


def _loop_factory(settings: Settings) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop; None for asyncio's own."""
    if settings.loop == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if settings.loop == "uvloop":
            raise SettingsError("loop: uvloop was asked for and is not installed (pip install uvloop)") from None
        return None
    return uvloop.new_event_loop


# --- what a stalled client costs ----------------------------------------------------------------------------


def kernel_takes(settings: Settings) -> tuple[int | None, str]:
    """Bytes that the kernel takes from us for a client that reads nothing (None: more than can be said), and why."""
    if settings.uds is not None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            taken = 2 * settings.sndbuf or probe.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        return taken, f"sndbuf={size_text(settings.sndbuf)} of a Unix socket"
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        lowat = kernel.set_notsent_lowat(probe, settings.notsent_lowat)
    if lowat and settings.notsent_lowat:
        return settings.notsent_lowat, f"notsent_lowat={size_text(settings.notsent_lowat)}"
    why = "notsent_lowat=0" if lowat else "this system has no TCP_NOTSENT_LOWAT"
    if settings.sndbuf:
        return 2 * settings.sndbuf, f"{why}, sndbuf={size_text(settings.sndbuf)}, which the kernel doubles"
    return None, f"{why}; sndbuf bounds it"


def held_warning(settings: Settings, in_kernel: tuple[int | None, str]) -> str | None:
    """What is held for each stalled client, when that is more than by default. ``in_kernel``: ``kernel_takes()``."""
    high, (taken, why) = settings.write_high, in_kernel
    default = Settings()
    if high <= default.write_high and taken is not None and taken <= default.notsent_lowat:
        return None
    shown = "megabytes" if taken is None else _readable(taken)
    return (
        f"up to {_readable(high)} in the transport (write_high={size_text(high)}) + {shown} in the kernel ({why}) "
        "will be held for each stalled client"
    )


def _readable(size: int) -> str:
    return f"{size / 1048576:.1f} MiB" if size >= 1048576 else f"{size / 1024:.1f} KiB"


# --- the process --------------------------------------------------------------------------------------------


async def _serve(settings: Settings, source: Source, tracing: Tracing | None) -> int:
    manager = ServiceManager(os.environ)
    try:
        sockets = handed_over(os.environ) or None
    except OSError as error:
        click.echo(f"rawstream: {error}", err=True)
        return 1
    server = Server(settings, source, sockets=sockets, tracing=tracing)
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end(name: str) -> None:
        if ending.is_set():
            log.info("%s again: ending at once", name)
            server.hurry()
        else:
            log.info(
                "%s: ending; running streams have %g s, a second signal ends at once", name, settings.drain_timeout
            )
            ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number.name)
    loop.add_signal_handler(signal.SIGHUP, _hang_up, server, manager)
    try:
        await server.start()
    except OSError as error:
        await source.aclose()
        click.echo(f"rawstream: {error.strerror or error}", err=True)
        return 1
    remove_socket = _own_socket(settings)
    try:
        _announce(server, settings)
        manager.ready(lambda: _status(server))
        await ending.wait()
        manager.stopping(f"ending; {_status(server)}")
        await server.close()
    finally:
        manager.close()
        remove_socket()
    log.info("ended")
    return 0


def _status(server: Server) -> str:
    """What ``systemctl status`` shows."""
    count = len(server.app.streams)
    return f"{server.url}; {count} stream{'' if count == 1 else 's'}"


def _hang_up(server: Server, manager: ServiceManager) -> None:
    """SIGHUP: a certificate that was renewed is taken up; connections that are there keep theirs."""
    manager.reloading()
    try:
        _reload(server)
    finally:
        manager.reloaded(_status(server))


def _reload(server: Server) -> None:
    if server.settings.ssl_certfile is None:
        log.info("SIGHUP: ignored; settings are read once, at start")
        return
    try:
        server.reload_certificate()
    except SettingsError as error:
        log.error("SIGHUP: the certificate stays as it was: %s", error)
    else:
        log.info("SIGHUP: new connections get the certificate in %s", server.settings.ssl_certfile)


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

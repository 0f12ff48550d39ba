"""``rawstream serve --workers N``: the process that starts the workers and watches over them.

Rule 1: it owns the listening sockets, and passes them on; it never accepts, and never touches a client. It has nothing
        to fail at while streams run.
Rule 2: a worker is this very command again, with ``worker_link.VARIABLE`` in its environment: after an upgrade the
        workers that a reload starts are new code.
Rule 3: who dies is started again, later each time it dies young; who never comes up at the start ends it all, and who
        never comes up at a reload changes nothing.
Rule 4: it is never left alone in the end: who does not end in its time is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar

import click

from rawstream.cli.worker_process import Generation, NotUp, WorkerProcess, how_it_ended
from rawstream.errors import SettingsError
from rawstream.limits.division import divided
from rawstream.server.balance import ABSENT, Counts
from rawstream.server.doors import url_of
from rawstream.server.listener import listen, listen_at, remover
from rawstream.server.siblings import bury
from rawstream.server.worker_link import VARIABLE, Place
from rawstream.settings import Settings
from rawstream.systemd import ServiceManager, handed_over

log = logging.getLogger("rawstream")

_FIRST_WAIT: Final = 0.5
_LONGEST_WAIT: Final = 30.0
_GROWN_UP: Final = 60.0
"""Seconds. Who dies after them is started again as if it were the first time."""
_FIXED: Final = ("host", "port", "uds", "admin", "backlog")
"""Settings of the listening sockets, which stay."""

T = TypeVar("T")


def supervise(settings: Settings, load: Callable[[], Settings], *, announce: Callable[[str, str | None], None]) -> int:
    """Serve until a signal ends it; the exit code.

    ``load()`` reads the settings anew, and raises SettingsError; ``announce(url, admin)`` says that all workers accept.
    """
    with contextlib.ExitStack() as cleanup:
        try:
            sockets = handed_over(os.environ) or listen(settings)
            cleanup.callback(remover(settings.uds))
            operators = [] if settings.admin is None else listen_at(settings.admin, settings.backlog)
            directory = Path(tempfile.mkdtemp(prefix="rawstream-"))
            cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
            cleanup.callback(os.close, _keep_from_aging(directory))
            counts = Counts.create(directory / "counts")
        except OSError as error:
            click.echo(f"rawstream: {error.strerror or error}", err=True)
            return 1
        given = _Given(sockets, operators, directory, counts)
        return asyncio.run(Supervisor(settings, load, given).run(announce))


def _keep_from_aging(directory: Path) -> int:
    """A descriptor to keep: systemd-tmpfiles(8) leaves a directory alone that is locked, however old it is."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # a file system that has no locks
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return descriptor


def next_wait(before: float, lived: float) -> float:
    """Seconds until a dead worker is started again. ``before``: the last wait, 0 for none; ``lived``: seconds."""
    return _FIRST_WAIT if not before or lived >= _GROWN_UP else min(_LONGEST_WAIT, 2 * before)


class _Given(NamedTuple):
    """What all workers share."""

    sockets: list[socket.socket]
    operators: list[socket.socket]
    directory: Path
    counts: Counts


class Supervisor:
    """All workers, those that are there and those that should be."""

    def __init__(self, settings: Settings, load: Callable[[], Settings], given: _Given) -> None:
        self._settings = settings
        self._load = load
        self._given = given
        self._serials = itertools.count(1)
        self._workers: set[WorkerProcess] = set()
        self._generation = Generation(settings)
        self._leaving: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._hurry = asyncio.Event()
        self._hang_up = asyncio.Event()
        self._manager = ServiceManager(os.environ)
        self._url = ""

    # --- life ---------------------------------------------------------------------------------------------------

    async def run(self, announce: Callable[[str, str | None], None]) -> int:
        """Until a signal ends it; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number.name)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up.set)
        code = 0
        try:
            if await self._unless_ending(self._up(self._generation)):
                self._say_how_divided(self._settings)
                operators = self._given.operators
                announce(self._url, url_of("http", operators[0].getsockname()) if operators else None)
                self._manager.ready(self._status)
            while not self._ending.is_set():
                await self._unless_ending(self._hang_up.wait())
                if not self._ending.is_set():
                    self._hang_up.clear()
                    await self._reload()
        except NotUp as error:
            if not error.has_said_why:
                click.echo(f"rawstream: {error}", err=True)
            code = error.code
        except OSError as error:
            click.echo(f"rawstream: cannot start a worker: {error}", err=True)
            code = 1
        finally:
            self._manager.stopping("ending")
            await self._all_ended()
            self._manager.close()
        log.info("ended")
        return code

    def _end(self, name: str) -> None:
        if self._ending.is_set():
            log.info("%s again: ending at once", name)
            self._hurry.set()
            for worker in self._workers:
                worker.terminate()
        else:
            log.info("%s: ending; a second signal ends at once", name)
            self._ending.set()

    def _status(self) -> str:
        return f"{self._url}; {len(self._workers)} workers"

    def _say_how_divided(self, settings: Settings) -> None:
        said = divided(settings, settings.workers)[1]
        if said is not None:
            log.info("%s", said)

    async def _unless_ending(self, what: Coroutine[Any, Any, T]) -> T | None:
        """What it gives; None, and it is cancelled, when a signal ends everything."""
        task = asyncio.ensure_future(what)
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait((task, ending), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for one in (task, ending):
                one.cancel()
            await asyncio.gather(task, ending, return_exceptions=True)

    async def _all_ended(self) -> None:
        """Tell all workers to end, and wait until they have; who does not in time is killed."""
        self._ending.set()
        self._generation.leaving.set()
        for sock in (*self._given.sockets, *self._given.operators):
            sock.close()  # who comes now is refused, as soon as the workers have closed theirs: nobody would answer
        for worker in self._workers:
            if not worker.told_to_end:
                worker.terminate()
        gone = asyncio.ensure_future(self._gone())
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait((gone, hurry), timeout=self._generation.grace, return_when=asyncio.FIRST_COMPLETED)
        if not gone.done() and self._hurry.is_set():
            await asyncio.wait((gone,), timeout=self._generation.hurry)
        hurry.cancel()
        for worker in self._workers:
            log.error("worker %d (pid %d) does not end: killed", worker.place.slot, worker.pid)
            worker.kill()
        await gone

    async def _gone(self) -> None:
        while self._leaving:
            await asyncio.wait(self._leaving)

    # --- workers ------------------------------------------------------------------------------------------------

    async def _start(self, generation: Generation) -> WorkerProcess:
        """Start one. Raises OSError."""
        given = self._given
        taken = {worker.place.slot for worker in self._workers}
        slot = next(number for number in itertools.count(1) if number not in taken)
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            place = Place(
                serial=next(self._serials),
                slot=slot,
                workers=generation.settings.workers,
                directory=str(given.directory),
                link=theirs.fileno(),
                sockets=[sock.fileno() for sock in given.sockets],
                admin=[sock.fileno() for sock in given.operators],
            )
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *sys.orig_argv[1:],
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, VARIABLE: place.text()},
                pass_fds=[place.link, *place.sockets, *place.admin],
                process_group=0,  # a terminal's ^C is for us; to them it would be a second signal
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        worker = WorkerProcess(generation, place, process, ours)
        self._workers.add(worker)
        task = asyncio.get_running_loop().create_task(self._reap(worker), name="reap")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return worker

    async def _reap(self, worker: WorkerProcess) -> None:
        """When it has ended: nothing of it is left but its figures."""
        await worker.ended()
        self._workers.discard(worker)
        self._given.counts.put(worker.place.slot, ABSENT)
        worker.close()
        try:
            bury(self._given.directory, worker.place.serial)
        except (OSError, ValueError) as error:
            log.error("the figures of worker %d are lost: %s", worker.place.slot, error)

    async def _up(self, generation: Generation) -> bool:
        """All of its workers accept. Raises NotUp, OSError; then those that came up are left to the caller."""
        # One first: what is wrong with the settings is said once.
        workers = [await self._start(generation)]
        try:
            self._url = await workers[0].ready()
            for _ in range(1, generation.settings.workers):
                workers.append(await self._start(generation))
            for worker in workers[1:]:
                await worker.ready()
        except BaseException:
            for worker in workers:
                worker.retire()
            raise
        for worker in workers:
            task = asyncio.get_running_loop().create_task(self._keep(generation, worker), name="keep")
            generation.keepers.append(task)
        return True

    async def _keep(self, generation: Generation, worker: WorkerProcess) -> None:
        """Whenever it ends, start another one in its place, until the generation leaves."""
        wait = 0.0
        while True:
            code = await worker.ended()
            if generation.leaving.is_set() or self._ending.is_set():
                return
            lived = monotonic() - worker.began
            wait = next_wait(wait, lived)
            log.warning(
                "worker %d (pid %d) ended with %s after %.1f s; another one starts in %g s",
                worker.place.slot, worker.pid, how_it_ended(code), lived, wait,
            )  # fmt: skip
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await generation.leaving.wait()
            if generation.leaving.is_set():
                return
            try:
                worker = await self._start(generation)
                await worker.ready()
            except (NotUp, OSError) as error:
                if not generation.leaving.is_set():
                    log.error("%s", error)
            else:
                log.info("worker %d (pid %d) accepts", worker.place.slot, worker.pid)
            if generation.leaving.is_set():
                worker.retire()

    # --- reload -------------------------------------------------------------------------------------------------

    async def _reload(self) -> None:
        """New workers on the same sockets; when they accept, the old ones finish. Or everything stays."""
        self._manager.reloading()
        try:
            settings = self._load()
        except SettingsError as error:
            log.error("SIGHUP: everything stays as it was: %s", "; ".join(str(error).splitlines()))
        else:
            self._warn_of_fixed(settings)
            await self._replace(Generation(settings))
        self._manager.reloaded(self._status())

    async def _replace(self, new: Generation) -> None:
        began = monotonic()
        try:
            if not await self._unless_ending(self._up(new)):
                return
        except (NotUp, OSError) as error:
            log.error("SIGHUP: everything stays as it was: %s", error)
            return
        old, self._generation = self._generation, new
        old.leaving.set()
        leaving = [worker for worker in self._workers if worker.generation is old]
        for worker in leaving:
            worker.retire()
        await asyncio.gather(*(worker.retired() for worker in leaving))
        log.info(
            "SIGHUP: %d new workers accept after %.1f s; the old ones finish",
            new.settings.workers,
            monotonic() - began,
        )
        self._say_how_divided(new.settings)

    def _warn_of_fixed(self, settings: Settings) -> None:
        changed = [name for name in _FIXED if getattr(settings, name) != getattr(self._settings, name)]
        if changed:
            log.warning("SIGHUP: the listening sockets are kept; a restart changes %s", ", ".join(changed))

"""For the tests of real clients: a gateway before the fault-injecting upstream, and the record of what they do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.clients import matrix
from tests.clients.cutting import Cut, CuttingRelay
from tests.support.chaos import ChaosProcess
from tests.support.server import ServerProcess
from tests.support.waiting import eventually

MATRIX = "RAWSTREAM_CLIENT_MATRIX"
"""Environment variable: the file to which the matrix is written at the end of the session."""

HEARTBEAT = 0.1
RETRIES = 1

_TOLD = pytest.StashKey[list[matrix.Told]]()
_CELL = pytest.StashKey[matrix.Told]()

Tell: TypeAlias = Callable[[str, str], None]
"""``tell(verdict, version)``: what the client did, and which one it was."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash.setdefault(_TOLD, [])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A cell's test must tell its verdict; one that passed counts for the matrix."""
    yield
    if item.get_closest_marker("cell") is not None:
        assert _CELL in item.stash, "the test of a cell told no verdict"
        item.config.stash.setdefault(_TOLD, []).append(item.stash[_CELL])


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = os.environ.get(MATRIX)
    if path:
        Path(path).write_text(matrix.table(session.config.stash.get(_TOLD, [])) + "\n", encoding="utf-8")


@pytest.fixture
def tell(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Tell:
    """Say what was observed. AssertionError when the matrix says something else of this cell."""
    mark = request.node.get_closest_marker("cell")
    assert mark is not None, "parametrise with tests.clients.matrix.cells"
    client, behaviour = mark.args

    def told(verdict: str, version: str) -> None:
        assert verdict == matrix.ROWS[client].cells[behaviour]
        request.node.stash[_CELL] = matrix.Told(client, behaviour, verdict, version)
        for name, value in request.node.stash[_CELL]._asdict().items():
            record_property(name, value)

    return told


@pytest.fixture(scope="module")
def chaos() -> Iterator[ChaosProcess]:
    """An upstream that behaves as the request's ``model`` says."""
    with ChaosProcess() as process:
        yield process


@pytest.fixture(scope="module")
def shared_gateway(chaos: ChaosProcess) -> Iterator[ServerProcess]:
    # The tests provoke failure after failure: nothing may come of it but what the one request's client is told.
    retries = ("--upstream-retries", f"{RETRIES}", "--upstream-retry-wait", "0", "--upstream-retry-budget", "1")
    patient = ("--upstream-breaker-failures", "0", "--upstream-pool-idle", "1", "--heartbeat", f"{HEARTBEAT:g}")
    leaving = ("--resume-grace", "0")  # who leaves leaves; what resumes has tests of its own
    with ServerProcess("--upstream", chaos.url, *retries, *patient, *leaving) as server:
        yield server
        server.assert_steady()


@pytest.fixture
def gateway(shared_gateway: ServerProcess) -> Iterator[ServerProcess]:
    """The gateway; after the test no stream is left in it, and nothing looks like a bug."""
    yield shared_gateway
    eventually(lambda: shared_gateway.debug()["totals"]["streams"] == 0, why="no stream is left")
    try:
        shared_gateway.assert_no_traceback()
    finally:
        shared_gateway.forgive("")  # what one test brought about is not the next one's


@pytest.fixture
def cut(gateway: ServerProcess) -> Iterator[Mapping[Cut, str]]:
    """URLs of the gateway behind something that cuts answers, by the way in which it does so."""
    with contextlib.ExitStack() as stack:
        yield {kind: stack.enter_context(CuttingRelay(gateway.port, kind)).url for kind in Cut}

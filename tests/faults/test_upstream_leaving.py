"""Row 50: a client that leaves stops the upstream, whatever the upstream is doing at that moment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.through import OPENAI, PATHS, Through, gateway, write_row
from tests.support import raw
from tests.support.chaos import ChaosProcess
from tests.support.waiting import eventually

BUSY = ["endless", "deaf", "flood", "unicode:tokens=100000"]
"""Models that write on and on."""
QUIET = ["silent", "drip-head", "endless-1xx", "slow-first:seconds=600"]
"""Models that the gateway waits for before its first token."""
STALLED = ["stall", "stall-mid-event", "drip", "pings-only"]


@pytest.fixture(scope="module")
def chaos() -> Iterator[ChaosProcess]:
    with ChaosProcess() as running:
        yield running


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def running(chaos: ChaosProcess, request: pytest.FixtureRequest) -> Iterator[Through]:
    with gateway(chaos.url, "--loop", request.param) as server:
        yield Through(server, chaos)


@pytest.fixture
def through(running: Through) -> Iterator[Through]:
    yield running
    running.assert_steady()


def generations(through: Through, model: str) -> int:
    return len(through.chaos.generations(model))


def assert_freed(through: Through, model: str, before: int) -> None:
    """The upstream's socket was closed, and it noticed."""
    eventually(lambda: generations(through, model) == before + 1, why="the upstream has the request")
    left = through.chaos.wait_generation(
        model, lambda generation: generation["state"] == "client_left" and generations(through, model) == before + 1
    )
    assert left["seconds_after_left"] < 1, "what could still be written to it is over within a second"
    through.chaos.wait_idle()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model", [*BUSY, *STALLED])
def test_a_client_that_leaves_in_mid_stream_frees_the_upstream(
    through: Through, model: str, path: str, how: str
) -> None:
    before = generations(through, model)
    name = f"leaves-{before}-{how}"
    with raw.Client(through.server.port) as client:
        client.send(through.request(model, path, name=name)).head()
        client.body_part()
        if how == "reset":
            client.reset()
    assert_freed(through, model, before)
    outcome = through.server.ended(name)["outcome"]
    if model == "deaf":
        write_row(model, path, "it has left", outcome, "closed")
    assert outcome == "client_left"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model", QUIET)
def test_a_client_that_leaves_before_the_first_token_frees_the_upstream(
    through: Through, model: str, path: str
) -> None:
    before = generations(through, model)
    with raw.Client(through.server.port) as client:
        client.send(through.request(model, path))
        eventually(lambda: generations(through, model) == before + 1, why="the upstream has the request")
    assert_freed(through, model, before)


def test_a_client_that_leaves_while_it_waits_for_a_whole_answer_frees_the_upstream(through: Through) -> None:
    """``"stream": false``: nothing has been said yet, on either side."""
    before = generations(through, "endless")
    with raw.Client(through.server.port) as client:
        client.send(through.request("endless", OPENAI, stream=False))
        eventually(lambda: generations(through, "endless") == before + 1, why="the upstream has the request")
    assert_freed(through, "endless", before)


def test_twenty_clients_that_leave_at_once_free_twenty_connections(through: Through) -> None:
    model = "endless:rate=21"
    before = generations(through, model)
    clients = [raw.Client(through.server.port) for _ in range(20)]
    for client in clients:
        client.send(through.request(model, OPENAI)).head()
    for client in clients:
        client.close()
    eventually(
        lambda: [g["state"] for g in through.chaos.generations(model)[before:]] == ["client_left"] * 20,
        within=10,
        why="all twenty were left",
    )
    state = through.chaos.wait_idle()
    assert state["connections"] <= 2, "the pool's one, and ours to ask"

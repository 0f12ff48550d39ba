"""What retries make of a fault: mended where nobody has seen anything of it, told once where they could not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.through import PATHS, Through, gateway, text_of
from tests.support import raw
from tests.support.chaos import ChaosProcess
from tests.support.waiting import eventually

RETRIED = ["status", "close-before-head", "reset-before-head"]
TOLD_AT_ONCE = ["die-after-head", "die-mid-event", "reset-mid-stream", "error-in-stream", "status:code=400", "redirect"]


@pytest.fixture(scope="module")
def chaos() -> Iterator[ChaosProcess]:
    with ChaosProcess() as running:
        yield running


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def running(chaos: ChaosProcess, request: pytest.FixtureRequest) -> Iterator[Through]:
    flags = ("--upstream-retries", "3", "--upstream-retry-wait", "0.05", "--upstream-retry-budget", "10")
    with gateway(chaos.url, *flags, "--loop", request.param) as server:
        yield Through(server, chaos)


@pytest.fixture
def through(running: Through) -> Iterator[Through]:
    yield running
    running.assert_steady()


@pytest.mark.parametrize("path", PATHS)
def test_a_fault_that_passes_is_not_seen_by_the_client(through: Through, path: str) -> None:
    """Two failures, then an answer: the client gets it whole, and the log tells of one stream."""
    model = f"status:code=503,times=2,retry_after=0.0{through.server.port}{len(path)}"  # nobody else's
    seen = through.ask(model, path)
    assert (seen.reply.status, seen.done, seen.text, seen.outcome) == (200, True, text_of(20), "completed")
    assert len(through.chaos.generations(model)) == 3


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model", RETRIED)
def test_a_fault_that_stays_is_told_once_with_its_attempts(through: Through, model: str, path: str) -> None:
    """Four attempts, one answer; and the client's SDK is told not to start all over again."""
    before = len(through.chaos.generations(model))
    seen = through.ask(model, path)
    assert seen.reply.status in (500, 502)
    assert seen.reply.header("x-should-retry") == "false"
    assert "4 attempts" in seen.reply.body.decode()
    # A kept connection that turns out to be closed is tried again besides, at once, and counts for no attempt.
    assert len(through.chaos.generations(model)) - before in (4, 5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model", TOLD_AT_ONCE)
def test_a_generation_that_began_is_never_begun_again(through: Through, model: str, path: str) -> None:
    """Nor is a request that would be refused again."""
    before = len(through.chaos.generations(model))
    through.ask(model, path)
    assert len(through.chaos.generations(model)) - before == 1


def test_a_client_that_leaves_between_two_attempts_ends_them(chaos: ChaosProcess) -> None:
    model = "status:code=503,retry_after=25"
    with gateway(chaos.url, "--upstream-retries", "3") as server:
        through = Through(server, chaos)
        with raw.Client(server.port) as client:
            client.send(through.request(model, "/chat", name="leaves"))
            eventually(lambda: chaos.generations(model), why="the first attempt was made")
        assert server.ended("leaves")["outcome"] == "client_left"
        through.assert_steady()
        assert len(chaos.generations(model)) == 1

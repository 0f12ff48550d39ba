"""What the tests of the harness share: a bench at toy scale, and one measurement with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import build
from bench.host import cores
from bench.peers import Peer
from bench.peers._source import TOKENS
from bench.programs import write_expected
from bench.results import Measurement
from bench.runner import Step, measure
from bench.scenarios import all_scenarios
from bench.scenarios.base import Bench
from tests.support.tools import missing

MeasureOnce = Callable[[str, str, Peer], Measurement]


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of tokens that every stream must consist of."""
    return write_expected(tmp_path_factory.mktemp("bench") / "expected", TOKENS)


@pytest.fixture
def bench(expected: Path) -> Bench:
    """A bench at toy scale; skips where there is no C compiler."""
    try:
        build.compiled("generator")
    except build.NoCompiler as error:
        missing(str(error))
    return Bench(cores=cores(), expected=expected, scale="toy")


@pytest.fixture
def measure_once(bench: Bench) -> MeasureOnce:
    """Measure one peer in one part of a scenario."""

    def once(scenario: str, part: str, peer: Peer) -> Measurement:
        return measure(bench, Step(all_scenarios()[scenario], part, peer, 0))

    return once

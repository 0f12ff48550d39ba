"""Two versions in one run: each is the one it is said to be, and ratios are taken within a round."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import build
from bench.before_after import NoVersion, compare, compared, version
from bench.results import Measurement
from tests.support.tools import missing

ROOT = Path(__file__).resolve().parents[2]


def run(value: float, number: int, *, failure: str | None = None, mark: str = "") -> Measurement:
    return Measurement(
        "gateway",
        "paced",
        "rawstream-gateway",
        number,
        values={"us_per_token": value},
        marks=[mark] if mark else [],
        failure=failure,
    )


def test_a_folder_without_rawstream_is_no_version(tmp_path: Path) -> None:
    """Where rawstream is installed too, that one is not measured in its place."""
    with pytest.raises(NoVersion, match="has no rawstream"):
        version("before", tmp_path)


def test_what_is_no_program_is_no_version(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("x")
    with pytest.raises(NoVersion, match="neither"):
        version("before", tmp_path / "notes")


def test_the_ratio_is_taken_within_the_round() -> None:
    """A round in which everything took twice as long has the same ratio."""
    seen = compared("us_per_token", "CPU", [run(10, 0), run(20, 1), run(10, 2)], [run(11, 0), run(22, 1), run(10.5, 2)])
    assert seen.ratio is not None
    assert seen.ratio.median == pytest.approx(1.1)
    assert seen.before is not None
    assert seen.before.median == 10
    assert not compared("us_per_token", "CPU", [run(10, 0)], [run(11.1, 0)]).passed
    assert compared("us_per_token", "CPU", [run(10, 0)], [run(10.9, 0)]).passed


def test_a_failed_run_has_no_ratio_and_is_named() -> None:
    """It does not pass, and a mark of each kind is said once."""
    seen = compared(
        "us_per_token", "CPU", [run(10, 0), run(10, 1)], [run(5, 0, failure="no token"), run(5, 1, failure="no token")]
    )
    assert not seen.passed
    assert seen.marks == ("after: FAILED: no token",)
    busy = [run(10, number, mark=f"disturbed: {number} %") for number in range(3)]
    assert compared("us_per_token", "CPU", busy, [run(10, number) for number in range(3)]).marks == (
        "before: disturbed: 0 %",
    )


def test_two_versions_are_measured() -> None:
    """The whole way, with one tree as both."""
    try:
        build.compiled("generator")
    except build.NoCompiler as error:
        missing(str(error))
    seen, cpu = compare(ROOT, ROOT, parts=("first",), rounds=1, scale="toy")
    assert seen.ratio is not None, seen.marks
    assert cpu.label.startswith("CPU per request")

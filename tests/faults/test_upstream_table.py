"""The README's table of faults is the one that the tests demand, with a row for each fault that chaos knows."""

from __future__ import annotations

import json

from tests.faults.table import expected, markdown, recorded
from tests.faults.truths import FAULTS
from tests.support.program import ROOT


def test_the_readme_has_the_table_that_the_tests_demand() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("<!-- faults:start -->")[2].partition("<!-- faults:end -->")[0].strip()
    assert shown == markdown(expected()), f"the README's table must be:\n{markdown(expected())}"


def test_every_fault_has_a_row() -> None:
    assert [line.split("`")[1] for line in markdown(expected()).splitlines()[2:]] == [*FAULTS]


def test_a_recorded_table_shows_each_sight_once() -> None:
    """Both dialects and both loops saw the same: one line. Where they did not, both are shown."""
    line = {"model": "stall", "client": "5 tokens, `upstream_idle`, cut", "log": "`upstream_idle`", "pool": "closed"}
    assert recorded([json.dumps(line)] * 4)["stall"] == expected()["stall"]
    other = {**line, "client": "5 tokens, whole"}
    assert recorded([json.dumps(line), json.dumps(other)])["stall"][0] == f"{line['client']} / {other['client']}"
    assert "not tested" in markdown({})

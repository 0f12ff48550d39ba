"""The matrix of clients is what tests have shown, and the README shows that matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients import matrix
from tests.support.program import ROOT

HERE = Path(__file__).parent
NODE = ("test_node_clients.py", "test_browser_clients.py")


def cells_of(markdown: str) -> list[list[str]]:
    """The cells of a Markdown table, line by line, without the ruler and without the column of versions."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.strip().splitlines()]
    return [[cell for at, cell in enumerate(line) if at != 1] for line in lines if set("".join(line)) - set("-:")]


def test_the_readme_shows_the_matrix() -> None:
    """Row by row and column by column; each version that it names is one, not a blank."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    start, end = "<!-- clients:start -->", "<!-- clients:end -->"
    assert readme.count(start) == readme.count(end) == 1
    shown = readme.partition(start)[2].partition(end)[0]
    assert cells_of(shown) == cells_of(matrix.table()), f"the README's table must be:\n{matrix.table()}"
    versions = [line.strip("|").split("|")[1].strip() for line in shown.strip().splitlines()[2:]]
    assert all(versions)
    assert "not run" not in shown


def test_each_cell_has_a_test(request: pytest.FixtureRequest) -> None:
    """Each cell of a client that has tests in this session has exactly one: none can be left out, or be shown twice."""
    marks = [item.iter_markers("cell") for item in request.session.items]
    tested = [tuple(mark.args) for each in marks for mark in each]
    assert len(tested) == len(set(tested))
    clients = {client for client, _ in tested}
    everything = {item.path for item in request.session.items} >= set(HERE.glob("test_*.py"))
    rows = matrix.ROWS if everything else clients
    assert {(client, column) for client in rows for column in matrix.COLUMNS} <= set(tested)

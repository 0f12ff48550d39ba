"""The table of faults, from tests that ran: fault × what client, log and pool saw.

``python -m tests.faults.table`` runs the tests and prints it as Markdown; ``… table FILE`` reads what a run has
recorded with RAWSTREAM_FAULT_TABLE=FILE.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from rawstream.lab.chaos_models import MODELS
from tests.faults.through import TABLE
from tests.faults.truths import FAULTS, TRUTHS

HEADING: Final = "| model | what the upstream does | the client sees | the log says | its connection |"
RULER: Final = "|---|---|---|---|---|"
Cells = tuple[str, str, str]


def expected() -> dict[str, Cells]:
    """Each fault's cells as the tests demand them."""
    cells = {name: (truth.client(), truth.log(), truth.pool()) for name, truth in TRUTHS.items()}
    return {**cells, "deaf": ("it has left", "`client_left`", "closed")}


def markdown(cells: dict[str, Cells]) -> str:
    """The table; faults without cells were not seen."""
    rows = [HEADING, RULER]
    for name in FAULTS:
        seen = cells.get(name, ("not tested", "", ""))
        rows.append(f"| `{name}` | {MODELS[name].does} | {' | '.join(seen)} |")
    return "\n".join(rows)


def recorded(lines: Iterable[str]) -> dict[str, Cells]:
    """What tests have seen. Different sights of one fault stand side by side: there should be none."""
    seen: dict[str, list[Cells]] = {}
    for line in lines:
        row = json.loads(line)
        cells = (row["client"], row["log"], row["pool"])
        name = row["model"]
        if name in TRUTHS and TRUTHS[name].relayed and TRUTHS[name].relayed in row["client"]:
            continue  # the upstream's own words: /chat shows ours
        if cells not in seen.setdefault(name, []):
            seen[name].append(cells)
    return {name: (" / ".join(c[0] for c in all_), all_[0][1], all_[0][2]) for name, all_ in seen.items()}


def main() -> int:
    """Print the table; the exit code is the tests'."""
    if len(sys.argv) > 1:
        print(markdown(recorded(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines())))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "faults.jsonl"
        tests = [f"tests/faults/test_upstream_{about}.py" for about in ("faults", "leaving")]
        # What the tests have to say about themselves goes to stderr; the table alone is the output.
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *tests],
            env={**os.environ, TABLE: str(path)},
            stdout=sys.stderr,
            check=False,
        )
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        print(markdown(recorded(lines)))
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())

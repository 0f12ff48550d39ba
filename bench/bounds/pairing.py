"""A generator that needs 100 ms per token, and a reader that takes one per second: are yields paired with reads?

In process, with room for one token, by the test of that name (its time is not the real one, so the figures are exact).
Over a real connection, with rawstream's own client, tokens of 64 KiB make a token larger than all the buffers between,
and the pairing visible.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Final

import rawstream
from bench.bounds.server import OWN_SOURCE, Rawstream
from bench.bounds.table import Bench, CannotMeasure, Row, Verdict

_ROOT: Final = Path(__file__).resolve().parents[2]
_TEST: Final = "tests/flow/test_pairing.py"
_READS: Final = 10
_TOKEN: Final = {"wait": 0.1, "texts": ["x"], "repeat": 64 * 1024}


def _in_process() -> dict[str, float]:
    """What the test recorded."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        argv = [sys.executable, "-m", "pytest", "-q", "-o", "junit_family=xunit1", f"--junitxml={report}", _TEST]
        done = subprocess.run(argv, cwd=_ROOT, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise CannotMeasure(f"{_TEST} failed: {done.stdout[-500:]}")
        found = ElementTree.parse(report).iter("property")
        return {each.get("name", ""): float(each.get("value", "nan")) for each in found}


async def _read(server: Rawstream, path: str) -> list[tuple[int, int]]:
    """``(reads, yields)`` before each read, and some time after the last one."""
    loop = asyncio.get_running_loop()
    found = []
    body = {"prompt": path, "bounds": _TOKEN}
    async with rawstream.stream(server.url + path, json=body) as events:
        for reads in range(_READS):
            await asyncio.sleep(1.0)
            if reads:
                found.append((reads, await loop.run_in_executor(None, _yields, server, path)))
            await anext(events)
        await asyncio.sleep(0.9)
        found.append((_READS, await loop.run_in_executor(None, _yields, server, path)))
    return found


def _yields(server: Rawstream, path: str) -> int:
    return int(sum(stream["tokens"] for stream in server.debug()["streams"] if stream["path"] == path))


async def _both(server: Rawstream) -> dict[str, list[tuple[int, int]]]:
    paths = ("/chat", "/chat-broken")
    return dict(zip(paths, await asyncio.gather(*(_read(server, path) for path in paths)), strict=True))


def paired(bench: Bench) -> Verdict:
    exact = _in_process()
    with Rawstream(bench.cores.server, "--lab", "--source", OWN_SOURCE) as server:
        over_tcp = asyncio.run(_both(server))
    ahead = max(yields - reads for reads, yields in over_tcp["/chat"])
    reads, yields = over_tcp["/chat-broken"][-1]
    per_read = yields / reads
    passed = exact["yields minus reads"] <= 1 and ahead <= 2 and 9 <= per_read <= 11
    return Verdict(
        passed,
        f"in process {exact['yields minus reads']:.0f}; over TCP with tokens of 64 KiB, /chat {ahead} at most",
        f"/chat-broken {per_read:.1f} yields per read (in process {exact['yields per read']:.1f})",
        {"in process": exact, "over TCP (reads, yields)": _plain(over_tcp)},
    )


def _plain(found: dict[str, list[tuple[int, int]]]) -> dict[str, Any]:
    return {path: [list(pair) for pair in pairs] for path, pairs in found.items()}


ROWS = (
    Row(
        "pairing",
        "100 ms per token, a reader that takes one per second, 10 reads: yields - reads",
        "≤ 1 in process; /chat-broken about 10 yields per read",
        paired,
    ),
)

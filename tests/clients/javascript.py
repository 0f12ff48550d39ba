"""The JavaScript clients of the matrix: where Node and their packages come from, and one run of each client.

Rule 1: a client's script (``tests/clients/js``) runs all its behaviours in one process, once for a module of tests, and
        says what it saw. What must hold is asserted here, from that and from what the upstream says.
Rule 2: the versions are those of ``package.json``, which are exact: with a range npm would give an older Node older
        clients, silently.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest

from tests.support.chaos import ChaosProcess
from tests.support.npm import installed
from tests.support.program import ROOT
from tests.support.server import ServerProcess
from tests.support.tools import missing, require_tool
from tests.support.waiting import eventually

JS: Final = ROOT / "tests" / "clients" / "js"
OLDEST_NODE: Final = (22, 12)
PATIENCE: Final = 90.0
"""Seconds that one script may take."""

HEARTBEAT: Final = 0.3
"""Seconds. An error that takes longer is told in-stream, so it must be more than a busy machine needs for one."""

UNICODE: Final = "grüße 世界 Привет 🌊🚰 \u00e9\u0301 "
ENDLESS: Final = {"model": "endless:rate=100"}
CASES: Final[Mapping[str, Mapping[str, Any]]] = {
    "full stream": {"model": "ok:tokens=20,rate=200"},
    "cancel": ENDLESS,
    "error before": {"models": ["status:code=404", "status:code=503,retry_after=0"]},
    "error after": {"models": ["die-mid-chunk:tokens=5", "error-in-stream:tokens=5"]},
    "cut": ENDLESS,
    "ended early": ENDLESS,
    "heartbeats": {"model": "slow-first:seconds=1.5,tokens=4,rate=1.5"},
    "non-ASCII": {"model": "unicode:tokens=10"},
}
"""What each behaviour asks for. Silence: one and a half seconds before the first token, two thirds between two."""


def words(count: int) -> str:
    """The first ``count`` tokens of the upstream's answer."""
    return "".join(f"token{number} " for number in range(count))


def pinned() -> dict[str, str]:
    """The versions that package.json asks for."""
    package: dict[str, dict[str, str]] = json.loads((JS / "package.json").read_text(encoding="utf-8"))
    return package["devDependencies"]


class Javascript:
    """A Node that is new enough for these clients, and their packages."""

    def __init__(self) -> None:
        """Skips, or fails where tools are required, without npm and without a Node that is new enough."""
        self.packages = installed(JS)
        self.node = self._new_enough()

    def _new_enough(self) -> str:
        machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), "")
        bundled = self.packages / "node_modules" / f"node-linux-{machine}" / "bin" / "node"
        node = str(bundled) if bundled.is_file() else require_tool("node")
        version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        if tuple(map(int, version.lstrip("v").split(".")[:2])) < OLDEST_NODE:
            missing(f"Node {'.'.join(map(str, OLDEST_NODE))} or newer (this one is {version})")
        return node

    def run(self, script: str, url: str, cases: Mapping[str, Mapping[str, Any]], **more: str) -> dict[str, Any]:
        """What the script reports of these cases. Each one's requests carry the user ``script/case``."""
        asked = {name: {**case, "user": f"{script}/{name}"} for name, case in cases.items()}
        arguments = json.dumps({"url": url, "cases": asked, **more})
        done = subprocess.run(
            [self.node, "--import", "../../js/modules.js", f"./{script}.mjs", arguments],
            cwd=JS,
            env={**os.environ, "RAWSTREAM_NODE_MODULES": str(self.packages), "NODE_ENV": "production"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return report


@pytest.fixture(scope="module")
def shared_gateway(chaos: ChaosProcess) -> Iterator[ServerProcess]:
    """In the place of the Python clients' one: here several clients' behaviours run at once."""
    retries = ("--upstream-retries", "1", "--upstream-retry-wait", "0", "--upstream-retry-budget", "1")
    patient = ("--upstream-breaker-failures", "0", "--heartbeat", f"{HEARTBEAT:g}")
    leaving = ("--resume-grace", "0")  # who leaves leaves; what resumes has tests of its own
    with ServerProcess("--upstream", chaos.url, *retries, *patient, *leaving) as server:
        yield server
        server.assert_steady()


@pytest.fixture(scope="module")
def scripts(shared_gateway: ServerProcess, chaos: ChaosProcess) -> Scripts:
    """All scripts, over one gateway and its upstream."""
    return Scripts(Javascript(), shared_gateway, chaos)


class Scripts:
    """One run of each script that was asked for, against one gateway, kept for all tests of a module."""

    def __init__(self, javascript: Javascript, gateway: ServerProcess, chaos: ChaosProcess) -> None:
        self.javascript = javascript
        self.gateway = gateway
        self.chaos = chaos
        self._reports: dict[str, dict[str, Any]] = {}

    def report(self, script: str, cases: Mapping[str, Mapping[str, Any]], **more: str) -> dict[str, Any]:
        """The report of this script; it runs with the first question."""
        if script not in self._reports:
            self._reports[script] = self.javascript.run(script, self.gateway.url, cases, **more)
        return self._reports[script]

    def assert_left(self, user: str, generations: int) -> None:
        """That many generations were made for ``user``, and each ended because its client left."""

        def ended() -> list[dict[str, Any]]:
            found = [one for one in self.chaos.state()["generations"] if one["user"] == user]
            return [one for one in found if one["state"] != "running"]

        seen = eventually(lambda: (all_ := ended()) and len(all_) >= generations and all_, why="they have ended")
        assert [one["state"] for one in seen or []] == ["client_left"] * generations


def seen_in(report: Mapping[str, Any], behaviour: str) -> Any:
    """What the client saw. AssertionError with its stack when the script failed there."""
    seen = report["seen"][behaviour]
    assert "failed" not in seen, seen["failed"]
    return seen

"""The browser client and the React package: their own tests, in Node and in Chromium, against a real server.

The tests themselves are JavaScript (``tests/js``, ``rawstream/lab/page/react/test``); this installs what they need, as
the lock file has it, and runs them. ``cd tests/js && npm ci && npm test`` does the same by hand, without a server.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.npm import installed
from tests.support.program import ROOT
from tests.support.server import ServerProcess
from tests.support.tools import missing, require_tool

pytestmark = pytest.mark.real

JS = ROOT / "tests" / "js"
PAGE = ROOT / "rawstream" / "lab" / "page"
OLDEST_NODE = 20


@pytest.fixture(scope="module")
def node() -> str:
    path = require_tool("node")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < OLDEST_NODE:
        missing(f"Node {OLDEST_NODE} or newer (this one is {version})")
    return path


@pytest.fixture(scope="module")
def packages(node: str) -> Path:
    """A folder whose ``node_modules`` is what the lock file says. Installed once, and kept in the user's cache."""
    return installed(JS)


def run_tests(node: str, packages: Path, *files: Path, url: str = "", chromium: str = "") -> str:
    """Run JavaScript test files; their report. AssertionError with it when one fails, or when none ran."""
    environment = {"RAWSTREAM_NODE_MODULES": str(packages), "RAWSTREAM_URL": url, "RAWSTREAM_CHROMIUM": chromium}
    command = [node, "--import", "./modules.js", "--test", "--test-reporter=spec", *map(str, files)]
    done = subprocess.run(
        command, cwd=JS, env={**os.environ, **environment}, capture_output=True, text=True, timeout=150, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped 0" in done.stdout
    assert "pass 0" not in done.stdout
    return done.stdout


@pytest.mark.parametrize("name", ["parser.test.js", "client.test.js"])
@pytest.mark.timeout(180)
def test_the_client_keeps_its_promises(node: str, packages: Path, name: str) -> None:
    """Against a scripted server: demand, ends, repetition, credit, frames; and the parser against the corpus."""
    run_tests(node, packages, JS / name)


@pytest.mark.timeout(180)
def test_the_react_package_keeps_its_promises(node: str, packages: Path) -> None:
    """The hook and the component in React itself."""
    run_tests(node, packages, PAGE / "react" / "test" / "hook.test.js")


@pytest.mark.timeout(180)
def test_the_client_and_the_server_agree(node: str, packages: Path) -> None:
    """All dialects, failures, leaving, and credit, over real sockets."""
    with ServerProcess() as server:
        run_tests(node, packages, JS / "live.test.js", url=server.url)
        server.assert_steady()


@pytest.mark.timeout(240)
def test_the_client_and_the_hook_in_a_real_browser(node: str, packages: Path) -> None:
    """In Chromium: the corpus, 2,000 tokens/s in no more commits than frames, and every way to leave."""
    chromium = require_tool("chromium")
    with ServerProcess() as server:
        run_tests(node, packages, JS / "browser.test.js", url=server.url, chromium=chromium)
        server.assert_steady()


def test_the_package_can_be_installed(node: str, packages: Path, tmp_path: Path) -> None:
    """``npm pack`` of the page's folder is a package of five files, and ``import`` finds both of its halves."""
    npm = require_tool("npm")
    subprocess.run([npm, "pack", str(PAGE)], cwd=tmp_path, capture_output=True, timeout=60, check=True)
    (archive,) = tmp_path.glob("*.tgz")
    modules = tmp_path / "node_modules"
    modules.mkdir()
    shutil.unpack_archive(archive, modules)
    (modules / "package").rename(modules / "rawstream-client")
    files = sorted(str(path.relative_to(modules / "rawstream-client")) for path in modules.rglob("*") if path.is_file())
    assert files == ["client.d.ts", "client.js", "package.json", "react/index.d.ts", "react/index.js"]
    (modules / "react").symlink_to(packages / "node_modules" / "react")
    program = (
        'import { streamChat } from "rawstream-client"; import { useStreamingChat } from "rawstream-client/react";'
        "console.log(typeof streamChat, typeof useStreamingChat)"
    )
    command = [node, "--input-type=module", "--eval", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("function function\n", "")


@pytest.mark.timeout(120)
def test_the_type_declarations_are_what_a_user_needs(node: str, packages: Path, tmp_path: Path) -> None:
    """``tsc --strict`` takes what a TypeScript user writes, and refuses what is wrong."""
    types = packages / "node_modules" / "@types" / "react"
    options = {
        "strict": True,
        "noEmit": True,
        "module": "preserve",
        "target": "es2022",
        "lib": ["es2023", "dom", "dom.iterable"],
        "jsx": "react-jsx",
        "types": [],
        "paths": {
            "rawstream-client": [str(PAGE / "client.d.ts")],
            "rawstream-client/react": [str(PAGE / "react" / "index.d.ts")],
            "react": [str(types / "index.d.ts")],
            "react/jsx-runtime": [str(types / "jsx-runtime.d.ts")],
            "csstype": [str(packages / "node_modules" / "csstype" / "index.d.ts")],
        },
    }
    project = tmp_path / "tsconfig.json"
    project.write_text(json.dumps({"compilerOptions": options, "files": [str(JS / "types" / "check.tsx")]}))
    compiler = packages / "node_modules" / "typescript" / "bin" / "tsc"
    done = subprocess.run(
        [node, str(compiler), "-p", str(project)], capture_output=True, text=True, timeout=90, check=False
    )
    assert (done.stdout, done.returncode) == ("", 0)

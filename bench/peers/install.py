"""Sets the peers up in ``bench/.peers``: two virtual environments, ``node_modules``, and the Go program.

Rule 1: versions are pinned in ``requirements.txt``, ``requirements-litellm.txt`` and ``package.json``
        beside this file.
Rule 2: nothing outside ``bench/.peers`` is touched, except by apt, and by apt only when it was asked for.
Rule 3: what is in place already is left alone; what cannot be had is said, and does not stop the rest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bench.peers.contract import ENV_DIR, HERE

Log = Callable[[str], None]

_APT: Final = {"nginx": "nginx", "go": "golang-go", "node": "nodejs", "npm": "npm"}
"""Program -> Debian package."""


def install(log: Log = print, *, apt: bool = False) -> list[str]:
    """Install what is missing (minutes, the first time). Returns what could not be had, with reasons."""
    ENV_DIR.mkdir(parents=True, exist_ok=True)
    problems = [
        _apt(log, asked=apt),
        _python(log, "venv", HERE / "requirements.txt"),
        _python(log, "litellm", HERE / "requirements-litellm.txt"),
        _node(log),
        _go(log),
    ]
    return [problem for problem in problems if problem]


def _apt(log: Log, *, asked: bool) -> str | None:
    absent = [name for name in _APT if not _which(name)]
    if not absent:
        return None
    packages = " ".join(_APT[name] for name in absent)
    if not asked:
        return f"{', '.join(absent)} not found; --apt would run: apt-get install {packages}"
    if not shutil.which("apt-get"):
        return f"{', '.join(absent)} not found, and there is no apt-get here"
    root = [] if os.geteuid() == 0 else ["sudo"]
    argv = [*root, "apt-get", "install", "-y", "--no-install-recommends", *packages.split()]
    return _run(log, argv, "apt-get")


def _python(log: Log, name: str, requirements: Path) -> str | None:
    folder, failed = ENV_DIR / name, ENV_DIR / f"{name}.failed"
    python = folder / "bin" / "python"
    if _unchanged(folder, requirements) and python.exists():
        log(f"{name}: in place")
        return None
    problem = _run(log, [sys.executable, "-m", "venv", str(folder)], name)
    if problem is None:
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
        problem = _run(log, [*pip, "-r", str(requirements)], name)
    if problem is None:
        failed.unlink(missing_ok=True)
        _stamp(folder, requirements)
        return None
    # Kept for `missing`, which names the reason; a half-made environment would look like a whole one.
    shutil.rmtree(folder, ignore_errors=True)
    failed.write_text(problem + "\n")
    return problem


def _node(log: Log) -> str | None:
    npm, wanted = _which("npm"), HERE / "package.json"
    modules = ENV_DIR / "node_modules"
    if not npm:
        return "node: npm is not installed"
    if _unchanged(modules, wanted):
        log("node_modules: in place")
        return None
    shutil.copy(wanted, ENV_DIR / "package.json")
    argv = [npm, "install", "--prefix", str(ENV_DIR), "--no-audit", "--no-fund", "--no-package-lock"]
    problem = _run(log, argv, "npm")
    if problem is None:
        _stamp(modules, wanted)
    return problem


def _go(log: Log) -> str | None:
    go, sources = _which("go"), sorted((HERE / "go").iterdir())
    if not go:
        return "go: the compiler is not installed"
    folder = ENV_DIR / "bin"
    if _unchanged(folder, *sources) and (folder / "go-peer").exists():
        log("go-peer: in place")
        return None
    argv = [go, "build", "-trimpath", "-o", str(folder / "go-peer"), "."]
    # Standard library only, and not linked with the system's C library: nothing is downloaded.
    env = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod -buildvcs=false", "GOPROXY": "off"}
    problem = _run(log, argv, "go", cwd=HERE / "go", env=env)
    if problem is None:
        _stamp(folder, *sources)
    return problem


def _which(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/local/go/bin")


def _run(
    log: Log, argv: Sequence[str], what: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> str | None:
    """Run it, saying so; the reason when it fails (its last line that speaks of an error)."""
    log("$ " + " ".join(argv))
    done = subprocess.run(
        argv,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    lines = lines or [f"exit status {done.returncode}"]
    errors = [line for line in lines if "error" in line.lower()]
    reason = f"{what}: {(errors or lines)[-1]}"
    log(reason)
    return reason


def _fingerprint(files: Sequence[Path]) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _unchanged(folder: Path, *files: Path) -> bool:
    stamp = folder / ".made-from"
    return stamp.exists() and stamp.read_text() == _fingerprint(files)


def _stamp(folder: Path, *files: Path) -> None:
    (folder / ".made-from").write_text(_fingerprint(files))


if __name__ == "__main__":
    for text in install(apt="--apt" in sys.argv):
        print("missing:", text)

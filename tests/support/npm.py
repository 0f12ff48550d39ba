"""npm packages that tests need: installed as a lock file has them, once, and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.tools import missing, require_tool


def installed(project: Path) -> Path:
    """A folder whose ``node_modules`` is what the lock file of ``project`` says. Skips or fails where it cannot be."""
    npm = require_tool("npm")
    lock = (project / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rawstream-tests"
    folder = cache / hashlib.sha256(lock).hexdigest()[:16]
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        half = Path(scratch, "half")
        half.mkdir()
        for name in ("package.json", "package-lock.json"):
            shutil.copy(project / name, half)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=half, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            missing(f"what npm ci would install ({done.stderr.strip()[-500:]})")
        try:
            half.rename(folder)
        except OSError:
            assert folder.is_dir()  # somebody else was faster, with the same
    return folder

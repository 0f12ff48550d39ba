"""Compile the C programs on the spot, once per source text and compiler, into a cache folder.

Rule 1: without a C compiler there is no fake upstream, and the generator is the Python one (slower: it says so).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).resolve().parent / "gen"


class NoCompiler(RuntimeError):
    """There is no working C compiler here; the message says what to do."""


def cache_dir() -> Path:
    """Where compiled programs are kept: ``$XDG_CACHE_HOME/rawstream-bench`` or ``~/.cache/rawstream-bench``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "rawstream-bench"


def compiled(name: str, *, tls: bool = False) -> Path:
    """Path of the program ``gen/<name>.c``, compiled when its text has changed; NoCompiler when that cannot be.

    ``tls`` gives it OpenSSL, whose headers (Debian: libssl-dev) must be there.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompiler("no C compiler found: install gcc or clang, or set CC (the Python generator needs none)")
    text = b"".join(path.read_bytes() for path in (SOURCES / f"{name}.c", *sorted(SOURCES.glob("*.h"))))
    flags = ["-O2", "-std=gnu11", "-Wall", *(["-DBENCH_TLS"] if tls else [])]
    libraries = ["-lssl", "-lcrypto"] if tls else []
    digest = hashlib.sha256(text + " ".join([compiler, *flags]).encode()).hexdigest()[:16]
    target = cache_dir() / f"{name}-{digest}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    argv = [compiler, *flags, "-o", str(partial), str(SOURCES / f"{name}.c"), *libraries]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        if "openssl/" in done.stderr or "-lssl" in done.stderr:
            raise NoCompiler("OpenSSL's headers are not installed (Debian: apt-get install libssl-dev)")
        raise NoCompiler(f"{compiler} could not compile gen/{name}.c:\n{done.stderr[-2000:]}")
    partial.replace(target)
    return target

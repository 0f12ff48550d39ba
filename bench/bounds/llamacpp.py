"""A real llama.cpp behind rawstream: when its slot is free after the client stalled, or went away.

Rule 1: the server is the one that ``--llamacpp URL`` names, or one of our own with a tiny model of random weights; the
        first time, its environment is made in the cache folder (a minute, and 200 MB).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from bench.bounds.clients import completion, connect
from bench.bounds.server import Rawstream, wait_for
from bench.bounds.table import Bench, CannotMeasure, Row, Verdict
from tests.support.llamacpp import LlamaCpp, RunningLlamaCpp, decoded, find_python, make_model

_STALL: Final = 2.0
_MOST: Final = 0.3
"""Seconds from the end of the request until the slot is free."""
_LONG: Final = 7500
"""Tokens: more than it makes before the deadline."""
_PACKAGES: Final = ("xllamacpp", "gguf", "tokenizers")


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rawstream-bench"


def _environment(bench: Bench) -> str:
    """A Python that has llama.cpp; made, if need be."""
    given = bench.llamacpp_python or find_python()
    if given:
        return given
    folder = _cache() / "llamacpp"
    python = folder / "bin" / "python"
    done = folder / "complete"
    if not done.exists():
        bench.say(f"installing {', '.join(_PACKAGES)} in {folder} …")
        for argv in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "-q", *_PACKAGES],
        ):
            finished = subprocess.run(argv, capture_output=True, text=True, check=False)
            if finished.returncode:
                raise CannotMeasure(f"{' '.join(argv)}: {finished.stderr[-500:]}")
        done.touch()
    return str(python)


@contextmanager
def _running(bench: Bench) -> Iterator[RunningLlamaCpp]:
    if bench.llamacpp_url:
        yield RunningLlamaCpp(bench.llamacpp_url)
        return
    python = _environment(bench)
    _cache().mkdir(parents=True, exist_ok=True)
    model = make_model(python, _cache() / "tiny.gguf")
    with LlamaCpp(python, model, cores=set(bench.cores.upstream)) as running:
        yield running


def _watch(llama: RunningLlamaCpp, timeout: float) -> tuple[float, int]:
    """Ask for the slots until none works. When it was seen (s since the epoch), and the tokens made by then."""
    made = 0
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        busy = [slot for slot in llama.slots() if slot["is_processing"]]
        if not busy:
            return time.time(), made
        made = max(made, *map(decoded, busy))
        time.sleep(0.01)
    raise CannotMeasure(f"the slot was not free within {timeout:g} s ({made} tokens made)")


def _stalled(bench: Bench, llama: RunningLlamaCpp, path: str) -> dict[str, Any]:
    body = {"max_tokens": _LONG, "ignore_eos": True}
    with Rawstream(bench.cores.server, "--upstream", llama.url, "--stall-timeout", str(_STALL)) as server:
        request = completion(**body).replace(b"/v1/chat/completions", path.encode(), 1)
        with connect(server.port, request):
            wait_for(llama.busy, "llama.cpp begins")
            free_at, made = _watch(llama, _STALL + 10)
            (line,) = wait_for(server.ended_streams, "the stream's line in the log")
    return {
        "outcome": line["outcome"],
        "stream_seconds": line["seconds"],
        "slot_free_after": free_at - line["time"],
        "made": made,
        "passed_on": line["tokens"],
    }


def stalled(bench: Bench) -> Verdict:
    with _running(bench) as llama:
        found = {path: _stalled(bench, llama, path) for path in ("/v1/chat/completions", "/chat")}
        count = 3900
        port = urlsplit(llama.base).port or 80
        with connect(port, completion(max_tokens=count, ignore_eos=True)):
            wait_for(llama.busy, "llama.cpp begins")
            _, made = _watch(llama, 60)
    passed = all(run["outcome"] == "client_stalled" and run["slot_free_after"] <= _MOST for run in found.values())
    measured = "; ".join(
        f"{path}: {run['outcome']} after {run['stream_seconds']:.2f} s, slot free "
        f"{run['slot_free_after'] * 1000:.0f} ms later, {run['made']:,} tokens made meanwhile "
        f"({run['passed_on']:,} passed on)"
        for path, run in found.items()
    )
    comparison = f"asked directly by the same client: ran on to {made:,}+ of {count:,}"
    return Verdict(passed, measured, comparison, {"rawstream": found, "direct": {"made": made, "of": count}})


def interrupted(bench: Bench) -> Verdict:
    """Ctrl-C in curl."""
    curl = shutil.which("curl")
    if curl is None:
        raise CannotMeasure("curl is not installed")
    taken = []
    with _running(bench) as llama, Rawstream(bench.cores.server, "--upstream", llama.url) as server:
        body = f'{{"prompt": "hello", "max_tokens": {_LONG}, "ignore_eos": true}}'
        argv = [curl, "-sN", "-H", "content-type: application/json", "-d", body, f"{server.url}/chat"]
        for _ in range(5):
            with subprocess.Popen(argv, stdout=subprocess.PIPE, bufsize=0) as process:
                assert process.stdout is not None
                seen = 0
                while seen < 20:
                    data = process.stdout.read(4096)
                    if not data:
                        raise CannotMeasure("curl ended by itself")
                    seen += data.count(b'"token"')
                left = time.time()
                process.send_signal(signal.SIGINT)
                process.stdout.close()
                free_at, _ = _watch(llama, 10)
            taken.append(free_at - left)
    measured = f"slot free {max(taken) * 1000:.0f} ms after Ctrl-C (worst of {len(taken)})"
    return Verdict(max(taken) <= _MOST, measured, "", {"seconds": taken})


ROWS = (
    Row(
        "llamacpp-stall",
        f"llama.cpp behind a client that reads nothing (--stall-timeout {_STALL:g})",
        f"at the deadline cancelled, slot free ≤ {_MOST:g} s later",
        stalled,
    ),
    Row("llamacpp-curl", "llama.cpp: Ctrl-C in curl", f"slot free ≤ {_MOST:g} s", interrupted),
)

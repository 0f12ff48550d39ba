"""A real llama.cpp server on this machine, with a tiny model of random weights.

Rule 1: only the standard library is needed to start, ask and end one. llama.cpp itself (``xllamacpp`` on PyPI, with
        ``gguf`` and ``tokenizers`` for the model) may live in another environment: ``RAWSTREAM_LLAMACPP_PYTHON``.
Rule 2: the process can be stopped, killed and started again on the same port, as real ones are.

Run as a program (``llamacpp.py MODEL PORT SLOTS``) it *is* that server.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Final

PYTHON: Final = "RAWSTREAM_LLAMACPP_PYTHON"
"""The environment variable that names a Python with xllamacpp, gguf and tokenizers."""

_CONTEXT: Final = 8192
_HERE: Final = Path(__file__).resolve()


class LlamaCppFailed(AssertionError):
    """It did not start, or did not answer; the message holds what it said."""


def find_python() -> str | None:
    """A Python that can run it: the one that is named, or this one. None: there is none."""
    named = os.environ.get(PYTHON)
    if named:
        return named
    here = all(importlib.util.find_spec(name) for name in ("xllamacpp", "gguf", "tokenizers"))
    return sys.executable if here else None


def make_model(python: str, out: Path, *, embd: int = 64, layers: int = 2) -> Path:
    """Write a tiny model. Seconds."""
    script = _HERE.with_name("tiny_gguf.py")
    argv = [python, str(script), str(out), "--embd", str(embd), "--layers", str(layers)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode or not out.exists():
        raise LlamaCppFailed(f"no model was made: {(done.stdout + done.stderr)[-2000:]}")
    return out


class RunningLlamaCpp:
    """A server that runs somewhere, looked at from outside. ``url`` is what an OpenAI client takes as its base URL."""

    def __init__(self, base: str) -> None:
        """``base``: ``http://127.0.0.1:9301``."""
        self.base = base.rstrip("/").removesuffix("/v1")
        self.url = f"{self.base}/v1"

    def get(self, path: str, *, timeout: float = 5.0) -> Any:
        with urllib.request.urlopen(self.base + path, timeout=timeout) as answer:
            return json.load(answer)

    def ask(self, body: dict[str, Any], *, timeout: float = 30.0) -> dict[str, Any]:
        """A chat completion, asked of it directly, not streamed."""
        request = urllib.request.Request(
            f"{self.url}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            decoded: dict[str, Any] = json.load(answer)
            return decoded

    def slots(self) -> list[dict[str, Any]]:
        """``GET /slots``: what each slot does."""
        found: list[dict[str, Any]] = self.get("/slots")
        return found

    def busy(self) -> int:
        """How many slots work."""
        return sum(bool(slot["is_processing"]) for slot in self.slots())


class LlamaCpp(RunningLlamaCpp):
    """A server of its own process; killed when the block is left."""

    def __init__(self, python: str, model: Path, *, slots: int = 4, cores: set[int] | None = None) -> None:
        self._argv = [python, str(_HERE), str(model)]
        self._slots = slots
        self._cores = cores
        self._log = model.with_suffix(".log")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        super().__init__(f"http://127.0.0.1:{self.port}")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self, *, within: float = 30.0) -> None:
        """Start it (again) on its port, and wait until it is ready."""
        cores = self._cores
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._argv, str(self.port), str(self._slots)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
            )
        until = time.monotonic() + within
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                if self.get("/health", timeout=1.0) == {"status": "ok"}:
                    return
            time.sleep(0.02)
        self.kill()
        raise LlamaCppFailed(f"llama.cpp did not start: {self._log.read_text(errors='replace')[-2000:]}")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, whatever state it is in; it can be started again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)
            self._process = None

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


def decoded(slot: dict[str, Any]) -> int:
    """Tokens that a slot has made for its present (or last) request."""
    steps = slot.get("next_token") or {}
    return int((steps[0] if isinstance(steps, list) else steps).get("n_decoded", 0))


def serve(model: str, port: int, slots: int) -> None:
    """Be the server, until SIGTERM."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = "127.0.0.1" if isinstance(params.hostnames, str) else ["127.0.0.1"]
    params.port = port
    params.n_parallel = slots
    params.n_ctx = _CONTEXT * slots
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_threads_http = 2 * slots + 4
    params.warmup = False
    params.endpoint_slots = True
    params.verbosity = 1
    running = xllamacpp.Server(params)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    del running
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

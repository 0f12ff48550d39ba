"""The bounds over TLS: what is measured is a TLS stream, and its parts add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.bounds import tls
from bench.bounds.clients import chat
from bench.bounds.memory import per_stream
from bench.bounds.server import Rawstream
from bench.bounds.table import KIB, Bench
from bench.certificate import make_certificate
from bench.certificate import missing as no_certificate
from tests.support.tools import missing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def certificates() -> None:
    if reason := no_certificate():
        missing(reason)


def figures(connection: int, idle: int, stalled: int) -> dict[str, Any]:
    """KiB of process memory per stream, by state."""
    return {
        state: {"streams": 150, "process": value * KIB, "kernel": 0}
        for state, value in (("connection", connection), ("idle", idle), ("stalled", stalled))
    }


def test_the_parts_of_a_stalled_stream_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects, the stream, OpenSSL's state and what is left are the whole."""
    bench = Bench(quick=True)
    each = {"plain": figures(3, 7, 11), "TLS": figures(20, 26, 30)}
    bench.shared["tls memory"] = {
        "asyncio": each,
        "uvloop": each,
        "openssl": {"established": 16 * KIB, "written": 18 * KIB},
    }
    monkeypatch.setattr(tls, "_peer", lambda *given: "a peer")
    verdict = tls.memory_stalled(bench)
    assert verdict.passed
    assert "30.0 KiB = 3.0 KiB" in verdict.measured
    assert "8.0 KiB its stream's" in verdict.measured
    assert "17.0 KiB OpenSSL's" in verdict.measured
    assert "2.0 KiB besides" in verdict.measured
    assert "stalled minus idle 4.0 KiB and 4.0 KiB" in verdict.measured
    each["TLS"] = figures(20, 26, 41)
    assert not tls.memory_stalled(bench).passed


def test_a_stalled_stream_over_tls_is_measured() -> None:
    """A server that speaks https, and clients that have shaken hands."""
    bench = Bench(quick=True)
    with Rawstream(bench.cores.server, "--log-level", "warning", tls=True) as server:
        assert server.url.startswith("https://")
        seen = per_stream(
            server.port, 20, chat(mock={"tokens": None, "tokens_per_second": None}), server.memory, server.cpu, tls=True
        )
        assert server.totals()["tokens"] > 20 * 100
    assert KIB < seen["kernel"] < 48 * KIB


def test_openssl_says_what_a_connection_takes(tmp_path: Path) -> None:
    """By malloc's own account: more than a few KiB, and no buffer of 16 KiB each way."""
    made = make_certificate(tmp_path)
    argv = [sys.executable, "-m", "bench.bounds.tls_objects", str(made.cert), str(made.key)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert 4 * KIB < answer["established"] <= answer["written"] < 64 * KIB

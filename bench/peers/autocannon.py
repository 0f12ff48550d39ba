"""The control: ``autocannon``, the load test that most tutorials print. Its readers are fast and unpaced.

It shows nothing about backpressure, by design: a reader that takes everything at once leaves nothing to
wait anywhere. It is no peer; ``run()`` points it at one.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from bench.peers.contract import PeerContext


def version(ctx: PeerContext) -> str:
    about = json.loads((ctx.env_dir / "node_modules" / "autocannon" / "package.json").read_text())
    return f"autocannon {about['version']}"


def missing(ctx: PeerContext) -> str | None:
    """Why it cannot run here, or None."""
    if not ctx.node:
        return "node is not installed"
    if not (ctx.env_dir / "node_modules" / "autocannon" / "package.json").exists():
        return "autocannon is not installed (python -m bench peers --install)"
    return None


def command(
    ctx: PeerContext, url: str, body: dict[str, Any], *, connections: int = 50, seconds: float = 10
) -> list[str]:
    """argv that POSTs ``body`` to ``url`` for so many seconds, and prints its numbers as JSON."""
    return [
        str(ctx.node), str(ctx.env_dir / "node_modules" / "autocannon" / "autocannon.js"),
        "--json", "--no-progress", "--connections", str(connections), "--duration", f"{seconds:g}",
        "--timeout", "60", "--method", "POST", "--headers", "content-type=application/json",
        "--body", json.dumps(body), url,
    ]  # fmt: skip


def run(
    ctx: PeerContext,
    url: str,
    body: dict[str, Any],
    *,
    connections: int = 50,
    seconds: float = 10,
    prefix: tuple[str, ...] = (),
) -> dict[str, float]:
    """Run it, and return its numbers: requests, requests_per_second, bytes_per_second, failed and
    latency_ms_{p50,p99,max}.

    ``prefix`` goes before the command (``("taskset", "-c", "1")``). RuntimeError, with its output, when it
    fails; ``subprocess.TimeoutExpired`` when it does not end within a minute of its time.
    """
    argv = [*prefix, *command(ctx, url, body, connections=connections, seconds=seconds)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 60, check=False)
    try:
        result = json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"autocannon failed: {done.stderr.strip() or done.stdout.strip()}") from None
    return {
        "requests": result["requests"]["total"],
        "requests_per_second": result["requests"]["average"],
        "bytes_per_second": result["throughput"]["average"],
        "latency_ms_p50": result["latency"]["p50"],
        "latency_ms_p99": result["latency"]["p99"],
        "latency_ms_max": result["latency"]["max"],
        "failed": result["errors"] + result["timeouts"] + result["non2xx"],
    }

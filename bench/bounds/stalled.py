"""A client that reads nothing: how many bytes the server holds for it, and how many tokens it pulled ahead."""

from __future__ import annotations

from typing import Any

from bench.bounds.clients import chat, connect
from bench.bounds.server import Rawstream, level_off
from bench.bounds.table import KIB, Bench, Row, Verdict, kib

_ALSO_UVLOOP = ("asyncio", "uvloop")
_STREAMS = 3
"""The worst of so many counts."""


def _one(server: Rawstream, path: str) -> dict[str, Any]:
    """A stalled stream: what the server says of it, and what the kernel does."""
    with connect(server.port, chat(path), tls=server.tls):
        tokens, still = level_off(lambda: server.totals()["tokens"], still=0.6)
        (stream,) = server.debug()["streams"]
        buffered = stream["buffered"]
        kernel = server.kernel().queued
        said = buffered["kernel_unsent"] + buffered["kernel_unacked"]
        own = stream["tokens"]
    return {
        "tokens": own,
        "levelled_off": still,
        "transport": buffered["transport"] + buffered["source"],
        "kernel_said": said,
        "kernel_seen": kernel,
        "held": buffered["transport"] + buffered["source"] + max(said, kernel),
        "all_tokens": tokens,
    }


def measure(bench: Bench, *, tls: bool = False) -> dict[str, dict[str, dict[str, Any]]]:
    """By loop and path: the worst of the streams."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for loop in _ALSO_UVLOOP:
        with Rawstream(bench.cores.server, "--loop", loop, "--lab", tls=tls) as server:
            runs = [_one(server, "/chat") for _ in range(_STREAMS)]
            worst = max(runs, key=lambda run: run["held"])
            worst["tokens"] = max(run["tokens"] for run in runs)
            worst["levelled_off"] = all(run["levelled_off"] for run in runs)
            found[loop] = {"/chat": worst, "/chat-drain": _one(server, "/chat-drain")}
    return found


def held(bench: Bench) -> Verdict:
    return held_verdict(bench.once("stalled", measure), 16 * KIB)


def held_verdict(found: dict[str, dict[str, dict[str, Any]]], most: int) -> Verdict:
    """At most ``most`` bytes, wherever they are."""
    passed = all(each["/chat"]["held"] <= most and each["/chat"]["levelled_off"] for each in found.values())
    parts = [
        f"{loop} {kib(run['held'])} (transport {kib(run['transport'])}, kernel {kib(run['kernel_said'])} by SIOCOUTQ, "
        f"{kib(run['kernel_seen'])} by sock_diag)"
        for loop, each in found.items()
        for run in [each["/chat"]]
    ]
    others = [f"{loop} {kib(each['/chat-drain']['held'])}" for loop, each in found.items()]
    return Verdict(passed, "; ".join(parts), "/chat-drain: " + ", ".join(others), found)


def ahead(bench: Bench) -> Verdict:
    return ahead_verdict(bench.once("stalled", measure))


def ahead_verdict(found: dict[str, dict[str, dict[str, Any]]]) -> Verdict:
    """At most 600 tokens."""
    passed = all(each["/chat"]["tokens"] <= 600 and each["/chat"]["levelled_off"] for each in found.values())
    measured = ", ".join(f"{loop} {each['/chat']['tokens']:,}" for loop, each in found.items())
    others = ", ".join(f"{loop} {each['/chat-drain']['tokens']:,}" for loop, each in found.items())
    return Verdict(passed, measured, f"/chat-drain: {others}", found)


ROWS = (
    Row("stalled-bytes", "bytes held for one stalled client", "≤ 16 KiB (aim 8), asyncio and uvloop", held),
    Row("stalled-tokens", "tokens pulled ahead of it", "≤ 600", ahead),
)

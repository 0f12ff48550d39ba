"""The experiments of the course: each starts a server and readers in this process, and says what it measured.

Rule 1: an experiment is bounded in time, memory and readers, and leaves nothing behind, however it ends.
Rule 2: what is claimed and what was measured stand side by side; nothing that was not measured is said to be.
Rule 3: an experiment that waits for "it does not move any more" looks at the figures, not at the clock alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from rawstream.lab.extension import Lab
from rawstream.lab.run_spec import RunChange, RunSpec
from rawstream.lab.runs import Run
from rawstream.server.app import App
from rawstream.settings import MiB, Settings
from rawstream.sources.mock import MockSource

Show = Callable[[dict[str, Any]], None]
"""Told the latest sample, some ten times a second."""

_LOOK: Final = 0.1
_STILL: Final = 8
"""Looks without a change after which nothing moves any more."""
_LONGEST: Final = 15.0
"""Seconds that a wait for that may take."""


class Finding(msgspec.Struct, frozen=True):
    """A sentence of the course, and what was measured."""

    claim: str
    measured: str


class Report(msgspec.Struct, frozen=True):
    """What an experiment has found."""

    experiment: str
    question: str
    findings: list[Finding]
    figures: dict[str, Any]


@asynccontextmanager
async def laboratory(source: MockSource | None = None, **settings: Any) -> AsyncIterator[tuple[App, Lab]]:
    """A server of its own on a free port of the loopback, with its lab."""
    lab = Lab()
    chosen = Settings(**{"port": 0, "lab_memory": 256 * MiB, "stall_timeout": 60.0, "lab_overrun": 5.0, **settings})
    app = App(chosen, MockSource() if source is None else source, extensions=(lab,))
    await app.start()
    try:
        yield app, lab
    finally:
        await app.close(drain=0.0)


@asynccontextmanager
async def running(lab: Lab, spec: RunSpec) -> AsyncIterator[Run]:
    """One run; ended with the block."""
    run = await lab.runs.start(spec)
    try:
        yield run
    finally:
        lab.runs.remove(run.id)


async def watch(run: Run, show: Show, seconds: float) -> dict[str, Any]:
    """Show the run for that long; the last sample."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while loop.time() < until:
        show(run.sample())
        await asyncio.sleep(_LOOK)
    sample = run.sample()
    show(sample)
    return sample


async def watch_until_still(run: Run, show: Show) -> dict[str, Any]:
    """Show the run until no lane makes tokens any more; the last sample."""
    still, before = 0, [-1]
    loop = asyncio.get_running_loop()
    until = loop.time() + _LONGEST
    while still < _STILL and loop.time() < until:
        sample = run.sample()
        show(sample)
        now = [lane["tokens"]["made"] for lane in sample["lanes"]]
        still = still + 1 if now == before and min(now) > 0 else 0
        before = now
        await asyncio.sleep(_LOOK)
    return run.sample()


def lanes_of(sample: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {lane["lane"]: lane for lane in sample["lanes"]}


def size(count: float | None) -> str:
    """``4100000`` → ``4.1 MB``."""
    if count is None:
        return "an unknown number of bytes"
    if count >= 1e6:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 1e3 else f"{count:.0f} bytes"


def in_server(lane: dict[str, Any]) -> int:
    """Bytes that the server's side holds: source, transport, kernel."""
    sizes = lane["bytes"]
    return sum(sizes[place] or 0 for place in ("source", "transport", "kernel_unsent", "kernel_unacked"))


def in_kernel(lane: dict[str, Any]) -> int:
    return (lane["bytes"]["kernel_unsent"] or 0) + (lane["bytes"]["kernel_unacked"] or 0)


def ahead(lane: dict[str, Any]) -> int:
    """Tokens made and not read."""
    return int(lane["tokens"]["made"] - lane["tokens"]["read"])


# --- stall --------------------------------------------------------------------------------------------------


async def stall(show: Show) -> Report:
    """A reader that reads nothing, and a source that never waits."""
    variants: Final = {
        "small": ("a receive buffer of 4 KiB", {"rcvbuf": 4096}),
        "kernel": ("a receive buffer as the kernel likes it (as in a browser)", {"rcvbuf": 0}),
        "credit": ("the same, and credit of 16 tokens", {"rcvbuf": 0, "credit": 16}),
    }
    figures: dict[str, Any] = {}
    findings: list[Finding] = []
    claims = {
        "small": "rawstream holds 4 to 8 KiB for a stalled client, after some 400 tokens",
        "kernel": "a client's kernel takes what it likes; on our side 4 to 10 KiB, whatever its window",
        "credit": "with credit=N the source never runs more than N tokens ahead",
    }
    async with laboratory() as (_, lab):
        for name, (title, options) in variants.items():
            spec = RunSpec(lanes=("rawstream",), tokens_per_second=None, read_rate=0.0, **options)
            async with running(lab, spec) as run:
                sample = await watch_until_still(run, show)
            lane = sample["lanes"][0]
            made = lane["tokens"]["made"]
            figures[name] = {"tokens_ahead": made, "server": in_server(lane), "bytes": lane["bytes"]}
            findings.append(
                Finding(
                    claims[name],
                    f"with {title} the source stopped after {made:,} tokens: {size(in_server(lane))} on the server's "
                    f"side, {size(lane['bytes']['client_kernel'])} in the client's kernel",
                )
            )
    async with laboratory(stall_timeout=1.0) as (app, lab):
        async with running(lab, RunSpec(lanes=("rawstream",), tokens_per_second=None)) as run:
            loop = asyncio.get_running_loop()
            began = taken_at = loop.time()
            taken = 0
            while not app.streams.totals.outcomes["client_stalled"] and loop.time() - began < _LONGEST:
                sample = run.sample()
                show(sample)
                now_taken = sample["lanes"][0]["bytes"]["client_kernel"]
                if now_taken > taken:
                    taken, taken_at = now_taken, loop.time()
                await asyncio.sleep(0.01)
            took = loop.time() - taken_at
    figures["stall_timeout"] = {"set": 1.0, "cut_after": round(took, 2)}
    findings.append(
        Finding(
            "a client that takes nothing for stall_timeout is cut, and its source closed",
            f"with stall_timeout=1s it was cut {took:.2f} s after its kernel had taken the last byte",
        )
    )
    return Report("stall", "What does a client cost that stops reading?", findings, figures)


# --- eager --------------------------------------------------------------------------------------------------


async def eager(show: Show) -> Report:
    """Twenty slow readers, eagerly and by rawstream; then they leave."""
    spec = RunSpec(lanes=("eager", "rawstream"), readers=20, tokens_per_second=1000.0, read_rate=1000.0)
    async with laboratory() as (_, lab), running(lab, spec) as run:
        full = lanes_of(await watch(run, show, 3.0))
        at_leaving = lanes_of(await watch(run, show, 5.0))
        await run.change(RunChange(leave=True))
        after = lanes_of(await watch(run, show, 2.0))
    wrong, right = at_leaving["eager"], at_leaving["rawstream"]
    nobody = after["eager"]["tokens"]["made"] - wrong["tokens"]["made"]
    closed = after["rawstream"]["cancel_seconds"]
    pace = {
        name: {
            what: round((at_leaving[name]["tokens"][what] - full[name]["tokens"][what]) / 5.0)
            for what in ("made", "read")
        }
        for name in at_leaving
    }
    figures = {
        "after_8_seconds": {name: _levels(lane) for name, lane in at_leaving.items()},
        "tokens_per_second_of_the_last_5": pace,
        "made_for_nobody_in_2_seconds": nobody,
        "rawstream_cancel_seconds": closed,
        "rawstream_made_after_leaving": after["rawstream"]["tokens"]["made"] - right["tokens"]["made"],
    }
    findings = [
        Finding(
            "eager production piles up in the transport buffer, without a bound",
            f"after 8 s with 20 slow readers: {size(wrong['bytes']['transport'])} there, {ahead(wrong):,} tokens ahead "
            f"of the readers; it makes {pace['eager']['made']:,} tokens a second and they read "
            f"{pace['eager']['read']:,}",
        ),
        Finding(
            "rawstream's source goes at the readers' pace instead",
            f"{size(right['bytes']['transport'])} in its transport buffers, {ahead(right):,} tokens ahead; once the "
            f"buffers were full it made {pace['rawstream']['made']:,} tokens a second, and they read "
            f"{pace['rawstream']['read']:,}",
        ),
        Finding(
            "when the readers leave, eager production goes on, for nobody; rawstream's source is closed",
            f"{nobody:,} tokens were made for nobody in 2 s; rawstream's sources were all closed after "
            + ("(not seen)" if closed is None else f"{closed * 1000:.1f} ms"),
        ),
    ]
    return Report("eager", "What if the server just writes as fast as tokens are made?", findings, figures)


def _levels(lane: dict[str, Any]) -> dict[str, Any]:
    return {
        "made": lane["tokens"]["made"],
        "read": lane["tokens"]["read"],
        "ahead": ahead(lane),
        "server": in_server(lane),
        "bytes": lane["bytes"],
    }


# --- drain --------------------------------------------------------------------------------------------------


async def drain(show: Show) -> Report:
    """A stalled reader, by ``await drain()`` with default buffers, and by rawstream."""
    spec = RunSpec(lanes=("drain", "rawstream"), tokens_per_second=None, read_rate=0.0)
    async with laboratory() as (_, lab), running(lab, spec) as run:
        lanes = lanes_of(await watch_until_still(run, show))
    alone, right = lanes["drain"], lanes["rawstream"]
    made = alone["tokens"]["made"]
    findings = [
        Finding(
            "drain() alone lets the server run megabytes ahead, nearly all of it in the server's own kernel",
            f"drain() alone let the server run {size(in_server(alone))} ahead: {made:,} tokens, "
            f"{made / 50 / 60:.0f} minutes of generation at 50 tokens/s; {size(in_kernel(alone))} of it in the kernel",
        ),
        Finding(
            "with explicit write marks and TCP_NOTSENT_LOWAT the same experiment holds a few KB",
            f"rawstream ran {right['tokens']['made']:,} tokens ahead, and held {size(in_server(right))}: "
            f"{size(right['bytes']['transport'])} in the transport, {size(in_kernel(right))} in the kernel",
        ),
    ]
    figures = {name: _levels(lane) for name, lane in lanes.items()}
    return Report("drain", "Is `await drain()` enough?", findings, figures)


# --- who holds the bytes --------------------------------------------------------------------------------------


async def who_holds_the_bytes(show: Show) -> Report:
    """All four disciplines, the same 60,000 tokens, and a reader that reads nothing."""
    total = 60_000
    spec = RunSpec(tokens_per_second=None, tokens=total, read_rate=0.0)
    async with laboratory() as (_, lab), running(lab, spec) as run:
        lanes = lanes_of(await watch_until_still(run, show))
    places = {
        "whole": "the program, which collects it",
        "eager": "the transport buffer, which nobody bounds",
        "drain": "the server's kernel, below the buffer that drain() knows",
        "rawstream": "nobody: the tokens were not made",
    }
    findings = [
        Finding(
            f"{name}: {who}",
            f"{lane['tokens']['made']:,} of {total:,} tokens made; "
            f"{size(lane['peak']['source'])} at most in the program, "
            f"{size(lane['bytes']['transport'])} in the transport, "
            f"{size(in_kernel(lane))} in the server's kernel, {size(lane['bytes']['client_kernel'])} in the client's",
        )
        for name, who in places.items()
        for lane in (lanes[name],)
    ]
    figures = {name: {**_levels(lane), "peak": lane["peak"]} for name, lane in lanes.items()}
    return Report("who-holds-the-bytes", "A client stops reading. Where is its answer?", findings, figures)


EXPERIMENTS: Final[dict[str, Callable[[Show], Awaitable[Report]]]] = {
    "stall": stall,
    "eager": eager,
    "drain": drain,
    "who-holds-the-bytes": who_holds_the_bytes,
}

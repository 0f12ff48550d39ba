"""The plan of ``rawstream doctor URL``: which probes run, in which order, and what is said while they do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import msgspec

from rawstream.doctor import edge_findings, edge_probes
from rawstream.doctor.asking import Asker, spoken
from rawstream.doctor.finding import Finding, Report
from rawstream.doctor.sight import RawstreamEye, is_mock
from rawstream.doctor.target import Target
from rawstream.doctor.tls import handshake, tls
from rawstream.errors import RawstreamError

T = TypeVar("T")
Say = Callable[[str], None]
"""Told what is being done, one line at a time."""

_PROBES: Final = 4
_PROBES_SECONDS: Final = 12


class EdgeOptions(msgspec.Struct, frozen=True):
    """How to look."""

    idle: float | None = 70.0
    """Seconds of silence to live through; None: do not look."""
    idle_model: str | None = None
    """A model that is silent at first, for that."""
    server: str | None = None
    """The rawstream server's own address, where it can be asked directly."""
    ca: str | None = None
    mock: bool | None = None
    """Is it rawstream's mock? None: find out."""


def forecast(options: EdgeOptions) -> str:
    """What is going to be done, before it is."""
    requests = _PROBES + (options.idle is not None)
    seconds = _PROBES_SECONDS + (options.idle or 0)
    text = f"{requests} requests (one more if the mock answers), about {seconds:.0f} s"
    return text + (
        f", {options.idle:.0f} s of it waiting for an idle cut (--quick leaves that out)" if options.idle else ""
    )


async def examine(target: Target, options: EdgeOptions, say: Say) -> Report:
    """Look at a deployment. Raises CannotExamine when there is nothing to look at, SettingsError for a bad ``ca``.

    Cancelling is safe: all connections are closed.
    """
    began = asyncio.get_running_loop().time()
    asker = Asker(ca=options.ca)
    try:
        findings = await _findings(asker, target, options, say)
    finally:
        await asker.aclose()
    return Report(target.url, asker.requests, asyncio.get_running_loop().time() - began, tuple(findings))


async def _findings(asker: Asker, target: Target, options: EdgeOptions, say: Say) -> list[Finding]:
    findings: list[Finding] = []
    hands = await handshake(target.url, options.ca)
    if hands is not None:
        findings.append(tls(hands))
        if hands.fault:
            return findings
    mock = await _is_mock(asker, target) if options.mock is None else options.mock
    eye = RawstreamEye(asker, target, options.server)
    say("an answer, as it comes")
    plain = await edge_probes.answer(asker, target, mock=mock)
    findings += [
        edge_findings.buffering(plain),
        edge_findings.headers(plain, target.kind),
        edge_findings.framing(plain),
        edge_findings.ending(plain, target.kind),
        edge_findings.way(plain),
    ]
    say("the same, as browsers ask for it")
    findings.append(
        await _judged(
            "compression",
            edge_probes.compressed(asker, target, mock=mock),
            lambda browsers: edge_findings.compression(plain, browsers),
        )
    )
    if mock:
        say("an answer that fails in mid-stream")
        failing = edge_probes.failing(asker, target)
        findings.append(
            await _judged(edge_findings.FAILURE, failing, lambda seen: edge_findings.failure(seen, target.kind))
        )
    say("leaving in mid-stream")
    findings.append(
        await _judged("cancel", edge_probes.cancel(asker, target, eye, mock=mock), edge_findings.cancelling)
    )
    say("not reading any more")
    findings.append(
        await _judged("backpressure", edge_probes.stall(asker, target, eye, mock=mock), edge_findings.backpressure)
    )
    if options.idle is not None:
        say(f"{options.idle:g} s of silence")
        seen = await edge_probes.silence(asker, target, options.idle, mock=mock, model=options.idle_model)
        findings.append(edge_findings.idle(seen))
    return findings


async def _judged(name: str, probe: Coroutine[Any, Any, T], judge: Callable[[T], Finding]) -> Finding:
    """One probe's finding. A deployment that answers once and not again is a finding too, not an end."""
    try:
        measured = await probe
    except RawstreamError as error:
        why = "the first request was answered; this one was not: a limit, perhaps"
        return Finding(name, "unknown", spoken(error), why, "look again later, or see the server's log")
    return judge(measured)


async def _is_mock(asker: Asker, target: Target) -> bool:
    """Does rawstream's mock answer there? Then a request may say how the answer is to be."""
    return is_mock(await asker.aside("GET", target.beside("/v1/models"), target.headers))

"""The plan of ``rawstream doctor --upstream URL``."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from rawstream.doctor import upstream_findings, upstream_probes
from rawstream.doctor.asking import Asker, spoken
from rawstream.doctor.edge import Say
from rawstream.doctor.finding import CannotExamine, Finding, Report, members
from rawstream.doctor.sight import is_mock, model_server_eye
from rawstream.doctor.target import Target
from rawstream.doctor.tls import handshake, tls
from rawstream.errors import RawstreamError


def forecast() -> str:
    """What is going to be done, before it is."""
    return "6 to 8 requests, two of them for long answers that are broken off, about 15 s"


async def examine(target: Target, *, ca: str | None, say: Say) -> Report:
    """Look at a model server. Raises CannotExamine when there is none, SettingsError for a bad ``ca``.

    Cancelling is safe: all connections are closed.
    """
    began = asyncio.get_running_loop().time()
    asker = Asker(ca=ca)
    try:
        findings = await _findings(asker, target, ca, say)
    finally:
        await asker.aclose()
    return Report(target.url, asker.requests, asyncio.get_running_loop().time() - began, tuple(findings))


async def _findings(asker: Asker, target: Target, ca: str | None, say: Say) -> list[Finding]:
    findings: list[Finding] = []
    hands = await handshake(target.url, ca)
    if hands is not None:
        findings.append(tls(hands))
        if hands.fault:
            return findings
    listed = await upstream_probes.models(asker, target)
    findings.append(upstream_findings.listing(listed))
    if target.model is None:
        target = msgspec.structs.replace(target, model=_first_model(listed.body))
    eye = await model_server_eye(asker, target.beside(""), target.headers)
    manner = upstream_probes.Manner(eye, is_mock((listed.status, listed.body)))
    say("a short answer; its connection is then watched in the background")
    plain, exchange = await upstream_probes.shape_and_exchange(asker, target)
    findings += [upstream_findings.form(plain), upstream_findings.ends(plain)]
    idling = asyncio.create_task(exchange.connection_kept(upstream_probes.KEPT_FOR), name="doctor: keep-alive")
    try:
        findings += await _rest(asker, target, manner, plain, say)
        findings.append(upstream_findings.keep_alive(plain, await idling))
    finally:
        idling.cancel()
        await asyncio.gather(idling, return_exceptions=True)
        await exchange.aclose()
    return findings


async def _rest(
    asker: Asker, target: Target, manner: upstream_probes.Manner, plain: upstream_probes.Shape, say: Say
) -> list[Finding]:
    say("the same with include_usage")
    asked: upstream_probes.Shape | None
    try:
        asked = await upstream_probes.shape(asker, target, include_usage=True)
    except CannotExamine:
        asked = None
    findings = [
        upstream_findings.usage(plain, asked),
        upstream_findings.heartbeats(plain, *([] if asked is None else [asked])),
    ]
    say("not streamed, and a model that does not exist")
    looks = [(upstream_findings.not_streamed, None), (upstream_findings.errors, upstream_probes.NOBODY)]
    if plain.end == "enough":  # without end: it would not come
        del looks[0]
    for judge, model in looks:
        try:
            findings.append(judge(await upstream_probes.whole(asker, target, model=model)))
        except RawstreamError as error:
            findings.append(_unanswered("errors" if model else "not streamed", error))
    say("a long answer that is not read")
    try:
        findings.append(upstream_findings.stops(await upstream_probes.unread(asker, target, manner)))
    except RawstreamError as error:
        findings.append(_unanswered("nobody reads", error))
    say("leaving in mid-answer")
    try:
        findings.append(upstream_findings.frees(await upstream_probes.freed(asker, target, manner), plain))
    except RawstreamError as error:
        findings.append(_unanswered("cancel", error))
    return findings


def _unanswered(name: str, error: RawstreamError) -> Finding:
    return Finding(name, "unknown", spoken(error), "the first request was answered; this one was not")


def _first_model(body: Any) -> str | None:
    data = members(body).get("data")
    for one in data if isinstance(data, list) else ():
        if isinstance(name := members(one).get("id"), str):
            return name
    return None

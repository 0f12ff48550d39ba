"""What measurements at the edge mean: each verdict, and that what cannot be told is not told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rawstream.doctor import edge_findings, limits
from rawstream.doctor.edge_probes import Cancel, Look, Silence, Stall
from rawstream.doctor.finding import CannotExamine
from rawstream.doctor.recording import Arrival
from rawstream.doctor.sight import State

HEADERS = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache, no-transform"),
    ("x-request-id", "doctor-1"),
)


def arrivals(*groups: tuple[float, int]) -> tuple[Arrival, ...]:
    """``(moment, tokens)`` each."""
    return tuple(Arrival(at, tokens * 25, tokens) for at, tokens in groups)


PACED = arrivals(*((n / 50, 1) for n in range(1, 101)))


def look(came: tuple[Arrival, ...] = PACED, **changes: Any) -> Look:
    whole = Look(
        headers=HEADERS,
        framing="chunked",
        version="1.1",
        request_id="doctor-1",
        head_at=0.01,
        arrivals=came,
        tokens=sum(one.tokens for one in came),
        bytes=sum(one.bytes for one in came),
        legible=True,
        sse=True,
        heartbeats=(),
        done=True,
        terminal=True,
        error=None,
        end="clean",
        why="",
        reusable=True,
        closes=False,
    )
    return msgspec.structs.replace(whole, **changes)


def with_header(name: str, value: str) -> tuple[tuple[str, str], ...]:
    return (*(field for field in HEADERS if field[0] != name), (name, value))


@pytest.mark.parametrize(
    ("came", "verdict"),
    [
        (PACED, "ok"),
        (arrivals((2.0, 100)), "bad"),
        (arrivals((2.0, 60), (2.01, 40)), "bad"),
        (arrivals((0.5, 25), (1.0, 25), (1.5, 25), (2.0, 25)), "bad"),
        (arrivals(*((n * 0.15, 4) for n in range(1, 20))), "warn"),
        (arrivals(*((n * 0.5, 1) for n in range(1, 20))), "ok"),
        (arrivals(*((5 + n / 200, 1) for n in range(100))), "ok"),
        (arrivals(*((5 + n / 2000, 1) for n in range(400))), "warn"),
        (arrivals((1.0, 5)), "unknown"),
        (arrivals((0.1, 100)), "unknown"),
        ((), "unknown"),
    ],
    ids=[
        "paced",
        "all at the end",
        "nearly so",
        "in blocks",
        "lumps",
        "slow model",
        "thinks first",
        "fast after a pause",
        "few",
        "fast",
        "none",
    ],
)
def test_buffering_shows_in_how_tokens_arrive(came: tuple[Arrival, ...], verdict: str) -> None:
    finding = edge_findings.buffering(look(came))
    assert finding.verdict == verdict
    assert bool(finding.remedy) == (verdict != "ok")


def test_what_comes_within_milliseconds_came_together() -> None:
    groups = edge_findings.bursts(arrivals((1.0, 2), (1.001, 3), (1.002, 0), (2.0, 1)))
    assert [(group.at, group.tokens) for group in groups] == [(1.0, 5), (2.0, 1)]


def test_compression_that_holds_tokens_is_worse_than_one_that_lets_them_out() -> None:
    gzipped = with_header("content-encoding", "gzip")
    assert edge_findings.compression(look(), look()).verdict == "ok"
    flushed = edge_findings.compression(look(), look(headers=gzipped))
    assert flushed.verdict == "warn"
    assert "no-transform" in flushed.why
    assert edge_findings.compression(look(), look(arrivals((2.0, 100)), headers=gzipped)).verdict == "bad"
    assert edge_findings.compression(look(headers=gzipped), look(headers=gzipped)).verdict == "bad"


def test_changed_headers_are_named() -> None:
    assert edge_findings.headers(look(), "chat").verdict == "ok"
    assert edge_findings.headers(look(), "text").verdict == "bad"
    stripped = edge_findings.headers(look(headers=HEADERS[:1]), "chat")
    assert stripped.verdict == "warn"
    assert "cache-control" in stripped.seen
    assert "x-request-id" in stripped.seen


def test_who_stands_on_the_way_names_itself() -> None:
    seen = edge_findings.way(look(headers=(*HEADERS, ("server", "nginx"), ("via", "1.1 x"), ("cf-ray", "1")))).seen
    assert seen == "server: nginx; via: 1.1 x; Cloudflare"


@pytest.mark.parametrize(
    ("framing", "closes", "verdict"),
    [("chunked", False, "ok"), ("chunked", True, "warn"), ("close", False, "warn"), ("length", False, "bad")],
)
def test_framing_tells_what_a_cut_would_look_like(framing: str, closes: bool, verdict: str) -> None:
    assert edge_findings.framing(look(framing=framing, closes=closes)).verdict == verdict


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "ok"),
        ({"terminal": False, "done": False}, "warn"),
        ({"end": "cut", "why": "reset"}, "bad"),
        ({"error": "it broke"}, "bad"),
        ({"end": "time"}, "unknown"),
    ],
)
def test_an_end_is_whole_only_when_it_says_so(changes: dict[str, Any], verdict: str) -> None:
    assert edge_findings.ending(look(**changes), "chat").verdict == verdict


def test_a_failure_must_reach_the_client_as_one() -> None:
    assert edge_findings.failure(look(end="cut", error="x"), "chat").verdict == "ok"
    assert edge_findings.failure(look(end="cut"), "chat").verdict == "warn"
    assert edge_findings.failure(look(end="cut"), "text").verdict == "ok"
    assert edge_findings.failure(look(error="x"), "chat").verdict == "warn"
    assert edge_findings.failure(look(), "chat").verdict == "bad"
    assert edge_findings.failure(CannotExamine("x", status=500), "chat").verdict == "ok"


def test_a_cancel_that_nobody_can_see_is_not_taken_for_one() -> None:
    assert edge_findings.cancelling(Cancel("")).verdict == "unknown"
    assert edge_findings.cancelling(Cancel("there", seconds=0.02, made_after=0)).verdict == "ok"
    assert edge_findings.cancelling(Cancel("there", seconds=3.0)).verdict == "warn"
    lasting = edge_findings.cancelling(Cancel("there", seconds=None, made_after=250))
    assert lasting.verdict == "bad"
    assert "250 tokens" in lasting.seen


def stalled(*counts: int, size: int = 25, ended: bool = False) -> Stall:
    """A look each half second."""
    samples = tuple((n / 2, State(count, count * size)) for n, count in enumerate(counts))
    return Stall("there", samples, ended=ended)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (Stall(""), "unknown"),
        (stalled(400, 800, 800, 800, 800), "ok"),
        (stalled(400, 40_000, 40_000, 40_000, 40_000), "warn"),
        (stalled(*range(0, 400_000, 25_000)), "bad"),
        (stalled(*range(0, 400_000, 25_000), size=0), "bad"),
        (stalled(*range(0, 400, 25)), "unknown"),
        (stalled(400, ended=True), "unknown"),
    ],
    ids=["unseen", "stops", "late", "never", "collects", "slow", "over"],
)
def test_backpressure_is_that_the_count_stands_still(seen: Stall, verdict: str) -> None:
    assert edge_findings.backpressure(seen).verdict == verdict


def test_a_cut_names_whose_limit_it_may_be() -> None:
    cut = edge_findings.idle(Silence(70, 60.0, 60.02, 60.02, status=504))
    assert cut.verdict == "bad"
    assert "AWS ALB" in cut.why
    assert "nginx" in cut.why
    assert "--heartbeat 30" in cut.remedy
    assert limits.whose(2.0) == ""
    assert "Google Cloud" in limits.whose(30.1)


def test_a_silence_that_was_survived_is_worth_what_it_lasted() -> None:
    assert edge_findings.idle(Silence(70, 70.0, None, 70.0)).verdict == "ok"
    assert edge_findings.idle(Silence(20, 20.0, None, 20.0)).verdict == "warn"
    assert edge_findings.idle(Silence(70, 0.02, None, 3.0)).verdict == "unknown"
    beating = edge_findings.idle(Silence(70, 15.0, None, 70.0, heartbeats=(15.0, 30.0, 45.0, 60.0)))
    assert (beating.verdict, "one each 15.0 s" in beating.seen) == ("ok", True)
    assert edge_findings.idle(Silence(70, 30.0, None, 70.0, heartbeats=(30.0, 60.0))).verdict == "warn"


def test_heartbeats_that_come_together_were_held() -> None:
    held = edge_findings.idle(Silence(70, 70.0, None, 70.0, heartbeats=(70.0, 70.0, 70.0)))
    assert (held.verdict, "3 heartbeats came together" in held.seen) == ("warn", True)

"""What a model server's behaviour means: each verdict, and the setting it asks for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rawstream.doctor import upstream_findings as findings
from rawstream.doctor.sight import State
from rawstream.doctor.upstream_probes import Freed, Shape, Unread, Whole

GOOD = Shape(
    status=200,
    content_type="text/event-stream",
    framing="chunked",
    first_token=0.05,
    seconds=1.5,
    tokens=32,
    arrivals=32,
    role=True,
    finish_reasons=("length",),
    usage=0,
    usage_alone=False,
    done=True,
    after_done=0,
    heartbeats=0,
    error=None,
    end="clean",
    why="",
    promised="",
    reusable=True,
)


def shape(**changes: Any) -> Shape:
    return msgspec.structs.replace(GOOD, **changes)


def test_the_list_of_models_is_read_or_missed() -> None:
    listed = findings.listing(Whole(200, "", {"data": [{"id": "a"}, {"id": "b"}]}))
    assert (listed.verdict, listed.seen) == ("ok", "2 models: a, b")
    assert findings.listing(Whole(404, "", None)).verdict == "warn"
    assert findings.listing(Whole(0, "", None)).verdict == "warn"


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "ok"),
        ({"done": False}, "warn"),
        ({"done": False, "finish_reasons": ()}, "bad"),
        ({"end": "cut"}, "bad"),
        ({"end": "enough", "tokens": 129}, "warn"),
        ({"error": "it broke"}, "bad"),
        ({"framing": "close"}, "warn"),
        ({"after_done": 1}, "warn"),
    ],
)
def test_ends_are_judged_by_what_a_cut_would_look_like(changes: dict[str, Any], verdict: str) -> None:
    assert findings.ends(shape(**changes)).verdict == verdict


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "ok"),
        ({"content_type": "application/json"}, "bad"),
        ({"tokens": 0, "first_token": None}, "bad"),
        ({"arrivals": 1}, "bad"),
        ({"first_token": 70.0, "seconds": 72.0}, "warn"),
    ],
)
def test_a_stream_streams(changes: dict[str, Any], verdict: str) -> None:
    assert findings.form(shape(**changes)).verdict == verdict


def test_usage_is_asked_for_and_must_not_be_refused() -> None:
    assert findings.usage(GOOD, shape(usage=1, usage_alone=True)).verdict == "ok"
    assert findings.usage(GOOD, GOOD).verdict == "warn"
    assert findings.usage(GOOD, shape(end="enough")).verdict == "unknown"
    assert findings.usage(GOOD, None).verdict == "bad"


def test_errors_have_a_shape_of_their_own() -> None:
    told = {"error": {"message": "no such model", "code": "model_not_found"}}
    assert findings.errors(Whole(404, "", told)).verdict == "ok"
    assert findings.errors(Whole(500, "", None)).verdict == "warn"
    assert findings.errors(Whole(200, "", {"choices": []})).verdict == "ok"
    assert findings.not_streamed(Whole(200, "", {"choices": [{}]})).verdict == "ok"
    assert findings.not_streamed(Whole(501, "", None)).verdict == "warn"


def test_pings_are_counted_and_silence_is_no_fault() -> None:
    assert findings.heartbeats(GOOD).verdict == "ok"
    assert "3 pings" in findings.heartbeats(shape(heartbeats=1), shape(heartbeats=2)).seen


def test_the_pool_is_to_let_go_of_connections_before_the_server_does() -> None:
    assert findings.keep_alive(GOOD, None).verdict == "ok"
    assert findings.keep_alive(GOOD, 5.0).verdict == "ok"
    short = findings.keep_alive(GOOD, 2.0)
    assert (short.verdict, "--upstream-pool-idle 1.6" in short.remedy) == ("warn", True)
    closed = findings.keep_alive(shape(promised="timeout=5"), 0.0)
    assert (closed.verdict, "timeout=5" in closed.seen) == ("warn", True)
    assert findings.keep_alive(shape(reusable=False), None).verdict == "warn"
    assert findings.keep_alive(shape(end="enough"), None).verdict == "unknown"


def unread(*counts: int | None, eye: str = "llama.cpp", later: int = 1_000_000, whole: bool = False) -> Unread:
    """A look each half second; None: it had ended."""
    samples = tuple((n / 2, None if count is None else State(count)) for n, count in enumerate(counts))
    return Unread(eye, samples, 1, later // 250, later, 0.1, whole, 4000)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (unread(60, 72, 72, 72, 72), "ok"),
        (unread(*range(1000, 4000, 200)), "warn"),
        (unread(*range(10, 200, 20)), "unknown"),
        (unread(1000, 3900, None), "warn"),
        (unread(10, None, later=5000), "unknown"),
        (unread(eye=""), "unknown"),
        (unread(eye="", whole=True), "warn"),
    ],
    ids=["stops", "runs on", "too slow to tell", "to the end", "too short", "unseen", "unseen, whole"],
)
def test_who_waits_for_a_reader_is_told_by_the_count(seen: Unread, verdict: str) -> None:
    finding = findings.stops(seen)
    assert finding.verdict == verdict
    assert bool(finding.remedy) == (verdict != "ok")


def test_a_closed_connection_frees_the_server_or_it_cannot_be_told() -> None:
    assert findings.frees(Freed("llama.cpp", 0.02, made_after=1), GOOD).verdict == "ok"
    assert findings.frees(Freed("llama.cpp", 2.0), GOOD).verdict == "warn"
    assert findings.frees(Freed("llama.cpp", None), GOOD).verdict == "bad"
    blind = findings.frees(Freed("", None, next_first_token=0.3), GOOD)
    assert (blind.verdict, "300 ms" in blind.seen, "50 ms" in blind.seen) == ("unknown", True, True)
    assert findings.frees(Freed("chaos", None, ended_early=True), GOOD).verdict == "unknown"

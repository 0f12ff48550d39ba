"""``--upstream``: what is said of real model servers is what they do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from rawstream.doctor import upstream
from rawstream.doctor.finding import Report
from rawstream.doctor.target import target_of
from tests.support import llamacpp
from tests.support.chaos import ChaosProcess
from tests.support.llamacpp import LlamaCpp
from tests.support.server import ServerProcess
from tests.support.tools import missing


async def examined(url: str, model: str | None = None) -> Report:
    async with asyncio.timeout(50):
        return await upstream.examine(target_of(url, model=model), ca=None, say=lambda line: None)


CHAOS = [
    "ok:tokens=40,rate=100",
    "endless:rate=200",
    "no-done",
    "error-in-stream",
    "close-delimited",
    "reset-before-head",
]


@pytest.fixture(scope="module")
def faulty() -> Iterator[dict[str, Report | Exception]]:
    with ChaosProcess() as chaos, ServerProcess() as mock:

        async def all_of_them() -> dict[str, Report | Exception]:
            asked = [examined(f"{mock.url}/v1"), *(examined(chaos.url, model) for model in CHAOS)]
            found = await asyncio.gather(*asked, return_exceptions=True)
            names = ["mock", *CHAOS]
            return {name: one for name, one in zip(names, found, strict=True) if isinstance(one, Report | Exception)}

        yield asyncio.run(all_of_them())


def report_of(faulty: dict[str, Report | Exception], model: str) -> Report:
    found = faulty[model]
    assert isinstance(found, Report), found
    return found


def test_rawstreams_mock_waits_for_its_reader_and_is_free_at_once(faulty: dict[str, Report | Exception]) -> None:
    report = report_of(faulty, "mock")
    assert {finding.name for finding in report.findings if finding.verdict != "ok"} == set()
    assert "/debug/streams" in report.find("nobody reads").seen
    assert "include_usage" in report.find("usage").seen


def test_a_healthy_model_server_has_a_whole_end(faulty: dict[str, Report | Exception]) -> None:
    report = report_of(faulty, "ok:tokens=40,rate=100")
    assert report.find("end").verdict == "ok"
    assert report.find("stream").verdict == "ok"


def test_an_answer_without_end_is_left_and_named(faulty: dict[str, Report | Exception]) -> None:
    assert "past max_tokens" in report_of(faulty, "endless:rate=200").find("end").seen


def test_a_missing_done_is_named(faulty: dict[str, Report | Exception]) -> None:
    finding = report_of(faulty, "no-done").find("end")
    assert finding.verdict in ("warn", "bad")
    assert "no [DONE]" in finding.seen


def test_a_failure_told_in_the_stream_is_one(faulty: dict[str, Report | Exception]) -> None:
    assert report_of(faulty, "error-in-stream").find("end").verdict == "bad"


def test_an_answer_that_ends_with_its_connection_is_named(faulty: dict[str, Report | Exception]) -> None:
    report = report_of(faulty, "close-delimited")
    assert "by closing the connection" in report.find("end").seen
    assert report.find("keep-alive").verdict == "warn"


def test_what_does_not_answer_cannot_be_examined(faulty: dict[str, Report | Exception]) -> None:
    assert "reset" in str(faulty["reset-before-head"])


def test_a_certificate_that_nobody_trusts_is_the_finding() -> None:
    with ChaosProcess("--tls", "self-signed") as chaos:
        report = asyncio.run(examined(chaos.tls_url))
    assert [(finding.name, finding.verdict) for finding in report.findings] == [("tls", "bad")]
    assert "not trusted" in report.find("tls").seen


@pytest.mark.real
def test_llamacpp_does_not_wait_for_its_reader_and_is_freed_by_a_close(tmp_path: Path) -> None:
    python = llamacpp.find_python()
    if python is None:
        missing(f"llama.cpp (pip install xllamacpp gguf tokenizers, or {llamacpp.PYTHON})")
    model = llamacpp.make_model(python, tmp_path / "tiny.gguf")
    with LlamaCpp(python, model, slots=2) as llama:
        report = asyncio.run(examined(llama.url))
    assert report.find("end").seen.startswith("data: [DONE]")
    assert report.find("usage").verdict == "ok"
    assert report.find("nobody reads").verdict == "warn"
    assert "/slots" in report.find("nobody reads").seen
    assert report.find("cancel").verdict == "ok"
    assert report.find("keep-alive").verdict == "warn"

"""A report says what is bad, in text and in JSON, and in its exit code."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from rawstream.doctor.finding import Finding, Report, Verdict, plural, size, span
from rawstream.doctor.report import as_json, show, summary
from rawstream.doctor.tls import Handshake, tls

LONG = "a remedy that is longer than one line, with many words that must be wrapped somewhere " * 2


def report(*verdicts: Verdict) -> Report:
    findings = tuple(Finding(f"probe {n}", verdict, "[seen]", "reason", LONG) for n, verdict in enumerate(verdicts))
    return Report("http://h/chat", 5, 6.5, findings)


def shown(what: Report, width: int = 80) -> str:
    out = io.StringIO()
    show(Console(file=out, width=width, highlight=False), what)
    return out.getvalue()


@pytest.mark.parametrize(
    ("verdicts", "code"), [((), 0), (("ok", "warn", "unknown"), 0), (("ok", "bad"), 1)], ids=["none", "no bad", "bad"]
)
def test_only_what_is_bad_is_a_failure(verdicts: tuple[Verdict, ...], code: int) -> None:
    assert report(*verdicts).exit_code == code


def test_text_has_a_mark_what_was_seen_why_and_what_to_do() -> None:
    text = shown(report("bad", "ok", "unknown"))
    assert text.startswith("✗ probe 0  [seen]\n           why  reason\n           do   a remedy")
    assert "? probe 2  cannot tell: [seen]" in text
    assert max(map(len, text.splitlines())) <= 80
    assert text.count(" do ") == 2
    assert text.endswith("1 bad, 1 cannot tell, 1 well · 5 requests, 6.5 s\n")


def test_a_narrow_terminal_is_no_reason_to_fail() -> None:
    assert "reason" in shown(report("bad"), width=10)


def test_json_holds_it_all() -> None:
    told = json.loads(as_json(report("bad")))
    assert told["exit_code"] == 1
    assert told["findings"][0] == {
        "name": "probe 0",
        "verdict": "bad",
        "seen": "[seen]",
        "why": "reason",
        "remedy": LONG,
    }


def test_findings_are_found_by_name() -> None:
    assert report("ok").find("probe 0").verdict == "ok"
    with pytest.raises(KeyError):
        report("ok").find("nothing")
    assert summary(report("ok")) == "1 well · 5 requests, 6.5 s"


def test_figures_are_for_people() -> None:
    assert (plural(1, "token"), plural(2000, "token")) == ("1 token", "2,000 tokens")
    assert (size(900), size(25_000), size(12_345_678)) == ("900 bytes", "25 kB", "12.3 MB")
    assert (span(0.012), span(12.34)) == ("12 ms", "12.3 s")


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (Handshake("TLSv1.3", "h2", 60.0), "ok"),
        (Handshake("TLSv1.3", "", 3.0), "warn"),
        (Handshake("TLSv1.1", "", 60.0), "warn"),
        (Handshake("", "", None, "the certificate is not trusted: expired"), "bad"),
    ],
)
def test_tls_is_judged_by_version_and_by_days(seen: Handshake, verdict: str) -> None:
    assert tls(seen).verdict == verdict

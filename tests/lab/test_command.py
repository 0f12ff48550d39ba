"""``rawstream lab``: what its experiments print is what they measured, and what the course says."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from rawstream.lab.experiments import EXPERIMENTS, size
from tests.support.program import ROOT, command

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what the kernel holds")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def lab(*arguments: str, within: float = 40.0) -> str:
    """What it prints. It must end with 0 and say nothing on stderr."""
    done = subprocess.run(
        [*command(), "lab", *arguments], capture_output=True, text=True, timeout=within, env=ENVIRONMENT, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-2000:]
    return done.stdout


def report(experiment: str) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(lab(experiment, "--json"))
    assert decoded["experiment"] == experiment
    assert all(finding["claim"] and finding["measured"] for finding in decoded["findings"])
    figures: dict[str, Any] = decoded["figures"]
    return figures


def test_yields_and_reads_are_paired() -> None:
    """Ten per read eagerly; one in process; never two ahead with credit=1; buffers first without it."""
    figures = report("pairing")
    assert figures["eager"]["per_read"] == pytest.approx(10, rel=0.25)
    assert figures["in_process"]["most_ahead"] <= 1
    assert figures["tcp_credit_1"]["most_ahead"] <= 2
    assert figures["tcp_credit_1"]["yields"][-1] >= 29
    assert 100 < figures["tcp_without_credit"]["most_ahead"] < 20_000


def test_a_stream_that_is_not_read_holds_up_no_other_on_its_connection() -> None:
    """Its window drains to zero and its source stops; the others keep their pace."""
    figures = report("windows")
    assert figures["window"] == 0
    assert figures["connection_window"] > 0
    assert (figures["waiting_for"], figures["made"]) == ("client", 0)
    assert 0 < figures["held"] <= 16 * 1024
    assert figures["slowest_other"] > 0.8 * figures["asked"]


@linux_only
def test_drain_alone_runs_megabytes_ahead() -> None:
    figures = report("drain")
    assert figures["drain"]["server"] > 1_000_000
    assert figures["drain"]["bytes"]["kernel_unsent"] > 0.9 * figures["drain"]["server"] - 65536
    assert figures["drain"]["made"] > 20_000
    assert figures["rawstream"]["server"] <= 16 * 1024
    assert figures["rawstream"]["made"] < 1000


@linux_only
@pytest.mark.slow
def test_a_stalled_client_costs_a_few_kilobytes() -> None:
    figures = report("stall")
    assert figures["small"]["server"] <= 16 * 1024
    assert figures["credit"]["tokens_ahead"] == 16
    assert figures["kernel"]["tokens_ahead"] > figures["small"]["tokens_ahead"]
    assert 0.9 <= figures["stall_timeout"]["cut_after"] < 2


@linux_only
@pytest.mark.slow
def test_eager_production_piles_up_and_goes_on_for_nobody() -> None:
    figures = report("eager")
    wrong, right = (figures["after_8_seconds"][name] for name in ("eager", "rawstream"))
    assert wrong["server"] > 10 * right["server"]
    assert wrong["ahead"] > 10 * right["ahead"]
    assert figures["made_for_nobody_in_2_seconds"] > 10_000
    assert figures["rawstream_cancel_seconds"] < 1
    pace = figures["tokens_per_second_of_the_last_5"]["rawstream"]
    assert pace["made"] == pytest.approx(pace["read"], rel=0.6)


@linux_only
@pytest.mark.slow
def test_each_discipline_has_its_own_holder() -> None:
    """Program, transport, kernel, nobody."""
    figures = report("who-holds-the-bytes")
    assert figures["whole"]["peak"]["source"] > 1_000_000
    assert figures["eager"]["bytes"]["transport"] > 1_000_000
    assert figures["drain"]["bytes"]["kernel_unsent"] > 1_000_000
    assert figures["rawstream"]["made"] < 1000


@pytest.mark.slow
def test_a_flapping_connection_costs_who_resumes_nothing() -> None:
    """The same cuts: who begins anew has tokens generated that nobody sees; who resumes none."""
    figures = report("flap")
    anew, resumed = figures["anew"], figures["resumed"]
    for figure in (anew, resumed):
        assert figure["whole_and_exact"] == figure["answers"] == 100
        assert figure["connections"] == 500
    assert (anew["generations"], resumed["generations"]) == (500, 100)
    assert resumed["tokens_generated"] == resumed["tokens_shown"] == anew["tokens_shown"]
    assert anew["tokens_generated"] > 1.2 * resumed["tokens_generated"]


def test_a_report_reads_as_claims_and_measurements() -> None:
    """Into a pipe goes the report alone: no colours, no pictures."""
    text = lab("drain")
    assert "\x1b" not in text
    assert text.startswith("Is `await drain()` enough?\n")
    assert len(re.findall(r"^claimed   .+$", text, re.MULTILINE)) == 2
    assert re.search(
        r"^measured  drain\(\) alone let the server run [\d.]+ MB ahead: [\d,]+ tokens", text, re.MULTILINE
    )


def test_the_help_names_every_experiment() -> None:
    text = lab("--help")
    for name in (*EXPERIMENTS, "pairing", "flap"):
        assert re.search(rf"^  {name}  +\S", text, re.MULTILINE)
        assert "--json" in lab(name, "--help")


@pytest.mark.parametrize("how", ["drawn and measured", "interrupted"])
def test_on_a_terminal_the_tanks_are_drawn_and_ctrl_c_ends_it(how: str) -> None:
    """130 after Ctrl-C, with the cursor back and no traceback."""
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [*command(), "lab", "drain"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**ENVIRONMENT, "TERM": "xterm-256color", "COLUMNS": "100"},
        start_new_session=True,
    )
    os.close(theirs)
    seen, interrupted = b"", False
    until = time.monotonic() + 30
    try:
        while time.monotonic() < until:
            if select.select([mine], [], [], 0.1)[0]:
                try:
                    data = os.read(mine, 65536)
                except OSError:  # Linux: the other side has closed
                    break
                if not data:
                    break
                seen += data
            if how == "interrupted" and not interrupted and "░".encode() in seen:
                interrupted = True
                process.send_signal(signal.SIGINT)
        code = process.wait(10)
    finally:
        process.kill()
        process.wait()
        os.close(mine)
    text = seen.decode(errors="replace")
    assert "Traceback" not in text
    assert "█" in text or how == "interrupted"
    assert "rawstream" in text
    assert text.count("\x1b[?25h") >= 1
    assert code == (130 if how == "interrupted" else 0)
    assert ("measured" in text) == (how != "interrupted")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (4100, "4.1 kB"), (4_150_000, "4.2 MB"), (None, "an unknown number of bytes")],
)
def test_sizes_are_readable(count: int | None, text: str) -> None:
    assert size(count) == text

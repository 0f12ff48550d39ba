"""The live page in a real Chromium: what it shows, what it does to the server, and how it is worked.

The scripts in ``tests/browser`` work the page and report what they saw as JSON; what must hold is asserted here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import counted
from tests.support.program import ROOT
from tests.support.server import ServerProcess
from tests.support.tools import require_tool
from tests.test_javascript import node, packages

__all__ = ["node", "packages"]

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(240)]

LANES = ("whole", "eager", "drain", "rawstream")
TANKS = ("source", "transport", "kernel_unsent", "kernel_unacked", "client_kernel")
READERS = 5
"""What the page's slider says at first."""


class Browser:
    """Runs one script against one server."""

    def __init__(self, node: str, packages: Path, chromium: str) -> None:
        self._node = node
        self._packages = packages
        self._chromium = chromium

    def run(self, script: str, server: ServerProcess, *, within: float = 180, **given: Any) -> dict[str, Any]:
        """What the script reports. AssertionError, with what it printed, when it fails."""
        arguments = json.dumps({"url": server.url, "chromium": self._chromium, **given})
        done = subprocess.run(
            [self._node, str(ROOT / "tests" / "browser" / f"{script}.mjs"), arguments],
            env={**os.environ, "RAWSTREAM_NODE_MODULES": str(self._packages)},
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return report


@pytest.fixture(scope="module")
def browser(node: str, packages: Path) -> Browser:
    return Browser(node, packages, require_tool("chromium"))


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with ServerProcess() as running:
        yield running
        running.assert_steady()


# --- the lab --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(browser: Browser) -> Iterator[dict[str, Any]]:
    """One session in the lab: run, stall, leave, reconnect, reset."""
    with ServerProcess() as running:
        report = browser.run("lanes", running)
        running.assert_steady()
        yield report


def test_the_page_has_no_errors_and_does_not_jump(lab: dict[str, Any]) -> None:
    """Nothing on the console, no violation of the content security policy, no layout shift that an eye would see."""
    assert lab["problems"] == []
    assert lab["shifts"] < 0.02


def test_every_figure_is_the_servers_own(lab: dict[str, Any]) -> None:
    """In all lanes, at each look: the page shows the sample that it got last, exactly."""
    assert len(lab["running"]) == 5
    for look in lab["running"]:
        sample = look["sample"]
        assert look["now"] == sample["now"]
        assert look["rss"] == sample["process"]["rss"] > 0
        assert [lane["lane"] for lane in sample["lanes"]] == list(LANES) == list(look["lanes"])
        for lane in sample["lanes"]:
            shown = look["lanes"][lane["lane"]]
            assert shown["tanks"] == {place: lane["bytes"][place] for place in TANKS}
            assert shown["held"] == sum(lane["bytes"][place] for place in TANKS[:4])
            assert shown["behind"] == lane["tokens"]["made"] - lane["tokens"]["read"]
            assert (shown["made"], shown["read"]) == (lane["rate"]["made"], lane["rate"]["read"])
            assert shown["state"] == lane["state"]
            assert shown["why"].lower().rstrip(".") == lane["why"].lower().rstrip(".")


def test_the_lanes_show_what_they_are_there_to_show(lab: dict[str, Any]) -> None:
    """Whole hoards at the source, eager in the transport, drain() in the kernel; rawstream stays within its bounds."""
    first, last = lab["running"][0]["lanes"], lab["running"][-1]["lanes"]
    for lane, place in (("whole", "source"), ("eager", "transport"), ("drain", "kernel_unsent")):
        assert last[lane]["tanks"][place] > first[lane]["tanks"][place] > 0
        assert last[lane]["tanks"][place] > 0.8 * last[lane]["held"]
    for look in (*lab["running"], lab["stalled"]):
        assert look["lanes"]["rawstream"]["held"] <= 16 * 1024 * READERS


def test_three_ways_of_asking_have_one_answer(lab: dict[str, Any]) -> None:
    """While the readers are stalled: the page, ``/lab/runs/{id}`` and ``/debug/streams`` agree to the byte."""
    shown = lab["stalled"]["lanes"]["rawstream"]
    for state in (lab["before"], lab["after"]):
        (lane,) = (lane for lane in state["lanes"] if lane["lane"] == "rawstream")
        assert shown["tanks"] == {place: lane["bytes"][place] for place in TANKS}
        assert shown["behind"] == lane["tokens"]["made"] - lane["tokens"]["read"]
    streams = [stream for stream in lab["streams"] if stream["path"] == "/chat"]
    assert len(streams) == READERS
    for place in TANKS[:4]:
        assert shown["tanks"][place] == sum(stream["buffered"][place] for stream in streams)
    # What never stands still lies between what was there before it and after it.
    for name in ("whole", "eager"):
        (after,) = (lane["tokens"]["made"] for lane in lab["after"]["lanes"] if lane["lane"] == name)
        assert lab["running"][-1]["lanes"][name]["behind"] <= lab["stalled"]["lanes"][name]["behind"] <= after


def test_closing_the_tab_reaches_every_source_but_the_eager_one(lab: dict[str, Any]) -> None:
    """With the milliseconds that the server measured; the eager source goes on for nobody, and the page says so."""
    cancelled = {lane["lane"]: lane["cancel_seconds"] for lane in lab["leftState"]["lanes"]}
    for name in ("whole", "drain", "rawstream"):
        shown = lab["left"]["lanes"][name]
        assert shown["lamp"] == "closed"
        assert 0 < cancelled[name] < 1
        digits = 1 if cancelled[name] < 0.0995 else 0
        assert f"closed {cancelled[name] * 1000:.{digits}f} ms after the reader left" in shown["source"]
    assert lab["left"]["lanes"]["eager"]["lamp"] == "wasted"
    assert "for nobody" in lab["left"]["lanes"]["eager"]["source"]


def test_reset_leaves_nothing_behind(lab: dict[str, Any]) -> None:
    """After a reconnect, and at last a reset: the tanks are empty and the run is gone."""
    assert all(lane["readers"] == READERS for lane in lab["back"]["sample"]["lanes"])
    for lane in lab["idle"]["lanes"].values():
        assert lane["state"] == "idle"
        assert lane["held"] == lane["behind"] == 0


def test_the_page_is_worked_by_keyboard(browser: Browser, server: ServerProcess) -> None:
    """Start, stall and a slider; the focus can be seen wherever it is; every control has a name."""
    report = browser.run("keyboard", server)
    assert report["problems"] == []
    assert report["pressed"] == "true"
    assert report["before"] != report["after"]
    assert report["unnamed"] == []
    assert len(report["seen"]) >= 8
    assert all(step["outline"] >= 2 for step in report["seen"])


@pytest.mark.parametrize("lane", ["eager", "rawstream"])
def test_many_slow_readers_fill_the_process_of_one_lane_and_not_of_the_other(
    browser: Browser, server: ServerProcess, lane: str
) -> None:
    """Twenty readers at 1 KiB/s for five seconds, from the page's own figures."""
    report = browser.run(
        "memory", server, lane=lane, readers=20, tokensPerSecond="1,000", readRate="1 KiB/s", seconds=5
    )
    assert report["problems"] == []
    print(f"{lane}: resident memory grew by {report['grown'] / 2**20:.1f} MiB")
    if lane == "eager":
        assert report["grown"] > 16 * 2**20
        assert report["held"] > 20 * 64 * 1024
    else:
        assert report["grown"] < 8 * 2**20
        assert report["held"] <= 20 * 16 * 1024


# --- the windows of HTTP/2 -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def windows(browser: Browser) -> Iterator[dict[str, Any]]:
    """One session with a connection of many streams: one stalls, is read again, another stalls, all are read, stop."""
    with ServerProcess() as running:
        report = browser.run("windows", running)
        running.assert_steady()
        yield report


def test_the_windows_of_a_connection_are_drawn_without_errors_or_jumps(windows: dict[str, Any]) -> None:
    assert windows["problems"] == []
    assert windows["shifts"] < 0.02
    assert windows["idle"]["status"] == "Nothing runs."
    assert [one["source"] for one in windows["idle"]["streams"]] == ["none"] * len(windows["begun"]["streams"])


def test_the_drawn_windows_are_the_servers_own(windows: dict[str, Any]) -> None:
    for look in ("begun", "stopped", "later", "resumed", "another", "all"):
        seen = windows[look]
        assert seen["connection"] == seen["sample"]["connection"]["window"] > 0
        for shown, sample in zip(seen["streams"], seen["sample"]["streams"], strict=True):
            assert shown["name"] == f"stream {sample['stream']}"
            assert (shown["window"], shown["tokens"], shown["rate"], shown["source"]) == (
                sample["window"],
                sample["tokens"],
                sample["rate"],
                sample["source"],
            )
            assert shown["level"] == pytest.approx(sample["window"] / sample["granted"])


def test_a_stalled_streams_window_runs_dry_and_the_others_go_on(windows: dict[str, Any]) -> None:
    """Its source stands still while each of the others makes fifty tokens more; then it is read, and goes on too."""
    stopped, later = windows["stopped"], windows["later"]
    first, *others = later["streams"]
    assert (first["window"], first["level"], first["source"]) == (0, 0, "stopped")
    assert first["tokens"] == stopped["streams"][0]["tokens"] > 0
    assert all(one["window"] > 0 and one["source"] != "closed" for one in others)
    assert all(
        one["tokens"] > before["tokens"] + 50 for one, before in zip(others, stopped["streams"][1:], strict=True)
    )
    assert later["status"].startswith("Stream 1: not read, no window left, and its source has stopped.")
    assert windows["resumed"]["streams"][0]["window"] > 0
    assert windows["focused"] == "Stall stream 1"


def test_any_stream_can_be_stalled_and_all_be_read(windows: dict[str, Any]) -> None:
    third = windows["another"]["streams"][2]
    assert (third["name"], third["window"], third["button"]) == ("stream 5", 0, "Read stream 5")
    assert windows["all"]["status"] == "All streams are read, and go on."
    assert windows["over"]["status"].startswith("Stopped.")


def test_a_connection_ends_with_the_page(windows: dict[str, Any]) -> None:
    assert windows["ran"] == 200
    assert windows["left"] == 0


# --- the chat -------------------------------------------------------------------------------------------------


def test_the_chat_box_keeps_its_frames_and_tells_its_ends(browser: Browser, server: ServerProcess) -> None:
    """2,000 tokens/s at the screen's own rate; stop closes the source; failing, regenerating, reconnecting say so."""
    report = browser.run("chat", server, seconds=4)
    # The network's own lines about the cut and the refused connection, which this provokes, and nothing else.
    provoked = re.compile(r"net::ERR_(INCOMPLETE_CHUNKED_ENCODING|CONNECTION_REFUSED) \S+/chat$")
    assert [problem for problem in report["problems"] if not provoked.search(problem)] == []
    frames = report["frames"]
    print(frames)
    assert frames["tokensPerSecond"] > 1500
    assert frames["p95"] <= 20
    assert report["stopped"]["status"].startswith("Stopped after ")
    assert report["stopped"]["characters"] > 0
    assert report["regenerated"] == {"status": "Done: 200 tokens.", "answers": 2}
    assert report["failed"]["status"].startswith("Failed after ")
    assert report["failed"]["characters"] > 0
    assert report["failed"]["marked"] == 1
    assert any("Connecting again in" in told for told in report["reconnected"])
    outcomes = [line["outcome"] for line in server.logs() if "outcome" in line]
    assert sorted(outcomes) == ["client_left", "client_left", "completed", "source_failed"]


def test_leaving_in_any_way_closes_the_source(browser: Browser, tmp_path: Path) -> None:
    """Navigating, reloading, closing, going back: 24 times, before the first token and in mid-stream.

    Each source that was opened is closed, and makes at most one batch after the browser has left.
    """
    tally = tmp_path / "tally"
    tally.touch()
    with ServerProcess("--source", "tests.browser.counted:tokens", env={counted.TALLY: str(tally)}) as running:
        report = browser.run("leaving", running, tally=str(tally), turns=24)
        running.assert_steady()
    assert report["problems"] == []
    left = report["left"]
    assert len(left) == 24
    assert {(turn["way"], turn["waits"]) for turn in left} == {
        (way, waits) for way in ("navigate", "reload", "close", "back and forward") for waits in (True, False)
    }
    assert report["opened"] == report["closed"] == 24
    assert all(turn["batchesAfter"] <= 1 for turn in left), left
    print("back and forward:", {turn["restored"] for turn in left})
    print("source closed, seconds after the browser had left:", sorted(round(turn["seconds"], 4) for turn in left)[-3:])


def test_a_slow_network_slows_the_source_and_credit_stops_it(browser: Browser, server: ServerProcess) -> None:
    """Slow 3G by the DevTools protocol: the source falls to the reader's rate. A held tab: credit, to the token."""
    report = browser.run("slow", server, seconds=14)
    for held in report["held"]:
        assert held["problems"] == []
        print("held tab: credit", held["credit"], "tokens ahead", held["made"] - held["consumed"])
    without, sixteen, one = report["held"]
    assert 0 <= sixteen["made"] - sixteen["consumed"] <= 16
    assert 0 <= one["made"] - one["consumed"] <= 1
    assert without["made"] - without["consumed"] > 1000  # what a browser takes in for a page that reads nothing
    for step in one["steps"]:  # one taken, one made: over a network, through a browser
        assert 0 <= step["made"] - step["consumed"] <= 1
    assert [step["consumed"] - one["consumed"] for step in one["steps"]] == [1, 2, 3, 4, 5]

    for slow in report["slow"]:
        assert slow["problems"] == []
        looks = slow["looks"]
        settled = looks[len(looks) // 3 :]
        seconds = len(settled) - 1
        made, read = ((settled[-1][what] - settled[0][what]) / seconds for what in ("made", "consumed"))
        print(f"slow 3G: credit {slow['credit']}: {made:.0f} tokens/s made, {read:.0f} read")
        assert read > 0
        if slow["credit"]:
            assert all(0 <= look["made"] - look["consumed"] <= 2 * slow["credit"] for look in looks)
        else:
            # As fast as it is pulled it would make over 100,000 a second.
            assert made < 2.5 * read + 1000

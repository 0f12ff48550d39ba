"""The clients that come back by themselves, unmodified, over a line that is cut: no gap, no repeat, one generation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.javascript import Javascript, seen_in, words
from tests.support.chaos import ChaosProcess
from tests.support.server import ServerProcess
from tests.support.tools import require_tool

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

TOKENS = 60
CASE = {"model": f"ok:tokens={TOKENS},rate=60"}
CUTS = 3
"""Ways to cut a line: between two chunks, within one, with a reset."""


@pytest.fixture(scope="module")
def gateway(chaos: ChaosProcess) -> Iterator[ServerProcess]:
    """As it is without any flags: whoever is cut has 30 seconds to come back."""
    with ServerProcess("--upstream", chaos.url) as server:
        yield server
        server.assert_steady()


def made(chaos: ChaosProcess, user: str) -> list[str]:
    """What became of the generations that the upstream made for ``user``."""
    return [one["state"] for one in chaos.state()["generations"] if one["user"] == user]


def assert_continued(seen: dict[str, dict[str, Any]]) -> None:
    assert len(seen) == CUTS
    for cut, one in seen.items():
        assert one["text"] + one["again"] == words(TOKENS), cut
        assert one["again"], cut
        assert one["opens"] >= 2, cut
        assert one["done"] == 1, cut
        assert not one["told"], cut
        assert "last-event-id: " in one["requests"][1].lower(), cut


def test_eventsource_from_npm_goes_on_where_it_was_cut(gateway: ServerProcess, chaos: ChaosProcess) -> None:
    """Cut twice each; it sends ``Last-Event-ID``, waits as long as it was told, and misses nothing."""
    report = Javascript().run("eventsource", gateway.url, {"comes back": CASE})
    assert_continued(seen_in(report, "comes back"))
    assert made(chaos, "eventsource/comes back") == ["done"] * CUTS


def test_chromiums_eventsource_goes_on_where_it_was_cut(gateway: ServerProcess, chaos: ChaosProcess) -> None:
    name = "EventSource: comes back"
    report = Javascript().run("chromium", gateway.url, {name: CASE}, chromium=require_tool("chromium"))
    assert_continued(seen_in(report, name))
    assert made(chaos, f"chromium/{name}") == ["done"] * CUTS


def test_use_chat_that_is_mounted_again_resumes(gateway: ServerProcess, chaos: ChaosProcess) -> None:
    """``resume: true``: the answer from its beginning, told shorter, and then live; it ends as any other."""
    report = Javascript().run("usechat", gateway.url, {"comes back": CASE})
    seen = seen_in(report, "comes back")
    assert len(seen) == CUTS
    for cut, one in seen.items():
        assert one["lost"]["status"] == "error", cut
        assert words(TOKENS).startswith(one["lost"]["text"]), cut
        after = one["after"]
        assert (after["text"], after["status"], after["error"]) == (words(TOKENS), "ready", None), cut
        assert after["finishes"][0]["finishReason"] == "stop", cut
        assert one["requests"][0].startswith(f"GET /api/chat/chat-{cut}/stream "), cut
        assert " 200 " in one["answers"][0], cut
    assert made(chaos, "usechat/comes back") == ["done"] * CUTS

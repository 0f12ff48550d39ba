"""Many streams in one tab of a real Chromium: what HTTP/1.1's six connections cost, and that HTTP/2 ends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.certificates import Certificate, make_certificate
from tests.support.server import ServerProcess
from tests.support.tools import require_tool
from tests.test_browser import Browser
from tests.test_javascript import node, packages

__all__ = ["node", "packages"]

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(240)]

RATE = 20
"""Tokens a second of each stream that is read."""


@pytest.fixture(scope="module")
def browser(node: str, packages: Path) -> Browser:
    return Browser(node, packages, require_tool("chromium"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


def test_over_http_1_1_six_streams_hold_up_every_other_call(browser: Browser) -> None:
    """The control: a browser opens six connections to a server, and no seventh."""
    with ServerProcess("--heartbeat", "0") as server:
        seen = browser.run("streams", server, streams=6, rate=RATE, patience=2, stall=False)
    assert seen["protocol"] == "http/1.1"
    assert seen["asked"]["status"] is None
    assert seen["asked"]["milliseconds"] >= 1990


def test_over_http_2_fifty_streams_hold_up_nothing_though_one_is_not_read(
    browser: Browser, certificate: Certificate
) -> None:
    """/healthz answers, the 49 keep their pace, and the server holds at most 16 KiB for the one that is stalled.

    Chromium takes tens of MB for a page that does not read: those are the browser's, and not held here.
    """
    with ServerProcess("--heartbeat", "0", *certificate.flags, tls=certificate.trusting()) as server:
        seen = browser.run("streams", server, streams=50, rate=RATE, patience=2, stall=True)
    assert seen["protocol"] == "h2"
    assert seen["asked"]["status"] == 200
    assert seen["asked"]["milliseconds"] <= 100
    assert min(seen["rates"][1:]) > 0.8 * RATE
    stalled = seen["stalled"]
    assert (stalled["waiting_for"], stalled["http2"]["window"]) == ("client", 0)
    assert stalled["http2"]["connection_window"] > 0
    assert stalled["buffered"]["transport"] <= 16 * 1024

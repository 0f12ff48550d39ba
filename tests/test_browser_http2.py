"""Many streams in one tab of a real Chromium: what HTTP/1.1's six connections cost, and that HTTP/2 ends it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificate]:
    yield make_certificate(tmp_path_factory.mktemp("certificate"))


def test_over_http_1_1_six_streams_hold_up_every_other_call(browser: Browser) -> None:
    """The control: a browser opens six connections to a server, and no seventh."""
    with ServerProcess("--heartbeat", "0") as server:
        seen = browser.run("streams", server, streams=6, rate=RATE, patience=2)
    assert seen["protocol"] == "http/1.1"
    assert seen["asked"]["status"] is None
    assert seen["asked"]["milliseconds"] >= 1990


def test_over_http_2_fifty_streams_hold_up_nothing_though_one_is_not_read(
    browser: Browser, certificate: Certificate
) -> None:
    """/healthz answers, the 49 keep their pace, and the server holds at most 16 KiB for the one that is stalled.

    Chromium grants a stream 6 MB: those are the page's, and full before the window is shut.
    """
    shown: list[dict[str, Any]] = []
    over = threading.Event()
    with ServerProcess("--heartbeat", "0", *certificate.flags, tls=certificate.trusting()) as server:

        def look() -> None:
            while not over.wait(0.2):
                shown[:] = server.debug()["streams"] or shown

        watcher = threading.Thread(target=look, name="look")
        watcher.start()
        try:
            seen = browser.run("streams", server, streams=50, rate=RATE, patience=2)
        finally:
            over.set()
            watcher.join(10)
    assert seen["protocol"] == "h2"
    assert seen["asked"]["status"] == 200
    assert seen["asked"]["milliseconds"] <= 100
    assert min(seen["rates"][1:]) > 0.8 * RATE
    assert len(shown) == 50
    (stalled,) = [one for one in shown if one["bytes"] == max(one["bytes"] for one in shown)]
    assert stalled["waiting_for"] == "client"
    assert stalled["http2"]["window"] == 0
    assert stalled["buffered"]["transport"] <= 16 * 1024

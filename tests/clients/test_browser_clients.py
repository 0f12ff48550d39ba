"""Chromium's own ``EventSource`` and ``fetch``, on a page of the gateway's origin: each behaviour of the matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytest

from tests.clients import judging
from tests.clients.conftest import Tell
from tests.clients.javascript import CASES, Scripts, scripts, seen_in, shared_gateway
from tests.clients.judging import Client
from tests.clients.matrix import COLUMNS, cells
from tests.support.server import ServerProcess
from tests.support.tools import require_tool

__all__ = ["scripts", "shared_gateway"]

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

CLIENTS: Final[Mapping[str, Client]] = {
    "Chromium's EventSource": Client("chromium", judging.read_event_source, prefix="EventSource: ", words_lost=True),
    "Chromium's fetch": Client("chromium", judging.read_fetch, end="no [DONE]", prefix="fetch /chat: "),
    "Chromium's fetch, plain text": Client(
        "chromium", judging.read_fetch, end="plain text has no end", prefix="fetch /text: ", plain=True
    ),
}


@pytest.fixture(scope="module")
def report(scripts: Scripts) -> dict[str, Any]:
    """One browser, one page for each conversation."""
    cases = {client.prefix + name: case for client in CLIENTS.values() for name, case in CASES.items()}
    return scripts.report("chromium", cases, chromium=require_tool("chromium"))


@pytest.mark.parametrize(("row", "behaviour"), cells(CLIENTS, *(name for name in COLUMNS if name != "cancel")))
def test_a_client_behaves(row: str, behaviour: str, report: dict[str, Any], gateway: ServerProcess, tell: Tell) -> None:
    """What must hold stands with the judge of that behaviour; the verdict is the matrix' own."""
    client = CLIENTS[row]
    verdict = judging.JUDGES[behaviour](client, seen_in(report, client.prefix + behaviour))
    tell(verdict, report["browser"])


@pytest.mark.parametrize(("row", "behaviour"), cells(CLIENTS, "cancel"))
def test_leaving_ends_the_generation(
    row: str, behaviour: str, report: dict[str, Any], scripts: Scripts, gateway: ServerProcess, tell: Tell
) -> None:
    """``close()`` and ``abort()``: the upstream sees it, and stops."""
    client = CLIENTS[row]
    texts = judging.left_texts(seen_in(report, client.prefix + behaviour))
    scripts.assert_left(f"chromium/{client.prefix}{behaviour}", len(texts))
    tell("upstream stops", report["browser"])

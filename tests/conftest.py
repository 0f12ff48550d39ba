"""Shared by all tests: a test that takes ``loop_kind`` runs once on asyncio's own loop and once on uvloop's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop
from hypothesis import HealthCheck, settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("rawstream", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", parent=settings.get_profile("rawstream"), max_examples=15)
settings.load_profile("rawstream")

LONGEST = (
    "test_browser.py",
    "test_resume_redis.py",
    "test_silence.py",
    "test_upstream_faults.py",
    "test_scenarios.py",
    "test_command.py",
    "test_workers.py",
    "test_router_served.py",
    "test_http2.py",
    "test_admission.py",
    "test_browser_http2.py",
    "test_node_clients.py",
    "test_budgets_shared.py",
    "test_model_servers.py",
    "test_deployments.py",
)
"""Files whose tests take longest. Where files run side by side they begin first: nobody waits for them at the end."""

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

_FACTORIES: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("dist", "no") != "no":
        items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    """pytest-asyncio asks per test which loops it runs on. One is enough for what does not touch sockets."""
    if "loop_kind" in getattr(item, "fixturenames", ()):
        return _FACTORIES
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
async def loop_kind() -> str:
    """``"asyncio"`` or ``"uvloop"``: the loop that this test runs on now."""
    return "uvloop" if isinstance(asyncio.get_running_loop(), uvloop.Loop) else "asyncio"

"""One server for each module of faults, looked over after each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.server import ServerProcess

FLAGS = (
    "--head-timeout", "1", "--body-timeout", "1", "--keepalive-timeout", "1", "--stall-timeout", "1",
    "--heartbeat", "0", "--flush-timeout", "0.2",
)  # fmt: skip
"""The deadlines, shortened so that they can be waited for."""


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def shared_server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """The transports of the two loops fail in different ways, so each fault meets both."""
    with ServerProcess(*FLAGS, "--loop", request.param) as server:
        yield server


@pytest.fixture
def server(shared_server: ServerProcess) -> Iterator[ServerProcess]:
    """The module's server. After the test: a fresh request is answered, nothing is left, nothing looks like a bug."""
    yield shared_server
    shared_server.assert_steady()

"""One server for each module, as users start it; looked over after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ServerProcess]:
    with ServerProcess() as server:
        yield server


@pytest.fixture
def server(shared_server: ServerProcess) -> Iterator[ServerProcess]:
    """The module's server. After the test nothing is left of it, and nothing looks like a bug."""
    yield shared_server
    shared_server.assert_steady()

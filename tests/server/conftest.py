"""One server for each module, as users start it; looked over after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.certificates import Certificate, make_certificate
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


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """For ``localhost`` and ``127.0.0.1``, signed by itself."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))

"""One server, or two that share a Redis: what holds for the replay log holds for both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support import raw
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tools import require_module
from tests.support.waiting import eventually

FLAGS = ("--replay-window", "65536", "--user-header", "x-user", "--trusted-proxies", "127.0.0.1")


@dataclass(frozen=True)
class Places:
    """Where an answer is begun, and where its client comes back."""

    here: ServerProcess
    there: ServerProcess

    @property
    def servers(self) -> list[ServerProcess]:
        return [self.here] if self.here is self.there else [self.here, self.there]

    def generations(self, what: str) -> int:
        """A figure of ``/debug/streams``, of all servers together."""
        return sum(server.debug()["totals"]["generations"][what] for server in self.servers)

    def streams(self) -> int:
        """Open now."""
        return sum(server.debug()["totals"]["streams"] for server in self.servers)

    def tokens(self) -> int:
        """Generated, in all."""
        return sum(server.debug()["totals"]["tokens"] for server in self.servers)

    def settled(self) -> int:
        """Tokens generated, once that does not change any more."""
        last = -1

        def is_settled() -> bool:
            nonlocal last
            before, last = last, self.tokens()
            return before == last

        eventually(is_settled, within=10, why="the source waits")
        return last


@pytest.fixture(scope="module", params=["memory", "redis"])
def shared_places(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with ExitStack() as stack:
        if request.param == "memory":
            server = stack.enter_context(ServerProcess(*FLAGS))
            yield Places(server, server)
            return
        require_module("redis")
        redis = stack.enter_context(RedisServer(tmp_path_factory.mktemp("redis")))
        flags = (*FLAGS, "--redis", redis.url)
        here, there = (stack.enter_context(ServerProcess(*flags)) for _ in range(2))
        yield Places(here, there)


@pytest.fixture
def places(shared_places: Places) -> Iterator[Places]:
    """After the test nothing runs, and nothing looks like a bug."""
    yield shared_places
    eventually(lambda: shared_places.generations("running") == 0, why="nothing is left running")
    eventually(lambda: shared_places.streams() == 0, why="no stream is left")
    for server in shared_places.servers:
        server.assert_no_traceback()


def begin(server: ServerProcess, path: str = "/chat", **fields: Any) -> bytes:
    """A request for a resumable answer of the mock."""
    headers = fields.pop("headers", {"x_user": "ada"})
    return raw.post(path, {"prompt": "hello", "on_disconnect": "grace:20", **fields}, **headers)

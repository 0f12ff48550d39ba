"""``rawstream chaos`` as a process of its own: an upstream that fails as the request's model says.

Rule 1: the port is the one that its "listening" line names.
Rule 2: what it saw of its clients is asked of it (``/chaos/state``), with a deadline, and not guessed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rawstream.lab.chaos_models import MODELS
from tests.support import raw
from tests.support.program import Program
from tests.support.waiting import eventually

_LISTENING = "rawstream chaos listening on "


class ChaosProcess(Program):
    """A running ``rawstream chaos``. Use with ``with``; leaving the block ends it and asserts a clean end."""

    models = tuple(MODELS)
    """The names of all models."""

    def __init__(self, *flags: str, port: int = 0) -> None:
        """``flags`` go to ``rawstream chaos``; with ``--tls`` its TLS side is at ``tls_url``."""
        super().__init__("chaos", "--port", str(port), *flags)
        self.url = ""
        """The base URL, up to and with /v1."""
        self.tls_url = ""
        self.port = 0
        try:
            self._wait_until_listening()
        except BaseException:
            self.bury()
            raise

    def _wait_until_listening(self) -> None:
        self.wait_line(lambda line: line.startswith(f"{_LISTENING}http:"), within=20)
        said = [line.removeprefix(_LISTENING) for line in self.lines if line.startswith(_LISTENING)]
        self.url = said[-1]
        self.tls_url = said[0] if said[0].startswith("https:") else ""
        self.port = int(self.url.split(":")[2].partition("/")[0])

    def __enter__(self) -> ChaosProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                code = self.process.wait(10)
                if kind is None:
                    assert code == 0, f"exit code {code}:\n{self.stderr[-3000:]}"
            self.said_all()
            if kind is None:
                assert "Traceback" not in self.stderr, self.stderr[-3000:]
        finally:
            self.bury()

    def state(self) -> dict[str, Any]:
        """``GET /chaos/state``; the asking connection counts in it."""
        reply = raw.ask(self.port, raw.get("/chaos/state"))
        assert reply.status == 200
        answer: dict[str, Any] = reply.json()
        return answer

    def generations(self, model: str | None = None) -> list[dict[str, Any]]:
        """The generations of exactly this model string (None: all), oldest first."""
        found: list[dict[str, Any]] = self.state()["generations"]
        return [generation for generation in found if model in (None, generation["model"])]

    def wait_generation(
        self, model: str, wanted: Callable[[dict[str, Any]], bool], *, within: float = 5.0
    ) -> dict[str, Any]:
        """The newest generation of ``model`` that is as ``wanted``. AssertionError when there is none in time."""

        def look() -> dict[str, Any] | None:
            found = [generation for generation in self.generations(model) if wanted(generation)]
            return found[-1] if found else None

        seen = eventually(look, within=within, why=f"{model} is as wanted, not {self.generations(model)}")
        assert seen is not None
        return seen

    def wait_left(self, model: str, *, within: float = 5.0) -> dict[str, Any]:
        """The newest generation of ``model`` whose client has left."""
        return self.wait_generation(model, lambda generation: generation["state"] == "client_left", within=within)

    def wait_idle(self, *, within: float = 5.0) -> dict[str, Any]:
        """The state, once nothing runs any more."""

        def look() -> dict[str, Any] | None:
            state = self.state()
            return state if not state["running"] else None

        seen = eventually(look, within=within, why="nothing runs any more")
        assert seen is not None
        return seen

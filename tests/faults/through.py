"""Faults of an upstream, as they come through the gateway: what the client, the log and the pool saw of each.

Rule 1: everything is real: ``rawstream chaos``, ``rawstream serve --upstream`` and a raw client, each with its sockets.
Rule 2: the pool keeps one connection at most, so that one number tells whether the next request came on a fresh one.
Rule 3: what was seen is written down (``record``) before it is judged: the README's table is made of tests that ran.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any, Final

from rawstream.lab.chaos_answers import word
from rawstream.lab.chaos_models import read_model
from tests.support import raw
from tests.support.chaos import ChaosProcess
from tests.support.server import ServerProcess

TABLE: Final = "RAWSTREAM_FAULT_TABLE"
"""The file that ``record`` writes to, if this variable of the environment names one."""
KEY: Final = "sk-secret-of-the-gateway"
OPENAI: Final = "/v1/chat/completions"
PATHS: Final = ("/chat", OPENAI)
MESSAGES: Final = [{"role": "user", "content": "hello"}]
_FLAGS: Final = (
    "--upstream-pool", "1", "--upstream-pool-idle", "60", "--upstream-connect-timeout", "5", "--flush-timeout", "0.3",
    "--heartbeat", "0", "--upstream-retries", "0", "--upstream-breaker-failures", "0",
)  # fmt: skip
_PATIENT: Final = ("--upstream-first-token-timeout", "30", "--upstream-idle-timeout", "30")
_HASTY: Final = ("--upstream-first-token-timeout", "0.5", "--upstream-idle-timeout", "0.5")
_WITHIN: Final = 15.0
ALL: Final = -1
"""As a number of tokens: all that the upstream made."""
_numbers: Final = itertools.count(1)


def gateway(upstream: str, *flags: str, hasty: bool = False, env: dict[str, str] | None = None) -> ServerProcess:
    """``rawstream serve --upstream``; ``hasty``: with deadlines that a test can wait for.

    It asks once: what retries make of a fault is asked for with flags.
    """
    patience = _HASTY if hasty else _PATIENT
    given = ("--upstream", upstream, *_FLAGS, *patience, *flags)
    return ServerProcess(*given, env={"RAWSTREAM_UPSTREAM_API_KEY": KEY, **(env or {})})


def text_of(tokens: int) -> str:
    """The text of the first so many tokens."""
    return "".join(word(number) for number in range(tokens))


@dataclasses.dataclass(frozen=True)
class Truth:
    """What must come of a fault."""

    row: int
    """Its row in the list of faults."""
    status: int = 200
    code: str = ""
    """The error that is told, as a status or in-stream; none: the answer is whole."""
    tokens: int = 0
    """Tokens that the client gets, whole and in order."""
    kept: bool = False
    """Is the upstream's connection used again?"""
    ask: str = ""
    """Parameters for the model."""
    hasty: bool = False
    """Does a deadline end it?"""
    relayed: str = ""
    """The upstream's own code, where its error is relayed as it stands (OpenAI's wire)."""

    def client(self) -> str:
        """The cell of the table."""
        if self.status != 200:
            return f"{self.status} `{self.code}`"
        if self.code:
            return f"{self.tokens} tokens, `{self.code}`, cut"
        return f"{'all' if self.tokens == ALL else self.tokens} tokens, whole"

    def log(self) -> str:
        return f"`{self.code or 'completed'}`"

    def pool(self) -> str:
        return "kept" if self.kept else "closed"


@dataclasses.dataclass(frozen=True)
class Seen:
    """What came of a fault."""

    reply: raw.Reply
    model: str
    path: str
    outcome: str
    """The log's."""
    line: dict[str, Any]
    kept: bool
    """Did the next request come on the same connection?"""

    @property
    def events(self) -> list[Any]:
        """The data of the events that are JSON."""
        lines = self.reply.body.decode(errors="replace").split("\n")
        found = []
        for line in lines:
            if line.startswith("data: "):
                try:
                    found.append(json.loads(line.removeprefix("data: ")))
                except ValueError:
                    continue
        return found

    @property
    def done(self) -> bool:
        return b"[DONE]" in self.reply.body

    @property
    def text(self) -> str:
        """All the text that the client got."""
        if self.reply.status != 200:
            return ""
        texts: list[str] = []
        for event in self.events:
            if isinstance(event, dict) and "token" in event:
                texts.append(event["token"])
            elif isinstance(event, dict) and isinstance(event.get("choices"), list):
                texts += [(choice.get("delta") or {}).get("content") or "" for choice in event["choices"]]
        return "".join(texts)

    @property
    def error(self) -> dict[str, Any]:
        """The error that was told, in the dialect's form; {} when none was."""
        told = [self.reply.json()] if self.reply.status != 200 else self.events
        for event in told:
            if isinstance(event, dict) and "error" in event:
                error: dict[str, Any] = event["error"] if isinstance(event["error"], dict) else event
                return error
        return {}

    def client(self) -> str:
        """The cell of the table, as it was."""
        code = self.error.get("code", "")
        if self.reply.status != 200:
            return f"{self.reply.status} `{code}`"
        tokens = self.text.count("token")
        if code:
            return f"{tokens} tokens, `{code}`, {'cut' if not self.reply.whole and not self.done else 'WHOLE'}"
        return f"{tokens} tokens, {'whole' if self.reply.whole and self.done else 'CUT'}"


class Through:
    """A gateway before a chaos upstream."""

    def __init__(self, server: ServerProcess, chaos: ChaosProcess) -> None:
        """The one connection that the pool keeps is opened now: it belongs to the state of rest."""
        self.server = server
        self.chaos = chaos
        self.assert_well("/chat")
        server.settle()

    def request(self, model: str, path: str, *, stream: bool = True, name: str = "") -> bytes:
        body: dict[str, Any] = {"messages": MESSAGES, "model": model}
        if path == OPENAI:
            body["stream"] = stream
        return raw.post(path, body, **({"x_request_id": name} if name else {}))

    def accepted(self) -> int:
        """Connections that the upstream has accepted from the gateway, and from us to ask this."""
        number: int = self.chaos.state()["accepted"]
        return number

    def ask(self, model: str, path: str) -> Seen:
        """Send a streaming request for ``model``; then another one, which must be answered well."""
        name = f"fault-{next(_numbers)}"
        reply = raw.ask(self.server.port, self.request(model, path, name=name), within=_WITHIN)
        line = self.server.ended(name, within=_WITHIN)
        before = self.accepted()
        self.assert_well(path)
        fresh = self.accepted() - before - 1
        assert fresh in (0, 1)
        return Seen(reply, model, path, line["outcome"], line, kept=fresh == 0)

    def made(self, seen: Seen) -> int:
        """Tokens that the upstream made for an answer, of its model's generations the newest."""
        number: int = self.chaos.generations(seen.model)[-1]["tokens"]
        return number

    def assert_well(self, path: str) -> None:
        """The next answer is whole, and nobody else's."""
        reply = raw.ask(self.server.port, self.request("ok:tokens=3", path), within=_WITHIN)
        seen = Seen(reply, "ok", path, "", {}, kept=False)
        assert (reply.status, reply.whole, seen.done, seen.text) == (200, True, True, text_of(3))

    def assert_steady(self) -> None:
        """Nothing runs any more on either side, and nothing looks like a bug."""
        self.chaos.wait_idle()
        self.assert_well("/chat")
        self.server.assert_steady(within=10)
        assert KEY not in self.server.stderr


def record(name: str, truth: Truth, seen: Seen) -> None:
    """Write down what was seen, for the table."""
    client = truth.client() if truth.tokens == ALL and seen.done and seen.reply.whole else seen.client()
    write_row(name, seen.path, client, seen.outcome, "kept" if seen.kept else "closed")


def write_row(name: str, path: str, client: str, outcome: str, pool: str) -> None:
    """One sight of one fault: what the client, the log and the pool saw."""
    file_name = os.environ.get(TABLE)
    if file_name:
        cells = {"model": name, "path": path, "client": client, "log": f"`{outcome}`", "pool": pool}
        with Path(file_name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(cells, ensure_ascii=False) + "\n")


def asked(name: str, truth: Truth) -> str:
    """The model string that a truth is about. Raises BadRequest when there is no such model."""
    return read_model(f"{name}:{truth.ask}" if truth.ask else name).text

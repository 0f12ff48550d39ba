"""The wall clock may jump; nothing is timed by it (row 35)."""

from __future__ import annotations

import ast
import asyncio
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

import rawstream
from rawstream.server import exchange
from tests.support.raw import Client, chat, get

PACKAGE = Path(rawstream.__file__).parent
WALL_CLOCK = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "ctime"}
DATES_ONLY = {
    "server/exchange.py": "the Date header",
    "server/endpoints/completions.py": "OpenAI's 'created'",
    "sources/router.py": "OpenAI's 'created'",
    "sources/course.py": "an upstream's Retry-After that is a date",
    "doctor/tls.py": "how long a certificate is still valid",
    "tracing.py": "when a span began and ended",
}
"""Where the wall clock is read, and for what. Log lines have the date that ``logging`` gave them."""


def wall_clock_reads(source: str) -> list[int]:
    """The lines that read the wall clock: calls of ``time.time()``, ``datetime.now()`` and their like."""
    tree = ast.parse(source)
    bare = {
        name.asname or name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "time"
        for name in node.names
        if name.name in WALL_CLOCK
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id in bare:
            found.append(node.lineno)
        elif isinstance(function, ast.Attribute) and function.attr in WALL_CLOCK:
            of_a_loop = function.attr == "time" and "loop" in ast.unparse(function.value)
            if not of_a_loop:  # loop.time() is monotonic
                found.append(node.lineno)
    return found


def test_the_wall_clock_is_read_for_dates_alone() -> None:
    """No module reads it but those that tell a date."""
    readers = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if wall_clock_reads(path.read_text("utf-8"))
    }
    assert readers == set(DATES_ONLY)


def test_the_search_finds_what_it_is_for() -> None:
    """It would see each way of reading the wall clock, and takes no monotonic one for it."""
    reads = "import time, datetime\nfrom time import time as t, monotonic\n"
    for line in ("time.time()", "t()", "datetime.datetime.now()", "time.time_ns()"):
        assert wall_clock_reads(reads + line), line
    for line in (
        "monotonic()",
        "time.monotonic()",
        "loop.time()",
        "self._loop.time()",
        "asyncio.get_running_loop().time()",
    ):
        assert not wall_clock_reads(reads + line), line


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_a_jump_of_the_wall_clock_moves_no_deadline(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour forward or back: a stream, a stall deadline and an idle connection keep their time; Date follows."""
    settings = rawstream.Settings(port=0, stall_timeout=0.8, keepalive_timeout=1.2, heartbeat=0.3, log_level="error")
    real = time.time
    async with rawstream.Server(settings) as server:

        def talk() -> None:
            with Client(server.port) as client, Client(server.port) as idle:
                idle.ask(get("/healthz"))
                idle_since = time.monotonic()
                client.send(chat(tokens=60, tokens_per_second=100, first_token_seconds=0.5))
                assert client.more(), "a heartbeat, on time"
                monkeypatch.setattr(time, "time", lambda: real() + jump)
                monkeypatch.setattr(exchange, "time", lambda: real() + jump)
                reply = client.reply()
                assert (len(reply.tokens), reply.done) == (60, True)
                assert idle.rest() == b""
                assert time.monotonic() - idle_since > 1.0
                date = client.ask(get("/healthz")).header("date")
                assert date
                assert abs(parsedate_to_datetime(date).timestamp() - (real() + jump)) < 3

        await asyncio.wait_for(asyncio.to_thread(talk), 20)

"""The README is true: its tables are the code's, its files exist, its commands and examples run."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest

import rawstream
from rawstream import config
from rawstream.cli.options import default_text
from rawstream.flow.gate import TRANSITIONS
from rawstream.lab.site import Site
from rawstream.model import Outcome, StreamRecord
from rawstream.server.logs import fields_of
from rawstream.server.totals import ENDED_BY
from rawstream.settings import FIELDS, Settings
from rawstream.sources.loading import load_source
from rawstream.sources.mock import MockOptions
from tests.support.program import ROOT
from tests.support.server import ServerProcess
from tests.support.tools import missing, require_module, require_tool

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    """What stands between the README's ``<!-- name:start -->`` and ``<!-- name:end -->``."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    assert README.count(start) == README.count(end) == 1, f"the README must have the markers of {name!r} once"
    return README.partition(start)[2].partition(end)[0].strip()


def rows(name: str) -> list[list[str]]:
    """The cells of a section's tables, headings left out."""
    lines = [line for line in section(name).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [
        cell
        for cell, below in zip(cells, [*cells[1:], [""]], strict=True)
        if not is_ruler(cell) and not is_ruler(below)
    ]


def is_ruler(cells: list[str]) -> bool:
    return set("".join(cells)) <= set("-:") and any(cells)


def code(name: str) -> str:
    """The one command of a section."""
    found = re.fullmatch(r"```sh\n(.+)\n```", section(name))
    assert found is not None, f"{name} must hold one command"
    return found[1]


def example(beginning: str) -> str:
    """The README's Python example that holds the line ``beginning``."""
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if beginning in block.splitlines()]
    return found


# --- tables -------------------------------------------------------------------------------------------------


def settings_table() -> str:
    """The README's table of settings, as the code has them."""
    parts: list[str] = []
    group = ""
    for name, field in FIELDS.items():
        metadata = field.metadata
        if metadata["group"] != group:
            group = metadata["group"]
            parts.append(f"\n**{group}**\n\n| flag | default | unit | what it does |\n|---|---|---|---|")
        flags = f"`{config.flag(name)}`"
        if metadata["unit"] == "flag":
            flags += f", `{config.flag('no_' + name)}`"
        default = default_text(field)
        shown = "" if default is None else f"`{default}`"
        parts.append(f"| {flags} | {shown} | {metadata['unit']} | {metadata['help']} |")
    return "\n".join(parts).strip()


def test_every_setting_stands_in_the_readme_with_its_default_unit_and_line() -> None:
    assert section("settings") == settings_table(), f"the README's table must be:\n{settings_table()}"


def test_the_gate_in_the_readme_is_the_gate_in_the_code() -> None:
    drawn = re.findall(r"^ *([A-Z]+) --> ([A-Z]+): (\w+)$", section("gate"), re.MULTILINE)
    table = [(before.name, after.name, event.value) for (before, event), after in TRANSITIONS.items()]
    assert sorted(drawn) == sorted(table)


def test_the_http_surface_in_the_readme_is_the_routes_of_the_server() -> None:
    router = rawstream.Server(Settings(lab=True)).app.router
    routes = [*router._exact.values(), *(route for _, _, route in router._patterns)]
    files = set(Site().files) - {"/"}  # the page's own modules go without a line of their own
    registered = {
        f"`{method} {route.path}`" for route in routes if route.path not in files for method in route.handlers
    }
    assert sorted(row[0] for row in rows("routes")) == sorted(registered)


def test_the_routes_that_the_readme_calls_the_labs_are_the_labs() -> None:
    router = rawstream.Server(Settings(lab=False)).app.router
    for request, answer in rows("routes"):
        path = request.strip("`").split(" ")[1]
        known = {*router._exact, *(pattern for _, pattern, _ in router._patterns)}
        assert answer.startswith("lab:") == (path not in known)


def test_every_outcome_stands_in_the_readme_and_by_whom() -> None:
    assert {row[0].strip("`"): row[1] for row in rows("outcomes")} == {
        outcome.value: ended_by for outcome, ended_by in ENDED_BY.items()
    }
    assert set(ENDED_BY) == set(Outcome)


def test_every_field_of_the_log_line_stands_in_the_readme() -> None:
    record = StreamRecord(
        id="",
        request_id="",
        path="/chat",
        dialect="chat",
        outcome=Outcome.COMPLETED,
        ended_by="source",
        status=200,
        delivered=0,
        tokens=1,
        bytes=1,
        writes=1,
        seconds=1.0,
        first_token_seconds=1.0,
        seconds_source=0.0,
        seconds_client=0.0,
        seconds_network=0.0,
    )
    named = [name for row in rows("log") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(fields_of(record))


def test_the_mocks_options_in_the_readme_are_the_mocks() -> None:
    table = README.partition("### Trying things out with the mock")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE))
    options = {field.name: field.default for field in msgspec.structs.fields(MockOptions)}
    encoded = {name: msgspec.json.encode(default).decode().removesuffix(".0") for name, default in options.items()}
    assert {name: default.strip("`") for name, default in told.items()} == encoded


def test_each_of_the_thirteen_rules_has_a_place_and_a_test() -> None:
    numbered = rows("rules")
    assert [row[0] for row in numbered] == [str(number) for number in range(1, 14)]
    tests = (ROOT / "tests" / "test_rules.py").read_text(encoding="utf-8")
    for number, _, places in numbered:
        assert re.search(rf"def test_rule_{int(number):02}_", tests), f"rule {number} has no test"
        assert re.findall(r"`(rawstream/[\w/]+\.py)`", places), f"rule {number} lives nowhere"


def test_every_file_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"[` ]((?:rawstream|tests|bench|\.ci)/[\w./]+)[` ]", README))
    assert len(named) > 30
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_the_reading_order_goes_through_each_room() -> None:
    steps = re.findall(r"^(\d+)\. .*?`([\w/]+)\.py`", section("reading"), re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    rooms = {path.split("/")[1] for _, path in steps if path.startswith("rawstream/")}
    assert rooms >= {"model", "flow", "wire", "server", "sources", "lab"}


def test_where_is_knows_every_room_of_the_package() -> None:
    """A new room must be mapped. Single modules need not be."""
    rooms = {path.parent.name for path in (ROOT / "rawstream").glob("*/*.py")}
    mapped = {path.split("/")[1] for path in re.findall(r"`(rawstream/\w+/)", section("where"))}
    assert rooms - mapped <= {"cli", "endpoints"}


async def test_every_figure_of_debug_streams_is_explained() -> None:
    explained = README.partition("`GET /debug/streams` gives")[2].partition("\n\n")[0]
    async with asyncio.timeout(10), rawstream.Server(Settings(port=0)) as server:
        async with rawstream.stream(f"{server.url}/chat", "hello") as events:
            await anext(events)
            (live,) = server.app.streams
            snapshot = live.snapshot(monotonic())
    names = [*snapshot, *snapshot["seconds"], *snapshot["buffered"]]
    assert [name for name in names if f"`{name}`" not in explained] == []


# --- commands and examples ----------------------------------------------------------------------------------


def test_the_commands_are_one_line_each_and_set_up_what_they_need() -> None:
    for name, ends in (("run", "rawstream serve"), ("test", "pytest")):
        steps = code(name).split(" && ")
        assert steps[0] == "python3 -m venv .venv"
        assert steps[1].startswith(".venv/bin/pip install ")
        assert steps[-1] == f".venv/bin/{ends}"


def test_the_curl_command_shows_tokens_as_they_arrive() -> None:
    curl = require_tool("curl")
    if "--json" not in subprocess.run([curl, "--help", "all"], capture_output=True, text=True, check=True).stdout:
        missing("a curl that knows --json (7.82 or newer)")
    command = code("curl")
    assert "http://127.0.0.1:8000/chat" in command
    with ServerProcess() as server:
        arguments = shlex.split(command.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"))
        with subprocess.Popen([*arguments, "--silent", "--max-time", "10"], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            arrivals = list(data_lines(process.stdout, 5))
            process.send_signal(signal.SIGINT)
            process.wait(10)
    assert [line[:10] for line, _ in arrivals] == [b'data: {"to'] * 5
    # Paced at 50 tokens per second: four of them take 80 ms, unless somebody held them back.
    assert arrivals[-1][1] - arrivals[0][1] > 0.04


def data_lines(stream: Any, count: int) -> Iterator[tuple[bytes, float]]:
    """The first ``count`` data lines, each with the moment it came."""
    for line in stream:
        if line.startswith(b"data: "):
            yield line, monotonic()
            count -= 1
            if not count:
                return


@pytest.fixture
def own_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the README's ``answers.py`` and what it reads, as the current one."""
    (tmp_path / "answers.py").write_text(example("# answers.py"), encoding="utf-8")
    (tmp_path / "notes.txt").write_text("first line\nsecond line\n", encoding="utf-8")
    with closing(sqlite3.connect(tmp_path / "notes.db")) as database, database:
        database.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)")
        database.executemany("INSERT INTO notes (text) VALUES (?)", [("a ",), ("note",)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "answers", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("function", "tokens"),
    [
        ("tokens", ["You ", "said: ", "hello "]),
        ("words", ["one ", "two ", "three "]),
        ("lines", ["first line\n", "second line\n"]),
        ("notes", ["a ", "note"]),
    ],
)
async def test_sources_of_ones_own_stream_what_the_readme_says(
    function: str, tokens: list[str], own_sources: Path
) -> None:
    async with asyncio.timeout(10), rawstream.Server(Settings(port=0), load_source(f"answers:{function}")) as server:
        got = [event.text async for event in rawstream.stream(f"{server.url}/chat", "hello")]
    assert got == tokens


def run_example(source: str, change: Callable[[str], str] = str) -> str:
    """What a Python example prints, run as a program of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", change(source)],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_embedding_example_runs() -> None:
    assert run_example(example("import rawstream")) == "one two three "


@pytest.mark.real
def test_the_openai_clients_example_runs(own_sources: Path) -> None:
    require_module("openai")
    source = example("from openai import OpenAI")
    assert "http://127.0.0.1:8000/v1" in source
    path = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(own_sources)))}
    with ServerProcess("--source", "answers:tokens", env=path) as server:
        printed = run_example(source, lambda text: text.replace(":8000/", f":{server.port}/"))
    assert printed == "You said: hello "

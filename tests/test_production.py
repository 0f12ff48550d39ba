"""What the README says of production is the code's: metrics, commands, links, sizes."""

from __future__ import annotations

import asyncio
import re
import subprocess

import click
import pytest

import rawstream
from rawstream import config
from rawstream.cli import COMMANDS, rawstream_command
from rawstream.errors import RawstreamError
from rawstream.limits.users import new_key
from rawstream.model import Outcome
from rawstream.settings import FIELDS, Settings, UserSettings
from rawstream.sources.router import RoutedSource
from tests.support import raw
from tests.test_readme import README, rows, section

PRODUCTION = README.partition("\n## Put it in production\n")[2].partition("\n## ")[0]
WRONG = README.partition("\n## When it goes wrong\n")[2].partition("\n## ")[0]


def codes(kind: type[RawstreamError] = RawstreamError) -> set[str]:
    return {kind.code}.union(*(codes(below) for below in kind.__subclasses__()))


async def test_every_metric_that_is_named_there_is_exposed() -> None:
    settings = Settings(port=0, upstream="http://127.0.0.1:1/v1", users=(UserSettings(name="a", keys=(new_key()[1],)),))
    async with asyncio.timeout(10), rawstream.Server(settings, RoutedSource(settings)) as server:
        reply = await asyncio.to_thread(raw.ask, server.port, raw.get("/metrics"))
    exposed = {line.split(" ")[2] for line in reply.body.decode().splitlines() if line.startswith("# HELP ")}
    named = set(re.findall(r"\brawstream_[a-z_]+[a-z]", PRODUCTION + WRONG))
    assert len(named) > 5
    assert named - exposed == set()


def test_every_flag_and_command_that_is_named_there_exists() -> None:
    context = click.Context(rawstream_command)
    commands = {name: rawstream_command.get_command(context, name) for name in COMMANDS}
    for name in re.findall(r"`rawstream ([a-z]+)", PRODUCTION + WRONG):
        assert name in commands
    known = {config.flag(name) for name in FIELDS} | {config.flag(f"no_{name}") for name in FIELDS}
    known |= {option for command in commands.values() if command for part in command.params for option in part.opts}
    known |= {"--user", "--now"}  # of 'rawstream key new' and of systemctl
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PRODUCTION + WRONG)) - known == set()


def test_every_setting_outcome_and_code_in_the_table_is_one() -> None:
    words = {word for row in rows("wrong") for cell in row for word in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", cell)}
    words = {word for word in words if not word.startswith("rawstream_")}
    known = {*FIELDS, *(outcome.value for outcome in Outcome), *codes()}
    others = {"proxy_buffering", "ended_by"}
    assert words - known - others == set()


def test_every_link_within_the_readme_leads_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) - anchors == set()


def test_how_much_a_core_carries_follows_from_the_benchmarks() -> None:
    """To a tenth: CPU per token at 50 tokens a second; planned with is the half."""
    measured = {row[0]: row[1] for row in rows("bench")}
    own = float(measured["paced (1,000 streams): CPU per token, µs"])
    gateway = float(measured["gateway (200 streams × 50 tokens/s): CPU per relayed token, µs"])
    told = [[int(cell.split(" ")[0].replace(",", "")) for cell in row[1:]] for row in rows("sizing")]
    for (full, half), cost in zip(told, (own, gateway), strict=True):
        assert full == pytest.approx(1e6 / 50 / cost, rel=0.1)
        assert half == full / 2


def test_the_line_that_shows_when_each_event_comes_is_one_that_a_shell_takes() -> None:
    (line,) = re.findall(r"`\| (while .+?; done)`", section_of_browsers())
    done = subprocess.run(
        ["bash", "-c", f"printf 'a\\nb\\n' | {line}"], capture_output=True, text=True, timeout=10, check=True
    )
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} a\n\d\d:\d\d:\d\d\.\d{3} b\n", done.stdout)


def section_of_browsers() -> str:
    return README.partition("**Looking at SSE in a browser.**")[2].partition("\n\n")[0]


def test_each_symptom_has_a_remedy_and_a_way_to_see_it() -> None:
    assert len(rows("wrong")) >= 12
    for row in rows("wrong"):
        assert len(row) == 4, row
        assert row[0].startswith("**")
        assert row[1]
        assert row[3]
    assert section("wrong")

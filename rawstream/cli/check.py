"""``rawstream check``: what is wrong with the settings, line by line, and whether each upstream answers.

Rule 1: everything that is wrong is told at once, one line each, on stdout.
Rule 2: exit code 0: all is well; 1: something does not answer as it should; 2: the settings are wrong.
Rule 3: no key is ever shown, nor what is held of it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

import click
import msgspec

from rawstream import config
from rawstream.config import Examined
from rawstream.settings import Settings, UserSettings
from rawstream.sources.probe import Probe, probe
from rawstream.sources.upstreams import upstreams_of


@click.command("check", short_help="Check the settings and whether each upstream answers.")
@click.option("--config", "config_file", metavar="FILE", help="The TOML file (also RAWSTREAM_CONFIG).")
@click.option("--upstream", metavar="URL", help="An upstream without a file, up to and with /v1.")
@click.option("--upstream-api-key", metavar="TEXT", help="Its key (also RAWSTREAM_UPSTREAM_API_KEY).")
@click.option("--upstream-ca", metavar="PATH", help="PEM file of the authorities to trust for its https.")
@click.option("--json", "as_json", is_flag=True, help="Say it as one JSON object.")
@click.option("--no-network", is_flag=True, help="Look at the settings alone; connect to nobody.")
def check(config_file: str | None, as_json: bool, no_network: bool, **flags: str | None) -> None:
    """Say what is wrong with the settings, by line, and for each upstream whether it answers: TLS, key, models.

    Variables (RAWSTREAM_…) count as they do for 'serve'. Nothing is generated: GET /models is all that is asked.

    Exit code 0: all is well; 1: something does not answer as it should; 2: the settings are wrong.
    """
    examined = config.examine(flags, os.environ, config_file)
    probes: list[Probe] = []
    if examined.loaded is not None and not no_network:
        probes = asyncio.run(_probe_all(examined.loaded.settings))
    click.echo(_json(examined, probes) if as_json else _text(examined, probes, no_network))
    if examined.loaded is None:
        sys.exit(2)
    sys.exit(0 if all(seen.ok for seen in probes) else 1)


async def _probe_all(settings: Settings) -> list[Probe]:
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(probe(upstream, settings), name=f"probe of {upstream.name}")
            for upstream in upstreams_of(settings)
        ]
    return [task.result() for task in tasks]


def _json(examined: Examined, probes: list[Probe]) -> str:
    loaded = examined.loaded
    told = {
        "file": examined.file,
        "problems": examined.problems,
        "warnings": [] if loaded is None else loaded.warnings,
        "users": [] if loaded is None else [_user(user) for user in loaded.settings.users],
        "upstreams": [{**msgspec.to_builtins(seen), "ok": seen.ok} for seen in probes],
        "ok": loaded is not None and all(seen.ok for seen in probes),
    }
    return msgspec.json.format(msgspec.json.encode(told)).decode()


def _text(examined: Examined, probes: list[Probe], no_network: bool) -> str:
    loaded = examined.loaded
    if loaded is None:
        return "\n".join(examined.problems)
    lines = list(loaded.warnings)
    settings = loaded.settings
    upstreams = upstreams_of(settings)
    lines.append(f"{examined.file or 'the settings'}: nothing is wrong")
    if not upstreams:
        source = "the built-in mock" if settings.source is None else f"your own {settings.source}"
        lines.append(f"no upstream: tokens come from {source}")
    elif no_network:
        lines += [f"{upstream.name}  {upstream.url}  not asked" for upstream in upstreams]
    for seen in probes:
        lines += _told(seen)
    lines += _users(settings)
    return "\n".join(lines)


def _told(seen: Probe) -> list[str]:
    lines = [f"{seen.name}  {seen.url}  {'ok' if seen.ok else 'NOT OK'}"]
    if seen.reachable:
        lines.append(f"  reachable in {seen.connect_ms:g} ms, {seen.tls or 'without TLS'}")
    if seen.models_status is not None:
        lines.append(f"  GET /models: {seen.models_status}; key: {seen.key}")
    return lines + [f"  problem: {problem}" for problem in seen.problems] + [f"  note: {note}" for note in seen.notes]


_LIMITS: Final = {
    "max_streams": "streams at once",
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
    "tokens_per_day": "tokens a day",
}


def _user(user: UserSettings) -> dict[str, object]:
    return {
        "name": user.name,
        "keys": len(user.keys),
        "models": list(user.models),
        **{name: getattr(user, name) for name in _LIMITS},
    }


def _users(settings: Settings) -> list[str]:
    lines = []
    if settings.user_header is not None:
        lines.append(f"users are named by {settings.trusted_proxies}, in {settings.user_header}")
        if not settings.users:
            lines.append("no [[users]]: whomever it names may ask, without limits")
    for user in settings.users:
        keys = "1 key" if len(user.keys) == 1 else f"{len(user.keys)} keys"
        limits = [
            f"{getattr(user, name)} {words}" for name, words in _LIMITS.items() if getattr(user, name) is not None
        ]
        told = [keys, f"models {', '.join(user.models)}", *(limits or ["no limits"])]
        lines.append(f"user {user.name}: " + "; ".join(told))
    return lines

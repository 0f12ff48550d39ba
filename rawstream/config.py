"""Loading the settings: flags, then the environment, then a TOML file, then the defaults.

Rule 1: the one table is ``settings.FIELDS``. What a setting is called, and how its value is read, follows from it.
Rule 2: whatever is wrong is said with the setting, the value and where it came from, a file's line too; a secret's
        value is never said. All that is wrong is said at once.
Rule 3: an unknown key in a file is an error; an unknown ``RAWSTREAM_`` variable is a warning, for the environment may
        be shared with something else.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from rawstream import config_file
from rawstream.config_file import TomlFile
from rawstream.config_tables import did_you_mean
from rawstream.config_upstreams import read_upstreams, unusable
from rawstream.config_users import read_users
from rawstream.config_values import parse_bytes, parse_count, parse_flag, parse_ratio, parse_seconds, read_value
from rawstream.errors import SettingsError
from rawstream.settings import FIELDS, Settings, faults

__all__ = [
    "Examined",
    "Loaded",
    "examine",
    "flag",
    "load",
    "parse",
    "parse_bytes",
    "parse_count",
    "parse_flag",
    "parse_ratio",
    "parse_seconds",
    "variable",
]

PREFIX: Final = "RAWSTREAM_"
OTHER_VARIABLES: Final = frozenset({"RAWSTREAM_CONFIG", "RAWSTREAM_API_KEY"})
"""Variables of the command line that are not settings of the server."""
_TABLES: Final = {"upstreams": read_upstreams, "users": read_users}
"""What there may be several of, and stands in the file alone."""


class Loaded(NamedTuple):
    """Settings, and what was noticed on the way."""

    settings: Settings
    origins: dict[str, str]
    """Where each setting that is not a default came from, in words (``rawstream.toml:3``, ``--port``)."""
    warnings: list[str]


class Examined(NamedTuple):
    """What there is to say about settings, right or wrong."""

    loaded: Loaded | None
    """None when something is wrong."""
    problems: list[str]
    """One line each, in the order of the file."""
    file: str | None
    """The TOML file that was read."""


def flag(name: str) -> str:
    """``stall_timeout`` → ``--stall-timeout``."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """``stall_timeout`` → ``RAWSTREAM_STALL_TIMEOUT``."""
    return PREFIX + name.upper()


def parse(name: str, value: object, origin: str) -> Any:
    """The value of setting ``name``, given as text or as TOML has it. Raises SettingsError naming ``origin``."""
    try:
        return read_value(FIELDS[name].metadata["unit"], value)
    except ValueError as error:
        raise SettingsError(f"{name}: {_shown(name, value)} (from {origin}) {error}") from None


def _shown(name: str, value: object) -> str:
    return "the value" if FIELDS[name].metadata["secret"] else repr(value)


def load(flags: Mapping[str, object], environ: Mapping[str, str], config: str | None = None) -> Loaded:
    """Settings from ``flags`` (by field name; None: not given), ``environ`` and the TOML file ``config``.

    An empty variable counts as not set. Raises SettingsError, a line for each thing that is wrong.
    """
    examined = examine(flags, environ, config)
    if examined.loaded is None:
        raise SettingsError("\n".join(examined.problems))
    return examined.loaded


def examine(flags: Mapping[str, object], environ: Mapping[str, str], config: str | None = None) -> Examined:
    """As ``load``, but tells what is wrong instead of raising it."""
    reading = _Reading()
    config = config or environ.get("RAWSTREAM_CONFIG") or None
    if config is not None:
        try:
            reading.take_file(config_file.read(config), environ)
        except SettingsError as error:
            reading.problems.append(str(error))
    for name in FIELDS:
        if environ.get(variable(name)):
            reading.take(name, environ[variable(name)], variable(name))
    for name, value in flags.items():
        if value is not None:
            reading.take(name, value, flag(name))
    settings = reading.settings()
    loaded = None if settings is None else Loaded(settings, reading.origins, list(_strangers(environ)))
    return Examined(loaded, reading.problems, config)


class _Reading:
    """Values as they are taken from one place after the other, and what was wrong with them."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.origins: dict[str, str] = {}
        self._values: dict[str, Any] = {}
        self._in_file: set[str] = set()

    def take(self, name: str, value: object, origin: str) -> None:
        try:
            self._values[name] = parse(name, value, origin)
        except SettingsError as error:
            self.problems.append(str(error))
        self._in_file.discard(name)
        self.origins[name] = origin

    def take_file(self, file: TomlFile, environ: Mapping[str, str]) -> None:
        found: list[tuple[int, str]] = []  # by line

        def wrong(line: int, message: str) -> None:
            found.append((line, f"{file.path}:{line}: {message}"))

        for name, value in file.table.items():
            line = file.line((name,))
            if name in _TABLES:
                tables, wrongs = _TABLES[name](value, environ, Path(file.path).parent)
                for one in wrongs:
                    wrong(file.line(one.path), str(one))
                if not wrongs:
                    self._values[name] = tables
            elif name in FIELDS:
                try:
                    self._values[name] = read_value(FIELDS[name].metadata["unit"], value)
                except ValueError as error:
                    wrong(line, f"{name}: {_shown(name, value)} {error}")
            else:
                wrong(line, f"there is no setting {name!r}{did_you_mean(name, [*FIELDS, *_TABLES])}")
            self._in_file.add(name)
            self.origins[name] = f"{file.path}:{file.line((name, 0) if name in _TABLES else (name,))}"
        self.problems += [problem for _, problem in sorted(found, key=lambda one: one[0])]

    def settings(self) -> Settings | None:
        """The settings; None when something is wrong, all of which is in ``problems`` then."""
        defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
        for message in faults({**defaults, **self._values}):
            self.problems.append(self._blame(message))
        for message in unusable(self._values):
            self.problems.append(self._blame(message))
        return None if self.problems else Settings(**self._values)

    def _blame(self, message: str) -> str:
        """The message with where the settings that it names came from."""
        named = [name for name in self.origins if re.search(rf"(?<!_)\b{name}\b", message)]
        if len(named) == 1 and named[0] in self._in_file:
            return f"{self.origins[named[0]]}: {message}"
        if not named:
            return message
        return f"{message} (" + ", ".join(f"{name} is from {self.origins[name]}" for name in named) + ")"


def _strangers(environ: Mapping[str, str]) -> Iterable[str]:
    known = {variable(name) for name in FIELDS}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and name not in OTHER_VARIABLES:
            # Compared without the prefix, which would make everything look alike.
            hint = _similar(name.removeprefix(PREFIX).lower(), variable)
            yield f"the environment has {name}, which is no setting{hint}"


def _similar(name: str, written: Callable[[str], str]) -> str:
    hint = did_you_mean(name, FIELDS)
    close = hint.removeprefix("; did you mean ").removesuffix("?")
    return f"; did you mean {written(close)}?" if close else ""

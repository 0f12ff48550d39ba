"""Loading the settings: flags, then the environment, then a TOML file, then the defaults.

Rule 1: the one table is ``settings.FIELDS``. What a setting is called, and how its value is read, follows from it.
Rule 2: whatever is wrong is said with the setting, the value and where it came from; a secret's value is never said.
Rule 3: an unknown key in a file is an error; an unknown ``RAWSTREAM_`` variable is a warning, for the environment may
        be shared with something else.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

from rawstream.errors import SettingsError
from rawstream.settings import FIELDS, Settings

PREFIX: Final = "RAWSTREAM_"
OTHER_VARIABLES: Final = frozenset({"RAWSTREAM_CONFIG", "RAWSTREAM_API_KEY"})
"""Variables of the command line that are not settings of the server."""

_NUMBER: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]*)")
# As GNU coreutils has it: k and KiB are 1024 bytes, kB is 1000.
_BYTES: Final = {"": 1, "b": 1} | {
    name: factor
    for power, letter in enumerate("kmg", start=1)
    for name, factor in (
        (letter, 1024**power),
        (f"{letter}ib", 1024**power),
        (f"{letter}b", 1000**power),
    )
}
_SECONDS: Final = {
    "": Decimal(1),
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
_LARGEST: Final = 2**62


class Loaded(NamedTuple):
    """Settings, and what was noticed on the way."""

    settings: Settings
    origins: dict[str, str]
    """Where each setting that is not a default came from, in words."""
    warnings: list[str]


def flag(name: str) -> str:
    """``stall_timeout`` → ``--stall-timeout``."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """``stall_timeout`` → ``RAWSTREAM_STALL_TIMEOUT``."""
    return PREFIX + name.upper()


def parse_bytes(text: str) -> int:
    """A size in bytes: ``4096``, ``64KiB``, ``1MiB``, ``16k``. Raises ValueError."""
    number, unit = _split(text)
    factor = _BYTES.get(unit.lower())
    size = number * factor if factor is not None else None
    if size is None or size != size.to_integral_value() or size > _LARGEST:
        raise ValueError("is not a size: write bytes as 4096, 64KiB, 1MiB or 16k")
    return int(size)


def parse_seconds(text: str) -> float:
    """A time in seconds: ``30``, ``1.5``, ``30s``, ``500ms``, ``5m``, ``1h``. Raises ValueError."""
    number, unit = _split(text)
    factor = _SECONDS.get(unit.lower())
    if factor is None:
        raise ValueError("is not a time: write seconds as 30, 1.5 or 30s, or 500ms, 5m, 1h")
    return float(number * factor)


def parse_count(text: str) -> int:
    """A whole number. Raises ValueError."""
    number, unit = _split(text)
    if unit or number != number.to_integral_value() or number > _LARGEST:
        raise ValueError("is not a whole number")
    return int(number)


def parse_flag(text: str) -> bool:
    """``true``/``false``, ``yes``/``no``, ``on``/``off``, ``1``/``0``. Raises ValueError."""
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError("is neither true nor false")
    return word in _TRUE


def _split(text: str) -> tuple[Decimal, str]:
    found = _NUMBER.fullmatch(text.strip()) if len(text) <= 64 else None
    if found is None:
        return Decimal(0), "?"  # a unit that nothing has
    return Decimal(found[1]), found[2]


_PARSERS: Final = {"bytes": parse_bytes, "seconds": parse_seconds, "count": parse_count, "flag": parse_flag}


def parse(name: str, value: object, origin: str) -> Any:
    """The value of setting ``name``, given as text or as TOML has it. Raises SettingsError naming ``origin``."""
    metadata = FIELDS[name].metadata
    unit = metadata["unit"]
    parser = _PARSERS.get(unit)
    try:
        if parser is None:
            if not isinstance(value, str):
                raise ValueError("is not text: put it in quotes")
            if not value or "\0" in value:
                raise ValueError("is empty" if not value else "contains NUL")
            return value
        if isinstance(value, bool) != (unit == "flag") and not isinstance(value, str):
            raise ValueError("must be true or false" if unit == "flag" else "is not a number")
        if isinstance(value, bool):
            return value
        if not isinstance(value, str | int | float):
            raise ValueError("is not a number")
        if isinstance(value, str):
            return parser(value)
        return _number(unit, value)
    except ValueError as error:
        shown = "the value" if metadata["secret"] else repr(value)
        raise SettingsError(f"{name}: {shown} (from {origin}) {error}") from None


def _number(unit: str, value: float) -> float:
    """A number of a TOML file. Signs and infinities are for ``settings.check`` to refuse, with the reason."""
    if unit == "seconds":
        return float(value)
    if isinstance(value, float):
        raise ValueError("is not a whole number")
    return value


def load(flags: Mapping[str, object], environ: Mapping[str, str], config: str | None = None) -> Loaded:
    """Settings from ``flags`` (by field name; None: not given), ``environ`` and the TOML file ``config``.

    An empty variable counts as not set. Raises SettingsError.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def take(name: str, value: object, origin: str) -> None:
        values[name] = parse(name, value, origin)
        origins[name] = origin

    config = config or environ.get("RAWSTREAM_CONFIG") or None
    if config is not None:
        for name, value in _read_file(config).items():
            take(name, value, config)
    for name in FIELDS:
        if environ.get(variable(name)):
            take(name, environ[variable(name)], variable(name))
    for name, value in flags.items():
        if value is not None:
            take(name, value, flag(name))
    try:
        settings = Settings(**values)
    except ValueError as error:
        raise SettingsError(f"{error}{_blame(str(error), origins)}") from None
    return Loaded(settings, origins, list(_strangers(environ)))


def _read_file(path: str) -> dict[str, object]:
    try:
        with Path(path).open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None
    for name in table:
        if name not in FIELDS:
            raise SettingsError(f"{path}: there is no setting {name!r}{_did_you_mean(name)}")
    return table


def _strangers(environ: Mapping[str, str]) -> Iterable[str]:
    known = {variable(name) for name in FIELDS}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known and name not in OTHER_VARIABLES:
            # Compared without the prefix, which would make everything look alike.
            hint = _did_you_mean(name.removeprefix(PREFIX).lower(), variable)
            yield f"the environment has {name}, which is no setting{hint}"


def _did_you_mean(name: str, written: Callable[[str], str] = str) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), list(FIELDS), n=1)
    return f"; did you mean {written(close[0])}?" if close else ""


def _blame(message: str, origins: Mapping[str, str]) -> str:
    """Where the settings that ``message`` names came from."""
    named = [name for name in origins if re.search(rf"\b{name}\b", message)]
    if not named:
        return ""
    return " (" + ", ".join(f"{name} is from {origins[name]}" for name in named) + ")"

"""How the values of settings are written: ``64KiB``, ``500ms``, ``true``. Pure.

Rule 1: nothing is guessed at. A sign, an exponent, another script's digits, a part of a byte: a ValueError.
Rule 2: the message goes on after the value, and does not repeat it: the value may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

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


def parse_ratio(text: str) -> float:
    """A number: ``0.2``, ``1``. Raises ValueError."""
    number, unit = _split(text)
    if unit or number > _LARGEST:
        raise ValueError("is not a number")
    return float(number)


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


_PARSERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "bytes": parse_bytes,
    "seconds": parse_seconds,
    "count": parse_count,
    "ratio": parse_ratio,
    "flag": parse_flag,
}


def read_value(unit: str, value: object) -> Any:
    """A value of ``unit``, given as text or as TOML has it. Raises ValueError that goes on after the value."""
    parser = _PARSERS.get(unit)
    if parser is None:
        if not isinstance(value, str):
            raise ValueError("is not text: put it in quotes")
        if not value or "\0" in value:
            raise ValueError("is empty" if not value else "contains NUL")
        return value
    if isinstance(value, str):
        return parser(value)
    if unit == "flag":
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is not a number")
    # Signs and infinities are for the settings' own check to refuse, with the reason.
    if unit in ("seconds", "ratio"):
        return float(value)
    if isinstance(value, float):
        raise ValueError("is not a whole number")
    return value

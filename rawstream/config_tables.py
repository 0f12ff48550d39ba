"""Tables that a TOML file may have several of: read key by key, and all that is wrong told with its place.

Rule 1: a value is repeated in an error only where the table's maker says that it may be: it may be a secret.
Rule 2: what a key means is its table's business (``config_upstreams.py``, ``config_users.py``); here is what all share.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rawstream.config_file import KeyPath
from rawstream.config_values import read_value


class Fault(NamedTuple):
    """Something wrong at a place in the file."""

    path: KeyPath
    message: str

    def __str__(self) -> str:
        """``upstreams[1].url: the message``."""
        shown = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.path).removeprefix(".")
        return f"{shown}: {self.message}"


class Shape(NamedTuple):
    """What the tables of one kind hold."""

    name: str
    """``upstreams``."""
    units: Mapping[str, str]
    """Each key's unit, as the settings have them, and ``names`` for a list of texts."""
    required: tuple[str, ...]
    shown: frozenset[str]
    """Keys whose values may be repeated in an error."""


class Table:
    """One table being read."""

    def __init__(self, shape: Shape, index: int, given: dict[str, Any]) -> None:
        self._shape = shape
        self.index = index
        self._path: KeyPath = (shape.name, index)
        self.given = given
        self.faults: list[Fault] = []

    def fault(self, key: str, message: str) -> None:
        """``message`` goes on after the key."""
        here = key in self.given
        self.faults.append(Fault((*self._path, key) if here else self._path, message if here else f"{key} {message}"))

    def values(self) -> dict[str, Any]:
        """The values that can be read; what is wrong with the others, and which are missing, is in ``faults``."""
        shape = self._shape
        values: dict[str, Any] = {}
        for key, value in self.given.items():
            if key not in shape.units:
                self.fault(key, f"there is no such key{did_you_mean(key, shape.units)}")
                continue
            try:
                unit = shape.units[key]
                values[key] = _names(value) if unit == "names" else read_value(unit, value)
            except ValueError as error:
                self.fault(key, f"{value!r} {error}" if key in shape.shown else f"the value {error}")
        for key in shape.required:
            if key not in self.given:
                self.fault(key, "is missing")
        return values


def tables_of(shape: Shape, value: object) -> tuple[list[Table], list[Fault]]:
    """The tables that a file has for ``shape.name``, and what is wrong when these are none."""
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        return [], [Fault((shape.name,), f"must be tables: write [[{shape.name}]] above the keys of each")]
    return [Table(shape, index, table) for index, table in enumerate(value)], []


class Names:
    """Names that only one table may have."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._first: dict[str, int] = {}

    def take(self, name: str, table: Table, key: str = "name", called: str = "the name of") -> bool:
        """False, and a fault of ``table``: another one has ``name`` already."""
        first = self._first.setdefault(name, table.index)
        if first != table.index:
            table.fault(key, f"{name!r} is {called} {self._shape.name}[{first}] already")
        return first == table.index


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError('must be a list of names: ["one", "other*"]')
    return tuple(value)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean weight?``, or nothing when no known name is like it."""
    close = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""

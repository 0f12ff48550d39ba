"""A TOML file whose every value knows its line. Pure, but for reading the file.

Theory of operation: ``tomllib`` reads the file as a whole, and is the judge of it. It tells no lines; but a TOML file
is a sequence of statements (a header, or a key and its value), each of which is TOML by itself, and no beginning of
one is. So the lines are cut into the shortest pieces that ``tomllib`` takes: a piece's first line is where it begins.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from rawstream.errors import SettingsError

KeyPath: TypeAlias = tuple[str | int, ...]
"""``("upstreams", 1, "url")``."""
_AT_LINE: Final = re.compile(r" ?\(at line (\d+), column \d+\)")


class TomlFile(NamedTuple):
    """What a file holds, and where."""

    path: str
    table: dict[str, Any]
    lines: dict[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """The line where this begins; of what it is in, where it has none of its own. Counted from 1."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def place(self, path: KeyPath) -> str:
        """``rawstream.toml:14``."""
        return f"{self.path}:{self.line(path)}"


def read(path: str) -> TomlFile:
    """The file. Raises SettingsError, with the line, when it cannot be read or is not TOML."""
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{path}:{line}: is not TOML: it is not UTF-8") from None
    text = text.replace("\r\n", "\n")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _AT_LINE.search(str(error))
        # What is never closed is noticed at the end: its beginning says more.
        line = int(found[1]) if found else next((at for at, _, taken in _pieces(text.split("\n")) if taken is None), 1)
        raise SettingsError(f"{path}:{line}: is not TOML: {_AT_LINE.sub('', str(error))}") from None
    except RecursionError:
        raise SettingsError(f"{path}: is not TOML that anybody would write: it is nested too deeply") from None
    return TomlFile(path, table, lines_of(text.split("\n")))


def lines_of(lines: list[str]) -> dict[KeyPath, int]:
    """The line of each key and table of a valid TOML text, counted from 1."""
    found: dict[KeyPath, int] = {}
    tables: dict[KeyPath, int] = {}  # how many tables an array of tables has so far
    inside: KeyPath = ()
    for begin, first_line, statement in _pieces(lines):
        if not statement:
            continue
        is_header = first_line.lstrip().startswith("[")
        if is_header:
            inside = _header(statement, tables)
            found.setdefault(inside, begin)
        else:
            path = inside
            here: Any = statement
            while isinstance(here, dict) and len(here) == 1:
                (key,) = here
                path, here = (*path, key), here[key]
                found.setdefault(path, begin)
    return found


def _pieces(lines: list[str]) -> Iterator[tuple[int, str, dict[str, Any] | None]]:
    """Each statement: the line where it begins, that line, and what it holds; None: it never ends."""
    piece: list[str] = []
    for number, line in enumerate(lines, start=1):
        piece.append(line)
        if line.rstrip().endswith(",") and "#" not in line:
            continue  # nothing ends so, and looking at each line of a long list would take its length squared
        try:
            statement = tomllib.loads("\n".join(piece) + "\n")
        except tomllib.TOMLDecodeError:
            continue
        yield number - len(piece) + 1, piece[0], statement
        piece.clear()
    if piece:
        yield len(lines) - len(piece) + 1, piece[0], None


def _header(statement: dict[str, Any], tables: dict[KeyPath, int]) -> KeyPath:
    """The table that ``[a.b]`` or ``[[a.b]]``, by itself, opens."""
    path: KeyPath = ()
    here: Any = statement
    while isinstance(here, dict) and here:
        ((key, here),) = here.items()
        path = (*path, key)
        if isinstance(here, list):
            tables[path] = tables.get(path, 0) + 1
            return (*path, tables[path] - 1)
        if path in tables:  # [upstreams.x] belongs to the last of [[upstreams]]
            path = (*path, tables[path] - 1)
    return path

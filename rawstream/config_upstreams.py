"""``[[upstreams]]`` of the TOML file: each table read, checked, and its key fetched from where it is.

Rule 1: all that is wrong is told, each with its place; a key, or what should have been one, is never repeated.
Rule 2: paths are relative to the file that names them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from rawstream.config_file import KeyPath
from rawstream.config_values import read_value
from rawstream.errors import MisuseError, SettingsError
from rawstream.settings.tables import UpstreamSettings, upstream_faults
from rawstream.sources.http_client import origin_of, tls_context

_UNITS: Final = {
    "name": "text",
    "url": "text",
    "models": "names",
    "model": "text",
    "api_key": "text",
    "api_key_env": "text",
    "api_key_file": "text",
    "weight": "ratio",
    "connect_timeout": "seconds",
    "first_token_timeout": "seconds",
    "idle_timeout": "seconds",
    "ca": "text",
}
_KEYS: Final = ("api_key", "api_key_env", "api_key_file")
_SHOWN: Final = frozenset(_UNITS) - {"url", "api_key", "api_key_env"}
"""Values that may be repeated in an error. A URL may hold a password; a key may stand where its variable should."""


class Fault(NamedTuple):
    """Something wrong at a place in the file."""

    path: KeyPath
    message: str

    def __str__(self) -> str:
        """``upstreams[1].url: the message``."""
        shown = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.path).removeprefix(".")
        return f"{shown}: {self.message}"


def read_upstreams(
    value: object, environ: Mapping[str, str], folder: Path
) -> tuple[tuple[UpstreamSettings, ...], list[Fault]]:
    """The upstreams that a file's ``upstreams`` names, without those that are wrong, and what is wrong."""
    faults: list[Fault] = []
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        return (), [Fault(("upstreams",), "must be tables: write [[upstreams]] above the keys of each")]
    upstreams: list[UpstreamSettings] = []
    names: dict[str, int] = {}
    for index, table in enumerate(value):
        reader = _Table(("upstreams", index), table, environ, folder)
        upstream = reader.read()
        if upstream is not None:
            first = names.setdefault(upstream.name, index)
            if first != index:
                reader.fault("name", f"{upstream.name!r} is the name of upstreams[{first}] already")
            else:
                upstreams.append(upstream)
        faults += reader.faults
    return tuple(upstreams), faults


def url_fault(url: str) -> str | None:
    """Why this cannot be an upstream's URL; None: it can. Never repeats it: it may hold a password."""
    try:
        origin_of(urlsplit(url))
    except MisuseError as error:
        return str(error)
    except ValueError:
        return "is not a URL"
    return None


def unusable(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with ``upstream`` and ``upstream_ca``, beyond what ``settings.faults`` can see."""
    if values.get("upstream") is not None and (said := url_fault(values["upstream"])) is not None:
        yield f"upstream: {said}"
    used = values.get("upstream") or values.get("upstreams")
    if used and values.get("upstream_ca") is not None:
        try:
            tls_context(values["upstream_ca"])
        except SettingsError as error:
            yield str(error)


class _Table:
    """One table being read."""

    def __init__(self, path: KeyPath, table: dict[str, Any], environ: Mapping[str, str], folder: Path) -> None:
        self._path = path
        self._table = table
        self._environ = environ
        self._folder = folder
        self.faults: list[Fault] = []

    def fault(self, key: str, message: str) -> None:
        path = (*self._path, key) if key in self._table else self._path
        self.faults.append(Fault(path, message if key in self._table else f"{key} {message}"))

    def read(self) -> UpstreamSettings | None:
        """The upstream; None when something is wrong with it."""
        values: dict[str, Any] = {}
        for key, value in self._table.items():
            if key not in _UNITS:
                self.fault(key, f"there is no such key{did_you_mean(key, _UNITS)}")
                continue
            try:
                values[key] = _names(value) if _UNITS[key] == "names" else read_value(_UNITS[key], value)
            except ValueError as error:
                self.fault(key, f"{value!r} {error}" if key in _SHOWN else f"the value {error}")
        for key in ("name", "url"):
            if key not in self._table:
                self.fault(key, "is missing")
        self._fetch_key(values)
        for key, message in upstream_faults(values):
            if key in values:
                self.fault(key if key in self._table else self._key_given(), message)
        if "url" in values and (said := url_fault(values["url"])) is not None:
            self.fault("url", said)
        if "ca" in values:
            values["ca"] = str(self._folder / values["ca"])
            try:
                tls_context(values["ca"])
            except SettingsError as error:
                self.fault("ca", str(error).removeprefix("upstream_ca: "))
        return None if self.faults else UpstreamSettings(**values)

    def _key_given(self) -> str:
        return next((key for key in _KEYS if key in self._table), "api_key")

    def _fetch_key(self, values: dict[str, Any]) -> None:
        """Put the key itself in the place of what says where it is."""
        given = [key for key in _KEYS if key in self._table]
        if len(given) > 1:
            self.fault(given[1], f"excludes {given[0]}: there is one key")
        variable, file = values.pop("api_key_env", None), values.pop("api_key_file", None)
        if len(given) > 1:
            return
        if variable is not None:
            if not self._environ.get(variable):
                # What is no variable's name may be the key itself, put in the wrong place.
                shown = repr(variable) if variable.isupper() and variable.isidentifier() else "that name"
                self.fault("api_key_env", f"the environment has no variable of {_called(shown)}")
            else:
                values["api_key"] = self._environ[variable]
        if file is not None:
            try:
                values["api_key"] = (self._folder / file).read_text(encoding="utf-8").strip()
            except OSError as error:
                self.fault("api_key_file", f"cannot read {file}: {error.strerror}")
            except UnicodeDecodeError:
                self.fault("api_key_file", f"cannot read {file}: it is not text")


def _called(shown: str) -> str:
    return shown if shown == "that name" else f"the name {shown}"


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError('must be a list of names: ["one", "other*"]')
    return tuple(value)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean weight?``, or nothing when no known name is like it."""
    close = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""

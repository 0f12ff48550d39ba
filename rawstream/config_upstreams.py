"""``[[upstreams]]`` of the TOML file: each table read, checked, and its key fetched from where it is.

Rule 1: all that is wrong is told, each with its place; a key, or what should have been one, is never repeated.
Rule 2: paths are relative to the file that names them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from rawstream.config_tables import Fault, Names, Shape, Table, tables_of
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
_SHAPE: Final = Shape(
    "upstreams",
    _UNITS,
    ("name", "url"),
    # A URL may hold a password; a key may stand where its variable should.
    frozenset(_UNITS) - {"url", "api_key", "api_key_env"},
)


def read_upstreams(
    value: object, environ: Mapping[str, str], folder: Path
) -> tuple[tuple[UpstreamSettings, ...], list[Fault]]:
    """The upstreams that a file's ``upstreams`` names, without those that are wrong, and what is wrong."""
    tables, faults = tables_of(_SHAPE, value)
    upstreams: list[UpstreamSettings] = []
    names = Names(_SHAPE)
    for table in tables:
        upstream = _Upstream(table, environ, folder).read()
        if upstream is not None and names.take(upstream.name, table):
            upstreams.append(upstream)
        faults += table.faults
    return tuple(upstreams), faults


def url_fault(url: str) -> str | None:
    """Why this cannot be an upstream's URL; None: it can. Never repeats it: it may hold a password."""
    if not (url.isascii() and url.isprintable() and " " not in url):
        return "the URL must be ASCII without spaces: in a path others are %C3%A9, in a host's name xn--…"
    try:
        origin_of(urlsplit(url))
    except MisuseError as error:
        return str(error)
    except ValueError:
        return "is not a URL"
    return None


def unusable(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with ``upstream``, its key and its ``ca``, beyond what ``settings.faults`` can see."""
    if values.get("upstream") is not None and (said := url_fault(values["upstream"])) is not None:
        yield f"upstream: {said}"
    if (key := values.get("upstream_api_key")) is not None:
        yield from (f"upstream_api_key {said}" for at, said in upstream_faults({"api_key": key}) if at == "api_key")
    used = values.get("upstream") or values.get("upstreams")
    if used and values.get("upstream_ca") is not None:
        try:
            tls_context(values["upstream_ca"])
        except SettingsError as error:
            yield str(error)


class _Upstream:
    """One table being read as an upstream."""

    def __init__(self, table: Table, environ: Mapping[str, str], folder: Path) -> None:
        self._table = table
        self._environ = environ
        self._folder = folder

    def read(self) -> UpstreamSettings | None:
        """The upstream; None when something is wrong with it."""
        table = self._table
        values = table.values()
        self._fetch_key(values)
        for key, message in upstream_faults(values):
            if key in values:
                table.fault(key if key in table.given else self._key_given(), message)
        if "url" in values and (said := url_fault(values["url"])) is not None:
            table.fault("url", said)
        if "ca" in values:
            values["ca"] = str(self._folder / values["ca"])
            try:
                tls_context(values["ca"])
            except SettingsError as error:
                table.fault("ca", str(error).removeprefix("upstream_ca: "))
        return None if table.faults else UpstreamSettings(**values)

    def _key_given(self) -> str:
        return next((key for key in _KEYS if key in self._table.given), "api_key")

    def _fetch_key(self, values: dict[str, Any]) -> None:
        """Put the key itself in the place of what says where it is."""
        table = self._table
        given = [key for key in _KEYS if key in table.given]
        if len(given) > 1:
            table.fault(given[1], f"excludes {given[0]}: there is one key")
        variable, file = values.pop("api_key_env", None), values.pop("api_key_file", None)
        if len(given) > 1:
            return
        if variable is not None:
            if not self._environ.get(variable):
                # What is no variable's name may be the key itself, put in the wrong place.
                shown = repr(variable) if variable.isupper() and variable.isidentifier() else "that name"
                table.fault("api_key_env", f"the environment has no variable of {_called(shown)}")
            else:
                values["api_key"] = self._environ[variable]
        if file is not None:
            try:
                values["api_key"] = (self._folder / file).read_text(encoding="utf-8").strip()
            except OSError as error:
                table.fault("api_key_file", f"cannot read {file}: {error.strerror}")
            except UnicodeDecodeError:
                table.fault("api_key_file", f"cannot read {file}: it is not text")


def _called(shown: str) -> str:
    return shown if shown == "that name" else f"the name {shown}"

"""Settings that are lists, written with commas: networks, host names, origins. Pure.

Rule 1: what is no network, name or origin is a ValueError that says how it is written; nothing is guessed at.
Rule 2: an entry means exactly what stands there: no port is left out, no scheme is added.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAME: Final = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?\.?")
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class Proxies(NamedTuple):
    """Who is believed when it says for whom it asks."""

    networks: tuple[Network, ...] = ()
    unix: bool = False
    """Whoever connects to our Unix socket."""


class Origins(NamedTuple):
    """Origins of pages that may ask."""

    exact: frozenset[str] = frozenset()
    any: bool = False


class Hosts(NamedTuple):
    """Names in ``Host``, without their ports."""

    exact: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    """``.example.org``: any name that ends so."""
    any: bool = False

    def has(self, name: str) -> bool:
        return self.any or name in self.exact or name.endswith(self.suffixes)


def _entries(text: str) -> Iterator[str]:
    for entry in text.split(","):
        stripped = entry.strip()
        if not stripped:
            raise ValueError("has an empty entry: write a,b,c")
        yield stripped


def proxies(text: str) -> Proxies:
    """``127.0.0.1,10.0.0.0/8,unix``. Raises ValueError."""
    networks: list[Network] = []
    unix = False
    for entry in _entries(text):
        if entry == "unix":
            unix = True
            continue
        try:
            networks.append(ipaddress.ip_network(entry))
        except ValueError as error:
            why = f": {error}" if "host bits" in str(error) else ""
            raise ValueError(
                f"has {entry!r}, which is no address, no network (10.0.0.0/8) and not 'unix'{why}"
            ) from None
    return Proxies(tuple(networks), unix)


def origins(text: str) -> Origins:
    """``https://app.example.com,http://localhost:5173``, or ``*``. Raises ValueError."""
    exact: set[str] = set()
    for entry in _entries(text):
        if entry != "*" and not _ORIGIN.fullmatch(entry.lower()):
            raise ValueError(
                f"has {entry!r}, which is no origin: write scheme://host or scheme://host:port, without a path"
            )
        exact.add(entry.lower())
    return Origins(frozenset(exact - {"*"}), "*" in exact)


def hosts(text: str) -> Hosts:
    """``chat.example.com,*.example.org,192.0.2.7``, or ``*``. Raises ValueError."""
    exact: set[str] = set()
    suffixes: list[str] = []
    for entry in _entries(text.lower()):
        name = entry.removeprefix("*.")
        if entry == "*":
            exact.add(entry)
        elif not (_NAME.fullmatch(name) or _is_address(entry)):
            raise ValueError(f"has {entry!r}, which is no host name: write chat.example.com or *.example.com, no port")
        elif name != entry:
            suffixes.append("." + name.rstrip("."))
        else:
            exact.add(entry.removeprefix("[").removesuffix("]").rstrip("."))
    return Hosts(frozenset(exact - {"*"}), tuple(suffixes), "*" in exact)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def field_name(text: str) -> str:
    """The name of a header field, in lower case. Raises ValueError."""
    if not _FIELD_NAME.fullmatch(text):
        raise ValueError(f"is {text!r}, which is no name of a header")
    return text.lower()


LISTS: Final = {
    "trusted_proxies": proxies,
    "allowed_hosts": hosts,
    "cors_origins": origins,
    "user_header": field_name,
}
"""The settings that are written so, and what reads each."""

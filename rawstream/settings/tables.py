"""What a table of the TOML file holds, where there may be several: ``[[upstreams]]`` and ``[[users]]``.

Rule 1: a field's name is its key in the file. What makes no sense is said with the key, never with a secret's value.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpstreamSettings:
    """One of several upstreams: a table ``[[upstreams]]`` of the TOML file. None: the global setting holds."""

    name: str
    """What the log calls it: letters, digits, ``.``, ``_`` and ``-``."""
    url: str
    """Up to and with ``/v1``."""
    models: tuple[str, ...] = ("*",)
    """Names that clients ask for; ``*`` in them stands for any characters."""
    model: str | None = None
    """What the upstream is asked for instead."""
    api_key: str | None = dataclasses.field(default=None, repr=False)
    weight: float = 1.0
    """Its share of the requests that it can serve; 0: only when the others cannot."""
    connect_timeout: float | None = None
    first_token_timeout: float | None = None
    idle_timeout: float | None = None
    ca: str | None = None
    """PEM file of the authorities to trust for its https."""

    def __post_init__(self) -> None:
        for key, message in upstream_faults(dataclasses.asdict(self)):
            raise ValueError(f"upstream {self.name!r}: {key}: {message}")


_NAME_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def upstream_faults(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What makes no sense in the fields of an upstream, as (key, message). No value of a secret is in a message."""
    name = values.get("name", "")
    if not 0 < len(name) <= 64 or not _NAME_CHARACTERS.issuperset(name):
        yield "name", f"must be 1 to 64 letters, digits, '.', '_' or '-', not {name!r}"
    if not values.get("models", ("*",)) or "" in values.get("models", ()):
        yield "models", "must name at least one model, and no empty one"
    weight = values.get("weight", 1.0)
    if not 0 <= weight < float("inf"):
        yield "weight", f"must be 0 or more, not {weight!r}"
    for key in ("connect_timeout", "first_token_timeout", "idle_timeout"):
        seconds = values.get(key)
        if seconds is not None and not 0 < seconds < float("inf"):
            yield key, f"must be more than 0, not {seconds!r}"
    secret = values.get("api_key")
    if secret is not None and not (secret and all("!" <= character <= "~" for character in secret)):
        yield "api_key", "must be visible ASCII characters without spaces"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserSettings:
    """One user: a table ``[[users]]`` of the TOML file. None: no limit."""

    name: str
    """What the log and the metrics call it; ``*``: anybody whom a trusted proxy names."""
    keys: tuple[str, ...] = ()
    """Its keys, hashed: what ``rawstream key new`` prints."""
    models: tuple[str, ...] = ("*",)
    """Models that it may ask for; ``*`` in them stands for any characters."""
    max_streams: int | None = None
    """Streams at once, in one process."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None

    def __post_init__(self) -> None:
        for key, message in user_faults(dataclasses.asdict(self)):
            raise ValueError(f"user {self.name!r}: {key}: {message}")


ANYBODY: Final = "*"
"""The name of the user whose limits hold for every name that has none of its own."""
_USER_CHARACTERS: Final = _NAME_CHARACTERS | {"@", "+"}
_HEX: Final = frozenset("0123456789abcdef")
_USER_LIMITS: Final = ("max_streams", "requests_per_minute", "tokens_per_minute", "tokens_per_day")


def is_user_name(text: str) -> bool:
    """May a user be called so? What stands in logs, metrics and the ledger is no text of anybody's choice."""
    return 0 < len(text) <= 128 and _USER_CHARACTERS.issuperset(text)


def user_faults(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What makes no sense in the fields of a user, as (key, message)."""
    name = values.get("name", "")
    if name != ANYBODY and not is_user_name(name):
        yield "name", f"must be 1 to 128 letters, digits, '.', '_', '-', '@' or '+', or '*' alone, not {name!r}"
    keys = values.get("keys", ())
    if name == ANYBODY and keys:
        yield "keys", "'*' is whom a proxy names; it has no keys"
    if any(not is_hashed_key(key) for key in keys):
        yield "keys", "must be what 'rawstream key new' prints for the file: sha256:ID:HEX (never the key itself)"
    models = values.get("models", ("*",))
    if not models or "" in models:
        yield "models", "must name at least one model, and no empty one"
    for limit in _USER_LIMITS:
        value = values.get(limit)
        if value is not None and value < 1:
            yield limit, f"must be at least 1, not {value!r}"


def is_hashed_key(text: str) -> bool:
    """Is this ``sha256:ID:HEX``?"""
    kind, _, rest = text.partition(":")
    public, _, digest = rest.partition(":")
    return kind == "sha256" and bool(public) and public.isalnum() and len(digest) == 64 and _HEX.issuperset(digest)


def key_ids(keys: Iterable[str]) -> list[str]:
    """The public parts of hashed keys."""
    return [key.split(":")[1] for key in keys]


def table_faults(values: Mapping[str, Any]) -> Iterator[str]:
    """What makes no sense in several tables together, or with the settings beside them."""
    if values["upstreams"]:
        for name in ("upstream", "source"):
            if values[name] is not None:
                yield f"{name} and upstreams exclude each other: tokens come from one place"
        if values["upstream_api_key"] is not None:
            yield "upstream_api_key goes with upstream: each of upstreams has a key of its own, or none"
    for table in ("upstreams", "users"):
        for name in _twice(one.name for one in values[table]):
            yield f"{table}: two are called {name!r}"
    for public in _twice(public for user in values["users"] for public in key_ids(user.keys)):
        yield f"users: the key {public} is there twice"
    if values["user_header"] is not None and values["trusted_proxies"] is None:
        yield "user_header needs trusted_proxies: who is believed when it names a user?"
    if values["user_header"] is None and any(user.name == ANYBODY for user in values["users"]):
        yield "users: '*' is whom a proxy names, which needs user_header"


def _twice(names: Iterable[str]) -> list[str]:
    return sorted(name for name, times in Counter(names).items() if times > 1)

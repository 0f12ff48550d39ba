"""``[[users]]`` of the TOML file: each table read and checked.

Rule 1: what stands under ``keys`` is never repeated: somebody may have put the key itself there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rawstream.config_tables import Fault, Names, Shape, tables_of
from rawstream.settings.tables import UserSettings, key_ids, user_faults

_UNITS: Final = {
    "name": "text",
    "keys": "names",
    "models": "names",
    "max_streams": "count",
    "requests_per_minute": "count",
    "tokens_per_minute": "count",
    "tokens_per_day": "count",
}
_SHAPE: Final = Shape("users", _UNITS, ("name",), frozenset(_UNITS) - {"keys"})


def read_users(value: object, environ: Mapping[str, str], folder: Path) -> tuple[tuple[UserSettings, ...], list[Fault]]:
    """The users that a file's ``users`` names, without those that are wrong, and what is wrong.

    ``environ`` and ``folder`` are for tables that name variables and files, which these do not.
    """
    tables, faults = tables_of(_SHAPE, value)
    users: list[UserSettings] = []
    names, keys = Names(_SHAPE), Names(_SHAPE)
    for table in tables:
        values = table.values()
        for key, message in user_faults(values):
            if key in values:
                table.fault(key, message)
        if not table.faults:
            user = UserSettings(**values)
            names.take(user.name, table)
            found = key_ids(user.keys)
            for public in dict.fromkeys(found):
                keys.take(public, table, "keys", "the id of a key of")
                if found.count(public) > 1:
                    table.fault("keys", f"{public!r} is there twice")
        if not table.faults:
            users.append(user)
        faults += table.faults
    return tuple(users), faults

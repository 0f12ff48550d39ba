"""Limits that each process counts for itself, divided among several.

Rule 1: rounded up, and never to nothing: who may have one stream can have it on whichever worker it lands.
Rule 2: what is shared through Redis is not divided.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from rawstream.settings import Settings, UserSettings

_COUNTED_HERE: Final = ("max_streams",)
"""What is counted in the process, with Redis or without."""
_IN_THE_LEDGER: Final = ("requests_per_minute", "tokens_per_minute", "tokens_per_day")


def divided(settings: Settings, workers: int) -> tuple[Settings, str | None]:
    """The settings of one of ``workers`` processes, and what there is to say of it; None: nothing."""
    keys = _COUNTED_HERE if settings.redis is not None else (*_COUNTED_HERE, *_IN_THE_LEDGER)
    named = [key for key in keys if any(getattr(user, key) is not None for user in settings.users)]
    if workers == 1 or not named:
        return settings, None
    users = tuple(_part(user, workers, named) for user in settings.users)
    hint = "" if settings.redis is not None else "; with --redis token and request budgets are shared"
    said = f"each of {workers} workers has its part of every user's {', '.join(named)}, rounded up{hint}"
    return dataclasses.replace(settings, users=users), said


def _part(user: UserSettings, workers: int, keys: list[str]) -> UserSettings:
    limits = {key: getattr(user, key) for key in keys}
    return dataclasses.replace(
        user, **{key: -(-limit // workers) for key, limit in limits.items() if limit is not None}
    )

"""What a single setting may be."""

from __future__ import annotations

from typing import Final

from rawstream.settings.lists import LISTS

_CHOICES: Final = {
    "loop": ("auto", "uvloop", "asyncio"),
    "half_close": ("leave", "continue"),
    "log_format": ("text", "json"),
    "log_level": ("debug", "info", "warning", "error"),
}


def fault(name: str, value: object, unit: str, *, may_be_zero: bool) -> str | None:
    """What makes no sense about a value of the setting ``name``, which is measured in ``unit``; None: it is sound."""
    if name in _CHOICES and value not in _CHOICES[name]:
        return f"must be one of {', '.join(_CHOICES[name])}, not {value!r}"
    if name in LISTS and isinstance(value, str):
        try:
            LISTS[name](value)
        except ValueError as error:
            return str(error)
    if unit in ("bytes", "seconds", "count", "ratio") and isinstance(value, int | float):
        if value != value or value in (float("inf"), float("-inf")):
            return f"must be a finite number, not {value!r}"
        if value < 0 or (value == 0 and not may_be_zero):
            return f"must be more than 0, not {value!r}"
    return None

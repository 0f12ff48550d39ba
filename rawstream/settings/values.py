"""What a single setting may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rawstream.settings.lists import LISTS, is_address

_CHOICES: Final = {
    "loop": ("auto", "uvloop", "asyncio"),
    "half_close": ("leave", "continue"),
    "log_format": ("text", "json"),
    "log_level": ("debug", "info", "warning", "error"),
}

MAY_BE_ZERO: Final = {
    "port", "notsent_lowat", "sndbuf", "heartbeat", "write_low", "upstream_rcvbuf", "upstream_pool",
    "drain_timeout", "surplus", "lab_overrun", "resume_grace", "upstream_retries", "upstream_retry_wait",
    "upstream_retry_budget", "upstream_breaker_failures",
}  # fmt: skip


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


def combined_faults(values: Mapping[str, Any]) -> Iterator[str]:
    """What makes no sense together, among values that are sound each by itself."""
    if values["write_low"] > values["write_high"]:
        yield f"write_low ({values['write_low']}) must not exceed write_high ({values['write_high']})"
    if values["port"] > 65535:
        yield f"port must be at most 65535, not {values['port']}"
    if values["admin"] is not None and not is_address(values["admin"]):
        yield f"admin must be HOST:PORT, as 127.0.0.1:9100 or [::1]:9100, not {values['admin']!r}"
    if values["upstream"] is not None and values["source"] is not None:
        yield "upstream and source exclude each other: tokens come from one place"

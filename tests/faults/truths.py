"""Every fault that ``rawstream chaos`` knows, and what must come of it through the gateway: the README's table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rawstream.lab.chaos_models import MODELS
from tests.faults.through import ALL, Truth

_FAILED: Final = "upstream_failed"
_IDLE: Final = "upstream_idle"


def _refused(row: int) -> Truth:
    return Truth(row, status=502, code=_FAILED)


def _late(row: int, ask: str = "") -> Truth:
    return Truth(row, status=504, code=_IDLE, hasty=True, ask=ask)


def _cut(row: int) -> Truth:
    return Truth(row, code=_FAILED, tokens=5)


def _stalled(ask: str = "") -> Truth:
    return Truth(43, code=_IDLE, tokens=5, hasty=True, ask=ask)


def _whole(row: int, *, tokens: int = 5, kept: bool = True) -> Truth:
    return Truth(row, tokens=tokens, kept=kept)


TRUTHS: Final[Mapping[str, Truth]] = {
    "reset-before-head": _refused(37),
    "close-before-head": _refused(37),
    "garbage": _refused(37),
    "http09": _refused(37),
    "huge-head": _refused(37),
    "many-fields": _refused(37),
    "bad-fields": _refused(37),
    "silent": _late(38),
    "drip-head": _late(38, "interval=0.05"),
    "endless-1xx": _late(38),
    "status": Truth(39, status=500, code=_FAILED, relayed="chaos_500", kept=True),
    "redirect": _refused(40),
    "html": _refused(41),
    "json": _whole(41, tokens=20),
    "not-json": Truth(41, status=502, code=_FAILED, kept=True),
    "gzip": _refused(41),
    "no-content": _refused(41),
    "length-and-te": _refused(41),
    "die-after-head": _refused(42),
    "die-between-events": _cut(42),
    "die-mid-event": _cut(42),
    "die-mid-chunk": _cut(42),
    "reset-mid-stream": _cut(42),
    "bad-chunk-size": _cut(42),
    "short-length": _cut(42),
    "error-in-stream": _cut(42),
    "error-first": _refused(42),
    "stall": _stalled(),
    "stall-mid-event": _stalled(),
    "drip": _stalled("interval=0.05"),
    "pings-only": _stalled("interval=0.05"),
    "huge-event": _cut(44),
    "endless-line": _cut(44),
    "endless-multiline": _cut(44),
    "flood": Truth(45, tokens=ALL, kept=True, ask="megabytes=1"),
    "cr-only": _whole(46),
    "split-crlf": _whole(46),
    "bom": _whole(46),
    "invalid-utf8": _whole(46),
    "nul": _whole(46),
    "junk-data": _whole(46),
    "no-done": _whole(47),
    "after-done": _whole(47),
    "close-delimited": _whole(47, kept=False),
    "close-delimited-cut": _cut(47),
    "trailing-bytes": _whole(48, kept=False),
    "close-pooled": _whole(49),
}
"""All but ``deaf``, which is about a client that leaves (row 50)."""

FAULTS: Final = tuple(name for name, model in MODELS.items() if model.kind != "healthy")

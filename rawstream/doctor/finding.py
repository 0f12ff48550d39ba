"""What an examination finds: the nouns of this room.

Rule 1: a finding says what was seen, in figures; then why that matters; then what to do.
Rule 2: what could not be measured is ``unknown`` and says why. It is never taken for well.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from rawstream.errors import RawstreamError

Verdict: TypeAlias = Literal["ok", "warn", "bad", "unknown"]


class Finding(msgspec.Struct, frozen=True, gc=False):
    """One answer to one question."""

    name: str
    """Short, stable: what was looked at."""
    verdict: Verdict
    seen: str
    """What was measured."""
    why: str = ""
    """Why it matters; for ``unknown``: why it cannot be told."""
    remedy: str = ""
    """What to change."""


class Report(msgspec.Struct, frozen=True):
    """Everything that one examination found."""

    examined: str
    """The URL."""
    requests: int
    """Generations that were asked for."""
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """1 when something is bad, else 0."""
        return int(any(finding.verdict == "bad" for finding in self.findings))

    def find(self, name: str) -> Finding:
        """The finding of that name. Raises KeyError."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)


class CannotExamine(RawstreamError):
    """Nothing can be found out: the URL does not answer, or refuses the request."""

    code = "cannot_examine"


def plural(count: int, noun: str) -> str:
    """``plural(1, "token")`` is ``"1 token"``, ``plural(2_000, "token")`` is ``"2,000 tokens"``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(count: int) -> str:
    """Bytes, for people."""
    if count < 10_000:
        return f"{count:,} bytes"
    return f"{count / 1000:,.0f} kB" if count < 10_000_000 else f"{count / 1e6:,.1f} MB"


def span(seconds: float) -> str:
    """Seconds, for people."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def members(value: Any) -> dict[str, Any]:
    """``value`` where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}

"""W3C Trace Context: the two header fields by which a request is followed through several systems.

Rule 1: what is passed on was understood. A field that is not as the specification has it is dropped, never repaired;
        what a client writes there cannot become anything else in a request of ours.
Rule 2: without a valid ``traceparent`` there is no ``tracestate``.

https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re
from typing import Final

_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_KEY: Final = r"[a-z0-9][a-z0-9_\-*/@]{0,255}"
# Printable ASCII but ',' and '='; no space at the end.
_VALUE: Final = r"[ !-+\--<>-~]{0,255}[!-+\--<>-~]"
_MEMBER: Final = re.compile(f"{_KEY}={_VALUE}")
_LONGEST: Final = 512
"""Characters of either field: the least that everybody must pass on (section 3.3.1.5)."""
_MOST_MEMBERS: Final = 32


def trace_fields(parent: str | None, state: str | None) -> tuple[tuple[str, str], ...]:
    """The fields to pass on of a request that came with these (repeated ones joined): none, one, or both."""
    parent = None if parent is None else traceparent(parent)
    if parent is None:
        return ()
    state = None if state is None else tracestate(state)
    return (("traceparent", parent),) if state is None else (("traceparent", parent), ("tracestate", state))


def traceparent(value: str) -> str | None:
    """A valid ``traceparent``, in version 00; None where it is not one, or there were several (section 3.2)."""
    found = _PARENT.fullmatch(value) if len(value) <= _LONGEST else None
    if found is None:
        return None
    version, trace, parent, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not trace.strip("0") or not parent.strip("0"):
        return None
    if version != "00":
        # A later version's fields are read as ours, and of its flags only the one that we know.
        flags = f"{int(flags, 16) & 1:02x}"
    return f"00-{trace}-{parent}-{flags}"


def tracestate(value: str) -> str | None:
    """A valid ``tracestate``, without its optional white space; None where it is empty or not one (section 3.3)."""
    members = [member for part in value.split(",") if (member := part.strip(" \t"))]
    joined = ",".join(members)
    keys = {member.partition("=")[0] for member in members}
    if not 0 < len(keys) == len(members) <= _MOST_MEMBERS or len(joined) > _LONGEST:
        return None
    return joined if all(map(_MEMBER.fullmatch, members)) else None

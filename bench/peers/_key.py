"""A configuration with users, for rawstream with everything on; and the key that the load generator sends."""

from __future__ import annotations

import hashlib
from typing import Final

KEY: Final = f"rs-bench-{'b' * 43}"
"""Of the form that ``rawstream key new`` makes, and of its length; worth nothing anywhere else."""

OTHERS: Final = 50
"""Users beside the one that asks."""

_USER: Final = """
[[users]]
name = "{name}"
keys = ["sha256:{id}:{digest}"]
models = ["*"]
max_streams = 100000
requests_per_minute = 10000000
tokens_per_minute = 1000000000
tokens_per_day = 100000000000
"""


def everything() -> str:
    """The TOML file: each user with a key, and with all limits set, so high that none is reached."""
    keys = {"bench": KEY, **{f"user{n:02}": f"rs-user{n:02}-{'u' * 43}" for n in range(OTHERS)}}
    return "".join(
        _USER.format(name=name, id=name, digest=hashlib.sha256(key.encode()).hexdigest()) for name, key in keys.items()
    )

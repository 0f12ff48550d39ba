"""Users: who asks, and what they may use.

Rule 1: a key is 256 random bits, shown once. What the configuration holds is its SHA-256: of such a key that is
        enough, and nobody who reads the file can use it.
Rule 2: a key is looked up by its public part and compared in constant time; a key that is not known costs the same.
Rule 3: what a user has running is counted here, entered once and left once.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from typing import Final

from rawstream.errors import TooManyStreams
from rawstream.limits.budget import DAY, MINUTE, Cap
from rawstream.settings.tables import ANYBODY, UserSettings, pattern_of

_MOST_UNNAMED: Final = 10_000
"""Users by a proxy's header that are remembered while nothing of theirs runs."""


def new_key() -> tuple[str, str]:
    """A fresh key (``rs-<id>-<secret>``), and what the configuration is to hold of it."""
    key = f"rs-{secrets.token_hex(4)}-{secrets.token_urlsafe(32)}"
    return key, hashed(key)


def hashed(key: str) -> str:
    """``sha256:<id>:<hex>``. Raises ValueError for what is no key of ours."""
    return f"sha256:{key_id(key)}:{hashlib.sha256(key.encode()).hexdigest()}"


def key_id(key: str) -> str:
    """The public part of a key. Raises ValueError for what is no key of ours."""
    prefix, _, rest = key.partition("-")
    found, _, secret = rest.partition("-")
    if prefix != "rs" or not found or not secret:
        raise ValueError("is no key: 'rawstream key new' makes one")
    return found


class User:
    """One user: its limits, and what it has running in this process."""

    __slots__ = ("_models", "caps", "max_streams", "name", "request_caps", "streams")

    def __init__(self, name: str, settings: UserSettings) -> None:
        self.name = name
        self._models = _any_of(settings.models)
        self.max_streams = settings.max_streams
        self.caps = _caps((settings.tokens_per_minute, MINUTE), (settings.tokens_per_day, DAY))
        """Token budgets; none: as many as there are."""
        self.request_caps = (
            () if settings.requests_per_minute is None else (Cap(settings.requests_per_minute, MINUTE, "requests"),)
        )
        self.streams = 0
        """Streams, and answers that are not streamed, that run now."""

    def may_use(self, model: str) -> bool:
        return self._models is None or self._models.fullmatch(model) is not None

    def enter(self) -> None:
        """One stream more. Raises TooManyStreams (429); then nothing was entered."""
        if self.max_streams is not None and self.streams >= self.max_streams:
            raise TooManyStreams(
                f"{self.max_streams} streams of yours are open, which is the most you may have; end one, or wait",
                status=429,
            )
        self.streams += 1

    def leave(self) -> None:
        """One stream less."""
        if self.streams <= 0:
            raise RuntimeError(f"a stream of {self.name} left that never entered")
        self.streams -= 1


def _any_of(models: tuple[str, ...]) -> re.Pattern[str] | None:
    """What a model's name must match; None: any name does."""
    return None if "*" in models else re.compile("|".join(map(pattern_of, models)), re.DOTALL)


def _caps(*given: tuple[int | None, float]) -> tuple[Cap, ...]:
    return tuple(Cap(tokens, seconds) for tokens, seconds in given if tokens is not None)


class Users:
    """All users of one process."""

    def __init__(self, settings: Iterable[UserSettings]) -> None:
        self._by_name: dict[str, User] = {}
        self._by_key: dict[str, tuple[bytes, User]] = {}
        self._anybody: UserSettings | None = None
        self._unnamed: dict[str, User] = {}
        for one in settings:
            if one.name == ANYBODY:
                self._anybody = one
                continue
            user = self._by_name[one.name] = User(one.name, one)
            for key in one.keys:
                _, public, digest = key.split(":")
                self._by_key[public] = bytes.fromhex(digest), user

    def __len__(self) -> int:
        return len(self._by_name) + (self._anybody is not None)

    def by_key(self, key: str) -> User | None:
        """Whose key this is; None: nobody's."""
        try:
            known = self._by_key.get(key_id(key))
        except ValueError:
            known = None
        digest, user = known if known is not None else (bytes(32), None)
        same = hmac.compare_digest(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest(), digest)
        return user if same else None

    def by_name(self, name: str) -> User | None:
        """The user that a trusted proxy names; None: not known, and there is no entry for anybody."""
        user = self._by_name.get(name) or self._unnamed.get(name)
        if user is None and self._anybody is not None:
            if len(self._unnamed) >= _MOST_UNNAMED:
                self._unnamed = {name: user for name, user in self._unnamed.items() if user.streams}
            user = self._unnamed[name] = User(name, self._anybody)
        return user

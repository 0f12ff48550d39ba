"""The way to Redis: its address, its deadlines, and what happens while it is gone.

Rule 1: nothing waits for Redis longer than ``WAIT`` seconds, and while it is known to be gone nothing waits at all:
        after a failure it is left alone for ``REST`` seconds.
Rule 2: Redis is an extra (``pip install rawstream[redis]``): the package is imported when a URL is given.
Rule 3: a command that was begun is brought to its end though its stream leaves meanwhile, so that what it did can be
        undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from rawstream.errors import RawstreamError, SettingsError

log = logging.getLogger("rawstream")

WAIT: Final = 1.0
"""Seconds for one command, connecting included."""
CONNECTIONS: Final = 8
"""Most connections, however many streams ask at once: a command takes Redis some 50 µs, and the rest wait here."""
REST: Final = 1.0
"""Seconds until Redis is tried again after a failure."""


class RedisGone(RawstreamError):
    """Redis does not answer. ``detail`` says what it or the system said."""

    status = 503
    code = "redis_gone"


class RedisLink:
    """Scripts on one Redis, for one event loop."""

    def __init__(self, url: str, clock: Callable[[], float] = monotonic) -> None:
        """``url``: ``redis://[user:password@]host:port/db``, ``rediss://`` for TLS, ``unix://path``.

        Connects at the first command. Raises SettingsError when the URL or the package is of no use.
        """
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError:
            raise SettingsError("redis: the package is not installed (pip install 'rawstream[redis]')") from None
        try:
            self._redis = Redis.from_url(
                url,
                socket_timeout=WAIT,
                socket_connect_timeout=WAIT,
                retry=Retry(NoBackoff(), 0),
                client_name="rawstream",
            )
        except ValueError:
            # Not what the library says: where a password has a "/" in it, it takes a part of that for the port.
            raise SettingsError(
                "redis: the URL makes no sense: write redis://[user:password@]host:port/db, with %2F, %3A, %40 for "
                "'/', ':', '@' in the password"
            ) from None
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._clock = clock
        self._again_at = 0.0
        self.failures = 0
        """Commands that failed, or were not tried because Redis was known to be gone."""

    @property
    def gone(self) -> bool:
        """Is it known to be gone, and left alone for now?"""
        return self._clock() < self._again_at

    def script(self, source: str) -> Callable[[list[str], list[str | int]], asyncio.Task[Any]]:
        """A Lua script to run with keys and arguments. The task fails with RedisGone.

        It runs whether or not anybody waits for it: await it through ``asyncio.shield``.
        """
        registered = self._redis.register_script(source)

        def run(keys: list[str], arguments: list[str | int]) -> asyncio.Task[Any]:
            return asyncio.ensure_future(self._run(lambda: registered(keys=keys, args=arguments)))

        return run

    async def _run(self, command: Callable[[], Any]) -> Any:
        if not self.gone:
            # A crowd of ours is no trouble of Redis': to wait for a turn has no deadline but those before it.
            async with self._turns:
                if not self.gone:
                    return await self._ask(command)
        self.failures += 1
        raise RedisGone("Redis does not answer")

    async def _ask(self, command: Callable[[], Any]) -> Any:
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(2 * WAIT):
                answer = await command()
        except (RedisError, OSError, TimeoutError) as error:
            self.failures += 1
            if not self._again_at:
                log.error("Redis does not answer: %r; going on without it, and trying again", error)
            self._again_at = self._clock() + REST
            raise RedisGone("Redis does not answer", detail=repr(error)) from None
        if self._again_at:
            self._again_at = 0.0
            log.warning("Redis answers again")
        return answer

    async def aclose(self) -> None:
        """Close the connections."""
        from redis.exceptions import RedisError

        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(WAIT):
                await self._redis.aclose()

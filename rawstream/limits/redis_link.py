"""The way to Redis: its address, its deadlines, and what happens while it is gone.

Rule 1: nothing waits for Redis longer than ``WAIT`` seconds, and while it is known to be gone nothing waits at all:
        after a failure it is left alone for ``REST`` seconds.
Rule 2: Redis is an extra (``pip install rawstream[redis]``): the package is imported when a URL is given.
Rule 3: at most ``MOST_AT_ONCE`` commands are under way: a thousand streams that ask at once do not open a thousand
        connections. What waits has a connection of its own (``RedisReader``).
Rule 4: a command that was begun is brought to its end though its stream leaves meanwhile, so that what it did can be
        undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

from rawstream.errors import RawstreamError, SettingsError

log = logging.getLogger("rawstream")

WAIT: Final = 1.0
"""Seconds for one command, connecting included."""
REST: Final = 1.0
"""Seconds until Redis is tried again after a failure."""
MOST_AT_ONCE: Final = 8
"""Commands, and so connections, however many streams ask: a command takes Redis some 50 µs, and the rest wait here."""
Entry = tuple[bytes, dict[bytes, bytes]]
"""Of a stream in Redis: its id, and its fields."""


class RedisGone(RawstreamError):
    """Redis does not answer. ``detail`` says what it or the system said."""

    status = 503
    code = "redis_gone"


class RedisLink:
    """Scripts on one Redis, for one event loop."""

    def __init__(self, url: str, clock: Callable[[], float] = monotonic, *, says: int = logging.ERROR) -> None:
        """``url``: ``redis://[user:password@]host:port/db``, ``rediss://`` for TLS, ``unix://path``.

        ``says``: the level at which the log is told that Redis is gone. Connects at the first command. Raises
        SettingsError when the URL or the package is of no use.
        """
        self._redis = _client(url, WAIT, "rawstream")
        self._url = url
        self._clock = clock
        self._says = says
        self._again_at = 0.0
        self._answered_at = 0.0
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)
        self.failures = 0
        """Commands that failed, or were not tried because Redis was known to be gone."""

    @property
    def gone(self) -> bool:
        """Is it known to be gone, and left alone for now?"""
        return self._clock() < self._again_at

    def script(self, source: str) -> Callable[[list[str], Sequence[str | int | bytes]], asyncio.Task[Any]]:
        """A Lua script to run with keys and arguments. The task fails with RedisGone.

        It runs whether or not anybody waits for it: await it through ``asyncio.shield``.
        """
        registered = self._redis.register_script(source)

        def run(keys: list[str], arguments: Sequence[str | int | bytes]) -> asyncio.Task[Any]:
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

        began = self._clock()
        try:
            async with asyncio.timeout(2 * WAIT):
                answer = await command()
        except (RedisError, OSError, TimeoutError) as error:
            self.failures += 1
            if self._answered_at > began:
                # It answers others: this machine has too much to do.
                raise RedisGone("Redis did not answer in time", detail=repr(error)) from None
            if not self._again_at:
                log.log(self._says, "Redis does not answer: %r; going on without it, and trying again", error)
            self._again_at = self._clock() + REST
            raise RedisGone("Redis does not answer", detail=repr(error)) from None
        if self._again_at:
            self._again_at = 0.0
            log.log(min(self._says, logging.WARNING), "Redis answers again")
        self._answered_at = self._clock()
        return answer

    def another(self) -> RedisLink:
        """Connections of their own to the same Redis, for what must not wait its turn behind others' commands."""
        return RedisLink(self._url, self._clock, says=logging.DEBUG)

    def reader(self, block: float) -> RedisReader:
        """A connection of its own, for what waits up to ``block`` seconds."""
        return RedisReader(_client(self._url, block + WAIT, "rawstream-reader"), block)

    async def aclose(self) -> None:
        """Close the connections."""
        await _close(self._redis)


class RedisReader:
    """Reads many streams at once, and waits for news of any of them."""

    def __init__(self, redis: Any, block: float) -> None:
        self._redis = redis
        self._block = round(block * 1000)

    async def read(self, after: dict[str, str], most: int) -> list[tuple[str, list[Entry]]]:
        """What came after the given id of each stream, ``most`` entries of each; [] when nothing came in time.

        Raises RedisGone. When it is cancelled the connection is closed, and made anew with the next call.
        """
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(self._block / 1000 + 2 * WAIT):
                answer = await self._redis.xread(after, count=most, block=self._block)
        except (RedisError, OSError, TimeoutError) as error:
            raise RedisGone("Redis does not answer", detail=repr(error)) from None
        return [(name.decode(), entries) for name, entries in answer or ()]

    async def aclose(self) -> None:
        """Close the connection."""
        await _close(self._redis)


def _client(url: str, timeout: float, name: str) -> Any:
    """A client whose answers may take ``timeout`` seconds each. Raises SettingsError."""
    try:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise SettingsError("redis: the package is not installed (pip install 'rawstream[redis]')") from None
    try:
        return Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=WAIT,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            client_name=name,
        )
    except ValueError:
        # Not what the library says: where a password has a "/" in it, it takes a part of that for the port.
        raise SettingsError(
            "redis: the URL makes no sense: write redis://[user:password@]host:port/db, with %2F, %3A, %40 for "
            "'/', ':', '@' in the password"
        ) from None


async def _close(redis: Any) -> None:
    from redis.exceptions import RedisError

    with contextlib.suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(WAIT):
            await redis.aclose()

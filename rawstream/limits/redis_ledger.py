"""The ledger of token budgets in Redis: one for all processes, and there after a restart.

Rule 1: each sum is one script, which Redis runs alone: two processes never take the same token.
Rule 2: a window is a key that expires. Its ``window`` field is a random name, so that a refund which comes late does
        not go to the window after it.
Rule 3: while Redis is gone each process counts alone, from nothing: users are not turned away for our trouble.
        What was reserved from the one ledger is never settled in the other.

A process that is killed takes its leases with it: their tokens are missing until the window ends, at most one lease
for each stream that ran.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Final

from rawstream.limits.budget import Cap, MemoryLedger, Reservation
from rawstream.limits.redis_link import RedisGone, RedisLink

_RESERVE: Final = """
local wanted = tonumber(ARGV[1])
local tokens = wanted
for i = 1, #KEYS do
  local left = tonumber(ARGV[2 * i + 1]) - tonumber(redis.call('HGET', KEYS[i], 'used') or '0')
  tokens = math.min(tokens, left, math.max(1, math.floor(left / 8)))
  if left <= 0 then
    return {0, i, redis.call('PTTL', KEYS[i])}
  end
end
local answer = {tokens}
for i = 1, #KEYS do
  if redis.call('HSETNX', KEYS[i], 'window', ARGV[2]) == 1 then
    redis.call('PEXPIRE', KEYS[i], ARGV[2 * i + 2])
  end
  redis.call('HINCRBY', KEYS[i], 'used', tokens)
  answer[i + 1] = redis.call('HGET', KEYS[i], 'window')
end
return answer
"""
_SETTLE: Final = """
for i = 1, #KEYS do
  if redis.call('HGET', KEYS[i], 'window') == ARGV[i + 1] then
    redis.call('HINCRBY', KEYS[i], 'used', ARGV[1])
  end
end
"""
_USED: Final = """
local answer = {}
for i = 1, #KEYS do
  answer[i] = tonumber(redis.call('HGET', KEYS[i], 'used') or '0')
end
return answer
"""


def _keys(user: str, caps: tuple[Cap, ...]) -> list[str]:
    # The braces keep a user's keys on one node of a cluster.
    return [f"rawstream:budget:{{{user}}}:{cap.seconds:.0f}" for cap in caps]


class RedisLedger:
    """Implements ``limits.budget.Ledger``."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._reserve = link.script(_RESERVE)
        self._settle = link.script(_SETTLE)
        self._used = link.script(_USED)
        self._alone = MemoryLedger()
        """For the time that Redis is gone."""
        self._refunds: set[asyncio.Future[None]] = set()

    async def reserve(self, user: str, caps: tuple[Cap, ...], wanted: int) -> Reservation:
        arguments: list[str | int] = [wanted, secrets.token_hex(8)]
        for cap in caps:
            arguments += [cap.tokens, round(cap.seconds * 1000)]
        asking = self._reserve(_keys(user, caps), arguments)
        try:
            tokens, *rest = await asyncio.shield(asking)
        except RedisGone:
            return await self._alone.reserve(user, caps, wanted)
        except asyncio.CancelledError:
            asking.add_done_callback(lambda done: self._give_back(user, caps, done))
            raise
        if tokens <= 0:
            at, left = rest
            raise caps[at - 1].spent(max(0, left) / 1000)
        return Reservation(tokens, tuple(window.decode() for window in rest))

    def _give_back(self, user: str, caps: tuple[Cap, ...], done: asyncio.Task[list[bytes]]) -> None:
        """The stream left while its lease was asked for."""
        if done.cancelled() or done.exception() is not None:
            return
        tokens, *rest = done.result()
        if int(tokens) > 0:
            windows = tuple(window.decode() for window in rest)
            refund = asyncio.ensure_future(self.settle(user, caps, Reservation(int(tokens), windows), 0))
            self._refunds.add(refund)
            refund.add_done_callback(self._refunds.discard)

    async def settle(self, user: str, caps: tuple[Cap, ...], reservation: Reservation, used: int) -> None:
        if not self.settle_nowait(user, caps, reservation, used):
            windows = [window for window in reservation.windows if isinstance(window, str)]
            # Gone meanwhile: the tokens stay reserved until their window ends.
            with contextlib.suppress(RedisGone):
                await asyncio.shield(self._settle(_keys(user, caps), [used - reservation.tokens, *windows]))

    def settle_nowait(self, user: str, caps: tuple[Cap, ...], reservation: Reservation, used: int) -> bool:
        if not all(isinstance(window, str) for window in reservation.windows):
            return self._alone.settle_nowait(user, caps, reservation, used)
        return used == reservation.tokens

    async def used(self, user: str, caps: tuple[Cap, ...]) -> list[int]:
        try:
            answer: list[int] = await asyncio.shield(self._used(_keys(user, caps), []))
        except RedisGone:
            return await self._alone.used(user, caps)
        return answer

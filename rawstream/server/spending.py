"""What users spend: a tab for each answer, opened before anything is asked for and settled when all is over.

Rule 1: a user is looked at in this order: may it use the model (403), may it have one more answer at a time (429), is
        there a token left (429). The source is asked after that, and the client is told 200 after that.
Rule 2: every tab that was opened is settled, whatever ended its answer; what is settled while the server ends is
        waited for (``settled``), in bounded time.
Rule 3: the upstream's own count is what counts where it told it for a whole answer. Where it was cut short it is
        what passed here, or what the upstream had counted by then, whichever is more.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast

from rawstream.errors import LimitReached, ModelNotAllowed
from rawstream.flow.allowance import AllowedEvents, AllowedTokens
from rawstream.flow.meter import Meter
from rawstream.limits.budget import BLOCK, Lease, Ledger
from rawstream.limits.users import User
from rawstream.model import TokenStream, Usage

_SETTLING: Final = 3.0
"""Seconds that the server's end waits for what is being settled: longer than one command to Redis may take."""
_LONGEST_NAME: Final = 100
"""Characters of a model's name that an error repeats."""


class UpstreamTokens(Protocol):
    """An upstream's token stream: it knows what the upstream counted."""

    @property
    def usage(self) -> Usage | None: ...


class Tab:
    """One answer's: who pays, what was set aside, what was used."""

    __slots__ = ("_allowed", "_upstream", "lease", "used", "user")

    def __init__(self, user: User, lease: Lease | None) -> None:
        self.user = user
        self.lease = lease
        """None: the user has no budget."""
        self._upstream: UpstreamTokens | None = None
        """Where its tokens come from, if that is an upstream."""
        self._allowed: AllowedTokens | None = None
        """Its tokens, where a budget holds them."""
        self.used = 0
        """Tokens, to be settled."""

    def watch(self, tokens: TokenStream, meter: Meter) -> TokenStream:
        """``tokens`` of this answer's source, held to what is set aside. ``meter`` counts them."""
        kind = AllowedTokens
        if hasattr(tokens, "usage"):
            self._upstream, kind = cast(UpstreamTokens, tokens), AllowedEvents
        if self.lease is not None:
            tokens = self._allowed = kind(tokens, self.lease, meter)
        return tokens

    def count(self, passed: int, *, whole: bool) -> None:
        """The answer is over, and ``passed`` tokens of text came by. ``whole``: its source came to its end."""
        if self._allowed is not None:
            passed = self._allowed.used
        usage = None if self._upstream is None else self._upstream.usage
        told = 0 if usage is None else usage.completion_tokens
        # Some servers say 0 in each event: that is no count.
        self.used = told if whole and told > 0 else max(told, passed)
        self._allowed = self._upstream = None  # who keeps the tab does not keep the source

    async def lease_for(self, wanted: int) -> LimitReached | None:
        """Set aside ``wanted`` tokens in all, or what there is; then why there is no more."""
        lease = self.lease
        try:
            while lease is not None and lease.granted < wanted:
                await lease.more(max(BLOCK, wanted - lease.granted))
        except LimitReached as spent:
            return spent
        return None


class Spending:
    """The tabs of one process."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._settling: set[asyncio.Future[None]] = set()

    async def open(self, user: User, model: str) -> Tab:
        """One more answer for ``user``. Raises ModelNotAllowed, TooManyStreams, RateLimited or BudgetSpent.

        Cancel-safe: then nothing was opened.
        """
        if not user.may_use(model):
            raise ModelNotAllowed(f"you may not use the model {model[:_LONGEST_NAME]!r}; ask for another one by name")
        user.enter()
        if not user.caps:
            return Tab(user, None)
        lease = Lease(self.ledger, user.name, user.caps)
        try:
            await lease.more()
        except BaseException:
            user.leave()
            raise
        return Tab(user, lease)

    async def close(self, tab: Tab) -> None:
        """Settle. Cancelling it is safe: it is settled all the same."""
        tab.user.leave()
        if tab.lease is None or tab.lease.close_nowait(tab.used):
            return
        settling = asyncio.ensure_future(tab.lease.close(tab.used))
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)
        await asyncio.shield(settling)

    async def settled(self) -> None:
        """Wait until nothing is being settled any more, for a few seconds at most."""
        if self._settling:
            await asyncio.wait(self._settling, timeout=_SETTLING)

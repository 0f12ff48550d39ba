"""What becomes of an answer that nobody reads any more: ``on_disconnect``, and what it goes with.

Rule 1: a request says it (``cancel``, ``grace:SECONDS``, ``finish``), else its endpoint. It is for this server: no
        source and no upstream sees it.
Rule 2: what makes no sense together is refused with a sentence, not resolved in silence.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import parse_qs

from rawstream.errors import BadRequest
from rawstream.model import Request
from rawstream.server.exchange import Exchange

MOST_GRACE: Final = 3600.0
"""Seconds."""
_GRACE: Final = re.compile(r"grace:([0-9]{1,6}(?:\.[0-9]{1,3})?)")
_FIELD: Final = "on_disconnect"
_KEY: Final = "idempotency-key"


class OnDisconnect(NamedTuple):
    """What becomes of a generation that nobody reads any more."""

    kind: str
    """``cancel``, ``grace`` or ``finish``."""
    seconds: float = 0.0
    """Of grace."""


CANCEL: Final = OnDisconnect("cancel")
GRACE: Final = OnDisconnect("grace", 30.0)
"""Of a request with an ``Idempotency-Key`` that says nothing else: who may ask again is expected back."""


def policy_of(text: str) -> OnDisconnect:
    """``cancel``, ``grace:SECONDS`` or ``finish``. Raises BadRequest."""
    if text == "cancel":
        return CANCEL
    if text == "finish":
        return OnDisconnect("finish")
    found = _GRACE.fullmatch(text)
    if found is None or float(found[1]) > MOST_GRACE:
        raise BadRequest(f"on_disconnect must be cancel, grace:SECONDS (at most {MOST_GRACE:g}) or finish")
    seconds = float(found[1])
    return OnDisconnect("grace", seconds) if seconds else CANCEL


def refuse_resuming(exchange: Exchange, request: Request, why: str) -> None:
    """Raise BadRequest when a request asks for what this answer cannot do."""
    if _FIELD in request.extra:
        raise BadRequest(f"on_disconnect: {why}")
    if exchange.head.header(_KEY) is not None:
        raise BadRequest(f"Idempotency-Key: {why}")


class Asked:
    """What a request says about being resumed."""

    __slots__ = ("chat", "key", "policy")

    def __init__(self, policy: OnDisconnect, key: str | None, chat: str | None = None) -> None:
        self.policy = policy
        self.key = key
        self.chat = chat

    @classmethod
    def of(cls, exchange: Exchange, request: Request, default: OnDisconnect, chat: str | None = None) -> Asked:
        """Takes ``on_disconnect`` out of the request. Raises BadRequest.

        A demand that is exact to the token (``?credit=N``) is one client's: such an answer is its connection's.
        """
        query = exchange.head.query
        if "credit" in query and "credit" in parse_qs(query, keep_blank_values=True):
            refuse_resuming(exchange, request, "an answer with ?credit=N ends with its connection")
            return cls(CANCEL, None)
        said = request.extra.pop(_FIELD, None)
        if said is not None and not isinstance(said, str):
            raise BadRequest("on_disconnect must be text: cancel, grace:SECONDS or finish")
        key = exchange.head.header(_KEY)
        if key is not None and default == CANCEL:
            default = GRACE
        return cls(default if said is None else policy_of(said), key, chat)

    @property
    def resumable(self) -> bool:
        return self.policy != CANCEL or self.key is not None

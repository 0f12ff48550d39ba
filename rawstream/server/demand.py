"""``?credit=N``: who asks for a demand that is exact to the token (``flow/credit.py``)."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qs

from rawstream.errors import BadRequest
from rawstream.flow.credit import Credit
from rawstream.model import Request

MOST_CREDIT: Final = 1_000_000
"""Tokens."""


def credit_of(query: str, request: Request) -> Credit | None:
    """The credit that the query string asks for; None: it does not. Raises BadRequest.

    It is no field of the request that a source (or an upstream) is asked: where a query string made it one, it goes.
    """
    given = parse_qs(query, keep_blank_values=True).get("credit") if "credit" in query else None
    if given is None:
        return None
    request.extra.pop("credit", None)
    text = given[-1]
    if not (text.isascii() and text.isdecimal() and len(text) < 8 and 1 <= int(text) <= MOST_CREDIT):
        raise BadRequest(f"credit must be a number of tokens from 1 to {MOST_CREDIT}")
    return Credit(int(text))

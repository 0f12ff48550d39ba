"""Who is at the other end: the peer, and behind a proxy that is trusted the client it asks for.

Rule 1: ``X-Forwarded-…`` is believed from trusted proxies alone. Anybody can write it.
Rule 2: the list in ``X-Forwarded-For`` is read from its end: each proxy appended whom it saw, so the last address that
        no trusted proxy has is the client's. What stands before it the client may have written.
Rule 3: pure, but for asking the transport who its peer is.
"""

from __future__ import annotations

import asyncio
import ipaddress
from functools import lru_cache
from typing import Final, TypeAlias

from rawstream.settings.lists import Proxies
from rawstream.wire.guard import RequestHead

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

UNIX: Final = "unix"
"""The peer's address on a Unix socket, which has none."""
_FORWARDED: Final = frozenset({"forwarded", "x-forwarded-for", "x-real-ip"})


def peer_of(transport: asyncio.BaseTransport) -> str:
    """The peer's address as text, or ``unix``."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) and peer else UNIX


@lru_cache(maxsize=1024)
def address_of(text: str) -> Address | None:
    """``127.0.0.1``, ``::1``, ``[::1]:80``, ``127.0.0.1:80``; None: no address."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A socket for both families shows IPv4 peers so.
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(peer: str) -> bool:
    """Is the peer on this machine (a loopback address, or on a Unix socket)?"""
    if peer == UNIX:
        return True
    address = address_of(peer)
    return address is not None and address.is_loopback


def came_through_proxy(head: RequestHead) -> bool:
    """Does the request say that it was passed on? Then its peer is not who asks."""
    return any(name in _FORWARDED for name, _ in head.headers)


def is_trusted(peer: str, proxies: Proxies) -> bool:
    """Is this one of the trusted proxies?"""
    if peer == UNIX:
        return proxies.unix
    address = address_of(peer)
    return address is not None and any(address in network for network in proxies.networks)


def client_of(peer: str, head: RequestHead, proxies: Proxies) -> str:
    """The address of the client that asks, as far as trusted proxies tell it."""
    found = peer
    hops = (head.header("x-forwarded-for") or "").split(",")
    while hops and is_trusted(found, proxies):
        address = address_of(hops.pop())
        if address is None:
            break  # not an address, or none: whoever passed it on is the last that is known
        found = str(address)
    return found


def last_of(head: RequestHead, name: str) -> str | None:
    """The last entry of a header that proxies append to; None: there is none."""
    value = head.header(name)
    return None if value is None else value.rpartition(",")[2].strip().lower() or None


def is_local_name(name: str) -> bool:
    """Is this a name that only this machine answers to, as ``Host`` has it (without its port)?"""
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761 §6.3
        return True
    address = address_of(name)
    return address is not None and address.is_loopback


def without_port(authority: str) -> str:
    """``chat.example.com:8000`` → ``chat.example.com``; ``[::1]:80`` → ``::1``. In lower case, without a last dot."""
    authority = authority.lower()
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0].removesuffix(".")

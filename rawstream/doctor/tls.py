"""TLS as a client meets it: version, protocol, and how long the certificate still lasts."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any
from urllib.parse import urlsplit

import msgspec

from rawstream.doctor.finding import Finding, plural
from rawstream.sources.http_client import origin_of

_WITHIN = 10.0
_SOON = 14
"""Days before its end from which a certificate that should have been renewed (ACME: at 30 days) has not been."""


class Handshake(msgspec.Struct, frozen=True):
    """What was agreed upon."""

    version: str
    protocol: str
    """Chosen by ALPN: ``h2``, ``http/1.1``, or '' for none."""
    days: float | None
    """Until the certificate ends; None: it does not say."""
    fault: str = ""
    """Why there was no handshake."""


async def handshake(url: str, ca: str | None) -> Handshake | None:
    """Shake hands with an https URL's host, as a browser would. None for http. Never raises for what the host did."""
    origin = origin_of(urlsplit(url))
    if origin.scheme != "https":
        return None
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        async with asyncio.timeout(_WITHIN):
            _, writer = await asyncio.open_connection(origin.host, origin.port, ssl=context)
    except ssl.SSLCertVerificationError as error:
        return Handshake("", "", None, f"the certificate is not trusted: {error.verify_message}")
    except (OSError, TimeoutError) as error:
        return Handshake("", "", None, f"TLS failed: {error}")
    found: Any = writer.get_extra_info("ssl_object")
    until = found.getpeercert().get("notAfter")
    days = None if until is None else (ssl.cert_time_to_seconds(until) - time.time()) / 86_400
    seen = Handshake(found.version() or "", found.selected_alpn_protocol() or "", days)
    writer.transport.abort()
    return seen


def tls(seen: Handshake) -> Finding:
    """Is it fit to use, and for how long?"""
    name = "tls"
    if seen.fault:
        return Finding(name, "bad", seen.fault, "no client gets through", "renew the certificate, or install its chain")
    parts = [seen.version, f"certificate good for {plural(int(seen.days), 'day')}" if seen.days is not None else ""]
    if seen.protocol:
        parts.append(f"prefers {seen.protocol}" + (" (examined over http/1.1)" if seen.protocol == "h2" else ""))
    what = ", ".join(part for part in parts if part)
    if seen.version not in ("TLSv1.2", "TLSv1.3"):
        return Finding(name, "warn", what, "browsers refuse it", "allow TLS 1.2 and 1.3")
    if seen.days is not None and seen.days < _SOON:
        return Finding(name, "warn", what, "renewal has not happened", "see to the certificate's renewal")
    return Finding(name, "ok", what)

"""Idle limits of what people put in front: which of them is it that cut?"""

from __future__ import annotations

from typing import Final

KNOWN: Final[tuple[tuple[float, str], ...]] = (
    (10, "Fastly (10 s between bytes)"),
    (15, "Fastly (first byte), Envoy (route timeout)"),
    (29, "AWS API Gateway (29 s)"),
    (30, "Google Cloud load balancers (backend timeout 30 s), Heroku (first byte), CloudFront (origin 30 s)"),
    (50, "HAProxy as Debian ships it (timeout server 50 s)"),
    (55, "Heroku (55 s between bytes)"),
    (60, "AWS ALB (idle timeout 60 s), nginx (proxy_read_timeout 60 s), Apache (ProxyTimeout 60 s)"),
    (100, "Cloudflare (100 s)"),
    (230, "Azure App Service (230 s)"),
    (240, "Azure load balancers (4 minutes)"),
    (300, "Envoy (stream idle timeout 5 minutes)"),
    (350, "AWS NLB (350 s)"),
)
"""Seconds without a byte, as shipped, and whose they are."""

EVERYBODYS: Final = "AWS ALB 60 s, Google Cloud 30 s, Heroku 30 s and then 55 s, nginx 60 s, Cloudflare 100 s"


def whose(seconds: float) -> str:
    """Who cuts after so many seconds of silence, as far as defaults tell; '' when nobody is known to."""
    names = [names for limit, names in KNOWN if abs(seconds - limit) <= max(1.0, limit * 0.03)]
    return "; ".join(names)

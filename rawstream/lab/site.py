"""The live page and its modules, as files.

Rule 1: what is served is what lay in the package's ``page`` folder when the server started, by exact name: no path
        is ever made of what a client sent.
Rule 2: nothing is loaded from elsewhere (``content-security-policy``); what is shown is always fresh (``no-cache``
        and an ``ETag``, RFC 9110 §8.8.3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from rawstream.errors import BadRequest
from rawstream.server.endpoints.events import require_own_origin
from rawstream.server.exchange import Exchange
from rawstream.server.router import Router

FOLDER: Final = Path(__file__).with_name("page")
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".ts": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
}
SECURITY: Final = (
    (
        "content-security-policy",
        "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
)


class Site:
    """The files of one folder. Missing ones are 404, and a folder that is not there is an empty site."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.files = {
            "/" if path.name == "index.html" else f"/{path.name}": path
            for path in sorted(folder.glob("*"))
            if path.is_file() and path.suffix in TYPES
        }

    def register(self, router: Router) -> None:
        for url, path in self.files.items():
            router.add("GET", url, self._handler(path))

    def _handler(self, path: Path) -> Callable[[Exchange], Awaitable[None]]:
        kind = TYPES[path.suffix]

        async def handler(exchange: Exchange) -> None:
            require_own_origin(exchange)
            content = _read(path)
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            headers = [("etag", tag), ("cache-control", "no-cache"), *SECURITY]
            known = exchange.head.header("if-none-match") or ""
            if known.strip() == "*" or tag in [one.strip().removeprefix("W/") for one in known.split(",")]:
                await exchange.respond(304, headers)
            else:
                await exchange.respond(200, [("content-type", kind), *headers], content)

        return handler


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise BadRequest("this file is not there any more", status=404, code="not_found") from None

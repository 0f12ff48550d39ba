"""Who may ask, and from which page: users, the names of this server, other origins.

Rule 1: all of it is decided before the body is read. A stranger's eight megabytes are not for us.
Rule 2: a route needs a user unless it says otherwise (``Router.add(access=…)``).
Rule 3: keys are neither logged nor passed on, and compared in constant time (``limits/users.py``). Cookies are no
        credentials here: nothing is shared with them (no ``access-control-allow-credentials``).
Rule 4: what changes something, or starts a generation, is not for pages of another origin, unless ``cors_origins``
        has it. A browser says where its page is from: ``Sec-Fetch-Site``, and before that ``Origin`` (RFC 6454 §7).
        Who sends neither is no browser, or it is a GET over plain HTTP to another name than ``localhost``.

The name in ``Host`` is looked at because of "DNS rebinding": a page's own name that was made to point here. To its
browser all of ours is then the page's own, and a GET of it says nothing of where the page is from.
"""

from __future__ import annotations

import logging
from typing import Final, Literal, NamedTuple, TypeAlias

from rawstream.errors import BadRequest, Unauthorized
from rawstream.limits.budget import Ledger
from rawstream.limits.users import User, Users
from rawstream.server.exchange import Exchange
from rawstream.server.peers import (
    UNIX,
    client_of,
    is_local_name,
    is_loopback,
    is_trusted,
    last_of,
    peer_of,
    without_port,
)
from rawstream.settings import Settings, UserSettings
from rawstream.settings.lists import Hosts, Origins, Proxies, field_name, hosts, origins, proxies
from rawstream.settings.tables import ANYBODY, is_user_name
from rawstream.wire.guard import RequestHead

log = logging.getLogger("rawstream")

Need: TypeAlias = Literal["open", "operator", "user", "generate"]
"""Who may ask for a route: anybody; the operator (its handler asks who that is); a user; a user, and it is counted."""

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_PROBES: Final = frozenset({"/healthz", "/readyz"})
"""Asked for by load balancers, under whatever name or address they know."""
_ALLOWED_HEADERS: Final = (
    "authorization, cache-control, content-type, idempotency-key, last-event-id, traceparent, x-api-key, "
    "x-request-id, *"
)
"""Besides these any: a page that may ask at all may say what it wants. ``*`` does not cover ``authorization``."""
_EXPOSED_HEADERS: Final = (
    "retry-after, www-authenticate, x-request-id, x-should-retry, x-stream-id, x-vercel-ai-ui-message-stream"
)
_MAX_AGE: Final = "7200"
"""Seconds that a browser may remember a preflight's answer; Chromium takes no more."""
_EXPOSE: Final = ("access-control-expose-headers", _EXPOSED_HEADERS)
_VARY: Final = ("vary", "origin")


class Page(NamedTuple):
    """What a browser says of the page that asks."""

    origin: str | None
    site: str | None
    """``Sec-Fetch-Site``."""


_NO_PAGE: Final = Page(None, None)


def page_of(head: RequestHead) -> Page:
    """One look at each field: every request comes by here."""
    origin = site = None
    for name, value in head.headers:
        if name == "origin":
            origin = value if origin is None else "null"  # none says it twice
        elif name == "sec-fetch-site":
            site = value if site is None else "cross-site"
    return _NO_PAGE if origin is site is None else Page(origin, site)


def users_of(settings: Settings) -> Users:
    """The users of the settings. Where a proxy names them and none is configured: anybody that it names."""
    if settings.user_header is not None and not settings.users:
        return Users([UserSettings(name=ANYBODY)])
    return Users(settings.users)


class Access:
    """What the settings say of it, for one server."""

    def __init__(self, settings: Settings, users: Users, ledger: Ledger) -> None:
        self.users = users
        self._ledger = ledger
        self._closed = settings.has_users
        header, trusted, names, pages = (
            settings.user_header,
            settings.trusted_proxies,
            settings.allowed_hosts,
            settings.cors_origins,
        )
        # ``settings.faults`` has read these already: nothing can be wrong with them here.
        self._header = None if header is None else field_name(header)
        self._proxies = Proxies() if trusted is None else proxies(trusted)
        self._hosts: Hosts | None = None if names is None else hosts(names)
        self._pages: Origins | None = None if pages is None else origins(pages)
        self._local_names_only = settings.loopback_only and not self._closed and self._hosts is None
        """A page of somebody else's must not reach it through this machine's browser, under a name of its own."""

    # --- what prepare() asks -----------------------------------------------------------------------------------

    def greet(self, exchange: Exchange) -> Page:
        """Whatever it asks for: may it be asked for under this name? Raises BadRequest (421). Which page asks.

        From here on each answer, an error too, can be read by the pages that may ask.
        """
        if exchange.connection.operator:
            return _NO_PAGE
        page = page_of(exchange.head)
        origin = page.origin
        if self._pages is not None:
            self._share(exchange, origin, self._pages)
        # A preflight does nothing, and what it asks about comes here too.
        if self._hosts is not None or (
            origin is not None and self._local_names_only and exchange.head.method != "OPTIONS"
        ):
            self._check_name(exchange)
        return page

    def admit(self, exchange: Exchange, need: Need, page: Page) -> None:
        """May whoever asks ask for this? Sets ``exchange.user``. Raises BadRequest (403) and Unauthorized (401)."""
        if page is not _NO_PAGE:
            safe = exchange.head.method in _SAFE
            if not safe or need == "generate":
                self._check_page(exchange, page, safe)
        elif self._local_names_only and need == "generate" and exchange.head.method in _SAFE:
            self._check_name(exchange)
        if self._closed and need in ("user", "generate"):
            exchange.user = exchange.connection.user or self._user_of(exchange)

    async def count(self, user: User) -> None:
        """One request of a user that starts a generation. Raises RateLimited (429) when it has had its minute's."""
        await self._ledger.reserve(f"requests:{user.name}", user.request_caps, 1)

    def preflight(self, exchange: Exchange, methods: str) -> list[tuple[str, str]]:
        """Headers for the answer to a browser's question whether its page may ask (Fetch §3.2.2)."""
        head = exchange.head
        if not self._may_ask(head.header("origin")) or head.header("access-control-request-method") is None:
            return []
        return [
            ("access-control-allow-methods", methods),
            ("access-control-allow-headers", _ALLOWED_HEADERS),
            ("access-control-max-age", _MAX_AGE),
        ]

    # --- pages -------------------------------------------------------------------------------------------------

    def _may_ask(self, origin: str | None) -> bool:
        pages = self._pages
        return pages is not None and origin is not None and (pages.any or origin.lower() in pages.exact)

    def _share(self, exchange: Exchange, origin: str | None, pages: Origins) -> None:
        if pages.any:
            if origin is not None:
                exchange.added = (("access-control-allow-origin", "*"), _EXPOSE)
        elif origin is not None and self._may_ask(origin):
            exchange.added = (("access-control-allow-origin", origin), _EXPOSE, _VARY)
        else:
            exchange.added = (_VARY,)

    def _check_page(self, exchange: Exchange, page: Page, safe: bool) -> None:
        """Raise 403 for what a page of another origin asks for (as Go's ``http.CrossOriginProtection`` has it)."""
        origin, site = page
        if site is not None:
            own = site in ("same-origin", "none") or (safe and site == "same-site")
        else:
            own = origin is None or self._is_own(exchange, origin.lower())
        if not own and not self._may_ask(origin):
            raise BadRequest(
                "this is not answered to pages of another origin; those that may ask are named by --cors-origins",
                status=403,
                code="forbidden",
            )

    def _is_own(self, exchange: Exchange, origin: str) -> bool:
        scheme, _, authority = origin.partition("://")
        host, forwarded = self._named(exchange)
        if forwarded == "https" and scheme != "https":
            return False  # a page that anybody on the way may have written
        default = ":443" if scheme == "https" else ":80"
        return bool(authority) and authority == host.removesuffix(default)

    # --- names -------------------------------------------------------------------------------------------------

    def _named(self, exchange: Exchange) -> tuple[str, str]:
        """The host and the scheme that the client asked under: what a trusted proxy says of it, else what we see."""
        head = exchange.head
        host = head.host
        scheme = "http" if exchange.connection.secured is None else "https"
        if self._is_from_proxy(exchange):
            host = last_of(head, "x-forwarded-host") or host
            scheme = last_of(head, "x-forwarded-proto") or scheme
        return (host or "").lower(), scheme

    def _check_name(self, exchange: Exchange) -> None:
        if exchange.head.path in _PROBES:
            return
        peer = peer_of(exchange.connection.transport)
        name = without_port(self._named(exchange)[0])
        if self._hosts is not None:
            # Under a local name only this machine's own programs come, and a browser whose page is ours.
            known = self._hosts.has(name) or (is_local_name(name) and is_loopback(peer))
        else:
            known = is_local_name(name) or peer == UNIX or self._is_from_proxy(exchange)
        if not known:
            raise BadRequest(
                f"this server is not asked under the name {name[:100]!r}; --allowed-hosts names those that it has",
                status=421,
                code="misdirected_request",
            )

    # --- users -------------------------------------------------------------------------------------------------

    def _is_from_proxy(self, exchange: Exchange) -> bool:
        return is_trusted(peer_of(exchange.connection.transport), self._proxies)

    def client(self, exchange: Exchange) -> str:
        """The address of the client, behind trusted proxies too; ``unix`` on a Unix socket."""
        return client_of(peer_of(exchange.connection.transport), exchange.head, self._proxies)

    def _user_of(self, exchange: Exchange) -> User:
        head = exchange.head
        if self._header is not None and self._is_from_proxy(exchange):
            name = head.header(self._header)
            if name is not None:
                user = self.users.by_name(name) if is_user_name(name) else None
                if user is None:
                    raise BadRequest("the user that the proxy names is not known here", status=403, code="unknown_user")
                return user
        scheme, _, key = (head.header("authorization") or "").partition(" ")
        if scheme.lower() != "bearer":
            key = head.header("x-api-key") or ""
        key = key.strip()
        user = self.users.by_key(key) if key else None
        if user is None:
            exchange.added = (*exchange.added, ("www-authenticate", "Bearer"))
            if not key:
                raise Unauthorized("this needs an API key: send it as 'Authorization: Bearer KEY'")
            log.info("a key that is not known, from %s at %s", self.client(exchange), exchange.path)
            raise Unauthorized("this API key is not known here: look whether it is whole, and still valid")
        return user

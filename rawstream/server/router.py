"""Which handler answers which path and method (RFC 9110 §9, §15.5.5, §15.5.6), and to whom.

Rule 1: a path is known or 404; a method is known to HTTP or 501, known to the path or 405 with ``Allow``.
Rule 2: a JSON body needs ``content-type: application/json``: else a web page could start generations with a form.
Rule 3: a route is for users, unless it says for whom it is; who asks is looked at before the body is read.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from rawstream.errors import BadRequest
from rawstream.server.access import Access, Need
from rawstream.server.exchange import Exchange, Refusal, plain_refusal

Handler = Callable[[Exchange], Awaitable[None]]

KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"})


class Route:
    """The handlers of one path, by method."""

    __slots__ = ("access", "handlers", "json", "path", "refusal")

    def __init__(self, path: str) -> None:
        self.path = path
        self.handlers: dict[str, Handler] = {}
        self.access: dict[str, Need] = {}
        """For whom each method is."""
        self.json: dict[str, int | None] = {}
        """The methods that take a JSON body, and its most bytes where that is less than ``max_body``."""
        self.refusal: Refusal = plain_refusal
        """How an error is told to this path's clients."""

    @property
    def allow(self) -> str:
        """The value of ``Allow``."""
        methods = set(self.handlers) | {"OPTIONS"}
        if "GET" in methods:
            methods.add("HEAD")
        return ", ".join(sorted(methods))


class Router:
    """Exact paths first, then patterns with ``{name}`` for one path segment."""

    __slots__ = ("_exact", "_patterns")

    def __init__(self) -> None:
        self._exact: dict[str, Route] = {}
        self._patterns: list[tuple[re.Pattern[str], str, Route]] = []

    def add(
        self,
        method: str,
        path: str,
        handler: Handler,
        *,
        json: bool = False,
        most: int | None = None,
        refusal: Refusal = plain_refusal,
        access: Need = "user",
    ) -> None:
        """``json``: the method takes a JSON body, and no other; ``most``: of at most so many bytes (413).

        ``access``: who may ask. What starts a generation is ``"generate"``.
        """
        route = self._exact.get(path)
        if "{" in path:
            route = next((known for _, text, known in self._patterns if text == path), None)
            if route is None:
                route = Route(path)
                pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]{1,256})", path)
                self._patterns.append((re.compile(pattern), path, route))
        elif route is None:
            route = self._exact[path] = Route(path)
        route.refusal = refusal
        route.handlers[method] = handler
        route.access[method] = access
        if json:
            route.json[method] = most

    def find(self, path: str) -> tuple[Route, dict[str, str]] | None:
        """The route of ``path`` and what its ``{name}`` segments are; None: there is none."""
        route = self._exact.get(path)
        if route is not None:
            return route, {}
        for pattern, _, candidate in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None:
                return candidate, match.groupdict()
        return None


async def prepare(router: Router, exchange: Exchange, access: Access) -> Handler | None:
    """Find the handler, see who asks, and read the body that it wants; None: it is answered already.

    Raises BadRequest (404, 405, 415, 501), what ``access`` raises (401, 403, 421, 429) and what reading the body does.
    """
    head = exchange.head
    method = head.method
    found = router.find(head.path)
    if found is not None:
        route, exchange.params = found
        exchange.path = route.path
        exchange.refusal = route.refusal
    access.greet(exchange)
    if head.path == "*":
        await exchange.respond(204, [("allow", "GET, HEAD, OPTIONS, POST")])
        return None
    if method not in KNOWN_METHODS:
        raise BadRequest(f"the method {method[:32]} is not implemented", status=501, code="not_implemented")
    if found is None:
        raise BadRequest("there is nothing at this path", status=404, code="not_found")
    asked = "GET" if method == "HEAD" else method
    handler = route.handlers.get(asked)
    if handler is None:
        if method == "OPTIONS":
            await exchange.respond(204, [("allow", route.allow), *access.preflight(exchange, route.allow)])
            return None
        error = BadRequest(f"{method} is not possible here; use {route.allow}", status=405, code="method_not_allowed")
        await exchange.refuse(error, headers=[("allow", route.allow)])
        return None
    need = route.access[asked]
    access.admit(exchange, need)
    if exchange.user is not None and need == "generate" and method != "HEAD" and exchange.user.request_caps:
        await access.count(exchange.user)
    if method in route.json:
        check_json(exchange)
        exchange.content = await exchange.body(route.json[method])
    elif head.has_body:
        await exchange.body()  # nobody wants it, but it must be out of the way before a stream begins
    return handler


def check_json(exchange: Exchange) -> None:
    """Raise 415 unless the request's body says that it is plain JSON."""
    head = exchange.head
    content_type = (head.header("content-type") or "").split(";", 1)[0].strip().lower()
    if content_type != "application/json":
        raise BadRequest(
            f"the body must be sent with content-type: application/json, not {content_type[:64] or 'none'!r}",
            status=415,
            code="unsupported_media_type",
        )
    coding = (head.header("content-encoding") or "identity").strip().lower()
    if coding != "identity":
        raise BadRequest(
            f"the body must not be compressed (content-encoding: {coding[:32]})",
            status=415,
            code="unsupported_media_type",
        )

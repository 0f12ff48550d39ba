"""What to ask, and in which form: told by the URL's path, or said by the user.

Rule 1: nothing is sent but the user's own request, and, where clients that have left are waited for, that leaving is
        a cancel. The mock's options go along only where the server said that it is the mock.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import quote, urlencode

import msgspec

from rawstream.errors import MisuseError
from rawstream.sources.http_client import origin_of, split_url

Kind: TypeAlias = Literal["openai", "ui", "chat", "eventsource", "text", "sse"]

PROMPT: Final = "Count from one to two hundred, in words, one a line."
"""Long enough an answer to see how it arrives, from any model."""

_KINDS: Final[tuple[tuple[re.Pattern[str], Kind], ...]] = (
    (re.compile(r"(/v1)?/chat/completions/?$"), "openai"),
    (re.compile(r"/api/chat/?$"), "ui"),
    (re.compile(r"/chat(-[a-z]+)?/?$"), "chat"),
    (re.compile(r"/stream/?$"), "eventsource"),
    (re.compile(r"/text/?$"), "text"),
)
_VERSION: Final = re.compile(r"/v[0-9]+[a-z0-9]*/?$")
_OWN_HEADERS: Final = ("accept", "accept-encoding", "content-length", "host", "x-request-id", "transfer-encoding")

_RESUMED: Final = frozenset({"ui", "eventsource"})
"""Endpoints whose answers wait for a client that has left (``resume_grace``), unless told otherwise."""


class Wanted(msgspec.Struct, frozen=True):
    """A request that is ready to go."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Target(msgspec.Struct, frozen=True):
    """The URL under examination, and how it is asked. Made by ``target_of``."""

    url: str
    kind: Kind
    base: str
    """What stands before the endpoint's own path: ``/streams/{id}`` and ``/v1/models`` are looked for there."""
    headers: tuple[tuple[str, str], ...] = ()
    prompt: str = PROMPT
    model: str | None = None
    body: msgspec.Raw | None = None
    """The user's own body, instead of one made here."""

    def wanted(
        self, *, max_tokens: int | None = None, mock: dict[str, Any] | None = None, model: str | None = None
    ) -> Wanted:
        """The request, for an answer of at most ``max_tokens``; ``mock``: for the mock, how it is to behave."""
        content: dict[str, Any]
        if self.body is not None:
            content = dict(msgspec.json.decode(self.body))
        else:
            content = self._content()
            if max_tokens is not None and self.kind not in ("ui", "sse"):
                content["max_tokens"] = max_tokens
            if self.kind in _RESUMED:
                content["on_disconnect"] = "cancel"
        if (model or self.model) is not None:
            content["model"] = model or self.model
        if mock is not None:
            content |= {"mock": mock}
            content.pop("max_tokens", None)
        if self.kind == "eventsource":
            query = {k: v if isinstance(v, str) else msgspec.json.encode(v).decode() for k, v in content.items()}
            joint = "&" if "?" in self.url else "?"
            return Wanted("GET", self.url + joint + urlencode(query), self.headers, b"")
        headers = (*self.headers, ("content-type", "application/json"))
        return Wanted("POST", self.url, headers, msgspec.json.encode(content))

    def beside(self, path: str) -> str:
        """The URL of another endpoint of the same deployment."""
        return self.base + path

    def _content(self) -> dict[str, Any]:
        message = {"role": "user", "content": self.prompt}
        if self.kind == "openai":
            return {"messages": [message], "stream": True}
        if self.kind == "ui":
            parts = [{"type": "text", "text": self.prompt}]
            said = {"id": "doctor-1", "role": "user", "parts": parts}
            return {"id": "doctor", "trigger": "submit-message", "messages": [said]}
        if self.kind == "sse":
            return {"prompt": self.prompt, "messages": [message], "stream": True}
        return {"prompt": self.prompt}


def target_of(
    url: str,
    *,
    headers: tuple[tuple[str, str], ...] = (),
    prompt: str = PROMPT,
    model: str | None = None,
    body: bytes | None = None,
) -> Target:
    """Raises MisuseError for what is not the URL of an endpoint, not a header, not a JSON object."""
    if "://" not in url:
        url = f"http://{url}"
    split = split_url(url)
    origin_of(split)
    for name, value in headers:
        if name.lower() in _OWN_HEADERS:
            raise MisuseError(f"the header {name!r} is the doctor's own to set")
        if not f"{name}{value}".isascii() or not f"{name}{value}".isprintable():
            raise MisuseError("header fields and the API key must be printable ASCII")
    if not split.path.strip("/"):
        raise MisuseError("name the endpoint, not just the host: for instance https://your.host/chat")
    if _VERSION.search(split.path):
        split = split._replace(path=split.path.rstrip("/") + "/chat/completions")
    kind: Kind = "sse"
    before = split.path.rstrip("/").rpartition("/")[0]
    for pattern, named in _KINDS:
        if found := pattern.search(split.path):
            kind, before = named, split.path[: found.start()]
            break
    base = split._replace(path=quote(before, safe="/%~"), query="", fragment="").geturl()
    split = split._replace(path=quote(split.path, safe="/%~:@!$&'()*+,;="), fragment="")
    raw: msgspec.Raw | None = None
    if body is not None:
        try:
            if not isinstance(msgspec.json.decode(body), dict):
                raise MisuseError("the body must be a JSON object")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MisuseError(f"the body is not JSON: {error}") from None
        raw = msgspec.Raw(body)
    return Target(split.geturl(), kind, base, headers, prompt, model, raw)

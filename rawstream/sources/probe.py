"""Does an upstream answer? Connected to once, asked once what it serves, and what was seen told as plain facts.

Rule 1: nothing is generated. ``GET /models`` is all that is asked.
Rule 2: each finding is a fact with its remedy's beginning; a key is in none of them.
"""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlsplit

import msgspec

from rawstream.errors import RawstreamError, UpstreamFailed, UpstreamRejected
from rawstream.settings import Settings, UpstreamSettings
from rawstream.sources.http_client import origin_of, tls_context
from rawstream.sources.http_connection import dial, read_buffer
from rawstream.sources.model_list import listed
from rawstream.sources.upstream import UpstreamSource
from rawstream.sources.upstreams import settings_of

_NOT_OFFERED: Final = frozenset({404, 405, 501})


class Probe(msgspec.Struct, kw_only=True):
    """What was seen of one upstream."""

    name: str
    url: str
    reachable: bool = False
    connect_ms: float | None = None
    """Milliseconds to connect, TLS included."""
    tls: str | None = None
    """``TLSv1.3``; None: not over TLS."""
    models_status: int | None = None
    """The status of ``GET /models``; None: no answer."""
    key: str = "not sent"
    """``not sent``, ``accepted``, ``refused`` or ``unknown``."""
    missing: list[str] = []
    """Configured models that it does not list."""
    problems: list[str] = []
    notes: list[str] = []

    @property
    def ok(self) -> bool:
        return not self.problems


async def probe(own: UpstreamSettings, settings: Settings) -> Probe:
    """Look at one upstream. Raises nothing but SettingsError (unusable certificates). Cancelling is safe."""
    seen = Probe(name=own.name, url=own.url)
    bounds = settings_of(own, settings)
    if own.api_key is not None:
        seen.key = "unknown"
    try:
        await _connect(seen, bounds)
    except RawstreamError as error:
        seen.problems.append(_in_words(error))
        return seen
    source = UpstreamSource(bounds)
    try:
        names = {model["id"] for model in listed(await source.models())}
    except UpstreamRejected as error:
        _refused(seen, error, own)
    except RawstreamError as error:
        seen.problems.append(f"GET /models: {_in_words(error)}")
    else:
        seen.models_status = 200
        if own.api_key is not None:
            seen.key = "accepted"
        wanted = [own.model] if own.model is not None else [name for name in own.models if "*" not in name]
        seen.missing = [name for name in wanted if name not in names]
        if seen.missing:
            seen.problems.append(f"does not list {', '.join(seen.missing)}")
    finally:
        await source.aclose()
    return seen


async def _connect(seen: Probe, bounds: Settings) -> None:
    origin = origin_of(urlsplit(seen.url))
    secure = origin.scheme == "https"
    loop = asyncio.get_running_loop()
    began = loop.time()
    connection = await dial(
        origin,
        timeout=bounds.upstream_connect_timeout,
        rcvbuf=bounds.upstream_rcvbuf,
        buffer=read_buffer(bounds.upstream_read_limit, None),
        tls=tls_context(bounds.upstream_ca) if secure else None,
    )
    seen.connect_ms = round((loop.time() - began) * 1000, 1)
    seen.tls = connection.tls_version
    seen.reachable = True
    connection.abort()


def _refused(seen: Probe, error: UpstreamRejected, own: UpstreamSettings) -> None:
    status = seen.models_status = error.status
    if status in (401, 403):
        if own.api_key is None:
            seen.problems.append(f"GET /models: status {status}: it wants a key, and none is configured")
        else:
            seen.key = "refused"
            seen.problems.append(f"GET /models: status {status}: it does not accept the configured key")
    elif status in _NOT_OFFERED:
        seen.notes.append(f"GET /models: status {status}: it does not list its models")
    else:
        seen.problems.append(f"GET /models: status {status}")


def _in_words(error: RawstreamError) -> str:
    detail = f" ({error.detail})" if isinstance(error, UpstreamFailed) and error.detail else ""
    return f"{error}{detail}"

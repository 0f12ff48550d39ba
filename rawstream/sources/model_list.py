"""The models of several upstreams as one list, in OpenAI's shape.

Rule 1: names that the configuration gives are listed as they are. Upstreams with patterns are asked what they have.
Rule 2: each model once, under the upstream that comes first; those of an upstream that does not answer are missing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from rawstream.errors import RawstreamError
from rawstream.settings import UpstreamSettings
from rawstream.sources import attempts

log = logging.getLogger("rawstream")

Offer: TypeAlias = tuple[UpstreamSettings, Callable[[], Awaitable[bytes]]]
"""An upstream, and what asks it for its own list."""


async def merged_models(offers: Sequence[Offer], created: int) -> bytes:
    """The list's JSON. Raises what the last upstream raised when nothing is known. Cancelling is safe.

    ``created`` (seconds since 1970) is for models that the configuration names.
    """
    failure: RawstreamError | None = None

    async def asked(upstream: UpstreamSettings, ask: Callable[[], Awaitable[bytes]]) -> list[dict[str, Any]]:
        nonlocal failure
        if not any("*" in name for name in upstream.models):
            return []
        try:
            return listed(await ask())
        except RawstreamError as error:
            log.warning("upstream %s: its models cannot be listed: %s", upstream.name, attempts.cause(error))
            failure = error
            return []

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(asked(*offer), name=f"models of {offer[0].name}") for offer in offers]
    found: dict[str, dict[str, Any]] = {}
    for upstream, _ in offers:
        for name in upstream.models:
            if "*" not in name:
                found.setdefault(name, {"id": name, "object": "model", "created": created, "owned_by": upstream.name})
    for (upstream, _), task in zip(offers, tasks, strict=True):
        for model in task.result():
            if attempts.rank(upstream.models, model["id"]) is not None:
                found.setdefault(model["id"], {**model, "owned_by": upstream.name})
    if not found and failure is not None:
        raise failure
    return msgspec.json.encode({"object": "list", "data": list(found.values())})


def listed(body: bytes) -> list[dict[str, Any]]:
    """The models in the JSON that answers ``GET /models``; those without a name are left out."""
    told = msgspec.json.decode(body)
    data = told.get("data") if isinstance(told, dict) else None
    models = data if isinstance(data, list) else []
    return [
        {"object": "model", "created": 0, **model}
        for model in models
        if isinstance(model, dict) and isinstance(model.get("id"), str)
    ]

"""What a run of the lab is asked for, and how its connections get settings of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Coroutine
from typing import Annotated, Any, Literal

import msgspec

from rawstream.errors import BadRequest, ProtocolViolation
from rawstream.server.app import App
from rawstream.server.channel import Channel, ClientConnection
from rawstream.server.connection import Connection
from rawstream.settings import Settings
from rawstream.wire.http1 import RequestHead
from rawstream.wire.http2_frames import Http2Violation

_LaneName = Literal["whole", "eager", "drain", "rawstream"]
_Bytes = Annotated[int, msgspec.Meta(ge=0, le=64 * 1024 * 1024)]
_Rate = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class RunSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /lab/runs``. Sizes in bytes, rates per second."""

    lanes: Annotated[tuple[_LaneName, ...], msgspec.Meta(min_length=1, max_length=4)] = (
        "whole",
        "eager",
        "drain",
        "rawstream",
    )
    readers: Annotated[int, msgspec.Meta(ge=1, le=50)] = 1
    """In each lane."""
    tokens_per_second: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = 50.0
    """The source's pace; None: as fast as it is asked."""
    tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Length of an answer; None: without end."""
    read_rate: _Rate | None = 0.0
    """Bytes per second that each reader takes; 0: none, it is stalled; None: as they come."""
    rcvbuf: _Bytes = 4096
    """``SO_RCVBUF`` of each reader; 0 leaves it to the kernel."""
    write_high: Annotated[int, msgspec.Meta(ge=1, le=64 * 1024 * 1024)] | None = None
    notsent_lowat: _Bytes | None = None
    sndbuf: _Bytes | None = None
    stall_timeout: Annotated[float, msgspec.Meta(gt=0, le=300)] | None = None
    """These four: the server's own settings where they are None."""
    seconds: Annotated[float, msgspec.Meta(gt=0, le=300)] = 60.0
    """How long the run takes at most."""
    credit: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    """Tokens of credit in the rawstream lane; the readers then say what they have read."""


class RunChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /lab/runs/{id}``."""

    read_rate: _Rate | msgspec.UnsetType | None = msgspec.UNSET
    stall: bool | None = None
    """True: the readers stop; False: they go on at their rate."""
    leave: bool = False
    """The readers close their sockets."""
    reconnect: bool = False
    """New readers ask anew; the old ones, if they are still there, leave."""


class TunedHost:
    """The server as a lab connection sees it: the same one, with other settings."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._app = app
        self.settings = settings

    @property
    def draining(self) -> bool:
        return self._app.draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self._app.draining = value

    def connection_opened(self, connection: ClientConnection) -> None:
        self._app.connection_opened(connection)

    def connection_closed(self, connection: ClientConnection) -> None:
        self._app.connection_closed(connection)

    def answer(self, channel: Channel, head: RequestHead) -> Coroutine[Any, Any, bool]:
        return self._app.answer(channel, head)

    def refusal(self, channel: Channel, error: ProtocolViolation) -> bytes:
        return self._app.refusal(channel, error)

    def broken(self, violation: Http2Violation) -> None:
        self._app.broken(violation)

    def speaks_http2(self, connection: Connection, first: bytes) -> None:
        self._app.speaks_http2(connection, first)


def tuned(settings: Settings, spec: RunSpec) -> Settings:
    """The settings of a run's connections. Raises BadRequest when they make no sense together."""
    changes: dict[str, Any] = {}
    for name in ("write_high", "notsent_lowat", "sndbuf", "stall_timeout"):
        value = getattr(spec, name)
        if value is not None:
            changes[name] = value
    if spec.write_high is not None:
        changes["write_low"] = min(settings.write_low, spec.write_high // 4)
    try:
        return dataclasses.replace(settings, **changes)
    except ValueError as error:
        raise BadRequest(str(error)) from None

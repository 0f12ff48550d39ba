"""What requests are answered on: a link with a codec, one request at a time.

An HTTP/1.1 connection is one (``connection.py``), and so is each stream of an HTTP/2 connection (``http2.py``): an
exchange does not know the difference.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, NamedTuple, Protocol

from rawstream.errors import ProtocolViolation
from rawstream.flow.gate import Gate
from rawstream.limits.users import User
from rawstream.server.link import READ, Link
from rawstream.settings import Settings
from rawstream.wire.codec import Codec
from rawstream.wire.guard import RequestHead
from rawstream.wire.http2_frames import Http2Violation


class Http2Levels(NamedTuple):
    """How much one stream of HTTP/2 may send now, in bytes."""

    stream: int
    """Its number."""
    window: int
    """Its own; negative where the client has made it smaller meanwhile."""
    connection_window: int
    """All streams' together."""

    @property
    def shut(self) -> bool:
        return self.window <= 0 or self.connection_window <= 0


class ClientConnection(Protocol):
    """What the server knows of a connection."""

    gate: Gate
    operator: bool
    task: asyncio.Task[None]
    transport: asyncio.Transport

    @property
    def kept(self) -> int:
        """Bytes that the client sent and that belong to no request yet."""
        ...

    def close_if_idle(self) -> None:
        """The server drains: nothing more begins here."""
        ...


class Host(Protocol):
    """What a connection needs of the server it belongs to."""

    settings: Settings
    draining: bool

    def connection_opened(self, connection: ClientConnection) -> None: ...

    def connection_closed(self, connection: ClientConnection) -> None: ...

    def answer(self, channel: Channel, head: RequestHead) -> Coroutine[Any, Any, bool]:
        """Answer one request. True when the channel may serve another one."""
        ...

    def refusal(self, channel: Channel, error: ProtocolViolation) -> bytes:
        """The answer to bytes that never became a request."""
        ...

    def broken(self, violation: Http2Violation) -> None:
        """A client broke the rules of HTTP/2, and its stream or its connection was cut."""
        ...


class Channel(Link):
    """A link that requests are answered on."""

    __slots__ = ("_cut", "host", "operator", "task", "user")

    task: asyncio.Task[None]

    def __init__(
        self,
        host: Host,
        loop: asyncio.AbstractEventLoop,
        accepted: socket.socket | None = None,
        *,
        operator: bool = False,
    ) -> None:
        """``operator``: it came in where only the operator comes in (``settings.admin``)."""
        super().__init__(host.settings, loop, accepted)
        self.host = host
        self.operator = operator
        self.user: User | None = None
        """Whose it is, where that is known without a key: the lab's own readers ask for who started them."""
        self._cut: Callable[[], None] | None = None

    @property
    def codec(self) -> Codec:
        """What the requests and answers are spoken in."""
        raise NotImplementedError

    def levels(self) -> Http2Levels | None:
        """What HTTP/2's windows allow; None: there are none."""
        return None

    async def read_some(self) -> bytes:
        """Bytes from the client; b'' at the end. Raises what a deadline set."""
        data = await self.reader.read(READ)
        self._unread -= len(data)
        return data

    def expect_body(self) -> None:
        """The request's body must be complete within ``body_timeout``; the read fails otherwise."""
        self.set_deadline(monotonic() + self.settings.body_timeout, self._body_too_late)

    def _body_too_late(self) -> None:
        self._too_late("body", self.settings.body_timeout)

    def _too_late(self, what: str, timeout: float) -> None:
        error = ProtocolViolation(f"the request {what} did not arrive within {timeout:g} s", status=408)
        self.reader.set_exception(error)

    def cut_in_a_moment(self, cut: Callable[[], None]) -> None:
        """It ends with ``cut()``, a moment after what was written last; its stream is over now."""
        self._cut = cut

    async def _until_closed(self, seconds: float, otherwise: Callable[[], None]) -> None:
        """Wait until the peer has closed it, or ``otherwise()`` has closed it after ``seconds``."""
        waiter = self._get_close_waiter(self.writer)
        self.set_deadline(monotonic() + seconds, otherwise)
        await waiter

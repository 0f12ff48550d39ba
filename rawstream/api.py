"""``rawstream.Server``: the server as a part of another program."""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType

from rawstream.errors import MisuseError
from rawstream.lab.extension import Lab
from rawstream.model import Observer, Tracing
from rawstream.server.app import App, Extension
from rawstream.settings import Settings
from rawstream.sources import as_source
from rawstream.sources.mock import MockSource


class Server:
    """A server on the running event loop.

    ::

        async with rawstream.Server(settings, source) as server:
            print(server.url)
            await server.serve_forever()

    ``source`` is a ``model.Source``, an async generator function taking the request, or a function that returns any
    iterable of strings; without it the built-in mock answers. ``sockets`` that listen already replace the address
    in ``settings``. ``tracing`` follows each request, as ``rawstream.tracing.OpenTelemetry`` does. Leaving the block
    drains, cancels and aborts as ``Settings`` says.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        source: object | None = None,
        *,
        observers: tuple[Observer, ...] = (),
        sockets: list[socket.socket] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.settings = settings or Settings()
        extensions: tuple[Extension, ...] = ()
        if self.settings.lab_enabled:
            extensions = (Lab(),)
        self.app = App(
            self.settings,
            MockSource() if source is None else as_source(source),
            observers=observers,
            extensions=extensions,
            sockets=sockets,
            tracing=tracing,
        )
        self._started = False
        self._closing: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen and accept. Raises OSError naming the address when that cannot be; MisuseError the second time."""
        if self._started:
            raise MisuseError("this server was started already")
        self._started = True
        await self.app.start()
        self._closing = asyncio.get_running_loop().create_future()

    @property
    def port(self) -> int:
        """The TCP port, also when the settings asked for 0."""
        return int(self.app.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return self.app.url

    async def serve_forever(self) -> None:
        """Wait until ``close()`` is called, or this is cancelled."""
        if self._closing is None:
            raise MisuseError("serve_forever() before start(): use 'async with' or call start() first")
        await asyncio.shield(self._closing)

    async def close(self, *, drain: float | None = None) -> None:
        """Drain for ``drain`` seconds (default: ``drain_timeout``), then cancel, then abort. Idempotent."""
        if self._closing is None or self._closing.done():
            return
        self._closing.set_result(None)
        await self.app.close(drain=drain)

    def reload_certificate(self) -> None:
        """Read the certificate anew, for connections to come. Raises SettingsError; then the old one stays."""
        self.app.reload_certificate()

    def hurry(self) -> None:
        """Abort a ``close()`` that is under way."""
        self.app.hurry()

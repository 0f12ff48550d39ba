"""TLS over the plain transport of an accepted socket.

Rule 1: there is one buffer, the plain transport's, with the marks of the settings; ``get_write_buffer_size()`` shows
        all of it, and permission to write means the same as without TLS.
Rule 2: until its handshake is over a connection has no task and no request: only a deadline.
Rule 3: what ends with ``abort()`` ends without ``close_notify``, so that a cut is seen to be one.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Protocol, cast

from rawstream.errors import ClientDisconnected, SettingsError
from rawstream.flow import kernel
from rawstream.flow.deadlines import Sweeper
from rawstream.server.link import Link, SecuredTransport
from rawstream.settings import Settings
from rawstream.wire.tls import Hello, ServerTls, TlsFailed, look_at

_MOST_OWN: Final = 64 * 1024
"""Bytes of TLS's own records (answers to key updates) that may wait for a peer that does not read."""
_PLAIN_REQUEST: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 84\r\nconnection: close\r\n\r\n"
    b'{"error": "this port speaks https: use https:// in the URL", "code": "tls_expected"}'
)


def server_context(certfile: str, keyfile: str | None, *, http2: bool = False) -> ssl.SSLContext:
    """TLS 1.2 or newer; ALPN for what is spoken. Raises SettingsError naming the file that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    for name, path in (("ssl_certfile", certfile), ("ssl_keyfile", keyfile)):
        if path is not None:
            try:
                with open(path, "rb"):
                    pass
            except OSError as error:
                raise SettingsError(f"{name}: cannot read {path!r}: {error.strerror}") from None

    def no_password() -> str:
        raise SettingsError(f"ssl_keyfile: the key in {keyfile or certfile!r} has a password; give one without")

    try:
        context.load_cert_chain(certfile, keyfile, no_password)
    except ssl.SSLError as error:
        reason = (error.reason or "no PEM file").replace("_", " ").lower()
        files = certfile if keyfile is None else f"{certfile} and {keyfile}"
        raise SettingsError(f"ssl_certfile: {files} hold no certificate with its key: {reason}") from None
    return context


class TlsHost(Protocol):
    """Who is told of connections that are not ready yet."""

    def handshake_begins(self, handshake: TlsProtocol) -> None: ...

    def handshake_ends(self, handshake: TlsProtocol) -> None: ...


class TlsTransport(SecuredTransport):
    """What a ``Link`` sees: a transport of plaintext."""

    __slots__ = ("_link", "_plain", "_tls")

    def __init__(self, plain: asyncio.Transport, tls: ServerTls, link: Link) -> None:
        self._plain = plain
        self._tls = tls
        self._link = link
        self.written = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._plain.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._link

    # --- writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data:
            self._write(self._tls.encrypt(bytes(data)))

    def _write(self, records: bytes) -> None:
        self.written += len(records)
        self._plain.write(records)

    def write_sealed(self, sock: socket.socket, data: bytes) -> None:
        """``write``, past the transport while it holds nothing (``kernel.send_sealed``)."""
        records = self._tls.encrypt(data)
        self.written += len(records)
        try:
            left = records[kernel.send_sealed(sock, records) :]
        except OSError:
            left = records  # broken: the transport will find out by itself, and say so
        if left:
            self._plain.write(left)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._write(self._tls.close())
        self._plain.write_eof()

    def get_write_buffer_size(self) -> int:
        return self._plain.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._plain.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._plain.set_write_buffer_limits(high=high, low=low)

    # --- reading

    def pause_reading(self) -> None:
        self._plain.pause_reading()

    def resume_reading(self) -> None:
        self._plain.resume_reading()

    def is_reading(self) -> bool:
        return self._plain.is_reading()

    # --- ends

    def is_closing(self) -> bool:
        return self._plain.is_closing()

    def close(self) -> None:
        if not self._plain.is_closing():
            self._write(self._tls.close())
        self._plain.close()

    def abort(self) -> None:
        self._plain.abort()


class TlsProtocol(asyncio.Protocol):
    """Between an accepted socket's transport and the ``Link`` that speaks on it."""

    __slots__ = ("_begun", "_deadline", "_factory", "_host", "_link", "_plain", "_tls")

    def __init__(
        self,
        host: TlsHost,
        settings: Settings,
        context: ssl.SSLContext,
        loop: asyncio.AbstractEventLoop,
        factory: Callable[[str | None], Link],
    ) -> None:
        """``factory`` makes the link, once the handshake is over, of what ALPN agreed on.

        A handshake has ``settings.head_timeout`` seconds.
        """
        self._host = host
        self._factory = factory
        self._tls = ServerTls(context)
        self._plain: asyncio.Transport | None = None
        self._link: Link | None = None
        self._begun = False
        """Have the first bytes been looked at?"""
        self._deadline = Sweeper.of(loop).deadline(self.abort)
        self._deadline.set(monotonic() + settings.head_timeout)

    def abort(self) -> None:
        """Break off a handshake."""
        if self._plain is not None:
            self._plain.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._plain = cast(asyncio.Transport, transport)
        self._host.handshake_begins(self)

    def data_received(self, data: bytes) -> None:
        tls, plain = self._tls, self._plain
        assert plain is not None
        if not self._begun:
            self._begun = True
            if not self._is_tls(data, plain):
                return
        ended = tls.ended
        try:
            pieces = tls.receive(data)
        except TlsFailed as failure:
            self._fail(failure, plain)
            return
        if own := tls.to_send():
            if plain.get_write_buffer_size() + len(own) > _MOST_OWN:
                plain.abort()
                return
            plain.write(own)
        link = self._link
        if link is None:
            if not tls.established:
                return
            link = self._begin(plain)
        for piece in pieces:
            link.data_received(piece)
        if tls.ended and not ended:
            link.eof_received()

    def _is_tls(self, first: bytes, plain: asyncio.Transport) -> bool:
        """Does TLS begin here? A plain request is told that it should, in plain words."""
        hello = look_at(first)
        if hello is Hello.PLAIN_HTTP:
            plain.write(_PLAIN_REQUEST)
            plain.close()
        elif hello is Hello.OTHER:
            plain.abort()
        return hello is Hello.TLS

    def _begin(self, plain: asyncio.Transport) -> Link:
        self._deadline.close()
        self._host.handshake_ends(self)
        link = self._link = self._factory(self._tls.protocol)
        link.secure(TlsTransport(plain, self._tls, link))
        return link

    def _fail(self, failure: TlsFailed, plain: asyncio.Transport) -> None:
        """Tell the peer by an alert, if it can be told at once, and close."""
        plain.write(self._tls.to_send())
        if self._link is not None:
            self._link.lose(failure)
        elif plain.get_write_buffer_size():
            plain.abort()
        else:
            plain.close()

    def eof_received(self) -> bool:
        """The socket's end. Without ``close_notify`` before it this is a cut, not an end (rule 3)."""
        if self._link is None:
            return False
        if not self._tls.ended:
            self._link.lose(ClientDisconnected("the client cut its TLS connection"))
            return False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.close()
        if self._link is not None:
            self._link.connection_lost(exc)
        else:
            self._host.handshake_ends(self)

    def pause_writing(self) -> None:
        if self._link is not None:
            self._link.pause_writing()

    def resume_writing(self) -> None:
        if self._link is not None:
            self._link.resume_writing()

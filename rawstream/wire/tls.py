"""TLS, the server's side, without a socket: ciphertext in, plaintext out, and back (RFC 8446, RFC 5246).

Rule 1: nothing is kept here. What is given to ``encrypt`` comes out as records at once, so that whoever waits for
        the client waits in one place: where the records are written. (asyncio's own TLS keeps 64 KiB more, unseen.)
Rule 2: an end without ``close_notify`` is a cut (RFC 8446 §6.1): only the peer's own word is an end.
Rule 3: bytes that are not TLS are told apart before OpenSSL sees them: a plain HTTP request deserves a plain answer.

Theory of operation: OpenSSL reads from and writes to two memory buffers. Each call here puts bytes into the one,
lets OpenSSL work, and empties the other.
"""

from __future__ import annotations

import enum
import ssl
from typing import Final

from rawstream.errors import ProtocolViolation

_READ: Final = 16 * 1024
"""The longest record's plaintext (RFC 8446 §5.1)."""
_HANDSHAKE: Final = 0x16
"""The first byte of a TLS connection: a record of type handshake (RFC 8446 §5.1)."""
_HTTP: Final = tuple(method + b" " for method in b"GET HEAD POST PUT DELETE PATCH OPTIONS TRACE CONNECT PRI".split())


class Hello(enum.Enum):
    """What the first bytes of a connection are."""

    TLS = "tls"
    PLAIN_HTTP = "plain_http"
    OTHER = "other"


def look_at(first: bytes) -> Hello:
    """``first``: what arrived first, one byte at least."""
    if first[0] == _HANDSHAKE:
        return Hello.TLS
    if any(first.startswith(method[: len(first)]) for method in _HTTP):
        return Hello.PLAIN_HTTP
    return Hello.OTHER


class TlsFailed(ProtocolViolation):
    """The peer's bytes are no TLS that we accept. ``str()`` names the reason in OpenSSL's words."""

    code = "tls_failed"


class ServerTls:
    """One connection's TLS. No I/O, no clock."""

    __slots__ = ("_incoming", "_object", "_outgoing", "ended", "established")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.established = False
        """Is the handshake over?"""
        self.ended = False
        """Has the peer said ``close_notify``?"""

    @property
    def protocol(self) -> str | None:
        """What ALPN agreed on (RFC 7301); None: nothing."""
        return self._object.selected_alpn_protocol()

    @property
    def version(self) -> str | None:
        """``TLSv1.3`` …; None before the handshake is over."""
        return self._object.version()

    def receive(self, data: bytes) -> list[bytes]:
        """Take ciphertext; return the plaintext it completes, in pieces. Look at ``to_send()`` afterwards.

        Raises TlsFailed; ``to_send()`` then holds the alert to send before the connection is closed.
        """
        if self.ended:
            return []  # RFC 8446 §6.1: what comes after close_notify is ignored; nobody would take it from the buffer
        self._incoming.write(data)
        try:
            if not self.established:
                self._object.do_handshake()
                self.established = True
            return self._plaintext()
        except ssl.SSLWantReadError:
            return []
        except ssl.SSLError as error:
            reason = (error.reason or "broken").replace("_", " ").lower()
            raise TlsFailed(f"TLS failed: {reason}", detail=str(error)) from None

    def _plaintext(self) -> list[bytes]:
        pieces: list[bytes] = []
        try:
            while not self.ended:
                piece = self._object.read(_READ)
                if piece:
                    pieces.append(piece)
                else:
                    self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return pieces

    def to_send(self) -> bytes:
        """Ciphertext of OpenSSL's own (handshake, alerts, key updates) that must be written; b'' when there is none."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def encrypt(self, data: bytes) -> bytes:
        """The records of ``data``: 22 bytes more for each 16 KiB (TLS 1.3)."""
        view = memoryview(data)
        while view:
            view = view[self._object.write(view) :]
        return self._outgoing.read()

    def close(self) -> bytes:
        """``close_notify``: the clean end of what we say. The peer's own is not waited for (RFC 8446 §6.1)."""
        try:
            self._object.unwrap()
        except ssl.SSLError:
            pass  # it wants the peer's close_notify, or the connection was broken before
        return self.to_send()

"""What an exchange needs of the protocol that it is spoken in: HTTP/1.1's codec, or one stream of HTTP/2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rawstream.wire.chunks import EndOfBody


class Codec(Protocol):
    """One request and its answer at a time."""

    def receive(self, data: bytes) -> None:
        """Keep bytes from the peer; ``b""`` says that it will send no more."""
        ...

    @property
    def buffered(self) -> int:
        """Bytes received and not consumed yet."""
        ...

    @property
    def body_complete(self) -> bool:
        """No more bytes of the present request are on their way."""
        ...

    def next_body(self) -> bytes | EndOfBody | None:
        """Some of the body; None when more bytes are needed; END_OF_BODY at its end."""
        ...

    def continue_100(self) -> bytes:
        """The ``100 Continue`` that the client waits for; ``b""`` when it waits for none."""
        ...

    def response_head(self, status: int, headers: Sequence[tuple[str, str]], *, head_only: bool = False) -> bytes:
        """The head of the answer, as it is to be written."""
        ...

    @property
    def framing(self) -> str:
        """How the body of the answer is delimited: ``chunked``, ``length``, ``close``, ``http2`` or ``none``."""
        ...

    def frame(self, data: bytes) -> bytes:
        """``data`` in the framing of the answer."""
        ...

    def end(self, last: bytes = b"") -> bytes:
        """``last`` and the end of the body, to be written together."""
        ...

    def next_cycle(self) -> bool:
        """After ``end``: make ready for the next request. False: there can be none."""
        ...

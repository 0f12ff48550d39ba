"""A UI message stream that has passed, told shorter: its deltas joined (for ``GET /api/chat/{id}/stream``).

Rule 1: what the client comes to is the same: order, parts and ids stay; only deltas of the same part that follow one
        another become one. Progress that was transient is left out.
Rule 2: a joined delta is bounded, so that no write is as long as the whole answer.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rawstream.wire.json_text import quote

MOST: Final = 8 * 1024
"""Characters of a joined delta."""
_BLANK: Final = b"\n\n"
_DELTAS: Final = {"text-delta", "reasoning-delta"}


class _Chunk(msgspec.Struct):
    type: str
    id: str = ""
    delta: str = ""
    transient: bool = False


_decode: Final = msgspec.json.Decoder(_Chunk).decode


def compact(frames: bytes) -> bytes:
    """Whole events of this server's, as few as say the same."""
    shorter: list[bytes] = []
    kind, part, texts, size = "", "", list[str](), 0

    def flush() -> None:
        nonlocal size
        if texts:
            told = b'data: {"type":%b,"id":%b,"delta":%b}\n\n' % (quote(kind), quote(part), quote("".join(texts)))
            shorter.append(told)
            texts.clear()
            size = 0

    for event in frames.split(_BLANK)[:-1]:
        try:
            chunk = _decode(event.removeprefix(b"data: "))
        except msgspec.DecodeError:  # [DONE]
            flush()
            shorter.append(event + _BLANK)
            continue
        if chunk.type in _DELTAS:
            if (chunk.type, chunk.id) != (kind, part) or size + len(chunk.delta) > MOST:
                flush()
                kind, part = chunk.type, chunk.id
            texts.append(chunk.delta)
            size += len(chunk.delta)
        elif not chunk.transient:
            flush()
            shorter.append(event + _BLANK)
    flush()
    return b"".join(shorter)

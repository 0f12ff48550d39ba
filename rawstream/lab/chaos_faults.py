"""How each model of ``rawstream chaos`` is played from the head on (what may come instead: ``chaos_heads.py``).

Rule 1: a player writes and returns. Unless it ended its answer properly, the connection is then closed.
Rule 2: nobody here looks after the client: a player whose client has left is cancelled (all but ``deaf``).
Rule 3: where a fault is about events alone, a whole answer is simply whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from rawstream.lab.chaos_answers import DONE, Answer, error_body, event, pieces_of
from rawstream.lab.chaos_heads import HEADS, Player, silent, well
from rawstream.lab.chaos_peer import LAST_CHUNK, Play
from rawstream.settings import KiB, MiB

_BLOCK: Final = 64 * KiB


# --- healthy ------------------------------------------------------------------------------------------------


async def ok(play: Play) -> None:
    values = play.asked.values
    await well(play, int(values["tokens"]), values.get("rate", 0.0), int(values.get("batch", 1)))


async def endless(play: Play) -> None:
    await play.start()
    await play.endless(play.asked.seconds("rate"))


async def slow_first(play: Play) -> None:
    await asyncio.sleep(play.asked.seconds("seconds"))
    await ok(play)


async def unicode(play: Play) -> None:
    await play.start()
    if play.stream:
        for number in range(play.asked.count("tokens")):
            text = play.answer.token(number, play.asked.count("tokens"))
            for piece in pieces_of(text, 7):  # no multiple of any character's length
                for byte in pieces_of(play.frame(piece), 1):
                    await play.peer.send(byte)
                    await asyncio.sleep(0)
            play.count_token()
    else:
        await play.tokens(play.asked.count("tokens"))
    await play.finish()


# --- dies in mid-stream -------------------------------------------------------------------------------------


async def _some(play: Play, *fields: str, prefix: bytes = b"") -> None:
    """The tokens before the fault."""
    await play.start(*fields, prefix=prefix)
    await play.tokens(play.asked.count("tokens"), rate=play.asked.values.get("rate", 0.0))


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


async def die_after_head(play: Play) -> None:
    await play.peer.send(play.head())


async def die_mid_event(play: Play) -> None:
    await _some(play)
    await play.send(_half(play.next_event()))


async def die_mid_chunk(play: Play) -> None:
    await _some(play)
    await play.peer.send(_half(play.frame(play.next_event())))


async def reset_mid_stream(play: Play) -> None:
    await _some(play)
    await play.peer.reset()


async def bad_chunk_size(play: Play) -> None:
    await _some(play)
    await play.peer.send(b"zz\r\n" + play.next_event() + b"\r\n")


async def short_length(play: Play) -> None:
    await _some(play, "Content-Length: 1000000")


# --- tells an error -----------------------------------------------------------------------------------------

_TOLD: Final = error_body("chaos: the model failed", "chaos_failed")


async def error_in_stream(play: Play) -> None:
    if not play.stream:
        await play.error("500 Internal Server Error", "chaos: the model failed", "chaos_failed")
        return
    await _some(play)
    await play.peer.send(play.frame(event(_TOLD)) + LAST_CHUNK)
    play.answered()


async def error_first(play: Play) -> None:
    if not play.stream:
        await error_in_stream(play)
        return
    await play.peer.send(play.head() + play.frame(event(_TOLD)) + LAST_CHUNK)
    play.answered()


# --- stalls in mid-stream -----------------------------------------------------------------------------------


async def stall(play: Play) -> None:
    await _some(play)
    await silent(play)


async def stall_mid_event(play: Play) -> None:
    await _some(play)
    await play.send(_half(play.next_event()))
    await silent(play)


async def drip(play: Play) -> None:
    await _some(play)
    await play.send(b"data: {")
    while True:
        await play.send(b" ")
        await asyncio.sleep(play.asked.seconds("interval"))


async def pings_only(play: Play) -> None:
    await _some(play)
    while True:
        await play.send(b": ping\n\n" if play.stream else b" ")
        await asyncio.sleep(play.asked.seconds("interval"))


# --- too much -----------------------------------------------------------------------------------------------


async def huge_event(play: Play) -> None:
    await _some(play)
    head, middle, tail = play.next_event().partition(b'content":"')
    if middle:
        await play.send(head + middle)
        for _ in range(play.asked.count("megabytes") * MiB // _BLOCK):
            await play.send(b"h" * _BLOCK)
        await play.send(tail)
        await play.finish()
    else:
        # A whole answer's rest, behind white space.
        for _ in range(play.asked.count("megabytes") * MiB // _BLOCK):
            await play.send(b" " * _BLOCK)
        await play.finish()


async def endless_line(play: Play) -> None:
    await _some(play)
    await play.send(b"data: " if play.stream else b" ")
    while True:
        await play.send((b"l" if play.stream else b" ") * _BLOCK)


async def endless_multiline(play: Play) -> None:
    await _some(play)
    line = b'data: {"a": 1}\n' if play.stream else b" " * 15
    while True:
        await play.send(line * (_BLOCK // len(line)))


async def flood(play: Play) -> None:
    await play.start()
    if play.stream:
        left = play.asked.count("megabytes") * MiB
        number = 0
        while left > 0:
            events: list[bytes] = []
            size = 0
            while size < _BLOCK:
                events.append(play.answer.token(number, 0))
                size += len(events[-1])
                number += 1
                play.count_token()
            left -= size
            await play.send(b"".join(events))
            await asyncio.sleep(0)
    else:
        await play.tokens(play.asked.count("megabytes") * MiB // 200)
    await play.finish()


# --- strange bytes ------------------------------------------------------------------------------------------


async def _recoded(play: Play, newline: bytes) -> None:
    """``ok``, with other ends of lines, each of their bytes in a chunk of its own."""
    count = play.asked.count("tokens")
    if not play.stream:
        await ok(play)
        return
    await play.peer.send(play.head())
    tokens = [play.answer.token(number, count) for number in range(count)]
    for text in [play.answer.opening(), *tokens, play.answer.closing(count), DONE]:
        for line in text.split(b"\n")[:-1]:
            for piece in [line, *pieces_of(newline, 1)]:
                await play.send(piece)
        play.count_token()
    await play.peer.send(LAST_CHUNK)
    play.answered()


async def cr_only(play: Play) -> None:
    await _recoded(play, b"\r")


async def split_crlf(play: Play) -> None:
    await _recoded(play, b"\r\n")


async def bom(play: Play) -> None:
    await _some(play, prefix=b"\xef\xbb\xbf")
    await play.finish()


async def _odd(play: Play, data: bytes) -> None:
    await _some(play)
    if play.stream:
        await play.send(data)
    await play.finish()


async def invalid_utf8(play: Play) -> None:
    await _odd(play, play.next_event().replace(b"token", b"\xff\xc0\xaf", 1))


async def nul(play: Play) -> None:
    await _odd(play, play.next_event().replace(b"token", b"\x00", 1))


async def junk_data(play: Play) -> None:
    await _odd(play, b'data: not json\n\ndata: [1, 2]\n\ndata: {"choices": "none"}\n\ndata: "text"\n\ndata: null\n\n')


# --- strange ends, and connection reuse ---------------------------------------------------------------------


async def no_done(play: Play) -> None:
    await _some(play)
    await play.finish(done=b"")


async def after_done(play: Play) -> None:
    late = Answer(play.asked.text).token(99, 100) if play.stream else b""
    await _some(play)
    await play.finish(done=DONE + late + late)


async def close_delimited(play: Play) -> None:
    await _some(play, "Connection: close")
    await play.finish()


async def close_delimited_cut(play: Play) -> None:
    await _some(play, "Connection: close")
    await play.send(_half(play.next_event()))


async def trailing_bytes(play: Play) -> None:
    await _some(play)
    await play.finish(after=b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nEVIL!")


async def close_pooled(play: Play) -> None:
    if play.peer.requests == 1:
        await ok(play)


async def deaf(play: Play) -> None:
    await endless(play)


PLAYERS: Final[Mapping[str, Player]] = {
    **HEADS,
    "ok": ok, "endless": endless, "unicode": unicode, "slow-first": slow_first, "tools": ok,
    "reasoning": ok, "choices": ok, "die-after-head": die_after_head, "die-between-events": _some,
    "die-mid-event": die_mid_event, "die-mid-chunk": die_mid_chunk, "reset-mid-stream": reset_mid_stream,
    "bad-chunk-size": bad_chunk_size, "short-length": short_length, "error-in-stream": error_in_stream,
    "error-first": error_first, "stall": stall, "stall-mid-event": stall_mid_event, "drip": drip,
    "pings-only": pings_only, "huge-event": huge_event, "endless-line": endless_line,
    "endless-multiline": endless_multiline, "flood": flood, "cr-only": cr_only, "split-crlf": split_crlf,
    "bom": bom, "invalid-utf8": invalid_utf8, "nul": nul, "junk-data": junk_data, "no-done": no_done,
    "after-done": after_done, "close-delimited": close_delimited,
    "close-delimited-cut": close_delimited_cut, "trailing-bytes": trailing_bytes,
    "close-pooled": close_pooled, "deaf": deaf,
}  # fmt: skip
"""Every model of the registry, and its player."""

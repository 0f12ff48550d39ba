"""What ``rawstream chaos`` gives instead of a stream: no head, a bad one, a slow one, another status, another kind.

Rule 1: a player writes and returns. Unless it ended its answer properly, the connection is then closed.
Rule 2: all of it comes before the first token, so whoever stands between can still answer with a status.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final, TypeAlias

from rawstream.lab.chaos_answers import DONE
from rawstream.lab.chaos_peer import EVENT_STREAM, LAST_CHUNK, Play
from rawstream.settings import KiB
from rawstream.wire.chunks import frame_chunk

Player: TypeAlias = Callable[[Play], Awaitable[None]]


async def well(play: Play, tokens: int, rate: float = 0.0, batch: int = 1) -> None:
    """A healthy answer."""
    if not play.stream:
        await play.make(tokens, rate)
        await play.whole(play.answer.whole(tokens))
        return
    await play.start()
    await play.tokens(tokens, rate=rate, batch=batch)
    await play.finish()


# --- instead of an answer -----------------------------------------------------------------------------------


async def reset_before_head(play: Play) -> None:
    await play.peer.reset()


async def close_before_head(play: Play) -> None:
    """Returning closes it."""


async def garbage(play: Play) -> None:
    await play.peer.send(bytes(range(256)) * 4)


async def http09(play: Play) -> None:
    await play.peer.send(play.answer.opening() + play.answer.token(0, 1) + DONE)


async def huge_head(play: Play) -> None:
    await play.peer.send(b"HTTP/1.1 200 OK\r\nX-Huge: ")
    for _ in range(play.asked.count("kilobytes")):
        await play.peer.send(b"h" * KiB)
    await play.peer.send(b"\r\n\r\n")


async def many_fields(play: Play) -> None:
    await play.peer.send(b"HTTP/1.1 200 OK\r\n")
    for number in range(play.asked.count("fields")):
        await play.peer.send(b"X-Field-%d: v\r\n" % number)
    await play.peer.send(b"\r\n")


async def bad_fields(play: Play) -> None:
    fields = b"X-Bare: a\rb\r\nX-Nul: a\x00b\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    await play.peer.send(b"HTTP/1.1 200 OK\r\n" + fields + frame_chunk(DONE) + LAST_CHUNK)


# --- silence before the answer ------------------------------------------------------------------------------


async def silent(play: Play) -> None:
    await asyncio.sleep(play.asked.seconds("seconds"))


async def drip_head(play: Play) -> None:
    await play.peer.send(b"HTTP/1.1 200 OK\r\nX-Drip: ")
    while True:
        await play.peer.send(b"d")
        await asyncio.sleep(play.asked.seconds("interval"))


async def endless_1xx(play: Play) -> None:
    while True:
        await play.peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
        await asyncio.sleep(play.asked.seconds("interval"))


# --- another status, another kind of answer -----------------------------------------------------------------


async def status(play: Play) -> None:
    times, after = play.asked.count("times"), play.asked.seconds("retry_after")
    if times and play.failures >= times:
        await well(play, 20)
        return
    play.failed = True
    number = play.asked.count("code")
    fields = [f"Retry-After: {after:g}"] if after >= 0 else []
    message = f"chaos: {number} was asked for"
    if number in (401, 403):
        message = f"Incorrect API key provided: {play.key}"
    await play.error(_line(number), message, f"chaos_{number}", *fields)


async def redirect(play: Play) -> None:
    where = "Location: http://127.0.0.1:1/v1/chat/completions"
    await play.whole(b"", where, status=_line(play.asked.count("code")))


def _line(number: int) -> str:
    known = {entry.value: entry.phrase for entry in HTTPStatus}
    return f"{number} {known.get(number, 'Unknown')}"


async def html(play: Play) -> None:
    await play.whole(b"<!doctype html><title>chaos</title><p>A page, no answer.", kind="text/html; charset=utf-8")


async def json_answer(play: Play) -> None:
    await play.whole(play.answer.whole(play.asked.count("tokens")))


async def not_json(play: Play) -> None:
    await play.whole(b'{"object": "chat.completion", "choices": [')


async def gzipped(play: Play) -> None:
    count = play.asked.count("tokens")
    text = play.answer.whole(count)
    if play.stream:
        tokens = b"".join(play.answer.token(number, count) for number in range(count))
        text = play.answer.opening() + tokens + play.answer.closing(count) + DONE
    kind = EVENT_STREAM if play.stream else "application/json"
    await play.whole(gzip.compress(text), "Content-Encoding: gzip", kind=kind)


async def no_content(play: Play) -> None:
    await play.peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")
    play.answered()


async def length_and_te(play: Play) -> None:
    await play.start("Content-Length: 10", "Transfer-Encoding: chunked")
    play.chunked = True
    await play.tokens(play.asked.count("tokens"))
    await play.finish()
    play.kept = False


HEADS: Final[Mapping[str, Player]] = {
    "reset-before-head": reset_before_head, "close-before-head": close_before_head, "garbage": garbage,
    "http09": http09, "huge-head": huge_head, "many-fields": many_fields, "bad-fields": bad_fields,
    "silent": silent, "drip-head": drip_head, "endless-1xx": endless_1xx, "status": status,
    "redirect": redirect, "html": html, "json": json_answer, "not-json": not_json, "gzip": gzipped,
    "no-content": no_content, "length-and-te": length_and_te,
}  # fmt: skip
"""The models that are played here."""

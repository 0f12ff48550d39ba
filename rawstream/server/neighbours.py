"""A live stream may be a sibling's: what its client asks of any worker is answered by the one that streams.

Rule 1: who is asked about a stream that is not here asks all siblings at the same time, and passes on what the one that
        has it says. A sibling that does not answer within a second has none.
Rule 2: the id alone is not enough there either: whoever asks must be the user it was made for.
Rule 3: a question is small, and answered without waiting. Reading a stream on is none: that takes Redis.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from rawstream.errors import BadRequest, RawstreamError
from rawstream.server.exchange import Exchange

DEADLINE: Final = 1.0
"""Seconds for all siblings together."""
KIND: Final = "ask"
"""Of the sockets' names."""
_MOST: Final = 1 << 20
"""Bytes of a question."""


class Question(msgspec.Struct, frozen=True):
    """What somebody asks of a stream."""

    what: str
    """``state``, ``stop``, ``credit`` or ``signal``."""
    stream: str
    user: str | None
    content: bytes = b""
    """The request's body."""


class Reply(msgspec.Struct, frozen=True):
    """What it is told, ready to be sent."""

    status: int
    body: bytes = b""
    code: str = ""
    """Of an error, whose message ``body`` is; '': it is none."""


Elsewhere: TypeAlias = Callable[[Question], Awaitable[Reply | None]]
"""Answers in another process; None: there is no such stream."""
Answer: TypeAlias = Callable[[Question], Reply]
"""Answers here. Raises BadRequest, with code ``no_such_stream`` when there is no such stream."""


async def answer_anywhere(
    exchange: Exchange, what: str, answer: Answer, at_its_owner: Elsewhere | None, siblings: Neighbours | None
) -> Reply:
    """What is asked of the stream in the path: answered here, or by its owner in Redis (which knows of what can be
    resumed, and answers sooner than a sibling that is hung), or by the sibling that has it. Raises RawstreamError.
    """
    question = Question(what, exchange.param("id"), exchange.user_name, exchange.content)
    reply: Reply | None = None
    try:
        return answer(question)
    except BadRequest as missing:
        if missing.code != "no_such_stream":
            raise
        nowhere: RawstreamError = missing
    if at_its_owner is not None:
        try:
            reply = await at_its_owner(question)
        except RawstreamError as gone:
            if gone.status != 503:
                raise
            nowhere = gone  # Redis is
    if reply is None and siblings is not None:
        reply = await siblings.ask(question)
    if reply is None:
        raise nowhere
    if reply.code:
        raise BadRequest(reply.body.decode(), status=reply.status, code=reply.code)
    return reply


class Neighbours:
    """One worker's part. ``start()``, then ``aclose()``."""

    def __init__(self, directory: Path, serial: int, answers: Mapping[str, Answer]) -> None:
        """``directory``: where all of them are; ``serial``: this one's number; ``answers``: to what may be asked."""
        self._directory = directory
        self._own = f"{serial}.{KIND}"
        self._answers = answers
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Answer siblings from now on. Raises OSError."""
        self._server = await asyncio.start_unix_server(self._serve, self._directory / self._own)

    async def aclose(self) -> None:
        """Answer no more. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            (self._directory / self._own).unlink(missing_ok=True)

    async def ask(self, question: Question) -> Reply | None:
        """The answer of the sibling that has the stream; None: none of them. Cancel-safe."""
        try:
            names = [name for name in os.listdir(self._directory) if name.endswith(f".{KIND}") and name != self._own]
        except OSError:
            return None  # the supervisor is gone, and the directory with it
        asking = [asyncio.ensure_future(_ask(self._directory / name, question)) for name in names]
        error: Reply | None = None
        try:
            for done in asyncio.as_completed(asking):
                reply = await done
                if reply is not None and not reply.code:
                    return reply
                error = error or reply  # of one that only reads it, perhaps
        finally:
            for one in asking:
                one.cancel()
        return error

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                said = b""
                while (more := await reader.read(_MOST)) and len(said) <= _MOST:
                    said += more
                writer.write(msgspec.msgpack.encode(self._reply(msgspec.msgpack.decode(said, type=Question))))
                await writer.drain()
        except (OSError, TimeoutError, msgspec.DecodeError):
            pass  # it did not wait, or is of another version: it takes that for "there is none"
        finally:
            writer.close()

    def _reply(self, question: Question) -> Reply | None:
        answer = self._answers.get(question.what)
        if answer is None:
            return None
        try:
            return answer(question)
        except RawstreamError as error:
            if error.code == "no_such_stream":
                return None
            return Reply(error.status, str(error).encode(), error.code)


async def _ask(path: Path, question: Question) -> Reply | None:
    """What the worker at ``path`` says; None: nothing, or that it has no such stream."""
    writer = None
    try:
        async with asyncio.timeout(DEADLINE):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(msgspec.msgpack.encode(question))
            writer.write_eof()
            said = await reader.read(-1)
        return msgspec.msgpack.decode(said, type=Reply | None)
    except (OSError, TimeoutError, msgspec.DecodeError):
        return None
    finally:
        if writer is not None:
            writer.transport.abort()  # close() would wait for a sibling that is hung

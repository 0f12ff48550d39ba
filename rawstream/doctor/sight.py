"""What the far side knows of a generation: the only proof that a cancel, or a wait, has reached it.

Rule 1: a stream is asked after by its own id, through the same edge or at the server itself; failing that it is the
        one that appeared in ``/debug/streams`` with our request. Other people's streams are never touched.
Rule 2: nothing that can be asked means nothing is known. It is not guessed.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from rawstream.doctor.asking import Asker, Exchange, same_origin
from rawstream.doctor.finding import CannotExamine, members
from rawstream.doctor.target import Target

ASK_EVERY: Final = 0.005
"""Seconds between two looks."""

_SURE: Final = 3
"""So many times "not found" in a row: behind a balancer one of them may be the word of another server."""
_SETTLES_WITHIN: Final = 2.0


class State(msgspec.Struct, frozen=True, gc=False):
    """A generation, seen from where it is made."""

    tokens: int | None
    """Made so far; None: it does not say."""
    bytes: int | None = None


def is_mock(answer: tuple[int, Any] | None) -> bool:
    """Is an answer of ``GET /v1/models`` that of rawstream's own mock?"""
    data = members(answer[1]).get("data") if answer is not None and answer[0] == 200 else None
    found = [(members(one).get("id"), members(one).get("owned_by")) for one in data] if isinstance(data, list) else []
    return found == [("mock", "rawstream")]


class Sight:
    """A way to look at one generation. ``look()`` gives its state, or None when it does not run any more."""

    def __init__(
        self,
        through: str,
        look: Callable[[], Awaitable[State | None]],
        stop: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self.through = through
        """Where it is asked, in words."""
        self.look = look
        self.stop = stop
        """Ends the generation, where that can be asked for."""

    async def until_gone(self, within: float) -> float | None:
        """Seconds until it does not run any more; None: it still does after ``within``."""
        return await _until_gone(self.look, within)


async def _until_gone(look: Callable[[], Awaitable[State | None]], within: float) -> float | None:
    clock = asyncio.get_running_loop().time
    began = clock()
    while await look() is not None:
        if clock() - began > within:
            return None
        await asyncio.sleep(ASK_EVERY)
    return clock() - began


def state_of(told: Any) -> State:
    """The state in rawstream's own words."""
    said = members(told)
    tokens, size = said.get("tokens"), said.get("bytes")
    return State(tokens if isinstance(tokens, int) else None, size if isinstance(size, int) else None)


class RawstreamEye:
    """Looks at a rawstream's streams, through the edge and at ``server`` (its own address), where that is known."""

    def __init__(self, asker: Asker, target: Target, server: str | None) -> None:
        self._asker = asker
        self._target = target
        self._server = server.rstrip("/") if server else None
        if self._server is not None and "://" not in self._server:
            self._server = f"http://{self._server}"
        self._before: set[str] = set()

    async def remember(self) -> None:
        """To be called before a request: which streams run already."""
        self._before = {stream["id"] for stream in await self._all()}

    async def find(self, exchange: Exchange) -> Sight | None:
        """A way to look at the stream that this exchange began; None: there is none."""
        stream_id = exchange.header("x-stream-id")
        if stream_id and stream_id.isalnum():
            for base, through in self._places():
                url = f"{base}/streams/{stream_id}"
                answer = await self._ask("GET", url)
                if answer is not None and answer[0] == 200 and "tokens" in members(answer[1]):
                    return Sight(
                        through,
                        functools.partial(self._by_id, url),
                        functools.partial(self._ask, "POST", f"{url}/stop"),
                    )
        new = [stream for stream in await self._all() if stream["id"] not in self._before]
        if len(new) == 1:
            public = new[0]["id"]
            return Sight("seen in the server's /debug/streams", lambda: self._by_public_id(public))
        return None

    def _places(self) -> list[tuple[str, str]]:
        places = [(self._server, "seen at the server")] if self._server else []
        base = self._target.base.rstrip("/")
        return [*places, (base, "seen through the same edge")]

    async def _ask(self, method: str, url: str) -> tuple[int, Any] | None:
        headers = self._target.headers if same_origin(url, self._target.url) else ()
        return await self._asker.aside(method, url, headers)

    async def _by_id(self, url: str) -> State | None:
        """None: it does not run. Raises CannotExamine when that cannot be told."""
        for _ in range(_SURE):
            answer = await self._ask("GET", url)
            if answer is None or answer[0] not in (200, 404):
                said = "nothing" if answer is None else str(answer[0])
                raise CannotExamine(f"the question what became of the stream was answered by {said}")
            if answer[0] == 200:
                return state_of(answer[1])
        return None

    async def _by_public_id(self, public: str) -> State | None:
        return next((state_of(stream) for stream in await self._all() if stream["id"] == public), None)

    async def _all(self) -> list[dict[str, Any]]:
        if self._server is None:
            return []
        answer = await self._ask("GET", f"{self._server}/debug/streams")
        streams = members(answer[1]).get("streams") if answer is not None and answer[0] == 200 else None
        if not isinstance(streams, list):
            raise CannotExamine(f"{self._server}/debug/streams does not answer: is that a rawstream's own address?")
        return [found for found in map(members, streams) if isinstance(found.get("id"), str)]


class ModelServerEye:
    """Looks at a model server's generations: llama.cpp's ``/slots``, rawstream's ``/debug/streams``, chaos's state.

    ``name`` says which one it is, '' where none of them answers. Made by ``model_server_eye``.
    """

    def __init__(self, name: str, ask: Callable[[], Awaitable[list[State] | None]]) -> None:
        self.name = name
        self._ask = ask
        self._others = 0

    async def remember(self) -> None:
        """To be called before a request: how many generations run already, once our own last one is over."""
        clock = asyncio.get_running_loop().time
        until = clock() + _SETTLES_WITHIN
        while True:
            self._others = len(await self._ask() or ())
            if not self._others or clock() > until:
                return
            await asyncio.sleep(ASK_EVERY)

    async def look(self) -> State | None:
        """The newest generation that was not there before."""
        running = await self._ask()
        if running is None:
            return State(None)
        if len(running) <= self._others:
            return None
        return State(None) if self._others else running[-1]  # which of several is ours does not show

    async def until_gone(self, within: float) -> float | None:
        """Seconds until it does not run any more; None: it still does after ``within``."""
        return await _until_gone(self.look, within)


async def model_server_eye(asker: Asker, url: str, headers: tuple[tuple[str, str], ...]) -> ModelServerEye | None:
    """Find out what can be asked of the model server behind ``url`` (up to and with ``/v1``). None: nothing."""
    split = urlsplit(url)
    root = split._replace(path=split.path.rstrip("/").removesuffix("/v1"), query="", fragment="").geturl().rstrip("/")
    for name, path, read in (
        ("llama.cpp", "/slots", _slots),
        ("chaos", "/chaos/state", _chaos),
        ("rawstream", "/debug/streams", _streams),
    ):
        answer = await asker.aside("GET", root + path, headers)
        if answer is not None and answer[0] == 200 and read(answer[1]) is not None:

            async def ask(path: str = path, read: Callable[[Any], list[State] | None] = read) -> list[State] | None:
                again = await asker.aside("GET", root + path, headers)
                return read(again[1]) if again is not None and again[0] == 200 else None

            return ModelServerEye(name, ask)
    return None


def _slots(told: Any) -> list[State] | None:
    """llama.cpp: each slot, what it does and how many tokens it has decoded."""
    if not isinstance(told, list) or not all("is_processing" in members(slot) for slot in told):
        return None
    running = []
    for slot in told:
        if slot["is_processing"]:
            steps = slot.get("next_token") or {}
            decoded = members(steps[0] if isinstance(steps, list) and steps else steps).get("n_decoded")
            running.append(State(decoded if isinstance(decoded, int) else None))
    return running


def _chaos(told: Any) -> list[State] | None:
    generations = members(told).get("generations")
    if not isinstance(generations, list):
        return None
    return [state_of(one) for one in generations if members(one).get("state") == "running"]


def _streams(told: Any) -> list[State] | None:
    streams = members(told).get("streams")
    return None if not isinstance(streams, list) else [state_of(stream) for stream in streams]

"""``rawstream chaos``: an OpenAI-compatible upstream that breaks in any way that its client asks it to.

Rule 1: what happens is chosen by the request's ``model`` (``chaos_models.py``), so any client can ask for any fault.
Rule 2: whoever leaves is noticed at once, while an answer is silent or stalled too; ``GET /chaos/state`` tells.
Rule 3: it holds no prompt and no key, and gives none away (but a 401 quotes the key back to whoever sent it).

Three parts: what a name means (``chaos_models.py``), how it is played on a raw connection (``chaos_faults.py``, with
``chaos_peer.py``), and the server, here.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import ssl
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final

from rawstream.errors import BadRequest, ClientError, ProtocolViolation
from rawstream.lab.chaos_answers import error_body
from rawstream.lab.chaos_certificates import make_certificate
from rawstream.lab.chaos_faults import PLAYERS
from rawstream.lab.chaos_models import MODELS, read_model
from rawstream.lab.chaos_peer import Peer, Play
from rawstream.wire.http1 import RequestHead
from rawstream.wire.json_body import decode_object

__all__ = ["ChaosUpstream"]

_REMEMBERED: Final = 200
_JSON: Final = "application/json"


class Generation:
    """One answer, as ``/chaos/state`` shows it."""

    def __init__(self, model: str, user: str | None, stream: bool) -> None:
        self.model = model
        self.user = user
        self.stream = stream
        self.tokens = 0
        self.state = "running"
        self.left: float | None = None
        """When the client left (the loop's clock)."""
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._ended: float | None = None

    def count(self) -> None:
        self.tokens += 1

    def note_left(self) -> None:
        if self.left is None:
            self.left = self._clock()

    def end(self) -> None:
        """Nothing more is sent, or can be."""
        self._ended = self._clock()
        self.state = "done" if self.left is None else "client_left"

    def shown(self) -> dict[str, Any]:
        now = self._clock() if self._ended is None else self._ended
        return {
            "model": self.model,
            "tokens": self.tokens,
            "state": self.state,
            "seconds": round(now - self._began, 3),
            "seconds_after_left": None if self.left is None else round(now - self.left, 3),
            "user": self.user,
            "stream": self.stream,
        }


class ChaosUpstream:
    """The server. ``async with ChaosUpstream(port=0) as chaos: … chaos.url``; it lives on the present event loop."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: str | None = None,
        tls_port: int = 0,
    ) -> None:
        """``port`` 0 picks a free one. With ``tls`` (one of ``chaos_certificates.MODES``) the same is served over TLS
        at ``tls_port`` too. Raises MisuseError when there is no certificate to be had."""
        self._host = host
        self._asked_port = port
        self._certificate = None if tls is None else make_certificate(tls)
        self._asked_tls_port = tls_port
        self._truncate_tls = tls == "truncate"
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._accepted = 0
        self._requests = 0
        self._generations: collections.deque[Generation] = collections.deque(maxlen=_REMEMBERED)
        self._running = 0
        self._changed = asyncio.Event()
        self._failures: collections.Counter[str] = collections.Counter()
        self.port = 0
        """Where it listens, once it does."""
        self.tls_port = 0

    async def __aenter__(self) -> ChaosUpstream:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen. Raises OSError."""
        try:
            self.port = await self._listen(self._asked_port, None)
            if self._certificate is not None:
                self.tls_port = await self._listen(self._asked_tls_port, self._certificate.context)
        except BaseException:
            await self.close()
            raise

    async def _listen(self, port: int, tls: ssl.SSLContext | None) -> int:
        truncate = tls is not None and self._truncate_tls

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._connected(Peer(reader, writer, truncate=truncate))

        server = await asyncio.start_server(connected, self._host, port, ssl=tls)
        self._servers.append(server)
        bound: int = server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop listening and cut all connections."""
        for server in self._servers:
            server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    @property
    def url(self) -> str:
        """The base URL, up to and with ``/v1``."""
        return f"http://{self._authority(self.port)}/v1"

    @property
    def tls_url(self) -> str:
        """The same over TLS."""
        return f"https://{self._authority(self.tls_port)}/v1"

    def _authority(self, port: int) -> str:
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    def state(self) -> dict[str, Any]:
        """What ``GET /chaos/state`` shows."""
        return {
            "connections": len(self._connections),
            "accepted": self._accepted,
            "requests": self._requests,
            "running": self._running,
            "generations": [generation.shown() for generation in self._generations],
        }

    async def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The state, as soon as it is as ``wanted``. It is looked at whenever a connection or an answer begins or ends.

        Cancelling is safe.
        """
        while not wanted(state := self.state()):
            self._changed.clear()
            await self._changed.wait()
        return state

    # --- connections

    async def _connected(self, peer: Peer) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._accepted += 1
        self._changed.set()
        try:
            # The other side's going is what most of this is about: not worth a word.
            with contextlib.suppress(ConnectionError, ClientError, ssl.SSLError):
                await self._serve(peer)
            await peer.close()
        except asyncio.CancelledError:
            pass  # we are closing: the connection is cut below
        finally:
            peer.writer.transport.abort()
            self._connections.discard(task)
            self._changed.set()

    async def _serve(self, peer: Peer) -> None:
        """Request after request, until one costs the connection."""
        while True:
            try:
                request = await peer.request()
            except ProtocolViolation as violation:
                body = json.dumps(error_body(str(violation), violation.code)).encode()
                head = (
                    f"HTTP/1.1 {violation.status} Refused\r\nContent-Type: {_JSON}\r\nContent-Length: {len(body)}\r\n"
                )
                await peer.send(f"{head}Connection: close\r\n\r\n".encode() + body)
                return
            if request is None:
                return
            if not await self._answer(peer, *request):
                return

    async def _answer(self, peer: Peer, head: RequestHead, body: bytes) -> bool:
        """Answer one request. Does the connection stay?"""
        route = (head.method, head.path)
        if route == ("GET", "/chaos/state"):
            return await self._say(peer, head, 200, self.state())
        if route == ("GET", "/chaos/certificate") and self._certificate is not None:
            return await self._give(peer, head, 200, "application/x-pem-file", self._certificate.pem.encode())
        self._requests += 1
        if head.path.endswith("/models") and head.method == "GET":
            return await self._say(peer, head, 200, _models())
        if not head.path.endswith("/chat/completions"):
            message = "chaos knows POST …/chat/completions, GET …/models and GET /chaos/state"
            return await self._say(peer, head, 404, error_body(message, "not_found", "invalid_request_error"))
        if head.method != "POST":
            message = f"{head.path} takes POST"
            return await self._say(peer, head, 405, error_body(message, "method_not_allowed", "invalid_request_error"))
        try:
            fields = decode_object(body)
            model = fields.get("model")
            asked = read_model(model if isinstance(model, str) and model else "ok")
        except BadRequest as error:
            return await self._say(
                peer, head, error.status, error_body(str(error), error.code, "invalid_request_error")
            )
        user = fields.get("user")
        generation = Generation(asked.text, user if isinstance(user, str) else None, fields.get("stream") is True)
        key = dict(head.headers).get("authorization", "").removeprefix("Bearer ")
        play = Play(peer, asked, fields, key, generation.count, self._failures[asked.text])
        await self._play(play, generation)
        return play.kept

    async def _play(self, play: Play, generation: Generation) -> None:
        """Play an answer to its end, or until its client leaves."""
        self._generations.append(generation)
        self._running += 1
        self._changed.set()
        name = play.asked.model.name

        async def player() -> None:
            await PLAYERS[name](play)

        playing = asyncio.create_task(player(), name=f"chaos {name}")
        watching = asyncio.create_task(play.peer.left(), name="chaos: until the client leaves")
        try:
            await asyncio.wait({playing, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not playing.done() or _lost(playing):
                generation.note_left()
                if name == "deaf":
                    await asyncio.wait({playing})
        finally:
            playing.cancel()
            watching.cancel()
            await asyncio.gather(playing, watching, return_exceptions=True)
            self._running -= 1
            if play.failed:
                self._failures[play.asked.text] += 1
            generation.end()
            self._changed.set()
        if not playing.cancelled():
            playing.result()

    async def _say(self, peer: Peer, head: RequestHead, status: int, value: Mapping[str, Any]) -> bool:
        """A JSON answer of the server's own."""
        return await self._give(peer, head, status, _JSON, json.dumps(value).encode())

    async def _give(self, peer: Peer, head: RequestHead, status: int, kind: str, body: bytes) -> bool:
        codec = peer.codec
        said = codec.response_head(status, [("content-type", kind), ("content-length", str(len(body)))])
        await peer.send(said + codec.end(b"" if head.method == "HEAD" else body))
        return codec.next_cycle()


def _lost(playing: asyncio.Task[None]) -> bool:
    """Did the answer end because nobody takes it any more?"""
    return not playing.cancelled() and isinstance(playing.exception(), ConnectionError)


def _models() -> dict[str, Any]:
    data = [
        {
            "id": name,
            "object": "model",
            "created": 1_700_000_000,
            "owned_by": "rawstream chaos",
            "description": model.does,
        }
        for name, model in MODELS.items()
    ]
    return {"object": "list", "data": data}

"""A gateway before a client that reads nothing: what it takes from its upstream, and that it stops taking."""

from __future__ import annotations

import array
import fcntl
import re
import select
import socket
import threading
from pathlib import Path
from typing import Any

from bench.bounds.clients import ENDLESS, chat, completion, connect
from bench.bounds.server import Rawstream, level_off, wait_for
from bench.bounds.table import KIB, Bench, Row, Verdict, kib
from bench.peers import all_peers, make_context
from bench.serving import Server

_SIOCOUTQ = 0x5411


def _event(number: int) -> bytes:
    """An event of the OpenAI wire, in a chunk of its own; all are of one length."""
    event = (
        'data: {"id":"chatcmpl-flood","object":"chat.completion.chunk","created":1700000000,"model":"flood",'
        f'"choices":[{{"index":0,"delta":{{"content":" {number:08d}"}},"finish_reason":null}}]}}\n\n'
    ).encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


_LENGTH = len(_event(0))
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Flood:
    """An upstream that sends as fast as its socket takes it, and knows what its kernel got rid of."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._sent = 0
        self._link: socket.socket | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="flood", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._listening.settimeout(0.1)
        while not self._ended.is_set():
            try:
                link, _ = self._listening.accept()
            except TimeoutError:
                continue
            with link:
                self._flood(link)

    def _flood(self, link: socket.socket) -> None:
        link.settimeout(5)
        try:
            request = b""
            while b"\r\n\r\n" not in request:
                data = link.recv(65536)
                if not data:
                    return
                request += data
            if not request.startswith(b"POST"):
                return
            link.sendall(_HEAD)
            link.setblocking(False)
            self._sent, self._link = 0, link
            number, waiting = 0, b""
            while not self._ended.is_set():
                if not waiting:
                    waiting = b"".join(_event(number + i) for i in range(100))
                    number += 100
                if not select.select([], [link], [], 0.1)[1]:
                    continue
                sent = link.send(waiting)
                self._sent += sent
                waiting = waiting[sent:]
        except OSError:
            return
        finally:
            self._link = None

    def gone(self) -> int:
        """Bytes of the stream that have left our kernel for the gateway's."""
        if self._link is None:
            return 0
        waiting = array.array("i", [0])
        fcntl.ioctl(self._link.fileno(), _SIOCOUTQ, waiting)
        return self._sent - waiting[0]

    def close(self) -> None:
        self._ended.set()
        self._thread.join(5)
        self._listening.close()


def _taken(flood: Flood, port: int, request: bytes) -> dict[str, Any]:
    """What a gateway took from the flood and the client's kernel did not.

    ``between``: all in bytes of the upstream's events, those included that the gateway holds re-encoded.
    """
    with connect(port, request) as link:
        gone, stopped = level_off(flood.gone, still=1.0, timeout=15)
        arrived = link.recv(1 << 22, socket.MSG_PEEK)
    numbers = re.findall(rb" (\d{8})", arrived)
    passed_on = (int(numbers[-1]) + 1) * _LENGTH if numbers else 0
    return {"taken": gone, "passed_on": passed_on, "between": gone - passed_on, "stopped": stopped}


def _taken_by_rawstream(flood: Flood, server: Rawstream, request: bytes) -> dict[str, Any]:
    """The same, and ``held``: the upstream's bytes not yet made into frames, and the frames that wait.

    A frame of ``/chat`` is much smaller than the upstream's event, so that ``held`` is less than ``between`` there.
    """
    with connect(server.port, request) as link:
        gone, stopped = level_off(flood.gone, still=1.0, timeout=15)
        (stream,) = server.debug()["streams"]
        arrived = link.recv(1 << 22, socket.MSG_PEEK)
    numbers = re.findall(rb" (\d{8})", arrived)
    passed_on = (int(numbers[-1]) + 1) * _LENGTH if numbers else 0
    buffered = stream["buffered"]
    frames = buffered["transport"] + buffered["kernel_unsent"] + buffered["kernel_unacked"]
    return {
        "taken": gone,
        "passed_on": passed_on,
        "between": gone - passed_on,
        "held": gone - stream["tokens"] * _LENGTH + frames,
        "frames": frames,
        "stopped": stopped,
    }


def flooded(bench: Bench) -> Verdict:
    """Before an upstream that floods."""
    found: dict[str, Any] = {}
    others: dict[str, Any] = {}
    flood = Flood()
    try:
        for loop in ("asyncio", "uvloop"):
            flags = ("--loop", loop, "--lab", "--upstream", f"http://127.0.0.1:{flood.port}/v1")
            with Rawstream(bench.cores.server, *flags) as server:
                found[f"/v1/chat/completions, {loop}"] = _taken_by_rawstream(flood, server, completion())
                found[f"/chat, {loop}"] = _taken_by_rawstream(flood, server, chat(more=None))
                if loop == "uvloop":
                    others["own /chat-drain"] = _taken(flood, server.port, chat("/chat-drain", more=None))
        for name in ("httpx-gateway", "aiohttp-gateway"):
            peer = all_peers().get(name)
            if peer is None or peer.missing(make_context(0, Path("."), upstream_url=None)):
                others[name] = None
                continue
            with Server(peer, bench.cores.server, upstream_url=f"http://127.0.0.1:{flood.port}") as other:
                others[name] = _taken(flood, other.port, completion())
    finally:
        flood.close()
    passed = all(run["held"] <= 64 * KIB and run["stopped"] and run["taken"] > 0 for run in found.values())
    passed = passed and all(run["between"] <= 64 * KIB for name, run in found.items() if name.startswith("/v1"))
    measured = "; ".join(
        f"{name} {kib(run['held'])}"
        + (f" (in the upstream's bytes {kib(run['between'])})" if name.startswith("/chat") else "")
        for name, run in found.items()
    )
    stopped = "reading stopped" if all(run["stopped"] for run in found.values()) else "READING WENT ON"
    comparison = ", ".join(
        f"{name} {kib(run['between']) if run else 'is not installed'}" for name, run in others.items()
    )
    return Verdict(passed, f"{measured}; {stopped}", comparison, {"rawstream": found, "others": others})


def chained(bench: Bench) -> Verdict:
    """Before another rawstream: its source must stand still, and go on when the client does."""
    with (
        Rawstream(bench.cores.server) as inner,
        Rawstream(bench.cores.server, "--lab", "--upstream", f"{inner.url}/v1") as outer,
    ):
        found = {
            "/v1/chat/completions": _chained(inner, outer, completion(mock=ENDLESS)),
            "/chat": _chained(inner, outer, chat()),
        }
        other = _chained(inner, outer, chat("/chat-drain"))
    passed = all(run["stopped"] and run["goes_on"] for run in found.values())
    measured = "; ".join(
        f"{path}: source stopped after {run['tokens']:,} tokens ({kib(run['bytes'])}), "
        + ("goes on with the client" if run["goes_on"] else "DOES NOT GO ON WITH THE CLIENT")
        for path, run in found.items()
    )
    return Verdict(
        passed,
        measured,
        f"own /chat-drain: {other['tokens']:,} tokens ({kib(other['bytes'])})",
        {"rawstream": found, "chat-drain": other},
    )


def _chained(inner: Rawstream, outer: Rawstream, request: bytes) -> dict[str, Any]:
    before = inner.totals()
    with connect(outer.port, request) as link:
        _, stopped = level_off(lambda: inner.totals()["tokens"], still=1.0)
        level = inner.totals()
        taken = 0
        while taken < 256 * KIB:
            taken += len(link.recv(65536))
        after, _ = level_off(lambda: inner.totals()["tokens"], still=0.3)
    wait_for(lambda: inner.totals()["streams"] == 0, "the inner stream ends with the client")
    return {
        "tokens": level["tokens"] - before["tokens"],
        "bytes": level["bytes"] - before["bytes"],
        "stopped": stopped,
        "goes_on": after > level["tokens"],
    }


ROWS = (
    Row(
        "gateway-flood",
        "gateway: bytes taken from the upstream, not yet taken by the client's kernel",
        "≤ 64 KiB, and reading stops",
        flooded,
    ),
    Row("gateway-chain", "gateway with another rawstream as upstream", "its source stops too", chained),
)

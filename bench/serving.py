"""A peer's process: started on its core, waited for, asked, measured, ended.

Rule 1: a fresh process for every measurement; nothing one run left behind can help or hurt the next.
Rule 2: it is ended by its process group, with a deadline, whatever happened.
Rule 3: what it printed is kept, and shown when it failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench import netns
from bench.certificate import trusting_all
from bench.host import free_port, pinned
from bench.peers import Peer, PeerContext, make_context
from bench.peers.contract import ANY_KEY
from bench.sample import KernelQueues, Queues, Sampler, cpu_seconds, process_tree, resident_bytes, write_calls

Event = tuple[str, str, int, int]
"""What a source recorded: open or close, id, monotonic ns, tokens pulled."""


class ServerFailed(RuntimeError):
    """The peer did not start, or died; the message holds the end of what it printed."""


def chat_request(
    path: str,
    mock: Mapping[str, Any],
    *,
    numbered: bool = False,
    joined: bool = False,
    host: str = "bench",
    key: str = ANY_KEY,
) -> str:
    """The bytes of a ``POST`` for this mock stream.

    ``numbered`` gives each connection its own id (``#000017``); ``joined`` asks the handler for one write per batch.
    """
    body: dict[str, Any] = {"prompt": "bench #@@@@@@" if numbered else "bench", "mock": dict(mock)}
    if joined:
        body["joined"] = True
    return post(path, json.dumps(body), host, key)


def completion_request(path: str, host: str = "bench", key: str = ANY_KEY) -> str:
    """The bytes of a streaming chat completion."""
    message = {"model": "bench", "stream": True, "messages": [{"role": "user", "content": "bench"}]}
    return post(path, json.dumps(message), host, key)


def post(path: str, body: str, host: str = "bench", key: str = ANY_KEY) -> str:
    """The bytes of a ``POST`` with a JSON body."""
    return (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: bench\r\naccept: text/event-stream\r\nauthorization: "
        f"Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    )


class Server:
    """One running peer."""

    def __init__(
        self,
        peer: Peer,
        cores: Iterable[int],
        *,
        upstream_url: str | None = None,
        env: Mapping[str, str] | None = None,
        namespace: str | None = None,
        start_timeout: float = 60.0,
    ) -> None:
        self.peer = peer
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        self.events_file = folder / "events"
        self.context: PeerContext = make_context(
            self.port,
            folder,
            upstream_url=upstream_url,
            env={"BENCH_EVENTS_FILE": str(self.events_file), **(env or {})},
        )
        self._namespace = namespace
        self._output = (folder / "output").open("w+b")
        argv = pinned(peer.command(self.context), cores)
        if namespace is not None:
            argv = ["ip", "netns", "exec", namespace, *argv]

        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **self.context.env},
                start_new_session=True,
            )
        except OSError as error:
            self._folder.cleanup()
            raise ServerFailed(f"{peer.name}: {error}") from error
        self.pid = self._process.pid
        try:
            with self._inside():
                self.queues = KernelQueues()
            self._wait_until_accepting(start_timeout)
        except BaseException:
            self.close()
            raise

    def _inside(self) -> contextlib.AbstractContextManager[None]:
        return netns.inside(self._namespace) if self._namespace else contextlib.nullcontext()

    def _wait_until_accepting(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            if self._process.poll() is not None:
                raise ServerFailed(f"{self.peer.name} ended at once (exit {self._process.returncode}): {self.output()}")
            with contextlib.suppress(OSError), self.connect(1.0):
                return
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self.peer.name} did not accept within {timeout:g} s: {self.output()}")
            time.sleep(0.05)

    def connect(self, timeout: float, *, alpn: Sequence[str] = ()) -> socket.socket:
        """A blocking connection from where the server is; its handshake is over where the peer speaks TLS.

        ``alpn``: what TLS offers to speak.
        """
        with self._inside():
            made = socket.socket()
        made.settimeout(timeout)
        try:
            made.connect(("127.0.0.1", self.port))
            if self.peer.tls:
                context = trusting_all()
                if alpn:
                    context.set_alpn_protocols(list(alpn))
                return context.wrap_socket(made)
        except OSError:
            made.close()
            raise
        return made

    def output(self) -> str:
        """The end of what it printed."""
        self._output.flush()
        data = Path(self._output.name).read_bytes() if os.path.exists(self._output.name) else b""
        return data[-1500:].decode(errors="replace").strip()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def cpu(self) -> float:
        """CPU seconds of the tree so far."""
        return cpu_seconds(self.pid)

    def resident(self) -> int:
        """Bytes of resident memory of the tree."""
        return resident_bytes(self.pid)

    def writes(self) -> int:
        """write() calls of the tree so far."""
        return write_calls(self.pid)

    def packets(self) -> int:
        """Packets with data that its open connections have sent."""
        return self.queues.packets_of_port(self.port)

    def tree(self) -> list[int]:
        """Its processes."""
        return process_tree(self.pid)

    def kernel(self) -> Queues:
        """The send queues of its connections."""
        return self.queues.of_port(self.port)

    def sampler(self, *, every: float, guard: float) -> Sampler:
        """Begin to sample memory and queues; past ``guard`` bytes the server is killed."""
        return Sampler(self.pid, self.port, self.queues, every=every, guard=guard, on_guard=self.kill)

    def get(self, path: str, timeout: float = 5.0) -> bytes:
        """Body of a GET, from where the server is; OSError or ValueError when there is none."""
        with self.connect(timeout) as link:
            link.sendall(f"GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n".encode())
            data = b""
            while chunk := link.recv(65536):
                data += chunk
                head, blank, body = data.partition(b"\r\n\r\n")
                if blank:
                    stated = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                    if stated and len(body) >= int(stated[1]):
                        break
        head, blank, body = data.partition(b"\r\n\r\n")
        if not blank or b" 200 " not in head.split(b"\r\n")[0]:
            raise ValueError(f"GET {path}: {head[:80]!r}")
        if b"transfer-encoding: chunked" in head.lower():
            whole = b""
            while body:
                size, _, rest = body.partition(b"\r\n")
                if not int(size, 16):
                    break
                whole += rest[: int(size, 16)]
                body = rest[int(size, 16) + 2 :]
            body = whole
        return body

    def pulled(self) -> int | None:
        """Tokens taken from the source since the start, over all streams; None when it cannot or does not say."""
        if self.peer.stats is None:
            return None
        try:
            answer = json.loads(self.get(self.peer.stats))
        except (OSError, ValueError):
            return None
        counters = answer.get("totals", answer)
        value = counters.get("pulled", counters.get("tokens"))
        return int(value) if value is not None else None

    def warm_up(self, requests: Sequence[str], each: int = 20) -> None:
        """Let it do its lazy work (imports, caches) before anything is measured: a few short answers read whole."""
        for request in requests:
            for _ in range(each):
                with self.connect(10.0) as link:
                    link.sendall(request.encode())
                    data = b""
                    while b"[DONE]" not in data:
                        chunk = link.recv(65536)
                        if not chunk:
                            raise ServerFailed(
                                f"{self.peer.name} gave no whole answer: {data[-300:]!r} {self.output()}"
                            )
                        data += chunk

    def events(self) -> list[Event]:
        """What the sources recorded so far."""
        if not self.events_file.exists():
            return []
        found = []
        for line in self.events_file.read_text().splitlines():
            words = line.split()
            if len(words) >= 3:
                found.append((words[0], words[1], int(words[2]), int(words[3]) if len(words) > 3 else 0))
        return found

    def kill(self) -> None:
        """End the whole group at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it. Not politely: all is measured by now, and most would wait for streams that nobody reads."""
        self.kill()
        self._process.wait(timeout=10)
        if hasattr(self, "queues"):
            self.queues.close()
        self._output.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

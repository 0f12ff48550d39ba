"""The generator over TLS: it judges answers as it does without, and counts handshakes."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import build
from bench.certificate import make_certificate
from bench.certificate import missing as no_certificate
from bench.programs import Generator, ProgramFailed, write_expected
from tests.support.tools import missing

BODY = b'data: {"token": "a"}\n\ndata: {"token": "b"}\n\ndata: [DONE]\n\n'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n" + BODY


@pytest.fixture
def context(tmp_path: Path) -> ssl.SSLContext:
    """A server's; skips where there is no OpenSSL to compile with or to make a certificate with."""
    try:
        build.compiled("generator", tls=True)
    except build.NoCompiler as error:
        missing(str(error))
    if reason := no_certificate():
        missing(reason)
    made = make_certificate(tmp_path)
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.load_cert_chain(made.cert, made.key)
    return found


@contextlib.contextmanager
def served(context: ssl.SSLContext, answer: bytes, *, politely: bool = True) -> Iterator[int]:
    """A TLS server with this answer for every request, and a clean end or none; its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):  # TimeoutError and ssl.SSLError are
                link = context.wrap_socket(listener.accept()[0], server_side=True)
                with link:
                    link.settimeout(3)
                    if link.recv(65536):
                        link.sendall(answer)
                        if politely:
                            link.unwrap()

    thread = threading.Thread(target=serve, name="served", daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        thread.join(5)
        listener.close()


def ask(tmp_path: Path, port: int, until: str, *, at_least: int = 1, **settings: Any) -> dict[str, Any]:
    """One group's result, once it has so many of ``until`` (or after 3 s)."""
    words = write_expected(tmp_path / "words", ["a", "b"])
    with Generator((), words, tls=True) as generator:
        generator.group("g", port=port, request="POST / HTTP/1.1\r\n\r\n", tls=1, **settings)
        generator.run()
        ends = time.monotonic() + 3
        while generator.snap()["groups"]["g"][until] < at_least and time.monotonic() < ends:
            pass
        result: dict[str, Any] = generator.stop()["groups"]["g"]
        return result


def test_a_whole_answer_is_complete(context: ssl.SSLContext, tmp_path: Path) -> None:
    """Tokens are found in records as they are without."""
    with served(context, ANSWER) as port:
        seen = ask(tmp_path, port, "completed", tokens=2)
    assert (seen["completed"], seen["tokens"], seen["failed"], seen["cut"]) == (1, 2, 0, 0), seen


@pytest.mark.parametrize(("politely", "outcome"), [(True, "completed"), (False, "cut")])
def test_an_end_without_close_notify_is_a_cut(
    context: ssl.SSLContext, tmp_path: Path, politely: bool, outcome: str
) -> None:
    """An answer until close has its end only where TLS says so."""
    with served(context, UNTIL_CLOSE, politely=politely) as port:
        seen = ask(tmp_path, port, outcome, tokens=2)
    assert seen[outcome] == 1, seen


@pytest.mark.parametrize("resume", [0, 1])
def test_handshakes_are_counted(context: ssl.SSLContext, tmp_path: Path, resume: int) -> None:
    """One after the other on each slot; with ``resume`` all but the first are resumed."""
    with served(context, b"") as port:
        seen = ask(tmp_path, port, "completed", at_least=10, mode="handshake", resume=resume)
    assert seen["completed"] >= 10
    assert seen["failed"] == 0, seen
    assert seen["resumed"] == (seen["connected"] - 1 if resume else 0)


def test_a_plain_server_is_a_failed_handshake(context: ssl.SSLContext, tmp_path: Path) -> None:
    """The report names OpenSSL's reason."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(65536)
                link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve, name="plain", daemon=True)
        thread.start()
        seen = ask(tmp_path, listener.getsockname()[1], "failed")
        thread.join(5)
    assert seen["failed"] == 1
    assert "wrong version" in seen["first_wrong"], seen


def test_a_generator_without_tls_says_so(tmp_path: Path) -> None:
    """A group that asks for TLS of a program that has none is an error, not a plain connection."""
    try:
        build.compiled("generator")
    except build.NoCompiler as error:
        missing(str(error))
    words = write_expected(tmp_path / "words", ["a"])
    with socket.create_server(("127.0.0.1", 0)) as listener, Generator((), words) as generator:
        generator.group("g", port=listener.getsockname()[1], request="x", tls=1)
        generator.run()
        with pytest.raises(ProgramFailed, match="without TLS"):
            generator.hear("streaming", 5)

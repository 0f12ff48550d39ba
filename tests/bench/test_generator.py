"""The generator, in C and in Python, judges answers alike: what is whole is complete, what is not is named."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import build
from bench.programs import Generator, ProgramFailed, Upstream, write_expected
from tests.support.tools import missing

WORDS = [" one", " two", ' "three"', " vier\u00e9", " five\n", " \U0001f600"]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(word: str, *, ascii_only: bool = True, end: str = "\n") -> bytes:
    return f"data: {json.dumps({'token': word}, ensure_ascii=ascii_only)}{end}{end}".encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


DONE = b"data: [DONE]\n\n"
WHOLE = HEAD + b"".join(chunk(event(word)) for word in WORDS) + chunk(DONE) + b"0\r\n\r\n"


@contextlib.contextmanager
def canned(answer: bytes, *, piece: int = 1 << 20, close: bool = True) -> Iterator[int]:
    """A server that answers every connection with these bytes, so many at a time; its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    over = threading.Event()

    def serve() -> None:
        held = []
        while not over.is_set():
            try:
                link, _ = listener.accept()
            except TimeoutError:
                continue
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.recv(65536)
            with contextlib.suppress(OSError):
                for at in range(0, len(answer), piece):
                    link.sendall(answer[at : at + piece])
            if close:
                link.close()
            else:
                held.append(link)
        for link in held:
            link.close()

    thread = threading.Thread(target=serve, name="canned", daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        thread.join(5)
        listener.close()


@pytest.fixture(params=["c", "python"])
def python(request: pytest.FixtureRequest) -> bool:
    """Each test runs over both generators."""
    if request.param == "c":
        try:
            build.compiled("generator")
        except build.NoCompiler as error:
            missing(str(error))
    return bool(request.param == "python")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return write_expected(tmp_path / "words", WORDS)


def ask(python: bool, words: Path, port: int, **settings: Any) -> dict[str, Any]:
    """One group's result, once all its connections are done (or after 3 s)."""
    with Generator((), words, python=python) as generator:
        generator.group("g", port=port, request="POST / HTTP/1.1\r\n\r\n", **{"tokens": len(WORDS), **settings})
        generator.run()
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            group = generator.snap()["groups"]["g"]
            if (
                group["completed"] + group["wrong"] + group["cut"] + group["failed"] + group["bad_status"]
                >= group["connections"]
            ):
                break
        result: dict[str, Any] = generator.stop()["groups"]["g"]
        return result


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_a_whole_answer_is_complete_in_any_cutting(python: bool, words: Path, piece: int) -> None:
    """Tokens are found whatever the reads are, one byte at a time too."""
    with canned(WHOLE, piece=piece) as port:
        seen = ask(python, words, port, count=2)
    assert (seen["completed"], seen["wrong"], seen["cut"], seen["tokens"]) == (2, 0, 0, 12), seen


GOOD = {
    "raw UTF-8": HEAD + b"".join(chunk(event(word, ascii_only=False)) for word in WORDS) + chunk(DONE) + b"0\r\n\r\n",
    "CRLF": HEAD + b"".join(chunk(event(word, end="\r\n")) for word in WORDS) + chunk(DONE) + b"0\r\n\r\n",
    "heartbeats": HEAD + b"".join(chunk(b": ping\n\n" + event(word)) for word in WORDS) + chunk(DONE) + b"0\r\n\r\n",
    "one chunk": HEAD + chunk(b"".join(event(word) for word in WORDS) + DONE) + b"0\r\n\r\n",
    "events across chunks": HEAD
    + b"".join(chunk(event(w)[:9]) + chunk(event(w)[9:]) for w in WORDS)
    + chunk(DONE)
    + b"0\r\n\r\n",
    "until close": b"HTTP/1.0 200 OK\r\n\r\n" + b"".join(event(word) for word in WORDS) + DONE,
    "content-length": (
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (sum(len(event(w)) for w in WORDS) + len(DONE))
    )
    + b"".join(event(word) for word in WORDS)
    + DONE,
}


@pytest.mark.parametrize("form", GOOD)
def test_every_form_of_a_whole_answer_is_accepted(python: bool, words: Path, form: str) -> None:
    """Servers differ in spacing, escapes, line ends, chunking and framing; none of that is wrong."""
    with canned(GOOD[form]) as port:
        seen = ask(python, words, port)
    assert seen["completed"] == 1, seen


def stream(*texts: str, done: bool = True, end: bytes = b"0\r\n\r\n") -> bytes:
    return HEAD + b"".join(chunk(event(text)) for text in texts) + (chunk(DONE) if done else b"") + end


BAD = {
    "a token is lost": (stream(*WORDS[:2], *WORDS[3:]), "wrong", "token 2"),
    "two are swapped": (stream(WORDS[1], WORDS[0], *WORDS[2:]), "wrong", "token 0"),
    "one comes twice": (stream(WORDS[0], *WORDS), "wrong", "token 1"),
    "one too many": (stream(*WORDS, WORDS[0]), "wrong", "more tokens"),
    "one too few": (stream(*WORDS[:-1]), "wrong", "5 tokens of 6"),
    "no terminal event": (stream(*WORDS, done=False), "cut", "cut after 6"),
    "framing cut": (stream(*WORDS, end=b""), "cut", "cut after 6"),
    "an error event": (HEAD + chunk(event(WORDS[0])) + chunk(b'data: {"error": "x"}\n\n'), "wrong", "error"),
    "a bad chunk size": (HEAD + b"zz\r\n", "wrong", ""),
    "no answer": (b"", "cut", "without an answer"),
    "a refusal": (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", "bad_status", "503"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_wrong_answer_is_named(python: bool, words: Path, fault: str) -> None:
    """Nothing that is not exactly the answer counts as complete, and the report says what it was."""
    answer, kind, why = BAD[fault]
    with canned(answer) as port:
        seen = ask(python, words, port)
    assert seen["completed"] == 0
    assert seen[kind] == 1, seen
    assert why in seen["first_wrong"], seen["first_wrong"]


def test_a_stalled_client_reads_nothing(python: bool, words: Path) -> None:
    """The bytes stay where they are: no read is made."""
    with canned(WHOLE, close=False) as port, Generator((), words, python=python) as generator:
        generator.group("g", mode="stalled", port=port, request="POST / HTTP/1.1\r\n\r\n", rcvbuf=4096, count=3)
        generator.run()
        assert generator.streaming(3) is not None
        seen = generator.stop()["groups"]["g"]
    assert (seen["connected"], seen["reads"], seen["tokens"]) == (3, 0, 0)


def test_a_leaver_notes_when_it_left(python: bool, words: Path) -> None:
    """left_at_ns is the monotonic time of close(), one after another."""
    endless = HEAD + b"".join(chunk(event(word)) for word in WORDS)
    with canned(endless, close=False) as port, Generator((), words, python=python) as generator:
        generator.group("g", port=port, request="POST / HTTP/1.1\r\n\r\n", count=3)
        generator.run()
        assert generator.streaming(3) is not None
        before = time.monotonic_ns()
        generator.leave("g", every_ms=20)
        ends = time.monotonic() + 3
        while generator.snap()["groups"]["g"]["left"] < 3 and time.monotonic() < ends:
            pass
        seen = generator.stop()["groups"]["g"]
    left = seen["left_at_ns"]
    assert before < left[0] < left[1] < left[2] < time.monotonic_ns()
    assert left[2] - left[0] >= 35_000_000


def test_an_even_stream_is_not_late_and_an_uneven_one_is(python: bool, words: Path) -> None:
    """Deviation from pace is what a stream was late against its own schedule."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        link, _ = listener.accept()
        link.recv(65536)
        link.sendall(HEAD)
        begin = time.monotonic()
        for i, word in enumerate(WORDS):
            late = 0.08 if i == 3 else 0.0  # one token of six comes 80 ms late
            time.sleep(max(0.0, begin + i * 0.1 + late - time.monotonic()))
            link.sendall(chunk(event(word)))
        link.sendall(chunk(DONE) + b"0\r\n\r\n")
        link.close()

    thread = threading.Thread(target=serve, name="uneven", daemon=True)
    thread.start()
    try:
        seen = ask(python, words, listener.getsockname()[1], rate=10)
    finally:
        thread.join(5)
        listener.close()
    assert seen["completed"] == 1, seen
    assert 70_000 < seen["late_us"]["max"] < 120_000
    assert seen["late_us"]["p50"] < 30_000


def test_a_program_that_dies_is_an_error(tmp_path: Path) -> None:
    """A generator that cannot go on says why, in an exception with a deadline."""
    with pytest.raises(ProgramFailed), Generator((), tmp_path / "not there") as generator:
        generator.snap()


def test_the_upstream_accounts_for_its_bytes(words: Path) -> None:
    """What the fake upstream says it got rid of is what a reader was given."""
    try:
        build.compiled("upstream")
    except build.NoCompiler as error:
        missing(str(error))
    with Upstream((), words) as upstream:
        upstream.answer(tokens=50, rate=None)
        with socket.create_connection(("127.0.0.1", upstream.port), timeout=3) as link:
            link.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}")
            data = b""
            while not data.endswith(b"0\r\n\r\n"):
                data += link.recv(65536)
        seen = upstream.stats()
    assert data.count(b"chat.completion.chunk") == 52
    assert (seen["bytes"], seen["outq"], seen["tokens"], seen["requests"]) == (len(data), 0, 50, 1)

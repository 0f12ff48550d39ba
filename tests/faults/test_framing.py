"""Bytes that are not HTTP/1.1 as RFC 9112 has it, and the answer that each of them gets (rows 1 to 16, 24).

Each case is sent to a running server in one piece. An answer is a status; CLOSED stands for no answer at all.
After each, whatever the answer: the connection is closed, a fresh request is answered, no descriptor is left.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support import raw
from tests.support.raw import Client, request
from tests.support.server import ServerProcess

CLOSED = 0
KiB = 1024
MiB = 1024 * KiB

OK = b"Host: a\r\n\r\n"


@dataclass(frozen=True)
class Case:
    row: int
    name: str
    data: bytes
    answers: tuple[int, ...] = (400,)
    closes: bool = True

    @property
    def id(self) -> str:
        return f"{self.row}-{self.name.replace(' ', '-')}"


def head(*lines: str) -> bytes:
    """A request head of these lines."""
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def with_field(line: bytes) -> bytes:
    return b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\n"


def with_body(fields: str, body: bytes = b"") -> bytes:
    """A POST /chat with these framing fields."""
    fields = "".join(f"{field}\r\n" for field in fields.split("\n") if field)
    return f"POST /chat HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{fields}\r\n".encode("latin-1") + body


def chunked(body: bytes) -> bytes:
    return with_body("Transfer-Encoding: chunked", body)


def nonsense() -> Iterator[Case]:
    yield Case(1, "garbage", b"\x00\xff\x13\x37" * 64)
    yield Case(1, "words", b"hello there\r\n\r\n")
    yield Case(1, "tls hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64)
    yield Case(1, "newlines", b"\r\n" * 40)
    yield Case(1, "ssh", b"SSH-2.0-OpenSSH_9.6\r\n")
    yield Case(2, "http 0.9", b"GET /healthz\r\n\r\n")
    yield Case(2, "lower case", b"GET /healthz http/1.1\r\n" + OK)
    yield Case(2, "version 9.9", b"GET /healthz HTTP/9.9\r\n" + OK, (505,))
    yield Case(2, "version 2.0", b"GET /healthz HTTP/2.0\r\n" + OK, (505,))
    yield Case(2, "version 1.10", b"GET /healthz HTTP/1.10\r\n" + OK)
    yield Case(3, "100 KB method", b"A" * 100 * KiB + b" / HTTP/1.1\r\n" + OK, (400, 414, 431, 501))
    yield Case(3, "100 KB target", b"GET /" + b"a" * 100 * KiB + b" HTTP/1.1\r\n" + OK, (414,))
    yield Case(3, "9 KB target", b"GET /" + b"a" * 9 * KiB + b" HTTP/1.1\r\n" + OK, (414,))
    yield Case(3, "100 KB field", with_field(b"X: " + b"a" * 100 * KiB), (431,))
    yield Case(3, "10000 fields", with_field(b"\r\n".join(b"X-%d: 1" % n for n in range(10_000))), (431,))
    yield Case(3, "101 fields", with_field(b"\r\n".join(b"X-%d: 1" % n for n in range(100))), (431,))
    yield Case(3, "endless head", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * MiB, (431, CLOSED))


def hosts_and_targets() -> Iterator[Case]:
    yield Case(4, "no host", b"GET /healthz HTTP/1.1\r\n\r\n")
    for name, host in {
        "comma": "a, b", "userinfo": "user@a", "path": "a/b", "empty": "", "space": "a b", "port": "a:b", "scheme": "http://a",
    }.items():  # fmt: skip
        yield Case(4, name, head("GET /healthz HTTP/1.1", f"Host: {host}"))
    yield Case(4, "two hosts", head("GET /healthz HTTP/1.1", "Host: a", "Host: b"))
    yield Case(4, "the same host twice", head("GET /healthz HTTP/1.1", "Host: a", "Host: a"))
    yield Case(4, "10 KB host", head("GET /healthz HTTP/1.1", f"Host: {'a' * 10_000}"))
    yield Case(5, "absolute with userinfo", b"GET http://user@a/healthz HTTP/1.1\r\n" + OK)
    yield Case(5, "absolute without host", b"GET http:///healthz HTTP/1.1\r\n" + OK)
    yield Case(5, "ftp", b"GET ftp://a/healthz HTTP/1.1\r\n" + OK)
    yield Case(6, "get star", b"GET * HTTP/1.1\r\n" + OK)
    yield Case(6, "connect", b"CONNECT a:443 HTTP/1.1\r\n" + OK, (405, 501))
    yield Case(7, "space", b"GET /a b HTTP/1.1\r\n" + OK)
    yield Case(7, "nul", b"GET /a\0b HTTP/1.1\r\n" + OK)
    yield Case(7, "latin 1", b"GET /caf\xe9 HTTP/1.1\r\n" + OK)
    yield Case(7, "utf 8", "GET /café HTTP/1.1\r\n".encode() + OK)
    yield Case(7, "overlong", b"GET /\xc0\xae\xc0\xae/ HTTP/1.1\r\n" + OK)
    yield Case(7, "fragment", b"GET /healthz#a HTTP/1.1\r\n" + OK)
    yield Case(7, "tab", b"GET\t/healthz HTTP/1.1\r\n" + OK)
    yield Case(7, "no slash", b"GET healthz HTTP/1.1\r\n" + OK)


def fields() -> Iterator[Case]:
    yield Case(8, "obs-fold", with_field(b"X: a\r\n b"))
    yield Case(8, "space before colon", with_field(b"X : a"))
    yield Case(8, "bare cr in value", with_field(b"X: a\rb"))
    yield Case(8, "bare cr injects", with_field(b"X: a\rY: b"))
    yield Case(8, "nul in value", with_field(b"X: a\0b"))
    yield Case(8, "control in value", with_field(b"X: a\x01b"))
    yield Case(8, "delete in value", with_field(b"X: a\x7fb"))
    yield Case(8, "name with space", with_field(b"X Y: a"))
    yield Case(8, "name with parenthesis", with_field(b"X(Y): a"))
    yield Case(8, "name not ascii", with_field(b"X\xe9: a"))
    yield Case(8, "empty name", with_field(b": a"))
    yield Case(8, "no colon", with_field(b"X"))
    yield Case(8, "space before first field", b"GET /healthz HTTP/1.1\r\n Host: a\r\n\r\n")
    yield Case(8, "two spaces in request line", b"GET  /healthz HTTP/1.1\r\n" + OK)
    yield Case(9, "lf only", b"GET /healthz HTTP/1.1\nHost: a\n\n")
    yield Case(9, "one lf", b"GET /healthz HTTP/1.1\r\nHost: a\nX: b\r\n\r\n")
    yield Case(9, "lf at the end", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\n")
    yield Case(9, "cr only", b"GET /healthz HTTP/1.1\rHost: a\r\r")


def lengths() -> Iterator[Case]:
    for text in ("abc", "-1", "+5", "0x5", "1_0", "5 5", "", "5;", "５", "1.0", "5, 10", "5,5"):
        row = 11 if "," in text else 10
        yield Case(row, f"length {text!r}", with_body("Content-Length: ", b"").replace(
            b"Content-Length: ", b"Content-Length: " + text.encode()) + b"hello")  # fmt: skip
    yield Case(10, "25 digits", with_body(f"Content-Length: {'9' * 25}", b"hello"), (400, 413))
    yield Case(11, "two lengths", with_body("Content-Length: 5\nContent-Length: 10", b"hello"))
    yield Case(11, "two equal lengths", with_body("Content-Length: 5\nContent-Length: 5", b"hello"))
    yield Case(12, "length and coding", with_body("Content-Length: 5\nTransfer-Encoding: chunked", b"0\r\n\r\n"))
    yield Case(12, "coding and length", with_body("Transfer-Encoding: chunked\nContent-Length: 5", b"0\r\n\r\n"))
    for coding in ("chunked, identity", "chunked, gzip", "gzip, chunked", "xchunked", "chunked, chunked", "gzip",
                   "identity", "", "chunked;a=b", '"chunked"'):  # fmt: skip
        yield Case(13, f"coding {coding!r}", with_body(f"Transfer-Encoding: {coding}", b"0\r\n\r\n"), (400, 501))
    twice = "Transfer-Encoding: chunked\nTransfer-Encoding: chunked"
    yield Case(13, "two codings", with_body(twice, b"0\r\n\r\n"), (400, 501))
    yield Case(13, "coding in 1.0", chunked(b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    yield Case(13, "vertical tab", with_body("Transfer-Encoding: \x0bchunked", b"0\r\n\r\n"))


def chunks() -> Iterator[Case]:
    for size in ("zz", "0x5", "+5", "-5", "5 ", " 5", "1_0", "", "0" * 16 + "5", "f" * 17, "5\t"):
        yield Case(14, f"size {size!r}", chunked(size.encode() + b"\r\nhello\r\n0\r\n\r\n"), (400, 413))
    yield Case(14, "no crlf after data", chunked(b"5\r\nhelloX\r\n0\r\n\r\n"))
    yield Case(14, "lf after size", chunked(b"5\nhello\r\n0\r\n\r\n"))
    yield Case(14, "lf after data", chunked(b"5\r\nhello\n0\r\n\r\n"))
    yield Case(14, "cr after size", chunked(b"5\rhello\r\n0\r\n\r\n"))
    yield Case(15, "64 KB extension", chunked(b"5;" + b"a" * 64 * KiB + b"\r\nhello\r\n0\r\n\r\n"), (400, 413, 431))
    yield Case(15, "1 MB trailer", chunked(b"0\r\nX: " + b"a" * MiB + b"\r\n\r\n"), (400, 413, 431, CLOSED))
    yield Case(15, "bad trailer", chunked(b"0\r\nX : a\r\n\r\n"))
    yield Case(16, "length 10^12", with_body("Content-Length: 1000000000000"), (413,))
    yield Case(16, "length one too many", with_body(f"Content-Length: {8 * MiB + 1}"), (413,))
    yield Case(16, "one chunk of 2^40", chunked(b"10000000000\r\n"), (413,))
    yield Case(17, "unknown expectation", with_body("Content-Length: 5\nExpect: the-inquisition"), (417,))
    yield Case(24, "60 KB last-event-id", with_field(b"Last-Event-ID: " + b"a" * 60_000), (431,))
    yield Case(24, "nul in last-event-id", with_field(b"Last-Event-ID: a\0b"))
    yield Case(24, "newline in last-event-id", with_field(b"Last-Event-ID: a\nb"))


CASES = [*nonsense(), *hosts_and_targets(), *fields(), *lengths(), *chunks()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_what_is_not_http_is_refused_at_once_and_closed(server: ServerProcess, case: Case) -> None:
    """Each gets its status within a second, one answer and no more, and then the end of the connection."""
    began = time.monotonic()
    with Client(server.port) as client:
        client.try_send(case.data)
        try:
            reply = client.reply()
        except AssertionError:
            assert CLOSED in case.answers, "closed without an answer"
            assert client.at_end, "neither an answer nor an end"
            return
        assert time.monotonic() - began < 1.0
        assert reply.status in case.answers
        assert reply.whole
        assert reply.json()["error"]
        assert reply.header("connection") == "close"
        client.try_send(raw.get("/healthz"))
        assert client.rest() == b"", "nothing is answered after a fault"


def test_the_memory_for_hostile_heads_is_bounded(server: ServerProcess) -> None:
    """Twenty endless heads at once cost no more than their limit each."""
    before = server.rss()
    clients = [Client(server.port) for _ in range(20)]
    for client in clients:
        client.try_send(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200 * KiB)
    assert server.rss() - before < 4 * MiB
    for client in clients:
        client.close()


def test_a_chunked_body_is_cut_at_the_limit(server: ServerProcess) -> None:
    """Row 16: what was not announced is counted: 413 at 8 MiB, and no more is read than a little."""
    with Client(server.port) as client:
        client.send(chunked(b""))
        chunk = b"10000\r\n" + b" " * 64 * KiB + b"\r\n"
        sent = 0
        while sent < 32 * MiB and client.try_send(chunk):
            sent += 64 * KiB
        assert sent < 32 * MiB
        assert client.reply().status == 413
        client.rest()


def test_a_body_of_the_limit_is_read(server: ServerProcess) -> None:
    """Row 16, the other side: 8 MiB are a body like any other."""
    prompt = "a" * (8 * MiB - 100)
    body = b'{"mock":{"tokens":1},"prompt":"%s"}' % prompt.encode()
    reply = raw.ask(server.port, request("POST", "/chat", {"Content-Type": "application/json"}, body))
    assert (reply.status, reply.done) == (200, True)

"""However the network cuts the bytes, the result is the same (row 36)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.raw import Client, Reply, chat, get, post, request
from tests.support.server import ServerProcess

FAST: dict[str, Any] = {"tokens": 5, "tokens_per_second": None}


def chunked(*parts: bytes) -> bytes:
    """The same in chunks, one with an extension, and with a trailer."""
    fields = {"Content-Type": "application/json", "Transfer-Encoding": "chunked", "X-Request-Id": "c"}
    chunks = b"".join(b"%X;ext=1\r\n%b\r\n" % (len(part), part) for part in parts)
    return request("POST", "/chat", fields) + chunks + b"0\r\nTrailer: x\r\n\r\n"


CHUNKED_CHAT = chunked(b"{", b'"prompt": "hello", ', b'"mock": {"tokens": 5, "tokens_per_second": null}}')

REQUESTS = {
    "get": get("/healthz", x_request_id="a"),
    "chat": chat(request_id="b", **FAST),
    "chunked": CHUNKED_CHAT,
    "stream": get("/stream?prompt=a&mock=%7B%22tokens%22:3%7D", x_request_id="d"),
    "refused": post("/chat", ["not an object"], x_request_id="e"),
    "malformed": b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Request-Id: f\r\nX : y\r\n\r\n",
}


def whole(data: bytes) -> list[bytes]:
    return [data]


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def at_line_ends(data: bytes) -> list[bytes]:
    """Cut between CR and LF."""
    parts = data.split(b"\r\n")
    return [b"\n" * (number > 0) + part + b"\r" for number, part in enumerate(parts[:-1])] + [b"\n" + parts[-1]]


def same(one: Reply, other: Reply) -> bool:
    def shown(reply: Reply) -> object:
        fields = [pair for pair in reply.headers if pair[0] not in ("date", "x-stream-id")]
        secret = next((value for name, value in reply.headers if name == "x-stream-id"), "-")
        body = re.sub(rb"retry: \d+", b"", reply.body.replace(secret.encode(), b""))  # each stream has its own
        return reply.status, fields, reply.whole, body

    return shown(one) == shown(other)


@pytest.mark.parametrize("cut", [bytewise, at_line_ends])
@pytest.mark.parametrize("name", REQUESTS)
def test_fragments_change_nothing(server: ServerProcess, name: str, cut: Callable[[bytes], list[bytes]]) -> None:
    """Row 36: a byte at a time, and cut between CR and LF: the same answer as to the whole request."""
    data = REQUESTS[name]
    with Client(server.port) as client:
        expected = client.ask(data)
    assert expected.status == (400 if name in ("refused", "malformed") else 200)
    parts = cut(data)
    assert b"".join(parts) == data
    with Client(server.port) as client:
        for part in parts:
            if not client.try_send(part):
                break
            time.sleep(0.0002)  # so that the kernel does not join them again
        assert same(client.reply(), expected)


def test_requests_that_arrive_in_one_packet_are_answered_one_by_one(server: ServerProcess) -> None:
    """Row 36: coalescing is the same as sending one after the other, up to the first malformed one."""
    with Client(server.port) as client:
        expected = [client.ask(data) for data in REQUESTS.values()]
    with Client(server.port) as client:
        client.send(b"".join(REQUESTS.values()))
        assert all(same(client.reply(), reply) for reply in expected)
        assert client.rest() == b""


def test_a_request_and_a_half_are_one_and_then_another(server: ServerProcess) -> None:
    """Row 36: the second half may come while the first request is still being answered."""
    second = REQUESTS["chat"]
    with Client(server.port) as client:
        client.send(chat(tokens=10, tokens_per_second=100) + second[:40])
        client.head()
        client.send(second[40:])
        list(client.parts())
        assert client.reply().done

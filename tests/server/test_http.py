"""The HTTP surface: connections that stay, routes, methods, and the headers of every answer."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support import raw
from tests.support.raw import Client, chat, get, post, request
from tests.support.server import ServerProcess

FAST: dict[str, Any] = {"tokens": 3, "tokens_per_second": None}
COMPLETION = {"messages": [{"role": "user", "content": "hello"}], "mock": FAST}

ROUTES = {
    "/chat": {"POST"},
    "/chat-broken": {"POST"},
    "/chat-whole": {"POST"},
    "/chat-drain": {"POST"},
    "/stream": {"GET", "HEAD"},
    "/text": {"GET", "HEAD", "POST"},
    "/v1/chat/completions": {"POST"},
    "/v1/models": {"GET", "HEAD"},
    "/streams/abc": {"GET", "HEAD"},
    "/streams/abc/stop": {"POST"},
    "/healthz": {"GET", "HEAD"},
    "/readyz": {"GET", "HEAD"},
    "/debug/streams": {"GET", "HEAD"},
}


# --- connections -----------------------------------------------------------------------------------------------


def test_a_connection_serves_many_requests_of_all_kinds(server: ServerProcess) -> None:
    """Whole answers, streams, refusals and empty answers, one after the other, on one connection."""
    kinds = [
        (get("/healthz"), 200),
        (chat(**FAST), 200),
        (get("/nothing"), 404),
        (request("OPTIONS", "/chat"), 204),
        (post("/v1/chat/completions", COMPLETION), 200),
        (post("/v1/chat/completions", {**COMPLETION, "stream": True}), 200),
        (get("/stream?prompt=a", last_event_id="x.end"), 204),
        (request("DELETE", "/chat"), 405),
        (post("/chat", {"prompt": 1}), 400),
        (request("HEAD", "/stream?prompt=a"), 200),
    ]
    with Client(server.port) as client:
        for _ in range(3):
            for data, status in kinds:
                reply = client.ask(data)
                assert (reply.status, reply.whole) == (status, True)
                assert reply.header("connection") is None
        assert server.debug()["totals"]["connections"] == 2


def test_pipelined_requests_are_answered_in_their_order(server: ServerProcess) -> None:
    """The slow first one is not overtaken by the quick second one."""
    with Client(server.port) as client:
        client.send(
            chat(request_id="a", tokens=5, tokens_per_second=20)
            + get("/healthz", x_request_id="b")
            + chat(request_id="c", **FAST)
            + get("/nothing", x_request_id="d")
        )
        replies = [client.reply() for _ in range(4)]
    assert [reply.header("x-request-id") for reply in replies] == ["a", "b", "c", "d"]
    assert [reply.status for reply in replies] == [200, 200, 200, 404]
    assert [len(reply.tokens) for reply in (replies[0], replies[2])] == [5, 3]


def test_connection_close_is_obeyed_after_the_answer(server: ServerProcess) -> None:
    """A plain answer says so, a stream does not (a cut could then be taken for its end); both close."""
    for data in (get("/healthz", connection="close"), post("/chat", {"prompt": "a", "mock": FAST}, connection="close")):
        with Client(server.port) as client:
            reply = client.ask(data)
            assert reply.whole
            if reply.header("transfer-encoding") == "chunked":
                assert reply.header("connection") is None
                assert reply.done
            else:
                assert reply.header("connection") == "close"
            assert client.rest() == b""


def test_an_unwanted_body_does_not_disturb_the_next_request(server: ServerProcess) -> None:
    """With a GET, and with what is refused: the connection can still be used."""
    with Client(server.port) as client:
        assert client.ask(request("GET", "/healthz", body=b"GET /evil HTTP/1.1\r\n\r\n")).status == 200
        assert client.ask(request("POST", "/nothing", body=b"x" * 1000)).status == 404
        assert client.ask(request("POST", "/chat", {"Content-Type": "text/plain"}, b"x" * 1000)).status == 415
        assert client.ask(get("/healthz")).status == 200


def test_a_refusal_reaches_who_is_still_sending_a_large_body(server: ServerProcess) -> None:
    """A 415 for a body of a megabyte is read by a client that sends all of it first."""
    with Client(server.port) as client:
        client.try_send(request("POST", "/chat", {"Content-Type": "text/plain"}, b"x" * 150_000))
        assert client.reply().status == 415


def test_a_unix_socket_serves_the_same(tmp_path: Path) -> None:
    """``--uds PATH``: the same server on a Unix socket, which is gone afterwards."""
    path = tmp_path / "rawstream.sock"
    with ServerProcess("--uds", str(path)) as server:
        assert server.url == f"unix:{path}"
        assert raw.ask(str(path), get("/healthz")).status == 200
        reply = raw.ask(str(path), chat(**FAST))
        assert (len(reply.tokens), reply.done) == (3, True)
        client = Client(str(path))
        client.send(chat(request_id="left", tokens=None, tokens_per_second=50))
        client.head()
        totals = raw.ask(str(path), get("/debug/streams")).json()
        assert totals["streams"][0]["buffered"]["kernel_unsent"] is not None
        client.close()
        assert server.ended("left")["outcome"] == "client_left"
    assert not path.exists()


# --- routes and methods ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ROUTES)
def test_allow_names_the_methods_of_each_path(server: ServerProcess, path: str) -> None:
    """OPTIONS tells them; any other method gets 405 with the same list (RFC 9110 §15.5.6)."""
    with Client(server.port) as client:
        options = client.ask(request("OPTIONS", path))
        assert options.status in (200, 204)
        refused = client.ask(request("PATCH", path))
        assert refused.status == 405
    allow = options.header("allow")
    assert allow
    assert refused.header("allow") == allow
    assert set(allow.split(", ")) == ROUTES[path] | {"OPTIONS"}


@pytest.mark.parametrize(
    "path", ["/nothing", "/chat/", "/CHAT", "/streams", "/streams/a/b/stop", "/healthz/x", "/debug"]
)
def test_what_is_not_there_is_404(server: ServerProcess, path: str) -> None:
    """With a JSON body that names the fault."""
    reply = raw.ask(server.port, get(path))
    assert reply.status == 404
    assert reply.header("content-type") == "application/json"
    assert reply.json()["code"] == "not_found" or path.startswith("/streams")


def test_a_query_does_not_change_the_route(server: ServerProcess) -> None:
    """``/healthz?x`` is ``/healthz``."""
    assert raw.ask(server.port, get("/healthz?a=b&c")).status == 200


# --- headers ---------------------------------------------------------------------------------------------------


def every_kind(server: ServerProcess, **headers: str) -> list[raw.Reply]:
    with Client(server.port) as client:
        return [
            client.ask(data)
            for data in (
                get("/healthz", **headers),
                get("/nothing", **headers),
                post("/chat", {"prompt": "a", "mock": FAST}, **headers),
                post("/text", {"prompt": "a", "mock": FAST}, **headers),
                get("/stream?prompt=a&mock=%7B%22tokens%22:1%7D", **headers),
                post("/v1/chat/completions", {**COMPLETION, "stream": True}, **headers),
                post("/v1/chat/completions", COMPLETION, **headers),
            )
        ]


def test_every_answer_has_a_date_and_a_request_id_of_its_own(server: ServerProcess) -> None:
    """RFC 9110 §6.6.1's Date, and an id to ask about."""
    replies = every_kind(server)
    for reply in replies:
        date = reply.header("date")
        assert date
        assert date.endswith(" GMT")
        assert abs(parsedate_to_datetime(date).timestamp() - time.time()) < 5
    assert len({reply.header("x-request-id") for reply in replies}) == len(replies)


@pytest.mark.parametrize("given", ["abc", "A-b_c.d:e/f+g=", "a" * 128, "0"])
def test_a_harmless_request_id_comes_back(server: ServerProcess, given: str) -> None:
    """In every kind of answer, and in the log."""
    assert {reply.header("x-request-id") for reply in every_kind(server, x_request_id=given)} == {given}
    assert server.ended(given)["outcome"] == "completed"


def test_every_stream_has_a_secret_id_of_its_own(server: ServerProcess) -> None:
    """``x-stream-id`` has at least 128 bits, comes with streams alone, and is never the same twice."""
    replies = [raw.ask(server.port, chat(**FAST)) for _ in range(20)]
    ids = [reply.header("x-stream-id") or "" for reply in replies]
    assert len(set(ids)) == 20
    assert all(re.fullmatch(r"[0-9a-f]{32,}", one) for one in ids)
    assert raw.ask(server.port, get("/healthz")).header("x-stream-id") is None
    assert not any(one in server.stderr for one in ids), "the log does not tell it"


@pytest.mark.parametrize("coding", ["gzip", "br, gzip, deflate", "identity;q=0, gzip", "*", "zstd", "identity"])
def test_answers_are_the_same_whatever_coding_is_accepted(server: ServerProcess, coding: str) -> None:
    """Nothing is compressed (that would hold tokens back), and nothing else changes either."""

    def shown(replies: list[raw.Reply]) -> list[object]:
        varying = {"date", "x-request-id", "x-stream-id", "content-length"}
        return [
            (reply.status, [pair for pair in reply.headers if pair[0] not in varying], len(reply.events))
            for reply in replies
        ]

    assert shown(every_kind(server, accept_encoding=coding)) == shown(every_kind(server))


def test_event_streams_have_the_headers_that_proxies_and_browsers_need(server: ServerProcess) -> None:
    """As every SSE client and buffering proxy in the field wants them, and never ``connection: close``."""
    data = [
        chat(**FAST),
        get("/stream?prompt=a&mock=%7B%22tokens%22:1%7D"),
        post("/v1/chat/completions", {**COMPLETION, "stream": True}),
    ]
    for one in data:
        reply = raw.ask(server.port, one)
        assert reply.header("content-type") == "text/event-stream; charset=utf-8"
        assert reply.header("cache-control") == "no-cache, no-transform"
        assert reply.header("x-accel-buffering") == "no"
        assert reply.header("transfer-encoding") == "chunked"
        assert reply.header("connection") is None
        assert reply.header("content-encoding") is None
        assert not reply.body.startswith(b"\xef\xbb\xbf")

"""Requests that are HTTP, but odd or hostile (rows 5 to 7 and 17 to 24)."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass

import pytest

from tests.support import raw
from tests.support.raw import Client, Reply, get, post, request
from tests.support.server import ServerProcess

FAST = {"tokens": 3, "tokens_per_second": None}
CHAT = json.dumps({"prompt": "hello", "mock": FAST}).encode()
JSON = {"Content-Type": "application/json"}

TWO_TYPES = [("Content-Type", "text/plain"), ("Content-Type", "application/json")]
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


@dataclass(frozen=True)
class Case:
    row: int
    name: str
    data: bytes
    answers: tuple[int, ...]

    @property
    def id(self) -> str:
        return f"{self.row}-{self.name.replace(' ', '-')}"


def body(data: bytes) -> bytes:
    return request("POST", "/chat", JSON, data)


def zipped(data: bytes) -> bytes:
    return request("POST", "/chat", {**JSON, "Content-Encoding": "gzip"}, gzip.compress(data))


TARGETS = [
    Case(5, "absolute form", request("GET", "http://example.com/healthz"), (200,)),
    Case(5, "absolute form wins", request("GET", "http://example.com/healthz?a=b", host="other"), (200,)),
    Case(5, "absolute form in capitals", request("GET", "HTTP://EXAMPLE.com/healthz"), (200,)),
    Case(6, "options star", request("OPTIONS", "*"), (200, 204, 405)),
    Case(6, "options absolute star", request("OPTIONS", "http://example.com"), (200, 204, 405)),
    Case(6, "unknown method", request("BREW", "/chat"), (501,)),
    Case(6, "lower case method", request("get", "/healthz"), (501,)),
    Case(6, "trace", request("TRACE", "/healthz", {"Authorization": "Bearer secret"}), (405, 501)),
    Case(6, "delete", request("DELETE", "/chat"), (405,)),
    Case(7, "dots", request("GET", "/../../../../etc/passwd"), (400, 404)),
    Case(7, "encoded dots", request("GET", "/%2e%2e/%2e%2e/etc/passwd"), (400, 404)),
    Case(7, "twice encoded dots", request("GET", "/%252e%252e/etc/passwd"), (400, 404)),
    Case(7, "backslashes", request("GET", "/..\\..\\etc\\passwd"), (400, 404)),
    Case(7, "encoded nul", request("GET", "/healthz%00.html"), (400, 404)),
    Case(7, "encoded overlong", request("GET", "/%c0%ae%c0%ae/etc/passwd"), (400, 404)),
    Case(7, "encoded slash", request("GET", "/%2fetc%2fpasswd"), (400, 404)),
    Case(7, "two slashes", request("GET", "//etc/passwd"), (400, 404)),
    Case(7, "static dots", request("GET", "/client.js/../../../etc/passwd"), (400, 404)),
]  # fmt: skip

BODIES = [
    Case(20, "gzip", zipped(CHAT), (415,)),
    Case(20, "gzip bomb", zipped(b" " * 2**22), (415,)),
    Case(20, "form", request("POST", "/chat", {"Content-Type": "application/x-www-form-urlencoded"}, b"a=b"), (415,)),
    Case(20, "plain text", request("POST", "/chat", {"Content-Type": "text/plain"}, CHAT), (415,)),
    Case(20, "no type", request("POST", "/chat", {}, CHAT), (415,)),
    Case(20, "nearly json", request("POST", "/chat", {"Content-Type": "application/json5"}, CHAT), (415,)),
    Case(20, "two types", request("POST", "/chat", TWO_TYPES, CHAT), (415,)),
    Case(21, "truncated", body(b'{"prompt": "he'), (400,)),
    Case(21, "empty", body(b""), (400,)),
    Case(21, "white space", body(b"  \n"), (400,)),
    Case(21, "nuls", body(b"\0" * 64), (400,)),
    Case(21, "nul in string", body(b'{"prompt": "a\0b"}'), (400,)),
    Case(21, "invalid utf-8", body(b'{"prompt": "\xff\xfe"}'), (400,)),
    Case(21, "overlong utf-8", body(b'{"prompt": "\xc0\xaf"}'), (400,)),
    Case(21, "utf-16", body('{"prompt": "hello"}'.encode("utf-16")), (400,)),
    Case(21, "utf-16 without bom", body('{"prompt": "hello"}'.encode("utf-16-le")), (400,)),
    Case(21, "utf-32", body('{"prompt": "hello"}'.encode("utf-32-be")), (400,)),
    Case(21, "100k nesting", body(b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), (400,)),
    Case(21, "100k nesting elsewhere", body(b'{"prompt": "a", "x": ' + DEEP + b"}"), (400,)),
    Case(21, "100k unclosed", body(b"[" * 100_000), (400,)),
    Case(21, "100k digits", body(b'{"prompt": "a", "x": ' + b"9" * 100_000 + b"}"), (400,)),
    Case(21, "100k digits of max_tokens", body(b'{"prompt": "a", "max_tokens": ' + b"9" * 100_000 + b"}"), (400,)),
    Case(21, "nan", body(b'{"prompt": "a", "x": NaN}'), (400,)),
    Case(21, "infinity", body(b'{"prompt": "a", "x": -Infinity}'), (400,)),
    Case(21, "1e999", body(b'{"prompt": "a", "x": 1e999, "mock": {"tokens": 1}}'), (200, 400)),
    Case(21, "lone surrogate", body(b'{"prompt": "\\ud800", "mock": {"tokens": 1}}'), (200, 400)),
    Case(21, "lone surrogate elsewhere", body(b'{"prompt": "a", "x": "\\udfff", "mock": {"tokens": 1}}'), (200, 400)),
    Case(21, "duplicate keys", body(b'{"prompt": "a", "prompt": "b", "mock": {"tokens": 1}}'), (200, 400)),
    Case(21, "list", body(b"[]"), (400,)),
    Case(21, "string", body(b'"hello"'), (400,)),
    Case(21, "null", body(b"null"), (400,)),
    Case(21, "number", body(b"1"), (400,)),
    Case(21, "two values", body(b'{"prompt": "a"} {}'), (400,)),
    Case(21, "comment", body(b'{"prompt": "a" /* b */}'), (400,)),
    Case(21, "prompt number", body(b'{"prompt": 1}'), (400,)),
    Case(21, "messages object", body(b'{"messages": {}}'), (400,)),
    Case(21, "messages of strings", body(b'{"messages": ["a"]}'), (400,)),
    Case(21, "odd content", body(b'{"messages": [{"role": "user", "content": 7}], "mock": {"tokens": 1}}'), (200, 400)),
    Case(21, "odd role", body(b'{"messages": [{"role": {}, "content": []}], "mock": {"tokens": 1}}'), (200, 400)),
    Case(21, "odd mock", body(b'{"prompt": "a", "mock": {"tokens": "many"}}'), (400,)),
    Case(21, "mock list", body(b'{"prompt": "a", "mock": []}'), (400,)),
    Case(21, "negative max_tokens", body(b'{"prompt": "a", "max_tokens": -1}'), (400,)),
    Case(21, "boolean max_tokens", body(b'{"prompt": "a", "max_tokens": true}'), (400,)),
    Case(21, "query mock", get("/stream?prompt=a&mock=%7B"), (400,)),
    Case(21, "query utf-8", get("/stream?prompt=%ff%fe"), (400,)),
    Case(21, "query fields", get("/stream?" + "&".join(f"a{n}=1" for n in range(1000))), (400,)),
    Case(21, "query without prompt", get("/text"), (400,)),
]  # fmt: skip


@pytest.mark.parametrize("case", [*TARGETS, *BODIES], ids=lambda case: case.id)
def test_odd_requests_get_their_status_and_the_connection_goes_on(server: ServerProcess, case: Case) -> None:
    """None of them is an internal error, and none costs the connection."""
    with Client(server.port) as client:
        reply = client.ask(case.data)
        assert reply.status in case.answers
        assert reply.whole
        assert b"root:" not in reply.body
        assert b"secret" not in reply.raw + reply.body
        if reply.status >= 400 and reply.header("content-length") != "0":
            assert reply.json()["error"]
        if reply.status == 405:
            assert reply.header("allow")
        assert client.ask(get("/healthz")).status == 200


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("case", [case for case in BODIES if case.answers == (400,)], ids=lambda case: case.id)
def test_both_json_endpoints_refuse_the_same_bodies(server: ServerProcess, case: Case, path: str) -> None:
    """Row 21 holds for OpenAI's endpoint as it does for our own."""
    if not case.data.startswith(b"POST /chat ") or (case.name == "odd mock" and path != "/chat"):
        return
    reply = raw.ask(server.port, case.data.replace(b"/chat", path.encode(), 1))
    assert reply.status == 400
    assert reply.json()["error"]


# --- 17: Expect ------------------------------------------------------------------------------------------------


def expecting(value: str = "100-continue", **more: str) -> bytes:
    named = {name.replace("_", "-"): text for name, text in more.items()}
    return request("POST", "/chat", {**JSON, "Expect": value, "Content-Length": str(len(CHAT)), **named})


def test_who_expects_a_go_ahead_gets_it_before_the_body_is_read(server: ServerProcess) -> None:
    """Row 17: ``100 Continue`` comes while the body is still ours, then the answer to the whole request."""
    with Client(server.port) as client:
        client.send(expecting())
        assert client.more(), "the go-ahead"
        assert bytes(client.take()) == b"HTTP/1.1 100 Continue\r\n\r\n"
        reply = client.ask(CHAT)
        assert (reply.status, reply.done, reply.interim) == (200, True, [])
        assert client.ask(get("/healthz")).status == 200


def test_a_body_that_came_already_needs_no_go_ahead(server: ServerProcess) -> None:
    """Row 17: RFC 9110 §10.1.1 lets a server omit the 100 when it has begun to receive the body."""
    with Client(server.port) as client:
        reply = client.ask(expecting() + CHAT)
        assert (reply.status, reply.done) == (200, True)


def test_a_refusal_comes_instead_of_the_go_ahead(server: ServerProcess) -> None:
    """Row 17: a request that is refused anyway is refused before its body, and the connection then closes."""
    with Client(server.port) as client:
        reply = client.ask(expecting(Content_Type="text/plain").replace(b"Content-Type: application/json\r\n", b"", 1))
        assert (reply.status, reply.interim) == (415, [])
        assert client.rest() == b""


def test_http_1_0_expects_nothing(server: ServerProcess) -> None:
    """Row 17: an HTTP/1.0 client's expectation is ignored (RFC 9110 §10.1.1)."""
    with Client(server.port) as client:
        client.send(expecting().replace(b"HTTP/1.1", b"HTTP/1.0"))
        reply = client.ask(CHAT)
        assert (reply.status, reply.interim, reply.done) == (200, [], True)


# --- 18, 19: HTTP/1.0, HEAD, Range -----------------------------------------------------------------------------


def test_http_1_0_gets_no_chunks_and_the_close_ends_the_body(server: ServerProcess) -> None:
    """Row 18: a plain answer and a stream, both delimited by the end of the connection."""
    plain = request("GET", "/healthz", version="1.0", host=None)
    stream = request("POST", "/chat", JSON, CHAT, version="1.0")
    for data in (plain, stream):
        with Client(server.port) as client:
            reply = client.ask(data)
            assert (reply.status, reply.whole) == (200, True)
            assert reply.header("transfer-encoding") is None
            assert client.rest() == b""
    assert reply.done
    assert len(reply.tokens) == 3


def test_a_failing_stream_over_http_1_0_does_not_end_cleanly(server: ServerProcess) -> None:
    """Row 18 and rule 8: a body that its close delimits is cut by a reset, so that nobody takes it for whole."""
    failing = json.dumps({"prompt": "a", "mock": {"tokens": 9, "tokens_per_second": 100, "fail_after": 3}}).encode()
    with Client(server.port) as client:
        reply = client.ask(request("POST", "/chat", JSON, failing, version="1.0"))
        assert reply.header("transfer-encoding") is None
        assert not reply.whole
        assert not reply.done
        assert client.was_reset


def test_keep_alive_on_http_1_0_is_not_promised(server: ServerProcess) -> None:
    """Row 18: ``Connection: keep-alive`` of an HTTP/1.0 client is not answered with a connection that stays."""
    with Client(server.port) as client:
        client.ask(request("GET", "/healthz", {"Connection": "keep-alive"}, version="1.0"))
        assert client.rest() == b""


@pytest.mark.parametrize("path", ["/stream?prompt=a", "/text?prompt=a", "/healthz", "/v1/models", "/nothing"])
def test_head_gets_the_head_alone(server: ServerProcess, path: str) -> None:
    """Row 19: the same status and fields as GET, no body, no stream begun, and the connection goes on."""
    with Client(server.port) as client:
        opened = server.debug()["totals"]["opened"]
        head = client.ask(request("HEAD", path))
        assert client.ask(get("/healthz")).json() == {"status": "alive"}, "no byte of a body came before it"
        assert server.debug()["totals"]["opened"] == opened
        whole = client.ask(get(path + ("&" if "?" in path else "?") + "mock=%7B%22tokens%22:1%7D"))
    assert head.status == whole.status
    varying = {"date", "x-request-id", "x-stream-id", "content-length"}
    assert [pair for pair in head.headers if pair[0] not in varying] == [
        pair for pair in whole.headers if pair[0] not in varying
    ]


def test_range_is_ignored_on_a_stream(server: ServerProcess) -> None:
    """Row 19: 200 with all of it."""
    reply = raw.ask(server.port, post("/chat", json.loads(CHAT), Range="bytes=0-10"))
    assert (reply.status, reply.done, reply.header("content-range")) == (200, True, None)


# --- 22, 23: injection -----------------------------------------------------------------------------------------


def same_fields_as_a_harmless_one(reply: Reply, harmless: Reply) -> bool:
    return [name for name, _ in reply.headers] == [name for name, _ in harmless.headers]


@pytest.mark.parametrize(
    "evil",
    ["a\tb", "a b", "a;b", "<script>", 'a"b', "\xe9\xe9", "a" * 129, "", "a\\r\\nSet-Cookie: b", "%0d%0aSet-Cookie:b"],
)
def test_a_request_id_cannot_carry_anything_into_the_answer(server: ServerProcess, evil: str) -> None:
    """Row 22: what is not a harmless token is replaced by an id of our own."""
    harmless = raw.ask(server.port, get("/healthz"))
    reply = raw.ask(server.port, get("/healthz", x_request_id=evil))
    given = reply.header("x-request-id")
    assert given
    assert given != evil.strip()
    assert same_fields_as_a_harmless_one(reply, harmless)


def test_a_repeated_request_id_is_replaced(server: ServerProcess) -> None:
    """Row 22: two of them are not one."""
    reply = raw.ask(server.port, request("GET", "/healthz", [("X-Request-Id", "a"), ("X-Request-Id", "b")]))
    assert reply.header("x-request-id") not in ("a", "b", "a, b")


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_name_cannot_carry_anything_into_the_answer(server: ServerProcess, stream: bool) -> None:
    """Rows 22 and 23: a model name with line ends stays inside the JSON."""
    evil = 'm\r\nSet-Cookie: a=b\r\n\r\ndata: {"token": "evil"}\n\n\0\u2028\x85'
    asked = {"model": evil, "messages": [{"role": "user", "content": "a"}], "stream": stream, "mock": FAST}
    harmless = raw.ask(server.port, post("/v1/chat/completions", {**asked, "model": "m"}))
    reply = raw.ask(server.port, post("/v1/chat/completions", asked))
    assert reply.status == 200
    assert same_fields_as_a_harmless_one(reply, harmless)
    if stream:
        assert len(reply.events) == len(harmless.events)
        assert all(json.loads(event)["model"] == evil for event in reply.events[:-1])
        assert reply.done
    else:
        assert reply.json()["model"] == evil


def test_an_error_that_quotes_the_request_stays_one_line_of_json(server: ServerProcess) -> None:
    """Rows 22 and 23: what is quoted from a request into an error is quoted as JSON."""
    reply = raw.ask(server.port, get("/text?prompt=a&max_tokens=%0d%0aSet-Cookie:%20a%3db%00"))
    assert reply.status == 400
    assert reply.header("set-cookie") is None
    assert "Set-Cookie" in reply.json()["error"]
    assert b"\n" not in reply.body


@pytest.mark.parametrize("evil", ["x", "a.5", "\xe9\xff", "9" * 4000, "../../etc", "*"])
def test_an_evil_last_event_id_is_ignored(server: ServerProcess, evil: str) -> None:
    """Row 24: a new stream with ids of its own."""
    data = get("/stream?prompt=a&mock=%7B%22tokens%22:2,%22tokens_per_second%22:null%7D", last_event_id=evil)
    reply = raw.ask(server.port, data)
    assert (reply.status, reply.done) == (200, True)
    assert evil.encode("latin-1") not in reply.raw + reply.body or evil in ("x", "*")

"""Who may ask: users by their keys or by a trusted proxy, which routes need one, and under which name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import rawstream
from rawstream.limits.users import new_key
from rawstream.server.peers import address_of, client_of, is_trusted, without_port
from rawstream.server.router import Route
from rawstream.settings import Settings, UserSettings
from rawstream.settings.lists import hosts, origins, proxies
from rawstream.sources.router import RoutedSource
from rawstream.wire.guard import HeadLimits, RequestHead, read_head
from tests.support import raw
from tests.support.chaos import ChaosProcess
from tests.support.server import ServerProcess

ADA, ADA_HASH = new_key()
BOB, BOB_HASH = new_key()
USERS = f"""
[[users]]
name = "ada"
keys = ["{ADA_HASH}"]

[[users]]
name = "bob"
keys = ["{BOB_HASH}"]
requests_per_minute = 2
"""
OPEN = {"/healthz", "/readyz"}
OPERATORS = {"/debug/streams", "/debug/events", "/metrics"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("users") / "rawstream.toml"
    path.write_text(USERS)
    return str(path)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def routes_of(settings: Settings) -> list[Route]:
    router = rawstream.Server(settings).app.router
    return [*router._exact.values(), *(route for _, _, route in router._patterns)]


# --- keys ---------------------------------------------------------------------------------------------------


def test_every_route_that_is_not_open_or_the_operators_answers_401_without_a_key(file: str) -> None:
    """A new route is protected unless it says that it is not."""
    asked = 0
    with ServerProcess("--config", file, "--lab") as server:
        for route in routes_of(Settings(lab=True)):
            path = route.path.replace("{id}", "x")
            for method in route.handlers:
                headers = {"content-type": "application/json"} if method == "POST" else {}
                body = b"{}" if method == "POST" else None
                # Under this name /debug/events, which has no end, is not answered.
                reply = server.ask(raw.request(method, path, headers, body, host="test"))
                if route.path in OPEN:
                    assert reply.status == 200
                elif route.path in OPERATORS:
                    assert route.access[method] == "operator"
                else:
                    asked += 1
                    assert reply.status == 401, f"{method} {route.path}"
                    assert reply.header("www-authenticate") == "Bearer"
    assert asked > 15


def test_what_generates_is_counted_as_such() -> None:
    generating = {
        (method, route.path)
        for route in routes_of(Settings(lab=True))
        for method, need in route.access.items()
        if need == "generate"
    }
    assert generating == {
        ("POST", "/chat"), ("GET", "/stream"), ("POST", "/text"), ("GET", "/text"), ("POST", "/api/chat"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/chat-broken"), ("POST", "/chat-whole"), ("POST", "/chat-drain"),
    }  # fmt: skip


def test_a_key_opens_the_door_as_bearer_and_as_x_api_key(file: str) -> None:
    with ServerProcess("--config", file) as server:
        for headers in (bearer(ADA), {"authorization": f"bearer  {ADA}"}, {"x-api-key": ADA}):
            assert server.ask(raw.request("GET", "/v1/models", headers)).status == 200
        both = {"authorization": "Basic abc", "x-api-key": ADA}
        assert server.ask(raw.request("GET", "/v1/models", both)).status == 200


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("rs-00000000-x"), bearer(""), {"authorization": "Basic abc"}, bearer(ADA_HASH), {"x-user": "ada"},
     {"authorization": f"Bearer {ADA}, Bearer {BOB}"}, {"cookie": f"key={ADA}"}],
)  # fmt: skip
def test_without_a_key_that_is_known_nothing_is_answered(headers: dict[str, str], file: str) -> None:
    """401, in the form that the route's clients understand, with what to do; the key is nowhere repeated."""
    with ServerProcess("--config", file, "--log-level", "debug") as server:
        reply = server.ask(raw.post("/v1/chat/completions", {"messages": []}, **headers))
        assert reply.status == 401
        assert reply.json()["error"]["code"] == "invalid_api_key"
        message = reply.json()["error"]["message"]
        assert "Authorization: Bearer KEY" in message or "look whether it is whole" in message
        for secret in (ADA, ADA_HASH, BOB, "rs-00000000-x", "abc"):
            assert secret not in reply.body.decode()
        assert ADA not in server.stderr
        assert ADA_HASH not in server.stderr


def test_a_stranger_is_refused_before_its_body_is_read(file: str) -> None:
    """Eight megabytes are announced, none are sent; and ``Expect: 100-continue`` is not told to go on."""
    with ServerProcess("--config", file) as server:
        for extra in ({}, {"expect": "100-continue"}):
            headers = {"content-type": "application/json", "content-length": str(8 << 20), **extra}
            with server.connect() as client:
                reply = client.ask(raw.request("POST", "/chat", headers), within=2)
                assert reply.status == 401
                assert reply.interim == []


def test_requests_a_minute_are_counted_for_what_generates_alone(file: str) -> None:
    ask = raw.post("/chat", {"prompt": "x", "mock": {"tokens": 1}}, **bearer(BOB))
    with ServerProcess("--config", file) as server:
        for _ in range(5):
            assert server.ask(raw.request("GET", "/v1/models", bearer(BOB))).status == 200
        assert [server.ask(ask).status for _ in range(2)] == [200, 200]
        refused = server.ask(ask)
        assert (refused.status, refused.json()["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.header("retry-after") or 0) <= 60
        other = raw.post("/chat", {"prompt": "x", "mock": {"tokens": 1}}, **bearer(ADA))
        assert server.ask(other).status == 200, "another user has its own"


def test_a_stream_of_another_user_is_not_there(file: str) -> None:
    """Its state, stop, signal and credit: 404, though the id is known; its own user gets through."""
    with ServerProcess("--config", file) as server, server.connect() as client:
        body = {"prompt": "x", "mock": {"tokens": None, "tokens_per_second": 100}}
        stream = client.send(raw.post("/chat", body, **bearer(ADA))).head().header("x-stream-id")
        for key, state, rest in ((BOB, 404, (404, 404, 404)), (ADA, 200, (409, 202, 202))):
            assert server.ask(raw.request("GET", f"/streams/{stream}", bearer(key))).status == state
            credit = raw.post(f"/streams/{stream}/credit", {"consumed": 1}, **bearer(key))
            signal = raw.post(f"/streams/{stream}/signal", 1, **bearer(key))
            stop = raw.request("POST", f"/streams/{stream}/stop", bearer(key))
            statuses = tuple(server.ask(one).status for one in (credit, signal, stop))
            assert statuses[0] == rest[0]
            assert statuses[1] in (202, 409) if key == ADA else statuses[1] == 404
            assert statuses[2] == rest[2]


def test_the_clients_key_does_not_reach_the_upstream(file: str) -> None:
    """What the upstream gets is its own key, or none."""
    seen: list[bytes] = []

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head)
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async def ask() -> None:
        server = await asyncio.start_server(upstream, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings = Settings(
            port=0,
            upstream=f"http://127.0.0.1:{port}/v1",
            upstream_retries=0,
            users=(UserSettings(name="ada", keys=(ADA_HASH,)),),
        )
        async with server, asyncio.timeout(10), rawstream.Server(settings, RoutedSource(settings)) as ours:
            for headers in (bearer(ADA), {"x-api-key": ADA}):
                body = {"messages": [{"role": "user", "content": "x"}], "model": "m"}
                await asyncio.to_thread(raw.ask, ours.port, raw.post("/v1/chat/completions", body, **headers))

    asyncio.run(ask())
    assert len(seen) == 2
    for head in seen:
        assert ADA.encode() not in head
        assert b"authorization" not in head.lower()
        assert b"x-api-key" not in head.lower()


def test_without_users_a_key_means_nothing_and_everybody_may_ask(file: str) -> None:
    with ServerProcess() as server:
        assert server.ask(raw.request("GET", "/v1/models", bearer("whatever"))).status == 200


def test_with_users_the_lab_is_off_unless_it_is_asked_for(file: str) -> None:
    user = UserSettings(name="ada", keys=(ADA_HASH,))
    assert Settings().lab_enabled
    assert not Settings(users=(user,)).lab_enabled
    assert Settings(users=(user,), lab=True).lab_enabled


def test_the_labs_readers_ask_for_whoever_started_the_run(file: str) -> None:
    with ServerProcess("--config", file, "--lab") as server:
        run = raw.request(
            "POST",
            "/lab/runs",
            {"content-type": "application/json", **bearer(ADA)},
            json.dumps({"lanes": ["rawstream"], "tokens": 5, "seconds": 1}).encode(),
            host="localhost",
        )
        assert server.ask(run).status == 201
        line = json.loads(server.wait_line(lambda text: '"stream ended"' in text))
        assert line["outcome"] == "completed"
        assert line["user"] == "ada"


# --- a trusted proxy ----------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[rawstream.Server]:
    async with asyncio.timeout(20), rawstream.Server(Settings(port=0, **settings)) as server:
        yield server


async def status(server: rawstream.Server, headers: dict[str, str], path: str = "/v1/models") -> int:
    return (await asyncio.to_thread(raw.ask, server.port, raw.request("GET", path, headers))).status


async def test_a_trusted_proxy_names_the_user() -> None:
    async with serving(
        user_header="X-User", trusted_proxies="127.0.0.1", users=(UserSettings(name="ada", keys=(ADA_HASH,)),)
    ) as server:
        assert await status(server, {"x-user": "ada"}) == 200
        assert await status(server, {"x-user": "eve"}) == 403
        assert await status(server, {}) == 401
        assert await status(server, bearer(ADA)) == 200
        assert await status(server, {"x-user": "ada, ada"}) == 403
        twice = raw.request("GET", "/v1/models", [("x-user", "ada"), ("x-user", "ada")])
        assert (await asyncio.to_thread(raw.ask, server.port, twice)).status == 403, "who says it twice said one"


async def test_the_header_of_anybody_else_is_not_believed() -> None:
    async with serving(
        user_header="X-User", trusted_proxies="192.0.2.1,unix", users=(UserSettings(name="ada", keys=(ADA_HASH,)),)
    ) as server:
        for more in ({}, {"x-forwarded-for": "192.0.2.1"}, {"forwarded": "for=192.0.2.1"}):
            assert await status(server, {"x-user": "ada", **more}) == 401


async def test_without_a_table_of_users_whomever_the_proxy_names_may_ask() -> None:
    async with serving(user_header="x-user", trusted_proxies="127.0.0.0/8") as server:
        assert await status(server, {"x-user": "whoever@example.org"}) == 200
        assert await status(server, {"x-user": "who ever"}) == 403
        assert await status(server, {}) == 401


def test_a_proxy_on_our_unix_socket_is_trusted_when_it_is_listed(tmp_path: Path) -> None:
    for trusted, expected in (("unix", 200), ("127.0.0.1", 401)):
        path = str(tmp_path / f"{expected}.sock")
        with ServerProcess("--uds", path, "--user-header", "x-user", "--trusted-proxies", trusted):
            assert raw.ask(path, raw.request("GET", "/v1/models", {"x-user": "ada"})).status == expected


def head(*fields: str) -> RequestHead:
    limits = HeadLimits(max_head=16384, max_request_line=8192, max_fields=100, max_body=0)
    return read_head("\r\n".join(["GET / HTTP/1.1", "Host: a", *fields, "", ""]).encode(), limits)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1", "203.0.113.9", "10.0.0.2"], "203.0.113.9"),
        ("203.0.113.1", ["1.1.1.1"], "203.0.113.1"),
        ("10.0.0.1", ["203.0.113.9:4711"], "203.0.113.9"),
        ("10.0.0.1", ["[2001:db8::1]:80"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("unix", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", [", ,"], "10.0.0.1"),
    ],
)
def test_the_client_is_the_last_address_that_no_trusted_proxy_has(peer: str, forwarded: list[str], client: str) -> None:
    """What stands before it, the client may have written itself."""
    trusted = proxies("10.0.0.0/8, unix")
    assert client_of(peer, head(*(f"X-Forwarded-For: {line}" for line in forwarded)), trusted) == client


def test_addresses_are_read_as_they_are_written() -> None:
    assert str(address_of("[::1]:80")) == "::1"
    assert str(address_of("fe80::1%eth0")) == "fe80::1"
    assert address_of("localhost") is None
    assert not is_trusted("localhost", proxies("127.0.0.1"))
    assert [without_port(one) for one in ("A.example.:80", "[::1]:80", "a", "127.0.0.1:1")] == [
        "a.example", "::1", "a", "127.0.0.1",
    ]  # fmt: skip


# --- loopback only ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["forwarded", "x-forwarded-for", "x-real-ip"])
def test_what_came_through_a_proxy_is_no_loopback_client(field: str) -> None:
    """A proxy on the same machine is a loopback peer; who stands behind it is not."""
    with ServerProcess() as server:
        for path in ("/debug/streams", "/metrics", "/debug/events", "/"):
            headers = {field: "for=127.0.0.1" if field == "forwarded" else "127.0.0.1"}
            assert server.ask(raw.request("GET", path, headers, host="localhost")).status == 403
        assert server.ask(raw.request("GET", "/debug/streams", host="localhost")).status == 200


# --- names --------------------------------------------------------------------------------------------------


def test_a_server_on_loopback_is_not_there_for_pages_under_a_name_of_their_own() -> None:
    """DNS rebinding: the page's own name was made to point here, so its Origin and its Host agree."""
    with ServerProcess() as server:
        for host, expected in (
            ("evil.example:8000", 421), ("localhost:8000", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200),
            ("app.localhost", 200), ("localhost.evil.example", 421), ("127.0.0.1.evil.example", 421),
        ):  # fmt: skip
            body = json.dumps({"prompt": "x", "mock": {"tokens": 1}}).encode()
            headers = {"content-type": "application/json", "origin": f"http://{host}"}
            reply = server.ask(raw.request("POST", "/chat", headers, body, host=host))
            assert reply.status == expected, host
            if expected == 421:
                assert "--allowed-hosts" in reply.json()["error"]
        assert server.ask(raw.chat(tokens=1)).status == 200, "no browser, no question"


@pytest.mark.parametrize("path", ["/stream?prompt=x", "/text?prompt=x"])
def test_a_get_of_such_a_page_that_generates_is_known_by_its_name_alone(path: str) -> None:
    """To its browser it is the page's own: it says neither ``Origin`` nor, without TLS, ``Sec-Fetch-Site``."""
    with ServerProcess() as server:
        for method in ("GET", "HEAD"):
            assert server.ask(raw.request(method, path, host="evil.example:8000")).status == 421
        assert server.ask(raw.request("HEAD", path, host="localhost:8000")).status == 200
        assert server.ask(raw.request("GET", "/v1/models", host="evil.example:8000")).status == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("chat.example.com", 200), ("CHAT.example.com:8443", 200), ("a.example.org", 200), ("a.b.example.org.", 200),
        ("example.org", 421), ("evil.example", 421), ("badexample.org", 421), ("localhost", 200), ("127.0.0.1:80", 200),
    ],
)  # fmt: skip
def test_with_allowed_hosts_only_these_names_are_answered(host: str, expected: int) -> None:
    """And from this machine its own."""
    with ServerProcess("--allowed-hosts", "chat.example.com,*.example.org") as server:
        reply = server.ask(raw.request("GET", "/v1/models", host=host))
        assert reply.status == expected
        assert server.ask(raw.request("GET", "/healthz", host="10.0.0.7")).status == 200, "a load balancer's probe"
        if expected == 421:
            assert "--allowed-hosts" in reply.body.decode()


def test_a_trusted_proxy_says_under_which_name_it_was_asked() -> None:
    asked = {"x-forwarded-host": "chat.example.com"}
    with ServerProcess("--allowed-hosts", "chat.example.com", "--trusted-proxies", "127.0.0.1") as server:
        assert server.ask(raw.request("GET", "/v1/models", asked, host="backend")).status == 200
        assert server.ask(raw.request("GET", "/v1/models", host="backend")).status == 421
    with ServerProcess("--allowed-hosts", "chat.example.com") as server:
        assert server.ask(raw.request("GET", "/v1/models", asked, host="backend")).status == 421
    with ServerProcess("--trusted-proxies", "127.0.0.1") as server:
        headers = {"origin": "https://chat.example.com", "content-type": "application/json", **asked}
        body = b'{"prompt":"x","mock":{"tokens":1}}'
        assert server.ask(raw.request("POST", "/chat", headers, body, host="backend")).status == 200


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("trusted_proxies", "localhost", "'localhost', which is no address"),
        ("trusted_proxies", "10.0.0.1/8", "host bits"),
        ("trusted_proxies", "127.0.0.1,,::1", "empty entry"),
        ("allowed_hosts", "https://a.example", "no host name"),
        ("allowed_hosts", "a.example:80", "no port"),
        ("allowed_hosts", "a.*.example", "no host name"),
        ("cors_origins", "app.example.com", "scheme://host"),
        ("cors_origins", "https://app.example.com/", "without a path"),
        ("cors_origins", "https://*.example.com", "no origin"),
        ("user_header", "x user", "no name of a header"),
        ("user_header", "x-user", "needs trusted_proxies"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_at_start(name: str, value: str, says: str) -> None:
    with pytest.raises(ValueError, match=name) as refused:
        Settings(**{name: value})  # type: ignore[arg-type]  # each of them is text
    assert says in str(refused.value)


def test_lists_are_read_as_they_are_meant() -> None:
    assert origins("https://A.example, http://localhost:5173").exact == {"https://a.example", "http://localhost:5173"}
    assert origins("*").any
    assert hosts("*").has("whatever")
    assert hosts("[::1]").has("::1")
    assert not hosts("*.example.org").has("example.org")


def test_chaos_behind_a_user_is_asked_like_any_upstream(file: str) -> None:
    """A whole request with a key, through the gateway."""
    with ChaosProcess() as chaos, ServerProcess("--config", file, "--upstream", chaos.url) as server:
        body = {"model": "ok", "messages": [{"role": "user", "content": "x"}], "stream": True}
        assert server.ask(raw.post("/v1/chat/completions", body, **bearer(ADA))).status == 200

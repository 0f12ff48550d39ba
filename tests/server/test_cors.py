"""Pages of other origins: what may ask, what may read, and what may not."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from rawstream.limits.users import new_key
from tests.support import raw
from tests.support.server import ServerProcess

APP = "https://app.example.com"
EVIL = "https://evil.example"
KEY, HASH = new_key()


@pytest.fixture(scope="module")
def open_server() -> Iterator[ServerProcess]:
    """No origin but its own."""
    with ServerProcess("--allowed-hosts", "*") as server:
        yield server


@pytest.fixture(scope="module")
def shared_with_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A page elsewhere may ask, with a key."""
    file = tmp_path_factory.mktemp("cors") / "rawstream.toml"
    file.write_text(f'cors_origins = "{APP},http://localhost:5173"\n[[users]]\nname = "ada"\nkeys = ["{HASH}"]\n')
    with ServerProcess("--config", str(file)) as server:
        yield server


def chat(**headers: str) -> bytes:
    return raw.post("/chat", {"prompt": "x", "mock": {"tokens": 2}}, **headers)


def preflight(origin: str, path: str = "/chat", method: str = "POST") -> bytes:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return raw.request("OPTIONS", path, asked)


# --- what may read ------------------------------------------------------------------------------------------


def test_a_page_that_may_ask_is_told_so_before_it_does(shared_with_app: ServerProcess) -> None:
    """The preflight carries no key, and needs none."""
    reply = shared_with_app.ask(preflight(APP))
    assert reply.status == 204
    assert reply.header("access-control-allow-origin") == APP
    assert reply.header("access-control-allow-methods") == "OPTIONS, POST"
    allowed = (reply.header("access-control-allow-headers") or "").split(", ")
    assert {"authorization", "content-type", "last-event-id", "x-request-id", "idempotency-key"} <= {*allowed}
    assert int(reply.header("access-control-max-age") or 0) > 0
    assert reply.header("vary") == "origin"
    assert reply.header("access-control-allow-credentials") is None


@pytest.mark.parametrize("origin", [EVIL, "https://app.example.com.evil.example", "http://app.example.com", "null"])
def test_another_page_is_not_told_yes(origin: str, shared_with_app: ServerProcess) -> None:
    for ask in (preflight(origin), chat(origin=origin, authorization=f"Bearer {KEY}")):
        reply = shared_with_app.ask(ask)
        assert reply.header("access-control-allow-origin") is None
        assert reply.header("access-control-allow-methods") is None
        assert reply.header("vary") == "origin", "what a cache holds for one page is not for another"


def test_streams_and_errors_can_be_read_by_the_page(shared_with_app: ServerProcess) -> None:
    """The id of its stream, and why it was refused."""
    asks = {
        200: chat(origin=APP, sec_fetch_site="cross-site", authorization=f"Bearer {KEY}"),
        401: chat(origin=APP, sec_fetch_site="cross-site"),
        404: raw.request("GET", "/nowhere", {"origin": APP}),
        405: raw.request("PUT", "/chat", {"origin": APP, "authorization": f"Bearer {KEY}"}),
        400: raw.post("/chat", {"prompt": 1}, origin=APP, authorization=f"Bearer {KEY}"),
    }
    for status, ask in asks.items():
        reply = shared_with_app.ask(ask)
        assert reply.status == status
        assert reply.header("access-control-allow-origin") == APP
        exposed = (reply.header("access-control-expose-headers") or "").split(", ")
        assert {"x-stream-id", "x-request-id", "retry-after"} <= {*exposed}
        assert reply.header("vary") == "origin"


def test_by_default_no_page_elsewhere_is_told_anything(open_server: ServerProcess) -> None:
    for ask in (preflight(APP), raw.request("GET", "/v1/models", {"origin": APP}), chat()):
        reply = open_server.ask(ask)
        assert not [name for name, _ in reply.headers if name.startswith("access-control") or name == "vary"]


def test_a_star_is_for_any_page_and_never_with_its_cookies() -> None:
    with ServerProcess("--cors-origins", "*", "--allowed-hosts", "*") as server:
        for origin in (APP, EVIL, "null"):
            for ask in (preflight(origin), chat(origin=origin, sec_fetch_site="cross-site")):
                reply = server.ask(ask)
                assert reply.status in (200, 204)
                assert reply.header("access-control-allow-origin") == "*"
                assert reply.header("access-control-allow-credentials") is None


# --- what may ask -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://localhost"}, 200),
        ({"origin": "http://LOCALHOST"}, 200),
        ({"origin": "http://localhost:80"}, 403),
        ({"origin": "http://localhost:8000"}, 403),
        ({"origin": EVIL}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "whatever"}, 403),
        ({"sec_fetch_site": "cross-site", "origin": "http://localhost"}, 403),
        ({"sec_fetch_site": "same-origin", "origin": "https://behind.a.proxy"}, 200),
        ({"origin": EVIL, "x_forwarded_host": "evil.example"}, 403),
        ({"origin": "http://localhost", "Origin": "http://localhost"}, 403),
        ({"sec_fetch_site": "none", "Sec_Fetch_Site": "none"}, 403),
    ],
)
def test_what_changes_something_is_not_for_pages_of_another_origin(
    headers: dict[str, str], status: int, open_server: ServerProcess
) -> None:
    """Programs send none of these; a browser cannot leave them out."""
    reply = open_server.ask(chat(**headers))
    assert reply.status == status
    if status == 403:
        assert reply.json()["code"] == "forbidden"
        assert "--cors-origins" in reply.json()["error"]
    stop = raw.request("POST", "/streams/x/stop", {key.replace("_", "-"): text for key, text in headers.items()})
    assert open_server.ask(stop).status == (404 if status == 200 else 403)


@pytest.mark.parametrize("path", ["/text?prompt=x", "/stream?prompt=x"])
def test_a_get_that_generates_is_not_for_pages_of_another_site(path: str, open_server: ServerProcess) -> None:
    """An ``<img>`` there must not start generations. A link may."""
    mock = f"{path}&mock=" + "%7B%22tokens%22:1%7D"
    for headers, status in (
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": EVIL}, 403),
        ({}, 200),
    ):
        assert open_server.ask(raw.request("GET", mock, headers)).status == status
    assert open_server.ask(raw.request("GET", "/v1/models", {"sec-fetch-site": "cross-site"})).status == 200


def test_an_event_source_of_a_page_that_may_ask_is_answered() -> None:
    with ServerProcess("--cors-origins", APP, "--allowed-hosts", "*") as server:
        path = "/stream?prompt=x&mock=" + "%7B%22tokens%22:1%7D"
        reply = server.ask(raw.request("GET", path, {"origin": APP, "sec-fetch-site": "cross-site"}))
        assert reply.status == 200
        assert reply.header("access-control-allow-origin") == APP


def test_behind_tls_of_a_trusted_proxy_a_page_without_tls_is_another_origin() -> None:
    """Anybody on the way may have written it."""
    with ServerProcess("--trusted-proxies", "127.0.0.1") as server:
        for scheme, status in (("http", 403), ("https", 200)):
            headers = {
                "origin": f"{scheme}://chat.example.com",
                "x_forwarded_proto": "https",
                "x_forwarded_host": "chat.example.com",
            }
            assert server.ask(chat(**headers)).status == status


def test_json_is_never_taken_for_a_page(open_server: ServerProcess) -> None:
    for path in ("/v1/models", "/healthz"):
        reply = open_server.ask(raw.get(path))
        json.loads(reply.body)
        assert reply.header("x-content-type-options") == "nosniff"

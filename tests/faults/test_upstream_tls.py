"""Row 51: TLS that is not what it should be is a 502, and TLS that was cut short is a cut answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.through import KEY, MESSAGES, PATHS, Through, gateway, text_of
from tests.support import raw
from tests.support.chaos import ChaosProcess
from tests.support.tools import require_tool

MODES = ["self-signed", "expired", "wrong-name", "truncate"]


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def chaos(mode: str) -> Iterator[ChaosProcess]:
    require_tool("openssl")
    with ChaosProcess("--tls", mode, "--tls-port", "0") as running:
        yield running


@pytest.fixture(scope="module")
def authority(chaos: ChaosProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate, to be trusted."""
    reply = raw.ask(chaos.port, raw.get("/chaos/certificate"))
    assert reply.status == 200
    assert b"PRIVATE" not in reply.body
    path = tmp_path_factory.mktemp("tls") / "chaos.pem"
    path.write_bytes(reply.body)
    return path


@pytest.mark.parametrize("path", PATHS)
def test_a_certificate_that_nobody_vouches_for_is_502(chaos: ChaosProcess, path: str) -> None:
    """And our key is not sent to whoever that is."""
    with gateway(chaos.tls_url) as server:
        reply = raw.ask(server.port, raw.post(path, {"messages": MESSAGES, "model": "ok:tokens=51"}))
        assert (reply.status, reply.whole) == (502, True)
        assert "certificate" in reply.body.decode()
        assert KEY.encode() not in reply.body
        assert chaos.generations("ok:tokens=51") == []
        server.assert_steady()


@pytest.mark.parametrize("path", PATHS)
def test_a_trusted_certificate_must_be_valid_and_of_this_host(
    chaos: ChaosProcess, mode: str, authority: Path, path: str
) -> None:
    if mode in ("self-signed", "truncate"):
        with gateway(chaos.tls_url, "--upstream-ca", str(authority)) as server:
            Through(server, chaos).assert_well(path)
        return
    with gateway(chaos.tls_url, "--upstream-ca", str(authority)) as server:
        reply = raw.ask(server.port, raw.post(path, {"messages": MESSAGES, "model": "ok"}))
        assert (reply.status, reply.whole) == (502, True)
        assert "certificate" in reply.body.decode()
        server.assert_steady()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("mode", ["self-signed", "truncate"], indirect=True, scope="module")
def test_tls_that_ends_without_goodbye_is_a_cut_answer(chaos: ChaosProcess, authority: Path, loop: str) -> None:
    """An answer that only the closing of the connection ends could be cut by anybody on the way: it is not believed."""
    with gateway(chaos.tls_url, "--loop", loop, "--upstream-ca", str(authority)) as server:
        through = Through(server, chaos)
        for model in ("close-delimited-cut", "die-mid-event", "die-between-events", "short-length"):
            for path in PATHS:
                seen = through.ask(model, path)
                assert (seen.reply.status, seen.text, seen.error["code"]) == (200, text_of(5), "upstream_failed")
                assert (seen.reply.whole, seen.done, seen.kept) == (False, False, False)
        for path in PATHS:
            seen = through.ask("close-delimited", path)
            assert (seen.text, seen.done) == (text_of(5), True), "[DONE] came: nothing is missing"
        through.assert_steady()


def test_plain_http_on_a_tls_port_and_tls_on_a_plain_one_are_502(chaos: ChaosProcess) -> None:
    urls = [chaos.tls_url.replace("https:", "http:"), chaos.url.replace("http:", "https:")]
    for url in urls:
        with gateway(url, "--upstream-first-token-timeout", "5") as server:
            for path in PATHS:
                reply = raw.ask(server.port, raw.post(path, {"messages": MESSAGES}))
                assert (reply.status, reply.whole) == (502, True)
            server.assert_steady()

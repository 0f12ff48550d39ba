"""The doctor finds what is wrong with real deployments, and nothing where nothing is.

All are examined at once, over one server: an examination waits far more than it works.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from rawstream.doctor import edge
from rawstream.doctor.edge import EdgeOptions
from rawstream.doctor.finding import Report, Verdict
from rawstream.doctor.target import target_of
from tests.support.fronts import Nginx, nginx_as_debian_ships, nginx_gzip, nginx_readme
from tests.support.server import ServerProcess

pytestmark = pytest.mark.real

QUICK = EdgeOptions(idle=None)
LIMIT = 2
"""Seconds of silence that the impatient proxy grants."""
IMPATIENT = nginx_as_debian_ships("proxy_http_version 1.1;", f"proxy_read_timeout {LIMIT}s;")
HIDES = nginx_as_debian_ships("proxy_hide_header X-Stream-Id;")
FRONTS = {
    "Debian's nginx": nginx_as_debian_ships(),
    "Debian's nginx, deaf to x-accel-buffering": nginx_as_debian_ships("proxy_ignore_headers X-Accel-Buffering;"),
    "nginx that compresses": nginx_gzip(),
}
BARE = {
    "bare": "/chat",
    "OpenAI's wire": "/v1",
    "useChat": "/api/chat",
    "EventSource": "/stream",
    "text": "/text",
    "broken": "/chat-broken",
}


async def examined(url: str, options: EdgeOptions = QUICK) -> Report:
    async with asyncio.timeout(50):
        return await edge.examine(target_of(url), options, lambda line: None)


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    waits = EdgeOptions(idle=2.0 * LIMIT)
    with ServerProcess() as server, ServerProcess("--heartbeat", "1") as beating:
        with ExitStack() as stack:

            def behind(config: str, origin: ServerProcess = server) -> str:
                return f"{stack.enter_context(Nginx(config, origin.port)).url}/chat"

            asked = {name: (behind(text), QUICK) for name, text in FRONTS.items()}
            asked |= {
                "the README's nginx": (behind(nginx_readme()), QUICK),
                "nginx that hides the stream": (behind(HIDES), QUICK),
                "impatient": (behind(IMPATIENT), waits),
                "impatient, heartbeats": (behind(IMPATIENT, beating), waits),
                **{name: (server.url + path, QUICK) for name, path in BARE.items()},
            }

            async def all_of_them() -> dict[str, Report]:
                found = await asyncio.gather(*(examined(url, options) for url, options in asked.values()))
                return dict(zip(asked, found, strict=True))

            found = asyncio.run(all_of_them())
        server.assert_steady()
    return found


def verdicts(report: Report) -> dict[str, Verdict]:
    return {finding.name: finding.verdict for finding in report.findings}


def not_well(report: Report) -> dict[str, str]:
    return {
        finding.name: f"{finding.verdict}: {finding.seen}" for finding in report.findings if finding.verdict != "ok"
    }


@pytest.mark.parametrize("name", ["bare", "OpenAI's wire", "useChat", "EventSource", "text"])
def test_a_bare_rawstream_is_well_in_every_dialect(reports: dict[str, Report], name: str) -> None:
    assert not_well(reports[name]) == {}
    assert {"buffering", "compression", "cancel", "backpressure", "failures"} <= set(verdicts(reports[name]))
    assert reports[name].exit_code == 0


def test_the_readmes_nginx_is_well(reports: dict[str, Report]) -> None:
    report = reports["the README's nginx"]
    assert not_well(report) == {}
    assert "nginx" in report.find("way").seen


def test_nginx_as_debian_ships_it_obeys_the_header_and_is_large(reports: dict[str, Report]) -> None:
    """x-accel-buffering turns its buffering off, stream by stream."""
    report = reports["Debian's nginx"]
    assert report.find("buffering").verdict == "ok"
    assert set(not_well(report)) <= {"backpressure"}
    assert report.find("backpressure").verdict in ("ok", "warn")


def test_buffering_is_found_where_the_header_does_not_reach_nginx(reports: dict[str, Report]) -> None:
    report = reports["Debian's nginx, deaf to x-accel-buffering"]
    buffering = report.find("buffering")
    assert (buffering.verdict, "in 1 arrival" in buffering.seen) == ("bad", True)
    assert "proxy_buffering off" in buffering.remedy
    assert report.find("backpressure").verdict == "bad"
    assert report.find("failures").verdict == "warn"
    assert report.exit_code == 1


def test_compression_is_found(reports: dict[str, Report]) -> None:
    finding = reports["nginx that compresses"].find("compression")
    assert finding.verdict in ("warn", "bad")
    assert "gzip" in finding.seen
    assert "gzip_types" in finding.remedy
    assert reports["nginx that compresses"].find("buffering").verdict == "ok"


def test_a_server_that_takes_no_heed_is_found_out(reports: dict[str, Report]) -> None:
    report = reports["broken"]
    assert report.find("cancel").verdict == "bad"
    assert report.find("backpressure").verdict == "bad"
    assert report.find("buffering").verdict == "ok"
    assert report.exit_code == 1


def test_a_proxy_that_cuts_silent_streams_is_found_with_its_limit(reports: dict[str, Report]) -> None:
    idle = reports["impatient"].find("idle")
    assert idle.verdict == "bad"
    assert "after 2." in idle.seen
    assert "--heartbeat 1" in idle.remedy


def test_heartbeats_carry_a_stream_past_such_a_proxy(reports: dict[str, Report]) -> None:
    idle = reports["impatient, heartbeats"].find("idle")
    assert idle.verdict == "ok"
    assert "heartbeats, one each 1.0 s" in idle.seen


def test_where_the_server_cannot_be_asked_nothing_is_claimed(reports: dict[str, Report]) -> None:
    report = reports["nginx that hides the stream"]
    for name in ("cancel", "backpressure"):
        assert report.find(name).verdict == "unknown"
        assert "--server" in report.find(name).remedy


def test_the_server_itself_can_be_asked_where_the_edge_hides_the_stream() -> None:
    with ServerProcess() as server:
        with Nginx(HIDES, server.port) as front:
            report = asyncio.run(examined(f"{front.url}/chat", EdgeOptions(idle=None, server=server.url)))
        server.assert_steady()
    assert report.find("cancel").verdict == "ok"
    assert report.find("backpressure").verdict in ("ok", "warn")
    assert "/debug/streams" in report.find("cancel").seen

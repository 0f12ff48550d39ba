"""Windows, live: one HTTP/2 connection whose streams are read or not, driven over HTTP as the page does it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rawstream.errors import BadRequest
from rawstream.lab import window_runs
from rawstream.lab.extension import Lab as LabExtension
from rawstream.lab.window_runs import MOST_RUNS, WindowChange, WindowRun, WindowSpec
from rawstream.limits.users import User, new_key
from rawstream.server.app import App
from rawstream.settings import Settings
from rawstream.settings.tables import UserSettings
from rawstream.sources.mock import MockSource
from tests.lab.test_runs import Lab, laboratory
from tests.support.certificates import make_certificate
from tests.support.flow import PATIENCE, Client, until

SMALL = {"streams": 4, "window": 2048, "tokens_per_second": 200}
"""2 KiB are some eighty tokens."""
State = dict[str, Any]


async def begin(lab: Lab, **spec: Any) -> str:
    """A run's path."""
    started = await lab.json("POST", "/lab/windows", {**SMALL, **spec}, status=201)
    return f"/lab/windows/{started['id']}"


async def when(lab: Lab, run: str, what: str, holds: Callable[[list[State]], object]) -> list[State]:
    """The streams, once ``holds(streams)``."""
    give_up = asyncio.get_running_loop().time() + PATIENCE
    while True:
        streams: list[State] = (await lab.json("GET", run))["streams"]
        if holds(streams):
            return streams
        assert asyncio.get_running_loop().time() < give_up, f"waited in vain until {what}: {streams}"
        await asyncio.sleep(0.03)  # between two looks


def dry(stream: State) -> bool:
    return bool(stream["window"] == 0 and stream["source"] == "stopped")


async def all_make_more(lab: Lab, run: str, before: list[State], tokens: int = 100) -> list[State]:
    """The streams, once each of those that are named here has made so many more tokens."""
    made = {one["stream"]: one["tokens"] for one in before}

    def more(streams: list[State]) -> bool:
        return all(one["tokens"] >= made[one["stream"]] + tokens for one in streams if one["stream"] in made)

    return await when(lab, run, "they make more tokens", more)


async def test_a_stream_that_is_not_read_runs_dry_and_holds_up_no_other(loop_kind: str) -> None:
    """Its window falls to zero and its source stops; the others go on, and so does it once it is read."""
    async with laboratory() as lab:
        run = await begin(lab)
        first, *others = await when(lab, run, "the first is dry", lambda streams: dry(streams[0]))
        assert [one["stream"] for one in (first, *others)] == [1, 3, 5, 7]
        assert [one["read"] for one in (first, *others)] == [False, True, True, True]
        assert first["arrived"] == first["granted"] == 2048
        assert 0 <= first["held"] <= 16 * 1024

        after = await all_make_more(lab, run, others)
        assert (after[0]["tokens"], after[0]["window"], after[0]["source"]) == (first["tokens"], 0, "stopped")
        assert all(one["source"] == "running" and one["why"] is None for one in after[1:])
        assert (await lab.json("GET", run))["connection"]["window"] > 0
        shown = [one["http2"] for one in (await lab.json("GET", "/debug/streams"))["streams"]]
        assert sorted((one["stream"], one["window"] == 0) for one in shown) == [
            (1, True),
            (3, False),
            (5, False),
            (7, False),
        ]

        state = await lab.json("POST", run, {"stream": 1, "read": True})
        assert state["streams"][0]["read"]
        await all_make_more(lab, run, after)
        await lab.json("POST", run, {"stream": 5, "read": False})
        third = (await when(lab, run, "the third is dry", lambda streams: dry(streams[2])))[2]
        await lab.json("POST", run, {"read": True})
        await all_make_more(lab, run, [third])
        assert (await lab.ask("DELETE", run))[0] == 204
        await until(lambda: lab.server.app.streams.totals.outcomes["stopped"] == 4, "all are stopped")
        assert lab.source.statistics().running == 0
        assert (await lab.ask("GET", run))[0] == 404


async def test_a_stalled_stream_is_cut_by_its_deadline_and_asked_for_anew(loop_kind: str) -> None:
    async with laboratory(stall_timeout=0.3) as lab:
        run = await begin(lab)
        first, *others = await when(lab, run, "it is cut", lambda streams: streams[0]["source"] == "closed")
        assert (first["why"], first["window"]) == ("client_stalled", None)
        after = await all_make_more(lab, run, others)
        assert (await lab.ask("POST", run, {"stream": 1, "read": False}))[0] == 200  # nothing to be stalled
        state = await lab.json("POST", run, {"stream": 1, "read": True})
        assert [one["stream"] for one in state["streams"]] == [9, 3, 5, 7]
        anew = (await when(lab, run, "it runs again", lambda streams: streams[0]["tokens"] > 0))[0]
        assert anew["read"]
        await all_make_more(lab, run, after)
        assert (await lab.ask("POST", run, {"stream": 1, "read": True}))[0] == 404


async def test_a_run_asks_for_a_bounded_number_of_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_runs, "MOST_ASKED", 4)
    async with laboratory(stall_timeout=0.3) as lab:
        run = await begin(lab)
        await when(lab, run, "it is cut", lambda streams: streams[0]["source"] == "closed")
        assert (await lab.ask("POST", run, {"stream": 1, "read": True}))[0] == 409


async def test_a_run_ends_when_nobody_watches_it_any_more(loop_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser that was killed sends no DELETE: its event stream breaks, and that is all there is to be seen."""
    async with laboratory() as lab:
        run = await begin(lab)
        client = Client(rcvbuf=0)
        try:
            await client.connect(lab.server.port)
            await client.send(f"GET {run}/events?interval=25 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await client.read_until(b'"streams":[{')
            monkeypatch.setattr(window_runs, "ABANDONED", 0.05)
            assert not (await lab.json("GET", run))["over"]
        finally:
            client.close()
        await until(lambda: lab.source.statistics().running == 0, "no source runs")
        await until(lambda: len(lab.server.app.connections) == 0, "its connection is closed")
        state = await lab.json("GET", run)
        assert (state["over"], state["ended"]) == (True, "nobody watches any more")


async def test_a_run_that_nobody_ever_watches_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever started it had gone before the answer came."""
    monkeypatch.setattr(window_runs, "ABANDONED", 0.05)
    async with laboratory() as lab:
        await begin(lab)
        await until(lambda: len(lab.server.app.connections) == 0, "its connection is closed")
        await until(lambda: lab.source.statistics().running == 0, "no source runs")


async def test_a_run_ends_after_its_time_and_says_so(loop_kind: str) -> None:
    """Its watcher gets a last event; what it did can still be asked; nothing more can be done to it."""
    async with laboratory() as lab:
        run = await begin(lab, seconds=0.5)
        events = await lab.events(f"{run}/events?interval=25", 3)
        assert len(events[0]["streams"]) == 4
        await until(lambda: lab.source.statistics().running == 0, "no source runs")
        state = await lab.json("GET", run)
        assert (state["over"], state["ended"]) == (True, "its time is over")
        assert len(state["streams"]) == 4
        assert (await lab.ask("POST", run, {"read": True}))[0] == 409


async def test_a_run_does_not_hold_up_the_servers_end(loop_kind: str) -> None:
    """It leaves when it is told that the server drains (GOAWAY)."""
    async with laboratory(drain_timeout=PATIENCE * 3) as lab:
        run = await begin(lab)
        await when(lab, run, "tokens come", lambda streams: all(one["tokens"] for one in streams))
        async with asyncio.timeout(PATIENCE):
            await lab.server.close()


async def test_runs_are_bounded_in_number() -> None:
    async with laboratory() as lab:
        runs = [await begin(lab) for _ in range(MOST_RUNS)]
        assert (await lab.ask("POST", "/lab/windows", SMALL))[0] == 503
        assert (await lab.ask("DELETE", runs[0]))[0] == 204
        await begin(lab)


@pytest.mark.parametrize(
    ("spec", "status"),
    [
        ({"streams": 1}, 400),
        ({"streams": 51}, 400),
        ({"window": 1023}, 400),
        ({"window": 1 << 21}, 400),
        ({"tokens_per_second": 0}, 400),
        ({"tokens_per_second": None}, 400),
        ({"seconds": 301}, 400),
        ({"surprise": 1}, 400),
        ([], 400),
    ],
    ids=str,
)
async def test_a_run_out_of_bounds_is_refused(spec: object, status: int) -> None:
    async with laboratory() as lab:
        assert (await lab.ask("POST", "/lab/windows", spec))[0] == status
        assert lab.source.statistics().opened == 0


@pytest.mark.parametrize("change", [{}, {"read": 1}, {"stream": "1", "read": True}, {"stall": True}], ids=str)
async def test_a_change_that_makes_no_sense_is_refused(change: object) -> None:
    async with laboratory() as lab:
        run = await begin(lab)
        assert (await lab.ask("POST", run, change))[0] == 400
        assert (await lab.ask("POST", run, {"stream": 2, "read": True}))[0] == 404


async def test_a_server_that_has_no_such_connections_says_so() -> None:
    async with laboratory(http2=False) as lab:
        status, body = await lab.ask("POST", "/lab/windows", SMALL)
        assert (status, b"no_http2" in body) == (409, True)
    async with laboratory(http2_streams=3) as lab:
        status, body = await lab.ask("POST", "/lab/windows", SMALL)
        assert (status, b"at most 3 streams" in body) == (400, True)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://localhost"}, 201),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example"}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
    ids=str,
)
async def test_no_foreign_page_can_start_one(headers: dict[str, str], status: int) -> None:
    async with laboratory() as lab:
        assert (await lab.ask("POST", "/lab/windows", SMALL, **headers))[0] == status
        if status == 403:
            for method, path in (("GET", "x"), ("DELETE", "x"), ("GET", "x/events")):
                assert (await lab.ask(method, f"/lab/windows/{path}", **headers))[0] == 403
            assert (await lab.ask("POST", "/lab/windows/x", {"read": True}, **headers))[0] == 403
            assert lab.source.statistics().opened == 0


@pytest.mark.parametrize("kind", ["unix", "tls"])
async def test_the_connection_is_found_wherever_the_server_listens(kind: str, loop_kind: str, tmp_path: Path) -> None:
    where: dict[str, Any] = {"uds": str(tmp_path / "s")}
    if kind == "tls":
        certificate = make_certificate(tmp_path)
        where = {"port": 0, "ssl_certfile": str(certificate.cert), "ssl_keyfile": str(certificate.key)}
    extension = LabExtension()
    app = App(Settings(**where), MockSource(), extensions=(extension,))
    await app.start()
    try:
        run = await extension.windows.start(WindowSpec(streams=3, window=2048, tokens_per_second=200))
        await until(lambda: dry(run.sample()["streams"][0]), "the first is dry")
        await run.change(WindowChange(stream=1, read=True))
        made = run.sample()["streams"][0]["tokens"]
        await until(lambda: run.sample()["streams"][0]["tokens"] > made, "it goes on")
        run.close()
        run.close()
        await until(lambda: not app.connections, "its connection is closed")
    finally:
        await app.close(drain=0)


async def test_its_streams_are_those_of_who_started_it() -> None:
    """Where users are told apart the client has no key: it asks for whoever asked for the run."""
    extension = LabExtension()
    user = UserSettings(name="ada", keys=(new_key()[1],))
    app = App(Settings(port=0, lab=True, users=(user,)), MockSource(), extensions=(extension,))
    await app.start()
    try:
        run = await extension.windows.start(WindowSpec(streams=2), User("ada", user))
        await until(lambda: all(one["tokens"] for one in run.sample()["streams"]), "tokens come")
        assert [stream.user for stream in app.streams] == ["ada", "ada"]
        run.close()
    finally:
        await app.close(drain=0)


async def test_one_that_cannot_connect_says_so_and_leaves_nothing() -> None:
    """The server's port was shut meanwhile."""
    app = App(Settings(port=0), MockSource())
    await app.start()
    try:
        run = WindowRun(app, WindowSpec())
        app.shut_doors()
        with pytest.raises(BadRequest, match="cannot connect"):
            await run.start()
        assert run.over_at is not None
    finally:
        await app.close(drain=0)

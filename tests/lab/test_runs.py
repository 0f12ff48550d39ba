"""The lab over HTTP: runs of all disciplines side by side, measured from real sockets, and nobody else's to start."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import rawstream
from rawstream.lab import runs
from rawstream.lab.extension import Lab as LabExtension
from rawstream.lab.readers import Counter
from rawstream.lab.run_spec import RunSpec
from rawstream.lab.runs import MOST_RUNS
from rawstream.server.app import App
from rawstream.server.connection import Connection
from rawstream.settings import MiB, Settings
from rawstream.sources.mock import MockSource
from tests.support.flow import PATIENCE, Client, until

KIB = 1024
FOUR = ["whole", "eager", "drain", "rawstream"]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what the kernel holds")


class Lab:
    """A running server, asked over HTTP."""

    def __init__(self, server: rawstream.Server, source: MockSource) -> None:
        self.server = server
        self.source = source

    async def ask(self, method: str, path: str, content: object = None, **headers: str) -> tuple[int, bytes]:
        """Status and body."""
        fields = {"host": "localhost", **headers}
        if content is not None:
            fields.setdefault("content-type", "application/json")
        body = b"" if content is None else json.dumps(content).encode()
        lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {fields[name]}" for name in fields)]
        if content is not None:
            lines.append(f"content-length: {len(body)}")
        client = Client(rcvbuf=0)
        try:
            await client.connect(self.server.port)
            await client.send("\r\n".join([*lines, "", ""]).encode() + body)
            raw = await client.read_until(b"\r\n\r\n")
            head, _, got = raw.partition(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.decode().lower().split("\r\n") if line.startswith("content-length:")),
                0,
            )
            while len(got) < length:
                got += await client.read(65536)
            return int(head.split(b" ")[1]), got
        finally:
            client.close()

    async def json(self, method: str, path: str, content: object = None, *, status: int = 200) -> dict[str, Any]:
        got, body = await self.ask(method, path, content)
        assert got == status, body
        decoded: dict[str, Any] = json.loads(body)
        return decoded

    async def start(self, **spec: Any) -> str:
        """A run's id."""
        return str((await self.json("POST", "/lab/runs", spec, status=201))["id"])

    async def lanes(self, run: str) -> dict[str, dict[str, Any]]:
        return {lane["lane"]: lane for lane in (await self.json("GET", f"/lab/runs/{run}"))["lanes"]}

    async def change(self, run: str, **change: Any) -> dict[str, Any]:
        return await self.json("POST", f"/lab/runs/{run}", change)

    async def when(self, run: str, what: str, **lanes: Any) -> dict[str, dict[str, Any]]:
        """The lanes, once ``lanes[name](lane)`` holds for each that is named."""
        give_up = asyncio.get_running_loop().time() + PATIENCE
        while True:
            now = await self.lanes(run)
            if all(holds(now[name]) for name, holds in lanes.items()):
                return now
            assert asyncio.get_running_loop().time() < give_up, f"waited in vain until {what}: {now}"
            await asyncio.sleep(0.03)  # between two looks

    async def events(self, path: str, count: int) -> list[dict[str, Any]]:
        """The first events of a live stream."""
        client = Client(rcvbuf=0)
        try:
            await client.connect(self.server.port)
            await client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            raw = await client.read_until(b"}\n\n\r\n", count)
            return [json.loads(line[6:]) for line in raw.split(b"\n") if line.startswith(b"data: ")][:count]
        finally:
            client.close()


@asynccontextmanager
async def laboratory(**settings: Any) -> AsyncIterator[Lab]:
    source = MockSource()
    chosen = Settings(**{"port": 0, "lab_memory": 64 * MiB, **settings})
    async with rawstream.Server(chosen, source) as server:
        try:
            yield Lab(server, source)
        finally:
            server.hurry()
            await server.close(drain=0)
    assert source.statistics().running == 0
    assert not server.app.connections


@linux_only
async def test_four_lanes_behind_a_stalled_reader(loop_kind: str) -> None:
    """The same source and reader: three run on, each with its bytes in another place; rawstream's source stops."""
    async with laboratory() as lab:
        run = await lab.start(lanes=FOUR, tokens_per_second=None, tokens=30_000, read_rate=0)
        made = {name: lambda lane: lane["tokens"]["made"] == 30_000 for name in ("whole", "eager", "drain")}
        lanes = await lab.when(
            run, "three have made everything", **made, rawstream=lambda lane: lane["state"] == "waiting"
        )
        assert lanes["whole"]["peak"]["source"] > 500 * KIB
        assert lanes["eager"]["bytes"]["transport"] > 500 * KIB
        assert lanes["drain"]["bytes"]["kernel_unsent"] > 500 * KIB
        assert lanes["drain"]["bytes"]["transport"] <= lanes["drain"]["limits"]["transport"]
        right = lanes["rawstream"]
        assert right["tokens"]["made"] < 1000
        held = right["bytes"]
        assert held["transport"] + held["kernel_unsent"] + held["kernel_unacked"] <= 16 * KIB
        assert 0 < held["client_kernel"] <= right["limits"]["client_kernel"]
        assert right["waiting_for"] == "client"
        assert "waits for the reader" in right["why"]
        (shown,) = [
            stream
            for stream in (await lab.json("GET", "/debug/streams"))["streams"]
            if stream["path"] == "/chat" and stream["state"] == "paused"
        ]
        assert shown["tokens"] == right["tokens"]["made"]
        assert shown["buffered"]["transport"] == held["transport"]


async def test_readers_read_at_their_rate_and_no_faster(loop_kind: str) -> None:
    """In bytes per second, and what they take is what is counted; a new rate counts at once."""
    async with laboratory() as lab:
        run = await lab.start(lanes=["rawstream"], readers=3, tokens_per_second=None, read_rate=4000)
        first = (await lab.when(run, "some was read", rawstream=lambda lane: lane["bytes"]["read"] > 3000))["rawstream"]
        before = await lab.json("GET", f"/lab/runs/{run}")
        await asyncio.sleep(0.5)  # the time over which the rate is taken
        after = await lab.json("GET", f"/lab/runs/{run}")
        read = after["lanes"][0]["bytes"]["read"] - before["lanes"][0]["bytes"]["read"]
        assert read <= 3 * 4000 * (after["now"] - before["now"]) * 1.25
        assert first["tokens"]["made"] >= first["tokens"]["read"] > 0
        await lab.change(run, stall=True)
        stalled = (await lab.lanes(run))["rawstream"]["bytes"]["read"]
        await asyncio.sleep(0.2)  # several ticks of the readers
        assert (await lab.lanes(run))["rawstream"]["bytes"]["read"] == stalled
        await lab.change(run, read_rate=None)
        await lab.when(run, "more was read", rawstream=lambda lane: lane["bytes"]["read"] > stalled + 50_000)


async def test_leaving_reaches_the_source_and_eager_does_not_notice(loop_kind: str) -> None:
    """The readers close their sockets: three sources are closed at once, and how long it took is told."""
    async with laboratory(lab_overrun=30.0) as lab:
        run = await lab.start(lanes=FOUR, readers=2, tokens_per_second=100)
        await lab.when(run, "tokens come", **{name: lambda lane: lane["tokens"]["made"] > 4 for name in FOUR})
        await lab.change(run, leave=True)
        lanes = await lab.when(
            run, "three are closed", **{name: lambda lane: not lane["source_open"] for name in FOUR if name != "eager"}
        )
        for name in ("whole", "drain", "rawstream"):
            assert lanes[name]["state"] == "cancelled"
            assert 0 <= lanes[name]["cancel_seconds"] < 1
        made = lanes["eager"]["tokens"]["made"]
        eager = await lab.when(run, "eager goes on", eager=lambda lane: lane["tokens"]["made"] > made + 10)
        assert eager["eager"]["source_open"]
        assert eager["eager"]["cancel_seconds"] is None
        assert eager["eager"]["readers"] == 0
        assert lab.source.statistics().running == 2
        state = await lab.change(run, reconnect=True)
        assert all(lane["readers"] == 2 for lane in state["lanes"])
        await lab.when(
            run, "tokens come again", rawstream=lambda lane: lane["state"] == "running" and lane["source_open"]
        )
        texts = [event["text"] for event in state["events"]]
        assert any("close their connections" in text for text in texts)
        assert any("source was closed" in text for text in texts)
        assert (await lab.ask("DELETE", f"/lab/runs/{run}"))[0] == 204
        await until(lambda: lab.source.statistics().running == 0, "nothing runs any more")
        assert (await lab.ask("GET", f"/lab/runs/{run}"))[0] == 404


async def test_a_run_ends_by_itself(loop_kind: str) -> None:
    """After its time, and before that when every answer is whole; then sockets are closed and sources too."""
    async with laboratory() as lab:
        run = await lab.start(lanes=["eager"], tokens_per_second=100, seconds=0.3)
        await until(lambda: lab.source.statistics().opened == 1, "it runs")
        await until(lambda: lab.source.statistics().running == 0, "its time is over")
        state = await lab.json("GET", f"/lab/runs/{run}")
        assert state["over"]
        assert (await lab.ask("POST", f"/lab/runs/{run}", {"stall": True}))[0] == 409
        run = await lab.start(lanes=["rawstream", "whole"], tokens=50, tokens_per_second=None, read_rate=None)
        events = await lab.events(f"/lab/runs/{run}/events?interval=25", 1)
        assert events[0]["lanes"][0]["lane"] == "rawstream"

        everything = {name: lambda lane: lane["state"] == "done" for name in ("rawstream", "whole")}
        await lab.when(run, "all is read", **everything)
        await until(lambda: not lab.server.app.connections, "it ends")
        state = await lab.json("GET", f"/lab/runs/{run}")
        assert state["over"]
        assert [lane["state"] for lane in state["lanes"]] == ["done", "done"]
        assert [lane["tokens"] for lane in state["lanes"]] == [{"made": 50, "written": 50, "read": 50}] * 2
        assert len(lab.server.app.streams) == 0


async def test_the_runs_settings_are_its_connections_alone(loop_kind: str) -> None:
    """A large mark and a stall deadline of its own; an ordinary stream beside it is as the server's settings say."""
    async with laboratory() as lab:
        run = await lab.start(
            lanes=["rawstream"],
            tokens_per_second=None,
            write_high=100 * KIB,
            notsent_lowat=32 * KIB,
            sndbuf=64 * KIB,
            stall_timeout=0.5,
        )
        peak = 60 * KIB
        await lab.when(run, "the large mark is used", rawstream=lambda lane: lane["bytes"]["transport"] > peak)
        client = Client()
        try:
            await client.connect(lab.server.port)
            body = b'{"prompt":"x","mock":{"tokens":null,"tokens_per_second":null}}'
            head = f"POST /chat HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            await client.send(head.encode() + b"\r\n\r\n" + body)
            await until(lambda: len(lab.server.app.streams) == 2 or lab.server.app.streams.totals.outcomes, "both run")
            lanes = await lab.when(run, "it was cut", rawstream=lambda lane: lane["state"] == "cancelled")
            assert "client_stalled" in lanes["rawstream"]["why"]
            (ordinary,) = lab.server.app.streams
            assert (ordinary.buffered()["transport"] or 0) <= 4 * KIB
        finally:
            client.close()


async def test_credit_holds_the_source_to_the_token(loop_kind: str) -> None:
    async with laboratory() as lab:
        run = await lab.start(lanes=["rawstream"], tokens_per_second=None, read_rate=0, credit=7)
        lanes = await lab.when(run, "it waits", rawstream=lambda lane: lane["state"] == "waiting")
        assert lanes["rawstream"]["tokens"]["made"] == 7
        await lab.change(run, read_rate=5000)
        lanes = await lab.when(run, "it goes on", rawstream=lambda lane: lane["tokens"]["read"] > 50)
        assert lanes["rawstream"]["tokens"]["made"] <= lanes["rawstream"]["tokens"]["read"] + 7


async def test_the_memory_cap_ends_the_eager_lane_and_not_rawstreams(loop_kind: str) -> None:
    async with laboratory(lab_memory=MiB) as lab:
        run = await lab.start(lanes=["eager", "rawstream"], tokens_per_second=None)
        lanes = await lab.when(run, "eager is cut", eager=lambda lane: lane["state"] == "capped")
        assert "memory cap" in lanes["eager"]["why"]
        assert lanes["rawstream"]["source_open"]


async def test_live_figures_are_samples_that_nobody_queues(loop_kind: str) -> None:
    """A watcher that reads nothing costs one sample and not more, and is cut by the stall deadline."""
    async with laboratory(stall_timeout=0.6) as lab:
        run = await lab.start(lanes=FOUR, readers=5, tokens_per_second=50, read_rate=500, stall_timeout=60)
        (first, second) = await lab.events(f"/lab/runs/{run}/events?interval=50", 2)
        assert second["elapsed"] > first["elapsed"]
        assert [lane["lane"] for lane in second["lanes"]] == FOUR
        client = Client()
        try:
            await client.connect(lab.server.port)
            await client.send(b"GET /debug/events?interval=50 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            address = client.sock.getsockname()
            watchers = lab.server.app.events.watchers
            await until(lambda: watchers.open == 1, "it watches")
            (connection,) = [
                one
                for one in lab.server.app.connections
                if isinstance(one, Connection) and one.transport.get_extra_info("peername") == address
            ]
            most = 0
            while watchers.open:
                most = max(most, connection.transport.get_write_buffer_size() if connection.gate.reason is None else 0)
                await asyncio.sleep(0.01)
            assert 0 < most <= 2 * 20 * 1024
        finally:
            client.close()


async def test_debug_events_show_what_debug_streams_shows_and_why(loop_kind: str) -> None:
    async with laboratory() as lab:
        await lab.start(lanes=["rawstream", "eager"], tokens_per_second=None, read_rate=0, rcvbuf=4096)
        (first, *_, last) = await lab.events("/debug/events?interval=50", 8)
        assert {"now", "process", "streams", "totals"} <= first.keys()
        assert last["process"]["rss"] > MiB
        assert 0 <= last["process"]["cpu"] < 4
        shown = {stream["lane"]: stream for stream in last["streams"]}
        assert shown.keys() == {"rawstream", "eager"}
        plain = (await lab.json("GET", "/debug/streams"))["streams"]
        assert {stream["id"] for stream in plain} == {stream["id"] for stream in last["streams"]}
        assert plain[0].keys() < last["streams"][0].keys()
        assert "the source waits" in shown["rawstream"]["why"]
        assert "nobody waits" in shown["eager"]["why"]
        if sys.platform == "linux":
            assert shown["rawstream"]["tcp"].keys() == {"rtt", "snd_wnd", "rwnd_limited", "sndbuf_limited", "busy"}
            assert shown["rawstream"]["tcp"]["snd_wnd"] < 4096


async def test_a_question_for_the_head_alone_is_not_a_watcher(loop_kind: str) -> None:
    async with laboratory() as lab:
        run = await lab.start(lanes=["rawstream"])
        for path in ("/debug/events", f"/lab/runs/{run}/events"):
            assert (await lab.ask("HEAD", path)) == (200, b"")
        assert lab.server.app.events.watchers.open == 0


async def test_an_open_watcher_does_not_hold_up_the_servers_end(loop_kind: str) -> None:
    async with laboratory(drain_timeout=PATIENCE * 3) as lab:
        watching = asyncio.create_task(lab.events("/debug/events?interval=50", 10_000))
        await until(lambda: lab.server.app.events.watchers.open, "it watches")
        async with asyncio.timeout(PATIENCE):
            await lab.server.close()
        with pytest.raises((AssertionError, ConnectionError)):
            await watching


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"host": "127.0.0.1:80"}, 201),
        ({"host": "[::1]:80"}, 201),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 201),
        ({"host": "localhost:8000", "origin": "http://localhost:9000"}, 403),
        ({"origin": "https://localhost"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "10.0.0.1"}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
    ids=str,
)
async def test_no_foreign_page_can_drive_the_lab(headers: dict[str, str], status: int) -> None:
    """Another origin, a name that was made to point here, a form: refused, and nothing was started."""
    async with laboratory() as lab:
        got, _ = await lab.ask("POST", "/lab/runs", {"lanes": ["rawstream"], "seconds": 1}, **headers)
        assert got == status
        assert lab.source.statistics().opened <= (status == 201)
        if status == 403:
            for path in ("/", "/debug/events", "/lab/runs/x", "/lab/runs/x/events"):
                assert (await lab.ask("GET", path, **headers))[0] == 403
            assert (await lab.ask("DELETE", "/lab/runs/x", **headers))[0] == 403


@pytest.mark.parametrize(
    "spec",
    [
        {"lanes": []},
        {"lanes": ["other"]},
        {"readers": 0},
        {"readers": 51},
        {"seconds": 301},
        {"seconds": 0},
        {"read_rate": -1},
        {"tokens_per_second": 0},
        {"rcvbuf": 1 << 40},
        {"credit": 0},
        {"surprise": 1},
        [],
    ],
    ids=str,
)
async def test_a_run_out_of_bounds_is_refused(spec: object) -> None:
    async with laboratory() as lab:
        status, body = await lab.ask("POST", "/lab/runs", spec)
        assert (status, b"bad_request" in body) == (400, True)


async def test_runs_are_bounded_in_number() -> None:
    async with laboratory() as lab:
        for _ in range(MOST_RUNS):
            await lab.start(lanes=["rawstream"])
        assert (await lab.ask("POST", "/lab/runs", {}))[0] == 503
        assert (await lab.ask("POST", "/lab/runs/nothing", {}))[0] == 404


@pytest.mark.parametrize("interval", ["0", "x", "1e9", "-5"])
async def test_an_interval_out_of_bounds_is_refused(interval: str) -> None:
    async with laboratory() as lab:
        assert (await lab.ask("GET", f"/debug/events?interval={interval}"))[0] == 400


async def test_without_the_lab_there_is_none_and_debug_events_are_still_there() -> None:
    async with laboratory(lab=False) as lab:
        for method, path in (("GET", "/"), ("GET", "/lab/runs/x"), ("GET", "/client.js")):
            assert (await lab.ask(method, path))[0] == 404
        assert (await lab.ask("POST", "/lab/runs", {}))[0] == 404
        assert len(await lab.events("/debug/events?interval=50", 1)) == 1


async def test_over_a_unix_socket_the_lanes_run_too(loop_kind: str, tmp_path: Any) -> None:
    """``--uds``: the readers are Unix sockets then, and their bytes are found all the same."""
    extension = LabExtension()
    app = App(Settings(uds=str(tmp_path / "s")), MockSource(), extensions=(extension,))
    await app.start()
    try:
        run = await extension.runs.start(RunSpec(lanes=("rawstream",), tokens_per_second=None))
        await until(lambda: run.sample()["lanes"][0]["state"] == "waiting", "it waits")
        assert run.sample()["lanes"][0]["tokens"]["made"] > 0
        run.close()
    finally:
        await app.close(drain=0)


def test_tokens_are_counted_wherever_the_bytes_are_cut() -> None:
    """Byte by byte, and with the mark itself as a token's text, which JSON escapes."""
    answer = b'data: {"token": "a"}\n\n' * 3 + b'data: {"token": "\\"token\\": "}\n\ndata: [DONE]\n\n'
    for size in range(1, len(answer)):
        counter = Counter()
        for at in range(0, len(answer), size):
            counter.feed(answer[at : at + size])
        assert (counter.tokens, counter.bytes) == (4, len(answer))


async def test_a_run_that_nobody_watches_any_more_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser that was killed sends no DELETE: its run must not keep one of the lab's few places for minutes."""
    monkeypatch.setattr(runs, "ABANDONED", 0.05)
    async with rawstream.Server(Settings(port=0)) as server:
        run = runs.Run(server.app, RunSpec(lanes=("rawstream",), readers=1, seconds=60))
        await run.start()
        with run.watched(), run.watched():
            assert run.over_at is None
        await until(lambda: run.over_at is not None, "the run is over")
        assert any("nobody watches" in event["text"] for event in run.events)

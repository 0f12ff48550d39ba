"""The thirteen rules of the design, each with a test that fails when the rule is broken.

Real sockets, a whole server, on asyncio's loop and on uvloop's. The fine print is in the tests of each room.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest

import rawstream
from rawstream.errors import ClientDisconnected, ClientStalled, ConcurrentWrite, RawstreamError, UpstreamIdle
from rawstream.flow.gate import GateState
from rawstream.model import Outcome, Request, SourceItem, Token
from rawstream.server.connection import Connection
from rawstream.server.exchange import Exchange
from rawstream.settings import Settings
from rawstream.wire.sse import encode_event
from tests.support.flow import PATIENCE, Client, Counted, Served, get, post, repeat, serving, socket_link, turns, until

Items = AsyncGenerator[SourceItem, None]
KIB = 1024


def settings(
    *,
    stall_timeout: float = 30.0,
    heartbeat: float = 0.0,
    flush_timeout: float = 1.0,
    stream_timeout: float = 1800.0,
    half_close: str = "leave",
    write_high: int = 2 * KIB,
    write_low: int = 512,
) -> Settings:
    return Settings(
        port=0,
        stall_timeout=stall_timeout,
        heartbeat=heartbeat,
        flush_timeout=flush_timeout,
        stream_timeout=stream_timeout,
        half_close=half_close,
        write_high=write_high,
        write_low=write_low,
    )


async def silent() -> Items:
    await asyncio.Event().wait()
    yield "never"


async def one_then_silent() -> Items:
    yield "first"
    await asyncio.Event().wait()


async def stalled_client(served: Served, path: str = "/chat") -> Client:
    """A client that reads nothing, and whose stream already waits for it."""
    known = set(served.server.app.connections)
    client = await served.client(post(path))
    await until(
        lambda: any(
            isinstance(connection, Connection) and connection.gate.waiting
            for connection in set(served.server.app.connections) - known
        ),
        "the stream waits for its client",
    )
    return client


def body_of(raw: bytes) -> tuple[str, dict[str, str], bytes]:
    """(status line, fields, what follows the head) of the first answer in ``raw``."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    return first, {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}, rest


def unchunk(data: bytes) -> tuple[bytes, bool]:
    """The body in ``data``, and whether it has come to its clean end."""
    body = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return body, rest == b"\r\n"
        body += rest[:length]
        data = rest[length + 2 :]
    return body, False


# --- 1 ---------------------------------------------------------------------------------------------------------------


async def test_rule_01_a_lost_connection_raises_where_a_stream_waits_in_drain(
    loop_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LOST is final and raises: whoever waits in ``drain()`` is woken by the loss and told whose doing it was."""
    raised: list[BaseException] = []
    original = asyncio.StreamWriter.drain

    async def drain(self: asyncio.StreamWriter) -> None:
        try:
            await original(self)
        except BaseException as error:
            raised.append(error)
            raise

    monkeypatch.setattr(asyncio.StreamWriter, "drain", drain)
    async with serving(Counted(lambda: repeat("x" * 50)), settings(stall_timeout=0.3)) as served:
        await stalled_client(served)
        connection = served.connection
        assert (await served.ended()).outcome is Outcome.CLIENT_STALLED
        assert connection.gate.state is GateState.LOST
        with pytest.raises(RawstreamError, match="took nothing"):
            await connection.writer.drain()
        client = await stalled_client(served)
        client.reset()
        assert (await served.ended()).outcome is Outcome.CLIENT_LEFT
        await stalled_client(served)
        served.connection.transport.abort()
        assert (await served.ended()).outcome is Outcome.CLIENT_LEFT
    assert len(raised) >= 4


@pytest.mark.parametrize("how", ["lost by us", "aborted by us", "reset by the peer"])
async def test_rule_01_drain_is_woken_by_the_loss_itself(loop_kind: str, how: str) -> None:
    """asyncio never calls ``resume_writing()`` on a lost transport: no cancellation helps here, only the gate."""
    async with socket_link() as link:
        link.response.start(200, ())
        while link.gate.state is GateState.OPEN:
            link.response.write_nowait(b"x" * KIB)
            await asyncio.sleep(0)
        waiter = asyncio.create_task(link.connection.writer.drain())
        await until(lambda: link.gate.waiting, "drain() waits")
        if how == "lost by us":
            link.connection.lose(ClientStalled("too slow"))
        elif how == "aborted by us":
            link.connection.transport.abort()
        else:
            link.client.reset()
        with pytest.raises(ClientStalled if how == "lost by us" else ClientDisconnected):
            async with asyncio.timeout(PATIENCE):
                await waiter
        with pytest.raises(RawstreamError):
            await link.connection.writer.drain()


async def test_rule_01_reasons_stay_apart(loop_kind: str) -> None:
    """ "They left", "too slow" and "we closed" are three outcomes."""
    async with serving(Counted(lambda: repeat("x" * 50)), settings(stall_timeout=0.3)) as served:
        (await stalled_client(served)).reset()
        left = await served.ended()
        await stalled_client(served)
        stalled = await served.ended()
        client = await served.client(post("/chat"), rcvbuf=0)
        await client.read_until(b"data: ")
        served.server.app.streams.shut_down()
        shut = await served.ended()
    assert [record.outcome for record in (left, stalled, shut)] == [
        Outcome.CLIENT_LEFT,
        Outcome.CLIENT_STALLED,
        Outcome.SHUTDOWN,
    ]


# --- 2 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "x"], ids=["tokens of no bytes", "tokens of one byte"])
async def test_rule_02_a_source_that_never_waits_does_not_starve_the_loop(loop_kind: str, text: str) -> None:
    """Another request is answered while a source that never suspends goes on: by time, not by luck."""
    most = 3_000_000
    made = 0

    async def tokens() -> Items:
        nonlocal made
        yield "begun"
        while made < most:
            made += 1
            yield text

    async with serving(tokens, settings()) as served:
        busy = await served.client(get("/text?prompt=x"), rcvbuf=0)
        await busy.read_until(b"begun")
        other = await served.client(get("/healthz"))
        await other.read_until(b"alive")
        assert made < most / 10
        busy.reset()
        assert (await served.ended()).outcome is Outcome.CLIENT_LEFT


# --- 3 ---------------------------------------------------------------------------------------------------------------


async def test_rule_03_marks_and_kernel_bounds_are_set_on_every_connection(loop_kind: str) -> None:
    """uvloop's low-water mark would be 16 bytes, the kernel's bound none: each is set, and is the setting's."""
    defaults = Settings(port=0)
    for chosen in (defaults, settings(write_high=1024 * KIB, write_low=300 * KIB)):
        async with serving(one_then_silent, chosen) as served:
            client = await served.client(post("/chat"))
            await client.read_until(b"first")
            transport = served.connection.transport
            assert transport.get_write_buffer_limits() == (chosen.write_low, chosen.write_high)
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            (lowat,) = struct.unpack("I", sock.getsockopt(socket.IPPROTO_TCP, 25, 4))
            assert lowat == chosen.notsent_lowat


async def test_rule_03_what_the_server_holds_for_a_stalled_client_is_what_was_set(loop_kind: str) -> None:
    """At most 16 KiB by default; a user's 256 KiB mark holds 256 KiB, and no quiet megabytes in the kernel."""
    for chosen, least, most in ((settings(), 0, 16 * KIB), (settings(write_high=256 * KIB), 200 * KIB, 272 * KIB)):
        async with serving(Counted(lambda: repeat("x" * 50)), chosen) as served:
            await stalled_client(served)
            (stream,) = served.server.app.streams
            level = stream.buffered()
            held = sum(level[place] or 0 for place in ("transport", "kernel_unsent", "kernel_unacked"))
            assert least <= held <= most


# --- 4 ---------------------------------------------------------------------------------------------------------------


async def test_rule_04_the_end_of_a_failing_stream_is_flushed_with_a_deadline_and_then_aborted(loop_kind: str) -> None:
    """Behind a client that reads nothing the error cannot leave: after ``flush_timeout`` the connection is cut."""
    source = Counted(lambda: repeat("x" * 50))
    async with serving(source, settings(stream_timeout=0.3, flush_timeout=0.2)) as served:
        await stalled_client(served)
        assert (await served.ended()).outcome is Outcome.DEADLINE
        await until(lambda: not served.server.app.connections, "the connection is cut", 1.5)
        assert source.closed.is_set()


class UntilSomethingWaits:
    """A source that ends as soon as the transport holds bytes of its stream, while the gate is still open."""

    def __init__(self, then: Exception | None = None) -> None:
        self.served: Served | None = None
        self.then = then
        self.given = 0
        self.over = asyncio.Event()

    async def __call__(self, request: Request) -> Items:
        assert self.served is not None
        connection = self.served.connection
        loop = asyncio.get_running_loop()
        waits_since = loop.time()
        while loop.time() - waits_since < 0.1:  # it is the client's kernel that is full, and not just slow
            if connection.transport.get_write_buffer_size():
                await asyncio.sleep(0.001)
            else:
                await asyncio.sleep(0)  # so that each token is a write of its own
                self.given += 1
                yield "x" * 50
                waits_since = loop.time()
        assert connection.gate.state is GateState.OPEN
        self.over.set()
        if self.then is not None:
            raise self.then

    async def is_over(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.over.wait()


async def test_rule_04_a_client_that_reads_gets_the_error_whole_before_the_cut(loop_kind: str) -> None:
    """``abort()`` throws away what is buffered: a slow reader must be given the chance to take it first."""
    source = UntilSomethingWaits(then=RuntimeError("broken"))
    async with serving(lambda request: source(request), settings()) as served:
        source.served = served
        client = await served.client(post("/chat"))
        await source.is_over()
        raw = await client.read_all()
        assert raw.count(b'"token"') == source.given
        assert b'"code": "source_failed"' in raw


async def test_rule_04_a_whole_stream_is_not_waited_for_without_end(loop_kind: str) -> None:
    """The last bytes of a complete stream wait for their reader as long as any others, and no longer."""
    source = UntilSomethingWaits()
    async with serving(lambda request: source(request), settings(stall_timeout=0.3)) as served:
        source.served = served
        await served.client(post("/chat"))
        await source.is_over()
        assert (await served.ended()).outcome is Outcome.CLIENT_STALLED
        await until(lambda: not served.server.app.connections, "the connection is cut", 1.5)


async def test_rule_04_an_answer_that_is_no_stream_is_not_waited_for_without_end(loop_kind: str) -> None:
    source = Counted(lambda: repeat("x" * 1000, 1000))
    asked = post("/v1/chat/completions", '{"model":"m","messages":[{"role":"user","content":"x"}]}')
    async with serving(source, settings(stall_timeout=0.3)) as served:
        await served.client(asked)
        await source.was_closed()
        await until(lambda: not served.server.app.connections, "the connection is cut", 2)


# --- 5 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["client leaves", "stopped", "task cancelled"])
async def test_rule_05_a_stream_that_ends_in_drain_closes_its_generator(loop_kind: str, how: str) -> None:
    """The generator is not awaited then, so no cancellation reaches it: only ``aclose()`` runs its ``finally``."""
    source = Counted(lambda: repeat("x" * 50))
    async with serving(source, settings(flush_timeout=0.2)) as served:
        client = await stalled_client(served)
        if how == "client leaves":
            client.reset()
        elif how == "stopped":
            (stream,) = served.server.app.streams
            served.server.app.streams.stop(stream.id)
            client.reset()
        else:
            served.connection.task.cancel()
        await source.was_closed()
        await served.ended()


# --- 6 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closes", "resets"])
async def test_rule_06_a_client_that_leaves_is_seen_while_its_source_is_silent(loop_kind: str, how: str) -> None:
    """Nothing is written that could fail: only reading on shows that the client has gone."""
    source = Counted(one_then_silent)
    async with serving(source, settings()) as served:
        client = await served.client(post("/chat"))
        await client.read_until(b"first")
        (client.close if how == "closes" else client.reset)()
        await source.was_closed()
        assert (await served.ended()).outcome is Outcome.CLIENT_LEFT


async def test_rule_06_a_client_that_leaves_is_seen_while_it_has_stopped_reading(loop_kind: str) -> None:
    source = Counted(lambda: repeat("x" * 50))
    async with serving(source, settings()) as served:
        (await stalled_client(served)).close()
        await source.was_closed()
        assert (await served.ended()).outcome is Outcome.CLIENT_LEFT


async def test_rule_06_up_to_16_kib_are_kept_for_the_next_request_and_more_is_cut(loop_kind: str) -> None:
    goes_on = asyncio.Event()

    async def tokens() -> Items:
        yield "first"
        await goes_on.wait()
        yield "last"

    async with serving(tokens, settings()) as served:
        client = await served.client(post("/chat"), rcvbuf=0)
        await client.read_until(b"first")
        await client.send(get("/healthz", "1.1", f"X-Padding: {'x' * 7 * KIB}") * 2)
        await turns(50)
        assert served.outcomes() == {}
        goes_on.set()
        await client.read_until(b"alive", 2)
        assert (await served.ended()).outcome is Outcome.COMPLETED

        goes_on.clear()
        client = await served.client(post("/chat"), rcvbuf=0)
        await client.read_until(b"first")
        await client.send(b"x" * 17 * KIB)
        assert (await served.ended()).outcome is Outcome.CLIENT_MISBEHAVED
        goes_on.set()


async def test_rule_06_half_close_is_leaving_unless_the_settings_say_otherwise(loop_kind: str) -> None:
    for half_close, outcome in (("leave", Outcome.CLIENT_LEFT), ("continue", Outcome.COMPLETED)):
        goes_on = asyncio.Event()

        async def tokens(goes_on: asyncio.Event = goes_on) -> Items:
            yield "first"
            await goes_on.wait()
            yield "last"

        async with serving(lambda _, t=tokens: t(), settings(half_close=half_close)) as served:
            client = await served.client(post("/chat"))
            await client.read_until(b"first")
            client.sock.shutdown(socket.SHUT_WR)
            await until(lambda: served.server.app.connections == set() or served.connection._eof, "the FIN arrived")
            goes_on.set()
            assert (await served.ended()).outcome is outcome


# --- 7 ---------------------------------------------------------------------------------------------------------------


async def test_rule_07_a_client_that_takes_nothing_is_cut_at_the_stall_deadline(loop_kind: str) -> None:
    """Cut, its source closed, and counted; a slow one that takes something within the deadline is not."""
    source = Counted(lambda: repeat("x" * 50))
    async with serving(source, settings(stall_timeout=0.3)) as served:
        client = await stalled_client(served)
        record = await served.ended()
        assert record.outcome is Outcome.CLIENT_STALLED
        assert 0.3 <= record.seconds < 3
        assert source.closed.is_set()
        assert served.outcomes() == {"client_stalled": 1}
        await until(lambda: not served.server.app.connections, "the connection is gone", 1.5)
        assert b"\r\n0\r\n\r\n" not in await client.read_all()
    assert Settings().stall_timeout == 30.0


# --- 8 ---------------------------------------------------------------------------------------------------------------


def failing_after(count: int) -> Counted:
    async def tokens() -> Items:
        for number in range(count):
            await asyncio.sleep(0)
            yield f"t{number}"
        raise RuntimeError("broken")

    return Counted(tokens)


@pytest.mark.parametrize("path", ["/chat", "/stream?prompt=x", "/text?prompt=x", "/v1/chat/completions"])
@pytest.mark.parametrize("asks_to_close", [False, True], ids=["keep-alive", "close"])
async def test_rule_08_a_cut_stream_never_looks_complete(loop_kind: str, path: str, asks_to_close: bool) -> None:
    """An in-stream error where there is one, then a chunked body without its end; never ``[DONE]``."""
    fields = ["Connection: close"] if asks_to_close else []
    if path.startswith("/v1"):
        asked = post(path, '{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}', *fields)
    else:
        asked = post(path, '{"prompt":"x"}', *fields) if path == "/chat" else get(path, "1.1", *fields)
    async with serving(failing_after(3), settings()) as served:
        client = await served.client(asked, rcvbuf=0)
        raw = await client.read_all()
        record = await served.ended()
    status, headers, rest = body_of(raw)
    body, complete = unchunk(rest)
    assert status == "HTTP/1.1 200 OK"
    assert headers["transfer-encoding"] == "chunked"
    assert "connection" not in headers
    assert not complete
    assert b"\r\n0\r\n\r\n" not in raw
    assert b"[DONE]" not in raw
    assert b"t2" in body
    assert (b"source_failed" in body) == (not path.startswith("/text"))
    assert record.outcome is Outcome.SOURCE_FAILED


async def test_rule_08_a_body_delimited_by_its_close_is_cut_with_a_reset(loop_kind: str) -> None:
    """HTTP/1.0 has no other way: a close would be the clean end."""
    async with serving(failing_after(3), settings()) as served:
        client = await served.client(get("/text?prompt=x", "1.0"), rcvbuf=0)
        with pytest.raises(ConnectionResetError):
            await client.read_all()
        assert (await served.ended()).outcome is Outcome.SOURCE_FAILED


async def test_rule_08_a_whole_stream_has_its_terminal_event_and_its_end(loop_kind: str) -> None:
    """The other side of the rule: completeness is shown exactly when it is true."""
    async with serving(lambda _: iter(["a", "b"]), settings()) as served:
        client = await served.client(post("/chat", '{"prompt":"x"}', "Connection: close"))
        raw = await client.read_all()
        assert (await served.ended()).outcome is Outcome.COMPLETED
    body, complete = unchunk(body_of(raw)[2])
    assert complete
    assert body.endswith(b"data: [DONE]\n\n")
    assert "connection" not in body_of(raw)[1]


# --- 9 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "beat"), [("/chat", b": hb\n\n"), ("/stream?prompt=x", b": hb\n"), ("/v1/chat/completions", b": hb\n")]
)
async def test_rule_09_silence_is_answered_with_the_dialects_own_heartbeat(
    loop_kind: str, path: str, beat: bytes
) -> None:
    """At event boundaries: without the heartbeats, the stream is byte for byte what it would have been."""
    beats = asyncio.Event()

    async def tokens() -> Items:
        yield "first"
        await beats.wait()
        yield "last"

    if path.startswith("/v1"):
        asked = post(path, '{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}')
    else:
        asked = post(path) if path == "/chat" else get(path)
    async with serving(tokens, settings(heartbeat=0.05)) as served:
        client = await served.client(asked, rcvbuf=0)
        await client.read_until(beat, 3)
        beats.set()
        raw = await client.read_until(b"\r\n0\r\n\r\n")
        assert (await served.ended()).outcome is Outcome.COMPLETED
    body, complete = unchunk(body_of(raw)[2])
    assert complete
    assert b"\n\n" + beat in body  # it begins where an event has ended
    without = body.replace(beat, b"")
    assert b"hb" not in without
    events = without.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""] or events[-2].endswith(b"data: [DONE]")
    assert all(re.match(rb"(?:(?:data|id|retry): [^\n]*\n?)+$", event) for event in events[:-1])


async def test_rule_09_no_heartbeat_while_paused_and_none_in_plain_text(loop_kind: str) -> None:
    source = Counted(lambda: repeat("x" * 50))
    async with serving(source, settings(heartbeat=0.05, stall_timeout=0.5)) as served:
        client = await stalled_client(served)
        assert (await served.ended()).outcome is Outcome.CLIENT_STALLED
        assert b": hb" not in await client.read_all()
    async with serving(one_then_silent, settings(heartbeat=0.05, stream_timeout=0.4)) as served:
        client = await served.client(get("/text?prompt=x"))
        body, _ = unchunk(body_of(await client.read_all())[2])
        assert body == b"first"


async def test_rule_09_heartbeats_do_not_feed_the_upstreams_idle_deadline(loop_kind: str) -> None:
    """They keep the client's connection alive, and say nothing about the upstream, whose silence is found out."""

    async def tokens() -> Items:
        yield "first"
        try:
            async with asyncio.timeout(0.4):
                await asyncio.Event().wait()
        except TimeoutError:
            raise UpstreamIdle("the upstream is silent") from None

    async with serving(tokens, settings(heartbeat=0.05)) as served:
        client = await served.client(post("/chat"), rcvbuf=0)
        raw = await client.read_all()
        assert raw.count(b": hb") >= 3
        assert b'"code": "upstream_idle"' in raw
        assert (await served.ended()).outcome is Outcome.UPSTREAM_IDLE


# --- 10 --------------------------------------------------------------------------------------------------------------


async def test_rule_10_a_failure_before_the_first_token_has_a_real_status(loop_kind: str) -> None:
    async def idle() -> Items:
        await asyncio.sleep(0)
        raise UpstreamIdle("the upstream is silent")
        yield "never"

    for source, status, code in ((failing_after(0), 500, "source_failed"), (Counted(idle), 504, "upstream_idle")):
        async with serving(source, settings()) as served:
            client = await served.client(post("/chat"))
            raw = await client.read_until(b"}")
            first, headers, body = body_of(raw)
            assert first.startswith(f"HTTP/1.1 {status} ")
            assert headers["content-type"] == "application/json"
            assert msgspec.json.decode(body)["code"] == code
            assert (await served.ended()).status == status


@pytest.mark.parametrize("committed_by", ["token", "heartbeat"])
async def test_rule_10_a_failure_after_the_commit_point_is_told_in_stream(loop_kind: str, committed_by: str) -> None:
    """The first frame of either kind carries the 200; what comes after it cannot take that back."""
    fails = asyncio.Event()

    async def tokens() -> Items:
        if committed_by == "token":
            yield "first"
        await fails.wait()
        raise RuntimeError("broken")

    async with serving(tokens, settings(heartbeat=0.05)) as served:
        client = await served.client(post("/chat"), rcvbuf=0)
        await client.read_until(b"first" if committed_by == "token" else b": hb")
        fails.set()
        raw = await client.read_all()
        assert raw.startswith(b"HTTP/1.1 200 ")
        assert b'"code": "source_failed"' in raw
        assert (await served.ended()).status == 200


async def test_rule_10_nothing_leaves_before_the_commit_point(loop_kind: str) -> None:
    """No head goes out ahead: until there is a token or a heartbeat, any status is still possible."""
    source = Counted(silent)
    async with serving(source, settings()) as served:
        await served.client(post("/chat"))
        await until(lambda: source.asked, "the source is asked")
        await turns(50)
        assert served.connection.written == 0


# --- 11 --------------------------------------------------------------------------------------------------------------


def test_rule_11_writelines_is_not_used() -> None:
    """It has no backpressure on asyncio 3.12.0–3.12.8 and 3.13.0–3.13.1 (CVE-2024-12254)."""
    for path in Path(rawstream.__file__).parent.rglob("*.py"):
        assert "writelines" not in path.read_text(), path.name


# --- 12 --------------------------------------------------------------------------------------------------------------

EVIL = 'x\n\ndata: [DONE]\n\n\r\rid: 1\r\n\r\nevent: evil\n"}\0 '


@pytest.mark.parametrize("path", ["/chat", "/stream?prompt=x", "/v1/chat/completions"])
async def test_rule_12_what_a_model_says_stays_inside_its_event(loop_kind: str, path: str) -> None:
    """Newlines, ends of events and terminal events in a token are text, and arrive as that text."""

    async def tokens() -> Items:
        yield EVIL
        yield Token(text=EVIL)

    if path.startswith("/v1"):
        evil_model = msgspec.json.encode("m\n\ndata: [DONE]\n\n").decode()
        asked = post(path, f'{{"model":{evil_model},"stream":true,"messages":[{{"role":"user","content":"x"}}]}}')
    else:
        asked = post(path) if path == "/chat" else get(path)
    async with serving(tokens, settings()) as served:
        client = await served.client(asked, rcvbuf=0)
        raw = await client.read_until(b"\r\n0\r\n\r\n")
        assert (await served.ended()).outcome is Outcome.COMPLETED
    body, _ = unchunk(body_of(raw)[2])
    payloads = re.findall(rb"^data: (.*)$", body, re.MULTILINE)
    assert payloads.pop() == b"[DONE]"
    said = [msgspec.json.decode(payload) for payload in payloads]
    if path.startswith("/v1"):
        said_texts = [choice["delta"].get("content") for event in said for choice in event["choices"]]
        assert [text for text in said_texts if text] == [EVIL, EVIL]
    else:
        assert [event["token"] for event in said] == [EVIL, EVIL]
    assert b"\r" not in body
    assert b"evil" not in b"".join(line for line in body.split(b"\n") if line.startswith(b"event"))


async def test_rule_12_what_a_client_says_makes_no_header(loop_kind: str) -> None:
    async with serving(one_then_silent, settings()) as served:
        client = await served.client(post("/chat", '{"prompt":"x"}', "X-Request-Id: a b\tc<evil>"))
        raw = await client.read_until(b"first")
        assert "evil" not in body_of(raw)[1]["x-request-id"]


@pytest.mark.parametrize("evil", ["a\nb", "a\rb", "a\0b"])
def test_rule_12_the_encoder_refuses_line_ends_and_nul_where_they_cannot_be_split(evil: str) -> None:
    with pytest.raises(ValueError):
        encode_event("x", id=evil)
    with pytest.raises(ValueError):
        encode_event("x", event=evil)
    assert encode_event("a\nb\r\nc\rd") == b"data: a\ndata: b\ndata: c\ndata: d\n\n"


# --- 13 --------------------------------------------------------------------------------------------------------------


class PerStream:
    """An endless source that counts per stream; the fast one is told by its prompt and ends."""

    name = "per-stream"

    def __init__(self, fast: int) -> None:
        self.fast = fast
        self.pulled: dict[str, int] = {}

    def tokens(self, request: Request) -> Items:
        return self._tokens(request.prompt)

    async def _tokens(self, prompt: str) -> Items:
        count = 0
        while prompt != "fast" or count < self.fast:
            count += 1
            self.pulled[prompt] = count
            await asyncio.sleep(0)
            yield "x" * 50

    async def aclose(self) -> None: ...


async def test_rule_13_stalled_and_leaving_readers_do_not_touch_a_fast_one(loop_kind: str) -> None:
    """While twenty clients read nothing and others come and go, a fast one gets all of its tokens."""
    source = PerStream(fast=5000)
    async with serving(source, settings()) as served:
        for number in range(20):
            await served.client(post("/chat", f'{{"prompt":"stalled {number}"}}'))
        fast = await served.client(post("/chat", '{"prompt":"fast"}'), rcvbuf=0)
        for number in range(5):
            leaver = await served.client(post("/chat", f'{{"prompt":"leaver {number}"}}'))
            await leaver.read_until(b"data: ")
            leaver.reset()
        raw = await fast.read_until(b"[DONE]")
        assert raw.count(b'"token"') == 5000
        assert sum(served.outcomes().values()) <= 6
        stalled = [count for prompt, count in source.pulled.items() if prompt.startswith("stalled")]
        assert len(stalled) == 20
        assert all(0 < count <= 600 for count in stalled)
        await until(lambda: len(served.server.app.streams) == 20, "only the stalled ones are left")


# --- what the rules stand on -----------------------------------------------------------------------------------------


async def test_in_production_the_wait_is_stream_writer_drain(loop_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stalled ``/chat`` stream is inside ``asyncio.StreamWriter.drain()``, and nowhere else."""
    inside = 0
    original = asyncio.StreamWriter.drain

    async def drain(self: asyncio.StreamWriter) -> None:
        nonlocal inside
        inside += 1
        try:
            await original(self)
        finally:
            inside -= 1

    monkeypatch.setattr(asyncio.StreamWriter, "drain", drain)
    async with serving(Counted(lambda: repeat("x" * 50)), settings()) as served:
        await stalled_client(served)
        assert inside == 1
        (stream,) = served.server.app.streams
        assert stream.meter.waiting_for == "client"


async def test_two_producers_on_one_response_are_told_of_the_mistake(loop_kind: str) -> None:
    async with serving(Counted(lambda: repeat("x" * 50)), settings()) as served:
        await stalled_client(served)
        (stream,) = served.server.app.streams
        exchange: Exchange = stream.exchange
        with pytest.raises(ConcurrentWrite, match="one producer per response"):
            exchange.write_nowait(b"mine too")
        with pytest.raises(ConcurrentWrite, match="one producer per response"):
            await exchange.drain()

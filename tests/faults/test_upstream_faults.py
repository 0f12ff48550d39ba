"""However an upstream fails, the client is told the truth: rows 37 to 47 of the faults, each through the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from rawstream.settings import MiB
from tests.faults.through import ALL, KEY, OPENAI, PATHS, Seen, Through, asked, gateway, record, text_of
from tests.faults.truths import FAULTS, TRUTHS
from tests.support import raw
from tests.support.chaos import ChaosProcess
from tests.support.waiting import eventually

LOOPS = ["uvloop", "asyncio"]
PROMPT = [name for name, truth in TRUTHS.items() if not truth.hasty]
LATE = [name for name, truth in TRUTHS.items() if truth.hasty]
ODD = {"invalid-utf8": b"\xff\xc0\xaf0 ", "nul": b"\x000 ", "junk-data": b"data: not json\n\ndata: [1, 2]\n\n"}
"""What stands in the odd events of row 46, which OpenAI's wire relays byte for byte."""
WHOLE = {
    **{
        name: (502, "upstream_failed") for name in FAULTS if TRUTHS.get(name) and TRUTHS[name].code == "upstream_failed"
    },
    **{name: (504, "upstream_idle") for name in FAULTS if TRUTHS.get(name) and TRUTHS[name].code == "upstream_idle"},
    "status": (500, "chaos_500"),
    "error-in-stream": (500, "chaos_failed"),
    "error-first": (500, "chaos_failed"),
}
"""The same faults where a whole answer was asked for."""


@pytest.fixture(scope="module")
def chaos() -> Iterator[ChaosProcess]:
    with ChaosProcess() as running:
        yield running


@pytest.fixture(scope="module", params=LOOPS)
def patient_gateway(chaos: ChaosProcess, request: pytest.FixtureRequest) -> Iterator[Through]:
    with gateway(chaos.url, "--loop", request.param) as server:
        yield Through(server, chaos)


@pytest.fixture(scope="module", params=LOOPS)
def hasty_gateway(chaos: ChaosProcess, request: pytest.FixtureRequest) -> Iterator[Through]:
    with gateway(chaos.url, "--loop", request.param, hasty=True) as server:
        yield Through(server, chaos)


@pytest.fixture
def through(patient_gateway: Through) -> Iterator[Through]:
    """A gateway whose deadlines nobody waits for. After the test nothing is left of it."""
    yield patient_gateway
    patient_gateway.assert_steady()


@pytest.fixture
def hasty(hasty_gateway: Through) -> Iterator[Through]:
    """A gateway with deadlines of half a second. After the test nothing is left of it."""
    yield hasty_gateway
    hasty_gateway.assert_steady()


def judge(through: Through, name: str, seen: Seen) -> None:
    """Record, then compare with what must come of this fault."""
    truth = TRUTHS[name]
    record(name, truth, seen)
    code = truth.relayed if truth.relayed and seen.path == OPENAI else truth.code
    told = (seen.reply.status, seen.error.get("code", ""), seen.outcome, seen.kept)
    assert told == (truth.status, code, truth.code or "completed", truth.kept)
    assert KEY.encode() not in seen.reply.raw + seen.reply.body
    if truth.status != 200:
        assert seen.reply.whole
        assert seen.error.get("message") or seen.error.get("error"), "the error says what happened"
        return
    tokens = through.made(seen) if truth.tokens == ALL else truth.tokens
    if name in ODD:
        assert seen.text.startswith(text_of(tokens))
    else:
        assert seen.text == text_of(tokens), "each token once, in order, and no half of one"
    if truth.code:
        assert not seen.done, "[DONE] never follows a failure"
        assert not seen.reply.whole, "a cut answer does not look complete"
        assert "error" in seen.events[-1], "the error is the last that is said"
    else:
        assert seen.reply.whole
        assert seen.done


# --- every fault ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", PROMPT)
def test_a_fault_is_told_and_its_connection_is_not_used_again(through: Through, name: str, path: str) -> None:
    """Rows 37, 39 to 42, 44 to 49: the status or the in-stream error, the log's outcome, and the pool."""
    if name == "close-pooled":
        through.ask(name, path)  # it is the second request on a connection that is not answered
    judge(through, name, through.ask(asked(name, TRUTHS[name]), path))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", LATE)
def test_a_silence_is_ended_by_its_deadline(hasty: Through, name: str, path: str) -> None:
    """Rows 38 and 43: neither 1xx answers, nor pings, nor drips are progress."""
    judge(hasty, name, hasty.ask(asked(name, TRUTHS[name]), path))


@pytest.mark.parametrize("name", [name for name in WHOLE if not TRUTHS[name].hasty])
def test_a_whole_answer_that_fails_is_a_status(through: Through, name: str) -> None:
    """Nothing of an answer is given away before all of it is there; an unwell upstream is told the same way."""
    judge_whole(through, name)


@pytest.mark.parametrize("name", [name for name in WHOLE if TRUTHS[name].hasty])
def test_a_whole_answer_that_never_comes_is_504(hasty: Through, name: str) -> None:
    judge_whole(hasty, name)


def judge_whole(through: Through, name: str) -> None:
    request = through.request(asked(name, TRUTHS[name]), OPENAI, stream=False)
    reply = raw.ask(through.server.port, request, within=15)
    status, code = WHOLE[name]
    if name in ("huge-event", "endless-line", "endless-multiline"):
        code = "upstream_failed"  # longer than any answer may be
    assert (reply.status, reply.whole, reply.json()["error"]["code"]) == (status, True, code)
    assert KEY.encode() not in reply.raw + reply.body


@pytest.mark.parametrize("name", ["die-mid-event", "reset-mid-stream", "bad-chunk-size", "close-delimited-cut"])
def test_plain_text_has_no_words_for_an_error_so_the_cut_tells_it(through: Through, name: str) -> None:
    reply = raw.ask(through.server.port, through.request(name, "/text"))
    assert (reply.status, reply.body.decode(), reply.whole) == (200, text_of(5), False)


@pytest.mark.parametrize("name", ["die-mid-event", "die-between-events", "reset-mid-stream", "error-in-stream"])
def test_usechat_is_told_by_an_error_part_and_the_cut(through: Through, name: str) -> None:
    """AI SDK UI message stream: no ``finish``, no ``[DONE]``."""
    message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "hello"}]}
    reply = raw.ask(through.server.port, raw.post("/api/chat", {"messages": [message], "model": name}))
    parts = [json.loads(event) for event in reply.events]
    assert "".join(part["delta"] for part in parts if part["type"] == "text-delta") == text_of(5)
    assert (parts[-1]["type"], reply.whole, reply.status) == ("error", False, 200)
    assert "finish" not in {part["type"] for part in parts}


@pytest.mark.parametrize("name", ["die-mid-event", "reset-mid-stream", "stall"])
def test_eventsource_is_told_by_an_event_and_the_cut(hasty: Through, name: str) -> None:
    """``GET /stream``: the end's id, which stops it from coming back, is not given."""
    reply = raw.ask(hasty.server.port, raw.get(f"/stream?prompt=hello&model={name}"))
    assert "".join(reply.tokens) == text_of(5)
    assert reply.error is not None
    assert (reply.done, reply.whole, b".end" in reply.body) == (False, False, False)


def test_no_fault_is_left_out() -> None:
    """A fault that chaos learns must be given its truth here, or in a test of its own."""
    assert {*TRUTHS, "deaf"} == {*FAULTS}


# --- row 37, 38 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_an_upstream_that_refuses_connections_is_502(path: str) -> None:
    """Row 37: nobody listens there."""
    with gateway("http://127.0.0.1:1/v1") as server:
        seen = raw.ask(server.port, raw.post(path, {"prompt": "x"} if path == "/chat" else {"messages": [{}]}))
        assert (seen.status, seen.whole) == (502, True)
        assert b"upstream" in seen.body
        server.assert_steady()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", [name for name in LATE if TRUTHS[name].row == 38])
def test_once_a_heartbeat_has_committed_the_answer_a_deadline_is_told_in_stream(
    chaos: ChaosProcess, name: str, path: str
) -> None:
    """Row 38: the 200 has left, so the truth goes the other way: an event, and the cut."""
    with gateway(chaos.url, "--heartbeat", "0.1", hasty=True) as server:
        through = Through(server, chaos)
        seen = through.ask(asked(name, TRUTHS[name]), path)
        assert seen.reply.body.startswith(b": hb\n")
        assert (seen.reply.status, seen.reply.whole, seen.done) == (200, False, False)
        assert seen.error["code"] == seen.outcome == "upstream_idle"
        through.assert_steady()


# --- row 39, 40 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("code", [429, 503])
def test_too_much_asked_of_the_upstream_is_told_with_its_retry_after(through: Through, code: int, path: str) -> None:
    """Row 39."""
    seen = through.ask(f"status:code={code},retry_after=7", path)
    assert (seen.reply.status, seen.reply.header("retry-after")) == (code, "7")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("code", [401, 403])
def test_a_refusal_of_our_key_does_not_give_it_away(through: Through, code: int, path: str) -> None:
    """Row 39: chaos quotes the key in its message, as OpenAI does."""
    seen = through.ask(f"status:code={code}", path)
    assert seen.reply.status == code
    assert KEY.encode() not in seen.reply.raw + seen.reply.body
    assert KEY not in json.dumps(seen.line)


def test_an_upstream_that_is_well_again_answers(through: Through) -> None:
    """``times``: the first requests fail, and nothing of that stays behind."""
    model = f"status:code=500,times=2,retry_after={through.server.port}"  # nobody else's
    statuses = [raw.ask(through.server.port, through.request(model, "/chat")).status for _ in range(3)]
    assert statuses == [500, 500, 200]


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_is_never_followed(through: Through, code: int) -> None:
    """Row 40: who follows redirects can be sent into his own network."""
    seen = through.ask(f"redirect:code={code}", OPENAI)
    assert (seen.reply.status, seen.reply.header("location")) == (502, None)


# --- row 44, 45 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["huge-event", "endless-line", "endless-multiline"])
def test_an_event_without_end_does_not_grow_the_gateway(through: Through, name: str) -> None:
    """Row 44: cut at 1 MiB. Memory: less than 16 MiB more, after ten of them."""
    through.ask(name, OPENAI)  # what the first one allocates for good is not counted
    before = through.server.rss()
    for _ in range(10):
        seen = through.ask(name, OPENAI)
        assert seen.error["code"] == "upstream_failed"
    assert through.server.rss() - before < 16 * MiB


def test_a_flood_reaches_a_fast_reader_whole_and_memory_stays_flat(through: Through) -> None:
    """Row 45: 48 MB of tokens, all of them, through a gateway that holds next to nothing of it."""
    with raw.Client(through.server.port, deadline=60) as client:
        assert client.send(through.request("flood:megabytes=48", OPENAI)).head().status == 200
        before = through.server.rss()
        size = 0
        last = b""
        peak = before
        for part in client.parts(within=60):
            size += len(part)
            last = (last + part)[-100:]
            if size % (4 * MiB) < len(part):
                peak = max(peak, through.server.rss())
    assert size > 40 * MiB
    assert last.endswith(b"data: [DONE]\n\n")
    assert peak - before < 16 * MiB


def test_a_flood_waits_for_a_reader_that_stopped(through: Through) -> None:
    """Row 45: the upstream is blocked once the small buffers between are full, and freed when the reader leaves."""
    model = "flood:megabytes=95"
    with raw.Client(through.server.port, rcvbuf=8192) as client:
        client.send(through.request(model, OPENAI)).head()
        before = through.server.rss()
        seen = -1

        def blocked() -> bool:
            nonlocal seen
            last, seen = seen, through.chaos.generations(model)[-1]["tokens"]
            (stream,) = through.server.debug()["streams"]
            return last == seen and stream["waiting_for"] in ("network", "client")

        eventually(blocked, within=20, why="the upstream makes no more tokens")
        assert through.server.rss() - before < 4 * MiB
        (stream,) = through.server.debug()["streams"]
        buffered = stream["buffered"]
        assert buffered["source"] + buffered["transport"] + (buffered["kernel_unsent"] or 0) < 64 * 1024
        # What it wrote in all is in its own kernel's buffers, which are not ours to bound.
        assert seen * 220 < 16 * MiB
    through.chaos.wait_left(model)


# --- row 46, 47, 48, 49 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ODD)
def test_odd_events_travel_on_byte_for_byte(through: Through, name: str) -> None:
    """Row 46: what a relay does not understand is not its to judge."""
    reply = raw.ask(through.server.port, through.request(name, OPENAI))
    assert ODD[name] in reply.body
    assert reply.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("path", PATHS)
def test_malformed_utf8_costs_its_own_characters_alone(through: Through, path: str) -> None:
    """Row 46: the text around it is not lost; each malformed byte is U+FFFD, as in any decoder."""
    seen = through.ask("invalid-utf8", path)
    assert seen.text == text_of(5) + "\ufffd\ufffd\ufffd0 "


@pytest.mark.parametrize("path", PATHS)
def test_text_in_single_bytes_arrives_as_it_was(through: Through, path: str) -> None:
    """Each byte in a segment of its own, chunks cut inside characters."""
    seen = through.ask("unicode:tokens=10", path)
    assert seen.text == "grüße 世界 Привет 🌊🚰 é\u0301 " * 2
    assert seen.kept


@pytest.mark.parametrize("path", PATHS)
def test_what_follows_done_is_dropped(through: Through, path: str) -> None:
    """Row 47."""
    reply = raw.ask(through.server.port, through.request("after-done", path))
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert b"token99" not in reply.body


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_that_nobody_asked_for_reaches_nobody(through: Through, path: str) -> None:
    """Row 48: neither this client, nor the next one."""
    first = raw.ask(through.server.port, through.request("trailing-bytes", path))
    assert first.whole
    assert b"EVIL" not in first.body
    for _ in range(3):
        through.assert_well(path)


@pytest.mark.parametrize("path", PATHS)
def test_a_kept_connection_that_was_closed_costs_one_safe_retry_and_no_error(through: Through, path: str) -> None:
    """Row 49: the request arrives on the kept connection, is not answered there, and is sent once more."""
    raw.ask(through.server.port, through.request("close-pooled", path))
    before = through.chaos.state()
    seen = through.ask("close-pooled", path)
    after = through.chaos.state()
    assert (seen.reply.status, seen.done, seen.text) == (200, True, text_of(5))
    assert after["accepted"] - before["accepted"] == 4, "one fresh connection, and three of ours to ask"
    assert after["requests"] - before["requests"] == 3, "twice this one, once the next one"


def test_a_stopped_gateway_leaves_nothing_behind(chaos: ChaosProcess) -> None:
    """SIGTERM in mid-stream: the upstream's connections are closed with the process's."""
    with gateway(chaos.url, "--drain-timeout", "0.1") as server:
        through = Through(server, chaos)
        with raw.Client(server.port) as client:
            client.send(through.request("endless:rate=51", OPENAI)).head()
            client.until(b"token3 ")
            server.stop()
    chaos.wait_left("endless:rate=51")

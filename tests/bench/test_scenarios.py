"""Each scenario runs at toy size, against rawstream and one peer, and measures what it says it measures."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from bench import build, netns
from bench.peers import all_peers, autocannon, make_context
from bench.peers._source import events
from bench.scenarios import all_scenarios
from bench.scenarios.base import Bench
from bench.serving import chat_request
from tests.bench.conftest import MeasureOnce
from tests.bench.planted import behind_nginx, planted_peer
from tests.support.tools import missing

PEERS = all_peers()

CASES = [
    ("throughput", "suspend", "rawstream", "us_per_token"),
    ("paced", "steady", "rawstream", "late_p99_ms"),
    ("paced", "steady", "floor-drain", "late_p99_ms"),
    ("paced", "ramp", "rawstream", "streams_until_20ms"),
    ("slow_fifth", "slow", "rawstream", "gap_p99_ms"),
    ("idle", "streams", "rawstream", "process_kib"),
    ("idle", "streams", "floor-drain", "process_kib"),
    ("leavers", "silent", "rawstream", "p99_ms"),
    ("short", "requests", "rawstream", "requests_per_second"),
    ("short", "requests", "floor-drain", "requests_per_second"),
    ("gateway", "paced", "rawstream-gateway", "us_per_token"),
    ("gateway", "first", "rawstream-gateway", "added_p50_us"),
    ("gateway", "stalled", "rawstream-gateway", "beyond_kib"),
    ("everything", "relay", "rawstream-gateway-everything", "us_per_token"),
    ("everything", "relay_first", "rawstream-gateway-everything", "added_p50_us"),
    ("everything", "own", "rawstream-everything", "us_per_token"),
    ("everything", "own_first", "rawstream-everything", "added_p50_us"),
    ("many", "streams", "rawstream", "process_mib"),
    ("resumable", "own", "rawstream-resumable", "us_per_token"),
    ("resumable", "own", "rawstream-redis", "appended"),
    ("resumable", "relay", "rawstream-gateway-resumable", "us_per_token"),
    ("resumable", "relay", "rawstream-gateway-redis", "appended"),
    ("scaling", "2", "rawstream", "even"),
]

TLS_CASES = [
    ("handshakes", "full", "rawstream-tls", "us_per_handshake"),
    ("handshakes", "full", "nginx-tls", "us_per_handshake"),
    ("handshakes", "resumed", "rawstream-tls", "us_per_handshake"),
    ("tls_paced", "steady", "rawstream-tls", "us_per_token"),
    ("tls_paced", "steady", "nginx-tls", "us_per_token"),
]

HTTP2_CASES = [
    ("one", "rawstream", "fairness"),
    ("one", "hypercorn-starlette", "fairness"),
    ("one", "nginx-http2", "front_us_per_token"),
    ("one_tls", "rawstream-tls", "fairness"),
    ("one_tls", "go-http2", "fairness"),
    *(
        (part, peer, "cancel_p50_ms")
        for part in ("reset", "lost")
        for peer in ("rawstream", "rawstream-tls", "hypercorn-starlette", "nginx-http2", "go-http2")
    ),
]


@pytest.mark.parametrize(("scenario", "part", "peer", "key"), CASES, ids=str)
def test_a_scenario_has_a_figure(measure_once: MeasureOnce, scenario: str, part: str, peer: str, key: str) -> None:
    """Every scenario runs to its end, finds nothing wrong with the answers, and has its main figure."""
    found = measure_once(scenario, part, PEERS[peer])
    assert found.failure is None, found.failure
    assert key in found.values
    assert {column.key for column in all_scenarios()[scenario].columns} & found.values.keys()


@pytest.mark.parametrize(("scenario", "part", "peer", "key"), TLS_CASES, ids=str)
def test_a_scenario_over_tls_has_a_figure(
    measure_once: MeasureOnce, tmp_path: Path, scenario: str, part: str, peer: str, key: str
) -> None:
    """Over TLS answers are checked in the same way; full handshakes are full, and resumed ones resumed."""
    try:
        build.compiled("generator", tls=True)
    except build.NoCompiler as error:
        missing(str(error))
    if reason := PEERS[peer].missing(make_context(1, tmp_path)):
        missing(reason)
    found = measure_once(scenario, part, PEERS[peer])
    assert found.failure is None, found.failure
    assert key in found.values
    if scenario == "handshakes":
        assert found.values["resumed"] > 0.95 if part == "resumed" else found.values["resumed"] == 0


@pytest.mark.parametrize(("part", "peer", "key"), HTTP2_CASES, ids=str)
def test_many_streams_on_a_connection_have_a_figure(
    measure_once: MeasureOnce, tmp_path: Path, part: str, peer: str, key: str
) -> None:
    """Each peer that is installed streams a hundred at a time, and closes the sources that were given up alone."""
    if reason := PEERS[peer].missing(make_context(1, tmp_path)):
        if "bench peers" in reason:
            pytest.skip(reason)  # it lives in the bench's own environment
        missing(reason)
    found = measure_once("multiplexed", part, PEERS[peer])
    assert found.failure is None, found.failure
    assert key in found.values
    if part in ("reset", "lost"):
        assert found.values["never"] == 0
    else:
        assert found.values["complete"] == 1


def test_a_planted_slow_canceller_is_reported_as_slow_over_http_2_too(
    measure_once: MeasureOnce, tmp_path: Path
) -> None:
    """Its source closes 60 ms after nginx has closed the connection of a stream that was reset."""
    slow = behind_nginx("slow-cancel")
    if reason := slow.missing(make_context(1, tmp_path)):
        missing(reason)
    found = measure_once("multiplexed", "reset", slow)
    assert found.failure is None, found.failure
    assert found.values["cancel_p50_ms"] > 55, found
    assert found.values["never"] == 0


def test_everything_on_is_on(bench: Bench, tmp_path: Path) -> None:
    """With everything on, a key that nobody has is refused; off, nobody looks at it."""
    for name, status in (("rawstream-everything", b" 401 "), ("rawstream", b" 200 ")):
        with bench.server(PEERS[name]) as server, server.connect(5.0) as link:
            link.sendall(chat_request("/chat", {"tokens": 1}, key="rs-nobody-x").encode())
            assert status in link.recv(4096).split(b"\r\n")[0]


def test_writes_and_packets_are_counted(measure_once: MeasureOnce) -> None:
    """Where the source suspends once per token each token is one system call and one packet, and both are seen."""
    found = measure_once("throughput", "suspend", PEERS["floor-drain"])
    assert 0.9 < found.values["tokens_per_write"] < 1.5, found
    assert 0.9 < found.values["tokens_per_packet"] < 2, found


async def test_a_batch_is_handled_event_by_event_unless_it_is_joined() -> None:
    """Every Python peer's handler is given one text per token, or one per batch where the request says so."""
    body = {"prompt": "x", "mock": {"tokens": 130, "tokens_per_second": None, "batch": 64}}
    singly = [text async for text in events(json.dumps(body).encode())]
    joined = [text async for text in events(json.dumps({**body, "joined": True}).encode())]
    assert [text.count("data: ") for text in singly] == [1] * 131
    assert [text.count("data: ") for text in joined] == [64, 64, 2, 1]
    assert "".join(singly) == "".join(joined)


def test_every_part_is_wanted_by_rawstream() -> None:
    """No part of any scenario leaves rawstream out."""
    for scenario in all_scenarios().values():
        for part in scenario.parts("full"):
            assert any(peer.kind == "rawstream" and scenario.wants(peer, part) for peer in PEERS.values()), (
                scenario.name
            )


def test_goals_name_known_parts_columns_and_peers() -> None:
    """A goal can always be judged: it names a part, a column and peers that exist."""
    for scenario in all_scenarios().values():
        for goal in scenario.goals:
            assert goal.part in scenario.parts("full")
            assert goal.key in {column.key for column in scenario.columns}
            assert goal.peer in PEERS
            assert goal.of is None or goal.of in PEERS


def test_a_stalled_client_costs_the_kernel_far_less_than_where_drain_is_the_only_bound(
    measure_once: MeasureOnce,
) -> None:
    """Kernel send queues are seen: a server that only awaits drain() fills them, rawstream does not."""
    ours = measure_once("stalled", "20 clients", PEERS["rawstream"])
    theirs = measure_once("stalled", "20 clients", PEERS["floor-drain"])
    assert ours.words["trend"] == "level"
    assert ours.values["kernel_kib"] < 16
    assert theirs.values["kernel_kib"] > 10 * ours.values["kernel_kib"]
    assert theirs.values["ahead"] > 5 * ours.values["ahead"]


def test_a_planted_leak_is_reported_as_rising(measure_once: MeasureOnce) -> None:
    """A server that keeps 64 KiB per token rises; the same server without the fault is level."""
    leaking = measure_once("slow_fifth", "memory", planted_peer("leak"))
    assert leaking.words["trend"] == "rising", leaking
    assert leaking.values["grown_mib"] > 50


def test_rawstream_is_level_beside_slow_readers(measure_once: MeasureOnce) -> None:
    """The same measurement finds rawstream level."""
    found = measure_once("slow_fifth", "memory", PEERS["rawstream"])
    assert found.failure is None, found.failure
    assert found.words["trend"] == "level", found


def test_a_planted_slow_canceller_is_reported_as_slow(measure_once: MeasureOnce) -> None:
    """A server that closes its source 60 ms after the client left is seen to take 60 ms; a prompt one is not."""
    slow = measure_once("leavers", "active", planted_peer("slow-cancel"))
    prompt = measure_once("leavers", "active", planted_peer("none"))
    assert slow.values["p50_ms"] > 55, slow
    assert prompt.values["p50_ms"] < 20, prompt
    assert prompt.values["never"] == slow.values["never"] == 0


def test_a_server_that_notices_at_its_next_write_only_is_reported_as_late(measure_once: MeasureOnce) -> None:
    """With a silent source, the floor that watches for nobody closes it only when its next token fails to leave."""
    found = measure_once("leavers", "silent", PEERS["floor-drain"])
    assert found.values["p50_ms"] > 300 or found.values["never"] > 0


@pytest.mark.parametrize("fault", ["drop", "reorder", "double", "cut"])
def test_a_wrong_answer_is_a_failure(measure_once: MeasureOnce, fault: str) -> None:
    """A lost, swapped, doubled token, or a cut body, is a failure that says what was wrong, however fast it was."""
    found = measure_once("throughput", "suspend", planted_peer(fault))
    assert found.failure is not None
    assert ("cut" if fault == "cut" else "wrong") in found.failure
    assert not found.counts


def test_an_answer_that_ends_too_soon_is_a_failure(measure_once: MeasureOnce) -> None:
    """[DONE] and a clean end do not make a short answer complete."""
    found = measure_once("perceived", "1 s", planted_peer("early"))
    assert found.failure is not None
    assert "30 tokens of 50" in found.failure


def test_perceived_shows_the_whole_wait(measure_once: MeasureOnce) -> None:
    """A streamed answer's first word comes at once; one that is sent whole, after its whole time."""
    streamed = measure_once("perceived", "1 s", PEERS["rawstream"])
    whole = measure_once("perceived", "1 s", PEERS["rawstream-whole"])
    assert streamed.values["first_s"] < 0.5 < 0.8 < whole.values["first_s"]


@pytest.mark.slow
def test_a_thin_pipe_keeps_rawstream_close_to_its_reader(measure_once: MeasureOnce) -> None:
    """Behind 400 kbit/s a server that only awaits drain() runs further ahead than rawstream."""
    reason = netns.why_not()
    if reason:
        pytest.skip(reason)
    ours = measure_once("thin_pipe", "one reader", PEERS["rawstream"])
    theirs = measure_once("thin_pipe", "one reader", PEERS["floor-drain"])
    if "NoNamespaces" in (ours.failure or ""):
        pytest.skip(str(ours.failure))
    assert ours.failure is theirs.failure is None, (ours.failure, theirs.failure)
    assert ours.values["ahead_tokens"] < theirs.values["ahead_tokens"]


@pytest.mark.slow
def test_the_law_is_measured_for_the_wrong_discipline(measure_once: MeasureOnce) -> None:
    """/chat-broken grows with what its slow readers do not read; /chat does not."""
    broken = measure_once("slow_fifth", "law", PEERS["rawstream-broken"])
    ours = measure_once("slow_fifth", "law", PEERS["rawstream"])
    assert broken.values["growth_mib_per_s"] > 0.5
    assert ours.values["growth_mib_per_s"] < broken.values["growth_mib_per_s"] / 2


@pytest.mark.slow
def test_the_control_runs(measure_once: MeasureOnce) -> None:
    """autocannon, where it is installed, has figures too."""
    with tempfile.TemporaryDirectory() as folder:
        reason = autocannon.missing(make_context(1, Path(folder)))
    if reason:
        pytest.skip(reason)
    found = measure_once("control", "fast readers", PEERS["rawstream"])
    assert found.failure is None, found.failure
    assert found.values["requests_per_second"] > 0

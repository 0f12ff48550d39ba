"""``/metrics`` and the admin port: each figure moves when its thing happens, and at no other time."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from rawstream import Request, Settings
from rawstream.errors import BadRequest, LimitReached, TooManyStreams
from rawstream.limits.admission import Relief
from rawstream.limits.users import new_key
from rawstream.server.app import App
from rawstream.server.connection import Connection
from rawstream.server.counts import REASONS, Counts, by_reason
from rawstream.server.exposition import Family
from rawstream.server.metrics import Live, Metrics
from rawstream.settings import UpstreamSettings, UserSettings
from rawstream.sources.mock import MockSource
from rawstream.sources.router import RoutedSource
from tests.support import raw
from tests.support.flow import Served, post, serving, until
from tests.support.program import ROOT
from tests.support.raw import ENDLESS, Client, chat
from tests.support.server import ServerProcess
from tests.support.tools import require_tool
from tests.support.waiting import eventually

OPEN = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


class Scrape:
    """One answer of ``/metrics``, as a Prometheus server reads it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in parse(text)}
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples[f"rawstream_{name}", tuple(sorted(labels.items()))]


async def scrape(served: Served) -> Scrape:
    reply = await asyncio.to_thread(raw.ask, served.server.port, raw.get("/metrics"))
    assert (reply.status, reply.whole) == (200, True)
    return Scrape(reply.body.decode())


async def scraped(served: Served, wanted: Callable[[Scrape], object]) -> Scrape:
    """The first scrape that shows what is wanted. AssertionError when none does in time."""
    end = time.monotonic() + 10
    while True:
        seen = await scrape(served)
        if wanted(seen):
            return seen
        assert time.monotonic() < end, f"never shown:\n{seen.text}"


async def ask(served: Served, request: bytes) -> raw.Reply:
    return await asyncio.to_thread(raw.ask, served.server.port, request)


def everything(**more: Any) -> Settings:
    """Settings with which there is a metric of each kind."""
    return Settings(
        port=0,
        redis="redis://127.0.0.1:1/0",
        users=(UserSettings(name="ann", keys=(new_key()[1],)), UserSettings(name="*")),
        user_header="x-user",
        trusted_proxies="127.0.0.1",
        upstreams=(
            UpstreamSettings(name="first", url="http://127.0.0.1:1/v1"),
            UpstreamSettings(name="second", url="http://127.0.0.1:2/v1"),
        ),
        **more,
    )


async def all_families() -> list[Family]:
    """Each metric of ours that there can be."""
    settings = everything()
    app = App(settings, RoutedSource(settings))
    families = list(Metrics(app).families(await Live.look(app.streams)))
    assert app.redis is not None
    await app.redis.aclose()
    return families


# --- how it is written -------------------------------------------------------------------------------------------


async def test_a_scrape_is_what_prometheus_own_parsers_read() -> None:
    """In the text format by default, in OpenMetrics for who asks for it; the figures are the same."""
    async with serving(MockSource()) as served:
        await ask(served, chat(tokens=3))
        await served.ended()
        plain = await ask(served, raw.get("/metrics"))
        open_metrics = await ask(served, raw.get("/metrics", Accept=OPEN))
    assert plain.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
    assert open_metrics.header("content-type") == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert open_metrics.body.endswith(b"# EOF\n")
    assert open_metrics.body.count(b"# EOF") == 1
    parsed = parse_open(open_metrics.body.decode())  # type: ignore[no-untyped-call]  # has no annotations
    read = {family.name: family for family in parsed}
    assert read.keys() == Scrape(plain.body.decode()).families.keys()
    assert read["rawstream_tokens"].samples[0].value == 3
    assert {"process_resident_memory_bytes", "process_open_fds", "python_info"} <= read.keys()
    assert plain.header("cache-control") == "no-store"


async def test_what_one_does_not_understand_gets_the_text_format() -> None:
    async with serving(MockSource()) as served:
        for accept in ("", "*/*", "application/json", "openmetrics", ",;,;=", "text/plain;version=1.0.0"):
            reply = await ask(served, raw.get("/metrics", Accept=accept))
            assert reply.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"


async def test_promtool_has_nothing_to_say_against_any_metric() -> None:
    promtool = require_tool("promtool")
    settings = everything()
    app = App(settings, RoutedSource(settings))
    _, text = await Metrics(app).text()
    assert app.redis is not None
    await app.redis.aclose()
    check = [promtool, "check", "metrics"]
    done = await asyncio.to_thread(subprocess.run, check, input=text, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (0, "", "")


async def test_no_name_is_given_twice_and_labels_are_closed_sets() -> None:
    """No model, no path, no address and no id is a label, so that no client can make series."""
    families = await all_families()
    assert len({family.full_name for family in families}) == len(families)
    labels = {label for family in families for label in family.labels}
    assert labels == {
        "waiting_for", "outcome", "kind", "place", "state", "status", "reason", "of", "version", "step", "upstream",
        "user",
    }  # fmt: skip
    users = {values[0] for family in families if family.labels[:1] == ("user",) for values in family.numbers}
    assert users == {"ann", "other"}


async def test_what_many_dashboards_know_is_called_what_they_know() -> None:
    names = {family.full_name for family in await all_families()}
    for suffix in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"):
        assert f"rawstream_{suffix}" in names


# --- what the README says of it ----------------------------------------------------------------------------------

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    """What stands between the README's markers of that name."""
    return README.partition(f"<!-- {name}:start -->")[2].partition(f"<!-- {name}:end -->")[0].strip()


async def test_every_metric_stands_in_the_readme_with_its_type_and_meaning() -> None:
    lines = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for family in await all_families():
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.full_name}` | {family.kind} | {labels} | {family.help} |")
    table = "\n".join(lines)
    assert section("metrics") == table, f"the README's table must be:\n{table}"


def rules() -> str:
    """The README's alerting rules."""
    return section("alerts").removeprefix("```yaml\n").removesuffix("```")


def test_prometheus_takes_the_readmes_alerts_and_each_has_a_reason(tmp_path: Path) -> None:
    promtool = require_tool("promtool")
    (tmp_path / "rules.yml").write_text(rules(), encoding="utf-8")
    done = subprocess.run(
        [promtool, "check", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    names = re.findall(r"alert: (\w+)", rules())
    assert len(set(names)) == len(names) == len(re.findall(r"reason: \S", rules())) == len(SYMPTOMS)


async def test_the_alerts_ask_for_what_there_is() -> None:
    """Each series that a rule names exists, with the label values that it asks for."""
    there: dict[str, dict[str, set[str]]] = {}
    for family in await all_families():
        names = [family.full_name]
        if family.histogram is not None:
            names = [family.full_name + suffix for suffix in ("_bucket", "_count", "_sum")]
        values = {label: {key[at] for key in family.numbers} for at, label in enumerate(family.labels)}
        there |= dict.fromkeys(names, values)
    asked = re.findall(r"\b(rawstream_\w+)(?:\{(\w+)=~?\"([^\"]+)\"\})?", rules().replace("rawstream_check", ""))
    assert len(asked) > 15
    for name, label, wanted in asked:
        assert name in there, name
        if label:
            assert set(wanted.split("|")) <= there[name][label], (name, wanted)


# A symptom: series of the next hour, one value a minute, in promtool's notation ("0+6x60": 0, 6, 12 …).
SYMPTOMS: dict[str, list[tuple[str, str]]] = {
    "RawstreamDown": [('up{job="rawstream"}', "1 1 0x60")],
    "RawstreamSourceFails": [
        ('rawstream_streams_ended_total{outcome="completed"}', "0+90x60"),
        ('rawstream_streams_ended_total{outcome="upstream_idle"}', "0+10x60"),
    ],
    "RawstreamUpstreamLeftAlone": [('rawstream_upstream_breaker_open{upstream="a"}', "0 1x60")],
    "RawstreamRetryBudgetSpent": [('rawstream_upstream_budget_refusals_total{upstream="a"}', "0+1x60")],
    "RawstreamFirstTokenSlow": [
        ('rawstream_time_to_first_token_seconds_bucket{le="10"}', "0+90x60"),
        ('rawstream_time_to_first_token_seconds_bucket{le="20"}', "0+100x60"),
        ('rawstream_time_to_first_token_seconds_bucket{le="+Inf"}', "0+100x60"),
    ],
    "RawstreamAddsLatency": [
        ('rawstream_added_latency_seconds_bucket{le="0.01"}', "0+90x60"),
        ('rawstream_added_latency_seconds_bucket{le="0.025"}', "0+100x60"),
        ('rawstream_added_latency_seconds_bucket{le="+Inf"}', "0+100x60"),
    ],
    "RawstreamLoopHeld": [("rawstream_longest_hold_seconds", "0.2x60")],
    "RawstreamCancelSlow": [
        ('rawstream_cancel_latency_seconds_bucket{le="1.0"}', "0+1x60"),
        ('rawstream_cancel_latency_seconds_bucket{le="2.5"}', "0+2x60"),
        ('rawstream_cancel_latency_seconds_bucket{le="+Inf"}', "0+2x60"),
    ],
    "RawstreamTokensAbandoned": [
        ('rawstream_tokens_total{kind="generated"}', "0+1000x90"),
        ('rawstream_tokens_total{kind="delivered"}', "0+800x90"),
        ('rawstream_tokens_total{kind="abandoned"}', "0+200x90"),
    ],
    "RawstreamClientsStall": [
        ('rawstream_streams_ended_total{outcome="completed"}', "0+90x60"),
        ('rawstream_streams_ended_total{outcome="client_stalled"}', "0+10x60"),
    ],
    "RawstreamMemoryRelief": [('rawstream_memory_relief{step="refuse"}', "0 1x60")],
    "RawstreamRefuses": [('rawstream_requests_refused_total{reason="too_many_streams"}', "0+1x60")],
    "RawstreamNearlyFull": [
        ('rawstream_streams{waiting_for="source"}', "60x60"),
        ('rawstream_streams{waiting_for="client"}', "30x60"),
        ('rawstream_limit{of="streams"}', "100x60"),
    ],
    "RawstreamRedisGone": [("rawstream_redis_up", "1 0x60")],
    "RawstreamKeysGuessed": [('rawstream_requests_refused_total{reason="invalid_api_key"}', "0+120x60")],
}
HEALTHY: list[tuple[str, str]] = [
    ('up{job="rawstream"}', "1x90"),
    ('rawstream_streams_ended_total{outcome="completed"}', "0+95x90"),
    ('rawstream_streams_ended_total{outcome="client_left"}', "0+50x90"),
    ('rawstream_streams_ended_total{outcome="client_stalled"}', "0+1x90"),
    ('rawstream_streams_ended_total{outcome="upstream_failed"}', "0+1x90"),
    ('rawstream_tokens_total{kind="generated"}', "0+1000x90"),
    ('rawstream_tokens_total{kind="abandoned"}', "0+10x90"),
    ('rawstream_time_to_first_token_seconds_bucket{le="1.0"}', "0+100x90"),
    ('rawstream_time_to_first_token_seconds_bucket{le="+Inf"}', "0+100x90"),
    ('rawstream_streams{waiting_for="client"}', "30x90"),
    ('rawstream_limit{of="streams"}', "100x90"),
    ('rawstream_limit{of="connections"}', "100x90"),
    ("rawstream_connections", "35x90"),
    ('rawstream_requests_refused_total{reason="user_streams"}', "0+9x90"),
    ('rawstream_requests_refused_total{reason="rate_limit_exceeded"}', "0+9x90"),
    ('rawstream_memory_relief{step="refuse"}', "0x90"),
    ('rawstream_upstream_breaker_open{upstream="a"}', "0x90"),
    ("rawstream_redis_up", "1x90"),
    ("rawstream_longest_hold_seconds", "0.004x90"),
]


def test_each_alert_fires_on_its_symptom_and_none_on_a_healthy_server(tmp_path: Path) -> None:
    promtool = require_tool("promtool")
    (tmp_path / "rules.yml").write_text(rules(), encoding="utf-8")

    def case(series: list[tuple[str, str]], expected: str | None) -> dict[str, Any]:
        named = [_of_instance(name) for name, _ in series]
        firing = {"expr": 'group by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "61m"}
        samples = [] if expected is None else [{"labels": f'{{alertname="{expected}"}}', "value": 1}]
        return {
            "interval": "1m",
            "input_series": [
                {"series": name, "values": values} for name, (_, values) in zip(named, series, strict=True)
            ],
            "promql_expr_test": [{**firing, "exp_samples": samples}],
        }

    cases = [case(HEALTHY, None), *(case(series, name) for name, series in SYMPTOMS.items())]
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yml").write_text(json.dumps(tests), encoding="utf-8")  # JSON is YAML
    done = subprocess.run(
        [promtool, "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _of_instance(series: str) -> str:
    """``series`` as Prometheus stores it: with the target's labels."""
    name, _, labels = series.removesuffix("}").partition("{")
    target = ['instance="i"'] if "job=" in labels else ['instance="i"', 'job="rawstream"']
    return f"{name}{{{', '.join([*filter(None, [labels]), *target])}}}"


# --- what streams do ---------------------------------------------------------------------------------------------


async def test_a_whole_answer_moves_what_belongs_to_it(loop_kind: str) -> None:
    async with serving(MockSource()) as served:
        before = await scrape(served)
        answer = await ask(served, chat(tokens=20, tokens_per_second=500))
        await served.ended()
        after = await scrape(served)
    assert len(answer.tokens) == 20
    assert after("streams_opened_total") == after("streams_ended_total", outcome="completed") == 1
    assert after("tokens_total", kind="generated") == after("tokens_total", kind="delivered") == 20
    assert after("tokens_total", kind="abandoned") == 0
    assert after("stream_bytes_total") == len(answer.body)
    assert after("time_to_first_token_seconds_count") == after("e2e_request_latency_seconds_count") == 1
    assert after("inter_token_latency_seconds_count") == 19
    assert 0.02 < after("inter_token_latency_seconds_sum") <= after("e2e_request_latency_seconds_sum")
    assert 0 < after("added_latency_seconds_count") <= 21
    assert 0 <= after("longest_hold_seconds") < 5
    assert 0.02 < after("waiting_seconds_total", waiting_for="source") <= after("e2e_request_latency_seconds_sum")
    assert after("cancel_latency_seconds_count") == 0
    assert after("http_answers_total", status="2xx") == 2, "the stream, and the scrape before"
    changed = {key[0] for key, value in after.samples.items() if before.samples[key] != value}
    assert not {name for name in changed if "refused" in name or "memory_cuts" in name or "whole" in name}


async def test_a_stream_shows_while_it_runs() -> None:
    """Tokens, waits and bytes of what runs are in the figures, not only what has ended."""
    async with serving(MockSource()) as served:
        client = await served.client(post("/chat", '{"prompt":"a","mock":{"tokens":null,"tokens_per_second":100}}'))
        await client.read_until(b'"token"', 5)
        seen = await scrape(served)
        assert seen("streams", waiting_for="source") == 1
        assert seen("tokens_total", kind="generated") >= 5
        assert seen("tokens_total", kind="delivered") >= 5
        assert seen("tokens_total", kind="abandoned") == 0
        assert seen("waiting_seconds_total", waiting_for="source") > 0
        assert seen("time_to_first_token_seconds_count") == 1
        assert seen("connections") == 2
        assert seen("e2e_request_latency_seconds_count") == 0


async def test_a_client_that_reads_nothing_is_who_is_waited_for(loop_kind: str) -> None:
    """Its bytes lie where they lie; the seconds are the client's, not the network's; its tokens end as abandoned."""
    async with serving(MockSource(), Settings(port=0, heartbeat=0, stall_timeout=1.0)) as served:
        with Client(served.server.port, rcvbuf=4096) as client:
            client.send(chat(**ENDLESS))
            seen = await scraped(served, lambda seen: seen("waiting_seconds_total", waiting_for="client") > 0.3)
            assert seen("streams", waiting_for="client") == 1
            assert seen("buffered_bytes", place="transport") > 0
            assert seen("buffered_bytes", place="kernel_unsent") > 0
            places = ("source", "transport", "kernel_unsent", "kernel_unacked")
            assert sum(seen("buffered_bytes", place=place) for place in places) <= 16 * 1024
            assert seen("waiting_seconds_total", waiting_for="network") < 0.15
            assert seen("tokens_total", kind="delivered") < seen("tokens_total", kind="generated")
            await served.ended()
            after = await scrape(served)
    assert after("streams_ended_total", outcome="client_stalled") == 1
    assert after("tokens_total", kind="abandoned") > 0
    assert after("tokens_total", kind="generated") == (
        after("tokens_total", kind="delivered") + after("tokens_total", kind="abandoned")
    )
    assert after("cancel_latency_seconds_count") == 1
    assert after("waiting_seconds_total", waiting_for="client") >= 0.8
    assert after("buffered_bytes", place="transport") == sum(
        after("streams", waiting_for=whom) for whom in ("source", "client", "network", "running")
    ) == 0  # fmt: skip


async def test_who_waits_for_credit_waits_for_the_client_and_not_for_the_network() -> None:
    """The kernel has nothing to do meanwhile."""
    async with serving(MockSource()) as served:
        body = '{"prompt":"a","mock":{"tokens":null,"tokens_per_second":null}}'
        client = await served.client(post("/chat?credit=3", body))
        await client.read_until(b'"token"', 3)
        seen = await scraped(served, lambda seen: seen("waiting_seconds_total", waiting_for="client") > 0.3)
        assert seen("streams", waiting_for="client") == 1
        assert seen("waiting_seconds_total", waiting_for="network") < 0.15


async def test_a_client_that_leaves_has_its_source_closed_and_that_is_timed() -> None:
    closing = asyncio.Event()

    async def slow_to_close(request: Request) -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.Event().wait()
        finally:
            await closing.wait()

    async with serving(slow_to_close) as served:
        client = await served.client(post("/chat"))
        await client.read_until(b'"token"')
        client.reset()
        asyncio.get_running_loop().call_later(0.12, closing.set)
        await served.ended()
        seen = await scrape(served)
    assert seen("streams_ended_total", outcome="client_left") == 1
    assert seen("cancel_latency_seconds_count") == 1
    assert 0.1 < seen("cancel_latency_seconds_sum") < 2
    assert seen("cancel_latency_seconds_bucket", le="0.1") == 0


async def test_a_source_that_never_closes_is_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst of them must not be missing in the figure that is there to show it."""
    monkeypatch.setattr("rawstream.server.streams._CLOSING_GRACE", 0.05)

    async def clinging(request: Request) -> AsyncIterator[str]:
        try:
            while True:
                yield "a " * 100
        finally:
            await asyncio.Event().wait()

    async with serving(clinging, Settings(port=0, stall_timeout=0.2)) as served:
        await served.client(post("/chat"))
        await served.ended()
        seen = await scrape(served)
    assert seen("cancel_latency_seconds_count") == 1
    assert seen("cancel_latency_seconds_sum") >= 0.05


async def test_a_source_that_fails_is_counted_as_that() -> None:
    async with serving(MockSource()) as served:
        await ask(served, chat(tokens=5, fail_after=0))
        await served.ended()
        seen = await scrape(served)
    assert seen("streams_ended_total", outcome="source_failed") == 1
    assert seen("http_answers_total", status="5xx") == 1
    assert seen("time_to_first_token_seconds_count") == 0
    assert seen("requests_refused_total", reason="other") == 0


async def test_a_source_that_blocks_the_loop_shows_and_two_who_ask_see_it() -> None:
    async def rude(request: Request) -> AsyncIterator[str]:
        await asyncio.sleep(0)
        time.sleep(0.06)  # noqa: ASYNC251  # it is what must show
        yield "a"

    async with serving(rude) as served:
        await ask(served, chat())
        await served.ended()
        first, second = await asyncio.gather(scrape(served), scrape(served))
        third = await scrape(served)
    assert first("longest_hold_seconds") >= 0.06
    assert first("longest_hold_seconds") == second("longest_hold_seconds") == third("longest_hold_seconds")
    assert first("added_latency_seconds_sum") >= 0.06
    assert first("waiting_seconds_total", waiting_for="source") < 0.05


async def test_answers_that_are_not_streamed_show_while_they_are_made() -> None:
    made = asyncio.Event()

    async def late(request: Request) -> AsyncIterator[str]:
        await made.wait()
        yield "a"

    async with serving(late) as served:
        body = '{"messages":[{"role":"user","content":"a"}]}'
        client = await served.client(post("/v1/chat/completions", body))
        seen = await scraped(served, lambda seen: seen("whole_answers"))
        assert seen("streams_opened_total") == 1
        made.set()
        await client.read_until(b"chat.completion")
        assert (await scrape(served))("whole_answers") == 0


# --- refusals and limits -----------------------------------------------------------------------------------------


async def test_refusals_are_counted_by_reason_and_senseless_requests_are_none() -> None:
    async with serving(MockSource(), Settings(port=0, max_streams=1)) as served:
        client = await served.client(post("/chat", '{"prompt":"a","mock":{"tokens":null}}'))
        await client.read_until(b'"token"')
        assert (await ask(served, chat())).status == 503
        assert (await ask(served, post("/chat", "{}"))).status == 400
        assert (await ask(served, raw.get("/nowhere"))).status == 404
        assert (await ask(served, b"nonsense\r\n\r\n")).status == 400
        seen = await scrape(served)
        assert seen("requests_refused_total", reason="too_many_streams") == 1
        assert sum(seen("requests_refused_total", reason=reason) for reason in REASONS) == 1
        assert seen("http_answers_total", status="4xx") == 2
        assert seen("http_answers_total", status="5xx") == 1
        assert seen("limit", of="streams") == 1


def test_a_reason_that_is_not_known_counts_as_other() -> None:
    counts = Counts()
    counts.refused(TooManyStreams("full"))
    counts.refused(LimitReached("something new", code="brand_new"))
    counts.refused(BadRequest("nonsense"))
    counts.answered(0)
    assert {reason: count for reason, count in counts.refusals.items() if count} == {"too_many_streams": 1, "other": 1}
    assert sum(counts.answers.values()) == 0
    assert by_reason({"brand_new": 2, "shutdown": 1}) == {**dict.fromkeys(REASONS, 0), "other": 2, "shutdown": 1}


async def test_the_steps_against_too_much_memory_show() -> None:
    async with serving(MockSource()) as served:
        served.server.app.governor.stop()
        served.server.app.streams.admission.relief = Relief.PAUSE
        served.server.app.governor.cuts = 2
        seen = await scrape(served)
        assert [seen("memory_relief", step=step) for step in ("refuse", "pause", "cut")] == [1, 1, 0]
        assert seen("memory_cuts_total") == 2
        served.server.app.streams.admission.relief = Relief.NONE


async def test_each_users_part_shows_and_those_without_a_name_are_others() -> None:
    key, hashed = new_key()
    users = (UserSettings(name="ann", keys=(hashed,), max_streams=1), UserSettings(name="bob"), UserSettings(name="*"))
    settings = Settings(port=0, users=users, user_header="x-user", trusted_proxies="127.0.0.1")
    async with serving(MockSource(), settings) as served:
        body = '{"prompt":"a","mock":{"tokens":null,"tokens_per_second":200}}'
        client = await served.client(post("/chat", body, f"Authorization: Bearer {key}"))
        await client.read_until(b'"token"', 3)
        refused = await ask(served, raw.post("/chat", {"prompt": "a"}, Authorization=f"Bearer {key}"))
        assert refused.status == 429
        assert (await ask(served, raw.post("/chat", {"prompt": "a"}, Authorization="Bearer nobodys"))).status == 401
        mock = {"prompt": "a", "mock": {"tokens": 7, "tokens_per_second": None}}
        for name in ("somebody", "somebody-else"):
            assert (await ask(served, raw.post("/chat", mock, X_User=name))).status == 200
        await served.ended()
        await served.ended()
        seen = await scrape(served)
        assert [seen("user_streams", user=user) for user in ("ann", "bob", "other")] == [1, 0, 0]
        assert seen("user_tokens_total", user="ann", kind="generated") >= 3
        assert seen("user_tokens_total", user="bob", kind="generated") == 0
        assert seen("user_tokens_total", user="other", kind="generated") == 14
        assert seen("user_tokens_total", user="other", kind="delivered") == 14
        assert seen("user_refusals_total", user="ann", reason="too_many_streams") == 1
        assert seen("requests_refused_total", reason="user_streams") == 1
        assert seen("requests_refused_total", reason="too_many_streams") == 0, "the server has room"
        assert seen("requests_refused_total", reason="invalid_api_key") == 1
        assert "somebody" not in seen.text


async def test_each_upstream_and_redis_show() -> None:
    settings = everything()
    app = App(settings, RoutedSource(settings))
    assert isinstance(app.source, RoutedSource)
    assert app.redis is not None
    first, _ = app.source.upstreams
    first.counters.retries = 3
    first.counters.budget_refusals = 2
    app.redis.failures = 4
    seen = Scrape((await Metrics(app).text())[1].decode())
    assert [seen("upstream_retries_total", upstream=name) for name in ("first", "second")] == [3, 0]
    assert seen("upstream_budget_refusals_total", upstream="first") == 2
    assert seen("upstream_breaker_open", upstream="second") == 0
    assert (seen("redis_up"), seen("redis_failures_total")) == (1, 4)
    await app.redis.aclose()


# --- scraping under load -----------------------------------------------------------------------------------------


async def test_no_counter_falls_while_streams_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that ends while the others are looked at is counted once. Prometheus takes a fall for a restart."""
    monkeypatch.setattr("rawstream.server.metrics._AT_ONCE", 1)
    async with serving(MockSource()) as served:
        app = served.server.app
        metrics = Metrics(app)
        body = '{"prompt":"a","mock":{"tokens":%d,"tokens_per_second":400}}'
        for number in range(24):
            await served.client(post("/chat", body % (2 + 3 * number)))
        highest: dict[Any, float] = {}
        total = sum(2 + 3 * number for number in range(24))
        while app.streams.totals.outcomes["completed"] < 24:
            seen = Scrape((await metrics.text())[1].decode())
            for key, value in seen.samples.items():
                if key[0].startswith("rawstream_") and key[0].endswith(("_total", "_count", "_sum", "_bucket")):
                    assert value >= highest.get(key, 0.0), key
                    highest[key] = value
            assert seen("tokens_total", kind="generated") <= total
        seen = Scrape((await metrics.text())[1].decode())
        assert seen("tokens_total", kind="generated") == seen("tokens_total", kind="delivered") == total


async def test_five_thousand_streams_are_looked_at_in_many_turns() -> None:
    """A scrape gives way after each hundred streams and each family; whoever else is there gets those turns."""
    async with serving(MockSource()) as served:
        client = await served.client(post("/chat", '{"prompt":"a","mock":{"tokens":null}}'))
        await client.read_until(b'"token"')
        streams = served.server.app.streams
        (own, stream), *_ = streams._live.items()
        streams._live.update({-number: stream for number in range(4999)})
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        try:
            live = await Live.look(streams)
            assert turns >= 49
            assert sum(live.states.values()) == 5000
            turns = 0
            await Metrics(served.server.app).text()
            assert turns >= 49 + 20
        finally:
            counting.cancel()
            for key in [key for key in streams._live if key != own]:
                del streams._live[key]


async def test_many_scrapes_at_a_time_are_all_answered() -> None:
    async with serving(MockSource()) as served:
        await ask(served, chat(tokens=3))
        await served.ended()
        seen = await asyncio.gather(*(scrape(served) for _ in range(8)))
    assert {one("tokens_total", kind="generated") for one in seen} == {3}


# --- the admin port ----------------------------------------------------------------------------------------------


ADMIN = Settings(port=0, admin="127.0.0.1:0", drain_timeout=10)


def admin_port(served: Served) -> int:
    url = served.server.app.admin_url
    assert url is not None
    return int(url.rsplit(":", 1)[1])


async def test_the_admin_port_answers_the_operator_and_nobody_else() -> None:
    async with serving(MockSource(), ADMIN) as served:
        port = admin_port(served)
        for path in ("/metrics", "/debug/streams", "/healthz", "/readyz"):
            assert (await asyncio.to_thread(raw.ask, port, raw.get(path))).status == 200, path
        for path in ("/", "/stream", "/v1/models", "/streams/x"):
            assert (await asyncio.to_thread(raw.ask, port, raw.get(path))).status == 404, path
        assert (await asyncio.to_thread(raw.ask, port, chat())).status == 404
        for path in ("/metrics", "/debug/streams", "/debug/events"):
            refused = await ask(served, raw.get(path))
            assert (refused.status, refused.json()["code"]) == (403, "forbidden"), path
        assert (await ask(served, raw.get("/healthz"))).status == 200


async def test_operators_count_against_no_limit() -> None:
    """At the connection limit the operator still comes in, and is not one of those who fill it."""
    async with serving(MockSource(), Settings(port=0, admin="127.0.0.1:0", max_connections=1)) as served:
        port = admin_port(served)
        with Client(served.server.port) as client, Client(port) as first, Client(port) as second:
            assert (await asyncio.to_thread(client.ask, raw.get("/healthz"))).status == 200
            for operator in (first, second):
                seen = Scrape((await asyncio.to_thread(operator.ask, raw.get("/metrics"))).body.decode())
                assert seen("connections") == 1
                assert seen("limit", of="connections") == 1
                assert seen("http_answers_total", status="2xx") == 1, "scrapes of the admin port are nobody's requests"


async def test_the_admin_port_takes_so_many_connections_and_goes_on_when_one_leaves() -> None:
    async with serving(MockSource(), ADMIN) as served:
        app, port = served.server.app, admin_port(served)
        clients = await asyncio.to_thread(lambda: [Client(port) for _ in range(70)])
        try:
            await until(lambda: len(app.operators) == 64, "as many as there may be")
            waiting = clients[-1].send(raw.get("/healthz"))
            assert len(app.operators) == 64
            for client in clients[:10]:
                client.close()
            assert (await asyncio.to_thread(waiting.reply)).status == 200
        finally:
            for client in clients:
                client.close()
        await until(lambda: not app.operators, "all have left")


async def test_an_operator_sees_a_drain_to_its_end_and_does_not_hold_it_up() -> None:
    """The admin port is the last to close. Neither an idle connection nor a watcher of it keeps the server."""
    async with serving(MockSource(), ADMIN) as served:
        app, port = served.server.app, admin_port(served)
        client = await served.client(post("/chat", '{"prompt":"a","mock":{"tokens":null,"tokens_per_second":50}}'))
        await client.read_until(b'"token"')
        with Client(port) as keeps, Client(port) as watcher:
            assert (await asyncio.to_thread(keeps.ask, raw.get("/readyz"))).status == 200
            await asyncio.to_thread(watcher.send(raw.get("/debug/events?interval=50")).head)
            closing = asyncio.create_task(served.server.close())
            await until(lambda: app.draining, "it drains")
            for request in ("/readyz", "/metrics"):  # on the connection that it has, and on new ones
                for ask_it in (keeps.ask, lambda data: raw.ask(port, data)):
                    reply = await asyncio.to_thread(ask_it, raw.get(request))
                    assert reply.status == (503 if request == "/readyz" else 200)
            seen = Scrape(reply.body.decode())
            assert (seen("draining"), seen("streams", waiting_for="source")) == (1, 1)
            await until(lambda: len(app.operators) == 2, "those who were there stay")
            began = time.monotonic()
            client.reset()  # the last stream ends, and with it the drain
            async with asyncio.timeout(8):
                await closing
            assert time.monotonic() - began < 5
            assert await asyncio.to_thread(keeps.rest) == b""
            await asyncio.to_thread(lambda: [*watcher.parts()])
        assert not app.operators
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(raw.ask, port, raw.get("/healthz"))


async def test_the_main_port_is_scraped_while_it_drains() -> None:
    async with serving(MockSource(), Settings(port=0, drain_timeout=10)) as served:
        stream = await served.client(post("/chat", '{"prompt":"a","mock":{"tokens":null}}'))
        await stream.read_until(b'"token"')
        with Client(served.server.port) as scraper:
            scraper.send(b"GET /metr")
            await until(
                lambda: any(isinstance(one, Connection) and one.kept for one in served.server.app.connections),
                "half a request has come",
            )
            closing = asyncio.create_task(served.server.close())
            await until(lambda: served.server.app.draining, "it drains")
            reply = await asyncio.to_thread(scraper.ask, b"ics HTTP/1.1\r\nHost: test\r\n\r\n")
            assert Scrape(reply.body.decode())("draining") == 1
            served.server.hurry()
            await closing


def test_the_admin_port_is_announced_after_the_main_one() -> None:
    with ServerProcess("--admin", "127.0.0.1:0", log_format="text") as server:
        assert server.lines[0].startswith("rawstream listening on http://127.0.0.1:")
        assert server.lines[1] == f"rawstream admin on http://127.0.0.1:{server.admin_port}"
        eventually(lambda: server.ask_operator(raw.get("/metrics")).status == 200)
        server.assert_steady()


def test_the_admin_port_may_be_on_ipv6() -> None:
    with ServerProcess("--admin", "[::1]:0", wait=False) as server:
        line = server.wait_line(lambda line: line.startswith("rawstream admin on "), within=20)
        assert line.startswith("rawstream admin on http://[::1]:")
        with Client(int(line.rsplit(":", 1)[1]), host="::1") as client:
            assert client.ask(raw.get("/metrics")).status == 200


@pytest.mark.parametrize(
    "address", ["9100", "127.0.0.1", "127.0.0.1:99999", "::1:9100", "127.0.0.1:http", ":9100", "a b:1"]
)
def test_what_is_no_address_is_said_in_one_line(address: str) -> None:
    with ServerProcess("--admin", address, wait=False) as server:
        assert server.wait(within=20) == 2
        (line,) = server.lines
        assert "admin" in line
        assert address in line
        assert "HOST:PORT" in line


def test_an_admin_port_that_is_taken_is_said_in_one_line_and_nothing_was_begun() -> None:
    with ServerProcess() as other:
        with ServerProcess("--admin", f"127.0.0.1:{other.port}", wait=False) as server:
            assert server.wait(within=20) == 1
            assert server.lines == [f"rawstream: cannot listen on 127.0.0.1:{other.port}: Address already in use"]


async def test_a_main_port_that_is_taken_leaves_no_admin_port_behind() -> None:
    async with serving(MockSource()) as served:
        app = App(Settings(port=served.server.port, admin="127.0.0.1:0"), MockSource())
        with pytest.raises(OSError, match="cannot listen"):
            await app.start()
        assert app.admin_url is None

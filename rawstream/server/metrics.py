"""``/metrics``: what a process counts, in Prometheus' text format.

Rule 1: nothing is counted for metrics while tokens flow: plain numbers that are there anyway are read when asked for.
Rule 2: labels are few and closed: places, outcomes, reasons, upstreams and users of the configuration. Never a model,
        a path, an address or an id.
Rule 3: a scrape does not hold the loop: live streams are looked at some at a time.
Rule 4: names and buckets are those that dashboards of model servers know (vLLM's), where there are such.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from rawstream.flow.timings import Histogram
from rawstream.limits.admission import Admission, Relief
from rawstream.model import Source
from rawstream.server.streams import Streams
from rawstream.sources.breaker import State
from rawstream.sources.router import RoutedSource

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_AT_ONCE: Final = 100
"""Live streams that are looked at before others get their turn (3 µs each)."""
_PLACES: Final = ("source", "transport", "kernel_unsent", "kernel_unacked")
_STATES: Final = ("source", "client", "network", "running")


class Process(Protocol):
    """What the metrics need to know of the server they are of."""

    streams: Streams
    source: Source

    @property
    def memory_cuts(self) -> int: ...

    @property
    def open_connections(self) -> int: ...

    @property
    def refusals(self) -> dict[str, int]:
        """Requests that were refused before a stream, by reason."""
        ...


class Live:
    """What the streams that run at the moment come to."""

    def __init__(self) -> None:
        self.tokens = 0
        self.bytes = 0
        self.waiting = {"source": 0.0, "client": 0.0, "network": 0.0}
        self.buffered = dict.fromkeys(_PLACES, 0)
        self.states = dict.fromkeys(_STATES, 0)

    @classmethod
    async def look(cls, streams: Streams) -> Live:
        """Look at all live streams. Cancel-safe."""
        live = cls()
        for number, stream in enumerate(streams, start=1):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            meter = stream.meter
            live.tokens += meter.tokens
            live.bytes += meter.bytes
            source, client = meter.seconds(monotonic())
            by_client, by_network = stream.split_wait(client)
            live.waiting["source"] += source
            live.waiting["client"] += by_client
            live.waiting["network"] += by_network
            live.states[stream.waiting_for() or "running"] += 1
            for place, held in stream.buffered().items():
                live.buffered[place] += held or 0
        return live


class Metrics:
    """The metrics of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._waited = {"source": 0.0, "client": 0.0, "network": 0.0}
        self._system = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._system)

    async def text(self) -> bytes:
        """The exposition. Cancel-safe."""
        live = await Live.look(self._process.streams)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected(self.families(live)))
        return generate_latest(registry) + generate_latest(self._system)

    def families(self, live: Live) -> Iterator[Metric]:
        """All metrics, with ``live`` added to what has ended."""
        process, streams = self._process, self._process.streams
        yield from self._of_streams(live)
        yield from _of_timings(streams)
        yield _gauge("connections", "Open client connections.", process.open_connections)
        yield _counters(
            "requests_refused", "Requests refused before a stream began, by reason.", "reason", process.refusals
        )
        yield from _of_memory(streams.admission, process.memory_cuts, live)
        if isinstance(process.source, RoutedSource):
            yield from _of_upstreams(process.source)

    def _of_streams(self, live: Live) -> Iterator[Metric]:
        streams = self._process.streams
        totals, admission = streams.totals, streams.admission
        yield _gauges(
            "streams", "Streams that run, by whom they wait for (running: for nobody).", "waiting_for", live.states
        )
        yield _counter("streams_opened", "Streams and whole answers that were admitted.", admission.opened)
        yield _counters("streams_ended", "Streams that ended, by outcome.", "outcome", totals.outcomes)
        abandoned = totals.tokens - totals.delivered
        tokens = CounterMetricFamily(
            "rawstream_tokens",
            "Tokens: generated (taken from the source), delivered (taken by the client's kernel), abandoned (neither "
            "delivered nor going to be).",
            labels=["kind"],
        )
        tokens.add_metric(["generated"], totals.tokens + live.tokens)
        tokens.add_metric(["delivered"], totals.delivered)
        tokens.add_metric(["abandoned"], abandoned)
        yield tokens
        yield _counter("stream_bytes", "Bytes of event streams written.", totals.bytes + live.bytes)
        waited = CounterMetricFamily(
            "rawstream_waiting_seconds",
            "Seconds that streams waited, by whom for: network and client are told apart by the kernel (TCP_INFO).",
            labels=["waiting_for"],
        )
        for whom, seconds in live.waiting.items():
            # A counter never falls, though the kernel may lay a wait at another door afterwards.
            self._waited[whom] = max(self._waited[whom], seconds + totals.waiting[whom])
            waited.add_metric([whom], self._waited[whom])
        yield waited
        yield _gauges("buffered_bytes", "Bytes held for running streams, by place.", "place", live.buffered)


class _Collected:
    """A collector of what was collected."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(f"rawstream_{name}", help, value=value)


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(f"rawstream_{name}", help, value=value)


def _gauges(name: str, help: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(f"rawstream_{name}", help, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counters(name: str, help: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"rawstream_{name}", help, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _histogram(name: str, help: str, seen: Histogram) -> Metric:
    buckets: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip([*map(repr, seen.bounds), "+Inf"], seen.counts, strict=True):
        below += count
        buckets.append((bound, below))
    return HistogramMetricFamily(f"rawstream_{name}", help, buckets=buckets, sum_value=seen.total)


def _of_timings(streams: Streams) -> Iterator[Metric]:
    timings = streams.timings
    yield _histogram(
        "time_to_first_token_seconds",
        "From the admission of a stream to the write of its first token.",
        timings.first_token,
    )
    yield _histogram(
        "inter_token_latency_seconds", "Between the writes of two tokens of a stream.", timings.inter_token
    )
    yield _histogram("e2e_request_latency_seconds", "Life of a stream.", timings.whole)
    yield _histogram(
        "added_latency_seconds",
        "What this server added: from the moment that a write's first token was at hand to the write.",
        timings.added,
    )
    yield _histogram(
        "cancel_latency_seconds",
        "From the news that a client has gone, or that a stream must end, until its source was closed.",
        timings.cancel,
    )
    yield _gauge(
        "longest_hold_seconds",
        "Longest time that one stream held the event loop, since the last scrape.",
        timings.take_longest_hold(),
    )


def _of_memory(admission: Admission, cuts: int, live: Live) -> Iterator[Metric]:
    yield _gauges(
        "memory_relief",
        "The steps that are taken against too much memory: 1 for each that is.",
        "step",
        {step.name.lower(): int(admission.relief >= step) for step in Relief if step is not Relief.NONE},
    )
    yield _counter("memory_cuts", "Streams that were cut because too much was buffered in all.", cuts)


def _of_upstreams(source: RoutedSource) -> Iterator[Metric]:
    told = {
        "requests": "Requests that went to an upstream at least once.",
        "attempts": "Attempts at an upstream.",
        "failures": "Attempts and streams that failed through an upstream's fault.",
        "retries": "Times a request came back to an upstream.",
        "fallbacks": "Requests that came to an upstream because another one failed.",
        "openings": "Times the circuit breaker of an upstream opened.",
        "budget_refusals": "Retries that the retry budget refused.",
    }
    for name, help in told.items():
        values = {upstream.name: int(getattr(upstream.counters, name)) for upstream in source.upstreams}
        yield _counters(f"upstream_{name}", help, "upstream", values)
    open_ones = {upstream.name: int(upstream.breaker.state is not State.CLOSED) for upstream in source.upstreams}
    yield _gauges("upstream_breaker_open", "1 while an upstream is left alone.", "upstream", open_ones)
    connections = {upstream.name: upstream.source.client.open_connections for upstream in source.upstreams}
    yield _gauges("upstream_connections", "Connections to an upstream, idle ones included.", "upstream", connections)

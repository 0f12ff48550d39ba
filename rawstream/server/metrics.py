"""``/metrics``: what a process counts, for Prometheus.

Rule 1: nothing is counted for metrics while tokens flow: plain numbers that are there anyway are read when asked for.
Rule 2: labels are few and closed: places, outcomes, reasons, upstreams and users of the configuration. Never a model,
        a path, an address or an id.
Rule 3: a scrape does not hold the loop: live streams are looked at some at a time, families are written one at a time.
Rule 4: names and buckets are those that dashboards of model servers know (vLLM's), where there are such.
Rule 5: a counter never falls. What runs is added to what had ended when the look began, so that a stream which ends
        meanwhile is not counted twice; where the kernel changes its mind, the larger figure stays.

The lab's streams count like all others. (There is no lab on a server that others can reach, unless it is asked for.)
"""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
from collections.abc import Iterator
from time import monotonic
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from rawstream.flow import kernel
from rawstream.flow.timings import Timings
from rawstream.limits.admission import Admission, Relief
from rawstream.limits.redis_link import RedisLink
from rawstream.model import Source
from rawstream.server.counts import Counts, by_reason
from rawstream.server.exposition import Family, Format, counter, counters, gauge, gauges, histogram
from rawstream.server.generations import Generations
from rawstream.server.stream import Stream
from rawstream.server.streams import Streams
from rawstream.server.totals import OTHER, Totals, UserTotals
from rawstream.settings import Settings
from rawstream.sources.breaker import State
from rawstream.sources.router import RoutedSource

_AT_ONCE: Final = 100
"""Live streams that are looked at before others get their turn (10 µs each)."""
PLACES: Final = ("source", "transport", "kernel_unsent", "kernel_unacked") if kernel.LINUX else ("source", "transport")
"""Where bytes can wait, as far as this system can tell."""
WAITS: Final = ("source", "client", "network")


class Process(Protocol):
    """What the metrics need to know of the server they are of."""

    settings: Settings
    streams: Streams
    source: Source
    counts: Counts
    draining: bool
    max_connections: int
    redis: RedisLink | None

    @property
    def memory_cuts(self) -> int: ...

    @property
    def open_connections(self) -> int: ...


class LiveUser:
    """One user's part of it."""

    __slots__ = ("abandoned", "delivered", "streams", "tokens")

    def __init__(self, totals: UserTotals) -> None:
        self.tokens = totals.tokens
        self.delivered = totals.delivered
        self.abandoned = totals.tokens - totals.delivered
        self.streams = 0


class Live:
    """What has ended so far, and what the streams that run add to it."""

    def __init__(self, streams: Streams) -> None:
        """As of what has ended."""
        totals = streams.totals
        self.now = monotonic()
        self.tokens = totals.tokens + streams.generations.tokens()
        self.delivered = totals.delivered
        self.abandoned = totals.tokens - totals.delivered
        self.bytes = totals.bytes
        self.waiting = dict(totals.waiting)
        self.buffered = dict.fromkeys(PLACES, 0)
        self.states = dict.fromkeys((*WAITS, "running"), 0)
        self.users = {name: LiveUser(of) for name, of in totals.users.items()}

    @classmethod
    async def look(cls, streams: Streams) -> Live:
        """Look at all live streams. Cancel-safe."""
        live = cls(streams)
        # Those that run now: what ends during the look is not in the totals that were taken, and is counted here.
        for number, stream in enumerate(streams, start=1):
            live._add(stream)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        return live

    def _add(self, stream: Stream) -> None:
        meter = stream.meter
        stream.delivery.settle()
        # What is read from a log was generated once, and counts when its generation has ended.
        own = stream.generation is None
        tokens = meter.tokens if own else 0
        self.tokens += tokens
        self.bytes += meter.bytes
        source, client = meter.seconds(monotonic())
        by_client, by_network = stream.split_wait(client)
        self.waiting["source"] += source
        self.waiting["client"] += by_client
        self.waiting["network"] += by_network
        self.states[stream.waiting_for() or "running"] += 1
        buffered = stream.buffered()
        for place in PLACES:
            if own or place != "source":
                self.buffered[place] += buffered[place] or 0
        if own:
            self.delivered += stream.delivered(sum(buffered[place] or 0 for place in PLACES if place != "source"))
        if stream.user is not None:
            user = self.users.get(stream.user) or self.users.get(OTHER)
            if user is not None:
                user.streams += 1
                user.tokens += tokens


class Metrics:
    """The metrics of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._most: dict[tuple[str, str], float] = {}
        """What estimated counters were at most."""
        self._system = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._system)
        PlatformCollector(registry=self._system)

    async def text(self, accept: str | None = None) -> tuple[str, bytes]:
        """Content type and exposition, for a request with that ``Accept``. Cancel-safe."""
        live = await Live.look(self._process.streams)
        form = Format(accept)
        parts: list[bytes] = []
        for part in form.parts(self.families(live)):
            parts.append(part)
            await asyncio.sleep(0)
        parts += form.written(self._system.collect())
        return form.content_type, b"".join([*parts, form.end])

    def families(self, live: Live) -> Iterator[Family]:
        """All metrics of ours, with what ``live`` saw."""
        process = self._process
        yield from self._of_streams(live)
        yield from _of_generations(process.streams.generations)
        yield from _of_timings(process.streams.timings, live.now)
        yield from _of_requests(process)
        yield from _of_memory(process.streams.admission, process.memory_cuts)
        if live.users:
            yield from _of_users(process.streams.totals, live)
        if isinstance(process.source, RoutedSource):
            yield from _of_upstreams(process.source)
        if process.redis is not None:
            yield gauge("redis_up", "0 while Redis does not answer and is left alone.", int(not process.redis.gone))
            yield counter("redis_failures", "Redis commands that failed or were not tried.", process.redis.failures)

    def _of_streams(self, live: Live) -> Iterator[Family]:
        streams = self._process.streams
        yield gauges(
            "streams",
            "Streams that run, by whom they wait for (running: for nobody). Client and network are told apart by "
            "the kernel (TCP_INFO).",
            "waiting_for",
            live.states,
        )
        yield gauge("whole_answers", "Answers that are not streamed and are being made.", len(streams.whole))
        yield counter("streams_opened", "Streams and whole answers that were admitted.", streams.admission.opened)
        yield counters("streams_ended", "Streams that ended, by outcome.", "outcome", streams.totals.outcomes)
        yield counters(
            "tokens",
            "Tokens of streams: generated (taken from the source), delivered (taken by the client's kernel), abandoned "
            "(of streams that ended: generated and not delivered).",
            "kind",
            {
                "generated": live.tokens,
                "delivered": self._risen("tokens", "delivered", live.delivered),
                "abandoned": live.abandoned,
            },
        )
        yield counter("stream_bytes", "Bytes of event streams written.", live.bytes)
        yield counters(
            "waiting_seconds",
            "Seconds that streams waited, by whom for. Network: the kernel was busy with what was not acknowledged "
            "(TCP_INFO's busy) and the client's window was open (rwnd_limited); client: the rest of the wait for room.",
            "waiting_for",
            {whom: self._risen("waiting", whom, seconds) for whom, seconds in live.waiting.items()},
        )
        yield gauges("buffered_bytes", "Bytes held for streams that run, by place.", "place", live.buffered)

    def _risen(self, name: str, key: str, value: float) -> float:
        """``value``, or what it was before where that was more."""
        most = self._most[name, key] = max(self._most.get((name, key), 0), value)
        return most


def _of_generations(generations: Generations) -> Iterator[Family]:
    alone = len(generations.alone())
    states = {"read": generations.running - alone, "alone": alone, "ended": len(generations) - generations.running}
    yield gauges("generations", "Resumable answers that are kept: read, without a reader, ended.", "state", states)
    yield counter("generations_opened", "Resumable answers that were begun.", generations.opened)
    yield counter("generations_resumed", "Readers that came to an answer which had begun before.", generations.resumed)
    yield counter("generations_refused", "Answers that were to be resumable, and could not be.", generations.refused)
    yield gauge("replay_bytes", "Bytes kept for readers that come back.", generations.held)


def _of_timings(timings: Timings, now: float) -> Iterator[Family]:
    yield histogram(
        "time_to_first_token_seconds",
        "From the admission of a stream to the write of its first token.",
        timings.first_token,
    )
    yield histogram(
        "inter_token_latency_seconds",
        "Between the writes of two tokens of a stream; those that are written together share the time.",
        timings.inter_token,
    )
    yield histogram(
        "e2e_request_latency_seconds",
        "Life of a stream, however it ended: from its admission to its end.",
        timings.whole,
    )
    yield histogram(
        "added_latency_seconds",
        "What this server added to a write of tokens: from when the stream got the loop, with the news that they are "
        "made of, to the write.",
        timings.added,
    )
    yield histogram(
        "cancel_latency_seconds",
        "From the news that a client has gone, or that a stream must end, until its source was closed.",
        timings.cancel,
    )
    yield gauge(
        "longest_hold_seconds",
        "Longest time that one stream held the event loop up to a write, in the last minute or two; 0: 50 µs at most.",
        timings.held.look(now),
        joined="max",
    )


def _of_requests(process: Process) -> Iterator[Family]:
    yield counters("http_answers", "Requests answered, by class of status.", "status", process.counts.answers)
    yield counters(
        "requests_refused",
        "Requests that made sense and were refused before they came to anything, by reason.",
        "reason",
        process.counts.refusals,
    )
    yield counters(
        "http2_violations",
        "Streams and connections of HTTP/2 that were cut because their client broke its rules, by reason.",
        "reason",
        process.counts.http2,
    )
    yield gauge("connections", "Open client connections; the admin port's do not count.", process.open_connections)
    settings = process.settings
    limits = {
        "streams": settings.max_streams,
        "connections": process.max_connections,
        "buffered_bytes": settings.max_buffered_bytes,
    }
    yield gauges("limit", "How many there may be, for comparison.", "of", limits)
    yield gauge("draining", "1 from the signal to end until the end.", int(process.draining), joined="max")
    yield gauges("build_info", "Always 1.", "version", {_version(): 1}, joined="max")


@functools.cache
def _version() -> str:
    try:
        return importlib.metadata.version("rawstream")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from its source, without having been installed


def _of_memory(admission: Admission, cuts: int) -> Iterator[Family]:
    yield gauges(
        "memory_relief",
        "The steps that are taken against too much memory: 1 for each that is.",
        "step",
        {step.name.lower(): int(admission.relief >= step) for step in Relief if step is not Relief.NONE},
        joined="max",
    )
    yield counter("memory_cuts", "Streams that were cut because too much was buffered in all.", cuts)


def _of_users(totals: Totals, live: Live) -> Iterator[Family]:
    tokens: dict[tuple[str, ...], float] = {
        (name, kind): float(getattr(user, field))
        for name, user in live.users.items()
        for kind, field in (("generated", "tokens"), ("delivered", "delivered"), ("abandoned", "abandoned"))
    }
    yield Family(
        "user_tokens",
        "counter",
        "Tokens by user: generated; delivered and abandoned of what has ended. Answers that are not streamed count. "
        "Users that the configuration does not name are 'other'.",
        ("user", "kind"),
        tokens,
    )
    streams = {name: user.streams for name, user in live.users.items()}
    yield gauges("user_streams", "Streams that run, by user.", "user", streams)
    refusals: dict[tuple[str, ...], float] = {
        (name, reason): float(count)
        for name in live.users
        for reason, count in by_reason(totals.users[name].refusals).items()
    }
    yield Family("user_refusals", "counter", "Requests refused, by user and reason.", ("user", "reason"), refusals)


def _of_upstreams(source: RoutedSource) -> Iterator[Family]:
    told = {
        "requests": "Requests that went to an upstream at least once.",
        "attempts": "Attempts at an upstream.",
        "failures": "Attempts and streams that failed through an upstream's fault.",
        "retries": "Times a request came back to an upstream.",
        "fallbacks": "Requests that came to an upstream because another one failed.",
        "openings": "Times the circuit breaker of an upstream opened.",
        "budget_refusals": "Retries that the retry budget of an upstream refused.",
    }
    upstreams = source.upstreams
    for name, help in told.items():
        values = {upstream.name: int(getattr(upstream.counters, name)) for upstream in upstreams}
        yield counters(f"upstream_{name}", help, "upstream", values)
    left_alone = {upstream.name: int(upstream.breaker.state is not State.CLOSED) for upstream in upstreams}
    yield gauges("upstream_breaker_open", "1 while an upstream is left alone.", "upstream", left_alone, joined="max")
    connections = {upstream.name: upstream.source.client.open_connections for upstream in upstreams}
    yield gauges("upstream_connections", "Connections to an upstream, idle ones included.", "upstream", connections)

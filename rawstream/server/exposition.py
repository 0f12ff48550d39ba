"""Metrics as plain numbers, and how they are written for Prometheus.

Rule 1: a family is names and numbers and nothing else: those of several processes can be put together, as ``joined``
        says, before they are written.
Rule 2: the text is ``prometheus_client``'s work, one family at a time, so that a scrape gives way in between.

Written are the text format 0.0.4, and OpenMetrics 1.0.0 for who asks for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from rawstream.flow.timings import Histogram

PREFIX: Final = "rawstream_"
_OPENMETRICS: Final = "application/openmetrics-text"
_OPENMETRICS_CONTENT_TYPE: Final = f"{_OPENMETRICS}; version=1.0.0; charset=utf-8"
_END: Final = b"# EOF\n"


@dataclasses.dataclass(slots=True)
class Family:
    """Numbers of one name, by the values of its labels."""

    name: str
    """Without the prefix, and without ``_total``."""
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    numbers: dict[tuple[str, ...], float] = dataclasses.field(default_factory=dict)
    histogram: Histogram | None = None
    """The numbers of a histogram, which has no labels."""
    joined: Literal["sum", "max"] = "sum"
    """What the numbers of several processes come to."""

    @property
    def full_name(self) -> str:
        """As it is written."""
        return f"{PREFIX}{self.name}_total" if self.kind == "counter" else PREFIX + self.name


def counter(name: str, help: str, value: float) -> Family:
    """A counter without labels."""
    return Family(name, "counter", help, numbers={(): value})


def counters(name: str, help: str, label: str, values: Mapping[str, float]) -> Family:
    """A counter by one label."""
    return Family(name, "counter", help, (label,), {(key,): value for key, value in values.items()})


def gauge(name: str, help: str, value: float, joined: Literal["sum", "max"] = "sum") -> Family:
    """A gauge without labels."""
    return Family(name, "gauge", help, numbers={(): value}, joined=joined)


def gauges(
    name: str, help: str, label: str, values: Mapping[str, float], joined: Literal["sum", "max"] = "sum"
) -> Family:
    """A gauge by one label."""
    return Family(name, "gauge", help, (label,), {(key,): value for key, value in values.items()}, joined=joined)


def histogram(name: str, help: str, seen: Histogram) -> Family:
    """A histogram."""
    return Family(name, "histogram", help, histogram=seen)


def _metric(family: Family) -> Metric:
    name, seen = PREFIX + family.name, family.histogram
    if seen is not None:
        buckets: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip([*map(repr, seen.bounds), "+Inf"], seen.counts, strict=True):
            below += count
            buckets.append((bound, below))
        return HistogramMetricFamily(name, family.help, buckets=buckets, sum_value=seen.total)
    made = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(
        name, family.help, labels=family.labels
    )
    for values, number in family.numbers.items():
        made.add_metric(values, number)
    return made


class _Collected(Collector):
    """A collector of what was collected."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class Format:
    """One of the two ways to write metrics."""

    def __init__(self, accept: str | None) -> None:
        """``accept``: the request's header. OpenMetrics for who names it, the text format for all others."""
        media = [part.partition(";")[0].strip().lower() for part in (accept or "").split(",")]
        self._is_open = _OPENMETRICS in media
        self.content_type = _OPENMETRICS_CONTENT_TYPE if self._is_open else CONTENT_TYPE_PLAIN_0_0_4

    def parts(self, families: Iterable[Family]) -> Iterator[bytes]:
        """The text of ``families``, one at a time."""
        return self.written(map(_metric, families))

    def written(self, metrics: Iterable[Metric]) -> Iterator[bytes]:
        """The text of what ``prometheus_client`` has collected already, one at a time."""
        for metric in metrics:
            one = _Collected([metric])
            if self._is_open:
                text: bytes = openmetrics.generate_latest(one)  # type: ignore[no-untyped-call]  # has no annotations
                yield text.removesuffix(_END)
            else:
                yield generate_latest(one)

    @property
    def end(self) -> bytes:
        """What follows the last one."""
        return _END if self._is_open else b""

"""What a scenario is, and what all of them share.

Rule 1: one small file each. It says what is done and why, how large it is at each scale, how one peer is measured once,
        what the columns mean, and what must be reached.
Rule 2: workloads are fixed here. A figure that is missed is a reason to change the product, never the workload.
"""

from __future__ import annotations

import abc
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from bench.host import Cores
from bench.netns import ThinPipe
from bench.peers import Peer
from bench.programs import Generator, Upstream
from bench.results import Measurement
from bench.sample import core_seconds
from bench.serving import Server, chat_request, completion_request

Scale = Literal["full", "short", "toy"]

PATIENT = {"RAWSTREAM_STALL_TIMEOUT": "3600"}
"""Where stalled clients are the workload, rawstream must not cut them after its default 30 s."""

PATIENT_TEXT = (
    "rawstream runs with `RAWSTREAM_STALL_TIMEOUT=3600` here: what is measured is what it *holds*, not that it cuts a "
    "client that reads nothing after 30 s, its default."
)


@dataclass(frozen=True)
class Column:
    """One figure of a table."""

    key: str
    label: str
    unit: str
    better: Literal["less", "more"] | None = "less"
    digits: int = 1
    ratio: bool = False
    """Show it against rawstream's too."""


@dataclass(frozen=True)
class Goal:
    """What rawstream must reach: a limit, or a multiple of another peer's figure in the same run."""

    part: str
    key: str
    relation: Literal["<=", ">="]
    limit: float
    label: str
    of: str | None = None
    """The peer whose figure times ``limit`` is the bound; None: ``limit`` itself is."""
    peer: str = "rawstream"


@dataclass
class Bench:
    """What a scenario measures with."""

    cores: Cores
    expected: Path
    scale: Scale = "full"
    guard: float = 3 * 1024**3
    """A server that holds more bytes than this (process and kernel) is ended: it has shown what it does."""
    stretch: float = 1.0
    """Where a run has a budget, durations are multiplied by this."""
    python_generator: bool = False
    foreign: float = 0.0
    """Share of the server's core that other programs used during the latest run: they disturb it."""
    tick: Callable[[str], None] = field(default=lambda text: None)
    """Tells the person who waits what is going on."""

    def lasting(self, seconds: Mapping[str, float]) -> float:
        """How long something lasts at this scale, and in this budget."""
        return lasting(seconds, self.scale, self.stretch)

    @contextlib.contextmanager
    def server(
        self,
        peer: Peer,
        *,
        env: Mapping[str, str] | None = None,
        upstream: Upstream | None = None,
        pipe: ThinPipe | None = None,
        warm: bool = True,
    ) -> Iterator[Server]:
        """The peer, started, warmed up by 20 short answers, and ended afterwards."""
        with Server(
            peer,
            self.cores.server,
            env=env,
            upstream_url=upstream.url if upstream else None,
            namespace=pipe.server if pipe else None,
        ) as server:
            if warm:
                if upstream:
                    upstream.answer(tokens=20, rate=None)
                    server.warm_up([completion_request(peer.paths["completions"], key=peer.key)])
                else:
                    mock = {"tokens": 20, "tokens_per_second": None, "suspend": True}
                    server.warm_up([chat_request(peer.paths["chat"], mock, key=peer.key)])
            began, busy, used = time.monotonic(), core_seconds(self.cores.server), server.cpu()
            yield server
            if server.alive:
                others = core_seconds(self.cores.server) - busy - (server.cpu() - used)
                self.foreign = max(0.0, others / (time.monotonic() - began))

    def generator(self, *, pipe: ThinPipe | None = None, tls: bool = False) -> Generator:
        """``tls``: its groups may say ``tls=1``; then it is the program in C, whatever was asked for."""
        return Generator(
            self.cores.generator,
            self.expected,
            python=self.python_generator,
            tls=tls,
            prefix=pipe.prefix(pipe.client) if pipe else (),
        )

    def upstream(self) -> Upstream:
        return Upstream(self.cores.upstream, self.expected)


def lasting(seconds: Mapping[str, float], scale: Scale, stretch: float) -> float:
    """So many seconds, multiplied by ``stretch``; what is 3 s or less stays as it is."""
    return max(min(seconds[scale], 3.0), seconds[scale] * stretch)


class Scenario(abc.ABC):
    """One question, asked of every peer in the same way."""

    name: ClassVar[str]
    title: ClassVar[str]
    about: ClassVar[str]
    """What is done, with which settings, and why: it stands above the table."""
    columns: ClassVar[Sequence[Column]]
    goals: ClassVar[Sequence[Goal]] = ()
    words: ClassVar[Sequence[tuple[str, str]]] = ()
    """Columns that hold words: (key, label)."""
    part_titles: ClassVar[Mapping[str, str]] = {}
    wins: ClassVar[str] = ""
    """Why a peer may be ahead here."""
    repeats: ClassVar[Mapping[str, int]] = {"full": 3, "short": 1, "toy": 1}
    series: ClassVar[Sequence[tuple[str, str, str]]] = ()
    """Plots over time: (series key, title, unit)."""
    bars: ClassVar[Sequence[str]] = ()
    """Columns that are plotted as bars, one plot per part."""
    log_bars: ClassVar[bool] = False
    us: ClassVar[Sequence[str]] = ("rawstream", "rawstream-gateway")
    """Which peer is rawstream itself: the first of these that takes part."""
    for_all: ClassVar[bool] = False
    """No peer is left out, however short a run's budget is."""

    @abc.abstractmethod
    def parts(self, scale: Scale) -> Sequence[str]:
        """The parts that are measured at this scale."""

    def wants(self, peer: Peer, part: str) -> bool:
        """Whether this peer takes part: every server and floor, and rawstream itself, unless said otherwise."""
        return peer.kind in ("server", "floor") or peer.name == "rawstream"

    @abc.abstractmethod
    def measure(self, bench: Bench, peer: Peer, part: str, found: Measurement) -> None:
        """Measure this peer once and put what was found into ``found``."""

    @abc.abstractmethod
    def estimate(self, scale: Scale, part: str, stretch: float) -> float:
        """Seconds that one measurement of a part takes on a quiet machine, roughly, start and warm-up included."""


def check_answers(found: Measurement, result: Mapping[str, Any], *, groups: Sequence[str] | None = None) -> None:
    """A fast wrong answer is a failure: note what was wrong, missing, refused or cut."""
    for name, group in result["groups"].items():
        if groups is not None and name not in groups:
            continue
        bad = {key: group[key] for key in ("wrong", "bad_status", "failed", "cut") if group[key]}
        if bad:
            what = ", ".join(f"{count} {key.replace('_', ' ')}" for key, count in bad.items())
            found.failure = f"{name}: {what} of {group['connections']} ({group['first_wrong']})"


@dataclass(frozen=True)
class Window:
    """What happened between two looks at server and generator."""

    tokens: int
    seconds: float
    server_cpu: float
    generator_cpu: float
    """Share of one core, 0 to 1."""
    writes: int
    """write() calls of the server."""
    packets: int
    """Packets with data that the server's kernel sent on the connections that are open."""

    @property
    def us_per_token(self) -> float:
        return self.server_cpu / self.tokens * 1e6 if self.tokens else 0.0


def window(server: Server, generator: Generator, seconds: float, found: Measurement) -> Window:
    """Measure CPU and tokens for so many seconds from now; marks generator-bound and saturated runs."""
    packets_before, writes_before = server.packets(), server.writes()
    before, cpu_before = generator.snap(), server.cpu()
    time.sleep(seconds)
    after, cpu_after = generator.snap(), server.cpu()
    writes, packets = server.writes() - writes_before, server.packets() - packets_before
    wall = after["seconds"] - before["seconds"]
    made = Window(
        tokens=tokens_of(after) - tokens_of(before),
        seconds=wall,
        server_cpu=cpu_after - cpu_before,
        generator_cpu=(after["cpu_seconds"] - before["cpu_seconds"]) / wall,
        writes=writes,
        packets=packets,
    )
    found.values["generator_cpu"] = round(made.generator_cpu, 3)
    found.values["server_cpu"] = round(made.server_cpu / wall, 3)
    mark_bottleneck(found, made.generator_cpu)
    return made


def mark_bottleneck(found: Measurement, generator_cpu: float) -> None:
    """Mark a run whose generator had no time left: the figure is the generator's, not the server's."""
    if generator_cpu >= 0.9 and "generator-bound" not in found.marks:
        found.marks.append("generator-bound")


def wait_until_streaming(generator: Generator, found: Measurement, within: float = 20.0) -> None:
    """Wait until every stream has begun; mark the run when that takes longer (seconds)."""
    if generator.streaming(within) is None:
        found.marks.append(f"not every stream had its first token after {within:g} s")


def ended(group: Mapping[str, Any]) -> int:
    """How many of a group's answers have come to an end, good or bad."""
    return sum(int(group[key]) for key in ("completed", "cut", "wrong", "bad_status", "failed"))


def tokens_of(snap: Mapping[str, Any]) -> int:
    """Tokens of all groups together."""
    return sum(int(group["tokens"]) for group in snap["groups"].values())


def ms(us: float) -> float:
    return us / 1000.0

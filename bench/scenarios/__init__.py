"""Every scenario by name, in the order of the report. One scenario more is one small file and one line here."""

from __future__ import annotations

from bench.scenarios.base import Scenario
from bench.scenarios.control import Control
from bench.scenarios.everything import Everything
from bench.scenarios.gateway import Gateway
from bench.scenarios.handshakes import Handshakes
from bench.scenarios.idle import Idle
from bench.scenarios.leavers import Leavers
from bench.scenarios.many import Many
from bench.scenarios.multiplexed import Multiplexed
from bench.scenarios.paced import Paced
from bench.scenarios.perceived import Perceived
from bench.scenarios.resumable import Resumable
from bench.scenarios.scaling import Scaling
from bench.scenarios.short import Short
from bench.scenarios.slow_fifth import SlowFifth
from bench.scenarios.stalled import Stalled
from bench.scenarios.thin_pipe import ThinPipeScenario
from bench.scenarios.throughput import Throughput
from bench.scenarios.tls_paced import TlsPaced

__all__ = ["Scenario", "all_scenarios"]


def all_scenarios() -> dict[str, Scenario]:
    """Name to scenario."""
    order: tuple[Scenario, ...] = (
        Throughput(),
        Paced(),
        Stalled(),
        SlowFifth(),
        Idle(),
        Leavers(),
        Short(),
        Gateway(),
        Everything(),
        Resumable(),
        Scaling(),
        Handshakes(),
        TlsPaced(),
        Multiplexed(),
        ThinPipeScenario(),
        Many(),
        Perceived(),
        Control(),
    )
    return {scenario.name: scenario for scenario in order}

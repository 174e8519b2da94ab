"""What is measured, section by section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tools.benchmark import costs, lag, latency, loads, recovery, simulated, throughput
from tools.benchmark.figures import Figure
from tools.benchmark.report import HEADINGS
from tools.benchmark.systems import Lab

SECTIONS: Final = tuple(HEADINGS)
PEERS: Final = ("etcd", "redis")

_OTHERS: Final[Mapping[str, Callable[[Lab], list[Figure]]]] = {
    "variant": throughput.causality,
    "lag": lag.measure,
    "latency": latency.measure,
    "catchup": recovery.catch_up,
    "heal": recovery.healing,
    "memory": costs.memory,
    "exchange": costs.exchanges,
    "growth": costs.growth,
    "simulation": simulated.measure,
}


def measure(lab: Lab, sections: Sequence[str], peers: Sequence[str], tell: Callable[[list[Figure]], None]) -> None:
    """Measure ``sections`` (of ``SECTIONS``), beside ``peers`` (of ``PEERS``); ``tell`` gets figures as they come."""
    operations = [operation for operation in loads.OPERATIONS if operation in sections]
    if operations:
        tell(throughput.compare(lab, operations, peers))
    for section, measure_section in _OTHERS.items():
        if section in sections:
            tell(measure_section(lab))

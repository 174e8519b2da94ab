"""The sections of a run, in the order in which they are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tools.benchmark import acks, costs, lag, latency, loads, recovery, simulated, streams, throughput, waiting
from tools.benchmark.figures import Figure
from tools.benchmark.report import HEADINGS
from tools.benchmark.systems import Context

SECTIONS: Final = tuple(HEADINGS)
PEERS: Final = ("etcd", "redis")

_OTHERS: Final[Mapping[str, Callable[[Context], list[Figure]]]] = {
    "waiting": waiting.measure,
    "streams": streams.measure,
    "ablation": throughput.causality,
    "lag": lag.measure,
    "latency": latency.measure,
    "catchup": recovery.catch_up,
    "heal": recovery.healing,
    "memory": costs.memory,
    "exchange": costs.exchanges,
    "growth": costs.growth,
    "simulation": simulated.measure,
}


def measure(
    context: Context, sections: Sequence[str], peers: Sequence[str], collect: Callable[[list[Figure]], None]
) -> None:
    """Measure ``sections`` (of ``SECTIONS``) beside ``peers`` (of ``PEERS``).

    ``collect`` receives the figures of each section when it is complete. All operations of ``loads.OPERATIONS`` are
    measured together, in the same rounds.
    """
    operations = [operation for operation in loads.OPERATIONS if operation in sections]
    if operations:
        collect(throughput.compare(context, operations, peers))
    if "acks" in sections:
        collect(acks.measure(context, peers))
    for section, measure_section in _OTHERS.items():
        if section in sections:
            collect(measure_section(context))

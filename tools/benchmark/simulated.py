"""How the messages and bytes of a write grow with the number of replicas, counted in the simulation.

tools/simulation runs the protocol itself, so clusters that are too large for one machine can be counted.
"""

from __future__ import annotations

from typing import Final

from tools.benchmark.figures import Figure
from tools.benchmark.systems import Context
from tools.simulation.growth import Growth, count, exponent, law

SIZES: Final = (4, 16, 64, 128)
QUICK_SIZES: Final = (4, 8, 16)


def measure(context: Context) -> list[Figure]:
    """Count the messages and bytes per write at each cluster size, for one write alone and for many writes."""
    counted = []
    for size in QUICK_SIZES if context.quick else SIZES:
        context.progress(f"simulating {size} replicas")
        counted.append(count(size))
    alone, many = ([pair[i] for pair in counted] for i in (0, 1))
    return [
        *_rows("one write alone", alone),
        *_rows(f"{many[0].rate:,.0f} writes/s", many),
        *_idle(alone),
    ]


def _rows(name: str, counted: list[Growth]) -> list[Figure]:
    rows = []
    for each in counted:
        for unit, cost in (("messages", each.messages), ("bytes", each.bytes)):
            title = f"{name}, {each.replicas} replicas: {unit} per write"
            rows.append(Figure("simulation", title, unit, [cost], chart=unit, series=name, x=each.replicas))
    k = exponent([each.replicas - 1 for each in counted], [each.messages for each in counted])
    return [*rows, Figure("simulation", f"{name}: exponent of the messages", "", [k], note=law(counted))]


def _idle(counted: list[Growth]) -> list[Figure]:
    name = "no writes, {} replicas: bytes of all replicas"
    return [Figure("simulation", name.format(each.replicas), "bytes/s", [each.idle_bytes_s]) for each in counted]

"""How a write's messages and bytes grow with the replicas: counted in the simulation (tools/simulation)."""

from __future__ import annotations

from typing import Final

from tools.benchmark.figures import Figure
from tools.benchmark.systems import Lab
from tools.simulation.growth import Growth, count, exponent, law

SIZES: Final = (4, 16, 64, 128)
QUICK_SIZES: Final = (4, 8, 16)


def measure(lab: Lab) -> list[Figure]:
    """Count the messages and bytes of a write in clusters that no one machine runs, written alone and among many."""
    counted = []
    for size in QUICK_SIZES if lab.quick else SIZES:
        lab.say(f"simulating {size} replicas")
        counted.append(count(size))
    alone, many = ([pair[i] for pair in counted] for i in (0, 1))
    return [
        *_rows("a write alone", alone),
        *_rows(f"one of {many[0].rate:,.0f} a second", many),
        *_idle(alone),
    ]


def _rows(name: str, counted: list[Growth]) -> list[Figure]:
    rows = []
    for each in counted:
        for unit, cost in (("messages", each.messages), ("bytes", each.bytes)):
            title = f"{name}, {each.replicas} replicas: {unit}"
            rows.append(Figure("simulation", title, unit, [cost], chart=unit, series=name, x=each.replicas))
    k = exponent([each.replicas - 1 for each in counted], [each.messages for each in counted])
    return [*rows, Figure("simulation", f"{name}: exponent of its messages", "", [k], note=law(counted))]


def _idle(counted: list[Growth]) -> list[Figure]:
    name = "nobody writes, {} replicas: all together"
    return [Figure("simulation", name.format(each.replicas), "bytes/s", [each.idle_bytes_s]) for each in counted]

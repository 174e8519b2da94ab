"""Statistics for the benchmark and the demo, and numbers formatted for people.

``tools.simulation.growth`` computes how a cost grows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

__all__ = ["median", "number", "percentile", "ratios"]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that a ``share`` (0 to 1) of ``values`` does not exceed (nearest-rank method).

    Raises ``ValueError`` if there are no values: any number would look like a measured one.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the ratio of each round: the machine's speed drifts, but within a round it is the same for both."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def number(value: float) -> str:
    """Return ``value`` with about three significant digits: measurements are not more precise."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"

"""The little statistics that benchmark and demo need, and numbers as texts for people.

How a cost grows is told by ``tools.simulation.growth``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

__all__ = ["median", "number", "percentile", "ratios"]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of ``values`` that ``share`` (0 to 1) of them do not exceed (nearest rank).

    Raises ``ValueError`` where there are none: a percentile of nothing would look like a good one.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Return the ratio of each round. Machines drift from round to round; within one, both sides drift alike."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def number(value: float) -> str:
    """Return ``value`` with about three figures: what is beyond them is noise."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"

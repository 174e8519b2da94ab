"""The little statistics that the benchmark needs, and numbers as texts for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import linear_regression, median

__all__ = ["exponent", "growth_in_words", "median", "number", "percentile", "ratios"]


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


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return k of the law cost ~ size**k that fits best: the slope of log cost over log size, by least squares."""
    return linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs]).slope


def growth_in_words(k: float) -> str:
    """Say what cost ~ size**k means."""
    names = ((0.15, "does not grow"), (0.85, "grows slower than linearly"), (1.15, "grows linearly"))
    words = next((name for limit, name in names if k < limit), "")
    if k < -0.15:
        words = "falls"
    if not words:
        words = "grows with the square" if 1.85 < k < 2.15 else "grows faster than linearly"
    return f"{words} (exponent {k:.2f})"


def number(value: float) -> str:
    """Return ``value`` with about three figures: what is beyond them is noise."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"

"""A histogram that is cheap to fill: one binary search for each observation, and less for many at once."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

DURATION_BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Bounds for durations in seconds: from a fast request in process (0.5 ms) to the longest allowed wait (60 s)."""

SIZE_BOUNDS_BYTES = tuple(float(4**power) for power in range(4, 14))
"""Bounds for message sizes: 256 bytes to 64 MiB."""


class Histogram:
    """Number of observations for each upper bound, and their sum. Not thread-safe.

    ``bounds``: rising upper bounds, inclusive. ``sum``: sum of all observed values.
    ``counts``: for each bound, the observations up to it and above the bound before; then those above the last bound.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = DURATION_BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: list[float]) -> None:
        """Count many observations: one sort and a binary search for each bound. Sorts ``values``."""
        values.sort()
        self.sum += sum(values)
        start = 0
        for index, bound in enumerate(self.bounds):
            end = bisect_right(values, bound, start)
            self.counts[index] += end - start
            start = end
        self.counts[-1] += len(values) - start

    def copy(self) -> Histogram:
        """Return a copy that later observations do not change."""
        other = Histogram(self.bounds)
        other.counts = self.counts.copy()
        other.sum = self.sum
        return other

    def cumulative(self) -> list[tuple[str, int]]:
        """Return pairs (upper bound, number of observations up to it) in Prometheus' form, ``+Inf`` last."""
        bounds = [*map(str, self.bounds), "+Inf"]
        return list(zip(bounds, accumulate(self.counts), strict=True))

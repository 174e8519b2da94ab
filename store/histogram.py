"""A histogram that costs next to nothing to fill: for what happens with every request and every exchange."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

DURATION_BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Bounds for durations: from what a request takes in process to the longest that one may be held."""

SIZE_BOUNDS_BYTES = tuple(float(4**power) for power in range(4, 14))
"""Bounds for messages: 256 bytes to 64 MiB."""


class Histogram:
    """Counts of observations by upper bound, and their sum. Not thread-safe.

    ``counts``: one per bound (observations up to it and above the one before), and one for all above the last.
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

    def copy(self) -> Histogram:
        """Return a copy, to be read while this one goes on."""
        other = Histogram(self.bounds)
        other.counts = self.counts.copy()
        other.sum = self.sum
        return other

    def cumulative(self) -> list[tuple[str, int]]:
        """Return (upper bound, observations up to it) as Prometheus writes them, ``+Inf`` last."""
        total = 0
        told = []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            told.append((bound, total))
        return told

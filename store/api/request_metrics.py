"""Request metrics: counts by operation and status, and durations by operation. ``/metrics`` reads them.

prometheus-client's own counters take a lock and look labels up by text for each request, which costs more than a read
of the store. So a request only appends a sample to a queue. Samples are counted in bulk: when the metrics are
read, and whenever the queue is long.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from typing import Final

from store.histogram import Histogram

MAX_QUEUED_SAMPLES: Final = 500
"""The request that adds this many-th sample counts all of them; few enough that this does not delay it noticeably."""


class RequestMetrics:
    """Counts of requests by (operation, status), and duration histograms by operation. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: deque[tuple[str, int, float]] = deque()
        """(operation, status, seconds) not counted yet. append and popleft need no lock."""
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: defaultdict[str, Histogram] = defaultdict(Histogram)

    def record(self, operation: str, status: int, seconds: float) -> None:
        """Record one request. ``operation``: one of a fixed set of names, never text from a client."""
        self._samples.append((operation, status, seconds))
        if len(self._samples) >= MAX_QUEUED_SAMPLES:
            self._count()

    def read(self) -> tuple[dict[tuple[str, int], int], dict[str, Histogram]]:
        """Return copies of the counts and of the histograms."""
        self._count()
        with self._lock:
            return dict(self._requests), {name: histogram.copy() for name, histogram in self._seconds.items()}

    def _count(self) -> None:
        with self._lock:
            # Other threads keep appending: count only the samples that are queued at this moment.
            durations_s: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
            for _ in range(len(self._samples)):
                operation, status, seconds = self._samples.popleft()
                durations_s[operation, status].append(seconds)
            for (operation, status), values in durations_s.items():
                self._requests[operation, status] += len(values)
                self._seconds[operation].observe_all(values)

"""What requests did: how many of each kind ended how, and how long they took. Read by ``/metrics``.

prometheus-client's own counters take locks of their own and look labels up by text, which costs more than a read of
the store. Here a request leaves a note, and notes are counted many at once: when somebody reads, or there are many.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from typing import Final

from store.histogram import Histogram

MAX_NOTES: Final = 500
"""Notes that wait to be counted: few enough that whoever counts them, one request in so many, is not late for it."""


class Meter:
    """Requests by (operation, status), and their durations by operation. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notes: deque[tuple[str, int, float]] = deque()  # whose two ends any thread may use without a lock
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: defaultdict[str, Histogram] = defaultdict(Histogram)

    def note(self, operation: str, status: int, seconds: float) -> None:
        """Count one request. ``operation``: one of few words, never a client's text."""
        self._notes.append((operation, status, seconds))
        if len(self._notes) >= MAX_NOTES:
            self._count()

    def read(self) -> tuple[dict[tuple[str, int], int], dict[str, Histogram]]:
        """Return copies of both."""
        self._count()
        with self._lock:
            return dict(self._requests), {name: histogram.copy() for name, histogram in self._seconds.items()}

    def _count(self) -> None:
        with self._lock:
            for _ in range(len(self._notes)):  # those only that are there by now: others come meanwhile
                operation, status, seconds = self._notes.popleft()
                self._requests[operation, status] += 1
                self._seconds[operation].observe(seconds)


METER = Meter()
"""Of this process: views are made anew for each request, and one process is one replica."""

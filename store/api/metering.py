"""What requests did: how many of each kind ended how, and how long they took. Read by ``/metrics``.

prometheus-client's own counters take locks of their own and look labels up by text, which costs more than a read of
the store. Here it is one lock, two dictionaries and a bisection.
"""

from __future__ import annotations

import threading

from store.histogram import Histogram


class Meter:
    """Requests by (operation, status), and their durations by operation. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, int], int] = {}
        self._seconds: dict[str, Histogram] = {}

    def note(self, operation: str, status: int, seconds: float) -> None:
        """Count one request. ``operation``: one of few words, never a client's text."""
        with self._lock:
            self._requests[operation, status] = self._requests.get((operation, status), 0) + 1
            histogram = self._seconds.get(operation)
            if histogram is None:
                histogram = self._seconds[operation] = Histogram()
            histogram.observe(seconds)

    def read(self) -> tuple[dict[tuple[str, int], int], dict[str, Histogram]]:
        """Return copies of both."""
        with self._lock:
            return dict(self._requests), {name: histogram.copy() for name, histogram in self._seconds.items()}


METER = Meter()
"""Of this process: views are made anew for each request, and one process is one replica."""

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
        self._tallies: dict[str, _Tally] = {}

    def note(self, operation: str, status: int, seconds: float) -> None:
        """Count one request. ``operation``: one of few words, never a client's text."""
        with self._lock:
            tally = self._tallies.get(operation)
            if tally is None:
                tally = self._tallies[operation] = _Tally()
            tally.requests[status] = tally.requests.get(status, 0) + 1
            tally.seconds.observe(seconds)

    def read(self) -> tuple[dict[tuple[str, int], int], dict[str, Histogram]]:
        """Return copies of both."""
        with self._lock:
            requests = {
                (operation, status): count
                for operation, tally in self._tallies.items()
                for status, count in tally.requests.items()
            }
            return requests, {operation: tally.seconds.copy() for operation, tally in self._tallies.items()}


class _Tally:
    """Of one operation: how many requests ended with each status, and how long they took."""

    __slots__ = ("requests", "seconds")

    def __init__(self) -> None:
        self.requests: dict[int, int] = {}
        self.seconds = Histogram()


METER = Meter()
"""Of this process: views are made anew for each request, and one process is one replica."""

"""Simulated time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Scheduler:
    """A clock, and events that happen at their times. Events of the same time happen in the order of their scheduling.

    ``now_s``: simulated seconds. They begin at 1000, so that a time of 0 is always in the past.
    """

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._events: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._sequence = 0

    def at(self, time_s: float, action: Callable[..., object], *args: Any) -> None:
        """Schedule ``action`` for ``time_s`` (simulated seconds)."""
        self._sequence += 1
        heapq.heappush(self._events, (time_s, self._sequence, action, args))

    def run_until(self, time_s: float) -> None:
        """Run every event that is due before ``time_s``."""
        events = self._events
        while events and events[0][0] < time_s:
            self.now_s, _, action, args = heapq.heappop(events)
            action(*args)
        self.now_s = time_s

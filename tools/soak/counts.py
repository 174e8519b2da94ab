"""What clients saw in a run: counts of requests and calls, and the recorded operations of a round."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counts:
    """Counts of one run. Threads share it: change it only while holding ``lock``."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    requests: Counter[str] = field(default_factory=Counter)
    """Single requests to serving replicas, by outcome."""
    requests_to_unavailable: Counter[str] = field(default_factory=Counter)
    """Single requests to all other replicas, by outcome."""
    errors: Counter[str] = field(default_factory=Counter)
    """Texts of the errors of ``requests``."""
    rejected_after_heal_s: list[float] = field(default_factory=list)
    """Per rejection that came after a path was connected again: how many seconds after."""
    calls: Counter[str] = field(default_factory=Counter)
    """Calls of clients, by outcome. A call makes one request or several."""
    acknowledged: int = 0
    per_second: Counter[int] = field(default_factory=Counter)
    """Second -> how many operations were acknowledged in it."""
    waiting: dict[int, int] = field(default_factory=dict)
    """Second -> how many clients waited in it for a silent replica or for missing dependencies."""
    reported_lost: list[tuple[str, int, int, float]] = field(default_factory=list)
    """(replica id, first counter, last counter, when a replica reported to a client that these updates are lost)."""
    longest_metadata: int = 0
    """Entries of the longest causal metadata in a response to a client."""
    guest_operations: int = 0
    """Operations that guests served."""
    feed: Counter[str] = field(default_factory=Counter)
    """What followers of the change feed received: responses, and those of them that said reset or more."""
    storm_bytes: int = 0
    """Bytes of values that storms wrote, as far as replicas acknowledged them."""

    def note_losses(self, body: Mapping[str, Any], at_s: float) -> None:
        """Record the losses that a response reports."""
        with self.lock:
            for replica, (first, last) in (body.get("lost") or {}).items():
                self.reported_lost.append((replica, first, last, at_s))

    def note_feed(self, *, reset: bool, more: bool) -> None:
        """Count a response of the change feed."""
        with self.lock:
            self.feed.update({"responses": 1, "resets": int(reset), "incomplete": int(more)})

    def acknowledge(self) -> None:
        """Count an operation that succeeded."""
        with self.lock:
            self.acknowledged += 1
            self.per_second[int(time.monotonic())] += 1


class Recorder:
    """Keeps the operations of a round in memory, in the order in which they ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.operations: list[dict[str, Any]] = []
        self.ended_s: dict[str, float] = {}
        """Operation id -> when it ended, monotonic seconds."""

    def __call__(self, operation: Mapping[str, Any]) -> None:
        with self._lock:
            self.operations.append(dict(operation))
            self.ended_s[operation["id"]] = time.monotonic()

"""What happened in a run: answers, faults, and which replica was in trouble when. And the operations of a round."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FOREVER = float("inf")


class Spans:
    """Stretches of time, in monotonic seconds; the last one may still go on."""

    def __init__(self) -> None:
        self._spans: list[list[float]] = []

    def begin(self) -> None:
        """Open a span, unless one is open."""
        if not self._spans or self._spans[-1][1] < FOREVER:
            self._spans.append([time.monotonic(), FOREVER])

    def end(self, later_s: float = 0.0) -> None:
        """Close the span that is open, if one is; it counts for ``later_s`` more."""
        if self._spans and self._spans[-1][1] == FOREVER:
            self._spans[-1][1] = time.monotonic() + later_s

    def ends(self) -> list[float]:
        """Return when the spans that are over ended."""
        return [end_s for _, end_s in self._spans if end_s < FOREVER]

    def touch(self, since_s: float, until_s: float) -> bool:
        """Whether any span has a moment in common with this one."""
        return any(start_s <= until_s and since_s <= end_s for start_s, end_s in self._spans)


@dataclass
class Fault:
    """One fault, from when until when, monotonic seconds."""

    kind: str
    text: str
    began_s: float
    ended_s: float = FOREVER


@dataclass
class Tally:
    """Counts of one run, and when which replica was in trouble. Threads share it."""

    replicas: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    # What was broken.
    faults: list[Fault] = field(default_factory=list)
    # Per replica: while it was down, paused, removed, or not ready yet; the same without removals, in which the process
    # goes on.
    troubles: list[Spans] = field(init=False)
    standstills: list[Spans] = field(init=False)
    # Moments in which not all links were whole.
    broken_links: Spans = field(default_factory=Spans)
    # Replica -> when it was killed; asked to end, and did so after handing everything over; removed from the view.
    kills: dict[int, list[float]] = field(default_factory=dict)
    drains: dict[int, list[float]] = field(default_factory=dict)
    removals: dict[int, list[float]] = field(default_factory=dict)

    # What clients met. Single requests, by outcome: at serving replicas, and at those in trouble.
    requests: Counter[str] = field(default_factory=Counter)
    in_trouble: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    # How long after the links were whole again requests were still refused, seconds.
    late_s: list[float] = field(default_factory=list)
    # Calls of clients, by outcome.
    calls: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    per_second: Counter[int] = field(default_factory=Counter)
    # Second -> how many clients waited in it, for silent replicas or for their causal past.
    waiting: dict[int, int] = field(default_factory=dict)
    # (replica id, first, last counter, when a client was told that these are lost).
    told_lost: list[tuple[str, int, int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.troubles = [Spans() for _ in range(self.replicas)]
        self.standstills = [Spans() for _ in range(self.replicas)]

    def fault(self, kind: str, text: str = "") -> Fault:
        """Note that a fault begins; its ``ended_s`` is for the caller to set."""
        fault = Fault(kind, f"{kind} {text}".strip(), time.monotonic())
        with self.lock:
            self.faults.append(fault)
        return fault

    def trouble_begins(self, i: int, *, stands_still: bool) -> None:
        """Replica ``i`` is about to be broken; ``stands_still``: its process will not run."""
        with self.lock:
            self.troubles[i].begin()
            if stands_still:
                self.standstills[i].begin()

    def trouble_ends(self, i: int) -> None:
        """Replica ``i`` has said that it is ready."""
        with self.lock:
            self.troubles[i].end()
            self.standstills[i].end()

    def all_is_well(self) -> None:
        """Everything was healed, and all replicas have said that they are ready."""
        for i in range(self.replicas):
            self.trouble_ends(i)
        with self.lock:
            self.broken_links.end(later_s=0.0)
            for fault in self.faults:
                fault.ended_s = min(fault.ended_s, time.monotonic())

    def is_serving(self, i: int, since_s: float, until_s: float) -> bool:
        """Whether replica ``i`` was in no trouble at any moment between these two."""
        with self.lock:
            return not self.troubles[i].touch(since_s, until_s)

    def somebody_unreachable(self, since_s: float, until_s: float, besides: int) -> bool:
        """Whether between these moments links were broken, or a replica other than ``besides`` was in trouble."""
        spans = [self.broken_links, *(its for i, its in enumerate(self.troubles) if i != besides)]
        return any(each.touch(since_s, until_s) for each in spans)

    def active(self, since_s: float, until_s: float) -> list[str]:
        """Return the faults of this stretch, in the order of their beginning."""
        return [fault.text for fault in self.faults if fault.began_s <= until_s and since_s <= fault.ended_s]

    def acknowledge(self) -> None:
        """Count an operation that was answered."""
        with self.lock:
            self.acknowledged += 1
            self.per_second[int(time.monotonic())] += 1


class Recorder:
    """Keeps the operations of a round in memory, in the order of their ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.operations: list[dict[str, Any]] = []
        self.ended_s: dict[str, float] = {}
        """Operation -> when it ended, monotonic seconds."""

    def __call__(self, operation: Mapping[str, Any]) -> None:
        with self._lock:
            self.operations.append(dict(operation))
            self.ended_s[operation["id"]] = time.monotonic()

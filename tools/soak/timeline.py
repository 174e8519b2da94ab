"""When faults were active, and when which replica was unavailable."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

FOREVER = float("inf")


class Spans:
    """Periods of time, in monotonic seconds. The last one may be open."""

    def __init__(self) -> None:
        self._spans: list[list[float]] = []

    def begin(self) -> None:
        """Open a period now, unless one is open."""
        if not self._spans or self._spans[-1][1] < FOREVER:
            self._spans.append([time.monotonic(), FOREVER])

    def end(self, later_s: float = 0.0) -> None:
        """Close the open period, if there is one. It ends ``later_s`` seconds from now."""
        if self._spans and self._spans[-1][1] == FOREVER:
            self._spans[-1][1] = time.monotonic() + later_s

    def ends(self) -> list[float]:
        """Return the ends of all closed periods."""
        return [end_s for _, end_s in self._spans if end_s < FOREVER]

    def overlap(self, since_s: float, until_s: float) -> bool:
        """Return whether any period overlaps the one from ``since_s`` to ``until_s``."""
        return any(start_s <= until_s and since_s <= end_s for start_s, end_s in self._spans)


@dataclass
class Fault:
    """One fault, and when it began and ended (monotonic seconds)."""

    kind: str
    text: str
    began_s: float
    ended_s: float = FOREVER


@dataclass
class Timeline:
    """The faults of a run, and the periods in which replicas were unavailable. Threads share it.

    Guests have the numbers from ``replicas`` on. Of them it only knows how they ended.
    """

    replicas: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    faults: list[Fault] = field(default_factory=list)
    unavailable: list[Spans] = field(init=False)
    """Per replica: while it was stopped, paused, removed or not yet ready."""
    stopped: list[Spans] = field(init=False)
    """The same without removals: a removed replica keeps running and passes updates on."""
    broken_links: Spans = field(default_factory=Spans)
    """While at least one link was cut or lost packets."""
    storms: Spans = field(default_factory=Spans)
    """While a storm wrote: an update may wait behind megabytes of others."""
    kills: dict[int, list[float]] = field(default_factory=dict)
    """Replica -> when it lost its data: killed, or stopped without handing its updates over."""
    drains: dict[int, list[float]] = field(default_factory=dict)
    """Replica -> when it was asked to stop, if it handed all its updates over."""
    removals: dict[int, list[float]] = field(default_factory=dict)
    """Replica -> when it was removed from the view."""

    def __post_init__(self) -> None:
        self.unavailable = [Spans() for _ in range(self.replicas)]
        self.stopped = [Spans() for _ in range(self.replicas)]

    def begin_fault(self, kind: str, text: str = "") -> Fault:
        """Record that a fault begins. The caller sets its ``ended_s``."""
        fault = Fault(kind, f"{kind} {text}".strip(), time.monotonic())
        with self.lock:
            self.faults.append(fault)
        return fault

    def mark_unavailable(self, i: int, *, stopped: bool) -> None:
        """Record that a fault of replica ``i`` is about to begin. ``stopped``: its process will not run."""
        with self.lock:
            self.unavailable[i].begin()
            if stopped:
                self.stopped[i].begin()

    def mark_ready(self, i: int) -> None:
        """Record that replica ``i`` is ready: end its periods in ``unavailable`` and ``stopped``."""
        with self.lock:
            self.unavailable[i].end()
            self.stopped[i].end()

    def mark_healed(self) -> None:
        """Record that all faults have ended and all replicas are ready."""
        for i in range(self.replicas):
            self.mark_ready(i)
        with self.lock:
            self.broken_links.end()
            for fault in self.faults:
                fault.ended_s = min(fault.ended_s, time.monotonic())

    def is_serving(self, i: int, since_s: float, until_s: float) -> bool:
        """Return whether replica ``i`` was available all the time from ``since_s`` to ``until_s``."""
        with self.lock:
            return not self.unavailable[i].overlap(since_s, until_s)

    def any_late(self, since_s: float, until_s: float, besides: int) -> bool:
        """Return whether an update may have been late in this period.

        That is so if links were broken, a storm wrote, or a replica other than ``besides`` was unavailable.
        """
        spans = [self.broken_links, self.storms, *(its for i, its in enumerate(self.unavailable) if i != besides)]
        return any(each.overlap(since_s, until_s) for each in spans)

    def active(self, since_s: float, until_s: float) -> list[str]:
        """Return the texts of the faults in this period, in the order in which they began."""
        return [fault.text for fault in self.faults if fault.began_s <= until_s and since_s <= fault.ended_s]

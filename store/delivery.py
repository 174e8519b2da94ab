"""The pending queue: updates that have arrived before a part of their causal past.

A replica may apply update (o, n) if its clock has exactly n - 1 for origin o and covers the rest of the update's past.
Otherwise the update waits under its **first missing dot**. When that dot is applied, exactly the updates that wait for
it are taken out of the queue. Each of them can then be applied, or waits again under another missing dot. So the work
for one update is bounded by the number of its dependencies and does not depend on the length of the queue.

Invariants: every pending update waits under exactly one dot, and the replica's clock covers none of these dots.

Source: Birman, Schiper, Stephenson, TOCS 1991 (causal delivery). The index by first missing dot is our addition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from store.clock import Dot
from store.versions import Update


def first_missing(clock: Mapping[str, int], update: Update) -> Dot | None:
    """Return the first dot of the update's past that ``clock`` lacks; None if the update may be applied now."""
    if clock.get(update.origin, 0) != update.counter - 1:
        return (update.origin, update.counter - 1)
    for replica, counter in update.deps.items():
        if clock.get(replica, 0) < counter:
            return (replica, counter)
    return None


UPDATE_COST_BYTES = 500
WRITE_COST_BYTES = 300
DEPENDENCY_COST_BYTES = 150
"""Estimated memory of a pending update, of each of its writes without the texts of key and value, and of each of its
dependencies. All are stored decoded."""


def cost(update: Update) -> int:
    """Return the estimated bytes of memory that ``update`` takes while it is pending."""
    size = UPDATE_COST_BYTES + DEPENDENCY_COST_BYTES * len(update.deps)
    for write in update.writes:
        replaced = DEPENDENCY_COST_BYTES * len(write.replaces)
        size += WRITE_COST_BYTES + replaced + len(write.key) + len(write.value or b"")
    return size


class PendingUpdate(NamedTuple):
    """One update in the queue, the dot that it waits for, and when it arrived (monotonic seconds)."""

    update: Update
    waits_for: Dot
    since_s: float


class PendingQueue:
    """The pending updates of one replica.

    ``bytes``: their estimated size (``cost``), at most ``_limit_bytes``.
    ``_waiting``: dot of a pending update -> the update, in the order of adding. At most ``_limit`` entries.
    ``_by_dot``: missing dot -> dots of the updates that wait for it. Together the lists name each update once.
    """

    __slots__ = ("_by_dot", "_limit", "_limit_bytes", "_waiting", "bytes")

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self.bytes = 0
        self._waiting: dict[Dot, PendingUpdate] = {}
        self._by_dot: dict[Dot, list[Dot]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[PendingUpdate]:
        return iter(self._waiting.values())

    def add(self, update: Update, waits_for: Dot, now_s: float) -> bool:
        """Add ``update``, which waits for the dot ``waits_for``. Return False if it is here or the queue is full.

        Dropping an update is safe: this replica's clock does not contain it, so a peer that has applied it sends it
        again.
        """
        if update.dot in self._waiting or len(self._waiting) >= self._limit:
            return False
        size = cost(update)
        if self.bytes + size > self._limit_bytes:
            return False
        self.bytes += size
        self._waiting[update.dot] = PendingUpdate(update, waits_for, now_s)
        self._by_dot.setdefault(waits_for, []).append(update.dot)
        return True

    def take_waiting_for(self, dot: Dot) -> list[PendingUpdate]:
        """Remove and return the updates that wait for ``dot``, in the order in which they were added."""
        taken = [self._waiting.pop(waiting) for waiting in self._by_dot.pop(dot, ())]
        for item in taken:
            self.bytes -= cost(item.update)
        return taken

    def take_all(self) -> list[PendingUpdate]:
        """Remove and return all updates. Used after a snapshot, when the clock has jumped over many dots."""
        everything = list(self._waiting.values())
        self._waiting.clear()
        self._by_dot.clear()
        self.bytes = 0
        return everything

    def drop(self, dot: Dot) -> Update:
        """Remove and return one pending update, whose dependencies are unrecoverable. Raises KeyError if unknown."""
        dropped = self._waiting.pop(dot)
        self.bytes -= cost(dropped.update)
        same_missing_dot = self._by_dot[dropped.waits_for]
        same_missing_dot.remove(dot)
        if not same_missing_dot:
            del self._by_dot[dropped.waits_for]
        return dropped.update

    def lowest_counters(self) -> dict[str, int]:
        """Return origin -> lowest counter of its pending updates.

        Loss detection needs it (replication/loss.py, rule 4): a dependency on update n of an origin is not lost while
        a pending queue holds update n or an earlier one of this origin.
        """
        lowest: dict[str, int] = {}
        for origin, counter in self._waiting:
            if counter < lowest.get(origin, counter + 1):
                lowest[origin] = counter
        return lowest

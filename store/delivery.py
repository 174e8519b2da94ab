"""The pending queue: updates that arrived before their causes.

An update (o, n) may be applied when its origin's counter here is n - 1 and the rest of its past is covered.
Otherwise it waits under its **first missing dot**. Applying that dot wakes exactly the updates that wait for
it; each is then either applicable or waits under another dot. So the work per update is bounded by the number
of its dependencies, whatever the length of the queue.

Invariants: a pending update stands under exactly one dot; no dot stands here that the clock covers.
Source: Birman, Schiper, Stephenson, TOCS 1991 (causal delivery); the index is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from store.clock import Dot
from store.versions import Update


def first_missing(clock: Mapping[str, int], update: Update) -> Dot | None:
    """Return the first dot that must be applied before ``update`` may be, None when it may be applied now."""
    if clock.get(update.origin, 0) != update.counter - 1:
        return (update.origin, update.counter - 1)
    for replica, counter in update.deps.items():
        if clock.get(replica, 0) < counter:
            return (replica, counter)
    return None


class PendingUpdate(NamedTuple):
    """One pending update: what it waits for, and since when (monotonic seconds)."""

    update: Update
    waits_for: Dot
    since_s: float


class PendingQueue:
    """Updates by the dot that they wait for. ``limit``: how many may wait at once."""

    __slots__ = ("_by_dot", "_limit", "_waiting")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[Dot, PendingUpdate] = {}
        self._by_dot: dict[Dot, list[Dot]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, dot: Dot) -> bool:
        return dot in self._waiting

    def __iter__(self) -> Iterator[PendingUpdate]:
        return iter(self._waiting.values())

    def add(self, update: Update, waits_for: Dot, now_s: float) -> bool:
        """Let ``update`` wait; return False when it waits already or the queue is full.

        Turning one away is safe: an update counts as received only when it is in the clock, so whoever
        sent it offers it again.
        """
        if update.dot in self._waiting or len(self._waiting) >= self._limit:
            return False
        self._waiting[update.dot] = PendingUpdate(update, waits_for, now_s)
        self._by_dot.setdefault(waits_for, []).append(update.dot)
        return True

    def take_waiting_for(self, dot: Dot) -> list[PendingUpdate]:
        """Take out and return the updates that waited for ``dot``, in the order in which they came."""
        return [self._waiting.pop(waiting) for waiting in self._by_dot.pop(dot, ())]

    def take_all(self) -> list[PendingUpdate]:
        """Empty the queue and return what was in it: after a jump of the clock everything is tried again."""
        everything = list(self._waiting.values())
        self._waiting.clear()
        self._by_dot.clear()
        return everything

    def drop(self, dot: Dot) -> Update:
        """Forget a pending update whose cause is lost for good. Raises KeyError when it does not wait here."""
        waiting = self._waiting.pop(dot)
        others = self._by_dot[waiting.waits_for]
        others.remove(dot)
        if not others:
            del self._by_dot[waiting.waits_for]
        return waiting.update

    def lowest_counters(self) -> dict[str, int]:
        """Return replica id -> the lowest counter that waits here."""
        lowest: dict[str, int] = {}
        for origin, counter in self._waiting:
            if counter < lowest.get(origin, counter + 1):
                lowest[origin] = counter
        return lowest

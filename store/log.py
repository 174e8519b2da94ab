"""The log: recent updates by origin, from which peers are brought up to date.

There are no queues per peer. What a peer lacks is what the log holds above the peer's clock, so an absent
peer costs nothing but a share of one bounded log, and any replica can bring up any other.

Invariant, for every origin o: the log holds exactly the updates base(o)+1 .. last(o), where last(o) is the
clock's entry. The log may be cut anywhere: cutting raises the base. A peer below a base needs a snapshot.

Source: anti-entropy over a truncatable log, Petersen et al., SOSP 1997 (Bayou).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from store.versions import Update


class Entry(NamedTuple):
    """One update in the log. ``applied_s``: monotonic seconds; ``size``: estimated bytes."""

    update: Update
    applied_s: float
    size: int


class Delta(NamedTuple):
    """What to send to a peer. ``truncated``: the log does not reach back far enough, a snapshot is needed.
    ``more``: the limit cut the list."""

    updates: list[Update]
    truncated: bool
    more: bool


class UpdateLog:
    """Updates by origin, bounded to an estimated ``limit_bytes``."""

    __slots__ = ("_entries", "_limit", "bytes", "count")

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._entries: dict[str, list[Entry]] = {}
        self.bytes = 0
        self.count = 0

    def append(self, update: Update, now_s: float) -> None:
        """Add the update that was just applied; its counter is the next one of its origin."""
        entries = self._entries.get(update.origin)
        if entries is None:
            entries = self._entries[update.origin] = []
        assert not entries or entries[-1].update.counter == update.counter - 1
        entry = Entry(update, now_s, update.size())
        entries.append(entry)
        self.bytes += entry.size
        self.count += 1
        if self.bytes > self._limit:
            self._cut()

    def restart(self, origin: str) -> None:
        """Forget an origin whose clock entry jumped: what the log held would have a gap after it."""
        self._drop(origin, len(self._entries.get(origin, ())))

    def trim(self, floor: Mapping[str, int]) -> None:
        """Forget what everybody has. ``floor``: replica id -> highest counter that every member has."""
        for origin in list(self._entries):
            first = self._entries[origin][0].update.counter
            self._drop(origin, floor.get(origin, 0) + 1 - first)

    def delta(
        self,
        known: Mapping[str, int],
        clock: Mapping[str, int],
        *,
        own: str,
        relay_before_s: float,
        limit: int,
        limit_bytes: int,
    ) -> Delta:
        """Return updates that a peer at ``known`` lacks, counters rising without gaps within each origin.

        ``known``: the peer's clock as it last told it. ``clock``: the clock of this replica.
        ``own``: id of this replica, whose updates are always sent; those of other origins (*relayed*) only
        when they were applied here before ``relay_before_s``: until then their origin sends them itself.
        ``limit`` counts updates, ``limit_bytes`` estimated bytes (one update is sent whatever its size).

        Updates of several origins are merged by timestamp, which follows causality: so whatever the limit cuts
        off, no update is sent without its causes. (In any other order a batch may be full of updates that wait
        for one that is never sent.)
        """
        truncated = False
        runs: list[list[Entry]] = []
        for origin, last in clock.items():
            first = known.get(origin, 0) + 1
            if first > last:
                continue
            entries = self._entries.get(origin)
            base = entries[0].update.counter if entries else last + 1
            if entries is None or first < base:
                truncated = True
                continue
            run = entries[first - base : first - base + limit + 1]
            if origin != own and run[-1].applied_s > relay_before_s:
                run = [entry for entry in run if entry.applied_s <= relay_before_s]
            if run:
                runs.append(run)
        updates, more = _batch(runs, limit, limit_bytes)
        return Delta(updates, truncated, more)

    def origins(self) -> list[str]:
        """Return the ids of which the log holds updates."""
        return list(self._entries)

    def recent(self, limit: int) -> list[Entry]:
        """Return the last ``limit`` entries of each origin, for people to look at."""
        return [entry for entries in self._entries.values() for entry in entries[-limit:]]

    def _cut(self) -> None:
        """Get a tenth below the limit: the oldest half of whichever origin holds the most updates, repeatedly."""
        while self.bytes > self._limit * 9 // 10:
            origin = max(self._entries, key=lambda origin: len(self._entries[origin]))
            self._drop(origin, (len(self._entries[origin]) + 1) // 2)

    def _drop(self, origin: str, count: int) -> None:
        """Forget the oldest ``count`` updates of ``origin``."""
        if count <= 0:
            return
        entries = self._entries[origin]
        for entry in entries[:count]:
            self.bytes -= entry.size
            self.count -= 1
        del entries[:count]
        if not entries:
            del self._entries[origin]


def _batch(runs: list[list[Entry]], limit: int, limit_bytes: int) -> tuple[list[Update], bool]:
    """Return the first updates of all runs in the order of their timestamps, and whether a limit cut them."""
    entries: Iterable[Entry] = runs[0] if len(runs) == 1 else heapq.merge(*runs, key=_timestamp)
    updates: list[Update] = []
    size = 0
    for entry in entries:
        size += entry.size
        if len(updates) >= limit or (updates and size > limit_bytes):
            return updates, True
        updates.append(entry.update)
    return updates, False


def _timestamp(entry: Entry) -> int:
    return entry.update.timestamp

"""The log: recent updates by origin, from which peers are brought up to date.

There are no queues per peer. What a peer lacks is what the log holds above the peer's clock, so an absent
peer costs nothing but a share of one bounded log, and any replica can bring up any other.

Invariant, for every origin o: the log holds exactly the updates base(o)+1 .. last(o), where last(o) is the
clock's entry. The log may be cut anywhere: cutting raises the base. A peer below a base needs a snapshot.

An update is kept as the bytes in which it travels: encoded once, whoever it is sent to and how often. What
has been here for longer is kept in *segments*, many updates in one piece of memory. That is compact, and it
comes back as a whole when a peer that was away for long has caught up (docs/memory.md).

Source: anti-entropy over a truncatable log, Petersen et al., SOSP 1997 (Bayou).
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, islice, takewhile
from mmap import mmap
from typing import NamedTuple

from store.clock import Dot
from store.versions import Update, decode_update, encode_update

ENTRY_BYTES = 40
"""What an update costs beyond its encoded form, estimated."""


class Entry(NamedTuple):
    """One update in the log: its wire form, its hybrid time (microseconds), and when it was applied here
    (monotonic seconds)."""

    encoded: bytes
    timestamp: int
    applied_s: float


class Delta(NamedTuple):
    """What to send to a peer: updates in their wire form. ``truncated``: the log does not reach back far enough, a
    snapshot is needed. ``more``: the limit cut the list."""

    batch: list[bytes]
    truncated: bool
    more: bool


NOTHING = Delta([], truncated=False, more=False)


class UpdateLog:
    """Updates by origin, bounded to an estimated ``limit_bytes``; ``segment_bytes`` of one origin make a segment."""

    __slots__ = ("_limit", "_runs", "_segment_bytes", "bytes", "count")

    def __init__(self, limit_bytes: int, segment_bytes: int) -> None:
        self._limit = limit_bytes
        self._segment_bytes = segment_bytes
        self._runs: dict[str, _Run] = {}
        self.bytes = 0
        self.count = 0

    def append(self, update: Update, now_s: float) -> None:
        """Add the update that was just applied; its counter is the next one of its origin."""
        run = self._runs.get(update.origin)
        if run is None:
            run = self._runs[update.origin] = _Run(update.counter, self._segment_bytes)
        assert run.next == update.counter
        encoded = encode_update(update)
        run.append(Entry(encoded, update.timestamp, now_s))
        self.bytes += len(encoded) + ENTRY_BYTES
        self.count += 1
        if self.bytes > self._limit:
            self._cut()

    def restart(self, origin: str) -> None:
        """Forget an origin whose clock entry jumped: what the log held would have a gap after it."""
        if run := self._runs.get(origin):
            self._forget(origin, run.next - 1)

    def trim(self, floor: Mapping[str, int]) -> None:
        """Forget what everybody has. ``floor``: replica id -> highest counter that every member has."""
        for origin in list(self._runs):
            self._forget(origin, floor.get(origin, 0))

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
        ``limit`` counts updates, ``limit_bytes`` their encoded bytes (one update is sent whatever its size).

        Updates of several origins are merged by timestamp, which follows causality: so whatever the limit cuts
        off, no update is sent without its causes. (In any other order a batch may be full of updates that wait
        for one that is never sent.)
        """
        truncated = False
        lacking: list[Iterator[Entry]] = []
        for origin, last in clock.items():
            first = known.get(origin, 0) + 1
            if first > last:
                continue
            run = self._runs.get(origin)
            if run is None or first < run.first:
                truncated = True
                continue
            entries = run.since(first)
            if origin != own:
                entries = takewhile(lambda entry: entry.applied_s <= relay_before_s, entries)
            lacking.append(entries)
        batch, more = _batch(lacking, limit, limit_bytes)
        return Delta(batch, truncated, more)

    def origins(self) -> list[str]:
        """Return the ids of which the log holds updates."""
        return list(self._runs)

    def get(self, dot: Dot) -> Update | None:
        """Return the update named ``dot``, None where the log does not hold it."""
        origin, counter = dot
        run = self._runs.get(origin)
        if run is None or not run.first <= counter < run.next:
            return None
        return decode_update(next(run.since(counter)).encoded)

    def updates(self, origin: str) -> list[Update]:
        """Return all updates of ``origin`` that the log holds, oldest first."""
        run = self._runs.get(origin)
        return [decode_update(entry.encoded) for entry in run.since(run.first)] if run else []

    def _cut(self) -> None:
        """Get a tenth below the limit: the oldest half of whichever origin holds the most updates, repeatedly."""
        while self.bytes > self._limit * 9 // 10:
            origin, run = max(self._runs.items(), key=lambda item: len(item[1]))
            self._forget(origin, run.first + (len(run) - 1) // 2)

    def _forget(self, origin: str, last: int) -> None:
        """Forget the updates of ``origin`` up to ``last``."""
        run = self._runs[origin]
        last = min(last, run.next - 1)
        count = last + 1 - run.first
        if count <= 0:
            return
        self.bytes -= run.forget(last) + count * ENTRY_BYTES
        self.count -= count
        if not run:
            del self._runs[origin]


class _Run:
    """The updates ``first`` to ``next - 1`` of one origin: the older ones in segments, then one by one."""

    __slots__ = ("_newest", "_newest_bytes", "_segment_bytes", "_segments", "first", "next")

    def __init__(self, first: int, segment_bytes: int) -> None:
        self.first = self.next = first
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._newest: list[Entry] = []
        self._newest_bytes = 0

    def __len__(self) -> int:
        return self.next - self.first

    def append(self, entry: Entry) -> None:
        self._newest.append(entry)
        self._newest_bytes += len(entry.encoded)
        self.next += 1
        if self._newest_bytes >= self._segment_bytes:
            self._segments.append(_Segment(self.next - len(self._newest), self._newest))
            self._newest, self._newest_bytes = [], 0

    def since(self, counter: int) -> Iterator[Entry]:
        """Yield the entries from ``counter`` on, which is not before ``first``."""
        start = max(0, bisect_right(self._segments, counter, key=lambda segment: segment.first) - 1)
        for segment in islice(self._segments, start, None):
            yield from segment.since(counter)
        newest = self._newest
        yield from islice(newest, max(0, counter - (self.next - len(newest))), None)

    def forget(self, last: int) -> int:
        """Forget the entries up to ``last``, which is not before ``first``; return how many encoded bytes that was."""
        freed = 0
        while self._segments and self._segments[0].first <= last:
            segment = self._segments.pop(0)
            kept = list(segment.since(last + 1))
            freed += segment.bytes
            if kept:
                # Cut anew, so that nothing stays in memory of what was deleted and is everywhere.
                self._segments.insert(0, _Segment(last + 1, kept))
                freed -= self._segments[0].bytes
        gone = max(0, last + 1 - (self.next - len(self._newest)))
        newest_bytes = sum([len(entry.encoded) for entry in self._newest[:gone]])
        del self._newest[:gone]
        self._newest_bytes -= newest_bytes
        self.first = last + 1
        return freed + newest_bytes


class _Segment:
    """Consecutive updates of one origin from counter ``first`` on, in one piece of memory that never changes."""

    __slots__ = ("_applied_s", "_encoded", "_ends", "_timestamps", "first")

    def __init__(self, first: int, entries: list[Entry]) -> None:
        ends = array("Q", accumulate([len(entry.encoded) for entry in entries], initial=0)).tobytes()
        timestamps = array("Q", [entry.timestamp for entry in entries]).tobytes()
        applied_s = array("d", [entry.applied_s for entry in entries]).tobytes()
        columns = [ends, timestamps, applied_s, *[entry.encoded for entry in entries]]
        # Memory of its own and of no file: it is the system's again as soon as it is forgotten here. What is handed
        # back to Python's allocator stays with the process where anything else lives beside it.
        whole = mmap(-1, sum(map(len, columns)))
        whole.write(b"".join(columns))
        view, at = memoryview(whole).toreadonly(), len(ends) + len(timestamps)
        self.first = first
        self._ends = view[: len(ends)].cast("Q")
        self._timestamps = view[len(ends) : at].cast("Q")
        self._applied_s = view[at : at + len(applied_s)].cast("d")
        self._encoded = view[at + len(applied_s) :]

    @property
    def bytes(self) -> int:
        return len(self._encoded)

    def since(self, counter: int) -> Iterator[Entry]:
        """Yield the entries from ``counter`` on; all of them where it is before ``first``."""
        ends = self._ends
        for i in range(max(0, counter - self.first), len(self._timestamps)):
            yield Entry(bytes(self._encoded[ends[i] : ends[i + 1]]), self._timestamps[i], self._applied_s[i])


def _batch(runs: list[Iterator[Entry]], limit: int, limit_bytes: int) -> tuple[list[bytes], bool]:
    """Return the first entries of all runs in the order of their timestamps, and whether a limit cut them."""
    entries: Iterable[Entry] = runs[0] if len(runs) == 1 else heapq.merge(*runs, key=_timestamp)
    batch: list[bytes] = []
    size = 0
    for entry in entries:
        size += len(entry.encoded)
        if len(batch) >= limit or (batch and size > limit_bytes):
            return batch, True
        batch.append(entry.encoded)
    return batch, False


def _timestamp(entry: Entry) -> int:
    return entry.timestamp

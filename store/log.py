"""The log: recent updates by origin, from which peers are brought up to date.

There are no queues per peer. What a peer lacks is what the log holds above the peer's clock, so an absent
peer costs nothing but a share of one bounded log, and any replica can bring up any other.

Invariant, for every origin o: the log holds exactly the updates base(o)+1 .. last(o), where last(o) is the
clock's entry. The log may be cut anywhere: cutting raises the base. A peer below a base needs a snapshot.

An update is kept as the bytes in which it travels: encoded once, whoever it is sent to and how often. What
has been here for longer is kept in *segments*, many updates in one piece of memory. That is compact, and the
system gets it back page by page as a peer that was away for long catches up (docs/memory.md).

Source: anti-entropy over a truncatable log, Petersen et al., SOSP 1997 (Bayou).
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import accumulate, islice, takewhile
from mmap import MADV_DONTNEED, MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, mmap
from typing import NamedTuple

import msgspec

from store.clock import Dot
from store.versions import Update, decode_update, encode_update

ENTRY_OVERHEAD_BYTES = 40
"""What an update costs beyond its encoded form, estimated."""

MAX_SEGMENTS = 16_384
"""Full segments of a log at most, whatever its limit: each may be a mapping of its own, and Linux grants a process
65,530 of them (vm.max_map_count)."""


class LogEntry(msgspec.Struct, frozen=True, gc=False):
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


EMPTY_DELTA = Delta([], truncated=False, more=False)


class UpdateLog:
    """Updates by origin, bounded to an estimated ``limit_bytes``.

    ``segment_bytes`` of one origin make a segment; more where the log would come to more than ``MAX_SEGMENTS``.
    """

    __slots__ = ("_limit", "_origins", "_segment_bytes", "bytes", "count")

    def __init__(self, limit_bytes: int, segment_bytes: int) -> None:
        self._limit = limit_bytes
        self._segment_bytes = max(segment_bytes, limit_bytes // MAX_SEGMENTS)
        self._origins: dict[str, _OriginLog] = {}
        self.bytes = 0
        self.count = 0

    def append(self, update: Update, now_s: float) -> None:
        """Add the update that was just applied; its counter is the next one of its origin."""
        origin_log = self._origins.get(update.origin)
        if origin_log is None:
            origin_log = self._origins[update.origin] = _OriginLog(update.counter, self._segment_bytes)
        assert origin_log.next == update.counter
        encoded = encode_update(update)
        origin_log.append(LogEntry(encoded, update.timestamp, now_s))
        self.bytes += len(encoded) + ENTRY_OVERHEAD_BYTES
        self.count += 1
        if self.bytes > self._limit:
            self._cut()

    def drop_origin(self, origin: str) -> None:
        """Forget an origin whose clock entry jumped: what the log held would have a gap after it."""
        if origin_log := self._origins.get(origin):
            self._forget_until(origin, origin_log.next - 1)

    def trim(self, floor: Mapping[str, int]) -> None:
        """Forget what everybody has. ``floor``: replica id -> highest counter that every member has."""
        for origin in list(self._origins):
            self._forget_until(origin, floor.get(origin, 0))

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
        lacking: list[Iterator[LogEntry]] = []
        for origin, last in clock.items():
            first = known.get(origin, 0) + 1
            if first > last:
                continue
            origin_log = self._origins.get(origin)
            if origin_log is None or first < origin_log.first:
                truncated = True
                continue
            entries = origin_log.entries_from(first)
            if origin != own:
                entries = takewhile(lambda entry: entry.applied_s <= relay_before_s, entries)
            lacking.append(entries)
        batch, more = _batch(lacking, limit, limit_bytes)
        return Delta(batch, truncated, more)

    def origins(self) -> list[str]:
        """Return the ids of which the log holds updates."""
        return list(self._origins)

    def get(self, dot: Dot) -> Update | None:
        """Return the update named ``dot``, None where the log does not hold it."""
        origin, counter = dot
        origin_log = self._origins.get(origin)
        if origin_log is None or not origin_log.first <= counter < origin_log.next:
            return None
        return decode_update(next(origin_log.entries_from(counter)).encoded)

    def updates(self, origin: str) -> list[Update]:
        """Return all updates of ``origin`` that the log holds, oldest first."""
        origin_log = self._origins.get(origin)
        return (
            [decode_update(entry.encoded) for entry in origin_log.entries_from(origin_log.first)] if origin_log else []
        )

    def _cut(self) -> None:
        """Get a tenth below the limit: the oldest half of whichever origin holds the most updates, repeatedly."""
        while self.bytes > self._limit * 9 // 10:
            origin, origin_log = max(self._origins.items(), key=lambda item: len(item[1]))
            self._forget_until(origin, origin_log.first + (len(origin_log) - 1) // 2)

    def _forget_until(self, origin: str, last: int) -> None:
        """Forget the updates of ``origin`` up to ``last``."""
        origin_log = self._origins[origin]
        last = min(last, origin_log.next - 1)
        count = last + 1 - origin_log.first
        if count <= 0:
            return
        self.bytes -= origin_log.forget(last) + count * ENTRY_OVERHEAD_BYTES
        self.count -= count
        if not origin_log:
            del self._origins[origin]


class _OriginLog:
    """The updates ``first`` to ``next - 1`` of one origin: the older ones in segments, then one by one."""

    __slots__ = ("_newest", "_newest_bytes", "_pack_at_bytes", "_segment_bytes", "_segments", "first", "next")

    def __init__(self, first: int, segment_bytes: int) -> None:
        self.first = self.next = first
        self._segment_bytes = self._pack_at_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._newest: list[LogEntry] = []
        self._newest_bytes = 0

    def __len__(self) -> int:
        return self.next - self.first

    def append(self, entry: LogEntry) -> None:
        self._newest.append(entry)
        self._newest_bytes += len(entry.encoded)
        self.next += 1
        if self._newest_bytes >= self._pack_at_bytes:
            self._pack()

    def _pack(self) -> None:
        """Make a segment of what is kept one by one; leave it so where the system has no memory to map."""
        try:
            segment = _Segment(self.next - len(self._newest), self._newest)
        except (OSError, MemoryError):
            # The update that led here is applied already: nothing may fail for want of a better place. Each attempt
            # looks at every entry, so the next one is when as much again has come.
            self._pack_at_bytes = self._newest_bytes + self._segment_bytes
            return
        self._segments.append(segment)
        self._newest, self._newest_bytes, self._pack_at_bytes = [], 0, self._segment_bytes

    def entries_from(self, counter: int) -> Iterator[LogEntry]:
        """Yield the entries from ``counter`` on, which is not before ``first``."""
        start = max(0, bisect_right(self._segments, counter, key=lambda segment: segment.first) - 1)
        for segment in islice(self._segments, start, None):
            yield from segment.entries_from(counter)
        newest = self._newest
        yield from islice(newest, max(0, counter - (self.next - len(newest))), None)

    def forget(self, last: int) -> int:
        """Forget the entries up to ``last``, which is not before ``first``; return how many encoded bytes that was."""
        freed = 0
        while self._segments and self._segments[0].first <= last:
            oldest = self._segments[0]
            freed += oldest.bytes
            if last + 1 < oldest.next:
                oldest.erase(last)
                freed -= oldest.bytes
            else:
                del self._segments[0]
        gone = max(0, last + 1 - (self.next - len(self._newest)))
        newest_bytes = sum([len(entry.encoded) for entry in self._newest[:gone]])
        del self._newest[:gone]
        self._newest_bytes -= newest_bytes
        self._pack_at_bytes = max(self._segment_bytes, self._pack_at_bytes - newest_bytes)
        self.first = last + 1
        return freed + newest_bytes


class _Segment:
    """Consecutive updates of one origin from counter ``first`` on, in one piece of memory.

    Raises ``OSError`` where the system grants none. Nothing is ever added; the oldest entries can be erased in place,
    which maps nothing anew: what frees memory must not fail for want of it.
    """

    __slots__ = ("_applied_s", "_encoded", "_ends", "_memory", "_timestamps", "first")

    def __init__(self, first: int, entries: list[LogEntry]) -> None:
        ends = array("Q", accumulate([len(entry.encoded) for entry in entries], initial=0)).tobytes()
        timestamps = array("Q", [entry.timestamp for entry in entries]).tobytes()
        applied_s = array("d", [entry.applied_s for entry in entries]).tobytes()
        columns = [ends, timestamps, applied_s, *[entry.encoded for entry in entries]]
        # Memory of its own and of no file: it is the system's again as soon as it is forgotten here. What is handed
        # back to Python's allocator stays with the process where anything else lives beside it. Private, since the
        # kernel makes one mapping of private neighbours; shared ones, Python's default, count one by one.
        self._memory = mmap(-1, sum(map(len, columns)), flags=MAP_PRIVATE | MAP_ANONYMOUS)
        self._memory.write(b"".join(columns))
        view, at = memoryview(self._memory).toreadonly(), len(ends) + len(timestamps)
        self.first = first
        # Where each entry begins in ``_encoded``, and at last where the last one ends.
        self._ends = view[: len(ends)].cast("Q")
        self._timestamps = view[len(ends) : at].cast("Q")
        self._applied_s = view[at : at + len(applied_s)].cast("d")
        self._encoded = view[at + len(applied_s) :]

    @property
    def bytes(self) -> int:
        return self._ends[-1] - self._ends[0]

    @property
    def next(self) -> int:
        return self.first + len(self._timestamps)

    def erase(self, last: int) -> None:
        """Forget the entries up to ``last``, which is not before ``first``, so that nothing of them stays in memory:
        some may hold what was deleted and is gone everywhere."""
        count = last + 1 - self.first
        begin = len(self._memory) - len(self._encoded)
        start, end = begin + self._ends[0], begin + self._ends[count]
        self._memory[start:end] = bytes(end - start)
        self.first = last + 1
        self._ends = self._ends[count:]
        self._timestamps = self._timestamps[count:]
        self._applied_s = self._applied_s[count:]
        # Whole pages of what is erased, by now or before, go back at once.
        first_page, end_page = -(-begin // PAGESIZE), end // PAGESIZE
        if first_page < end_page:
            with suppress(OSError):  # Refused where memory is locked; it goes back with the segment then.
                self._memory.madvise(MADV_DONTNEED, first_page * PAGESIZE, (end_page - first_page) * PAGESIZE)

    def entries_from(self, counter: int) -> Iterator[LogEntry]:
        """Yield the entries from ``counter`` on; all of them where it is before ``first``."""
        ends = self._ends
        for i in range(max(0, counter - self.first), len(self._timestamps)):
            yield LogEntry(bytes(self._encoded[ends[i] : ends[i + 1]]), self._timestamps[i], self._applied_s[i])


def _batch(runs: list[Iterator[LogEntry]], limit: int, limit_bytes: int) -> tuple[list[bytes], bool]:
    """Return the first entries of all runs in the order of their timestamps, and whether a limit cut them."""
    entries: Iterable[LogEntry] = runs[0] if len(runs) == 1 else heapq.merge(*runs, key=_timestamp)
    batch: list[bytes] = []
    size = 0
    for entry in entries:
        size += len(entry.encoded)
        if len(batch) >= limit or (batch and size > limit_bytes):
            return batch, True
        batch.append(entry.encoded)
    return batch, False


def _timestamp(entry: LogEntry) -> int:
    return entry.timestamp

"""The log: recent updates by origin. Replicas send their peers from it what they lack.

There are no queues for single peers. A peer lacks what the log has above the peer's clock. So a peer that is away costs
no memory beyond its share of one bounded log, and every replica can send every other one what it lacks, whichever
replica issued it.

Invariant: of each origin o in the log, it has the updates first(o) to last(o) without gaps, and last(o) is the entry of
the replica's clock. The log may drop the oldest updates of an origin at any time, which raises first(o). A peer that
needs an update below first(o) needs a snapshot.

The log stores an update as the bytes of its wire form: it is encoded once, for all peers. The newest updates of an
origin are separate objects. Older ones are packed into *segments*: many updates in one memory mapping. That takes less
memory, and the operating system gets it back page by page when the log drops updates (docs/memory.md).

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
"""Estimated memory of an update in the log, beyond its encoded form."""

MAX_SEGMENTS = 16_384
"""Most full segments that a log may have, whatever its size limit. Each may be a memory mapping of its own, and Linux
allows a process 65,530 mappings by default (vm.max_map_count)."""


class LogEntry(msgspec.Struct, frozen=True, gc=False):
    """One update in the log.

    ``encoded``: its wire form. ``timestamp``: its hybrid time, microseconds.
    ``applied_s``: when it was applied at this replica, monotonic seconds.
    """

    encoded: bytes
    timestamp: int
    applied_s: float


class Delta(NamedTuple):
    """What to send to a peer.

    ``batch``: updates in their wire form, in the order of their timestamps.
    ``truncated``: the log has dropped updates that the peer lacks; it needs a snapshot.
    ``more``: a limit cut the batch; the peer lacks more updates that the log has.
    """

    batch: list[bytes]
    truncated: bool
    more: bool


EMPTY_DELTA = Delta([], truncated=False, more=False)


class UpdateLog:
    """The log of one replica, bounded to an estimated ``limit_bytes``, and a reserve while a peer catches up.

    ``segment_bytes``: encoded size at which updates of one origin are packed into a segment. It is raised if the
    log could otherwise have more than ``MAX_SEGMENTS``.
    ``bytes``: estimated size of all updates. ``count``: number of updates.
    ``_origins``: origin -> its updates; never an empty one.
    """

    __slots__ = ("_origins", "_reserve", "_segment_bytes", "bytes", "count", "limit_bytes")

    def __init__(self, limit_bytes: int, segment_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._reserve = 0
        self._segment_bytes = max(segment_bytes, limit_bytes // MAX_SEGMENTS)
        self._origins: dict[str, _OriginLog] = {}
        self.bytes = 0
        self.count = 0

    def append(self, update: Update, now_s: float) -> None:
        """Add an update that was just applied. Its counter must be the next one of its origin."""
        origin_log = self._origins.get(update.origin)
        if origin_log is None:
            origin_log = self._origins[update.origin] = _OriginLog(update.counter, self._segment_bytes)
        assert origin_log.next == update.counter
        encoded = encode_update(update)
        origin_log.append(LogEntry(encoded, update.timestamp, now_s))
        self.bytes += len(encoded) + ENTRY_OVERHEAD_BYTES
        self.count += 1
        if self.bytes > self.limit_bytes + self._reserve:
            self._shrink()

    def set_reserve(self, reserve_bytes: int) -> None:
        """Let the log grow beyond its limit by ``reserve_bytes``. A smaller reserve takes effect at once."""
        self._reserve = reserve_bytes
        if self.bytes > self.limit_bytes + reserve_bytes:
            self._shrink()

    def estimate_above(self, known: Mapping[str, int]) -> int:
        """Return about how many bytes of the log a peer with the clock ``known`` lacks, by the average update."""
        if not self.count:
            return 0
        lacks = sum(
            origin_log.next - max(known.get(origin, 0) + 1, origin_log.first)
            for origin, origin_log in self._origins.items()
            if known.get(origin, 0) + 1 < origin_log.next
        )
        return self.bytes * lacks // self.count

    def drop_origin(self, origin: str) -> None:
        """Drop all updates of ``origin``. Used when its clock entry jumps, because the log would have a gap."""
        if origin_log := self._origins.get(origin):
            self._drop_until(origin, origin_log.next - 1)

    def trim(self, floor: Mapping[str, int]) -> None:
        """Drop updates that no peer needs. ``floor``: replica id -> highest counter that every member has applied."""
        for origin in list(self._origins):
            self._drop_until(origin, floor.get(origin, 0))

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
        """Return updates that a peer with the clock ``known`` lacks. Counters rise without gaps within each origin.

        ``known``: the peer's acknowledged clock. ``clock``: the clock of this replica.
        ``own``: id of this replica. Its own updates are always included. Updates of other origins (*relayed* ones) are
        included only if they were applied here at or before ``relay_before_s``: until then their origin sends them.
        ``limit``: most updates in the batch. ``limit_bytes``: most encoded bytes; a single update may exceed it.

        Updates of several origins are merged by timestamp. The timestamp of an update is above those of its
        dependencies, so a limit never cuts off a dependency of an update that stays in the batch. In another order, a
        batch could consist of updates that depend on one that no batch ever reaches.
        """
        truncated = False
        lacking: list[Iterator[LogEntry]] = []
        for origin, last in clock.items():
            first = known.get(origin, 0) + 1
            if first > last:
                continue
            origin_log = self._origins.get(origin)
            if origin_log is None or first < origin_log.first:
                # Send nothing of this origin: the peer could not apply it. A snapshot brings it all.
                truncated = True
                continue
            entries = origin_log.entries_from(first)
            if origin != own:
                # Entries of an origin were applied in this order, so the first recent one ends the relayed ones.
                entries = takewhile(lambda entry: entry.applied_s <= relay_before_s, entries)
            lacking.append(entries)
        batch, more = _batch(lacking, limit, limit_bytes)
        return Delta(batch, truncated, more)

    def origins(self) -> list[str]:
        """Return the origins of which the log has updates."""
        return list(self._origins)

    def get(self, dot: Dot) -> Update | None:
        """Return the update with this dot; None if the log does not have it."""
        origin, counter = dot
        origin_log = self._origins.get(origin)
        if origin_log is None or not origin_log.first <= counter < origin_log.next:
            return None
        return decode_update(next(origin_log.entries_from(counter)).encoded)

    def _shrink(self) -> None:
        """Reduce the log to nine tenths of its limit: repeatedly drop the older half of the longest origin."""
        while self.bytes > (self.limit_bytes + self._reserve) * 9 // 10:
            origin, origin_log = max(self._origins.items(), key=lambda item: len(item[1]))
            self._drop_until(origin, origin_log.first + (len(origin_log) - 1) // 2)

    def _drop_until(self, origin: str, last: int) -> None:
        """Drop the updates of ``origin`` up to the counter ``last``; none if the log has none of them."""
        origin_log = self._origins[origin]
        last = min(last, origin_log.next - 1)
        count = last + 1 - origin_log.first
        if count <= 0:
            return
        self.bytes -= origin_log.drop_until(last) + count * ENTRY_OVERHEAD_BYTES
        self.count -= count
        if not origin_log:
            del self._origins[origin]


class _OriginLog:
    """The updates of one origin: counters ``first`` to ``next - 1``, the older ones in segments.

    ``_segments``: consecutive, the oldest first; the first one begins with ``first``.
    ``_newest``: the entries after the last segment, up to ``next - 1``. ``_newest_bytes``: their encoded size.
    ``_pack_at_bytes``: the value of ``_newest_bytes`` at which they are packed into a segment.
    """

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
        """Add the entry with the counter ``next``."""
        self._newest.append(entry)
        self._newest_bytes += len(entry.encoded)
        self.next += 1
        if self._newest_bytes >= self._pack_at_bytes:
            self._pack()

    def _pack(self) -> None:
        """Pack ``_newest`` into a segment. If the system grants no memory for it, leave them as they are."""
        try:
            segment = _Segment(self.next - len(self._newest), self._newest)
        except (OSError, MemoryError):
            # The newest update is applied already, so an error must not reach the caller. An attempt costs time in
            # proportion to all entries; try again only when a whole further segment has arrived.
            self._pack_at_bytes = self._newest_bytes + self._segment_bytes
            return
        self._segments.append(segment)
        self._newest, self._newest_bytes, self._pack_at_bytes = [], 0, self._segment_bytes

    def entries_from(self, counter: int) -> Iterator[LogEntry]:
        """Yield the entries from ``counter`` on. ``counter`` must not be below ``first``."""
        # The last segment that begins at or before ``counter``; the first one if there is none.
        start = max(0, bisect_right(self._segments, counter, key=lambda segment: segment.first) - 1)
        for segment in islice(self._segments, start, None):
            yield from segment.entries_from(counter)
        newest = self._newest
        yield from islice(newest, max(0, counter - (self.next - len(newest))), None)

    def drop_until(self, last: int) -> int:
        """Drop the entries up to ``last``, which is not below ``first``. Return their encoded size in bytes."""
        freed = 0
        while self._segments and self._segments[0].first <= last:
            oldest = self._segments[0]
            freed += oldest.bytes
            if last + 1 < oldest.next:
                oldest.erase_until(last)
                freed -= oldest.bytes
            else:
                del self._segments[0]
        count = max(0, last + 1 - (self.next - len(self._newest)))
        newest_bytes = sum([len(entry.encoded) for entry in self._newest[:count]])
        del self._newest[:count]
        self._newest_bytes -= newest_bytes
        # Keeps the wait after a failed ``_pack`` as long as it was.
        self._pack_at_bytes = max(self._segment_bytes, self._pack_at_bytes - newest_bytes)
        self.first = last + 1
        return freed + newest_bytes


class _Segment:
    """Consecutive updates of one origin from the counter ``first`` on, in one memory mapping.

    No entry is ever added. The oldest entries can be erased in place. That needs no new memory: code that frees memory
    must not fail because there is none. The constructor raises ``OSError`` if the system grants no memory.

    Columns in the mapping: ``_ends``, ``_timestamps``, ``_applied_s``, ``_encoded``. After an erasure they skip the
    erased entries; ``_encoded`` does not, because ``_ends`` contains positions in it.
    """

    __slots__ = ("_applied_s", "_encoded", "_ends", "_memory", "_timestamps", "first")

    def __init__(self, first: int, entries: list[LogEntry]) -> None:
        ends = array("Q", accumulate([len(entry.encoded) for entry in entries], initial=0)).tobytes()
        timestamps = array("Q", [entry.timestamp for entry in entries]).tobytes()
        applied_s = array("d", [entry.applied_s for entry in entries]).tobytes()
        columns = [ends, timestamps, applied_s, *[entry.encoded for entry in entries]]
        # An anonymous mapping goes back to the system as soon as the segment is deleted. Memory from Python's allocator
        # would stay with the process as long as any other object lives beside it. The mapping is private, because the
        # kernel merges neighbouring private mappings into one; each shared one, Python's default, counts separately.
        self._memory = mmap(-1, sum(map(len, columns)), flags=MAP_PRIVATE | MAP_ANONYMOUS)
        self._memory.write(b"".join(columns))
        view, at = memoryview(self._memory).toreadonly(), len(ends) + len(timestamps)
        self.first = first
        # Entry i is ``_encoded[_ends[i]:_ends[i + 1]]``: one position more than there are entries.
        self._ends = view[: len(ends)].cast("Q")
        self._timestamps = view[len(ends) : at].cast("Q")
        self._applied_s = view[at : at + len(applied_s)].cast("d")
        self._encoded = view[at + len(applied_s) :]

    @property
    def bytes(self) -> int:
        """Encoded size of the entries that are not erased."""
        return self._ends[-1] - self._ends[0]

    @property
    def next(self) -> int:
        """Counter after the last entry."""
        return self.first + len(self._timestamps)

    def erase_until(self, last: int) -> None:
        """Erase the entries up to ``last``, which is not below ``first``.

        Their bytes are overwritten, because they may contain values that clients have deleted.
        """
        count = last + 1 - self.first
        begin = len(self._memory) - len(self._encoded)
        start, end = begin + self._ends[0], begin + self._ends[count]
        self._memory[start:end] = bytes(end - start)
        self.first = last + 1
        self._ends = self._ends[count:]
        self._timestamps = self._timestamps[count:]
        self._applied_s = self._applied_s[count:]
        # Return whole erased pages to the system now, those of earlier erasures included.
        first_page, end_page = -(-begin // PAGESIZE), end // PAGESIZE
        if first_page < end_page:
            with suppress(OSError):  # Fails for locked memory. Then the pages go back with the segment.
                self._memory.madvise(MADV_DONTNEED, first_page * PAGESIZE, (end_page - first_page) * PAGESIZE)

    def entries_from(self, counter: int) -> Iterator[LogEntry]:
        """Yield the entries from ``counter`` on; all entries if it is below ``first``."""
        ends = self._ends
        for i in range(max(0, counter - self.first), len(self._timestamps)):
            yield LogEntry(bytes(self._encoded[ends[i] : ends[i + 1]]), self._timestamps[i], self._applied_s[i])


def _batch(by_origin: list[Iterator[LogEntry]], limit: int, limit_bytes: int) -> tuple[list[bytes], bool]:
    """Merge entries of several origins by timestamp. Return as many as the limits allow, and whether more are left."""
    entries: Iterable[LogEntry] = by_origin[0] if len(by_origin) == 1 else heapq.merge(*by_origin, key=_timestamp)
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

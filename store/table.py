"""The key table: the versions of each key, the order of keys, the keys in conflict, and the deadlines.

A key has one version, or several concurrent ones (a *conflict*). A key without versions is not in the table: there are
no tombstones. Versions and tuples of versions are immutable, so a shallow copy of the table is a snapshot of it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec
from sortedcontainers import SortedList

from store.siblings import is_conflict
from store.versions import Version, Versions

KEY_COST_BYTES = 290
"""Estimated bytes of a key without its text and its versions, as the process grows by them (docs/memory.md)."""

VERSION_COST_BYTES = 420
"""Estimated bytes of a version without its value, whose past names three replicas and is shared with no other."""

LAST_CHARACTER = "\U0010ffff"
"""The highest character of Unicode."""

MAX_STALE_DEADLINES = 1000
"""Deadlines of removed versions that may stay in the heap before it is rebuilt (see ``KeyTable.set``)."""


class KeyRange(msgspec.Struct, frozen=True):
    """Which keys to list, and in which order: code points, or the reverse.

    ``prefix``: they start with it. ``end``: they come before it; empty: no end. ``after``: the listing goes on behind
    this key, which need not exist; empty: from its beginning.
    """

    prefix: str = ""
    after: str = ""
    end: str = ""
    reverse: bool = False

    def bounds(self) -> tuple[str, str | None]:
        """Return the lowest key that may be listed, and the lowest above all that may; None: there is no limit."""
        low, ends = self.prefix, [_above_prefix(self.prefix), self.end or None]
        if self.after and self.reverse:
            ends.append(self.after)
        elif self.after:
            # No text lies between a text and the same text with the first character behind it.
            low = max(low, self.after + "\0")
        return low, min((end for end in ends if end is not None), default=None)


def _above_prefix(prefix: str) -> str | None:
    """Return the lowest text above all texts that start with ``prefix``; None if there is none."""
    stem = prefix.rstrip(LAST_CHARACTER)
    return stem[:-1] + chr(ord(stem[-1]) + 1) if stem else None


class TableReader(Protocol):
    """Reads the table in several steps, and so has to know what changes in between (store/cuts.py)."""

    is_over: bool
    """Whether it needs no changes any more."""

    def changing(self, key: str, before: Versions, after: Versions) -> None:
        """Note that ``key`` changes from ``before`` to ``after``."""

    def replaced(self) -> None:
        """Note that the whole table is replaced."""


class KeyTable:
    """Key -> versions, the winner first.

    ``_table``: the versions of each present key; never an empty tuple. ``_keys``: its keys, sorted by code point.
    ``_conflicts``: the keys with several versions.
    ``_deadlines``: heap of (deadline, key, origin, counter). It has an entry for each version with a deadline, and may
    have entries of versions that were removed before their deadline; ``expire`` skips these.
    ``_readers``: who has to know of every change; nearly always nobody.
    ``bytes``: estimated size of all keys and versions (``cost``).
    """

    __slots__ = ("_conflicts", "_deadlines", "_keys", "_readers", "_table", "bytes")

    def __init__(self) -> None:
        self._table: dict[str, Versions] = {}
        self._keys: SortedList[str] = SortedList()
        self._conflicts: set[str] = set()
        self._deadlines: list[tuple[int, str, str, int]] = []
        self._readers: tuple[TableReader, ...] = ()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._table)

    def get(self, key: str) -> Versions:
        """Return the versions of ``key``, the winner first; empty if the key is absent."""
        return self._table.get(key, ())

    def set(self, key: str, versions: Versions) -> None:
        """Set the versions of ``key``, the winner first. An empty tuple removes the key."""
        before = self._table.get(key, ())
        if self._readers:
            self._tell_readers(key, before, versions)
        if len(versions) == len(before) == 1:
            # By far the most frequent case: one version replaces another one.
            self.bytes += len(versions[0].value) - len(before[0].value)
            self._table[key] = versions
        else:
            self.bytes += cost(key, versions) - cost(key, before)
            self._set_and_index(key, versions, before)
        for version in versions:
            if version.expires is not None and version not in before:
                heapq.heappush(self._deadlines, (version.expires, key, version.origin, version.counter))
                if len(self._deadlines) > 2 * len(self._table) + MAX_STALE_DEADLINES:
                    # A client that renews a key again and again leaves a stale deadline each time. Rebuild the heap
                    # when most of it may be stale; the cost of that, spread over the pushes, is constant.
                    self._rebuild_deadlines()

    def add_reader(self, reader: TableReader) -> None:
        """Tell ``reader`` of every change from now on, until it is over."""
        self._readers = (*(each for each in self._readers if not each.is_over), reader)

    def _tell_readers(self, key: str, before: Versions, after: Versions) -> None:
        for reader in self._readers:
            if reader.is_over:
                self._readers = tuple([each for each in self._readers if not each.is_over])
            else:
                reader.changing(key, before, after)

    def _set_and_index(self, key: str, versions: Versions, before: Versions) -> None:
        """Set the versions of ``key``, and update the indexes of keys and conflicts."""
        if versions:
            self._table[key] = versions
            if not before:
                self._keys.add(key)
        elif before:
            del self._table[key]
            self._keys.remove(key)
        if is_conflict(versions):
            self._conflicts.add(key)
        elif len(before) > 1:
            self._conflicts.discard(key)

    @property
    def next_deadline(self) -> float:
        """No version expires before this wall time, microseconds. Infinity if no version has a deadline."""
        return self._deadlines[0][0] if self._deadlines else math.inf

    def expire(self, wall_us: int) -> list[tuple[str, Version]]:
        """Remove the versions whose deadline is at or before ``wall_us``. Return them with their keys."""
        expired: list[tuple[str, Version]] = []
        while self._deadlines and self._deadlines[0][0] <= wall_us:
            _, key, origin, counter = heapq.heappop(self._deadlines)
            versions = self._table.get(key, ())
            kept = tuple(version for version in versions if version.dot != (origin, counter))
            if len(kept) < len(versions):
                expired.extend((key, version) for version in versions if version not in kept)
                self.set(key, kept)
        return expired

    def keys(self, wanted: KeyRange) -> Iterator[str]:
        """Return the keys in ``wanted``, in its order."""
        low, high = wanted.bounds()
        if high is not None and low >= high:
            return iter(())
        keys: Iterator[str] = self._keys.irange(low, high, inclusive=(True, False), reverse=wanted.reverse)
        return keys

    def conflicting_keys(self, wanted: KeyRange) -> Iterator[str]:
        """Like ``keys``, but only keys with several versions."""
        low, high = wanted.bounds()
        keys = [key for key in self._conflicts if low <= key and (high is None or key < high)]
        return iter(sorted(keys, reverse=wanted.reverse))

    def count(self, wanted: KeyRange) -> int:
        """Return the number of keys in ``wanted``, in logarithmic time."""
        low, high = wanted.bounds()
        end: int = len(self._keys) if high is None else self._keys.bisect_left(high)
        start: int = self._keys.bisect_left(low)
        return max(0, end - start)

    @property
    def conflicts(self) -> int:
        """Number of keys with several versions."""
        return len(self._conflicts)

    def copy(self) -> dict[str, Versions]:
        """Return a shallow copy: key -> versions. It is a snapshot, because versions are immutable."""
        return self._table.copy()

    def replace(self, table: Mapping[str, Versions]) -> None:
        """Replace the whole content by ``table``, which has no empty tuples."""
        for reader in self._readers:
            reader.replaced()
        self._table = dict(table)
        self._keys = SortedList(self._table)
        self._conflicts = {key for key, versions in self._table.items() if is_conflict(versions)}
        self._rebuild_deadlines()
        self.bytes = sum(cost(key, versions) for key, versions in self._table.items())

    def _rebuild_deadlines(self) -> None:
        """Make the heap of the deadlines of the present versions only."""
        self._deadlines = [
            (version.expires, key, version.origin, version.counter)
            for key, versions in self._table.items()
            for version in versions
            if version.expires is not None
        ]
        heapq.heapify(self._deadlines)


def cost(key: str, versions: Versions) -> int:
    """Return the estimated bytes by which ``key`` with these versions makes a process grow; 0 without versions."""
    if not versions:
        return 0
    size = KEY_COST_BYTES + len(key)
    for version in versions:
        size += VERSION_COST_BYTES + len(version.value)
    return size

"""The key table: which versions every key holds now, in what order keys are listed, and what expires when.

A key holds one version, or several concurrent ones (a *conflict*); a key that holds none is not in the table:
there are no tombstones. Versions and tuples of versions are immutable, so a shallow copy of the table is a
snapshot of it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping

from sortedcontainers import SortedList

from store.versions import Version, Versions

KEY_COST_BYTES = 420
"""Estimated bytes of a key with one version, beyond the text of the key and the value (docs/memory.md)."""


MAX_STALE_DEADLINES = 1000
"""Deadlines of versions that are gone already which are kept before they are sorted out."""


class KeyTable:
    """Key -> versions, the winner first. ``bytes``: estimated size of all that is held."""

    __slots__ = ("_conflicts", "_deadlines", "_keys", "_table", "bytes")

    def __init__(self) -> None:
        self._table: dict[str, Versions] = {}
        self._keys: SortedList[str] = SortedList()
        self._conflicts: set[str] = set()
        self._deadlines: list[tuple[int, str, str, int]] = []
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._table)

    def get(self, key: str) -> Versions:
        """Return the versions of ``key``, the winner first; empty when the key is absent."""
        return self._table.get(key, ())

    def set(self, key: str, versions: Versions) -> None:
        """Let ``key`` hold exactly ``versions``, the winner first; none of them makes it absent."""
        held = self._table.get(key, ())
        if len(versions) == len(held) == 1:
            # One replaces another: so it is nearly always.
            self.bytes += len(versions[0].value) - len(held[0].value)
            self._table[key] = versions
        else:
            self.bytes += cost(key, versions) - cost(key, held)
            self._set_more_or_fewer(key, versions, held)
        for version in versions:
            if version.expires is not None and version not in held:
                heapq.heappush(self._deadlines, (version.expires, key, version.origin, version.counter))
                if len(self._deadlines) > 2 * len(self._table) + MAX_STALE_DEADLINES:
                    # Most are of versions that were replaced long before their time.
                    self._collect_deadlines()

    def _set_more_or_fewer(self, key: str, versions: Versions, held: Versions) -> None:
        if versions:
            self._table[key] = versions
            if not held:
                self._keys.add(key)
        elif held:
            del self._table[key]
            self._keys.remove(key)
        if len(versions) > 1:
            self._conflicts.add(key)
        elif len(held) > 1:
            self._conflicts.discard(key)

    @property
    def next_deadline(self) -> float:
        """The earliest deadline, wall microseconds; infinity when nothing expires."""
        return self._deadlines[0][0] if self._deadlines else math.inf

    def expire(self, wall_us: int) -> list[Version]:
        """Take out the versions whose deadline is not after ``wall_us`` and return them."""
        gone: list[Version] = []
        while self._deadlines and self._deadlines[0][0] <= wall_us:
            _, key, origin, counter = heapq.heappop(self._deadlines)
            held = self._table.get(key, ())
            kept = tuple(version for version in held if version.dot != (origin, counter))
            if len(kept) < len(held):
                gone.extend(version for version in held if version not in kept)
                self.set(key, kept)
        return gone

    def keys(self, prefix: str, after: str) -> Iterator[str]:
        """Yield the keys that start with ``prefix`` and come after ``after``, in code point order."""
        start = max(prefix, after)
        for key in self._keys.irange(minimum=start):
            if not key.startswith(prefix):
                return
            if key != after or not after:
                yield key

    def conflicting_keys(self, prefix: str, after: str) -> Iterator[str]:
        """Like ``keys``, but only those that hold several versions."""
        return (key for key in sorted(self._conflicts) if key.startswith(prefix) and key > after)

    @property
    def conflicts(self) -> int:
        """How many keys hold several versions."""
        return len(self._conflicts)

    def copy(self) -> dict[str, Versions]:
        """Return a snapshot: key -> versions. Costs a pointer a key."""
        return self._table.copy()

    def replace(self, table: Mapping[str, Versions]) -> None:
        """Hold ``table`` from now on and nothing else."""
        self._table = dict(table)
        self._keys = SortedList(self._table)
        self._conflicts = {key for key, versions in self._table.items() if len(versions) > 1}
        self._collect_deadlines()
        self.bytes = sum(cost(key, versions) for key, versions in self._table.items())

    def _collect_deadlines(self) -> None:
        self._deadlines = [
            (version.expires, key, version.origin, version.counter)
            for key, versions in self._table.items()
            for version in versions
            if version.expires is not None
        ]
        heapq.heapify(self._deadlines)


def cost(key: str, versions: Versions) -> int:
    """Return the estimated bytes that ``key`` costs with these versions; 0 without any."""
    if not versions:
        return 0
    size = len(key)
    for version in versions:
        size += KEY_COST_BYTES + len(version.value)
    return size

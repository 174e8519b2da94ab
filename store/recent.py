"""Recent changes: which keys the latest updates and expiries of one replica have touched.

The change feed (store/feed.py) asks which keys have changed since a client looked last. The answer is a set of keys,
not of values, so it is small, and a client that falls behind costs nothing: it gets the present state of these keys.

The memory is bounded. The oldest changes are forgotten, and for each origin the *floor* says up to which counter. A
client whose clock does not cover every floor has to read everything again. A joined snapshot raises floors too, because
it does not say which keys have changed.

**Expiry.** An expiry has no dot: each replica judges deadlines by its own wall clock. So expiries have *times* of their
own: the deadline or, if that is not above every earlier time, the next microsecond. They rise strictly, also if the
wall clock is set back. A client that has been told everything up to ``expiry_time(now)`` needs only later ones. The
time in the token of another replica, whose wall clock may be ahead, is taken as no later than the present time here:
what expires from now on is told, perhaps a second time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from store.clock import Clock

ENTRY_BYTES: Final = 80
"""Estimated bytes of an update, and of each key that it touched, without the text of the key."""


class RecentChanges:
    """The keys that the latest updates and expiries have touched. Not thread-safe.

    ``limit_bytes``: estimated size above which the oldest changes are forgotten. ``bytes``: the present size.
    """

    __slots__ = (
        "_by_origin",
        "_expired",
        "_expired_floor",
        "_floors",
        "_last_time",
        "_order",
        "bytes",
        "limit_bytes",
    )

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._by_origin: dict[str, deque[tuple[int, tuple[str, ...]]]] = {}
        self._expired: deque[tuple[int, str]] = deque()
        self._order: deque[str] = deque()  # origin of each change in the order of arrival; empty for an expiry
        self._floors: Clock = {}
        self._expired_floor = 0
        self._last_time = 0

    def applied(self, origin: str, counter: int, keys: tuple[str, ...]) -> None:
        """Note that an update, the next one of its origin, has written ``keys``."""
        changes = self._by_origin.get(origin)
        if changes is None:
            changes = self._by_origin[origin] = deque()
        changes.append((counter, keys))
        self._add(origin, keys)

    def expired(self, deadline_us: int, key: str) -> None:
        """Note that a version of ``key`` with this deadline has expired."""
        self._last_time = max(deadline_us, self._last_time + 1)
        self._expired.append((self._last_time, key))
        self._add("", (key,))

    def jumped(self, origin: str, counter: int) -> None:
        """Note that a joined snapshot has raised the clock's entry of ``origin`` to ``counter``."""
        self._floors[origin] = counter
        changes = self._by_origin.pop(origin, None)
        if changes is not None:
            self.bytes -= sum(_cost(keys) for _, keys in changes)
            self._order = deque(each for each in self._order if each != origin)

    def expiry_time(self, now_us: int) -> int:
        """Return the time of the present moment: no expiry so far has a later one, and all later expiries have."""
        self._last_time = max(now_us, self._last_time)
        return self._last_time

    def touched(self, clock: Mapping[str, int], expired_us: int) -> set[str] | None:
        """Return the keys touched by updates that ``clock`` does not cover, and by expiries later than ``expired_us``.

        None if some of these changes are forgotten. The cost is proportional to the changes that are returned.
        """
        if expired_us < self._expired_floor:
            return None
        for origin, floor in self._floors.items():
            if clock.get(origin, 0) < floor:
                return None
        keys: set[str] = set()
        for origin, changes in self._by_origin.items():
            known = clock.get(origin, 0)
            if changes and changes[-1][0] > known:
                for counter, written in reversed(changes):
                    if counter <= known:
                        break
                    keys.update(written)
        for time_us, key in reversed(self._expired):
            if time_us <= expired_us:
                break
            keys.add(key)
        return keys

    def _add(self, origin: str, keys: tuple[str, ...]) -> None:
        self._order.append(origin)
        self.bytes += _cost(keys)
        while self.bytes > self.limit_bytes:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        origin = self._order.popleft()
        if origin:
            changes = self._by_origin[origin]
            self._floors[origin], keys = changes.popleft()
            if not changes:
                del self._by_origin[origin]
        else:
            self._expired_floor, key = self._expired.popleft()
            keys = (key,)
        self.bytes -= _cost(keys)


def _cost(keys: tuple[str, ...]) -> int:
    return ENTRY_BYTES + sum(ENTRY_BYTES + len(key) for key in keys)

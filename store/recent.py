"""Recent changes: which keys the latest updates and expiries of one replica have touched.

The change feed (store/feed.py) asks which keys have changed since a client looked last. The answer is a set of keys,
not of values, so it is small, and a client that falls behind costs nothing: it gets the present state of these keys.

An update of a key replaces what is remembered of the updates of the key in its causal past: a client whose clock lacks
one of those lacks this one too, because clocks are causally closed. So the memory grows with the number of keys, not
with the number of updates.

It is bounded: beyond the bound, the oldest changes of the origin with the most keys are forgotten, and the *floor* of
the origin says up to which counter. So are those of incarnations that ended long ago. A client whose clock does not
cover every floor has to read everything again. A joined snapshot raises floors too, because it does not say which keys
have changed.

**Expiry.** An expiry has no dot: each replica judges deadlines by its own wall clock. So expiries have *times* of their
own: the deadline or, if that is not above every earlier time, the next microsecond. They rise strictly, also if the
wall clock is set back. A client that has been told everything up to ``expiry_time(now)`` needs only later ones. The
time in the token of another replica, whose wall clock may be ahead, is taken as no later than the present time here:
what expires from now on is told, perhaps a second time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import islice
from typing import Final, NamedTuple

from store.clock import MAX_COUNTER, Clock, Dot

ENTRY_BYTES: Final = 160
"""Estimated bytes of one remembered key, without its text."""

MAX_ENDED: Final = 4
"""Ended incarnations whose changes are remembered: those that ended last, as far as is known."""

EXPIRED: Final = ""
"""Stands for the origin of expiries: no replica id is empty."""


class DeletingCounter(int):
    """The counter of an update that deleted the key. It compares like any other, and takes 16 bytes more."""

    __slots__ = ()


class ChangesOf(NamedTuple):
    """A copy of the recent changes of one origin. Those with a counter above ``known`` are wanted.

    ``keys``, ``counters``: each key with the counter of its latest update, rising.
    """

    keys: list[str]
    counters: list[int]
    known: int


class ChangesOfKey(NamedTuple):
    """What is remembered of one key.

    ``updates``: its updates that no other remembered update follows, and whether each deleted it. ``expired_us``: when
    a version of it expired last; None: no expiry is remembered. ``is_complete``: nothing is forgotten, of any key.
    """

    updates: dict[Dot, bool]
    expired_us: int | None
    is_complete: bool


class RecentChanges:
    """The keys that the latest updates and expiries have touched. Not thread-safe.

    ``limit_bytes``: estimated size above which changes are forgotten. ``bytes``: the present size.
    ``_by_origin``: origin -> key -> counter of its latest update of the key, rising; for expiries, their times. The
    counter of a delete is a ``DeletingCounter``.
    ``_floors``: origin -> the highest counter that is forgotten.
    """

    __slots__ = ("_by_origin", "_floors", "_last_time", "bytes", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._by_origin: dict[str, dict[str, int]] = {}
        self._floors: Clock = {}
        self._last_time = 0

    def applied(self, origin: str, counter: int, deps: Mapping[str, int], key: str, *, deletes: bool = False) -> None:
        """Note that an update, the next one of its origin, has written ``key``. ``deps``: as in ``Update``.

        ``deletes``: it deleted the key.
        """
        changes = self._by_origin.get(origin)
        if changes is None:
            changes = self._by_origin[origin] = {}
        cost = ENTRY_BYTES + len(key)
        if changes.pop(key, None) is None:
            self.bytes += cost
        # A dict keeps the order of insertion.
        changes[key] = DeletingCounter(counter) if deletes else counter
        for other in deps:
            others = self._by_origin.get(other)
            if others and others.get(key, MAX_COUNTER) <= deps[other]:
                del others[key]
                self.bytes -= cost
        if self.bytes > self.limit_bytes:
            self._shrink()

    def expired(self, deadline_us: int, key: str) -> None:
        """Note that a version of ``key`` with this deadline has expired."""
        self._last_time = max(deadline_us, self._last_time + 1)
        self.applied(EXPIRED, self._last_time, {}, key)

    def jumped(self, origin: str, counter: int) -> None:
        """Note that a joined snapshot has raised the clock's entry of ``origin`` to ``counter``."""
        self._floors[origin] = counter
        self._forget_origin(origin)

    def forget_ended(self, present: Collection[str]) -> None:
        """Forget the changes of ended incarnations, but for ``MAX_ENDED``. ``present``: ids of those that have not."""
        ended = [origin for origin in self._by_origin if origin != EXPIRED and origin not in present]
        for origin in ended[:-MAX_ENDED]:
            latest = max(self._by_origin[origin].values(), default=0)
            self._floors[origin] = max(self._floors.get(origin, 0), latest)
            self._forget_origin(origin)

    def _forget_origin(self, origin: str) -> None:
        for key in self._by_origin.pop(origin, ()):
            self.bytes -= ENTRY_BYTES + len(key)

    def expiry_time(self, now_us: int) -> int:
        """Return the time of the present moment: no expiry so far has a later one, and all later expiries have."""
        self._last_time = max(now_us, self._last_time)
        return self._last_time

    def touched(self, clock: Mapping[str, int], expired_us: int) -> set[str] | None:
        """Return the keys touched by updates that ``clock`` does not cover, and by expiries later than ``expired_us``.

        None if some of these changes are forgotten. The cost is proportional to the number of keys that are returned.
        """
        if self._has_forgotten(clock, expired_us):
            return None
        keys: set[str] = set()
        for origin, changes in self._by_origin.items():
            known = clock.get(origin, 0) if origin else expired_us
            for key, counter in reversed(changes.items()):
                if counter <= known:
                    break
                keys.add(key)
        return keys

    def touches_more(self, clock: Mapping[str, int], expired_us: int, count: int) -> bool:
        """Return whether ``touched`` would find more than ``count`` keys of one origin. It costs less than that."""
        for origin, changes in self._by_origin.items():
            if len(changes) > count:
                known = clock.get(origin, 0) if origin else expired_us
                if next(islice(reversed(changes.values()), count, None)) > known:
                    return True
        return False

    def copy_since(self, clock: Mapping[str, int], expired_us: int) -> list[ChangesOf] | None:
        """Return copies of all that ``touched`` would have to look at; None if some of it is forgotten.

        To copy takes a few nanoseconds for each key, a tenth of what ``touched`` takes.
        """
        if self._has_forgotten(clock, expired_us):
            return None
        copies = []
        for origin, changes in self._by_origin.items():
            known = clock.get(origin, 0) if origin else expired_us
            if next(reversed(changes.values()), 0) > known:
                copies.append(ChangesOf(list(changes), list(changes.values()), known))
        return copies

    def of_key(self, key: str) -> ChangesOfKey:
        """Return what is remembered of ``key``. The cost is proportional to the number of origins."""
        found = {origin: changes[key] for origin, changes in self._by_origin.items() if key in changes}
        expired_us = found.pop(EXPIRED, None)
        updates = {(origin, int(counter)): isinstance(counter, DeletingCounter) for origin, counter in found.items()}
        return ChangesOfKey(updates, expired_us, not self._floors)

    def keys_of(self, dots: Collection[Dot], limit: int) -> dict[Dot, str]:
        """Return, for each update in ``dots``, the first of its keys that is remembered; no entry without one.

        ``limit``: how many of the latest changes of each origin are looked at.
        """
        lowest: dict[str, int] = {}
        for origin, counter in dots:
            lowest[origin] = min(counter, lowest.get(origin, counter))
        keys: dict[Dot, str] = {}
        for origin, least in lowest.items():
            for key, counter in islice(reversed(self._by_origin.get(origin, {}).items()), limit):
                if counter < least:
                    break
                keys[origin, counter] = key  # The first key of an update comes last.
        return keys

    def _has_forgotten(self, clock: Mapping[str, int], expired_us: int) -> bool:
        """Return whether changes are forgotten that ``clock`` and ``expired_us`` do not cover."""
        return any((clock.get(origin, 0) if origin else expired_us) < floor for origin, floor in self._floors.items())

    def _shrink(self) -> None:
        """Reduce the size to fifteen sixteenths of the limit."""
        while self.bytes > self.limit_bytes * 15 // 16:
            origin, changes = max(self._by_origin.items(), key=lambda item: len(item[1]))
            # Several at once: to find the first entry of a dict takes as long as entries were removed before it.
            for key in list(islice(changes, len(changes) // 16 + 1)):
                self._floors[origin] = changes.pop(key)
                self.bytes -= ENTRY_BYTES + len(key)
            if not changes:
                del self._by_origin[origin]

"""Markers: they keep causal metadata small although incarnations come and go.

Every start of a replica creates a new incarnation, which gets a new entry in every clock. Replicas keep the entries of
ended incarnations for ever, because their clocks must stay exact. Clients and new updates should not have to carry
them. So a replica whose clock has such entries issues a **marker**: an update without writes whose past is the
replica's *whole* clock. Once every member has applied the marker, its one dot may replace any entry of an ended
incarnation that the marker's past covers. This is sound because clocks are causally closed: a replica that has applied
the dot has applied all of its past.

* The past must be the whole clock. Otherwise the dot would stand for less than the entries that it replaces.
* Every member must have applied the marker before it is used. Otherwise a client's request would wait for the marker
  at a replica that has everything the client has seen.

Once usable, a marker stays usable: a replica that starts later serves clients only after it has everything that its
peers had.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from store.clock import Clock, covers


class Marker(NamedTuple):
    """One marker: its dot (``origin``, ``counter``) and its past without the entry of ``origin``."""

    origin: str
    counter: int
    past: Clock


class Markers:
    """The markers of one replica, and the replacements of clock entries that they allow.

    ``_unusable``: applied here, but not yet known to be applied by every member.
    ``_usable``: applied by every member. No usable marker is superseded by another one.
    ``_substitutes``: replica id -> (limit, origin, counter): the dot (origin, counter) of a usable marker may replace
    a clock entry of this id up to ``limit``. Never contains the id of a present incarnation.
    """

    __slots__ = ("_substitutes", "_unusable", "_usable")

    def __init__(self) -> None:
        self._unusable: list[Marker] = []
        self._usable: list[Marker] = []
        self._substitutes: dict[str, tuple[int, str, int]] = {}

    def add(self, marker: Marker) -> None:
        """Add a marker that was applied here or arrived in a snapshot. Adding it again has no effect."""
        if marker not in self._unusable and marker not in self._usable:
            self._unusable.append(marker)

    def all(self) -> list[Marker]:
        """Return all markers. A snapshot contains them, because its receiver never gets these updates."""
        return [*self._usable, *self._unusable]

    def cover_retired(self, retired: Clock, present: Collection[str]) -> bool:
        """Return whether the past of one marker covers all of ``retired``, so that no new marker is needed.

        Only markers of present incarnations count, usable or not: the dot of another one is a retired entry itself.
        """
        return any(marker.origin in present and covers(marker.past, retired) for marker in self.all())

    def promote(self, common_clock: Mapping[str, int], present: Collection[str]) -> None:
        """Make the markers usable that every member has applied, and recompute the replacements.

        ``common_clock``: a clock that the clock of every member covers.
        ``present``: ids of the members' present incarnations. Their entries are never replaced.
        """
        for marker in [m for m in self._unusable if m.counter <= common_clock.get(m.origin, 0)]:
            self._unusable.remove(marker)
            self._usable.append(marker)
        self._usable = [m for m in self._usable if not self._is_superseded(m, present)]
        self._substitutes = {}
        for marker in self._usable:
            for replica, counter in marker.past.items():
                if replica not in present and self._substitutes.get(replica, (0,))[0] < counter:
                    self._substitutes[replica] = (counter, marker.origin, marker.counter)

    def simplify(self, past: Clock) -> Clock:
        """Return ``past`` with the dots of usable markers in place of the entries that they cover.

        Returns ``past`` itself, not a copy, if nothing can be replaced.
        """
        substitutes = self._substitutes
        if not substitutes or substitutes.keys().isdisjoint(past):
            return past
        simplified: Clock = {}
        for replica, counter in past.items():
            limit, origin, marker_counter = substitutes.get(replica, (0, "", 0))
            if counter <= limit:
                replica, counter = origin, marker_counter
            # Several entries may become the same dot, or meet a higher entry of the marker's origin.
            if simplified.get(replica, 0) < counter:
                simplified[replica] = counter
        return simplified

    def _is_superseded(self, marker: Marker, present: Collection[str]) -> bool:
        """Return whether a usable marker of a present incarnation covers the past of ``marker``, and its dot."""
        for later in self._usable:
            if later is marker or later.origin not in present:
                continue
            if later.origin == marker.origin and later.counter > marker.counter:
                return True
            # The dot of an ended incarnation's marker is a retired entry itself: drop the marker as soon as another one
            # covers that dot. A present incarnation keeps its newest marker; that makes one for each member at most.
            if marker.origin not in present and later.past.get(marker.origin, 0) >= marker.counter:
                return True
        return False

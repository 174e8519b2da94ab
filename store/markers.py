"""Markers: how clients' metadata stays small although incarnations come and go.

Every start of a replica is a new incarnation with a new entry in everybody's clock. Replicas keep those
entries for ever, exact; clients and new updates should not have to carry them. So a replica whose clock names
incarnations that are over issues a **marker**: an update without writes whose past is its *whole* clock. Once
every member has the marker's dot, any entry that the marker's past covers may be replaced by that one dot:
whoever has the dot has all of its past, because clocks are causally closed.

* The past must be the whole clock, or the dot would stand for less than what it replaces.
* The marker must be everywhere first, or a client would be deferred for it where nothing it saw is missing.

Once usable, a marker stays so: a member that starts later serves only when it has everything its peers had.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from store.clock import Clock, covers


class Marker(NamedTuple):
    """One marker: the dot (``origin``, ``counter``) and the clock that it stands for, without its own dot."""

    origin: str
    counter: int
    past: Clock


class Markers:
    """The markers known here, and the replacements that they allow."""

    __slots__ = ("_known", "_substitutes", "_usable")

    def __init__(self) -> None:
        self._known: list[Marker] = []
        self._usable: list[Marker] = []
        self._substitutes: dict[str, tuple[int, str, int]] = {}

    def add(self, marker: Marker) -> None:
        """Take in a marker that was applied here, or that came with a snapshot. Again is harmless."""
        if marker not in self._known and marker not in self._usable:
            self._known.append(marker)

    def all(self) -> list[Marker]:
        """Return what a snapshot has to carry, because its receiver never sees these updates."""
        return [*self._usable, *self._known]

    def cover_retired(self, rest: Clock, present: Collection[str]) -> bool:
        """Return whether one marker of a present incarnation, usable yet or not, covers all entries of ``rest``."""
        return any(marker.origin in present and covers(marker.past, rest) for marker in self.all())

    def promote(self, everybody: Mapping[str, int], present: Collection[str]) -> None:
        """Make the markers usable that every member has, and work out the replacements.

        ``everybody``: a clock that every member is known to cover. ``present``: the ids of the members'
        present incarnations: their entries are never replaced.
        """
        for marker in [m for m in self._known if m.counter <= everybody.get(m.origin, 0)]:
            self._known.remove(marker)
            self._usable.append(marker)
        self._usable = [m for m in self._usable if not self._superseded(m, present)]
        self._substitutes = {}
        for marker in self._usable:
            for replica, counter in marker.past.items():
                if replica not in present and self._substitutes.get(replica, (0,))[0] < counter:
                    self._substitutes[replica] = (counter, marker.origin, marker.counter)

    def simplify(self, past: Clock) -> Clock:
        """Return ``past`` with entries replaced by markers' dots where that is allowed, else ``past`` itself."""
        substitutes = self._substitutes
        if not substitutes or substitutes.keys().isdisjoint(past):
            return past
        simple: Clock = {}
        for replica, counter in past.items():
            limit, origin, dot = substitutes.get(replica, (0, "", 0))
            if counter <= limit:
                replica, counter = origin, dot
            if simple.get(replica, 0) < counter:
                simple[replica] = counter
        return simple

    def _superseded(self, marker: Marker, present: Collection[str]) -> bool:
        """Whether a later usable marker stands for all that this one does, and for its dot."""
        for later in self._usable:
            if later is marker or later.origin not in present:
                continue
            if later.origin == marker.origin and later.counter > marker.counter:
                return True
            if marker.origin not in present and later.past.get(marker.origin, 0) >= marker.counter:
                return True
        return False

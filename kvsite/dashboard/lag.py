"""Who is behind, by how much, and for how long.

Statuses are taken one after another while writes go on: that some replica lacks an update which another just issued
says nothing. What says something is an update that was known a while ago and is lacking still. So the highest clock
seen in each snapshot is remembered, and a replica is behind since the first of them that its clock does not reach.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from kvsite.dashboard.cluster_state import Clock, Snapshot

REMEMBERED = 240
"""Snapshots that are remembered: two minutes at two a second."""


def missing(clock: Clock, highest: Clock) -> int:
    """Return how many updates of ``highest`` are beyond ``clock``."""
    return sum(n - min(n, clock.get(id_, 0)) for id_, n in highest.items())


def highest_of(snapshot: Snapshot) -> Clock:
    """Return replica id -> the highest counter that anybody is known to have seen, in a queue or in a clock."""
    highest: Clock = {}

    def note(clock: Mapping[str, int]) -> None:
        for id_, counter in clock.items():
            if counter > highest.get(id_, 0):
                highest[id_] = counter

    for replica in snapshot.replicas:
        note(replica.clock or {})
        if replica.status:
            for waiting in replica.status.pending:
                note(dict([waiting.dot]))
                note(dict([waiting.waits_for]))
    return highest


class Lag:
    """Remembers the highest clocks of late. Not thread-safe."""

    def __init__(self) -> None:
        self._highest: deque[tuple[float, Clock]] = deque(maxlen=REMEMBERED)

    def behind_s(self, snapshot: Snapshot, now_s: float) -> dict[str, float]:
        """Return address -> for how many seconds it has been lacking something, of the replicas that lack anything.

        0 where what is lacking was not known before. ``now_s``: monotonic.
        """
        latest = highest_of(snapshot)
        self._highest.append((now_s, latest))
        behind: dict[str, float] = {}
        for replica in snapshot.replicas:
            clock = replica.clock or {}
            if missing(clock, latest):
                since_s = (at_s for at_s, highest in self._highest if missing(clock, _meet(highest, latest)))
                behind[replica.address] = now_s - next(since_s, now_s)
        return behind


def _meet(highest: Clock, latest: Clock) -> Clock:
    """Return what both reach: updates that died with their replica are lacking no more once nobody has them."""
    return {id_: min(counter, latest[id_]) for id_, counter in highest.items() if id_ in latest}

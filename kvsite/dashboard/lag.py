"""Who is behind, by how much, and for how long.

Statuses are taken one after another while writes go on: that some replica lacks an update which another just issued
says nothing. What says something is an update that was known a while ago and is lacking still. So the highest clock
seen in each snapshot is remembered, and a replica is behind since the first of them that its clock does not reach.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from kvsite.dashboard.snapshot import Clock, Snapshot

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
                note(dict((waiting.dot, waiting.waits_for)))
    return highest


class Lag:
    """Remembers the highest clocks of late. Not thread-safe."""

    def __init__(self) -> None:
        self._highest: deque[tuple[int, Clock]] = deque(maxlen=REMEMBERED)

    def behind_s(self, snapshot: Snapshot) -> dict[str, float]:
        """Return address -> seconds for which it has been lacking something; 0 where that is not known to be old."""
        self._highest.append((snapshot.wall_us, highest_of(snapshot)))
        behind: dict[str, float] = {}
        for replica in snapshot.replicas:
            clock = replica.clock or {}
            since_us = next((at_us for at_us, highest in self._highest if missing(clock, highest)), snapshot.wall_us)
            behind[replica.address] = max(0.0, (snapshot.wall_us - since_us) / 1e6)
        return behind

"""Which replicas lag, by how many updates and for how long.

The statuses of the replicas are not taken at the same instant. While writes go on, a replica always lacks updates that
another replica has just issued, so the number of missing updates alone says nothing. A replica lags if it still lacks
an update that was known some time ago. ``LagTracker`` therefore remembers the join of all known clocks of each cluster
state. A replica has lagged since the oldest of these joined clocks that its own clock does not cover.
"""

from __future__ import annotations

from collections import deque

from kvsite.dashboard.cluster_state import ClusterState
from store.clock import Clock, covers, join_into

MAX_REMEMBERED = 240
"""Cluster states whose joined clocks are remembered: two minutes at two polls per second."""


def highest_known(cluster: ClusterState) -> Clock:
    """Return the join of all known clocks: replica id -> highest counter in any clock or pending queue."""
    highest: Clock = {}
    for replica in cluster.replicas:
        join_into(highest, replica.clock or {})
        if replica.status:
            for pending in replica.status.pending:
                join_into(highest, dict([pending.dot]))
                join_into(highest, dict([pending.waits_for]))
    return highest


class LagTracker:
    """Remembers the joined clocks of the last two minutes. Not thread-safe."""

    def __init__(self) -> None:
        self._highest: deque[tuple[float, Clock]] = deque(maxlen=MAX_REMEMBERED)
        """(monotonic seconds, join of all known clocks), oldest first."""

    def lag_s(self, cluster: ClusterState, now_s: float) -> dict[str, float]:
        """Return address -> for how many seconds the replica has lacked updates, for each replica that lacks any.

        The value is 0 if no missing update was known before. A replica lacks nothing for longer than it has run.
        ``now_s``: monotonic.
        """
        latest = highest_known(cluster)
        self._highest.append((now_s, latest))
        lag_s: dict[str, float] = {}
        for replica in cluster.replicas:
            clock = replica.clock or {}
            if not covers(clock, latest):
                since_s = (at_s for at_s, highest in self._highest if not covers(clock, _intersection(highest, latest)))
                lasts_s = now_s - next(since_s, now_s)
                if replica.is_reachable and replica.status:
                    lasts_s = min(lasts_s, max(0.0, replica.status.uptime_s))
                lag_s[replica.address] = lasts_s
        return lag_s


def _intersection(highest: Clock, latest: Clock) -> Clock:
    """Return the updates that both clocks cover.

    An update that died with its replica is in no clock any more. It must not count as missing.
    """
    return {id_: min(counter, latest[id_]) for id_, counter in highest.items() if id_ in latest}

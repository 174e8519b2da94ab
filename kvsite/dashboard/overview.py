"""The data of the front page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvsite.dashboard.cards import PendingQueue, ReplicaCard, pending_queues, replica_card
from kvsite.dashboard.cluster_state import AsOf, ClusterState
from kvsite.dashboard.health import ClusterHealth, assess
from kvsite.dashboard.lag import highest_known
from kvsite.dashboard.tables import ClockMatrix, ViewMatrix, clock_matrix, view_matrix
from kvsite.dashboard.timeline import Timeline, timeline


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything that the front page shows.

    ``is_open``: the local replica accepts requests without any credentials.
    ``open_settings``: a sentence for each part of the local replica that is open. ``open_replicas``: other replicas
    that accept requests without any credentials.
    """

    as_of: AsOf
    is_open: bool
    open_settings: tuple[str, ...]
    open_replicas: tuple[str, ...]
    health: ClusterHealth
    cards: tuple[ReplicaCard, ...]
    clocks: ClockMatrix
    views: ViewMatrix
    queues: tuple[PendingQueue, ...]
    events: Timeline

    @property
    def is_wide(self) -> bool:
        """Whether each table needs the full width of the page."""
        return len(self.clocks.columns) > 5


def overview(
    cluster: ClusterState, lag_s: Mapping[str, float], open_settings: Sequence[str] = (), *, is_open: bool = False
) -> Overview:
    """Return the front page of ``cluster``.

    ``lag_s``: see ``LagTracker.lag_s``. ``open_settings``, ``is_open``: see ``Config.security_warnings`` and
    ``Config.is_open``.
    """
    highest = highest_known(cluster)
    return Overview(
        as_of=cluster.as_of,
        is_open=is_open,
        open_settings=tuple(open_settings),
        open_replicas=cluster.open_replicas,
        health=assess(cluster, highest, lag_s),
        cards=tuple(replica_card(replica, highest) for replica in cluster.replicas),
        clocks=clock_matrix(cluster, highest),
        views=view_matrix(cluster),
        queues=pending_queues(cluster),
        events=timeline(cluster),
    )

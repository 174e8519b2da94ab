"""The front page: everything that it shows, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvsite.dashboard.cards import Card, Queue, card, queues
from kvsite.dashboard.cluster_state import AsOf, Snapshot
from kvsite.dashboard.health import Verdict, judge
from kvsite.dashboard.lag import highest_of
from kvsite.dashboard.tables import ClockMatrix, ViewMatrix, clock_matrix, view_matrix
from kvsite.dashboard.timeline import Timeline, timeline


@dataclass(frozen=True, slots=True)
class Overview:
    """``as_of``: by whom and when the replicas were asked."""

    as_of: AsOf
    is_open: bool
    verdict: Verdict
    cards: tuple[Card, ...]
    clocks: ClockMatrix
    views: ViewMatrix
    queues: tuple[Queue, ...]
    events: Timeline

    @property
    def is_wide(self) -> bool:
        """Whether tables need the page's whole width each."""
        return len(self.clocks.columns) > 5


def overview(snapshot: Snapshot, behind_s: Mapping[str, float]) -> Overview:
    """Return the page of ``snapshot``. ``behind_s``: see ``Lag.behind_s``."""
    highest = highest_of(snapshot)
    return Overview(
        as_of=snapshot.as_of,
        is_open=snapshot.is_open,
        verdict=judge(snapshot, highest, behind_s),
        cards=tuple(card(replica, highest) for replica in snapshot.replicas),
        clocks=clock_matrix(snapshot, highest),
        views=view_matrix(snapshot),
        queues=queues(snapshot),
        events=timeline(snapshot),
    )

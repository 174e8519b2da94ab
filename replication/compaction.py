"""Compaction: what a replica may forget because every member has it.

* Updates in the log that every member has applied are not needed for any delta.
* A *marker* that every member has applied may replace retired entries in clients' clocks (store/markers.py). A replica
  issues a marker if its clock has retired entries that no marker of a member covers yet.
"""

from __future__ import annotations

from collections.abc import Iterable

from replication.membership_table import MembershipTable
from replication.progress import Peers
from replication.retired import RetiredEntries
from store.causal import CausalStore
from store.clock import Clock, Instant


class Compaction:
    """Trims the log and issues markers. Not thread-safe.

    ``min_interval_s``: the least time between two markers of this replica.
    """

    def __init__(
        self,
        store: CausalStore,
        table: MembershipTable,
        peers: Peers,
        retired: RetiredEntries,
        min_interval_s: float,
    ) -> None:
        self._store = store
        self._table = table
        self._peers = peers
        self._retired = retired
        self._min_interval_s = min_interval_s
        self._last_marker_s = float("-inf")

    def trim(self) -> None:
        """Drop from the log what all members have applied, and use the markers that all members have applied."""
        store = self._store
        store.log.trim(self._applied_everywhere(store.log.origins()))
        markers = store.markers
        if markers.all():
            markers.promote(self._applied_everywhere(marker.origin for marker in markers.all()), self._table.present)
            store.simplify_delete_clock()

    def issue_marker(self, now: Instant) -> None:
        """Issue a marker if the clock has retired entries that no marker of a member covers."""
        if now.mono_s - self._last_marker_s < self._min_interval_s:
            return
        retired = self._retired.clock
        if retired and not self._store.markers.cover_retired(retired, self._table.present):
            self._last_marker_s = now.mono_s
            self._store.issue_marker(now)

    def _applied_everywhere(self, origins: Iterable[str]) -> Clock:
        """Return, for each of ``origins``, the highest counter that every member is known to have applied."""
        clocks = [acked.clock if acked is not None else {} for acked in self._peers.members()]
        clocks.append(self._store.clock)
        return {origin: min(clock.get(origin, 0) for clock in clocks) for origin in origins}

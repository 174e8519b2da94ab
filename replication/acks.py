"""Acknowledgements: which members are known to have applied an update.

A member acknowledges an update by the clock that it sends with every exchange. There are no separate messages for it.
"""

from __future__ import annotations

from replication.membership_table import MembershipTable
from replication.progress import Peers
from store.causal import CausalStore
from store.clock import Dot


class Acks:
    """Counts acknowledgements for write concerns and for draining. Not thread-safe."""

    def __init__(self, store: CausalStore, table: MembershipTable, peers: Peers) -> None:
        self._store = store
        self._table = table
        self._peers = peers

    def count(self, dot: Dot) -> int:
        """Return how many members, this replica included, are known to have applied ``dot``."""
        origin, counter = dot
        return 1 + sum(acked is not None and acked.clock.get(origin, 0) >= counter for acked in self._peers.members())

    def required(self, write_concern: str) -> int:
        """Return how many acks ``"all"`` or ``"majority"`` requires. All members count, reachable or not."""
        members = len(self._table.others) + 1
        return members if write_concern == "all" else members // 2 + 1

    def unreplicated(self) -> int:
        """Return how many updates may be lost with this replica: what the most complete other member is known to lack.

        0 means that at least one other member has acknowledged everything, or that there is no other member. The real
        loss may be smaller, because an acknowledgement may be in flight. If this replica is removed, a member that
        does not know of the removal yet counts as lacking at least one update: it has to learn of the removal before
        this process ends.
        """
        clock = self._store.clock
        is_removed = not self._table.belongs(self._table.address)
        lacks = []
        for acked in self._peers.members():
            if acked is not None:
                lack = sum(n - min(n, acked.clock.get(id_, 0)) for id_, n in clock.items())
                knows_removal = not is_removed or acked.membership_digest == self._table.digest
                lacks.append(lack if knows_removal else max(lack, 1))
        if not lacks:
            return sum(clock.values()) if self._table.others else 0
        return min(lacks)

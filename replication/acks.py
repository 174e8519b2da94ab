"""Acknowledgements: which members are known to have applied an update, and whom to ask first if a client waits for it.

A member acknowledges an update by the clock that it sends with every exchange. There are no separate messages for it.

A client may wait for the acks of some members (a write concern). The update is then *expected* from as many members as
are needed, those that answer fastest. The next exchange with each of them starts as soon as the one in flight ends,
whatever the pace, and carries all updates that were issued meanwhile: a group commit. The other members get the update
at the usual pace, which costs less; their acks count as well, and replace those of a member that is slow. If a request
to a member fails, the updates that were expected from it are expected from all others.

Source: group commit, DeWitt et al., SIGMOD 1984.
"""

from __future__ import annotations

from replication.membership_table import MembershipTable
from replication.progress import PeerProgress, Peers, PeerState
from replication.settings import ReplicationSettings
from store.causal import CausalStore
from store.clock import Dot


class Acks:
    """Counts acknowledgements for write concerns and for draining. Not thread-safe.

    ``_asked``: the peers that the last ``expect`` chose, for which number of acks and among which members, and until
    when they are chosen again (monotonic seconds).
    """

    def __init__(self, store: CausalStore, table: MembershipTable, peers: Peers, settings: ReplicationSettings) -> None:
        self._store = store
        self._table = table
        self._peers = peers
        self._settings = settings
        self._asked: tuple[int, tuple[str, ...], float, list[PeerProgress]] = (0, (), 0.0, [])

    def expect(self, dot: Dot, required: int, now_s: float) -> list[PeerProgress]:
        """Note that a client waits until ``required`` members, this replica included, have ``dot``, an own update.

        Returns the peers from which it is expected.
        """
        origin, counter = dot
        if origin != self._store.replica_id:
            return []  # This replica has taken another incarnation since. The update goes with the next exchange.
        chosen = self._choose(required, now_s)
        for peer in chosen:
            peer.awaited_counter = max(peer.awaited_counter, counter)
        return chosen

    def _choose(self, required: int, now_s: float) -> list[PeerProgress]:
        """Return the peers to ask: as many as are required, those that answer fastest.

        The same ones are asked again for a while: one exchange then carries what others would carry in two.
        """
        others = self._table.others
        for_required, among, until_s, chosen = self._asked
        is_current = required == for_required and among is others and now_s < until_s
        if is_current and all(peer.state is PeerState.EXCHANGING and not self._hangs(peer, now_s) for peer in chosen):
            return chosen
        chosen = [self._peers.at(address) for address in others]
        if required - 1 < len(chosen):
            chosen.sort(key=lambda peer: self._slowness(peer, now_s))
            del chosen[max(0, required - 1) :]
        self._asked = (required, others, now_s + self._settings.sync_interval_s, chosen)
        return chosen

    def _slowness(self, peer: PeerProgress, now_s: float) -> tuple[bool, bool, float]:
        """Order peers by how long they take to answer: those that have failed last, before them those that hang."""
        has_failed = peer.state in (PeerState.FAILED, PeerState.UNKNOWN)
        return (has_failed, self._hangs(peer, now_s), peer.schedule.round_trip_s)

    def _hangs(self, peer: PeerProgress, now_s: float) -> bool:
        """Return whether the request in flight takes much longer than requests to this peer usually do."""
        schedule, settings = peer.schedule, self._settings
        usual_s = max(settings.pace_s, settings.pace_round_trips * schedule.round_trip_s)
        return peer.in_flight != 0 and now_s - schedule.begun_s > usual_s

    def expect_from_others(self, failed: PeerProgress) -> None:
        """Expect from all other members what was expected from ``failed`` and has not reached it."""
        if failed.awaited_counter > failed.acked.sent:
            for address in self._table.others:
                peer = self._peers.at(address)
                peer.awaited_counter = max(peer.awaited_counter, failed.awaited_counter)

    def count(self, dot: Dot) -> int:
        """Return how many members, this replica included, are known to have applied ``dot``."""
        origin, counter = dot
        return 1 + sum(applied >= counter for applied in self.counters(origin))

    def counters(self, origin: str) -> list[int]:
        """Return, for each other member, up to which counter of ``origin`` it is known to have applied; ascending."""
        return sorted([0 if acked is None else acked.clock.get(origin, 0) for acked in self._peers.members()])

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

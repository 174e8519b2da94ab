"""Changes of membership, and everything that follows from them.

Every change of the membership table, made here or received from a peer, ends in ``follow_table``. This method updates
four things: this replica's incarnation, the ids that the store counts as present, the possible holders of lost updates,
and the gate for clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from replication.event_log import EventLog
from replication.loss import LossDetector
from replication.membership import Membership
from replication.messages import MembershipEntry
from replication.progress import Peers
from replication.recovery import Recovery
from store.causal import CausalStore
from store.clock import INCARNATION_RANDOM_BITS, Instant, incarnation_of, replica_id


class RandomBits(Protocol):
    """The source of randomness that a replica is given; ``random.Random`` has this form."""

    def getrandbits(self, k: int, /) -> int: ...


def new_incarnation(known: int, rng: RandomBits, now: Instant) -> int:
    """Return an incarnation above ``known``: milliseconds of the wall clock, then random bits.

    The random bits keep two processes apart that start at one address in the same millisecond.
    """
    milliseconds = max(now.wall_us // 1000, (known >> INCARNATION_RANDOM_BITS) + 1)
    return milliseconds << INCARNATION_RANDOM_BITS | rng.getrandbits(INCARNATION_RANDOM_BITS)


class ViewChanges:
    """Makes changes of membership, and merges those of other replicas. Not thread-safe."""

    def __init__(
        self,
        store: CausalStore,
        membership: Membership,
        peers: Peers,
        recovery: Recovery,
        loss: LossDetector,
        events: EventLog,
        rng: RandomBits,
    ) -> None:
        self._store = store
        self._membership = membership
        self._peers = peers
        self._recovery = recovery
        self._loss = loss
        self._events = events
        self._rng = rng

    def add(self, address: str, now: Instant) -> bool:
        """Make ``address`` belong (PUT /view); return False if it belongs already. Raises BadMessage if full."""
        added = self._membership.add_replica_from_view(address, self._store.hybrid_clock.read(now), now.mono_s)
        if added:
            self._publish("added", self._membership.aliases.get(address, address), now)
        return added

    def remove(self, address: str, now: Instant) -> bool:
        """Make ``address`` not belong (DELETE /view); return False if no member and no seed has that address."""
        removed = self._membership.remove_replica_from_view(address, self._store.hybrid_clock.read(now), now.mono_s)
        if removed:
            self._publish("removed", self._membership.aliases.get(address, address), now)
        return removed

    def meet_alias(self, asked: str, actual: str, now: Instant) -> None:
        """Note that the replica asked at ``asked`` calls itself ``actual``: that address is the one that counts."""
        membership = self._membership
        membership.aliases[asked] = actual
        if not membership.table.belongs(asked):
            return
        # PUT /view named an alias: replace it by the address that it stands for.
        stamp = self._store.hybrid_clock.read(now)
        membership.table.remove(asked, stamp)
        membership.add_replica_from_view(actual, stamp, now.mono_s)
        self._publish("alias", asked, now)

    def merge(self, entries: Mapping[str, MembershipEntry], now: Instant) -> None:
        """Merge another replica's membership table. Raises BadMessage if the table is full."""
        changed = self._membership.merge(entries)
        for address, entry in changed.items():
            self._events.record("joined" if entry.belongs else "left", address, f"{entry.incarnation:016x}", now)
        if changed:
            self.follow_table(now)

    def follow_table(self, now: Instant) -> None:
        """Bring everything that depends on the membership table in line with it."""
        table = self._membership.table
        known = table.entries[table.address].incarnation
        if known > incarnation_of(self._store.replica_id):
            self._raise_incarnation(known, now)
        self._store.set_present_ids(table.present)
        self._loss.update_possible_holders(now)
        if self._recovery.update_gate(now):
            for address in table.others:
                self._peers.at(address).urgent = True
            self.finish_joining(now)

    def finish_joining(self, now: Instant) -> None:
        """End the joining if the replica has caught up."""
        if self._recovery.finish_joining(now) and self._membership.table.belongs(self._membership.address):
            self._events.record("serving", self._store.replica_id, f"{len(self._store.table)} keys", now)

    def _raise_incarnation(self, known: int, now: Instant) -> None:
        """Take an incarnation above ``known``: an earlier process at this address ran with a clock that was ahead.

        Data, clock and log stay; what was issued so far keeps its dots.
        """
        incarnation = new_incarnation(known, self._rng, now)
        self._membership.start(incarnation, self._store.hybrid_clock.read(now))
        self._store.replica_id = replica_id(self._membership.address, incarnation)
        for peer in self._peers.all():
            peer.acked.sent = peer.awaited_counter = 0  # Counters of the new incarnation start at 1.
        self._events.record("raised", self._store.replica_id, "a higher incarnation of this address is known", now)

    def _publish(self, kind: str, address: str, now: Instant) -> None:
        """Record a change that was made here, and exchange at once with everybody whom it concerns."""
        self._events.record(kind, address, "by command", now)
        self.follow_table(now)
        for target in [*self._membership.table.others, address]:
            if target != self._membership.address:
                self._peers.at(target).urgent = True

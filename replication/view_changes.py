"""Changes of membership, and everything that follows from them.

Every change of the membership table, made here or received from a peer, ends in ``follow_table``. This method updates
four things: this replica's own entry, the ids that the store counts as present, the possible holders of lost updates,
and the gate for clients.

**The own entry.** A removal by a command covers every incarnation that started before it, by the clocks of two
machines. So a process may find itself removed although nobody has removed *it*:

* It belonged until now, and another process at its address ended by itself (SIGTERM). It returns: such a removal covers
  no later process, however far hybrid time is ahead of the clock with which that one has started.
* It has just started, and its wall clock is behind the stamp of an old removal of its address. Until it is *settled*,
  it takes any removal for such an old one, and returns. It is settled once a peer has shown it a table in which it
  belongs, once it has served clients, or once it has removed itself by command. From then on, a removal is meant for
  it, or came from replicas that did not know it, and it stays out until PUT /view names it.
* Its own removal is not above the horizon: others have forgotten its address, or never knew it. If it belonged until
  now, it returns. If it knew of its removal, it stays removed; but it writes the removal again, above the horizon,
  because members take no messages from an address without an entry, and a removed replica hands over its updates for as
  long as it lives.

To return, a replica takes an incarnation whose start time is above everything that covers the old one. It keeps its
data, clock and log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from replication.event_log import EventLog
from replication.loss import LossDetector
from replication.membership import Membership
from replication.messages import HORIZON_PROTOCOL, MembershipEntry
from replication.progress import Peers
from replication.recovery import Recovery
from store.causal import CausalStore
from store.clock import INCARNATION_RANDOM_BITS, Instant, incarnation_of, replica_id, start_us_of


class RandomBits(Protocol):
    """The source of randomness that a replica is given; ``random.Random`` has this form."""

    def getrandbits(self, k: int, /) -> int: ...


def new_incarnation(known: int, rng: RandomBits, now: Instant, above_us: int = 0) -> int:
    """Return an incarnation above ``known``, with a start time above ``above_us`` (microseconds): milliseconds of the
    wall clock, then random bits.

    The random bits keep two processes apart that start at one address in the same millisecond.
    """
    milliseconds = max(now.wall_us // 1000, (known >> INCARNATION_RANDOM_BITS) + 1, above_us // 1000 + 1)
    return milliseconds << INCARNATION_RANDOM_BITS | rng.getrandbits(INCARNATION_RANDOM_BITS)


class ViewChanges:
    """Makes changes of membership, and merges those of other replicas. Not thread-safe.

    ``is_leaving``: whether the process of this replica is about to end.
    """

    def __init__(
        self,
        store: CausalStore,
        membership: Membership,
        peers: Peers,
        recovery: Recovery,
        loss: LossDetector,
        events: EventLog,
        rng: RandomBits,
        max_clock_lead_s: float,
    ) -> None:
        self._max_lead_us = round(max_clock_lead_s * 1_000_000)
        self._store = store
        self._membership = membership
        self._peers = peers
        self._recovery = recovery
        self._loss = loss
        self._events = events
        self._rng = rng
        self._is_settled = False
        """Whether a removal of this replica is meant for it; see the module."""
        self.is_leaving = False
        self._is_removed = False
        """Whether this replica knows of its removal: it had one above the horizon."""

    def add(self, address: str, now: Instant) -> bool:
        """Make ``address`` belong (PUT /view); return False if it belongs already. Raises BadMessage if full."""
        added = self._membership.add_replica_from_view(address, self._store.hybrid_clock.read(now), now.mono_s)
        if added:
            self._publish("added", self._membership.aliases.get(address, address), now)
        return added

    def remove(self, address: str, now: Instant) -> bool:
        """Make ``address`` not belong (DELETE /view); return False if no member and no seed has that address.

        The removal is recorded even then. Raises TableFull, and changes nothing, if there is no room for it.
        """
        address = self._membership.aliases.get(address, address)
        removed = self._membership.remove_replica_from_view(address, self._store.hybrid_clock.read(now), now.mono_s)
        self._is_settled = self._is_settled or address == self._membership.address
        self._publish("removed", address, now)
        return removed

    def leave(self, now: Instant) -> None:
        """Remove this replica because its process ends.

        If a command has removed it, its entry stays: that removal covers more. If the address is another process's,
        that process stays.
        """
        self.is_leaving = True
        membership = self._membership
        if membership.duplicate_check.is_lost:
            return
        self._is_settled = True
        if membership.table.belongs(membership.address):
            membership.leave(now.mono_s)
        self._publish("removed", self._membership.address, now)

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

    def merge(self, entries: Mapping[str, MembershipEntry], horizon: int, now: Instant) -> None:
        """Merge another replica's membership table. Raises BadMessage if the table is full."""
        table = self._membership.table
        own, known_horizon = entries.get(table.address), table.horizon
        if own is not None and own.belongs and own.incarnation == incarnation_of(self._store.replica_id):
            self._is_settled = True
        changed = self._membership.merge(entries, horizon, now.mono_s)
        for address, (before, after) in changed.items():
            if after is not None:
                self._events.record("joined" if after.belongs else "left", address, f"{after.incarnation:016x}", now)
            elif before is not None and before.belongs:
                self._events.record("left", address, f"{before.incarnation:016x}", now)
        if changed or table.horizon != known_horizon:
            self.follow_table(now)

    def note_equal_table(self) -> None:
        """Note that a peer has the same table."""
        self._is_settled = self._is_settled or self._membership.table.belongs(self._membership.address)

    def forget_removed(self, now: Instant) -> None:
        """Forget old removals, and what is remembered of addresses without an entry; called often.

        A member whose messages have no horizon would bring each removal again, so none is forgotten while there is one.
        """
        knows_horizon = all(acked is None or acked.protocol >= HORIZON_PROTOCOL for acked in self._peers.members())
        if knows_horizon and self._membership.forget_removed(now.mono_s):
            self.follow_table(now)
        self._peers.forget_if(self._membership.is_forgotten)

    def follow_table(self, now: Instant) -> None:
        """Bring everything that depends on the membership table in line with it."""
        table = self._membership.table
        self._follow_own_entry(now)
        self._membership.met.observe(len(table.present))
        self._store.set_present_ids(table.present)
        self._loss.update_possible_holders(now)
        if self._recovery.update_gate(now):
            for address in table.others:
                self._peers.at(address).urgent = True
            self.finish_joining(now)

    def finish_joining(self, now: Instant) -> None:
        """End the joining if the replica has caught up."""
        if self._recovery.finish_joining(now) and self._membership.table.belongs(self._membership.address):
            self._is_settled = True
            self._events.record("serving", self._store.replica_id, f"{len(self._store.table)} keys", now)

    def _follow_own_entry(self, now: Instant) -> None:
        """Take a higher incarnation, return, or write the own removal again, if the own entry is a reason to."""
        table = self._membership.table
        own = table.entries[table.address]
        if not own.belongs and own.stamp <= table.horizon and self._is_removed:
            if self.is_leaving:
                table.leave()
            else:
                table.remove(table.address, self._store.hybrid_clock.read(now))
            own = table.entries[table.address]
        another_left = own.has_left and not self.is_leaving and not self._is_removed
        returns = not own.belongs and (not self._is_settled or another_left or own.stamp <= table.horizon)
        self._is_removed = not own.belongs and not returns
        if returns or own.incarnation > incarnation_of(self._store.replica_id):
            self._raise_incarnation(own, now)

    def _raise_incarnation(self, own: MembershipEntry, now: Instant) -> None:
        """Take an incarnation above ``own``: an earlier process here had a clock that was ahead, or see the module.

        Data, clock and log stay; what was issued so far keeps its dots.
        """
        table = self._membership.table
        incarnation = new_incarnation(own.incarnation, self._rng, now, max(own.stamp, table.horizon))
        if self._is_removed:
            self._membership.supersede(incarnation)
        else:
            self._membership.start(incarnation, start_us_of(incarnation))
        self._follow_incarnation(incarnation)
        self._events.record("raised", self._store.replica_id, "a higher incarnation or a removal is known", now)

    def correct_times(self, now: Instant) -> None:
        """Take back times of a wall clock that was too far ahead and has been set right, so that peers accept them.

        Peers reject messages as long as hybrid time, the incarnation or an entry of the table is too far ahead. So none
        of them has accepted these times, and it is safe to take them back, but for one case: the replica has updates
        that were stamped with them. Their timestamps cannot change, because a replica with the same wrong clock may
        have the updates too. Then everything stays, until the time has come or the process is started again.
        """
        store, table = self._store, self._membership.table
        limit_us = now.wall_us + self._max_lead_us
        incarnation = incarnation_of(store.replica_id)
        if not self._recovery.refusals.is_ahead_of_a_peer(now.mono_s):
            return
        if store.hybrid_clock.read(now) <= limit_us and not table.is_ahead(limit_us):
            return
        kept_ahead_us = store.hybrid_clock.highest_kept_us - now.wall_us
        self._recovery.stuck_ahead_s = max(0.0, kept_ahead_us / 1e6) if kept_ahead_us > self._max_lead_us else 0.0
        if self._recovery.stuck_ahead_s:
            return
        if store.hybrid_clock.read(now) > limit_us:
            store.hybrid_clock.forget_lead(now)
        if start_us_of(incarnation) > limit_us:
            incarnation = new_incarnation(0, self._rng, now, min(table.horizon, limit_us))
            self._follow_incarnation(incarnation)
        table.take_back_times(limit_us, incarnation, store.hybrid_clock.read(now))
        self._events.record("corrected", store.replica_id, "its clock was ahead and has been set right", now)
        self.follow_table(now)

    def check_times(self, now: Instant) -> None:
        """Follow the wall clock if no other replica is there: nobody rejects its times, and nobody can confirm them."""
        hybrid_clock, membership = self._store.hybrid_clock, self._membership
        if not membership.table.others and not membership.seeds.unanswered:
            hybrid_clock.trust(now)
        if hybrid_clock.highest_kept_us - now.wall_us <= self._max_lead_us:
            self._recovery.stuck_ahead_s = 0.0
        is_ahead = hybrid_clock.read(now) - now.wall_us > self._max_lead_us
        if is_ahead and not self._recovery.refusals.has_answers(now.mono_s):
            hybrid_clock.forget_lead(now)

    def _follow_incarnation(self, incarnation: int) -> None:
        self._store.replica_id = replica_id(self._membership.address, incarnation)
        for peer in self._peers.all():
            peer.acked.sent = peer.awaited_counter = 0  # Counters of the new incarnation start at 1.

    def _publish(self, kind: str, address: str, now: Instant) -> None:
        """Record a change that was made here, and exchange at once with everybody whom it concerns."""
        self._events.record(kind, address, "by command", now)
        self.follow_table(now)
        for target in [*self._membership.table.others, address]:
            if target != self._membership.address and not self._membership.is_forgotten(target):
                self._peers.at(target).urgent = True

"""Mutants of who belongs: the membership table, removals, duplicate addresses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from replication.duplicates import DuplicateCheck
from replication.errors import DuplicateAddress
from replication.membership import Membership
from replication.membership_table import MembershipTable
from replication.messages import LEAVE_MARK, Exchange, MembershipEntry, digest_of
from replication.progress import PeerProgress, Peers
from replication.recovery import Recovery
from replication.replica import Replica
from replication.view_changes import ViewChanges
from store.clock import Instant, address_of, incarnation_of
from tests.tools.simulation.mutants.registry import directed, mutant


@mutant
def add_removed_sender_back() -> Iterator[None]:
    """A message from a removed replica adds that replica back."""
    accept = Replica._accept

    def accept_and_add(
        self: Replica, message: Exchange, now: Instant, *, is_reply: bool = False
    ) -> PeerProgress | None:
        peer = accept(self, message, now, is_reply=is_reply)
        if peer is not None and not self.membership.table.belongs(peer.address):
            self.add_replica_from_view(peer.address, now)
        return peer

    with patch.object(Replica, "_accept", accept_and_add):
        yield


@mutant
def ignore_higher_incarnation() -> Iterator[None]:
    """A process with a slow clock keeps its incarnation although it is superseded."""
    follow_table = ViewChanges.follow_table

    def keep_own_incarnation(self: ViewChanges, now: Instant) -> None:
        table = self._membership.table
        known = table.entries[table.address]
        own = incarnation_of(self._store.replica_id)
        if known.incarnation > own:
            table._write(table.address, MembershipEntry(own, known.stamp, True))
        follow_table(self, now)

    with patch.object(ViewChanges, "follow_table", keep_own_incarnation):
        yield


@mutant
def cover_only_known_incarnations() -> Iterator[None]:
    """A removal covers no incarnation that the membership table does not know."""

    def has_ended(self: MembershipTable, replica: str) -> bool:
        incarnation, entry = incarnation_of(replica), self.entries.get(address_of(replica))
        if not incarnation or replica in self.present or entry is None:
            return False
        return entry.belongs or incarnation <= entry.incarnation

    with patch.object(MembershipTable, "has_ended", has_ended):
        yield


@mutant
def record_no_removal_of_an_unknown_address() -> Iterator[None]:
    """DELETE /view of an address that nothing names changes nothing."""
    remove = MembershipTable.remove

    def remove_known(self: MembershipTable, address: str, stamp: int) -> bool:
        return address in self.entries and remove(self, address, stamp)

    with patch.object(MembershipTable, "remove", remove_known):
        yield


@directed
def merge_no_horizon() -> Iterator[None]:
    """The horizon of a peer's table is ignored."""
    merge = MembershipTable.merge
    with patch.object(MembershipTable, "merge", lambda self, entries, horizon=0: merge(self, entries, self.horizon)):
        yield


@directed
def revive_forgotten_entries() -> Iterator[None]:
    """An entry that only one of two tables has is kept, whatever the other one has forgotten."""
    joined = MembershipTable._joined

    def keep_all(self: MembershipTable, entries: Any, horizon: int) -> Any:
        merged, highest = joined(self, entries, horizon)
        return {**entries, **self.entries, **merged}, highest

    with patch.object(MembershipTable, "_joined", keep_all):
        yield


@mutant
def forget_the_own_entry() -> Iterator[None]:
    """A replica that others do not name, below their horizon, has no entry in its own table either."""
    joined = MembershipTable._joined

    def join_and_forget(self: MembershipTable, entries: Any, horizon: int) -> Any:
        merged, highest = joined(self, entries, horizon)
        own = merged.get(self.address)
        if own is not None and not own.belongs and own.stamp == highest:
            del merged[self.address]
        return merged, highest

    with patch.object(MembershipTable, "_joined", join_and_forget):
        yield


@mutant
def take_every_removal_for_an_old_one() -> Iterator[None]:
    """A replica returns by itself after every removal."""
    with patch.object(ViewChanges, "_is_settled", property(lambda self: False, lambda self, value: None), create=True):
        yield


@mutant
def remove_the_address_when_leaving() -> Iterator[None]:
    """A process that ends by itself removes its address as a command does."""

    def leave(self: ViewChanges, now: Instant) -> None:
        self._is_settled = self.is_leaving = True
        self.remove(self._membership.address, now)

    with patch.object(ViewChanges, "leave", leave):
        yield


@directed
def leave_like_a_command() -> Iterator[None]:
    """The removal of a process that ended by itself covers the next one if that one's clock is behind its stamp."""
    with patch.object(MembershipEntry, "has_left", False):
        yield


@directed
def lose_what_the_next_process_wrote() -> Iterator[None]:
    """While nobody has heard of the next process, it counts as ended because its predecessor left."""
    has_ended = MembershipTable.has_ended

    def ended(self: MembershipTable, replica: str) -> bool:
        with patch.object(MembershipEntry, "has_left", False):
            return has_ended(self, replica)

    with patch.object(MembershipTable, "has_ended", ended):
        yield


@directed
def forget_that_it_leaves() -> Iterator[None]:
    """A process that is about to end writes its removal again as a command would."""
    leave = MembershipTable.leave

    def leave_or_remove(self: MembershipTable) -> None:
        if self.belongs(self.address):
            leave(self)
        else:
            self.remove(self.address, 0)

    with patch.object(MembershipTable, "leave", leave_or_remove):
        yield


@directed
def leave_above_every_command() -> Iterator[None]:
    """The removal of a process that ends by itself wins over commands that it does not know."""

    def leave(self: ViewChanges, now: Instant) -> None:
        table = self._membership.table
        stamp = (self._store.hybrid_clock.read(now) + LEAVE_MARK) | LEAVE_MARK
        self._is_settled = self.is_leaving = True
        table._write(table.address, MembershipEntry(table.entries[table.address].incarnation, stamp, False))
        self._publish("removed", table.address, now)

    with patch.object(ViewChanges, "leave", leave):
        yield


@directed
def narrow_a_command() -> Iterator[None]:
    """A process that a command has removed writes another removal when it leaves."""
    leave = ViewChanges.leave

    def leave_again(self: ViewChanges, now: Instant) -> None:
        self._membership.leave(now.mono_s)
        leave(self, now)

    with patch.object(ViewChanges, "leave", leave_again):
        yield


@directed
def return_although_removed() -> Iterator[None]:
    """A removed process returns when another one at its address leaves."""
    follow = ViewChanges._follow_own_entry

    def forget(self: ViewChanges, now: Instant) -> None:
        table = self._membership.table
        if table.entries[table.address].stamp > table.horizon:
            self._is_removed = False
        follow(self, now)

    with patch.object(ViewChanges, "_follow_own_entry", forget):
        yield


@directed
def return_after_losing_the_address() -> Iterator[None]:
    """A process that ends because its address is another one's returns when that one leaves."""
    leave = ViewChanges.leave

    def leave_unless_lost(self: ViewChanges, now: Instant) -> None:
        if not self._membership.duplicate_check.is_lost:
            leave(self, now)

    with patch.object(ViewChanges, "leave", leave_unless_lost):
        yield


@directed
def command_with_any_stamp() -> Iterator[None]:
    """A removal by a command may have the mark of a process that left by itself."""
    stamp_above = MembershipTable._stamp_above
    with patch.object(
        MembershipTable, "_stamp_above", lambda self, address, stamp: stamp_above(self, address, stamp) | LEAVE_MARK
    ):
        yield


@mutant
def never_forget_removals() -> Iterator[None]:
    """Removed addresses stay in the membership table for ever."""
    with patch.object(Membership, "forget_removed", lambda self, now_s: []):
        yield


@mutant
def remember_peers_without_an_entry() -> Iterator[None]:
    """The progress of a peer stays when its address is forgotten."""
    with patch.object(Peers, "forget_if", lambda self, is_forgotten: None):
        yield


@mutant
def stop_whoever_is_named() -> Iterator[None]:
    """A process stops when a message names another incarnation of its address, whoever answers there."""

    def suspect(self: DuplicateCheck, replica: str, own_id: str, now_s: float) -> None:
        if replica != own_id:
            raise DuplicateAddress(replica)

    with patch.object(DuplicateCheck, "suspect", suspect):
        yield


@directed
def serve_at_once_when_added_back() -> Iterator[None]:
    """A replica that is added back serves clients before it has the updates that it missed."""
    update_gate = Recovery.update_gate

    def finish_at_once(self: Recovery, now: Instant) -> bool:
        was_removed = update_gate(self, now)
        if was_removed:
            self.joining = self._store.not_serving_reason = None
        return was_removed

    with patch.object(Recovery, "update_gate", finish_at_once):
        yield


@directed
def hide_heartbeats_of_removed_replicas() -> Iterator[None]:
    """Members do not report the heartbeats of removed replicas, so others take those for dead (rule 2)."""
    report = Membership.liveness_report

    def report_members_only(self: Membership, also: Any, now_s: float, **which: bool) -> Any:
        return report(self, (), now_s, **which)

    with patch.object(Membership, "liveness_report", report_members_only):
        yield


@directed
def stay_out_if_forgotten() -> Iterator[None]:
    """A live replica that others do not name, below their horizon, counts as removed by command."""
    follow = ViewChanges._follow_own_entry

    def stay_out(self: ViewChanges, now: Instant) -> None:
        table = self._membership.table
        horizon, table.horizon = table.horizon, 0
        follow(self, now)
        table.horizon = horizon

    with patch.object(ViewChanges, "_follow_own_entry", stay_out):
        yield


@directed
def let_a_removed_replica_be_forgotten() -> Iterator[None]:
    """A removed replica does not write its removal again once it is forgotten."""
    remove = MembershipTable.remove

    def remove_others(self: MembershipTable, address: str, stamp: int) -> bool:
        known = self.entries.get(address)
        if address == self.address and known is not None and not known.belongs:
            return False
        return remove(self, address, stamp)

    with patch.object(MembershipTable, "remove", remove_others):
        yield


@directed
def let_the_higher_incarnation_win_over_a_removal() -> Iterator[None]:
    """Of two entries the one with the higher incarnation wins as a whole, as in version 1 of the protocol."""

    def join(self: MembershipEntry, other: MembershipEntry) -> MembershipEntry:
        return max(self, other, key=lambda entry: (entry.incarnation, entry.stamp, entry.belongs))

    with patch.object(MembershipEntry, "join", join):
        yield


@directed
def leave_the_horizon_out_of_the_digest() -> Iterator[None]:
    """Tables that differ in the horizon only count as equal."""
    without_horizon = property(lambda self: digest_of(sorted(self.entries.items())))
    with patch.object(MembershipTable, "digest", without_horizon):
        yield


@directed
def change_below_the_horizon() -> Iterator[None]:
    """A change of a forgotten address gets the stamp of the clock, also below the horizon."""

    def stamp_above(self: MembershipTable, address: str, stamp: int) -> int:
        known = self.entries.get(address)
        return max(stamp, known.stamp + 1 if known else 0)

    with patch.object(MembershipTable, "_stamp_above", stamp_above):
        yield


@directed
def stop_whoever_answers() -> Iterator[None]:
    """A process stops when its own address answers, even if it answers there itself."""

    def stop(self: DuplicateCheck, replica: str, own_id: str, now_s: float) -> None:
        if self.is_running:
            raise DuplicateAddress(replica)

    with patch.object(DuplicateCheck, "answered", stop):
        yield


@directed
def never_ask_the_own_address() -> Iterator[None]:
    """Two live processes under one address take higher incarnations in turn for ever."""
    with patch.object(DuplicateCheck, "suspect", lambda self, replica, own_id, now_s: None):
        yield


@directed
def wait_for_the_other_process_for_ever() -> Iterator[None]:
    """A process goes on although its address leads to another one with a lower incarnation."""
    answered = DuplicateCheck.answered

    def wait(self: DuplicateCheck, replica: str, own_id: str, now_s: float) -> None:
        self._other_since_s = None
        answered(self, replica, own_id, now_s)

    with patch.object(DuplicateCheck, "answered", wait):
        yield


@directed
def check_the_own_address_again_at_once() -> Iterator[None]:
    """Checks follow each other without a pause, so a superseded replica never raises its incarnation."""

    def end(self: DuplicateCheck, now_s: float) -> None:
        self.is_running = False

    with patch.object(DuplicateCheck, "_end", end):
        yield


@directed
def take_the_own_address_for_an_alias() -> Iterator[None]:
    """A reply from the own address is taken like any other."""

    def complete(self: Replica, own: PeerProgress, serial: int, reply: Exchange, now: Instant) -> None:
        if (actual := address_of(reply.sender)) != self.address:
            self._view.meet_alias(self.address, actual, now)
        own.end(serial)

    with patch.object(Replica, "_complete_duplicate_check", complete):
        yield

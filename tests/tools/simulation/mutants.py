"""Mutants: the protocol with one mistake each. A check that does not catch them proves nothing.

A mutant is a context manager that breaks one rule for all replicas. The mistakes are those of earlier drafts of the
protocol, and those that a later change is likely to make. ``MUTANTS`` are caught by random runs (test_simulation.py),
``DIRECTED`` only by directed tests (test_mutants.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

import replication.loss
import replication.replica
import replication.snapshots
import replication.view_changes
import store.causal
import store.feed
from replication.acks import Acks
from replication.duplicates import DuplicateCheck
from replication.errors import DuplicateAddress
from replication.liveness import Liveness
from replication.loss import LossDetector, reports_since, unrecoverable
from replication.membership import Membership
from replication.membership_table import MembershipTable
from replication.messages import ClockChanges, Exchange, MembershipEntry, digest_of
from replication.met import MetMembers
from replication.progress import Acknowledged, PeerProgress, Peers, PeerState, Report
from replication.recovery import Joining, Recovery
from replication.refusals import Refusals, describe
from replication.replica import Conversation, Outgoing, Replica
from replication.reserve import LogReserve
from replication.seeds import Seeds
from replication.short_form import FIRST_PROTOCOL, ShortForm
from replication.snapshots import SnapshotPauses, SnapshotPull, cut
from replication.view_changes import ViewChanges
from store.causal import CausalStore, ListResult
from store.clock import INCARNATION_RANDOM_BITS, HybridClock, Instant, address_of, incarnation_of, join_into
from store.errors import NotServing
from store.feed import Changes, FeedToken
from store.log import UpdateLog
from store.markers import Markers
from store.recent import RecentChanges
from store.snapshot import Snapshot
from store.table import KeyRange
from store.versions import ABSENT_ETAG, Change, Update, Version, Versions, Write, apply_write

Mutant = Callable[[], AbstractContextManager[None]]

MUTANTS: dict[str, Mutant] = {}
DIRECTED: dict[str, Mutant] = {}


def mutant(function: Callable[[], Iterator[None]]) -> Mutant:
    """Add a mutant to ``MUTANTS``, under the name of the function."""
    made = contextmanager(function)
    MUTANTS[function.__name__] = made
    return made


def directed(function: Callable[[], Iterator[None]]) -> Mutant:
    """Add a mutant to ``DIRECTED``, under the name of the function."""
    made = contextmanager(function)
    DIRECTED[function.__name__] = made
    return made


@mutant
def skip_the_causality_check() -> Iterator[None]:
    """Requests are admitted even if the replica lacks part of the client's causal past."""

    def admit(self: CausalStore, past: dict[str, int], now: Instant) -> None:
        if self.not_serving_reason is not None:
            raise NotServing(self.not_serving_reason)

    with patch.object(CausalStore, "admit", admit):
        yield


@mutant
def merge_client_clock_into_replica_clock() -> Iterator[None]:
    """Admission merges the client's metadata into the replica's clock, as if its updates were here."""

    def admit(self: CausalStore, past: dict[str, int], now: Instant) -> None:
        if self.not_serving_reason is not None:
            raise NotServing(self.not_serving_reason)
        join_into(self.clock, past)

    with patch.object(CausalStore, "admit", admit):
        yield


@mutant
def reuse_dots_after_restart() -> Iterator[None]:
    """All processes at an address have the same incarnation, so they issue the same dots again."""

    def same_incarnation(known: int, rng: Any, now: Instant, above_us: int = 0) -> int:
        return max(1 << 21, known + 1 if known else 0)

    with (
        patch.object(replication.replica, "new_incarnation", same_incarnation),
        patch.object(replication.view_changes, "new_incarnation", same_incarnation),
    ):
        yield


@mutant
def apply_out_of_causal_order() -> Iterator[None]:
    """Updates are applied when they arrive, whatever they depend on."""
    with patch.object(store.causal, "first_missing", lambda clock, update: None):
        yield


@mutant
def acknowledge_on_send() -> Iterator[None]:
    """Updates count as acknowledged when they are sent."""
    begin = Replica.begin

    def begin_and_acknowledge(self: Replica, address: str, now: Instant) -> Outgoing | None:
        outgoing = begin(self, address, now)
        peer = self.peers.at(address)
        if outgoing is not None and isinstance(outgoing.message, Exchange):
            peer.acked.acknowledge({u.origin: u.counter for u in outgoing.message.updates})
        return outgoing

    with patch.object(Replica, "begin", begin_and_acknowledge):
        yield


@mutant
def keep_acks_of_a_former_incarnation() -> Iterator[None]:
    """The clock that an incarnation acknowledged still counts after the replica restarts."""

    def become(self: PeerProgress, replica: str, now_s: float) -> None:
        self.acked.replica = replica
        self.acked.report = None
        self.state = PeerState.EXCHANGING

    with patch.object(PeerProgress, "become", become):
        yield


@mutant
def join_half_a_snapshot() -> Iterator[None]:
    """The receiver takes over the whole clock of a snapshot, but only every other key."""
    original = SnapshotPull.snapshot

    def half_snapshot(self: SnapshotPull) -> Snapshot:
        snapshot = original(self)
        kept = {key: snapshot.table[key] for number, key in enumerate(snapshot.table) if number % 2 == 0}
        return snapshot._replace(table=kept)

    with patch.object(SnapshotPull, "snapshot", half_snapshot):
        yield


@mutant
def leave_out_covered_keys_after_deletes() -> Iterator[None]:
    """A partial snapshot leaves out the keys without a newer version even if some of them may have been deleted."""
    with patch.object(replication.snapshots, "rest_is_unchanged", lambda delete_clock, since: bool(since)):
        yield


@mutant
def omit_dots_of_covered_keys() -> Iterator[None]:
    """A partial snapshot names neither the versions that its receiver has, nor says that they stay."""
    original = SnapshotPull.snapshot

    def without_dots(self: SnapshotPull) -> Snapshot:
        return original(self)._replace(covered={})

    with patch.object(SnapshotPull, "snapshot", without_dots):
        yield


@mutant
def read_snapshot_clock_after_versions() -> Iterator[None]:
    """The clock of a snapshot is of a later moment than its versions."""
    original = CausalStore.snapshot
    earlier: dict[int, dict[str, Versions]] = {}

    def snapshot_with_old_table(self: CausalStore, now: Instant) -> Snapshot:
        snapshot = original(self, now)
        table = earlier.get(id(self), snapshot.table)
        earlier[id(self)] = dict(snapshot.table)
        return snapshot._replace(table=table)

    with patch.object(CausalStore, "snapshot", snapshot_with_old_table):
        yield


@mutant
def drop_siblings() -> Iterator[None]:
    """Only the winner of concurrent versions is kept."""

    def keep_winner(versions: Versions, write: Write, version: Version | None) -> Versions:
        return apply_write(versions, write, version)[:1]

    with patch.object(store.causal, "apply_write", keep_winner):
        yield


@mutant
def omit_past_of_replaced_versions() -> Iterator[None]:
    """A write depends on its client's metadata, but not on the versions that it replaces."""
    issue = CausalStore._issue_changes
    join_pasts = CausalStore._join_pasts

    def issue_changes(self: CausalStore, changes: Any, past: Any, read: Any, now: Instant) -> Update | None:
        versions_read = list(read)

        def join_read_pasts(self: CausalStore, past: Any, versions: Any) -> dict[str, int]:
            return join_pasts(self, past, versions_read)

        with patch.object(CausalStore, "_join_pasts", join_read_pasts):
            return issue(self, changes, past, versions_read, now)

    with patch.object(CausalStore, "_issue_changes", issue_changes):
        yield


@mutant
def split_transactions() -> Iterator[None]:
    """The first write of a received update is visible at once, its other writes only when the next update arrives."""
    apply = CausalStore._apply
    delayed: dict[int, list[Update]] = {}

    def apply_first_write(self: CausalStore, update: Update, now: Instant) -> None:
        for late in delayed.pop(id(self), []):
            for write in late.writes[1:]:
                version = None
                if write.value is not None:
                    version = Version(write.value, late.origin, late.counter, late.timestamp, late.deps)
                self.table.set(write.key, apply_write(self.table.get(write.key), write, version))
        if update.origin == self.replica_id or len(update.writes) < 2:
            apply(self, update, now)
            return
        apply(self, Update(update.origin, update.counter, update.timestamp, update.deps, update.writes[:1]), now)
        delayed.setdefault(id(self), []).append(update)

    with patch.object(CausalStore, "_apply", apply_first_write):
        yield


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
def omit_delete_clock() -> Iterator[None]:
    """The metadata of responses does not include the delete clock."""

    def metadata(self: CausalStore, past: dict[str, int], versions: Any) -> dict[str, int]:
        delete_clock, self.delete_clock = self.delete_clock, {}
        try:
            return self.markers.simplify(self._join_pasts(past, versions))
        finally:
            self.delete_clock = delete_clock

    with patch.object(CausalStore, "response_metadata", metadata):
        yield


@mutant
def leave_gate_open() -> Iterator[None]:
    """Joining and removed replicas serve clients."""

    def open_gate(self: Recovery, now: Instant) -> bool:
        self._store.not_serving_reason = None
        return False

    with patch.object(Recovery, "update_gate", open_gate):
        yield


@mutant
def declare_lost_without_reports() -> Iterator[None]:
    """A missing update of any incarnation that is not present counts as lost at once."""

    def all_missing(self: LossDetector, past: dict[str, int], token: int) -> dict[str, tuple[int, int]]:
        clock = self._store.clock
        return {
            id_: (clock.get(id_, 0) + 1, n)
            for id_, n in past.items()
            if id_ not in self._membership.table.present and clock.get(id_, 0) < n
        }

    with patch.object(LossDetector, "unrecoverable", all_missing):
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
def acknowledge_all_chunks_at_once() -> Iterator[None]:
    """Applying the first chunk of a message acknowledges the updates of all its chunks."""

    def acknowledge_all(self: Replica, updates: list[Update], now: Instant) -> Conversation[tuple[int, Instant]]:
        size = self.settings.chunk_updates
        applied = self.store.receive(updates[:size], now)
        if len(updates) > size:
            join_into(self.store.clock, {update.origin: update.counter for update in updates})
            now = yield
            applied += self.store.receive(updates[size:], now)
        return applied, now

    with patch.object(Replica, "_apply", acknowledge_all):
        yield


@mutant
def ignore_ttl() -> Iterator[None]:
    """Versions never expire."""
    with patch.object(CausalStore, "expire", lambda self, now: None):
        yield


@mutant
def match_any_etag() -> Iterator[None]:
    """If-Match holds whenever the key has a version."""

    def holds_for_any_version(self: Change, etag: str) -> bool:
        return not (self.if_none_match and etag != ABSENT_ETAG) and (self.if_match is None or etag != ABSENT_ETAG)

    with patch.object(Change, "condition_holds", holds_for_any_version):
        yield


@mutant
def tag_without_siblings() -> Iterator[None]:
    """The entity tag names the winner only, so that a conditional write replaces siblings that nobody has seen."""
    with patch.object(store.causal, "state_etag", lambda versions: versions[0].etag if versions else ABSENT_ETAG):
        yield


@mutant
def skip_a_key_between_pages() -> Iterator[None]:
    """The page after ``after`` starts one key too late."""
    list_keys = CausalStore.list_keys

    def skip_first_key(self: CausalStore, wanted: KeyRange, past: Any, now: Instant, **options: Any) -> ListResult:
        page = list_keys(self, wanted, past, now, **options)
        return replace(page, keys=page.keys[1:]) if wanted.after else page

    with patch.object(CausalStore, "list_keys", skip_first_key):
        yield


@mutant
def stop_whoever_is_named() -> Iterator[None]:
    """A process stops when a message names another incarnation of its address, whoever answers there."""

    def suspect(self: DuplicateCheck, replica: str, own_id: str, now_s: float) -> None:
        if replica != own_id:
            raise DuplicateAddress(replica)

    with patch.object(DuplicateCheck, "suspect", suspect):
        yield


@mutant
def list_changes_since_what_was_sent() -> Iterator[None]:
    """A message lists the clock entries that have changed since the last message, whether it arrived or not."""
    clock = ShortForm.clock

    def since_last_message(self: ShortForm, acked: Acknowledged) -> tuple[dict[str, int], ClockChanges]:
        fields = clock(self, acked)
        acked.seen = fields[1].revision
        return fields

    def accept_any_base(self: ShortForm, message: Exchange, acked: Acknowledged | None) -> Exchange:
        return read(self, message, dataclasses.replace(acked or Acknowledged(), present_revision=2**63 - 1))

    read = ShortForm.read
    with patch.object(ShortForm, "clock", since_last_message), patch.object(ShortForm, "read", accept_any_base):
        yield


@mutant
def take_parts_for_whole_clocks() -> Iterator[None]:
    """Whatever a message lists counts as the whole clock of its sender."""
    with patch.object(Exchange, "has_present_entries", property(lambda self: True)):
        yield


@mutant
def use_positions_under_other_tables() -> Iterator[None]:
    """Positions are used although the digests of the membership tables differ."""

    def knows_positions(self: ShortForm, acked: Acknowledged) -> bool:
        return acked.protocol >= FIRST_PROTOCOL

    with (
        patch.object(ShortForm, "knows_positions", knows_positions),
        patch.object(ShortForm, "_is_understood", lambda self, message: True),
    ):
        yield


@mutant
def serve_while_peers_refuse() -> Iterator[None]:
    """A joining replica serves although live replicas refuse it."""
    with patch.object(Refusals, "joining_reason", lambda self, now_s: ""):
        yield


@mutant
def serve_before_enough_have_met() -> Iterator[None]:
    """A joining replica does not wait until as many members have met as are expected."""
    with patch.object(MetMembers, "reason", ""):
        yield


@directed
def forget_how_many_have_met() -> Iterator[None]:
    """A replica counts only the members that its own membership table has had."""
    receive = Replica._accept

    def accept(self: Replica, message: Exchange, now: Instant, *, is_reply: bool = False) -> PeerProgress | None:
        return receive(self, replace(message, met=0), now, is_reply=is_reply)

    with patch.object(Replica, "_accept", accept):
        yield


@directed
def ask_nobody_anew_when_enough_have_met() -> Iterator[None]:
    """The time in which a peer has to answer runs while the replica waits for members to meet."""

    def waits(self: Recovery, joining: Joining, now_s: float) -> bool:
        return bool(self.waiting_reason)

    with patch.object(Recovery, "_waits_for_members", waits):
        yield


@directed
def miss_removed_seeds() -> Iterator[None]:
    """An address of VIEW that was removed from the view is still missed."""

    def missed(self: Membership) -> list[tuple[str, float]]:
        return [(at, since_s) for at, since_s in self.seeds.unanswered.items() if at in self.seeds.fixed]

    with patch.object(Membership, "missed_seeds", missed):
        yield


@mutant
def serve_if_as_many_peers_refuse() -> Iterator[None]:
    """A joining replica serves if those that refuse it are not more than its own side."""

    def joining_reason(self: Refusals, now_s: float) -> str:
        others, accepting = self.live(now_s), list(self._accepting(now_s))
        data_are_there = any(standing.is_serving for standing in others.values())
        data_are_here = any(standing.is_serving for standing in accepting)
        outweigh = len(others) > 1 + len(accepting) or (data_are_there and not data_are_here)
        return describe(others) if others and outweigh else ""

    with patch.object(Refusals, "joining_reason", joining_reason):
        yield


@mutant
def keep_times_of_a_wrong_clock() -> Iterator[None]:
    """A replica whose clock was far ahead keeps its incarnation and hybrid time when the clock is set right."""
    with patch.object(ViewChanges, "correct_times", lambda self, now: None):
        yield


@mutant
def follow_every_jump_of_the_wall_clock() -> Iterator[None]:
    """Updates are stamped with whatever the wall clock shows, so that peers reject them until that time has come."""
    with patch.object(HybridClock, "_limit_jump", lambda self, time, now: time):
        yield


# -- mutants that random runs hardly ever catch ----------------------------------------------------------------------

# -- the change feed -----------------------------------------------------------------------------------


@mutant
def forget_a_touched_key() -> Iterator[None]:
    """The feed does not tell one of the keys that have changed."""
    touched = RecentChanges.touched

    def all_but_one(self: RecentChanges, clock: Any, expired_us: int) -> set[str] | None:
        keys = touched(self, clock, expired_us)
        return keys and set(sorted(keys)[1:])

    with patch.object(RecentChanges, "touched", all_but_one):
        yield


@mutant
def forget_changes_without_a_floor() -> Iterator[None]:
    """A client whose token is older than what the replica remembers is told only what the replica remembers."""
    init = RecentChanges.__init__

    class NoFloors(dict[str, int]):
        def __setitem__(self, origin: str, counter: int) -> None:
            pass

    def without_floors(self: RecentChanges, limit_bytes: int) -> None:
        init(self, limit_bytes)
        self._floors = NoFloors()

    with patch.object(RecentChanges, "__init__", without_floors):
        yield


@mutant
def ignore_joined_snapshots_in_the_feed() -> Iterator[None]:
    """A joined snapshot is no reason to read everything again."""
    with patch.object(RecentChanges, "jumped", lambda self, origin, counter: None):
        yield


@mutant
def hide_resets() -> Iterator[None]:
    """No response says that it begins a new list of keys, so keys that are gone stay in copies."""
    read = store.feed.read_changes

    def without_reset(*args: Any) -> Changes:
        return replace(read(*args), is_reset=False)

    with patch.object(store.causal, "read_changes", without_reset):
        yield


@mutant
def claim_the_end_of_a_pass() -> Iterator[None]:
    """The last response of a pass says that no more follows, although keys changed behind the client's position."""
    restored = store.feed._restored

    def without_next_pass(token: FeedToken) -> Any:
        state = restored(token)
        state.next_since = token.clock
        return state

    with patch.object(store.feed, "_restored", without_next_pass):
        yield


@mutant
def tokens_without_their_clock() -> Iterator[None]:
    """A replica that lacks a part of a token's clock answers all the same."""
    changes = CausalStore.changes

    def without_past(
        self: CausalStore, token: FeedToken | None, prefix: str, past: Any, now: Instant, **options: Any
    ) -> Changes:
        if token is not None:
            token = replace(token, clock={o: n for o, n in token.clock.items() if self.clock.get(o, 0) >= n})
        return changes(self, token, prefix, {}, now, **options)

    with patch.object(CausalStore, "changes", without_past):
        yield


@mutant
def forget_what_changes_during_a_search() -> Iterator[None]:
    """A response that follows a search tells only what the search has found."""
    keys_of = store.feed._keys_of

    def found_only(data: CausalStore, state: Any, prefix: str) -> Any:
        if state.search is None:
            return keys_of(data, state, prefix)
        return [key for key in state.search.keys if key > (state.position or "")]

    with patch.object(store.feed, "_keys_of", found_only):
        yield


@directed
def tell_no_expiries() -> Iterator[None]:
    """The feed does not tell that a version has expired."""
    with patch.object(RecentChanges, "expired", lambda self, deadline_us, key: None):
        yield


@directed
def pause_for_known_updates() -> Iterator[None]:
    """A message that is sent again takes as long as the first time, so a slow receiver is never heard."""

    def apply_all(self: Replica, updates: list[Update], now: Instant) -> Conversation[tuple[int, Instant]]:
        applied, size = 0, self.settings.chunk_updates
        for start in range(0, len(updates), size):
            if start:
                with self.loss.holding(updates[start:]):
                    now = yield
            applied += self.store.receive(updates[start : start + size], now)
        return applied, now

    with patch.object(Replica, "_apply", apply_all):
        yield


@directed
def omit_retired_entries_from_markers() -> Iterator[None]:
    """The past of a marker lacks the entries of ended incarnations."""

    def issue_marker(self: CausalStore, now: Instant) -> Update:
        past = {id_: n for id_, n in self.clock.items() if id_ in self.present_ids}
        return self._issue_update(past, (), self.hybrid_clock.stamp(now), now)

    with patch.object(CausalStore, "issue_marker", issue_marker):
        yield


@directed
def use_marker_before_all_have_it() -> Iterator[None]:
    """A marker replaces clock entries as soon as it is issued."""
    promote = Markers.promote

    def promote_all(self: Markers, applied_everywhere: dict[str, int], present: Any) -> None:
        promote(self, dict.fromkeys(applied_everywhere, 2**53), present)

    with patch.object(Markers, "promote", promote_all):
        yield


@directed
def declare_lost_without_down_members() -> Iterator[None]:
    """Members without a valid report are not waited for (rule 2)."""

    def available_reports(token: int, peers: Any, ids: Any, digest: int) -> list[Report]:
        reports = [acked.report for acked in peers if acked is not None and acked.report is not None]
        return [report for report in reports if report.serial > token and report.membership_digest == digest]

    with patch.object(replication.loss, "reports_since", available_reports):
        yield


@directed
def keep_no_log_for_receivers_of_snapshots() -> Iterator[None]:
    """The log has no reserve while the receiver of a snapshot catches up."""
    with patch.object(UpdateLog, "set_reserve", lambda self, reserve_bytes: None):
        yield


@directed
def keep_the_reserve_for_ever() -> Iterator[None]:
    """The reserve of the log does not end."""
    with patch.object(LogReserve, "update", lambda self, now_s: None):
        yield


@directed
def give_the_log_an_unlimited_reserve() -> Iterator[None]:
    """The log keeps whatever the receiver of a snapshot lacks."""
    set_reserve = UpdateLog.set_reserve

    def unlimited(self: UpdateLog, reserve_bytes: int) -> None:
        set_reserve(self, 1 << 40 if reserve_bytes else 0)

    with patch.object(UpdateLog, "set_reserve", unlimited):
        yield


@directed
def pull_snapshots_without_pauses() -> Iterator[None]:
    """A replica that needs one snapshot after another pulls them without a pause."""
    with patch.object(SnapshotPauses, "note", lambda self, begun_s, ended_s: None):
        yield


@directed
def send_whole_snapshots_only() -> Iterator[None]:
    """Each snapshot has all data, although its receiver has had another one shortly before."""
    with patch.object(
        replication.snapshots, "cut", lambda own_id, name, snapshot, size, since: cut(own_id, name, snapshot, size)
    ):
        yield


@directed
def join_a_partial_snapshot_for_another_clock() -> Iterator[None]:
    """A replica joins a partial snapshot for a clock that it does not have."""
    with patch.object(SnapshotPull, "fits", lambda self, piece: True):
        yield


@directed
def declare_lost_from_old_reports() -> Iterator[None]:
    """A report counts however old it is (rule 2)."""
    with patch.object(
        replication.loss,
        "reports_since",
        lambda token, peers, ids, digest: reports_since(-1, peers, ids, digest),
    ):
        yield


@directed
def declare_lost_under_another_table() -> Iterator[None]:
    """A report counts under any membership table (rule 2)."""

    def reports_under_any_table(token: int, peers: Any, ids: Any, digest: int) -> list[Report] | None:
        reports: list[Report] = []
        for acked, replica in zip(peers, ids, strict=True):
            report = acked.report if acked is not None else None
            if report is None or report.serial <= token or report.replica != replica:
                return None
            reports.append(report)
        return reports

    with patch.object(replication.loss, "reports_since", reports_under_any_table):
        yield


@directed
def count_reports_of_joining_members() -> Iterator[None]:
    """A member reports while it joins, although it may be about to receive the update from a seed (rule 2)."""

    def with_joining(token: int, members: Any, ids: Any, digest: int) -> list[Report] | None:
        members = list(members)
        for acked in members:
            if acked is not None and acked.report is not None:
                acked.report = dataclasses.replace(acked.report, is_joining=False)
        return reports_since(token, members, ids, digest)

    with patch.object(replication.loss, "reports_since", with_joining):
        yield


@directed
def declare_lost_what_a_member_has() -> Iterator[None]:
    """An update that a member reports to have counts as lost until it arrives here (rule 3)."""

    def ignore_reports(gaps: Any, reports: Any, clock: Any, pending: Any) -> Any:
        return unrecoverable(gaps, [], clock, pending)

    with patch.object(replication.loss, "unrecoverable", ignore_reports):
        yield


@directed
def keep_pending_on_lost_updates() -> Iterator[None]:
    """A pending update that waits for a lost one is never dropped."""
    with patch.object(CausalStore, "drop_pending", lambda self, dot: None):
        yield


@directed
def omit_random_bits_of_incarnations() -> Iterator[None]:
    """Two processes that start in the same millisecond have the same incarnation."""
    new_incarnation = replication.view_changes.new_incarnation

    def without_random_bits(known: int, rng: Any, now: Instant, above_us: int = 0) -> int:
        return new_incarnation(known, rng, now, above_us) >> INCARNATION_RANDOM_BITS << INCARNATION_RANDOM_BITS

    with patch.object(replication.replica, "new_incarnation", without_random_bits):
        yield


@directed
def wait_for_dead_peers() -> Iterator[None]:
    """A joining replica waits even for a peer that has been silent for long."""
    is_done = Joining.is_done

    def never_silent(self: Joining, asked: Any, clock: dict[str, int], membership: Membership, now_s: float) -> bool:
        with patch.object(Liveness, "is_silent", lambda self, replica, since_s, now_s: False):
            return is_done(self, asked, clock, membership, now_s)

    with patch.object(Joining, "is_done", never_silent):
        yield


@directed
def ignore_discovery() -> Iterator[None]:
    """A replica that has to discover others does not wait for a lookup that finds one."""
    original = Seeds.__init__

    def without_discovery(self: Seeds, own: str, fixed: Any, *, discovers: bool, now_s: float) -> None:
        original(self, own, fixed, discovers=False, now_s=now_s)

    with patch.object(Seeds, "__init__", without_discovery):
        yield


@directed
def serve_alone_after_one_lookup() -> Iterator[None]:
    """A replica counts as discovered as soon as a lookup has found any address, even if only its own."""

    def has_no_lookup(self: Seeds, now_s: float, alone_after_s: float) -> bool:
        return self._discovers and not self._discovered

    with patch.object(Seeds, "is_undiscovered", has_no_lookup):
        yield


@directed
def ignore_late_lookups() -> Iterator[None]:
    """The time to answer of an address that a late lookup finds counts from the start of the joining."""
    discovered = Replica.discovered

    def without_own_time(self: Replica, addresses: Any, now: Instant) -> None:
        discovered(self, addresses, now)
        if self.recovery.joining is not None:
            self.recovery.joining.asked_s.clear()

    with patch.object(Replica, "discovered", without_own_time), ignore_late_members():
        yield


@directed
def ignore_late_members() -> Iterator[None]:
    """The time to answer of a member that a late reply names counts from the start of the joining."""
    with patch.object(Joining, "ask", lambda self, addresses, now_s: None):
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
def ignore_removed_holders() -> Iterator[None]:
    """An update counts as lost although a live removed replica may hand it over (rule 2)."""
    update = LossDetector.update_possible_holders

    def always_quiet(self: LossDetector, now: Instant) -> None:
        update(self, now)
        self.quiet_since = 0

    with patch.object(LossDetector, "update_possible_holders", always_quiet):
        yield


@directed
def declare_lost_from_reports_before_silence() -> Iterator[None]:
    """A report counts although its member may have received the update from a removed replica since (rule 2)."""
    update = LossDetector.update_possible_holders

    def quiet_since_ever(self: LossDetector, now: Instant) -> None:
        update(self, now)
        self.quiet_since = None if self.possible_holders else 0

    with patch.object(LossDetector, "update_possible_holders", quiet_since_ever):
        yield


@directed
def declare_lost_while_applying() -> Iterator[None]:
    """Updates of a message that is applied in chunks do not count as pending (rule 4)."""
    with patch.object(LossDetector, "holding", lambda self, updates: nullcontext()):
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
def ask_an_address_only_once() -> Iterator[None]:
    """An address that reappears in lookups is not asked again, although another replica may answer there."""
    update = Seeds.update

    def keep_known_addresses(self: Seeds, addresses: Any, now_s: float) -> list[str]:
        before, known = dict(self.unanswered), self._discovered
        vanished = update(self, {*addresses, *known}, now_s)
        self.unanswered = {
            address: at_s for address, at_s in self.unanswered.items() if address in {*before, *addresses}
        }
        return vanished

    with patch.object(Seeds, "update", keep_known_addresses):
        yield


@directed
def ask_vanished_addresses() -> Iterator[None]:
    """An address that has never answered is still asked after it has vanished from lookups."""
    update = Seeds.update

    def never_forget(self: Seeds, addresses: Any, now_s: float) -> list[str]:
        return update(self, {*addresses, *self._discovered}, now_s)

    with patch.object(Seeds, "update", never_forget):
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
def never_ask_seeds_again() -> Iterator[None]:
    """A removed replica that reaches no member waits to be asked."""
    with patch.object(Membership, "seeds_to_ask_again", lambda self, now_s: frozenset()):
        yield


@directed
def never_ask_dropped_members() -> Iterator[None]:
    """An address that a merge has dropped is not asked any more."""
    with patch.object(Membership, "dropped", lambda self, now_s: []):
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
def wait_for_removed_seeds() -> Iterator[None]:
    """A seed that was never reached counts as a member that has not reported although it was removed."""

    def knows_all_members(self: Membership) -> bool:
        return not (self.seeds.unanswered or self.undiscovered)

    with patch.object(Membership, "knows_all_members", knows_all_members):
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


@directed
def keep_forged_acknowledgements() -> Iterator[None]:
    """A reply adds to what was acknowledged, and never takes anything back."""
    with patch.object(Acknowledged, "confirm", Acknowledged.acknowledge):
        yield


@directed
def forget_acknowledgements_of_requests() -> Iterator[None]:
    """A reply takes back what the peer has acknowledged since the reply was composed."""

    def confirm(self: Acknowledged, clock: dict[str, int]) -> None:
        self.clock = dict(clock)

    with patch.object(Acknowledged, "confirm", confirm):
        yield


@directed
def pace_writes_that_wait_for_acks() -> Iterator[None]:
    """A write for whose acks a client waits leaves no earlier than other writes."""
    with patch.object(Acks, "expect", lambda self, dot, required, now_s: []):
        yield


@directed
def never_pace_again() -> Iterator[None]:
    """After one write that waited for acks, no write is paced."""
    due_at = PeerProgress.exchange_due_at

    def exchange_due_at(self: PeerProgress, own_counter: int, now_s: float) -> float:
        return now_s if self.awaited_counter and own_counter > self.acked.sent else due_at(self, own_counter, now_s)

    with patch.object(PeerProgress, "exchange_due_at", exchange_due_at):
        yield


@directed
def expect_acks_of_an_earlier_incarnation() -> Iterator[None]:
    """A counter that was expected of the incarnation before counts for the present one, whose counters start at 1."""
    raise_incarnation = ViewChanges._raise_incarnation

    def keep_expecting(self: ViewChanges, own: MembershipEntry, now: Instant) -> None:
        expected = [(peer, peer.awaited_counter) for peer in self._peers.all()]
        raise_incarnation(self, own, now)
        for peer, counter in expected:
            peer.awaited_counter = counter

    with patch.object(ViewChanges, "_raise_incarnation", keep_expecting):
        yield


@directed
def expect_acks_only_of_a_peer_that_failed() -> Iterator[None]:
    """After a request failed, only its peer is still expected to acknowledge what a client waits for."""
    with patch.object(Acks, "expect_from_others", lambda self, failed: None):
        yield


@directed
def expect_acks_of_peers_that_hang() -> Iterator[None]:
    """The peers to ask are chosen without a look at what is in flight to them."""
    with patch.object(Acks, "_hangs", lambda self, peer, now_s: False):
        yield


@directed
def expect_too_few_acks() -> Iterator[None]:
    """Of the members that have to acknowledge, one is not asked."""
    choose = Acks._choose
    with patch.object(Acks, "_choose", lambda self, required, now_s: choose(self, required - 1, now_s)):
        yield


@directed
def let_hybrid_time_run_on() -> Iterator[None]:
    """Hybrid time keeps any lead, so replicas with slower wall clocks reject it for ever."""
    unlimited = property(lambda self: 10**18, lambda self, value: None)
    with patch.object(HybridClock, "max_lead_us", unlimited):
        yield


@directed
def require_rising_heartbeats_of_replies() -> Iterator[None]:
    """A replica that answers looks silent if a higher heartbeat was invented for it."""
    with patch.object(Liveness, "hear_reply", Liveness.hear):
        yield


@directed
def accept_times_far_ahead() -> Iterator[None]:
    """Times and incarnations count however far ahead they are."""
    with patch.object(replication.replica, "check_times", lambda message, now, max_lead_s: None):
        yield


@directed
def keep_the_base_of_another_table() -> Iterator[None]:
    """A message lists changes since a state under an earlier membership table."""
    update = ShortForm._update

    def forget_no_revision(self: ShortForm) -> None:
        update(self)
        self._first_revision = 1

    with patch.object(ShortForm, "_update", forget_no_revision):
        yield


@directed
def base_clocks_on_requests() -> Iterator[None]:
    """The clock in a request counts like that in a reply, although anybody may have sent it."""
    accept = Replica._accept

    def accept_as_reply(
        self: Replica, message: Exchange, now: Instant, *, is_reply: bool = False
    ) -> PeerProgress | None:
        peer = accept(self, message, now, is_reply=is_reply)
        if peer is not None and message.changes is not None and message.has_present_entries:
            peer.acked.present, peer.acked.present_revision = message.clock, message.changes.revision
        return peer

    with patch.object(Replica, "_accept", accept_as_reply):
        yield


@directed
def ask_about_nobody() -> Iterator[None]:
    """A replica never asks about members that it does not hear."""
    with patch.object(Membership, "unheard", lambda self, now_s: []):
        yield


@directed
def answer_no_question() -> Iterator[None]:
    """A replica reports nobody to peers that ask."""
    with patch.object(Membership, "recent_contacts", lambda self, replicas, now_s: {}):
        yield


@directed
def report_nothing_to_peers_that_do_not_answer() -> Iterator[None]:
    """A peer is reported what it asks for, even if its questions do not arrive."""

    with patch.object(ShortForm, "asks", lambda self, peer: True):
        yield


@directed
def count_refusals_of_the_dead() -> Iterator[None]:
    """A replica that is down still refuses."""
    with patch.object(Refusals, "_is_live", lambda self, standing, now_s: True):
        yield


@directed
def serve_after_the_first_acceptance() -> Iterator[None]:
    """When a refusal ends, the replica does not wait for peers that it asked long ago and that refused it, too."""
    with patch.object(Joining, "ask_anew", lambda self, now_s: None):
        yield


@directed
def forget_the_clock_at_the_next_exchange() -> Iterator[None]:
    """An exchange that does not state the wall clock ends a disagreement about clocks."""
    accepted = Refusals.accepted

    def accept(self: Refusals, address: str, now_s: float, *, is_serving: bool, states_clock: bool) -> bool:
        return accepted(self, address, now_s, is_serving=is_serving, states_clock=True)

    with patch.object(Refusals, "accepted", accept):
        yield


@directed
def ignore_the_clock_while_serving() -> Iterator[None]:
    """A serving replica is ready whatever its wall clock shows."""
    with patch.object(Refusals, "serving_reason", lambda self, now_s: ""):
        yield


@directed
def keep_entries_with_wrong_times() -> Iterator[None]:
    """When its clock is set right, a replica keeps other replicas' incarnations of the wrong time in its table."""
    with patch.object(MembershipTable, "is_ahead", lambda self, limit_us: False):
        yield


@directed
def ignore_where_the_data_are() -> Iterator[None]:
    """Replicas that agree serve although the only ones that have data refuse them."""

    def joining_reason(self: Refusals, now_s: float) -> str:
        others = self.live(now_s)
        return describe(others) if others and len(others) >= 1 + len(list(self._accepting(now_s))) else ""

    with patch.object(Refusals, "joining_reason", joining_reason):
        yield

"""Replicas with one mistake each. A simulation that does not catch them proves nothing.

Each mutant is a context manager that breaks one rule everywhere. They stand for the mistakes that drafts of
the protocol made, or that a later change is likely to make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

import replication.loss
import replication.replica
import replication.view_changes
import store.causal
from replication.liveness import Liveness
from replication.loss import LossDetector, reports_since, unrecoverable
from replication.membership import Membership
from replication.messages import Exchange, MembershipEntry
from replication.progress import PeerProgress, PeerState, Report
from replication.recovery import Joining, Recovery
from replication.replica import Conversation, Outgoing, Replica
from replication.seeds import Seeds
from replication.snapshots import SnapshotPull
from replication.view_changes import ViewChanges
from store.causal import CausalStore, ListResult
from store.clock import INCARNATION_RANDOM_BITS, Instant, incarnation_of, merge_into
from store.errors import NotServing
from store.markers import Markers
from store.snapshot import Snapshot
from store.versions import Change, Update, Version, Versions, Write, apply_write

Mutant = Callable[[], AbstractContextManager[None]]

MUTANTS: dict[str, Mutant] = {}


def mutant(function: Callable[[], Iterator[None]]) -> Mutant:
    made = contextmanager(function)
    MUTANTS[function.__name__] = made
    return made


def replaced(owner: Any, name: str, new: Any) -> Any:
    return patch.object(owner, name, new)


@mutant
def skip_the_causality_check() -> Iterator[None]:
    """Clients are answered whether or not their causal past is here."""

    def admit(self: CausalStore, past: dict[str, int], now: Instant) -> None:
        if self.not_serving_reason is not None:
            raise NotServing(self.not_serving_reason)

    with replaced(CausalStore, "admit", admit):
        yield


@mutant
def take_a_clients_clock_before_delivery() -> Iterator[None]:
    """A client's metadata is merged into the replica's clock, as if the updates it names were here."""

    def admit(self: CausalStore, past: dict[str, int], now: Instant) -> None:
        if self.not_serving_reason is not None:
            raise NotServing(self.not_serving_reason)
        merge_into(self.clock, past)

    with replaced(CausalStore, "admit", admit):
        yield


@mutant
def reuse_a_counter_after_restart() -> Iterator[None]:
    """Every process at an address has the same incarnation, so it issues the same dots again."""

    def same(known: int, rng: Any, now: Instant) -> int:
        return max(1 << 21, known + 1 if known else 0)

    with (
        replaced(replication.replica, "new_incarnation", same),
        replaced(replication.view_changes, "new_incarnation", same),
    ):
        yield


@mutant
def deliver_out_of_order() -> Iterator[None]:
    """Updates are applied as they come, whatever they depend on."""
    with replaced(store.causal, "first_missing", lambda clock, update: None):
        yield


@mutant
def acknowledge_what_was_not_applied() -> Iterator[None]:
    """What was sent counts as received."""
    begin = Replica.begin

    def optimistic(self: Replica, address: str, now: Instant) -> Outgoing | None:
        outgoing = begin(self, address, now)
        peer = self.peers.at(address)
        if outgoing is not None and isinstance(outgoing.message, Exchange):
            peer.acked.acknowledge({u.origin: u.counter for u in outgoing.message.updates})
        return outgoing

    with replaced(Replica, "begin", optimistic):
        yield


@mutant
def count_acks_of_a_lost_memory() -> Iterator[None]:
    """What a replica had acknowledged before it was restarted still counts."""

    def become(self: PeerProgress, replica: str, now_s: float) -> None:
        self.acked.replica = replica
        self.acked.report = None
        self.state = PeerState.EXCHANGING

    with replaced(PeerProgress, "become", become):
        yield


@mutant
def take_over_half_a_snapshot() -> Iterator[None]:
    """The receiver has the whole clock, but only every other key."""
    whole = SnapshotPull.snapshot

    def half(self: SnapshotPull) -> Snapshot:
        snapshot = whole(self)
        kept = {key: snapshot.table[key] for number, key in enumerate(snapshot.table) if number % 2 == 0}
        return snapshot._replace(table=kept)

    with replaced(SnapshotPull, "snapshot", half):
        yield


@mutant
def snapshot_clock_read_later_than_its_versions() -> Iterator[None]:
    """The versions are of an earlier moment than the clock."""
    snapshot = CausalStore.snapshot
    earlier: dict[int, dict[str, Versions]] = {}

    def torn(self: CausalStore, now: Instant) -> Snapshot:
        whole = snapshot(self, now)
        table = earlier.get(id(self), whole.table)
        earlier[id(self)] = dict(whole.table)
        return whole._replace(table=table)

    with replaced(CausalStore, "snapshot", torn):
        yield


@mutant
def drop_a_sibling() -> Iterator[None]:
    """Of concurrent versions only the winner is kept."""

    def winner_only(held: Versions, write: Write, version: Version | None) -> Versions:
        return apply_write(held, write, version)[:1]

    with replaced(store.causal, "apply_write", winner_only):
        yield


@mutant
def forget_the_past_of_a_replaced_version() -> Iterator[None]:
    """A write depends on what its client had seen, but not on what it replaced."""
    issue = CausalStore._issue_changes
    joined = CausalStore._join_pasts

    def forgetful(self: CausalStore, changes: Any, past: Any, read: Any, now: Instant) -> Update | None:
        kept = list(read)

        def only_read(self: CausalStore, past: Any, versions: Any) -> dict[str, int]:
            return joined(self, past, kept)

        with replaced(CausalStore, "_join_pasts", only_read):
            return issue(self, changes, past, kept, now)

    with replaced(CausalStore, "_issue_changes", forgetful):
        yield


@mutant
def let_transactions_interleave() -> Iterator[None]:
    """The first key of an update from elsewhere shows at once, the others when the next update comes."""
    apply = CausalStore._apply
    rest: dict[int, list[tuple[Update, Instant]]] = {}

    def halved(self: CausalStore, update: Update, now: Instant) -> None:
        for late, _then in rest.pop(id(self), []):
            for write in late.writes[1:]:
                version = None
                if write.value is not None:
                    version = Version(write.value, late.origin, late.counter, late.timestamp, late.deps)
                self.table.set(write.key, apply_write(self.table.get(write.key), write, version))
        if update.origin == self.replica_id or len(update.writes) < 2:
            apply(self, update, now)
            return
        whole = update
        apply(self, Update(update.origin, update.counter, update.timestamp, update.deps, update.writes[:1]), now)
        rest.setdefault(id(self), []).append((whole, now))

    with replaced(CausalStore, "_apply", halved):
        yield


@mutant
def bring_back_a_deleted_member() -> Iterator[None]:
    """Whoever talks is in."""
    accept = Replica._accept

    def welcome(self: Replica, message: Exchange, now: Instant) -> PeerProgress | None:
        peer = accept(self, message, now)
        if peer is not None and not self.membership.table.belongs(peer.address):
            self.add_replica_from_view(peer.address, now)
        return peer

    with replaced(Replica, "_accept", welcome):
        yield


@mutant
def answers_without_the_delete_clock() -> Iterator[None]:
    """An absence has no cause."""

    def told(self: CausalStore, past: dict[str, int], shown: Any) -> dict[str, int]:
        kept, self.delete_clock = self.delete_clock, {}
        try:
            return self.markers.simplify(self._join_pasts(past, shown))
        finally:
            self.delete_clock = kept

    with replaced(CausalStore, "_response_metadata", told):
        yield


@mutant
def a_gate_that_is_not_checked() -> Iterator[None]:
    """Joining and removed replicas answer clients."""

    def open_gate(self: Recovery, now: Instant) -> bool:
        self._store.not_serving_reason = None
        return False

    with replaced(Recovery, "update_gate", open_gate):
        yield


@mutant
def lost_without_asking() -> Iterator[None]:
    """What is not here and comes from no present incarnation is lost."""

    def hasty(self: LossDetector, past: dict[str, int], token: int) -> dict[str, tuple[int, int]]:
        clock = self._store.clock
        return {
            id_: (clock.get(id_, 0) + 1, n)
            for id_, n in past.items()
            if id_ not in self._membership.table.present and clock.get(id_, 0) < n
        }

    with replaced(LossDetector, "unrecoverable", hasty):
        yield


@mutant
def a_higher_incarnation_is_ignored() -> Iterator[None]:
    """A process that started under an old clock goes on under an incarnation that is over."""
    follow = ViewChanges.follow_table

    def stubborn(self: ViewChanges, now: Instant) -> None:
        table = self._membership.table
        known = table.entries[table.address]
        own = incarnation_of(self._store.replica_id)
        if known.incarnation > own:
            table._write(table.address, MembershipEntry(own, known.stamp, True))
        follow(self, now)

    with replaced(ViewChanges, "follow_table", stubborn):
        yield


@mutant
def count_a_message_before_its_last_chunk() -> Iterator[None]:
    """The first chunk of a long message acknowledges the updates of all its chunks."""

    def hasty(self: Replica, updates: list[Update], now: Instant) -> Conversation[tuple[int, Instant]]:
        size = self.settings.chunk_updates
        applied = self.store.receive(updates[:size], now)
        if len(updates) > size:
            merge_into(self.store.clock, {update.origin: update.counter for update in updates})
            now = yield
            applied += self.store.receive(updates[size:], now)
        return applied, now

    with replaced(Replica, "_apply", hasty):
        yield


@mutant
def a_ttl_that_is_ignored() -> Iterator[None]:
    """Versions never expire."""
    with replaced(CausalStore, "expire", lambda self, now: None):
        yield


@mutant
def a_precondition_on_any_version() -> Iterator[None]:
    """If-Match holds whenever the key has a version."""

    def careless(self: Change, etag: str | None) -> bool:
        return not (self.if_none_match and etag is not None) and (self.if_match is None or etag is not None)

    with replaced(Change, "condition_holds", careless):
        yield


@mutant
def a_page_that_passes_over_a_key() -> Iterator[None]:
    """The page after ``after`` starts one key too late."""
    list_keys = CausalStore.list_keys

    def hasty(self: CausalStore, prefix: str, past: Any, now: Instant, **options: Any) -> ListResult:
        page = list_keys(self, prefix, past, now, **options)
        return replace(page, keys=page.keys[1:]) if options.get("after") else page

    with replaced(CausalStore, "list_keys", hasty):
        yield


# -- mistakes that random runs hardly ever meet: directed tests catch them (test_mutants.py) ----------------

DIRECTED: dict[str, Mutant] = {}


def directed(function: Callable[[], Iterator[None]]) -> Mutant:
    made = contextmanager(function)
    DIRECTED[function.__name__] = made
    return made


@directed
def a_marker_whose_past_is_not_the_whole_clock() -> Iterator[None]:
    """A marker leaves out what it was issued for: the entries of incarnations that are over."""

    def issue_marker(self: CausalStore, now: Instant) -> Update:
        return self._issue_update({id_: n for id_, n in self.clock.items() if id_ in self.present_ids}, (), now)

    with replaced(CausalStore, "issue_marker", issue_marker):
        yield


@directed
def a_marker_used_before_every_member_has_it() -> Iterator[None]:
    """A marker is used as soon as it is issued."""
    promote = Markers.promote

    def hasty(self: Markers, everybody: dict[str, int], present: Any) -> None:
        promote(self, dict.fromkeys(everybody, 2**53), present)

    with replaced(Markers, "promote", hasty):
        yield


@directed
def lost_without_asking_members_that_are_down() -> Iterator[None]:
    """Only members that have answered are asked whether they have it."""

    def some_reports(token: int, peers: Any, ids: Any, digest: int) -> list[Report]:
        reports = [acked.report for acked in peers if acked is not None and acked.report is not None]
        return [report for report in reports if report.serial > token and report.membership_digest == digest]

    with replaced(replication.loss, "reports_since", some_reports):
        yield


@directed
def lost_from_reports_older_than_the_request() -> Iterator[None]:
    """Any report counts, however old."""
    with replaced(
        replication.loss,
        "reports_since",
        lambda token, peers, ids, digest: reports_since(-1, peers, ids, digest),
    ):
        yield


@directed
def lost_from_reports_made_under_another_register() -> Iterator[None]:
    """A report counts under whichever register it was made."""

    def any_register(token: int, peers: Any, ids: Any, digest: int) -> list[Report] | None:
        reports: list[Report] = []
        for acked, replica in zip(peers, ids, strict=True):
            report = acked.report if acked is not None else None
            if report is None or report.serial <= token or report.replica != replica:
                return None
            reports.append(report)
        return reports

    with replaced(replication.loss, "reports_since", any_register):
        yield


@directed
def lost_before_the_own_clock_covers_the_reports() -> Iterator[None]:
    """What another member reports to have is "lost" because it is not here yet."""

    def careless(gaps: Any, reports: Any, clock: Any, pending: Any) -> Any:
        return unrecoverable(gaps, [], clock, pending)

    with replaced(replication.loss, "unrecoverable", careless):
        yield


@directed
def pending_updates_kept_that_wait_for_what_is_lost() -> Iterator[None]:
    """An update whose cause is lost waits for ever."""
    with replaced(CausalStore, "drop_pending", lambda self, dot: None):
        yield


@directed
def an_incarnation_without_random_bits() -> Iterator[None]:
    """Two processes that start in the same millisecond are the same incarnation."""
    new_incarnation = replication.view_changes.new_incarnation

    def plain(known: int, rng: Any, now: Instant) -> int:
        return new_incarnation(known, rng, now) >> INCARNATION_RANDOM_BITS << INCARNATION_RANDOM_BITS

    with replaced(replication.replica, "new_incarnation", plain):
        yield


@directed
def a_joiner_that_waits_for_a_dead_peer() -> Iterator[None]:
    """A joining replica waits for everybody it has heard of, however long ago."""
    is_done = Joining.is_done

    def patient(self: Joining, asked: Any, clock: dict[str, int], membership: Membership, now_s: float) -> bool:
        with replaced(Liveness, "is_silent", lambda self, replica, since_s, now_s: False):
            return is_done(self, asked, clock, membership, now_s)

    with replaced(Joining, "is_done", patient):
        yield


@directed
def a_replica_that_thinks_that_it_knows_everybody() -> Iterator[None]:
    """One that is to discover the others goes by what it knows before any lookup has found somebody."""
    make = Seeds.__init__

    def knowing(self: Seeds, own: str, fixed: Any, *, discovers: bool, now_s: float) -> None:
        make(self, own, fixed, discovers=False, now_s=now_s)

    with replaced(Seeds, "__init__", knowing):
        yield


@directed
def alone_because_a_lookup_found_nobody_else() -> Iterator[None]:
    """One that finds only itself takes itself for the only one at once."""

    def hasty(self: Seeds, now_s: float, alone_after_s: float) -> bool:
        return self._discovers and not self._discovered

    with replaced(Seeds, "is_undiscovered", hasty):
        yield


@directed
def found_late_and_not_waited_for() -> Iterator[None]:
    """A joiner gives those that a late lookup finds no time of their own to answer."""
    discovered = Replica.discovered

    def hasty(self: Replica, addresses: Any, now: Instant) -> None:
        discovered(self, addresses, now)
        if self.recovery.joining is not None:
            self.recovery.joining.asked_s.clear()

    with replaced(Replica, "discovered", hasty), named_late_and_not_waited_for():
        yield


@directed
def named_late_and_not_waited_for() -> Iterator[None]:
    """A joiner gives those that another one's answer names no time of their own to answer."""
    with replaced(Joining, "ask", lambda self, addresses, now_s: None):
        yield


@directed
def put_back_and_served_at_once() -> Iterator[None]:
    """PUT /view opens the gate of a replica that has missed what was written while it was out."""
    update_gate = Recovery.update_gate

    def open_at_once(self: Recovery, now: Instant) -> bool:
        was_removed = update_gate(self, now)
        if was_removed:
            self.joining = self._store.not_serving_reason = None
        return was_removed

    with replaced(Recovery, "update_gate", open_at_once):
        yield


@directed
def lost_while_one_that_was_put_out_may_bring_it() -> Iterator[None]:
    """What a replica that was put out has counts as lost although that replica lives, and hands it over."""
    update = LossDetector.update_possible_holders

    def careless(self: LossDetector, now: Instant) -> None:
        update(self, now)
        self.quiet_since = 0

    with replaced(LossDetector, "update_possible_holders", careless):
        yield


@directed
def lost_from_reports_from_before_the_put_out_fell_silent() -> Iterator[None]:
    """A member may have taken it from one that was put out after it reported; that report counts all the same."""
    update = LossDetector.update_possible_holders

    def undated(self: LossDetector, now: Instant) -> None:
        update(self, now)
        self.quiet_since = None if self.possible_holders else 0

    with replaced(LossDetector, "update_possible_holders", undated):
        yield


@directed
def lost_while_it_is_being_applied() -> Iterator[None]:
    """The updates of a message that is applied in chunks do not count as pending in between."""
    with replaced(LossDetector, "holding", lambda self, updates: nullcontext()):
        yield


@directed
def who_was_put_out_is_not_told_of() -> Iterator[None]:
    """Signs of life of one that was put out are not passed on, so who is cut off from it takes it for dead."""
    report = Membership.liveness_report

    def of_members(self: Membership, also: Any, now_s: float) -> Any:
        return report(self, (), now_s)

    with replaced(Membership, "liveness_report", of_members):
        yield


@directed
def an_address_asked_once_in_a_life() -> Iterator[None]:
    """An address that comes back is not asked again, although somebody else may answer there."""
    update = Seeds.update

    def once(self: Seeds, addresses: Any, now_s: float) -> list[str]:
        before, known = dict(self.unanswered), self._discovered
        gone = update(self, {*addresses, *known}, now_s)
        self.unanswered = {
            address: at_s for address, at_s in self.unanswered.items() if address in {*before, *addresses}
        }
        return gone

    with replaced(Seeds, "update", once):
        yield


@directed
def an_address_asked_for_ever() -> Iterator[None]:
    """An address that never answered is asked on after it has left the name."""
    update = Seeds.update

    def stubborn(self: Seeds, addresses: Any, now_s: float) -> list[str]:
        return update(self, {*addresses, *self._discovered}, now_s)

    with replaced(Seeds, "update", stubborn):
        yield

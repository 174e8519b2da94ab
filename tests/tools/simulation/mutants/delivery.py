"""Mutants of causal order, versions, dots, the log and its markers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

import replication.loss
import replication.replica
import replication.snapshots
import replication.view_changes
import store.causal
import store.feed
from replication.messages import Exchange
from replication.progress import PeerProgress, PeerState
from replication.replica import Conversation, Outgoing, Replica
from replication.reserve import LogReserve
from store.causal import CausalStore
from store.clock import INCARNATION_RANDOM_BITS, HybridClock, Instant, join_into
from store.errors import NotServing
from store.log import UpdateLog
from store.markers import Markers
from store.results import ListResult
from store.table import KeyRange
from store.versions import ABSENT_ETAG, Change, Update, Version, Versions, Write, apply_write
from tests.tools.simulation.mutants.registry import directed, mutant


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
def follow_every_jump_of_the_wall_clock() -> Iterator[None]:
    """Updates are stamped with whatever the wall clock shows, so that peers reject them until that time has come."""
    with patch.object(HybridClock, "_limit_jump", lambda self, time, now: time):
        yield


@directed
def count_jumps_from_a_clock_that_is_off() -> Iterator[None]:
    """A replica that starts with a clock nearly a day ahead may then get half a day further in its hybrid time."""
    with patch.object(HybridClock, "limit_jumps", lambda self, earliest_us, now: None):
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
def omit_random_bits_of_incarnations() -> Iterator[None]:
    """Two processes that start in the same millisecond have the same incarnation."""
    new_incarnation = replication.view_changes.new_incarnation

    def without_random_bits(known: int, rng: Any, now: Instant, above_us: int = 0) -> int:
        return new_incarnation(known, rng, now, above_us) >> INCARNATION_RANDOM_BITS << INCARNATION_RANDOM_BITS

    with patch.object(replication.replica, "new_incarnation", without_random_bits):
        yield


@directed
def let_hybrid_time_run_on() -> Iterator[None]:
    """Hybrid time keeps any lead, so replicas with slower wall clocks reject it for ever."""
    unlimited = property(lambda self: 10**18, lambda self, value: None)
    with patch.object(HybridClock, "max_lead_us", unlimited):
        yield

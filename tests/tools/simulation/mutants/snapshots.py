"""Mutants of snapshots and the pieces that they travel in."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import replication.loss
import replication.replica
import replication.snapshots
import replication.view_changes
from replication.replica import Conversation, Replica
from replication.snapshots import SnapshotPauses, SnapshotPull, cut
from store.causal import CausalStore
from store.clock import Instant
from store.snapshot import Snapshot
from store.versions import Update, Versions
from tests.tools.simulation.mutants.registry import directed, mutant


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
def keep_pending_on_lost_updates() -> Iterator[None]:
    """A pending update that waits for a lost one is never dropped."""
    with patch.object(CausalStore, "drop_pending", lambda self, dot: None):
        yield

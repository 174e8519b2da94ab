"""CausalStore: the data of one replica and the rules that keep it causally consistent.

Theory of operation
-------------------
The **clock** is exact: entry n for replica id i means that this replica has applied the updates (i, 1) to (i, n), no
more and no fewer. It is also causally closed: if an update is applied, its whole causal past is applied. All rules
depend on these two invariants.

* *Admission*: a client request is served only if the clock covers the client's causal past (``is_causal``). The
  client's clock is never joined into the replica's clock, because that would claim updates that are not here.
* *Delivery*: an update from another replica is applied when the clock covers its causal past. Until then it waits
  in the pending queue (store/delivery.py).
* *Local writes*: a write takes the next counter of this replica and is applied at once. Its causal past is the join
  of the client's past, the pasts of the versions that it read or replaces, and the delete clock.
* *Responses*: the metadata of a response is the join of the client's past, the pasts of the versions in the response,
  and the delete clock. It does not contain the replica's whole clock. Otherwise a client that reads one old key would
  depend on everything that the replica has applied (docs/contract.md, section 2.1).

There are no tombstones. The **delete clock** takes their place: for each origin it holds the highest applied update
that deleted or expired a version. It is the cause of every absence, and every response includes it. Without it, a
client that read "absent" here, or read an older concurrent version after the newer one was deleted, could get the
deleted version again from another replica.

An operation that raises an error changes nothing, except that it may remove versions that have expired. In particular,
all checks come before a write takes its dot: a dot without an update would be a gap in the origin's counters, and no
replica could ever apply the updates after it.

Sources: Ladin et al., TOCS 1992 (lazy replication); Petersen et al., SOSP 1997 (Bayou); Terry et al., PDIS 1994
(session guarantees); Lloyd et al., SOSP 2011 (COPS, causal+ consistency).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice

from store.clock import Clock, Dot, HybridClock, Instant, covers, join_into, missing
from store.cuts import Cut
from store.delivery import PendingQueue, first_missing
from store.errors import (
    BadUpdate,
    DependenciesMissing,
    KeyAbsent,
    NotServing,
    OutOfMemory,
    PreconditionFailed,
    ValueTooLarge,
    WrongKind,
)
from store.feed import Changes, FeedToken, Search, read_changes
from store.log import UpdateLog
from store.markers import Marker, Markers
from store.merging import Tips
from store.observer import StoreObserver
from store.patching import MAX_PATCHED_BYTES, Absent, Issuer, OtherKind, patched
from store.recent import RecentChanges
from store.response_sizes import META_BYTES, encoded_key_bytes, encoded_value_bytes
from store.results import CutBegun, ListResult, RangeDeleted, ReadResult, TransactionResult, WriteResult
from store.settings import StoreSettings
from store.siblings import behind_winner, shown
from store.snapshot import Snapshot, join_partial, join_tables
from store.table import KeyRange, KeyTable, cost
from store.values import check_state
from store.versions import (
    MAX_ETAG_BYTES,
    Change,
    Update,
    Version,
    Versions,
    Write,
    apply_write,
    state_etag,
    version_of,
)

AppliedUpdate = tuple[int, str, int]
"""When an update was applied (wall microseconds), and its dot (origin, counter). It names no keys, so that nothing
about a deleted key stays in memory."""

MAX_RECENT_UPDATES = 200
"""Length of ``CausalStore.recent_updates``: as many as the dashboard's diagram can show."""


class CausalStore:
    """The versions, exact clock, pending queue and log of one replica. Not thread-safe.

    The engine serves client requests from it, under one lock. Replication applies updates to it, under the same lock.
    """

    def __init__(self, replica_id: str, settings: StoreSettings | None = None) -> None:
        self.settings = settings or StoreSettings()
        self.replica_id = replica_id
        """Id of this replica. Only this object issues dots with it."""
        self.not_serving_reason: str | None = None
        """Why clients are not served (joining, removed); None if they are. Replication sets it. Every client operation
        checks it in the same step in which it reads or writes, so no request slips in after a removal."""
        self.clock: Clock = {}
        """Exact and causally closed: see the module's docstring."""
        self.delete_clock: Clock = {}
        """Origin -> highest applied update that deleted or expired a version. The clock always covers it."""
        self.hybrid_clock = HybridClock()
        self.table = KeyTable()
        """Key -> versions: the effect of exactly the updates in the clock, without the versions that were expired."""
        self.pending = PendingQueue(self.settings.max_pending, self.settings.max_pending_bytes)
        """Updates that wait for a part of their causal past. None of them is in the clock, the table or the log."""
        self.log = UpdateLog(self.settings.max_log_bytes, self.settings.log_segment_bytes)
        """For each origin, the newest of the updates that the clock contains."""
        self.markers = Markers()
        self.clock_changes = 0
        """Number of times that the clock changed. Others compare it to see cheaply whether anything was applied."""
        self.present_ids: Collection[str] = ()
        """Ids of the members' present incarnations, from the membership table."""
        self.retired_changes = 0
        """Number of times that a clock entry of any other id changed, which is rare."""
        self.applied_count = 0
        """Number of updates applied one by one. Updates that arrived in a snapshot do not count."""
        self.recent = RecentChanges(self.settings.max_feed_bytes)
        """The keys that the latest updates and expiries have touched."""
        self.joins = 0
        """Number of snapshots joined."""
        self.joined_time_us = 0
        """Highest hybrid time of a joined snapshot: its sender may have expired versions up to then."""
        self.recent_updates: deque[AppliedUpdate] = deque(maxlen=MAX_RECENT_UPDATES)
        """The updates applied most recently, the newest last, for the dashboard."""
        self.observer: StoreObserver | None = None
        """Called for each change of the clock; the engine sets it while requests wait for one."""
        self.has_ended: Callable[[str], bool] = _never
        """Whether an origin issues no updates any more, for good. Replication sets it."""
        self.is_settled: Callable[[Dot], bool] = _never
        """Whether every member has applied an update, and this replica has applied what they had then. Replication sets
        it."""
        self._tips = Tips()
        """Which updates of this replica were its latest PATCHes of their keys."""
        self._last_deps: dict[str, Clock] = {}
        """Origin -> dependencies of its last applied update, a clock that versions share. ``_share_deps`` uses it again
        if the origin's next update has equal dependencies. Entries of retired ids go when the present ids change."""
        self._ids: dict[str, str] = {}
        """Every replica id in a stored clock -> the one string object that all of them share."""

    def set_present_ids(self, present: Collection[str]) -> None:
        """Set which ids are the members' present incarnations. Called whenever the membership table changes them."""
        self.present_ids = present
        self.recent.forget_ended(present)
        self._last_deps = {origin: deps for origin, deps in self._last_deps.items() if origin in present}

    # -- admission -------------------------------------------------------------------------------------

    def is_causal(self, meta_clock: Mapping[str, int]) -> bool:
        """Return whether this replica has applied every update that ``meta_clock`` contains."""
        return covers(self.clock, meta_clock)

    def admit(self, past: Mapping[str, int], now: Instant) -> None:
        """Check that a client with this causal past may be served now, then remove expired versions.

        Raises ``NotServing`` while this replica does not serve clients, and ``DependenciesMissing`` if part of
        ``past`` has not been applied here.
        """
        if self.not_serving_reason is not None:
            raise NotServing(self.not_serving_reason)
        if not covers(self.clock, past):
            raise DependenciesMissing(missing(self.clock, past))
        if now.wall_us >= self.table.next_deadline:
            self.expire(now)

    def expire(self, now: Instant) -> None:
        """Remove the versions whose deadline has passed. Like a delete, an expiry enters the delete clock."""
        for key, version in self.table.expire(now.wall_us):
            join_into(self.delete_clock, {version.origin: version.counter})
            assert version.expires is not None
            self.recent.expired(version.expires, key)
            if self.observer is not None:
                self.observer.expired(key)

    # -- clients ---------------------------------------------------------------------------------------

    def get(self, key: str, past: Clock, now: Instant, *, all_siblings: bool = False) -> ReadResult:
        """Read one key.

        ``all_siblings``: the response will contain all versions, so its metadata must cover all of them.
        Raises what ``admit`` raises.
        """
        self.admit(past, now)
        versions = self.table.get(key)
        returned = versions if all_siblings else behind_winner(versions)
        return ReadResult(versions, self.response_metadata(past, returned))

    def put(self, change: Change, past: Clock, now: Instant) -> WriteResult:
        """Write, patch or delete one key.

        Raises ``PreconditionFailed``, ``OutOfMemory``, and what ``admit`` and ``_write`` raise.
        """
        # The same steps as in ``_issue_changes``, without its loops: nearly all writes concern one key.
        self.admit(past, now)
        current = self.table.get(change.key)
        if change.conditional:
            self._check_condition(change, current, past)
        if change.is_delete and not current:
            return WriteResult(existed=False, update=None, metadata=self.response_metadata(past, ()))
        timestamp = self.hybrid_clock.stamp(now)
        write = self._write(change, current, past, timestamp, now)
        if self.settings.max_memory_bytes:
            self._check_memory((write,))
        deps = self.markers.simplify(self._join_pasts(past, current))
        update = self._issue_update(deps, (write,), timestamp, now)
        if change.patch is not None:
            self._tips.set(change.key, update.counter)
        return WriteResult(bool(current), update, update.past)

    def list_keys(
        self,
        wanted: KeyRange,
        past: Clock,
        now: Instant,
        *,
        limit: int = 100,
        max_bytes: int | None = None,
        conflicts: bool = False,
        values: bool = True,
        meta: bool = False,
        count: bool = False,
    ) -> ListResult:
        """List up to ``limit`` of the keys in ``wanted``.

        ``max_bytes``: the page ends before it would be longer, encoded, without the metadata. It has at least one key,
        however long, if there is one. ``conflicts``: only keys with several versions. ``values``: return the values
        too. ``meta``: return the versions, for what the client wants to know about them. ``count``: count all keys with
        the prefix and before the end. The result is one causal snapshot, and refers to the stored values without a
        copy. Raises what ``admit`` raises.
        """
        self.admit(past, now)
        table = self.table
        winners: dict[str, Version] = {}
        more = False
        size = 0
        key_bytes_times = 1 + values + meta
        for key in (table.conflicting_keys if conflicts else table.keys)(wanted):
            versions = table.get(key)
            winner = versions[0] if len(versions) == 1 else shown(versions)[0]
            size += key_bytes_times * encoded_key_bytes(key)
            size += encoded_value_bytes(key, winner.value) if values else 0
            size += MAX_ETAG_BYTES + META_BYTES if meta else 0
            if len(winners) == limit or (winners and max_bytes is not None and size > max_bytes):
                more = True
                break
            winners[key] = winner
        keys = list(winners)
        items = {key: version.value for key, version in winners.items()} if values else {}
        versions_of = {key: table.get(key) for key in keys} if meta else {}
        returned = [version for key in keys for version in behind_winner(table.get(key))]
        metadata = self.response_metadata(past, returned)
        total = self._count(wanted, conflicts=conflicts) if count else None
        return ListResult(keys, keys[-1] if more else None, items, metadata, versions_of, total)

    def _count(self, wanted: KeyRange, *, conflicts: bool) -> int:
        """Return the number of keys with the prefix and before the end of ``wanted``."""
        everything = KeyRange(wanted.prefix, end=wanted.end)
        if conflicts:
            return sum(1 for _ in self.table.conflicting_keys(everything))
        return self.table.count(everything)

    def delete_range(self, prefix: str, past: Clock, now: Instant, *, limit: int) -> RangeDeleted:
        """Delete up to ``limit`` of the keys that start with ``prefix``, as one update.

        Raises what ``admit`` raises.
        """
        self.admit(past, now)
        keys = list(islice(self.table.keys(KeyRange(prefix)), limit + 1))
        more = len(keys) > limit
        del keys[limit:]
        update = self._issue_changes([Change(key, None) for key in keys], past, (), now)
        metadata = update.past if update else self.response_metadata(past, ())
        return RangeDeleted(len(keys), more, update, metadata)

    def transact(
        self,
        reads: Sequence[str],
        changes: Sequence[Change],
        past: Clock,
        now: Instant,
        *,
        before_write: Callable[[int], None] | None = None,
    ) -> TransactionResult:
        """Read the keys ``reads``, then apply ``changes`` as one update. All in one step: one causal snapshot.

        If one condition fails, nothing is written. Of several changes of the same key, only the last one is written.
        ``before_write`` gets the encoded size of what was read, without the metadata; if it raises, nothing is written.
        Raises ``PreconditionFailed``, ``OutOfMemory``, and what ``admit`` and ``before_write`` raise.
        """
        self.admit(past, now)
        found = {key: versions for key in reads if (versions := self.table.get(key))}
        winners = {key: shown(versions)[0] for key, versions in found.items()}
        returned = [version for versions in found.values() for version in behind_winner(versions)]
        if winners and before_write is not None:
            sizes = [
                2 * encoded_key_bytes(key) + MAX_ETAG_BYTES + encoded_value_bytes(key, winner.value)
                for key, winner in winners.items()
            ]
            before_write(sum(sizes))
        etags = {key: state_etag(versions) for key, versions in found.items()}
        update = self._issue_changes(changes, past, returned, now)
        metadata = update.past if update else self.response_metadata(past, returned)
        values = {key: version.value for key, version in winners.items()}
        return TransactionResult(values, [key for key in reads if key not in winners], update, metadata, etags)

    def changes(
        self,
        token: FeedToken | None,
        prefix: str,
        past: Clock,
        now: Instant,
        *,
        max_bytes: int,
        search: Search | None = None,
    ) -> Changes:
        """Return what has changed under ``prefix``. See store/feed.py."""
        return read_changes(self, token, prefix, past, now, max_bytes, search)

    def begin_cut(self, prefix: str, past: Clock, now: Instant, *, has_room: Callable[[int], bool]) -> CutBegun:
        """Begin a causal snapshot of the keys with ``prefix`` that is read in steps (store/cuts.py).

        The metadata covers ``past``. It stands for the whole clock, without the entries that a marker replaces, because
        clients send it back. Raises what ``admit`` raises.
        """
        self.admit(past, now)
        cut = Cut(self.table, prefix, self.clock, has_room)
        self.table.add_reader(cut)
        return CutBegun(cut, self.markers.simplify(cut.clock))

    def response_metadata(self, past: Clock, returned: Iterable[Version]) -> Clock:
        """Return the metadata of a response that contains the versions ``returned``."""
        return self.markers.simplify(self._join_pasts(past, returned))

    def _join_pasts(self, past: Clock, versions: Iterable[Version]) -> Clock:
        """Return the join of ``past``, the pasts of ``versions`` and the delete clock, as a new clock."""
        joined = dict(past)
        for version in versions:
            # Skip a version whose dot is covered: a causal past that contains a dot contains the past of that dot.
            if joined.get(version.origin, 0) < version.counter:
                join_into(joined, version.deps)
                joined[version.origin] = version.counter
        if self.delete_clock:
            join_into(joined, self.delete_clock)
        return joined

    # -- issuing updates -------------------------------------------------------------------------------

    def _issue_changes(
        self, changes: Sequence[Change], past: Clock, read: Iterable[Version], now: Instant
    ) -> Update | None:
        """Issue one update for ``changes``. Return None if they change nothing.

        ``read``: the versions that the same request has read; the update depends on them.
        """
        last_changes = {change.key: change for change in changes}
        current = {key: self.table.get(key) for key in last_changes}
        for change in changes:
            if change.conditional:
                self._check_condition(change, current[change.key], past)
        # Deletes of absent keys change nothing and are left out.
        effective = [change for key, change in last_changes.items() if not change.is_delete or current[key]]
        if not effective:
            return None
        timestamp = self.hybrid_clock.stamp(now)
        writes = tuple([self._write(change, current[change.key], past, timestamp, now) for change in effective])
        patched_bytes = [len(w.value or b"") for w, c in zip(writes, effective, strict=True) if c.patch is not None]
        if len(patched_bytes) > 1 and sum(patched_bytes) > MAX_PATCHED_BYTES:
            raise ValueTooLarge(f"The values of so many keys are too long to PATCH: at most {MAX_PATCHED_BYTES} bytes")
        replaced = [version for versions in current.values() for version in versions]
        if self.settings.max_memory_bytes:
            self._check_memory(writes)
        deps = self.markers.simplify(self._join_pasts(past, [*read, *replaced]))
        update = self._issue_update(deps, writes, timestamp, now)
        for change in effective:
            if change.patch is not None:
                self._tips.set(change.key, update.counter)
        return update

    def _write(self, change: Change, current: Versions, past: Clock, timestamp: int, now: Instant) -> Write:
        """Return the write for ``change`` of a key that has the versions ``current``: it replaces all of them.

        Raises ``KeyAbsent``, ``WrongKind``, ``BadPatch``, ``ValueTooLarge``.
        """
        if change.patch is None:
            expires = None if change.ttl_us is None else now.wall_us + change.ttl_us
            return Write(change.key, change.value, tuple([version.dot for version in current]), expires)
        dot = (self.replica_id, self.clock.get(self.replica_id, 0) + 1)
        tip = self._tips.get(change.key)
        issuer = Issuer(dot, timestamp, now.wall_us, tip, self.has_ended, self.is_settled)
        try:
            return patched(change, change.patch, current, issuer)
        except Absent:
            raise KeyAbsent(change.key, self.response_metadata(past, ())) from None
        except OtherKind as exc:
            metadata = self.response_metadata(past, current)
            raise WrongKind(str(exc), change.key, metadata, state_etag(current)) from None

    def _issue_update(self, deps: Clock, writes: tuple[Write, ...], timestamp: int, now: Instant) -> Update:
        """Take the next dot, and issue and apply an update with these writes and this hybrid time.

        ``deps``: the update's causal past. The caller must have the only reference to this clock: the entry of this
        replica is removed from it. Nothing here may fail, because a dot without an update is a gap for ever.
        """
        own = self.replica_id
        # The own entry is implied: the past of update n of an origin contains the updates 1 to n-1 (store/versions.py).
        deps.pop(own, None)
        update = Update(own, self.clock.get(own, 0) + 1, timestamp, deps, writes)
        self._apply(update, now)
        return update

    def _check_condition(self, change: Change, versions: Versions, past: Clock) -> None:
        """Raise ``PreconditionFailed`` unless the key, which has ``versions`` now, meets the change's conditions."""
        etag = state_etag(versions)
        if not change.condition_holds(etag):
            raise PreconditionFailed(change.key, self.response_metadata(past, versions[:1]), etag)

    def _check_memory(self, writes: Sequence[Write]) -> None:
        """Raise ``OutOfMemory`` if ``writes`` would grow the data beyond the limit.

        Changes that free memory always pass, so that clients of a full replica can delete.
        """
        limit = self.settings.max_memory_bytes
        growth = sum(
            cost(write.key, (_EMPTY_VERSION,)) + len(write.value) for write in writes if write.value is not None
        )
        growth -= sum(cost(write.key, self.table.get(write.key)) for write in writes)
        if growth > 0 and self.table.bytes + growth > limit:
            raise OutOfMemory(f"The data would take more than {limit} bytes (KV_MAX_MEMORY)")

    def seed(self, changes: Sequence[Change], now: Instant) -> Update | None:
        """Apply ``changes`` as one update while no client is served: the data with which a replica begins.

        Raises what ``transact`` raises, but for what ``admit`` raises.
        """
        return self._issue_changes(changes, {}, (), now)

    def issue_marker(self, now: Instant) -> Update:
        """Issue an update without writes whose past is the whole clock (store/markers.py)."""
        return self._issue_update(dict(self.clock), (), self.hybrid_clock.stamp(now), now)

    # -- updates from other replicas -------------------------------------------------------------------

    def receive(self, updates: Iterable[Update], now: Instant) -> int:
        """Apply each update whose causal past is here. Add the others to the pending queue; ignore known ones.

        Returns how many updates were applied, pending ones that became applicable included. Raises ``BadUpdate`` for
        an update that no correct replica issues; the updates before it in the list stay received.
        """
        before = self.applied_count
        for update in updates:
            if self.clock.get(update.origin, 0) < update.counter:
                self._validate(update)
                self._deliver(update, now)
        return self.applied_count - before

    def _validate(self, update: Update) -> None:
        """Raise ``BadUpdate`` for an update that is well-formed but contradicts the rules."""
        if update.origin == self.replica_id:
            raise BadUpdate(f"{update.dot} is mine and I never issued it")
        if update.origin in update.deps:
            raise BadUpdate(f"{update.dot} names its own origin among its dependencies")
        for write in update.writes:
            try:
                check_state(write.value or b"")
            except ValueError as exc:
                raise BadUpdate(f"{update.dot} writes {exc}") from None
        if len(update.writes) > 1 and len({write.key for write in update.writes}) < len(update.writes):
            raise BadUpdate(f"{update.dot} writes a key twice")

    def _deliver(self, update: Update, now: Instant) -> None:
        """Apply ``update`` and all pending updates that it makes applicable, or add it to the pending queue."""
        if self._try_apply(update, now.mono_s, now) and self.pending:
            # A list, not recursion: a chain of pending updates can be as long as the queue.
            ready = self.pending.take_waiting_for(update.dot)
            while ready:
                next_update, _, since_s = ready.pop()
                if self._try_apply(next_update, since_s, now):
                    ready += self.pending.take_waiting_for(next_update.dot)

    def _try_apply(self, update: Update, since_s: float, now: Instant) -> bool:
        """Apply ``update`` if its causal past is here and it is new. Return whether it was applied.

        Otherwise a new update goes to the pending queue. ``since_s``: when it first arrived (monotonic seconds).
        """
        if self.clock.get(update.origin, 0) >= update.counter:
            return False
        waits_for = first_missing(self.clock, update)
        if waits_for is not None:
            self.pending.add(update, waits_for, since_s)
            return False
        self.hybrid_clock.observe_kept(update.timestamp, now)
        self._apply(update, now)
        return True

    def _apply(self, update: Update, now: Instant) -> None:
        """Make ``update`` visible: all its writes and its dot in one step.

        Requires that the clock covers the update's past and that the update is the next one of its origin.
        """
        origin = self._intern(update.origin)
        deps = self._share_deps(origin, update.deps)
        table = self.table
        for write in update.writes:
            version = None if write.value is None else version_of(write, update, origin, deps)
            table.set(write.key, apply_write(table.get(write.key), write, version))
            self.recent.applied(origin, update.counter, deps, write.key, deletes=version is None)
            if version is None:
                # Counters of an origin only rise, so this is the highest deleting update of the origin.
                self.delete_clock[origin] = update.counter
        if not update.writes:
            self.markers.add(Marker(origin, update.counter, deps))
        self.clock[origin] = update.counter
        if origin not in self.present_ids:
            self.retired_changes += 1
        self.log.append(update, now.mono_s)
        self.clock_changes += 1
        self.applied_count += 1
        self.recent_updates.append((now.wall_us, origin, update.counter))
        if self.observer is not None:
            self.observer.applied(update, self.clock)

    def _share_deps(self, origin: str, deps: Clock) -> Clock:
        """Return a clock equal to ``deps`` that versions can share, to save memory.

        Successive updates of an origin often have equal dependencies; then all their versions share one clock. The
        ids in the clocks repeat even more often, but each message decodes to new strings. So equal ids share one
        string, too.
        """
        last = self._last_deps.get(origin)
        if last == deps:
            return last
        shared = self._last_deps[origin] = {self._intern(replica): counter for replica, counter in deps.items()}
        return shared

    def _intern(self, replica: str) -> str:
        return self._ids.setdefault(replica, replica)

    def simplify_delete_clock(self) -> None:
        """Replace entries of the delete clock by markers where possible: every response includes this clock."""
        self.delete_clock = self.markers.simplify(self.delete_clock)

    def drop_pending(self, dot: Dot) -> None:
        """Remove a pending update that can never be applied: a dependency is unrecoverable (replication/loss.py)."""
        self.pending.drop(dot)

    # -- snapshots -------------------------------------------------------------------------------------

    def snapshot(self, now: Instant) -> Snapshot:
        """Return all data and the clock as of this moment. Cheap: copies one pointer for each key, not the values."""
        time = self.hybrid_clock.read(now)
        return Snapshot(time, dict(self.clock), dict(self.delete_clock), self.markers.all(), self.table.copy())

    def join(self, snapshot: Snapshot, now: Instant) -> None:
        """Join another replica's snapshot into this store, in one step (store/snapshot.py).

        The result is correct whatever this replica has applied before, or while it received the snapshot.
        """
        if snapshot.since:
            assert covers(self.clock, snapshot.since)
            for key, versions in join_partial(self.table.copy(), self.clock, snapshot):
                self.table.set(key, versions)
        else:
            self.table.replace(join_tables(self.table.copy(), self.clock, snapshot.table, snapshot.clock))
        join_into(self.delete_clock, snapshot.delete_clock)
        for marker in snapshot.markers:
            self.markers.add(marker)
        for origin in missing(self.clock, snapshot.clock):
            # The clock entry jumps over updates that the log never gets, and the log must not have a gap.
            self.log.drop_origin(origin)
            self.recent.jumped(origin, snapshot.clock[origin])
        self.joins += 1
        self.joined_time_us = max(self.joined_time_us, snapshot.timestamp)
        join_into(self.clock, snapshot.clock)
        self.hybrid_clock.observe_kept(snapshot.timestamp, now)
        self.clock_changes += 1
        self.retired_changes += 1
        if self.observer is not None:
            self.observer.replaced(self.clock)
        # Any of the pending updates may have become applicable, or known.
        for item in self.pending.take_all():
            self._deliver(item.update, now)


def _never(_: object) -> bool:
    return False


_EMPTY_VERSION = Version(b"", "-", 1, 0, {})
"""Stands for a version without a value where memory is estimated."""

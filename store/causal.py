"""CausalStore: the data of one replica, and every rule by which it changes.

Theory of operation
-------------------
The **clock** is exact: entry n for id i means that the updates (i, 1..n) have been applied here, no more and
no less, and it is causally closed: with an update, all of its past has been applied. Everything rests on that:

* *Admission*: a client whose past the clock does not cover is not answered (``is_causal``). A client's clock
  is never merged into this one: that would claim updates that are not here.
* *Delivery*: an update from elsewhere is applied when its past is covered, else it waits (store/delivery.py).
* *Local writes* take the next counter and are applied at once. Their past is the client's past, joined with
  the pasts of the versions that they replace, and with the delete clock.
* *Answers* tell the client's past joined with the pasts of what was shown, and with the delete clock.

The **delete clock** holds, per origin, the highest applied update that deletes something. There are no
tombstones; it stands for the cause of every absence. Without it, a client that reads "absent" here, or an
older concurrent version beside a deleted one, could meet the deleted version again at another replica.

After any refused call nothing has changed: validation comes before the dot is taken, because a dot without
an update is a gap that no peer can pass.

Sources: Ladin et al., TOCS 1992 (lazy replication); Petersen et al., SOSP 1997 (Bayou, session guarantees);
Lloyd et al., SOSP 2011 (COPS, causal+).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice

import msgspec

from store.clock import Clock, Dot, HybridClock, Instant, covers, merge_into, missing
from store.delivery import PendingQueue, first_missing
from store.errors import BadUpdate, DependenciesMissing, NotServing, OutOfMemory, PreconditionFailed
from store.log import UpdateLog
from store.markers import Marker, Markers
from store.settings import StoreSettings
from store.snapshot import Snapshot, join_tables
from store.table import KeyTable, cost
from store.versions import Change, Update, Version, Versions, Write, apply_write, version_of

Gaps = dict[str, tuple[int, int]]
"""Replica id -> (first, last) counter of updates that a client depended on and that no replica has any more."""

AppliedUpdate = tuple[int, str, int]
"""What is remembered of an applied update: wall microseconds at which it was, and its dot. No key: those are forgotten
when they are deleted."""

MAX_RECENT_UPDATES = 200
"""Applied updates that are remembered: a screenful of a picture, and next to no memory."""


class ReadResult(msgspec.Struct, frozen=True):
    """Answer to a read of one key: its versions, the winner first (empty: absent), and the metadata to tell."""

    versions: Versions
    metadata: Clock
    lost: Gaps = {}


class WriteResult(msgspec.Struct, frozen=True):
    """Answer to a write of one key.

    ``existed``: the key was there before. ``update``: what was issued; None when nothing had to be (the
    delete of an absent key).
    """

    existed: bool
    update: Update | None
    metadata: Clock
    lost: Gaps = {}

    @property
    def created(self) -> bool:
        """Whether a write found the key absent."""
        return not self.existed

    @property
    def deleted(self) -> bool:
        """Whether a delete found something to delete."""
        return self.existed

    @property
    def etag(self) -> str | None:
        """The entity tag of what was issued: of a write the version's, of a delete its own; None where nothing was."""
        return None if self.update is None else self.update.etag


class ListResult(msgspec.Struct, frozen=True):
    """Answer to a listing. ``next``: the last key when there are more after it. ``items``: key -> encoded value."""

    keys: list[str]
    next: str | None
    items: dict[str, bytes]
    metadata: Clock
    lost: Gaps = {}


class TransactionResult(msgspec.Struct, frozen=True):
    """Answer to a transaction: encoded values read, keys that were absent, and the update issued, if any."""

    values: dict[str, bytes]
    missing_keys: list[str]
    update: Update | None
    metadata: Clock
    lost: Gaps = {}


class CausalStore:
    """All versions, the exact clock, the pending queue and the log of one replica. Not thread-safe.

    ``not_serving_reason``: why clients are not served now, None when they are; the replica sets it, every client
    operation checks it in the same step in which it reads or writes.
    """

    def __init__(self, replica_id: str, settings: StoreSettings | None = None) -> None:
        self.settings = settings or StoreSettings()
        self.replica_id = replica_id
        self.not_serving_reason: str | None = None
        self.clock: Clock = {}
        self.delete_clock: Clock = {}
        self.hybrid_clock = HybridClock()
        self.table = KeyTable()
        self.pending = PendingQueue(self.settings.max_pending)
        self.log = UpdateLog(self.settings.max_log_bytes, self.settings.log_segment_bytes)
        self.markers = Markers()
        self.clock_changes = 0
        """How often the clock moved; lets others see cheaply whether anything happened."""
        self.present_ids: Collection[str] = ()
        """The ids of the members' present incarnations; the replica tells them by ``set_present_ids``."""
        self.retired_changes = 0
        """How often clock entries of other ids moved: rarely."""
        self.applied_count = 0
        self.recent_updates: deque[AppliedUpdate] = deque(maxlen=MAX_RECENT_UPDATES)
        """The updates applied last, for people to look at; those that came in a snapshot are not among them."""
        self._last_deps: dict[str, Clock] = {}
        self._ids: dict[str, str] = {}

    def set_present_ids(self, present: Collection[str]) -> None:
        """Take in which ids are the members' present incarnations."""
        self.present_ids = present
        self._last_deps = {origin: deps for origin, deps in self._last_deps.items() if origin in present}

    # -- admission -------------------------------------------------------------------------------------

    def is_causal(self, meta_clock: Mapping[str, int]) -> bool:
        """Return whether every update that ``meta_clock`` names has been applied here."""
        return covers(self.clock, meta_clock)

    def admit(self, past: Mapping[str, int], now: Instant) -> None:
        """Admit a client request with this causal past, and remove expired versions.

        Raises NotServing, or DependenciesMissing when part of ``past`` has not been applied here.
        """
        if self.not_serving_reason is not None:
            raise NotServing(self.not_serving_reason)
        if not covers(self.clock, past):
            raise DependenciesMissing(missing(self.clock, past))
        if now.wall_us >= self.table.next_deadline:
            self.expire(now)

    def expire(self, now: Instant) -> None:
        """Take out what has expired. An expiry is the cause of an absence, so it enters the delete clock."""
        for version in self.table.expire(now.wall_us):
            merge_into(self.delete_clock, {version.origin: version.counter})

    # -- clients ---------------------------------------------------------------------------------------

    def get(self, key: str, past: Clock, now: Instant, *, all_siblings: bool = False) -> ReadResult:
        """Read one key. ``all_siblings``: the answer is to show all versions, so its metadata covers all."""
        self.admit(past, now)
        versions = self.table.get(key)
        shown = versions if all_siblings else versions[:1]
        return ReadResult(versions, self._response_metadata(past, shown))

    def put(self, change: Change, past: Clock, now: Instant) -> WriteResult:
        """Write or delete one key. Raises PreconditionFailed, OutOfMemory, and what ``admit`` raises."""
        self.admit(past, now)
        held = self.table.get(change.key)
        if change.conditional:
            self._check_condition(change, held, past)
        if change.value is None and not held:
            return WriteResult(existed=False, update=None, metadata=self._response_metadata(past, ()))
        if self.settings.max_memory_bytes:
            self._check_memory({change.key: change}, {change.key: held})
        deps = self.markers.simplify(self._join_pasts(past, held))
        update = self._issue_update(deps, (_write(change, held, now),), now)
        return WriteResult(bool(held), update, update.past)

    def list_keys(
        self,
        prefix: str,
        past: Clock,
        now: Instant,
        *,
        after: str = "",
        limit: int = 100,
        conflicts: bool = False,
    ) -> ListResult:
        """List up to ``limit`` keys that start with ``prefix``, in code point order: one causal snapshot."""
        self.admit(past, now)
        found = (self.table.conflicting_keys if conflicts else self.table.keys)(prefix, after)
        keys = list(islice(found, limit + 1))
        more = len(keys) > limit
        del keys[limit:]
        winners = [self.table.get(key)[0] for key in keys]
        items = {key: version.value for key, version in zip(keys, winners, strict=True)}
        return ListResult(keys, keys[-1] if more else None, items, self._response_metadata(past, winners))

    def transact(self, reads: Sequence[str], changes: Sequence[Change], past: Clock, now: Instant) -> TransactionResult:
        """Read keys, then write keys, in one step and as one update."""
        self.admit(past, now)
        shown = {key: versions[0] for key in reads if (versions := self.table.get(key))}
        update = self._issue_changes(changes, past, shown.values(), now)
        metadata = update.past if update else self._response_metadata(past, shown.values())
        values = {key: version.value for key, version in shown.items()}
        return TransactionResult(values, [key for key in reads if key not in shown], update, metadata)

    def _response_metadata(self, past: Clock, shown: Iterable[Version]) -> Clock:
        """Return what an answer tells: the client's past, the pasts of what it is shown, the delete clock."""
        return self.markers.simplify(self._join_pasts(past, shown))

    def _join_pasts(self, past: Clock, versions: Iterable[Version]) -> Clock:
        joined = dict(past)
        for version in versions:
            if joined.get(version.origin, 0) < version.counter:  # Else all of the version's past is in it as well.
                merge_into(joined, version.deps)
                joined[version.origin] = version.counter
        if self.delete_clock:
            merge_into(joined, self.delete_clock)
        return joined

    # -- issuing updates -------------------------------------------------------------------------------

    def _issue_changes(
        self, changes: Sequence[Change], past: Clock, read: Iterable[Version], now: Instant
    ) -> Update | None:
        """Issue one update for all ``changes``; None when they change nothing. Of a key named twice the last counts."""
        wanted = {change.key: change for change in changes}
        held = {key: self.table.get(key) for key in wanted}
        for change in changes:
            if change.conditional:
                self._check_condition(change, held[change.key], past)
        effective = [change for key, change in wanted.items() if change.value is not None or held[key]]
        writes = [_write(change, held[change.key], now) for change in effective]
        if not writes:
            return None
        if self.settings.max_memory_bytes:
            self._check_memory(wanted, held)
        replaced = [version for versions in held.values() for version in versions]
        deps = self.markers.simplify(self._join_pasts(past, [*read, *replaced]))
        return self._issue_update(deps, tuple(writes), now)

    def _issue_update(self, deps: Clock, writes: tuple[Write, ...], now: Instant) -> Update:
        """Issue an update. ``deps``: its past, a clock that nobody else has, from which the own entry is taken."""
        own = self.replica_id
        deps.pop(own, None)
        update = Update(own, self.clock.get(own, 0) + 1, self.hybrid_clock.stamp(now), deps, writes)
        self._apply(update, now)
        return update

    def _check_condition(self, change: Change, versions: Versions, past: Clock) -> None:
        etag = versions[0].etag if versions else None
        if not change.condition_holds(etag):
            raise PreconditionFailed(self._response_metadata(past, versions[:1]), etag)

    def _check_memory(self, wanted: Mapping[str, Change], held: Mapping[str, Versions]) -> None:
        """Refuse what would grow the data beyond the limit; what frees memory is always let through."""
        limit = self.settings.max_memory_bytes
        growth = sum(
            cost(key, ()) if change.value is None else cost(key, (_EMPTY_VERSION,)) + len(change.value)
            for key, change in wanted.items()
        ) - sum(cost(key, versions) for key, versions in held.items())
        if growth > 0 and self.table.bytes + growth > limit:
            raise OutOfMemory(f"The data would take more than {limit} bytes (KV_MAX_MEMORY)")

    def issue_marker(self, now: Instant) -> Update:
        """Issue an update without writes whose past is the whole clock (store/markers.py)."""
        return self._issue_update(dict(self.clock), (), now)

    # -- updates from elsewhere ------------------------------------------------------------------------

    def receive(self, updates: Iterable[Update], now: Instant) -> int:
        """Apply what may be applied, let the rest wait, pass over what is known; return how many were applied.

        Raises BadUpdate, before anything of that update was taken, for one that cannot be.
        """
        before = self.applied_count
        for update in updates:
            if self.clock.get(update.origin, 0) < update.counter:
                self._validate(update)
                self._deliver(update, now)
        return self.applied_count - before

    def _validate(self, update: Update) -> None:
        if update.origin == self.replica_id:
            raise BadUpdate(f"{update.dot} is mine and I never issued it")
        if update.origin in update.deps:
            raise BadUpdate(f"{update.dot} names its own origin among its dependencies")
        if len(update.writes) > 1 and len({write.key for write in update.writes}) < len(update.writes):
            raise BadUpdate(f"{update.dot} writes a key twice")

    def _deliver(self, update: Update, now: Instant) -> None:
        """Apply ``update`` and all that it wakes, or let it wait under its first missing dot."""
        if self._try_apply(update, now.mono_s, now) and self.pending:
            ready = self.pending.take_waiting_for(update.dot)
            while ready:
                woken, _, since_s = ready.pop()
                if self._try_apply(woken, since_s, now):
                    ready += self.pending.take_waiting_for(woken.dot)

    def _try_apply(self, update: Update, since_s: float, now: Instant) -> bool:
        """Apply ``update`` unless it is known; or let it wait, as it does since ``since_s``. Return whether it was."""
        if self.clock.get(update.origin, 0) >= update.counter:
            return False
        waits_for = first_missing(self.clock, update)
        if waits_for is not None:
            self.pending.add(update, waits_for, since_s)
            return False
        self.hybrid_clock.observe(update.timestamp, now)
        self._apply(update, now)
        return True

    def _apply(self, update: Update, now: Instant) -> None:
        """Make ``update`` visible: its writes and its dot in one step. Its past is covered."""
        origin = self._intern(update.origin)
        deps = self._share_deps(origin, update.deps)
        table = self.table
        for write in update.writes:
            version = None if write.value is None else version_of(write, update, origin, deps)
            table.set(write.key, apply_write(table.get(write.key), write, version))
            if version is None:
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

    def _share_deps(self, origin: str, deps: Clock) -> Clock:
        """Return an equal clock that is already in memory where there is one: pasts repeat from update to update.

        The ids in it repeat even more; each message brings texts of its own, so one of each is kept.
        """
        last = self._last_deps.get(origin)
        if last == deps:
            return last
        shared = self._last_deps[origin] = {self._intern(replica): counter for replica, counter in deps.items()}
        return shared

    def _intern(self, replica: str) -> str:
        return self._ids.setdefault(replica, replica)

    def simplify_delete_clock(self) -> None:
        """Let markers stand for what they may stand for: every answer merges the delete clock, so it must not grow."""
        self.delete_clock = self.markers.simplify(self.delete_clock)

    def drop_pending(self, dot: Dot) -> None:
        """Forget a pending update: its cause is lost for good (replication/loss.py)."""
        self.pending.drop(dot)

    # -- snapshots -------------------------------------------------------------------------------------

    def snapshot(self, now: Instant) -> Snapshot:
        """Return everything at this one moment; costs a pointer a key."""
        time = self.hybrid_clock.read(now)
        return Snapshot(time, dict(self.clock), dict(self.delete_clock), self.markers.all(), self.table.copy())

    def join(self, snapshot: Snapshot, now: Instant) -> None:
        """Take over another replica's snapshot in one step; sound whatever has happened here meanwhile."""
        self.table.replace(join_tables(self.table.copy(), self.clock, snapshot.table, snapshot.clock))
        merge_into(self.delete_clock, snapshot.delete_clock)
        for marker in snapshot.markers:
            self.markers.add(marker)
        for origin in missing(self.clock, snapshot.clock):
            # What the log held of this origin would have a gap after it now.
            self.log.drop_origin(origin)
        merge_into(self.clock, snapshot.clock)
        self.hybrid_clock.observe(snapshot.timestamp, now)
        self.clock_changes += 1
        self.retired_changes += 1
        for waiting in self.pending.take_all():
            self._deliver(waiting.update, now)


def _write(change: Change, held: Versions, now: Instant) -> Write:
    expires = None if change.ttl_us is None else now.wall_us + change.ttl_us
    return Write(change.key, change.value, tuple([version.dot for version in held]), expires)


_EMPTY_VERSION = Version(b"", "-", 1, 0, {})

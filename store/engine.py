"""The engine: thread-safe access to one ``CausalStore``, and the requests that wait.

The engine owns ``lock``. Each operation of a request on the store is one step under this lock. I/O, parsing and
rendering happen outside of it. (Encoding an update for the log is part of applying it, and happens under the lock.)

A request waits if it cannot be answered yet:

* *deferred*: for its causal past;
* *watching*: for a change of its key;
* *acks*: for acknowledgements of its write by other members.

store/waiting.py indexes waiting requests by what they wait for, so a change costs only what it wakes. A waiting request
occupies a thread of the server, so the number of places of each kind is limited. When all places are taken, the request
that has waited longest is answered early: a deferred request with what is missing, a watch with the unchanged key, a
write with the acks that it has.

The store knows nothing about other replicas. The engine reaches them through store/replication_port.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ParamSpec, TypeVar

from msgspec import structs

from store.causal import CausalStore
from store.clock import Clock, Dot, Instant, join
from store.cuts import Cut, Keyed
from store.errors import DependenciesMissing
from store.feed import Changes, FeedToken, adopt, begin_search, needs_search
from store.hold_time import HoldTime
from store.merging import Increment, MapChange, Operation, SetChange, element_of
from store.place import Place
from store.replication_port import Acks, LoneReplica, Replication, WriteConcern
from store.results import CutBegun, ListResult, LostUpdates, RangeDeleted, ReadResult, TransactionResult, WriteResult
from store.searches import Searches
from store.settings import StoreSettings
from store.siblings import shown
from store.table import KeyRange
from store.versions import ABSENT_ETAG, Change, Patch, Update, Versions, state_etag
from store.waiting import AckWaiter, Waiters

__all__ = [
    "ABSENT_ETAG",
    "Acks",
    "Change",
    "Changes",
    "Cut",
    "CutBegun",
    "Engine",
    "FeedToken",
    "Increment",
    "KeyRange",
    "Keyed",
    "ListResult",
    "LoneReplica",
    "MapChange",
    "Operation",
    "Patch",
    "RangeDeleted",
    "ReadResult",
    "Replication",
    "SetChange",
    "TransactionResult",
    "Update",
    "Versions",
    "WriteConcern",
    "WriteResult",
    "element_of",
    "read_clocks",
    "shown",
    "state_etag",
]

AnyResult = TypeVar(
    "AnyResult", ReadResult, WriteResult, ListResult, TransactionResult, RangeDeleted, Changes, CutBegun
)
AnyWriteResult = TypeVar("AnyWriteResult", WriteResult, TransactionResult, RangeDeleted)
Argument = TypeVar("Argument")
P = ParamSpec("P")


def read_clocks() -> Instant:
    """Return the current time of this machine. The protocol never reads a clock itself."""
    return Instant(time.monotonic(), time.time_ns() // 1000)


EVERYTHING = KeyRange()
"""All keys, in order."""

LOSS_CHECK_S = 1.0
"""Least time between two looks at whether the past of one deferred request is lost."""

LOSS_CHECKS = 8
"""Most such looks in one call of ``wake_for_losses``. One takes up to a millisecond under the lock."""


class Engine:
    """Serves requests from one store. Thread-safe.

    A call blocks at most for the time that its caller allows.

    ``hold_time``: per thread, how long calls have waited (store/hold_time.py).
    ``counts``: totals since the start. ``refused`` counts rejected requests; it keeps the public name of the metric.
    ``waiters``: the waiting requests. At most ``max_watchers`` watch a key or a prefix, at most ``max_deferred`` are
    deferred, as many wait for acks, and ``max_streams`` are streams of the change feed.
    ``searches``: those of the change feed among many changes.
    ``on_write``: called under the lock for each update that a request or a seed has issued, by its thread. It must
    neither block nor fail.
    """

    def __init__(
        self,
        store: CausalStore,
        replication: Replication | None = None,
        *,
        now: Callable[[], Instant] = read_clocks,
        lock: threading.RLock | None = None,
    ) -> None:
        self.lock = lock or threading.RLock()
        self.replication: Replication = replication or LoneReplica()
        self.hold_time = HoldTime()
        self.counts = dict.fromkeys(("reads", "writes", "deletes", "transactions", "lists", "deferred", "refused"), 0)
        self.waiters = Waiters(store.settings.max_watchers, store.settings.max_deferred, store.settings.max_streams)
        self.max_streams = store.settings.max_streams
        self.on_write: Callable[[Update], None] | None = None
        self.searches = Searches(self.lock)
        self._store = store
        self._settings = store.settings
        self._now = now

    # -- requests --------------------------------------------------------------------------------------

    def get(self, key: str, past: Clock, *, wait_s: float | None = None, all_siblings: bool = False) -> ReadResult:
        """Read one key.

        ``past``: the client's causal past. ``wait_s``: how long to wait for it; None means ``defer_timeout_s``.
        Raises NotServing, DependenciesMissing.
        """
        read = partial(self._store.get, all_siblings=True) if all_siblings else self._store.get
        with self.lock:
            self.counts["reads"] += 1
            return self._serve(read, key, past, wait_s)

    def watch(
        self, key: str, past: Clock, etags: Sequence[str], wait_s: float, *, all_siblings: bool = False
    ) -> ReadResult:
        """Read one key as soon as its entity tag is not in ``etags``. An absent key has one too.

        Return the unchanged key after ``wait_s`` seconds, or earlier if the request loses its place to another one.
        Raises NotServing, DependenciesMissing.
        """
        deadline = time.monotonic() + wait_s

        with self.lock:
            found = self.get(key, past, wait_s=wait_s, all_siblings=all_siblings)
            lost = found.lost
            past = _without(past, lost)
            with Place(self, self.waiters.watching) as place:
                while found.etag in etags and (remaining := deadline - time.monotonic()) > 0:
                    self.waiters.by_key.add(place.waiter, key)
                    try:
                        place.wait(self._until_expiry(found, remaining))
                    finally:
                        self.waiters.by_key.remove(place.waiter, key)
                    found = self.get(key, past, wait_s=0, all_siblings=all_siblings)
                    if place.is_lost:
                        break
        return structs.replace(found, lost=lost) if lost else found

    def changes(
        self,
        prefix: str,
        token: FeedToken | None,
        past: Clock,
        *,
        wait_s: float | None,
        max_bytes: int,
        streams: bool = False,
    ) -> Changes:
        """Return what has changed under ``prefix`` since ``token`` (store/feed.py), as soon as there is something.

        With nothing to tell, wait up to ``wait_s`` seconds, or less if the request loses its place to another one; then
        return no changes and a token that has moved on. ``streams``: the request is a stream, which has a place of its
        own (``max_streams``). Raises NotServing, DependenciesMissing, TooManySearches, and BadToken (store/feed.py).
        """
        deadline = time.monotonic() + (wait_s or 0.0)
        with self.lock:
            if token is not None:
                token = adopt(self._store, token, self._now())
                past = join(past, token.clock)
            found = self._read_changes(token, prefix, past, wait_s, max_bytes)
            lost = found.lost
            past = _without(past, lost)
            with Place(self, self.waiters.streaming if streams else self.waiters.watching) as place:
                while not found.keys and not found.more and (remaining := deadline - time.monotonic()) > 0:
                    if not found.is_reset:
                        token = found.token  # What is not told up to here concerns others: do not look at it again.
                    self.waiters.by_prefix.add(place.waiter, prefix)
                    try:
                        place.wait(remaining)
                    finally:
                        self.waiters.by_prefix.remove(place.waiter, prefix)
                    if token is not None:  # A snapshot may have been joined meanwhile.
                        token = adopt(self._store, token, self._now())
                    found = self._read_changes(token, prefix, past, 0, max_bytes)
                    if place.is_lost:
                        break
        return structs.replace(found, lost=lost) if lost else found

    def _read_changes(
        self, token: FeedToken | None, prefix: str, past: Clock, wait_s: float | None, max_bytes: int
    ) -> Changes:
        """Return what has changed since ``token``. Call this under the lock; a search releases it for a while."""
        search = None
        if token is not None and needs_search(self._store, token):
            search = self.searches.run(partial(begin_search, self._store, token, prefix, self._now()))
        read = partial(self._store.changes, token, max_bytes=max_bytes, search=search)
        return self._serve(read, prefix, past, wait_s)

    def write(self, change: Change, past: Clock, wait_s: float | None = None) -> WriteResult:
        """Write, patch or delete one key if the change's conditions hold.

        ``WriteResult.deleted`` says whether a delete removed anything.

        Raises NotServing, DependenciesMissing, PreconditionFailed, OutOfMemory, and what a PATCH raises
        (store/patching.py).
        """
        with self.lock:
            self.counts["deletes" if change.is_delete else "writes"] += 1
            wrote = self._serve(self._store.put, change, past, wait_s)
            if wrote.update is not None:
                self._issued(wrote.update)
        return wrote

    def list(
        self,
        past: Clock,
        wanted: KeyRange = EVERYTHING,
        *,
        limit: int = 100,
        max_bytes: int | None = None,
        conflicts: bool = False,
        values: bool = True,
        meta: bool = False,
        count: bool = False,
        wait_s: float | None = None,
    ) -> ListResult:
        """List up to ``limit`` of the keys in ``wanted``, from one causal snapshot. See ``CausalStore.list_keys``.

        The page ends early before it is longer than ``max_bytes``, encoded.
        """
        page = partial(
            self._store.list_keys,
            limit=limit,
            max_bytes=max_bytes,
            conflicts=conflicts,
            values=values,
            meta=meta,
            count=count,
        )
        with self.lock:
            self.counts["lists"] += 1
            return self._serve(page, wanted, past, wait_s)

    def begin_cut(
        self, prefix: str, past: Clock, has_room: Callable[[int], bool], wait_s: float | None = None
    ) -> CutBegun:
        """Begin a causal snapshot of the keys with ``prefix``, to be read with ``read_cut`` (store/cuts.py).

        ``has_room``: called under the lock, see ``Cut``. Raises NotServing, DependenciesMissing.
        """
        with self.lock:
            return self._serve(partial(self._store.begin_cut, has_room=has_room), prefix, past, wait_s)

    def read_cut(self, cut: Cut, max_bytes: int) -> Sequence[Keyed]:
        """Return the next keys of ``cut``: see ``Cut.step``. Holds the lock for a fraction of a millisecond."""
        with self.lock:
            return cut.step(self._store.table, max_bytes)

    def delete_range(self, prefix: str, past: Clock, limit: int, wait_s: float | None = None) -> RangeDeleted:
        """Delete up to ``limit`` of the keys that start with ``prefix``, as one update.

        Raises NotServing, DependenciesMissing.
        """
        with self.lock:
            self.counts["deletes"] += 1
            done = self._serve(partial(self._store.delete_range, limit=limit), prefix, past, wait_s)
            if done.update is not None:
                self._issued(done.update)
        return done

    def transact(
        self,
        reads: Sequence[str],
        writes: Sequence[Change],
        past: Clock,
        *,
        wait_s: float | None = None,
        before_write: Callable[[int], None] | None = None,
    ) -> TransactionResult:
        """Read keys from one causal snapshot, then write keys as one update.

        ``before_write``: see ``CausalStore.transact``. It is called under the lock.
        """
        with self.lock:
            self.counts["transactions"] += 1
            done = self._serve(partial(self._store.transact, reads, before_write=before_write), writes, past, wait_s)
            if done.update is not None:
                self._issued(done.update)
        return done

    def seed(self, changes: Sequence[Change]) -> None:
        """Apply ``changes`` as one update before clients are served. Raises what ``transact`` raises."""
        with self.lock:
            update = self._store.seed(changes, self._now())
            if update is not None:
                self._issued(update)

    def present(self, keys: Sequence[str]) -> Sequence[str]:
        """Return which of the keys this replica has now, whether it serves clients or not."""
        with self.lock:
            return [key for key in keys if self._store.table.get(key)]

    def _issued(self, update: Update) -> None:
        """Pass on an update that a request or a seed has issued. Call this under the lock."""
        self.replication.update_issued(update)
        if self.on_write is not None:
            self.on_write(update)

    def write_with_concern(
        self,
        concern: WriteConcern | None,
        write: Callable[P, AnyWriteResult],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> tuple[AnyWriteResult, Acks | None]:
        """Call ``write`` (``self.write`` or ``self.transact``), then wait until ``concern`` is satisfied.

        Returns the result of ``write`` and the acks. The acks are None if ``concern`` is None, or if ``write`` issued
        no update. Raises whatever ``write`` raises.
        """
        if concern is None:
            return write(*args, **kwargs), None
        with self.lock:
            done = write(*args, **kwargs)
            if done.update is None:
                return done, None
            required = self._acks_required(concern.members)
            if required <= 1:
                return done, Acks(1, enough=True)
            if concern.timeout_s <= 0:
                return done, Acks(1, enough=False)
            # No other member can have an update that was issued under this lock.
            waiter = self._begin_ack_wait(done.update.dot, concern.members, required)
        return done, self._end_ack_wait(waiter, concern.timeout_s)

    def wait_for_acks(self, dot: Dot, concern: WriteConcern) -> Acks:
        """Wait until ``concern`` is satisfied for ``dot`` or its timeout has passed; return the acks.

        Stops waiting when the gate closes, because a replica that leaves or is removed cannot collect acks, and when
        the request loses its place to another one.
        """
        with self.lock:
            acks = self._acks(dot, concern.members)
            if acks.enough or concern.timeout_s <= 0:
                return acks
            waiter = self._begin_ack_wait(dot, concern.members, self._acks_required(concern.members))
        return self._end_ack_wait(waiter, concern.timeout_s)

    def _begin_ack_wait(self, dot: Dot, members: int | str, required: int) -> AckWaiter:
        """Let a write wait for acks. Call this under the lock."""
        waiter = AckWaiter(dot, members)
        self.waiters.by_concern.add(waiter)
        self.waiters.enter(waiter, self.waiters.ack_waits)
        self.replication.expect_acks(dot, required)
        return waiter

    def _end_ack_wait(self, waiter: AckWaiter, timeout_s: float) -> Acks:
        """Wait for the acks of ``waiter``. Call this without the lock, which is needed only if they do not arrive."""
        began_s = time.monotonic()
        waiter.wait(timeout_s)
        self.hold_time.seconds += time.monotonic() - began_s
        if waiter.acks:
            return Acks(waiter.acks, enough=True)
        with self.lock:
            self.waiters.by_concern.remove(waiter)
            self.waiters.leave(waiter, self.waiters.ack_waits)
            return self._acks((waiter.origin, waiter.counter), waiter.members)

    def _acks(self, dot: Dot, members: int | str) -> Acks:
        """Return the present acks of ``dot``, and whether they are enough for the write concern ``members``."""
        origin, counter = dot
        acks = 1 + sum(counter <= applied for applied in self.replication.ack_counters(origin))
        return Acks(acks, acks >= self._acks_required(members))

    def _acks_required(self, members: int | str) -> int:
        return members if isinstance(members, int) else self.replication.acks_required(members)

    # -- waiting ---------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Wake the requests that a message or a command may have ended the wait of; called under the lock after each.

        The store itself reports the updates that it applies. This is about the gate and about acks.
        """
        if self._store.not_serving_reason is not None:
            self.waiters.wake_all()
        elif self.waiters.by_concern:
            for waiter in self.waiters.by_concern.acknowledged(self.replication.ack_counters, self._acks_required):
                self.waiters.leave(waiter, self.waiters.ack_waits)
                waiter.wake()

    def end_longest_waits(self, held: Mapping[int, int], wanted: int) -> None:
        """Answer early the requests that have waited longest, of those that hold something that others need.

        ``held``: thread -> how much its request holds. ``wanted``: how much is needed.
        """
        with self.lock:
            self.waiters.end_longest(held, wanted)

    def wake_for_losses(self) -> None:
        """Wake the deferred requests whose past may be lost; called under the lock several times a second.

        Each is checked at most once per ``LOSS_CHECK_S``, and at most ``LOSS_CHECKS`` per call, those first that have
        waited longest for it: a past may be large, and the answer rarely changes.
        """
        now_s = time.monotonic()
        can_report: dict[int, bool] = {}
        due = [waiter for waiter in self.waiters.deferred if now_s >= waiter.loss_check_at_s]
        checks = 0
        for waiter in sorted(due, key=lambda each: each.loss_check_at_s):
            if waiter.token not in can_report:
                can_report[waiter.token] = self.replication.can_report_loss(waiter.token)
            if can_report[waiter.token]:
                waiter.loss_check_at_s = now_s + LOSS_CHECK_S
                waiter.wake()
                checks += 1
                if checks == LOSS_CHECKS:
                    return

    def follow_store(self) -> None:
        """Observe the store exactly while a request waits for a change of it."""
        self._store.observer = self.waiters if self.waiters.observes else None

    def _serve(
        self,
        operation: Callable[[Argument, Clock, Instant], AnyResult],
        argument: Argument,
        past: Clock,
        wait_s: float | None,
    ) -> AnyResult:
        """Run one operation of the store, deferred if necessary. Call this under the lock; waiting releases it."""
        try:
            return operation(argument, past, self._now())
        except DependenciesMissing:
            timeout_s = self._settings.defer_timeout_s if wait_s is None else wait_s
        if timeout_s <= 0:
            # A request with wait=0 still triggers a fetch, so that a retry can succeed; it takes no place.
            return self._serve_without(operation, argument, past, self.replication.fetch_for_retry(past))
        return self._serve_deferred(partial(operation, argument), past, timeout_s)

    def _serve_without(
        self,
        operation: Callable[[Argument, Clock, Instant], AnyResult],
        argument: Argument,
        past: Clock,
        token: int,
    ) -> AnyResult:
        """Run ``operation`` without the lost part of ``past``, once. Raises DependenciesMissing if more is missing."""
        lost = self.replication.unrecoverable(past, token)
        try:
            result = operation(argument, _without(past, lost), self._now())
        except DependenciesMissing:
            self.counts["refused"] += 1
            raise
        return structs.replace(result, lost=lost) if lost else result

    def _serve_deferred(
        self, operation: Callable[[Clock, Instant], AnyResult], past: Clock, timeout_s: float
    ) -> AnyResult:
        """Run ``operation`` as soon as ``past`` is covered, apart from updates that are unrecoverable.

        Raises DependenciesMissing after ``timeout_s``, or earlier if the request loses its place to another one.
        """
        deadline = time.monotonic() + timeout_s
        lost: LostUpdates = {}
        token = self.replication.fetch(past)
        self.counts["deferred"] += 1
        with Place(self, self.waiters.deferred) as place:
            place.waiter.token = token
            while True:
                unrecoverable = self.replication.unrecoverable(past, token)
                lost.update(unrecoverable)
                past = _without(past, unrecoverable)
                try:
                    result = operation(past, self._now())
                except DependenciesMissing:
                    remaining = deadline - time.monotonic()
                    if remaining <= 0 or place.is_lost:
                        self.counts["refused"] += 1
                        raise
                else:
                    return structs.replace(result, lost=lost) if lost else result
                # Wait when the exception is gone: it lists what is missing, which may take more memory than the past.
                self.waiters.by_dot.add(place.waiter, past, self._store.clock)
                try:
                    place.wait(remaining)
                finally:
                    self.waiters.by_dot.remove(place.waiter)

    def _until_expiry(self, found: ReadResult, remaining_s: float) -> float:
        """Return how long to wait for a change: at most until the first version expires.

        Expiry is a change of the key, but no ``wake`` announces it.
        """
        deadlines = [version.expires for version in found.versions if version.expires is not None]
        if not deadlines:
            return remaining_s
        return min(remaining_s, max(0.001, (min(deadlines) - self._now().wall_us) / 1_000_000))

    # -- for operators ------------------------------------------------------------------------------------

    @property
    def replica_id(self) -> str:
        """Id of this replica."""
        return self._store.replica_id

    @property
    def served(self) -> int:
        """How many operations were begun since the start."""
        return sum(self.counts.values())

    @property
    def settings(self) -> StoreSettings:
        """The store's settings."""
        return self._settings

    @property
    def max_memory_bytes(self) -> int:
        """The limit of ``stats()["bytes"]``, above which clients' writes are rejected; 0: none."""
        return self._store.settings.max_memory_bytes

    def stats(self) -> dict[str, int]:
        """Return counters and sizes for the status and the metrics."""
        with self.lock:
            store = self._store
            return {
                "keys": len(store.table),
                "conflicts": store.table.conflicts,
                "bytes": store.table.bytes,
                "pending": len(store.pending),
                "log_updates": store.log.count,
                "log_bytes": store.log.bytes,
                "applied": store.applied_count,
                "deferred_now": len(self.waiters.deferred),
                "watchers": len(self.waiters.watching),
                "ack_waits": len(self.waiters.ack_waits),
                "streams": len(self.waiters.streaming),
                **self.counts,
            }


def _without(past: Clock, lost: LostUpdates) -> Clock:
    """Return ``past`` lowered, for each origin in ``lost``, to the last update before the lost ones."""
    if not lost:
        return past
    remaining = {replica: counter for replica, counter in past.items() if replica not in lost}
    return remaining | {replica: first - 1 for replica, (first, _) in lost.items() if first > 1}

"""The engine: thread-safe access to one ``CausalStore``, and the requests that wait.

The engine owns ``lock``. Each operation of a request on the store is one step under this lock. I/O, parsing and
rendering happen outside of it. (Encoding an update for the log is part of applying it, and happens under the lock.)

A request waits if it cannot be answered yet:

* *deferred*: for its causal past;
* *watching*: for a change of its key;
* *acks*: for acknowledgements of its write by other members.

Each waiting request has its own condition variable on the lock. ``wake`` tests the condition of each waiting request
and notifies only those for which it holds. A waiting request occupies a thread of the server, so the number of waiting
requests of each kind is limited. A request above the limit is rejected at once; if it is a write, it is not made.

The store knows nothing about other replicas. The engine reaches them through the ``Replication`` port.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

from msgspec import structs

from store.causal import CausalStore, ListResult, LostUpdates, ReadResult, TransactionResult, WriteResult
from store.clock import Clock, Dot, Instant
from store.errors import DependenciesMissing, TooManyAckWaits, TooManyDeferred, TooManyWatchers
from store.hold_time import HoldTime
from store.settings import StoreSettings
from store.versions import Change, Update

__all__ = [
    "Acks",
    "Change",
    "Engine",
    "ListResult",
    "LoneReplica",
    "ReadResult",
    "Replication",
    "TransactionResult",
    "WriteConcern",
    "WriteResult",
    "read_clocks",
]

AnyResult = TypeVar("AnyResult", ReadResult, WriteResult, ListResult, TransactionResult)
AnyWriteResult = TypeVar("AnyWriteResult", WriteResult, TransactionResult)
Argument = TypeVar("Argument")
P = ParamSpec("P")


class WriteConcern(NamedTuple):
    """How many members must have a write before the engine returns (contract 2.7).

    ``members``: a number, ``"majority"`` or ``"all"``. Counts the members in the membership table, reachable or not.
    ``timeout_s``: how long to wait for them.
    """

    members: int | str
    timeout_s: float


class Acks(NamedTuple):
    """Acknowledgements of a write.

    ``members``: how many members are known to have the write, this one included. ``enough``: whether these satisfy the
    write concern.
    """

    members: int
    enough: bool


class Replication(Protocol):
    """The port through which the engine uses replication.

    The engine calls every method under its lock, so none may block.
    """

    def update_issued(self, update: Update) -> None:
        """Wake the peer threads that should send an update that this replica has just issued."""

    def fetch(self, past: Clock) -> int:
        """Fetch the missing part of ``past`` for a request that waits for it.

        Returns a token for ``unrecoverable``. It marks the time of the request.
        """

    def fetch_for_retry(self, past: Clock) -> int:
        """Fetch the missing part of ``past`` for a request that does not wait, so that its retry can succeed.

        Returns a token like ``fetch``. It marks the time of the first request for this past, so that retries together
        count as one long request.
        """

    def unrecoverable(self, past: Clock, token: int) -> LostUpdates:
        """Return the part of ``past`` that no replica has any more.

        Uses only what peers have reported since the time that ``token`` marks.
        """

    def acks(self, dot: Dot) -> int:
        """Return how many members are known to have applied ``dot``, this one included."""

    def acks_required(self, write_concern: str) -> int:
        """Return how many acks ``"majority"`` or ``"all"`` requires, given the membership table."""


class LoneReplica:
    """``Replication`` of a replica without peers: nothing can be fetched, and no update is lost elsewhere."""

    def update_issued(self, update: Update) -> None:
        pass

    def fetch(self, past: Clock) -> int:
        return 0

    def fetch_for_retry(self, past: Clock) -> int:
        return 0

    def unrecoverable(self, past: Clock, token: int) -> LostUpdates:
        return {}

    def acks(self, dot: Dot) -> int:
        return 1

    def acks_required(self, write_concern: str) -> int:
        return 1


def read_clocks() -> Instant:
    """Return the current time of this machine. The protocol never reads a clock itself."""
    return Instant(time.monotonic(), time.time_ns() // 1000)


class _Waiter:
    """One waiting request. ``is_due`` returns whether its wait is over. Used under the engine's lock only."""

    __slots__ = ("condition", "is_due")

    def __init__(self, lock: threading.RLock, is_due: Callable[[], bool]) -> None:
        self.condition = threading.Condition(lock)
        self.is_due = is_due


class Engine:
    """Serves requests from one store. Thread-safe.

    A call blocks at most for the time that its caller allows.

    ``hold_time``: per thread, how long calls have waited (store/hold_time.py).
    ``counts``: totals since the start. ``refused`` counts rejected requests; it keeps the public name of the metric.
    ``deferred``, ``watchers``, ``ack_waits``: number of waiting requests of each kind. ``deferred`` and ``ack_waits``
    are each at most ``max_deferred``, ``watchers`` at most ``max_watchers``.
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
        self.deferred = 0
        self.watchers = 0
        self.ack_waits = 0
        self._store = store
        self._settings = store.settings
        self._now = now
        self._waiters: list[_Waiter] = []

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
        """Read one key as soon as the entity tag of its winner is not in ``etags``.

        After ``wait_s`` seconds, return the unchanged key. Raises NotServing, DependenciesMissing, TooManyWatchers.
        """
        deadline = time.monotonic() + wait_s

        def unchanged(found: ReadResult) -> bool:
            return bool(found.versions) and found.versions[0].etag in etags

        with self.lock:
            found = self.get(key, past, wait_s=wait_s, all_siblings=all_siblings)
            lost = found.lost
            past = _without(past, lost)
            while unchanged(found) and (remaining := deadline - time.monotonic()) > 0:
                if self.watchers >= self._settings.max_watchers:
                    self.counts["refused"] += 1
                    raise TooManyWatchers(f"{self.watchers} requests watch already")
                self.watchers += 1
                try:
                    self._wait(lambda: self._has_changed(key, etags), self._until_expiry(found, remaining))
                finally:
                    self.watchers -= 1
                found = self.get(key, past, wait_s=0, all_siblings=all_siblings)
        return structs.replace(found, lost=lost) if lost else found

    def write(self, change: Change, past: Clock, wait_s: float | None = None) -> WriteResult:
        """Write or delete one key if the change's conditions hold.

        ``WriteResult.deleted`` says whether a delete removed anything.

        Raises NotServing, DependenciesMissing, PreconditionFailed, OutOfMemory.
        """
        with self.lock:
            self.counts["deletes" if change.value is None else "writes"] += 1
            wrote = self._serve(self._store.put, change, past, wait_s)
            if wrote.update is not None:
                self.replication.update_issued(wrote.update)
                if self._waiters:
                    self.wake()
        return wrote

    def list(
        self,
        past: Clock,
        *,
        prefix: str = "",
        after: str = "",
        limit: int = 100,
        conflicts: bool = False,
        wait_s: float | None = None,
    ) -> ListResult:
        """List up to ``limit`` keys that start with ``prefix`` and sort after ``after``, from one causal snapshot."""
        page = partial(self._store.list_keys, after=after, limit=limit, conflicts=conflicts)
        with self.lock:
            self.counts["lists"] += 1
            return self._serve(page, prefix, past, wait_s)

    def transact(
        self, reads: Sequence[str], writes: Sequence[Change], past: Clock, *, wait_s: float | None = None
    ) -> TransactionResult:
        """Read keys from one causal snapshot, then write keys as one update."""
        with self.lock:
            self.counts["transactions"] += 1
            done = self._serve(partial(self._store.transact, reads), writes, past, wait_s)
            if done.update is not None:
                self.replication.update_issued(done.update)
                self.wake()
        return done

    def write_with_concern(
        self,
        concern: WriteConcern | None,
        write: Callable[P, AnyWriteResult],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> tuple[AnyWriteResult, Acks | None]:
        """Call ``write`` (``self.write`` or ``self.transact``), then wait until ``concern`` is satisfied.

        Returns the result of ``write`` and the acks. The acks are None if ``concern`` is None, or if ``write`` issued
        no update. Raises TooManyAckWaits before anything is written, and whatever ``write`` raises.
        """
        if concern is None:
            return write(*args, **kwargs), None
        with self._ack_wait(concern):
            done = write(*args, **kwargs)
            return done, None if done.update is None else self.wait_for_acks(done.update.dot, concern)

    def wait_for_acks(self, dot: Dot, concern: WriteConcern) -> Acks:
        """Wait until ``concern`` is satisfied for ``dot`` or its timeout has passed; return the acks.

        Stops waiting when the gate closes: a replica that leaves or is removed cannot collect acks.
        """
        members = concern.members

        def acks() -> Acks:
            wanted = members if isinstance(members, int) else self.replication.acks_required(members)
            reached = self.replication.acks(dot)
            return Acks(reached, reached >= wanted)

        with self.lock:
            if not acks().enough and concern.timeout_s > 0:
                self._wait(lambda: self._store.not_serving_reason is not None or acks().enough, concern.timeout_s)
            return acks()

    # -- waiting ---------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Wake the requests whose wait is over. Call this under the lock after each change of the replica."""
        for waiter in self._waiters:
            if waiter.is_due():
                waiter.condition.notify()

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
        except DependenciesMissing as unreached:
            timeout_s = self._settings.defer_timeout_s if wait_s is None else wait_s
            # A request with wait=0 still triggers a fetch, so that a retry can succeed; it takes no waiter slot.
            with self._deferral(unreached) if timeout_s > 0 else nullcontext():
                return self._serve_deferred(partial(operation, argument), past, timeout_s)

    def _serve_deferred(
        self, operation: Callable[[Clock, Instant], AnyResult], past: Clock, timeout_s: float
    ) -> AnyResult:
        """Run ``operation`` as soon as ``past`` is covered, apart from updates that are unrecoverable.

        Raises DependenciesMissing after ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        lost: LostUpdates = {}
        token = self.replication.fetch(past) if timeout_s > 0 else self.replication.fetch_for_retry(past)
        while True:
            unrecoverable = self.replication.unrecoverable(past, token)
            lost.update(unrecoverable)
            past = _without(past, unrecoverable)
            try:
                result = operation(past, self._now())
            except DependenciesMissing:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    self.counts["refused"] += 1
                    raise
                self._wait(self._can_proceed(past, token), remaining)
            else:
                return structs.replace(result, lost=lost) if lost else result

    def _can_proceed(self, past: Clock, token: int) -> Callable[[], bool]:
        """Return a test for the end of a deferral: rejected, served, or with a smaller past to try again."""
        return lambda: (
            self._store.not_serving_reason is not None
            or self._store.is_causal(past)
            or bool(self.replication.unrecoverable(past, token))
        )

    @contextmanager
    def _deferral(self, unreached: DependenciesMissing) -> Iterator[None]:
        """Count a deferred request. Raises TooManyDeferred if too many are deferred already."""
        if self.deferred >= self._settings.max_deferred:
            self.counts["refused"] += 1
            raise TooManyDeferred(unreached.missing)
        self.deferred += 1
        self.counts["deferred"] += 1
        try:
            yield
        finally:
            self.deferred -= 1

    @contextmanager
    def _ack_wait(self, concern: WriteConcern) -> Iterator[None]:
        """Reserve a place to wait for acks before the write is made. A write with ``w=1`` never waits."""
        if concern.members == 1:
            yield
            return
        with self.lock:
            if self.ack_waits >= self._settings.max_deferred:
                self.counts["refused"] += 1
                raise TooManyAckWaits(f"{self.ack_waits} writes wait for acks already")
            self.ack_waits += 1
        try:
            yield
        finally:
            with self.lock:
                self.ack_waits -= 1

    def _wait(self, is_due: Callable[[], bool], timeout_s: float) -> None:
        """Release the lock and wait until ``is_due`` returns True, at most ``timeout_s``."""
        waiter = _Waiter(self.lock, is_due)
        self._waiters.append(waiter)
        began_s = time.monotonic()
        try:
            waiter.condition.wait_for(is_due, timeout_s)
        finally:
            self.hold_time.seconds += time.monotonic() - began_s
            self._waiters.remove(waiter)

    def _has_changed(self, key: str, etags: Sequence[str]) -> bool:
        if self._store.not_serving_reason is not None:
            return True
        versions = self._store.table.get(key)
        return not versions or versions[0].etag not in etags

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
    def settings(self) -> StoreSettings:
        """The store's settings."""
        return self._settings

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
                "deferred_now": self.deferred,
                "watchers": self.watchers,
                "ack_waits": self.ack_waits,
                **self.counts,
            }


def _without(past: Clock, lost: LostUpdates) -> Clock:
    """Return ``past`` lowered, for each origin in ``lost``, to the last update before the lost ones."""
    if not lost:
        return past
    remaining = {replica: counter for replica, counter in past.items() if replica not in lost}
    return remaining | {replica: first - 1 for replica, (first, _) in lost.items() if first > 1}

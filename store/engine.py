"""The engine: one CausalStore, one lock, and the requests that wait.

Everything that a request does to the store happens under ``lock``, in one step; nothing else happens under it: no
I/O, no parsing, no rendering. (What is applied goes into the log as bytes, which is part of it.) Requests that cannot
be answered yet wait, each on a condition of its own, and are woken only when what they wait for is there: for their
causal past (*deferred*), for a change of a key (*watching*), or for acknowledgements (*acks*). How many of each kind
may wait at once is bounded, because each holds a thread of the server; one more is refused at once, and a write that is
refused so has not been made.

The store knows nothing of other replicas. What it needs of them comes through ``Replication``.
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
from store.hold_time import HELD
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

Answer = TypeVar("Answer", ReadResult, WriteResult, ListResult, TransactionResult)
Issued = TypeVar("Issued", WriteResult, TransactionResult)
What = TypeVar("What")
Arguments = ParamSpec("Arguments")


class WriteConcern(NamedTuple):
    """How many members a client wants to have a write before it is answered (SPEC 2.7).

    ``members``: a number, ``"majority"`` or ``"all"``, of those that belong to the view, reachable or not.
    ``timeout_s``: how long to wait for them.
    """

    members: int | str
    timeout_s: float


class Acks(NamedTuple):
    """How many members, this one included, are known to have a write, and whether they are as many as were wanted."""

    members: int
    enough: bool


class Replication(Protocol):
    """What the engine asks of replication. All are called under the engine's lock and must not block."""

    def wrote(self, update: Update) -> None:
        """An update was issued here: peers lack it."""

    def ask(self, past: Clock) -> int:
        """A request waits for ``past``: ask whoever may have it. Returns a token that dates the request."""

    def ask_again(self, past: Clock) -> int:
        """The same for a request that may not wait: the token dates the first time that this was asked for."""

    def unrecoverable(self, past: Clock, token: int) -> LostUpdates:
        """Return what of ``past`` no replica has any more, as known from answers younger than ``token``."""

    def acks(self, dot: Dot) -> int:
        """Return how many members, this one included, are known to have applied ``dot``."""

    def acks_required(self, write_concern: str) -> int:
        """Return how many acks ``"majority"`` or ``"all"`` are, of the members that belong to the view."""


class LoneReplica:
    """Dependencies of a replica without peers: nobody to ask, nothing can be lost elsewhere."""

    def wrote(self, update: Update) -> None:
        pass

    def ask(self, past: Clock) -> int:
        return 0

    def ask_again(self, past: Clock) -> int:
        return 0

    def unrecoverable(self, past: Clock, token: int) -> LostUpdates:
        return {}

    def acks(self, dot: Dot) -> int:
        return 1

    def acks_required(self, write_concern: str) -> int:
        return 1


def read_clocks() -> Instant:
    """Read the machine's clocks for the protocol, which has none of its own."""
    return Instant(time.monotonic(), time.time_ns() // 1000)


class _Waiter:
    """One waiting request: wakes when ``is_due`` says so. Both are used under the engine's lock only."""

    __slots__ = ("condition", "is_due")

    def __init__(self, lock: threading.RLock, is_due: Callable[[], bool]) -> None:
        self.condition = threading.Condition(lock)
        self.is_due = is_due


class Engine:
    """The way in for requests. Thread-safe; each call blocks at most for the time that it was given."""

    def __init__(
        self,
        store: CausalStore,
        dependencies: Replication | None = None,
        *,
        now: Callable[[], Instant] = read_clocks,
        lock: threading.RLock | None = None,
    ) -> None:
        self.lock = lock or threading.RLock()
        self.dependencies: Replication = dependencies or LoneReplica()
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
        """Read one key. ``past``: the client's causal past; ``wait_s``: how long to wait for it, seconds.

        Raises NotServing, DependenciesMissing.
        """
        read = partial(self._store.get, all_siblings=True) if all_siblings else self._store.get
        with self.lock:
            self.counts["reads"] += 1
            return self._serve(read, key, past, wait_s)

    def watch(
        self, key: str, past: Clock, etags: Sequence[str], wait_s: float, *, all_siblings: bool = False
    ) -> ReadResult:
        """Read one key as soon as its winner has none of ``etags``, or after ``wait_s`` seconds as it is then.

        Raises NotServing, DependenciesMissing, TooManyWatchers.
        """
        deadline = time.monotonic() + wait_s

        def unchanged(found: ReadResult) -> bool:
            return bool(found.versions) and found.versions[0].etag in etags

        with self.lock:
            found = self.get(key, past, wait_s=wait_s, all_siblings=all_siblings)
            lost = found.lost
            past = _reduced(past, lost)
            while unchanged(found) and (remaining := deadline - time.monotonic()) > 0:
                if self.watchers >= self._settings.max_watchers:
                    self.counts["refused"] += 1
                    raise TooManyWatchers(f"{self.watchers} requests watch already")
                self.watchers += 1
                try:
                    self._wait(lambda: self._changed(key, etags), self._until_expiry(found, remaining))
                finally:
                    self.watchers -= 1
                found = self.get(key, past, wait_s=0, all_siblings=all_siblings)
        return structs.replace(found, lost=lost) if lost else found

    def write(self, change: Change, past: Clock, wait_s: float | None = None) -> WriteResult:
        """Write or delete one key if the change's conditions hold. ``WriteResult.deleted``: the key was present.

        Raises NotServing, DependenciesMissing, PreconditionFailed, OutOfMemory.
        """
        with self.lock:
            self.counts["deletes" if change.value is None else "writes"] += 1
            wrote = self._serve(self._store.put, change, past, wait_s)
            if wrote.update is not None:
                self.dependencies.wrote(wrote.update)
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
        """List keys that start with ``prefix`` and come after ``after``: one causal snapshot."""
        page = partial(self._store.list_keys, after=after, limit=limit, conflicts=conflicts)
        with self.lock:
            self.counts["lists"] += 1
            return self._serve(page, prefix, past, wait_s)

    def transact(
        self, reads: Sequence[str], writes: Sequence[Change], past: Clock, *, wait_s: float | None = None
    ) -> TransactionResult:
        """Read keys from one snapshot, then write keys as one update."""
        with self.lock:
            self.counts["transactions"] += 1
            done = self._serve(partial(self._store.transact, reads), writes, past, wait_s)
            if done.update is not None:
                self.dependencies.wrote(done.update)
                self.wake()
        return done

    def acknowledged(
        self,
        concern: WriteConcern | None,
        write: Callable[Arguments, Issued],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> tuple[Issued, Acks | None]:
        """Make a write, then wait until as many members have it as ``concern`` says.

        ``write`` is one of the calls above, to be made with what follows. Returns its answer and the acks; None where
        none were asked for, or nothing was issued that could be acknowledged. Raises TooManyAckWaits before anything
        was written, and whatever ``write`` raises.
        """
        if concern is None:
            return write(*args, **kwargs), None
        with self._ack_wait(concern):
            done = write(*args, **kwargs)
            return done, None if done.update is None else self.wait_for_acks(done.update.dot, concern)

    def wait_for_acks(self, dot: Dot, concern: WriteConcern) -> Acks:
        """Wait until as many members have applied ``dot`` as ``concern`` says, or its time is over.

        Where this replica is put out meanwhile it ends at once: who is put out has nobody to count on.
        """
        members = concern.members

        def acks() -> Acks:
            wanted = members if isinstance(members, int) else self.dependencies.acks_required(members)
            reached = self.dependencies.acks(dot)
            return Acks(reached, reached >= wanted)

        with self.lock:
            if not acks().enough and concern.timeout_s > 0:
                self._wait(lambda: self._store.not_serving_reason is not None or acks().enough, concern.timeout_s)
            return acks()

    # -- waiting ---------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Wake the requests whose wait is over; called under the lock whenever the replica has changed."""
        for waiter in self._waiters:
            if waiter.is_due():
                waiter.condition.notify()

    def _serve(
        self, operation: Callable[[What, Clock, Instant], Answer], what: What, past: Clock, wait_s: float | None
    ) -> Answer:
        """Do one of the store's operations, when it may be done; called under the lock, which waiting releases."""
        try:
            return operation(what, past, self._now())
        except DependenciesMissing as unreached:
            timeout_s = self._settings.defer_timeout_s if wait_s is None else wait_s
            # One that may not wait asks all the same, for itself when it comes again; but it takes no place.
            with self._deferral(unreached) if timeout_s > 0 else nullcontext():
                return self._serve_later(partial(operation, what), past, timeout_s)

    def _serve_later(self, operation: Callable[[Clock, Instant], Answer], past: Clock, timeout_s: float) -> Answer:
        """Serve when the causal past has arrived or the rest of it is unrecoverable; else raise DependenciesMissing."""
        deadline = time.monotonic() + timeout_s
        lost: LostUpdates = {}
        token = self.dependencies.ask(past) if timeout_s > 0 else self.dependencies.ask_again(past)
        while True:
            gone = self.dependencies.unrecoverable(past, token)
            lost.update(gone)
            past = _reduced(past, gone)
            try:
                answer = operation(past, self._now())
            except DependenciesMissing:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    self.counts["refused"] += 1
                    raise
                self._wait(self._is_served(past, token), remaining)
            else:
                return structs.replace(answer, lost=lost) if lost else answer

    def _is_served(self, past: Clock, token: int) -> Callable[[], bool]:
        return lambda: (
            self._store.not_serving_reason is not None
            or self._store.is_causal(past)
            or bool(self.dependencies.unrecoverable(past, token))
        )

    @contextmanager
    def _deferral(self, unreached: DependenciesMissing) -> Iterator[None]:
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
        """Keep room for one that may have to wait for acks; a write for this replica alone never has to."""
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
        """Release the lock until ``is_due`` or the time is over."""
        waiter = _Waiter(self.lock, is_due)
        self._waiters.append(waiter)
        began_s = time.monotonic()
        try:
            waiter.condition.wait_for(is_due, timeout_s)
        finally:
            HELD.seconds += time.monotonic() - began_s
            self._waiters.remove(waiter)

    def _changed(self, key: str, etags: Sequence[str]) -> bool:
        if self._store.not_serving_reason is not None:
            return True
        versions = self._store.table.get(key)
        return not versions or versions[0].etag not in etags

    def _until_expiry(self, found: ReadResult, remaining_s: float) -> float:
        """Nothing wakes a watcher when a version expires but the time itself."""
        deadlines = [version.expires for version in found.versions if version.expires is not None]
        if not deadlines:
            return remaining_s
        return min(remaining_s, max(0.001, (min(deadlines) - self._now().wall_us) / 1_000_000))

    # -- for people ------------------------------------------------------------------------------------

    @property
    def settings(self) -> StoreSettings:
        return self._settings

    def stats(self) -> dict[str, int]:
        """Return counters and sizes, for the status page and the metrics."""
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


def _reduced(past: Clock, lost: LostUpdates) -> Clock:
    """Return ``past`` without what is lost: of each origin up to the last update before it."""
    if not lost:
        return past
    reduced = {replica: counter for replica, counter in past.items() if replica not in lost}
    return reduced | {replica: first - 1 for replica, (first, _) in lost.items() if first > 1}

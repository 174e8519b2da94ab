"""Requests that wait, indexed by what they wait for.

A change wakes only the requests that it concerns. Its cost is proportional to what it wakes, not to what waits:

* a *deferred* request stands under one dot that its causal past lacks, as an update does in the pending queue;
* a *watching* request stands under its key;
* a write that waits for *acks* stands under its write concern and origin, ordered by counter.

While any request is deferred or watches, the store calls ``applied`` for each update that it applies, and ``replaced``
after it has joined a snapshot.

Each kind has a limited number of places. If all are taken, the request that has waited longest gives its place to the
new one and is answered early. So places that belong to clients that have gone never lock others out.

Everything here is used under the engine's lock.
"""

from __future__ import annotations

import sys
import threading
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from store.clock import Clock, Dot
from store.versions import Update


class Waiter:
    """One waiting request: a condition on the engine's lock, its thread, and whether its wait is over.

    ``token``, ``loss_check_at_s``: of a deferred request, for the question whether its past is lost, and when that may
    be asked again (monotonic seconds).
    """

    __slots__ = ("condition", "is_awake", "loss_check_at_s", "thread", "token")

    def __init__(self, lock: threading.RLock) -> None:
        self.condition = threading.Condition(lock)
        self.is_awake = False
        self.thread = threading.get_ident()
        self.token = 0
        self.loss_check_at_s = 0.0

    def wake(self) -> None:
        """End the wait."""
        self.is_awake = True
        self.condition.notify()

    def wait(self, timeout_s: float) -> None:
        """Release the lock until ``wake`` is called, at most ``timeout_s`` seconds."""
        if not self.is_awake:
            self.condition.wait(timeout_s)
        self.is_awake = False


class AckWaiter:
    """One write that waits for acks. When it has enough, it needs no lock to go on: all that it needs is here.

    ``origin``, ``counter``: the dot of its update. ``members``: its write concern. ``acks``: how many members had the
    update when these were enough; 0 if the wait ended for another reason. ``thread``: that of the request.
    """

    __slots__ = ("_is_awake", "_lock", "acks", "counter", "members", "origin", "thread")

    def __init__(self, dot: Dot, members: int | str) -> None:
        self.origin, self.counter = dot
        self.members = members
        self.acks = 0
        self.thread = threading.get_ident()
        self._is_awake = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self) -> None:
        """End the wait."""
        if not self._is_awake:
            self._is_awake = True
            self._lock.release()

    def wait(self, timeout_s: float) -> None:
        """Sleep until ``wake`` is called, at most ``timeout_s`` seconds. Call this without the engine's lock."""
        self._lock.acquire(timeout=timeout_s)


AnyWaiter = TypeVar("AnyWaiter", Waiter, AckWaiter)


class Places(Generic[AnyWaiter]):
    """The places of one kind of waiting request: at most ``limit`` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiters: dict[AnyWaiter, None] = {}  # a dict keeps the order of arrival

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[AnyWaiter]:
        return iter(list(self._waiters))

    def __contains__(self, waiter: AnyWaiter) -> bool:
        return waiter in self._waiters

    def take(self, waiter: AnyWaiter) -> None:
        """Give ``waiter`` a place; take it from the request that has waited longest if all places are taken.

        With a limit of 0, ``waiter`` itself loses the place at once.
        """
        self._waiters[waiter] = None
        if len(self._waiters) > self._limit:
            longest = next(iter(self._waiters))
            del self._waiters[longest]
            longest.wake()

    def release(self, waiter: AnyWaiter) -> None:
        """Free the place of ``waiter``, if it still has one."""
        self._waiters.pop(waiter, None)


class _MissingDots:
    """What a clock lacks of one causal past. It takes little memory: the counters stay in the past."""

    __slots__ = ("_origins", "_past")

    def __init__(self, past: Clock, clock: Clock) -> None:
        self._past = past
        self._origins = [origin for origin, counter in past.items() if clock.get(origin, 0) < counter]

    @property
    def last(self) -> Dot:
        """One missing dot."""
        origin = self._origins[-1]
        return origin, self._past[origin]

    def advance(self, clock: Clock) -> bool:
        """Move on to a dot that ``clock`` lacks; return False if there is none.

        Each entry is passed once, so the work over the whole wait is linear in the size of the past.
        """
        origins, past = self._origins, self._past
        while origins and clock.get(origins[-1], 0) >= past[origins[-1]]:
            origins.pop()
        return bool(origins)


class DeferredIndex:
    """Deferred requests, each under one dot that its causal past lacks."""

    def __init__(self) -> None:
        self._by_dot: dict[Dot, dict[Waiter, None]] = {}
        self._missing: dict[Waiter, _MissingDots] = {}

    def __bool__(self) -> bool:
        return bool(self._missing)

    def add(self, waiter: Waiter, past: Clock, clock: Clock) -> None:
        """Let ``waiter`` wait until ``clock`` covers ``past``, which must not change meanwhile. It lacks something."""
        missing = self._missing[waiter] = _MissingDots(past, clock)
        self._by_dot.setdefault(missing.last, {})[waiter] = None

    def remove(self, waiter: Waiter) -> None:
        """Forget ``waiter``, if it is here."""
        missing = self._missing.pop(waiter, None)
        if missing is not None:
            self._leave(waiter, missing.last)

    def applied(self, dot: Dot, clock: Clock) -> None:
        """Wake the requests that lacked ``dot`` and lack nothing more; file the others under their next dot."""
        for waiter in list(self._by_dot.get(dot, ())):
            self._advance(waiter, clock)

    def replaced(self, clock: Clock) -> None:
        """Do the same for all requests: the clock has jumped."""
        for waiter in list(self._missing):
            self._advance(waiter, clock)

    def _advance(self, waiter: Waiter, clock: Clock) -> None:
        missing = self._missing[waiter]
        self._leave(waiter, missing.last)
        if missing.advance(clock):
            self._by_dot.setdefault(missing.last, {})[waiter] = None
        else:
            del self._missing[waiter]
            waiter.wake()

    def _leave(self, waiter: Waiter, dot: Dot) -> None:
        waiting = self._by_dot[dot]
        del waiting[waiter]
        if not waiting:
            del self._by_dot[dot]


class WatchIndex:
    """Watching requests by key."""

    def __init__(self) -> None:
        self._by_key: dict[str, dict[Waiter, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def add(self, waiter: Waiter, key: str) -> None:
        """Let ``waiter`` wait for a write of ``key``."""
        self._by_key.setdefault(key, {})[waiter] = None

    def remove(self, waiter: Waiter, key: str) -> None:
        """Forget ``waiter``, if it is here."""
        waiting = self._by_key.get(key)
        if waiting is not None:
            waiting.pop(waiter, None)
            if not waiting:
                del self._by_key[key]

    def written(self, keys: Iterable[str]) -> None:
        """Wake the requests that watch one of ``keys``."""
        for key in keys:
            for waiter in self._by_key.pop(key, ()):
                waiter.wake()

    def replaced(self) -> None:
        """Wake all requests: any key may have changed."""
        self.written(list(self._by_key))


class PrefixIndex:
    """Requests that wait for a change of any key with a prefix.

    A change costs at most one lookup for each length of a prefix up to that of the key, however many requests wait.

    ``_counts``: length -> how many prefixes have it. ``_lengths``: these lengths, rising.
    """

    def __init__(self) -> None:
        self._by_prefix: dict[str, dict[Waiter, None]] = {}
        self._counts: Counter[int] = Counter()
        self._lengths: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._by_prefix)

    def add(self, waiter: Waiter, prefix: str) -> None:
        """Let ``waiter`` wait for a change of a key that starts with ``prefix``."""
        waiting = self._by_prefix.get(prefix)
        if waiting is None:
            waiting = self._by_prefix[prefix] = {}
            self._counts[len(prefix)] += 1
            if self._counts[len(prefix)] == 1:
                insort(self._lengths, len(prefix))
        waiting[waiter] = None

    def remove(self, waiter: Waiter, prefix: str) -> None:
        """Forget ``waiter``, if it is here."""
        waiting = self._by_prefix.get(prefix)
        if waiting is not None:
            waiting.pop(waiter, None)
            if not waiting:
                self._drop(prefix)

    def changed(self, keys: Iterable[str]) -> None:
        """Wake the requests that wait for one of ``keys``."""
        by_prefix, lengths = self._by_prefix, self._lengths
        for key in keys:
            concerned = []
            for length in lengths:
                if length > len(key):
                    break
                if (prefix := key[:length]) in by_prefix:
                    concerned.append(prefix)
            for prefix in concerned:
                self._wake(prefix)

    def replaced(self) -> None:
        """Wake all requests: any key may have changed."""
        for prefix in list(self._by_prefix):
            self._wake(prefix)

    def _wake(self, prefix: str) -> None:
        for waiter in self._drop(prefix):
            waiter.wake()

    def _drop(self, prefix: str) -> dict[Waiter, None]:
        self._counts[len(prefix)] -= 1
        if not self._counts[len(prefix)]:
            del self._counts[len(prefix)]
            self._lengths.remove(len(prefix))
        return self._by_prefix.pop(prefix)


class AckIndex:
    """Writes that wait for acks, by write concern and origin, each group ordered by counter.

    A member that has applied an update has applied all earlier ones of its origin. So if the first write of a group
    lacks acks, all later ones of the group lack them too.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[int | str, str], list[AckWaiter]] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, waiter: AckWaiter) -> None:
        """Let ``waiter`` wait until its write has enough acks."""
        group = self._groups.setdefault((waiter.members, waiter.origin), [])
        if group and group[-1].counter > waiter.counter:
            insort(group, waiter, key=_counter)
        else:
            group.append(waiter)

    def remove(self, waiter: AckWaiter) -> None:
        """Forget ``waiter``, if it is here."""
        group = self._groups.get((waiter.members, waiter.origin), [])
        for at in range(bisect_left(group, waiter.counter, key=_counter), len(group)):
            if group[at] is waiter:
                del group[at]
                break
            if group[at].counter > waiter.counter:
                return
        if not group:
            self._groups.pop((waiter.members, waiter.origin), None)

    def acknowledged(
        self, counters: Callable[[str], Sequence[int]], required: Callable[[int | str], int]
    ) -> list[AckWaiter]:
        """Remove and return the writes that have enough acks now; each knows how many.

        ``counters``: see ``Replication.ack_counters``. ``required``: the acks that a write concern requires.
        """
        enough: list[AckWaiter] = []
        known: dict[str, Sequence[int]] = {}
        for (members, origin), group in list(self._groups.items()):
            by_member = known[origin] if origin in known else known.setdefault(origin, counters(origin))
            needed, size = required(members), len(by_member) + 1
            if needed > size:
                continue  # No write can have so many. It costs nothing, whatever its number.
            # What as many members as are needed, this one not counted, have applied.
            up_to = by_member[size - needed] if needed > 1 else sys.maxsize
            count = bisect_right(group, up_to, key=_counter) if group[0].counter <= up_to else 0
            for waiter in group[:count]:
                waiter.acks = size - bisect_left(by_member, waiter.counter)
            enough += group[:count]
            del group[:count]
            if not group:
                del self._groups[members, origin]
        return enough


def _counter(waiter: AckWaiter) -> int:
    return waiter.counter


class Waiters:
    """All waiting requests of one engine: their places, and the indexes that wake them."""

    def __init__(self, max_watchers: int, max_deferred: int, max_streams: int) -> None:
        self.deferred = Places[Waiter](max_deferred)
        self.watching = Places[Waiter](max_watchers)
        self.ack_waits = Places[AckWaiter](max_deferred)
        self.streaming = Places[Waiter](max_streams)
        self.by_dot = DeferredIndex()
        self.by_key = WatchIndex()
        self.by_prefix = PrefixIndex()
        self.by_concern = AckIndex()
        self._all: dict[Waiter | AckWaiter, Places[Any]] = {}

    def enter(self, waiter: AnyWaiter, places: Places[AnyWaiter]) -> None:
        """Give ``waiter`` a place among ``places``."""
        self._all[waiter] = places
        places.take(waiter)

    def leave(self, waiter: AnyWaiter, places: Places[AnyWaiter]) -> None:
        """Free the place of ``waiter``."""
        self._all.pop(waiter, None)
        places.release(waiter)

    def end_longest(self, held: Mapping[int, int], wanted: int) -> None:
        """Let the requests that have waited longest lose their places, until they hold ``wanted`` together.

        ``held``: thread -> what its request holds. Requests of other threads keep their places.
        """
        for waiter, places in self._all.items():
            if wanted <= 0:
                return
            if waiter.thread in held:
                wanted -= held[waiter.thread]
                places.release(waiter)
                waiter.wake()

    def wake_all(self) -> None:
        """Wake every request: the replica serves no clients any more."""
        for waiter in self._all:
            waiter.wake()

    @property
    def observes(self) -> bool:
        """Whether a change of the store may have to wake a request."""
        return bool(self.by_dot) or bool(self.by_key) or bool(self.by_prefix)

    # -- called by the store -------------------------------------------------------------------------------

    def applied(self, update: Update, clock: Clock) -> None:
        """Wake the requests that ``update``, just applied, concerns."""
        if self.by_key:
            self.by_key.written([write.key for write in update.writes])
        if self.by_prefix:
            self.by_prefix.changed([write.key for write in update.writes])
        if self.by_dot:
            self.by_dot.applied(update.dot, clock)

    def expired(self, key: str) -> None:
        """Wake the requests that wait for a change of ``key``, of which a version has just expired."""
        self.by_key.written([key])
        self.by_prefix.changed([key])

    def replaced(self, clock: Clock) -> None:
        """Wake the requests that a joined snapshot concerns."""
        self.by_key.replaced()
        self.by_prefix.replaced()
        self.by_dot.replaced(clock)

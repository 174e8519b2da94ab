"""The clients of the demo. Each is a thread with its own client session.

    Writer     writes all steps through one replica, and records each one in ``Acknowledged``
    Follower   changes replicas, with the writer's metadata: every replica must return what was acknowledged
    Observer   changes replicas, with only its own metadata: no replica may return an effect without its cause, half of
               a transaction, or an older revision than the session has read
    LagProbe   writes a key through the writer's replica and watches it at the others, to measure the replication lag

Readers add a text to ``violations`` for each broken promise. A correct run has none.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from causeway_client import ClientError, Delete, Put, Read, Result, Session
from tools.demo.characters import MARKER_PREFIX, Step, block_of, place, revision_at

BURST = 3
"""Reads in a row at different replicas: a later replica may not have yet what an earlier one returned."""
BURST_PAUSE_S = 0.012
"""Pause after each burst. It leaves most of the machine, which clients and replicas share, to the writer."""
PROBE_PAUSE_S = 0.05
PROBE_KEY = "demo:probe"
SNAPSHOT_KEYS = 8
MAX_VIOLATIONS = 20


class Worker(threading.Thread, ABC):
    """A thread that can be stopped, and that keeps the exception that ended it."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.stopping = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Work until the work is done or ``stop`` is called."""
        try:
            self.work()
        except BaseException as exc:  # noqa: BLE001  (``stop`` raises it in the caller's thread)
            self.failure = exc

    @abstractmethod
    def work(self) -> None:
        """Do the work of this thread until ``stopping`` is set."""

    def stop(self) -> None:
        """Stop the thread and wait for its end. Raises the exception that ended it, if any."""
        self.stopping.set()
        self.join()
        if self.failure is not None:
            raise self.failure


@dataclass
class Acknowledged:
    """The writes that were acknowledged. ``changed`` guards all fields and is notified of each write."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    metadata: dict[str, int] = field(default_factory=dict)  # of the last write's response
    keys: list[str] = field(default_factory=list)  # in the order of their first write
    revision: dict[str, int] = field(default_factory=dict)  # key -> last acknowledged revision
    latest: list[str] = field(default_factory=list)  # the keys of the last write
    writes: int = 0  # records written, second revisions included

    def add(self, step: Step, metadata: dict[str, int]) -> None:
        """Record that ``step`` was acknowledged with ``metadata``."""
        with self.changed:
            self.metadata = metadata
            self.writes += len(step.records)
            self.latest = list(step.records)
            for key, record in step.records.items():
                if key not in self.revision:
                    self.keys.append(key)
                self.revision[key] = record["revision"]
            self.changed.notify_all()

    def wait(self, writes: int, timeout_s: float) -> None:
        """Wait until more than ``writes`` records are written, at most ``timeout_s`` seconds."""
        with self.changed:
            self.changed.wait_for(lambda: self.writes > writes, timeout_s)

    def pick(self, rng: random.Random) -> tuple[str, int, dict[str, int]] | None:
        """Return a key, usually of the last write, with its acknowledged revision and metadata; None without keys."""
        with self.changed:
            if not self.keys:
                return None
            key = rng.choice(self.latest if rng.random() < 0.7 else self.keys)
            return key, self.revision[key], self.metadata


class Writer(Worker):
    """Writes ``steps`` through ``replica``, one after the other.

    ``milestones``: (share of the records, action to call when that share is written), in rising order.
    The session uses ``retry_writes``: writing the same record twice has no effect here.
    """

    def __init__(
        self,
        replica: str,
        steps: Sequence[Step],
        acknowledged: Acknowledged,
        milestones: Sequence[tuple[float, Callable[[], None]]],
    ) -> None:
        super().__init__("writer")
        self.session = Session([replica], retry_writes=True, timeout_s=30)
        self.steps, self.acknowledged = steps, acknowledged
        total = sum(len(step.records) for step in steps)
        self.milestones = [(int(share * total), action) for share, action in milestones]
        self.seconds = 0.0

    def work(self) -> None:
        """Write all steps; ``seconds`` becomes the duration of the writes, without the milestones."""
        milestones = list(self.milestones)
        marker: str | None = None
        for step in self.steps:
            while milestones and self.acknowledged.writes >= milestones[0][0]:
                milestones.pop(0)[1]()
            if self.stopping.is_set():
                return
            started = time.monotonic()
            if step.is_block:
                marker = self._write_block(step, marker)
            else:
                ((key, record),) = step.records.items()
                self.session.put(key, record)
            self.seconds += time.monotonic() - started
            self.acknowledged.add(step, self.session.metadata)
        if marker:
            self.session.delete(marker)

    def _write_block(self, step: Step, last_marker: str | None) -> str:
        marker = f"{MARKER_PREFIX}{step.block:04X}"
        writes: list[Put | Delete] = [Put(key, record) for key, record in step.records.items()]
        writes.append(Put(marker, len(step.records)))
        if last_marker:
            writes.append(Delete(last_marker))
        self.session.transaction(writes=writes)
        return marker


class Reader(Worker):
    """The common part of the readers: changing replicas, counting, and checking revisions."""

    def __init__(self, name: str, replicas: Sequence[str], acknowledged: Acknowledged, seed: int) -> None:
        super().__init__(name)
        self.session = Session(replicas, timeout_s=15)
        self.acknowledged = acknowledged
        self.rng = random.Random(seed)
        self.reads = 0
        self.unanswered = 0
        self.latencies_s: list[float] = []
        self.answered_by: dict[str, int] = dict.fromkeys(self.session.replicas, 0)
        self.seen: dict[str, int] = {}  # key -> highest revision that this session read
        self.violations: list[str] = []

    def work(self) -> None:
        """Read until ``stop`` is called."""
        at = 0
        for number in itertools.count():
            if number % BURST == 0:
                self.stopping.wait(BURST_PAUSE_S)
            if self.stopping.is_set():
                return
            # Never the same replica twice in a row.
            at = (at + self.rng.randrange(1, len(self.session.replicas))) % len(self.session.replicas)
            self.session.stick_to(self.session.replicas[at])
            started = time.monotonic()
            try:
                replica = self.read_once()
            except ClientError:
                # A timeout breaks no promise, but it is reported.
                self.unanswered += 1
                continue
            if replica:
                self.reads += 1
                self.latencies_s.append(time.monotonic() - started)
                self.answered_by[replica] += 1

    @abstractmethod
    def read_once(self) -> str | None:
        """Make one request and check the response; return the replica that served it, None without a request."""

    def check_revision(self, replica: str, key: str, revision: int, minimum: int, why: str) -> None:
        """Check a read of ``key`` that returned ``revision`` (0: absent): it must be at least ``minimum``."""
        seen = self.seen.get(key, 0)
        if revision < minimum:
            self.complain(f"{replica} returned {_revision(revision)} of {key}, not {_revision(minimum)}: {why}")
        if revision < seen:
            self.complain(f"{replica} returned {_revision(revision)} of {key} after {_revision(seen)}: back in time")
        self.seen[key] = max(seen, revision)

    def check_lost(self, result: Result) -> None:
        """Check that no update was reported as lost: the writer's replica is alive and has all of them."""
        if result.lost:
            self.complain(f"{result.replica} reported lost updates: {dict(result.lost)}")

    def complain(self, text: str) -> None:
        """Add a violation, up to ``MAX_VIOLATIONS``."""
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(f"{self.name}: {text}")


class Follower(Reader):
    """Reads recent writes at any replica, with the writer's metadata."""

    def read_once(self) -> str | None:
        """Read one key: its revision must be the acknowledged one or a later one."""
        # Read right after a write is acknowledged: most replicas do not have it yet, and must wait for it.
        self.acknowledged.wait(self.acknowledged.writes, BURST_PAUSE_S)
        picked = self.acknowledged.pick(self.rng)
        if picked is None:
            return None
        key, minimum, metadata = picked
        self.session.follow(metadata)
        read = self.session.get(key, wait_s=5)
        self.check_lost(read)
        self.check_revision(read.replica, key, _revision_of(read), minimum, "its write was acknowledged before")
        return read.replica


class Observer(Reader):
    """Reads with its own metadata only, and concludes from each revision which earlier ones must be visible."""

    def __init__(self, name: str, replicas: Sequence[str], acknowledged: Acknowledged, seed: int) -> None:
        super().__init__(name, replicas, acknowledged, seed)
        self.last_key = ""  # the key of the last read
        self.frontier = (-1, -1)  # the highest place of a revision that this session read

    def read_once(self) -> str | None:
        """Read one key, or several keys of one block in one snapshot."""
        picked = self.acknowledged.pick(self.rng)
        if picked is None:
            return None
        # Half of the time, read the same key as before: another replica must have at least the same revision.
        key = self.last_key = self.last_key if self.last_key and self.rng.random() < 0.5 else picked[0]
        # Compare with the frontier before this read: the response may raise it.
        frontier = self.frontier
        if self.rng.random() < 0.5:
            read = self.session.get(key)
            self.check_lost(read)
            self._check_frontier(read.replica, key, _revision_of(read), frontier)
            return read.replica
        with self.acknowledged.changed:
            neighbours = [other for other in self.acknowledged.keys[-512:] if block_of(other) == block_of(key)]
        keys = list(dict.fromkeys([key, *self.rng.sample(neighbours, min(SNAPSHOT_KEYS, len(neighbours)))]))
        snapshot = self.session.transaction(reads=keys)
        self.check_lost(snapshot)
        revisions = {key: snapshot.values[key]["revision"] if key in snapshot.values else 0 for key in keys}
        if len({revision > 0 for revision in revisions.values()}) > 1:
            self.complain(f"{snapshot.replica} returned half of a transaction: {revisions}")
        for key, revision in revisions.items():
            self._check_frontier(snapshot.replica, key, revision, frontier)
        return snapshot.replica

    def _check_frontier(self, replica: str, key: str, revision: int, frontier: tuple[int, int]) -> None:
        block, code_point = frontier[0], max(0, frontier[1])
        why = f"a write of the same or a later place, up to {block:02X}:{code_point:04X}, was read before"
        self.check_revision(replica, key, revision, revision_at(key, frontier), why)
        if revision:
            self.frontier = max(self.frontier, place(key, revision))


class LagProbe(Worker):
    """Writes ``PROBE_KEY`` at the first replica every ``PROBE_PAUSE_S``; watchers wait for it at the others."""

    def __init__(self, replicas: Sequence[str]) -> None:
        super().__init__("lag probe")
        self.sent_at_s: list[float] = []  # by number of the probe: when its PUT was sent (monotonic)
        self.session = Session(replicas[:1], retry_writes=True)
        self.watchers = [Watcher(replica, self.sent_at_s) for replica in replicas[1:]]

    def work(self) -> None:
        """Write probes until ``stop`` is called."""
        for watcher in self.watchers:
            watcher.start()
        while not self.stopping.wait(PROBE_PAUSE_S):
            self.sent_at_s.append(time.monotonic())
            self.session.put(PROBE_KEY, len(self.sent_at_s) - 1)
        for watcher in self.watchers:
            watcher.stop()

    @property
    def lags_s(self) -> list[float]:
        """Seconds from sending each PUT to the response that shows it at another replica: two requests are included."""
        return [lag for watcher in self.watchers for lag in list(watcher.lags_s)]


class Watcher(Worker):
    """Watches the probe at one replica."""

    def __init__(self, replica: str, sent_at_s: list[float]) -> None:
        super().__init__(f"watcher of {replica}")
        self.session = Session([replica], timeout_s=1)
        self.sent_at_s = sent_at_s
        self.lags_s: list[float] = []

    def work(self) -> None:
        """Watch until ``stop`` is called; retry while the replica is down or catches up."""
        etag: str | None = None
        while not self.stopping.is_set():
            try:
                if etag is None:
                    # The current value does not count: it may have been written while the replica was down.
                    etag = self.session.get(PROBE_KEY).etag
                    self.stopping.wait(0.0 if etag else 0.05)
                    continue
                read = self.session.watch(PROBE_KEY, etag, wait_s=1)
            except ClientError:
                etag = None
                self.stopping.wait(0.05)
                continue
            if read is not None and read.found:
                self.lags_s.append(time.monotonic() - self.sent_at_s[read.value])
                etag = read.etag


def _revision_of(read: Read) -> int:
    return int(read.value["revision"]) if read.found else 0


def _revision(number: int) -> str:
    return f"revision {number}" if number else "no value"

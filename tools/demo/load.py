"""Who writes the database and who reads it meanwhile. Each is a thread with a client session of its own.

    Writer     writes all steps through one replica, and enters each in the journal once it is acknowledged
    Follower   hops over all replicas with the writer's metadata: must find what was acknowledged, wherever it asks
    Observer   hops over all replicas with nothing but its own metadata: must never be shown an effect without its
               cause, a transaction by half, or an older revision than it has seen
    LagProbe   writes a key through the writer's replica and watches it at another: how long until it shows there?

What a reader finds wrong is a text in ``violations``; there must be none.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from store.client import Answer, ClientError, Delete, Put, Read, Session
from tools.demo.characters import MARKER_PREFIX, Step, block_of, place, revision_at

BURST = 3
"""Reads in a row, hopping: what the first one shows, the next replica may not have yet."""
BURST_PAUSE_S = 0.012
"""After each burst. The load is meant to be the writer's: client and replicas share the machine."""
PROBE_PAUSE_S = 0.05
PROBE_KEY = "demo:probe"
SNAPSHOT_KEYS = 8
MAX_VIOLATIONS = 20


class Worker(threading.Thread, ABC):
    """A thread that ends when it is asked to and remembers what it died of."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.stopping = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Work until done or asked to stop."""
        try:
            self.work()
        except BaseException as exc:  # noqa: BLE001  (told by whoever joins this thread)
            self.failure = exc

    @abstractmethod
    def work(self) -> None:
        """Do what the thread is for."""

    def stop(self) -> None:
        """Ask it to end, and wait. Raises what it died of."""
        self.stopping.set()
        self.join()
        if self.failure is not None:
            raise self.failure


@dataclass
class EventLog:
    """What has been acknowledged. ``changed`` guards all, and is notified; metadata and revisions change together."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    metadata: dict[str, int] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)  # in the order of their first writing
    revision: dict[str, int] = field(default_factory=dict)
    latest: list[str] = field(default_factory=list)  # the keys of the last write
    writes: int = 0  # keys written, second revisions included

    def enter(self, step: Step, metadata: dict[str, int]) -> None:
        """Note that ``step`` was acknowledged, and with which metadata."""
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
        """Wait until more than ``writes`` keys are written, or ``timeout_s`` is over."""
        with self.changed:
            self.changed.wait_for(lambda: self.writes > writes, timeout_s)

    def pick(self, rng: random.Random) -> tuple[str, int, dict[str, int]] | None:
        """A key, mostly one of the last write, with its acknowledged revision and that write's metadata."""
        with self.changed:
            if not self.keys:
                return None
            key = rng.choice(self.latest if rng.random() < 0.7 else self.keys)
            return key, self.revision[key], self.metadata


class Writer(Worker):
    """Writes ``steps`` through ``replica``, one after the other.

    ``milestones``: (share of the records, what to do once so much is written), rising.
    A bulk load by one writer is a case for ``retry_writes``: the same record written twice does no harm.
    """

    def __init__(
        self,
        replica: str,
        steps: Sequence[Step],
        journal: EventLog,
        milestones: Sequence[tuple[float, Callable[[], None]]],
    ) -> None:
        super().__init__("writer")
        self.session = Session([replica], retry_writes=True, timeout_s=30)
        self.steps, self.journal = steps, journal
        total = sum(len(step.records) for step in steps)
        self.milestones = [(int(share * total), action) for share, action in milestones]
        self.seconds = 0.0

    def work(self) -> None:
        """Write everything; ``seconds`` is what the writing took, without the milestones."""
        milestones = list(self.milestones)
        marker: str | None = None
        for step in self.steps:
            while milestones and self.journal.writes >= milestones[0][0]:
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
            self.journal.enter(step, self.session.metadata)
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
    """What both kinds of reader share: hopping, counting, and the memory of what they saw."""

    def __init__(self, name: str, replicas: Sequence[str], journal: EventLog, seed: int) -> None:
        super().__init__(name)
        self.session = Session(replicas, timeout_s=15)
        self.journal = journal
        self.rng = random.Random(seed)
        self.reads = 0
        self.unanswered = 0
        self.latencies_s: list[float] = []
        self.answered_by: dict[str, int] = dict.fromkeys(self.session.replicas, 0)
        self.seen: dict[str, int] = {}  # key -> highest revision that was shown
        self.violations: list[str] = []

    def work(self) -> None:
        """Read on until asked to stop."""
        at = 0
        for number in itertools.count():
            if number % BURST == 0:
                self.stopping.wait(BURST_PAUSE_S)
            if self.stopping.is_set():
                return
            # Never twice in a row the same.
            at = (at + self.rng.randrange(1, len(self.session.replicas))) % len(self.session.replicas)
            self.session.stick_to(self.session.replicas[at])
            started = time.monotonic()
            try:
                replica = self.read_once()
            except ClientError:
                # No answer in time is no broken promise, but it is told.
                self.unanswered += 1
                continue
            if replica:
                self.reads += 1
                self.latencies_s.append(time.monotonic() - started)
                self.answered_by[replica] += 1

    @abstractmethod
    def read_once(self) -> str | None:
        """Make one request and judge it; returns the replica that answered."""

    def judge(self, replica: str, key: str, shown: int, least: int, why: str) -> None:
        """Revision ``shown`` (0: absent) of ``key`` was read; it has to be ``least`` or higher."""
        seen = self.seen.get(key, 0)
        if shown < least:
            self.complain(f"{replica} showed {_revision(shown)} of {key}, not {_revision(least)}: {why}")
        if shown < seen:
            self.complain(f"{replica} showed {_revision(shown)} of {key} after {_revision(seen)}: back in time")
        self.seen[key] = max(seen, shown)

    def hear(self, answer: Answer) -> None:
        """Nothing that was acknowledged may be told to be lost: the writer's replica lives."""
        if answer.lost:
            self.complain(f"{answer.replica} told that updates are lost: {dict(answer.lost)}")

    def complain(self, text: str) -> None:
        """Note a broken promise."""
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(f"{self.name}: {text}")


class Follower(Reader):
    """Reads what the writer has just written, at any replica, with the writer's metadata."""

    def read_once(self) -> str | None:
        """Read one key: it has to be there, at the acknowledged revision or a later one."""
        # As soon as something new is acknowledged: most replicas do not have it yet, and have to wait for it.
        self.journal.wait(self.journal.writes, BURST_PAUSE_S)
        picked = self.journal.pick(self.rng)
        if picked is None:
            return None
        key, least, metadata = picked
        self.session.follow(metadata)
        read = self.session.get(key, wait_s=5)
        self.hear(read)
        self.judge(read.replica, key, _revision_of(read), least, "its write was acknowledged before")
        return read.replica


class Observer(Reader):
    """Reads whatever there is, with its own metadata, and concludes from what it sees what it must see too."""

    def __init__(self, name: str, replicas: Sequence[str], journal: EventLog, seed: int) -> None:
        super().__init__(name, replicas, journal, seed)
        self.asked = ""  # the key that was read last
        self.frontier = (-1, -1)  # the last place of what was shown

    def read_once(self) -> str | None:
        """Read one key, or several of one block in one snapshot."""
        picked = self.journal.pick(self.rng)
        if picked is None:
            return None
        # Half of the time what another replica has just shown: does this one have it, too?
        key = self.asked = self.asked if self.asked and self.rng.random() < 0.5 else picked[0]
        # What was known before this read: its own answer may raise the frontier.
        frontier = self.frontier
        if self.rng.random() < 0.5:
            read = self.session.get(key)
            self.hear(read)
            self._judge(read.replica, key, _revision_of(read), frontier)
            return read.replica
        with self.journal.changed:
            siblings = [other for other in self.journal.keys[-512:] if block_of(other) == block_of(key)]
        keys = list(dict.fromkeys([key, *self.rng.sample(siblings, min(SNAPSHOT_KEYS, len(siblings)))]))
        snapshot = self.session.transaction(reads=keys)
        self.hear(snapshot)
        shown = {key: snapshot.values[key]["revision"] if key in snapshot.values else 0 for key in keys}
        if len({revision > 0 for revision in shown.values()}) > 1:
            self.complain(f"{snapshot.replica} showed a transaction by half: {shown}")
        for key, revision in shown.items():
            self._judge(snapshot.replica, key, revision, frontier)
        return snapshot.replica

    def _judge(self, replica: str, key: str, shown: int, frontier: tuple[int, int]) -> None:
        why = (
            f"what was written with it or after it, up to {frontier[0]:02X}:{max(0, frontier[1]):04X}, was shown before"
        )
        self.judge(replica, key, shown, revision_at(key, frontier), why)
        if shown:
            self.frontier = max(self.frontier, place(key, shown))


class LagProbe(Worker):
    """Writes ``PROBE_KEY`` at the first replica every ``PROBE_PAUSE_S``, while watchers wait for it at the others."""

    def __init__(self, replicas: Sequence[str]) -> None:
        super().__init__("lag probe")
        self.sent_s: list[float] = []  # by the probe's number; monotonic seconds at which its PUT was sent
        self.session = Session(replicas[:1], retry_writes=True)
        self.watchers = [Watcher(replica, self.sent_s) for replica in replicas[1:]]

    def work(self) -> None:
        """Write on until asked to stop."""
        for watcher in self.watchers:
            watcher.start()
        while not self.stopping.wait(PROBE_PAUSE_S):
            self.sent_s.append(time.monotonic())
            self.session.put(PROBE_KEY, len(self.sent_s) - 1)
        for watcher in self.watchers:
            watcher.stop()

    @property
    def lags_s(self) -> list[float]:
        """From the sending of a PUT here to its answer from there: two requests and the way between the replicas."""
        return [lag for watcher in self.watchers for lag in list(watcher.lags_s)]


class Watcher(Worker):
    """Waits for the probe at one replica."""

    def __init__(self, replica: str, sent_s: list[float]) -> None:
        super().__init__(f"watcher of {replica}")
        self.session = Session([replica], timeout_s=1)
        self.sent_s = sent_s
        self.lags_s: list[float] = []

    def work(self) -> None:
        """Watch on until asked to stop; a replica that is down or catching up is asked again."""
        etag: str | None = None
        while not self.stopping.is_set():
            try:
                if etag is None:
                    # Only what arrives from here on counts: this may have been written while the replica was away.
                    etag = self.session.get(PROBE_KEY).etag
                    self.stopping.wait(0.0 if etag else 0.05)
                    continue
                read = self.session.watch(PROBE_KEY, etag, wait_s=1)
            except ClientError:
                etag = None
                self.stopping.wait(0.05)
                continue
            if read is not None and read.found:
                self.lags_s.append(time.monotonic() - self.sent_s[read.value])
                etag = read.etag


def _revision_of(read: Read) -> int:
    return int(read.value["revision"]) if read.found else 0


def _revision(number: int) -> str:
    return f"revision {number}" if number else "nothing"

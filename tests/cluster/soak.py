"""Everything at once: hopping clients, and random faults of the network, the machines and the clocks, then a verdict.

    python -m tests.cluster.soak --minutes 10          # make soak MINUTES=10
    python -m tests.cluster.soak --judge DIRECTORY     # judge the records of a run again

A run is made of *rounds*. In each, clients work on keys of the round while faults come and go, several at the same
time; then everything heals, and within ``STEP_LIMIT_S`` all replicas must be equal and every client's session must be
served everywhere. The recorded history, and the final state as a read by somebody who follows everybody, go to
``store/history.py``. Replicas live on from round to round, with what the faults made of their clocks and logs.

What may be lost. An update that only a killed replica had is gone (SPEC P5), and clients are told (2.8). So the judge
has to know which were: those that no replica's clock covers in the end, and those that a client was told are lost (one
of a replica that was cut off and removed may come back when that is put back). Lest that excuses a bug, each of them
must be one that could have been lost:

* its replica was killed less than ``SPREAD_S`` after the answer, or later and not everybody could be reached until
  then; or it was asked to end, and one that it may have handed everything over to was killed before everybody could
  be reached;
* nobody read it from a replica that has lived ever since;
* one that a client was told of: its replica was killed or removed before.

Success. Of the requests sent to a replica that was running, ready and in the view from before the request until after
it, how many were answered without an error. A 503 that names what of the client's causal past is missing is the
contract's own answer where the rest of the cluster cannot be reached, and is counted apart.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import requests

from store import history
from store.client import ClientError, Delete, NotReached, Put, Rejected, Session, Unavailable, Uncertain
from tests.cluster.netns import NetnsCluster, What
from tests.cluster.support import change_view, get, in_step, readiness, status

SETTINGS = {"KV_DOWN_AFTER": "2", "KV_SYNC_INTERVAL": "0.4"}
DOWN_AFTER_S = 2.0
DEFER_TIMEOUT_S = 1.0
STEP_LIMIT_S = 10.0
"""After the last heal all replicas are equal, and all sessions served, within so many seconds (issue 4)."""

SPREAD_S = 1.0
"""An update that was answered so long before its replica was killed has reached every replica that could be reached."""

OPERATIONS_PER_S = 20.0
"""Of one client at most: faults are what is tested here, not speed."""

CLIENTS = 20
KEYS = 30
WINDOW_S = 5
"""Over how many seconds the lowest throughput is told."""

STUCK_AFTER = 1
"""So many calls refused for its past in a row, and a client leaves its session aside until the heal."""


# -- what happened -----------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Counts of one run, and when which replica was in trouble. Threads share it."""

    faults: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    told_lost: int = 0
    # (replica id, first, last counter, when a client was told that these are lost).
    told: list[tuple[str, int, int, float]] = field(default_factory=list)
    per_second: Counter[int] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    # Replica -> [from, until] in monotonic seconds, while it was down, paused, removed, or not ready yet.
    troubles: dict[int, list[list[float]]] = field(default_factory=dict)
    # Replica -> when it was killed; asked to end, and did so after handing everything over; removed from the view.
    kills: dict[int, list[float]] = field(default_factory=dict)
    drains: dict[int, list[float]] = field(default_factory=dict)
    removals: dict[int, list[float]] = field(default_factory=dict)
    # Moments in which not all links were whole.
    broken_links: list[list[float]] = field(default_factory=list)

    def trouble_begins(self, i: int) -> None:
        with self.lock:
            spans = self.troubles.setdefault(i, [])
            if not spans or spans[-1][1] < float("inf"):
                spans.append([time.monotonic(), float("inf")])

    def trouble_ends(self, i: int) -> None:
        with self.lock:
            self.troubles[i][-1][1] = time.monotonic()

    def was_fine(self, i: int, since_s: float, until_s: float) -> bool:
        with self.lock:
            return not any(start <= until_s and since_s <= end for start, end in self.troubles.get(i, ()))

    def somebody_unreachable(self, since_s: float, until_s: float, besides: int) -> bool:
        """Whether between these moments links were broken, or a replica other than ``besides`` was in trouble."""
        spans = [*self.broken_links, *(span for i, its in self.troubles.items() if i != besides for span in its)]
        return any(start <= until_s and since_s <= end for start, end in spans)


class Recorder:
    """Keeps the operations of a round in memory, in the order of their ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.operations: list[dict[str, Any]] = []
        self.ended_s: dict[str, float] = {}
        """Operation -> when it ended, monotonic seconds."""

    def __call__(self, operation: Mapping[str, Any]) -> None:
        with self._lock:
            self.operations.append(dict(operation))
            self.ended_s[operation["id"]] = time.monotonic()


class CountingSession(Session):
    """A session whose every single request is counted, and whose transactions are recorded with their update's id."""

    tally: Tally
    note: Callable[[str], None]
    indexes: Mapping[str, int]
    last_certain = ""
    _last_metadata: Mapping[str, int] = {}

    def _attempt(self, replica: str, request: Any, timeout_s: float) -> Any:
        began_s = time.monotonic()
        try:
            answered = super()._attempt(replica, request, timeout_s)
        except Exception as exc:
            if timeout_s < DEFER_TIMEOUT_S + 0.2 and time.monotonic() - began_s >= timeout_s:
                # The call's own time was over while the replica might still wait for the client's causal past.
                self._count(replica, began_s, "", "given up")
            else:
                self._count(replica, began_s, f"broken: {exc}", "error")
            raise
        response, body = answered
        code = response.status_code
        if code < 400 or code in (404, 412):
            self._count(replica, began_s, "", "answered")
        elif code == 503 and "missing" in body:
            self._count(replica, began_s, "", "deferred too long")
        else:
            self._count(replica, began_s, f"{code} {body.get('error', '')}", "error")
        return answered

    def _count(self, replica: str, began_s: float, why: str, outcome: str) -> None:
        i = self.indexes[replica]
        fine = self.tally.was_fine(i, began_s, time.monotonic())
        with self.tally.lock:
            self.tally.requests[outcome if fine else f"{outcome}, replica in trouble"] += 1
            if why and fine:
                self.tally.errors[f"replica {i}: {why[:160]}"] += 1
        if why and fine:
            self.note(f"error at serving replica {i} after {time.monotonic() - began_s:.2f} s: {why[:300]}")

    def _take_in(self, base: Any, reply: Any) -> None:
        super()._take_in(base, reply)
        self._last_metadata = reply.metadata or {}
        if reply.lost:
            with self.tally.lock:
                self.tally.told_lost += 1
                for replica, span in reply.lost.items():
                    self.tally.told.append((replica, *span, time.monotonic()))

    def _tell(self, kind: str, operation: Mapping[str, Any]) -> None:
        told = dict(operation)
        certain = told.get("status", "ok") == "ok"
        if certain and told.get("writes") and "update" not in told:
            # The answer to a transaction has no ETag. Its metadata names its update: the last one of its replica.
            address = told["replica"].partition("://")[2]
            own = max((id_ for id_ in self._last_metadata if id_.rpartition("@")[0] == address), default="")
            told["update"] = f"{own}:{self._last_metadata[own]}" if own else None
        super()._tell(kind, told)
        if certain:
            self.last_certain = self.last_operation
            with self.tally.lock:
                self.tally.acknowledged += 1
                self.tally.per_second[int(time.monotonic())] += 1


# -- clients -----------------------------------------------------------------------------------------------------------


class Client:
    """One thread's worth of work: reads and writes at replicas chosen at random, in one session after another."""

    def __init__(self, run: Run, number: int, rng: random.Random) -> None:
        self._run = run
        self._number = number
        self._rng = rng
        self._values = itertools.count()
        self._sessions = itertools.count()
        self.session = self._new_session()
        self.aside: list[CountingSession] = []
        """Sessions whose causal past could not be reached: they must be served after the heal."""

    def _new_session(self) -> CountingSession:
        run = self._run
        name = f"r{run.round}c{self._number}.{next(self._sessions)}"
        session = CountingSession(
            run.cluster.addresses, timeout_s=1.8, attempt_timeout_s=1.3, recorder=run.recorder, name=name
        )
        session.note = run.note
        session.tally, session.indexes = run.tally, {url: i for i, url in enumerate(session.replicas)}
        return session

    def work(self) -> None:
        """Go on until the round's load is to end."""
        failures = 0
        while not self._run.quiet.is_set():
            began_s = time.monotonic()
            try:
                self.step()
                failures = 0
            except Rejected as exc:
                self._run.problem(f"a request was rejected: {exc}")
            except Uncertain:
                pass
            except Unavailable as exc:
                failures += isinstance(exc, NotReached)
                if failures >= STUCK_AFTER:
                    self.aside.append(self.session)
                    self.session = self._new_session()
                    failures = 0
            time.sleep(max(0.0, self._rng.uniform(0.5, 1.5) / OPERATIONS_PER_S - (time.monotonic() - began_s)))

    def step(self) -> None:
        """One operation; before it sometimes a hop, or metadata handed over by another client."""
        rng, session = self._rng, self.session
        if rng.random() < 0.1:
            session.stick_to(self._likely_replica())
        if rng.random() < 0.03:
            other = rng.choice(self._run.clients).session
            # In this order: the metadata is then at least as new as the operation that stands for it.
            last = other.last_certain
            if last:
                session.follow(other.metadata, after=last)
        key, chance = self._key(), rng.random()
        wait_s = 0.2 if rng.random() < 0.9 else None
        if chance < 0.35:
            session.put(key, self._value(), wait_s=wait_s)
        elif chance < 0.42:
            session.delete(key, wait_s=wait_s)
        elif chance < 0.72:
            session.get(key, siblings=rng.random() < 0.3, wait_s=wait_s)
        elif chance < 0.92:
            reads, keys = {self._key() for _ in range(3)}, {self._key() for _ in range(rng.randrange(4))}
            # A put first: a transaction that only deletes what is not there is no update, and has no id.
            writes: list[Put | Delete] = [Put(each, self._value()) for each in sorted(keys)]
            if len(writes) > 1 and rng.random() < 0.5:
                writes[-1] = Delete(writes[-1].key)
            session.transaction(sorted(reads), writes, wait_s=wait_s)
        else:
            session.list(prefix=f"{self._run.prefix}{rng.randrange(3)}", values=True, wait_s=wait_s)

    def _likely_replica(self) -> str:
        """A replica at random; one that is in trouble less often, as a load balancer would have it."""
        order = self._rng.sample(range(len(self.session.replicas)), len(self.session.replicas))
        now_s = time.monotonic()
        fine = [i for i in order if self._run.tally.was_fine(i, now_s, now_s)]
        chosen = fine[0] if fine and self._rng.random() < 0.9 else order[0]
        return self.session.replicas[chosen]

    def _key(self) -> str:
        return f"{self._run.prefix}{self._rng.randrange(KEYS):02}"

    def _value(self) -> str:
        return f"{self.session.name}:{next(self._values)}"


# -- faults ------------------------------------------------------------------------------------------------------------


class Nemesis:
    """Breaks and mends, several things at a time. One thread; ``heal`` when it has ended."""

    def __init__(self, run: Run, rng: random.Random) -> None:
        self._run = run
        self._cluster = run.cluster
        self._tally = run.tally
        self._rng = rng
        self._count = len(run.cluster.addresses)
        # (when, name, what to do then)
        self._due: list[tuple[float, str, Callable[[], None]]] = []
        self._down: set[int] = set()
        """In trouble of this nemesis's making, until they are ready again; half of all are always left alone."""
        self._held: set[int] = set()
        """Those of them that are still to be started, resumed, or put back."""
        self._cuts: list[Mapping[tuple[int, int], What]] = []
        self._losses = 0

    def work(self) -> None:
        """Start a fault now and then, end each in its time, until the round's load is to end."""
        next_s = time.monotonic()
        while not self._run.quiet.is_set():
            now_s = time.monotonic()
            for item in [item for item in self._due if item[0] <= now_s]:
                self._due.remove(item)
                self._do(item[1], item[2])
            if now_s >= next_s:
                self._begin_one()
                next_s = now_s + self._rng.uniform(0.2, 1.6)
            self._watch_recovery()
            time.sleep(0.05)

    def heal(self) -> None:
        """End everything, in the order of its time. All replicas run afterwards."""
        for item in sorted(self._due, key=lambda item: item[0]):
            self._do(item[1], item[2])
        self._due.clear()
        self._cuts.clear()
        self._losses = 0
        self._cluster.heal()
        self._links_change()

    def _do(self, name: str, action: Callable[[], None]) -> None:
        self._run.note(name)
        action()

    def _later(self, after_s: float, name: str, action: Callable[[], None]) -> None:
        self._due.append((time.monotonic() + after_s, name, action))

    def _begin_one(self) -> None:
        links = [self._partition, self._one_way, self._requests_only, self._ring, self._loss]
        machines = [self._kill, self._pause, self._terminate, self._remove]
        self._rng.choice([*links, *machines, *machines, self._clock])()

    # Links.

    def _cut(self, kind: str, cuts: Mapping[tuple[int, int], What], text: str) -> None:
        if len(self._cuts) >= 2:
            return
        self._tally.faults[kind] += 1
        self._run.note(f"{kind} {text}")
        self._cuts.append(cuts)
        self._apply_cuts()

        def end() -> None:
            self._cuts.remove(cuts)
            self._apply_cuts()

        self._later(self._rng.uniform(0.5, 3 * DOWN_AFTER_S), f"end of {kind} {text}", end)

    def _apply_cuts(self) -> None:
        joined: dict[tuple[int, int], What] = {}
        for cuts in self._cuts:
            for pair, what in cuts.items():
                joined[pair] = "packets" if "packets" in (what, joined.get(pair)) else what
        self._cluster.network.set_cuts(joined)
        self._links_change()

    def _links_change(self) -> None:
        spans = self._tally.broken_links
        with self._tally.lock:
            is_open = bool(spans) and spans[-1][1] == float("inf")
            if (self._cuts or self._losses) and not is_open:
                spans.append([time.monotonic(), float("inf")])
            elif not self._cuts and not self._losses and is_open:
                # Connections that had packets dropped take a moment to be given up for new ones.
                spans[-1][1] = time.monotonic() + DOWN_AFTER_S

    def _partition(self) -> None:
        groups = self._cluster.random_groups(self._rng)
        self._cut("partition", self._cluster.between(*groups), str(groups))

    def _one_way(self) -> None:
        a, b = self._rng.sample(range(self._count), 2)
        self._cut("one-way cut", {(a, b): "packets"}, f"{a} to {b}")

    def _requests_only(self) -> None:
        a = self._rng.randrange(self._count)
        others = [b for b in range(self._count) if b != a]
        self._cut("requests cut", {(a, b): "requests" for b in others}, f"of {a}")

    def _ring(self) -> None:
        self._cut("ring", self._cluster.all_but_ring(), "")

    def _loss(self) -> None:
        if self._losses:
            return
        share = self._rng.uniform(0.1, 0.4)
        self._tally.faults["loss"] += 1
        self._losses += 1
        self._run.note(f"loss {share:.0%}")
        self._cluster.lose(share)
        self._links_change()

        def end() -> None:
            self._losses -= 1
            self._cluster.lose(0)
            self._links_change()

        self._later(self._rng.uniform(1, 3 * DOWN_AFTER_S), "end of loss", end)

    # Machines.

    def _victim(self) -> int | None:
        """Somebody who is fine; None where only one would be left."""
        fine = [i for i in range(self._count) if i not in self._down]
        return self._rng.choice(fine) if len(fine) > max(1, self._count // 2) else None

    def _take_down(self, kind: str) -> int | None:
        i = self._victim()
        if i is not None:
            self._tally.trouble_begins(i)
            self._tally.faults[kind] += 1
            self._run.note(f"{kind} {i}")
            self._down.add(i)
            self._held.add(i)
        return i

    def _start(self, i: int) -> None:
        self._cluster.start_one(i)
        self._held.discard(i)

    def _resume(self, i: int) -> None:
        self._cluster.resume(i)
        self._held.discard(i)

    def _kill(self) -> None:
        if (i := self._take_down("kill")) is None:
            return
        self._tally.kills.setdefault(i, []).append(time.monotonic())
        self._cluster.kill(i)
        self._later(self._rng.choice([0.0, 0.3, 1.5 * DOWN_AFTER_S]), f"start {i}", lambda: self._start(i))

    def _terminate(self) -> None:
        if (i := self._take_down("terminate")) is None:
            return
        asked_s = time.monotonic()

        def end() -> None:
            if self._cluster.terminate(i, 12):
                # It says that it could hand over to nobody: then it is as good as killed.
                self._tally.kills.setdefault(i, []).append(asked_s)
                self._tally.faults["terminate, nobody reached"] += 1
            else:
                self._tally.drains.setdefault(i, []).append(asked_s)
            self._start(i)

        # In a thread of its own: draining takes seconds where nobody can be reached.
        thread = threading.Thread(target=end, name=f"terminate {i}")
        thread.start()
        self._later(11, f"terminated {i}", thread.join)

    def _pause(self) -> None:
        if (i := self._take_down("pause")) is None:
            return
        self._cluster.pause(i)
        span_s = self._rng.choice([0.3, 0.8 * DOWN_AFTER_S, 1.5 * DOWN_AFTER_S])
        self._later(span_s, f"resume {i}", lambda: self._resume(i))

    def _remove(self) -> None:
        if (i := self._take_down("removal")) is None:
            return
        self._tally.removals.setdefault(i, []).append(time.monotonic())
        self._change_view("DELETE", i)

        def end() -> None:
            self._change_view("PUT", i)
            self._held.discard(i)

        self._later(self._rng.uniform(0.3, 2 * DOWN_AFTER_S), f"put {i} back", end)

    def _change_view(self, method: str, member: int) -> None:
        """At whichever running replica takes it; asked of all, since partitions may hide it from some."""
        for i in range(self._count):
            if self._cluster.is_running(i) and i not in self._cluster.paused:
                with contextlib.suppress(requests.RequestException):
                    change_view(self._cluster, i, method, member)
                    if method == "DELETE":
                        return

    def _clock(self) -> None:
        i = self._rng.randrange(self._count)
        offset_s = self._rng.choice([-600.0, -30.0, -1.0, 0.0, 1.0, 30.0, 600.0])
        self._tally.faults["clock step"] += 1
        self._run.note(f"clock of {i} {offset_s:+g} s")
        self._cluster.skew(i, offset_s)

    def _watch_recovery(self) -> None:
        """End a trouble when its replica is ready again."""
        for i in self._down - self._held:
            if self._cluster.is_running(i) and i not in self._cluster.paused and is_serving(self._cluster, i):
                self._tally.trouble_ends(i)
                self._down.discard(i)


def is_serving(cluster: NetnsCluster, i: int) -> bool:
    """Whether replica ``i`` says that it is ready."""
    try:
        return readiness(cluster, i)[0] == 200
    except requests.RequestException:
        return False


# -- one run -----------------------------------------------------------------------------------------------------------


class Run:
    """A cluster under faults for a number of rounds; ``problems`` is what was wrong."""

    def __init__(self, cluster: NetnsCluster, directory: Path, *, clients: int, seed: int):
        self.cluster = cluster
        self.directory = directory
        self.tally = Tally()
        self.problems: list[str] = []
        self.quiet = threading.Event()
        self.recorder = Recorder()
        self.round = 0
        self.prefix = ""
        self.clients: list[Client] = []
        self.judged: list[history.Verdict] = []
        self.slowest_step_s = 0.0
        self.load_s = 0.0
        self.loads: list[tuple[float, float]] = []
        self.lost_updates = 0
        self._client_count = clients
        self._rng = random.Random(seed)
        self._began_s = time.monotonic()

    def problem(self, text: str) -> None:
        """Note something that is wrong."""
        if len(self.problems) < 50:
            self.problems.append(f"round {self.round}: {text}")
        self.note(f"PROBLEM {text}")

    def note(self, text: str) -> None:
        """Write a line to the log of faults."""
        with (self.directory / "faults.log").open("a") as log:
            log.write(f"{time.time():.3f} {time.monotonic() - self._began_s:8.2f} {text}\n")

    def one_round(self, seconds: float) -> None:
        """Load and faults for ``seconds``, then heal, wait, and judge."""
        self.round += 1
        self.prefix = f"r{self.round}/"
        self.recorder = Recorder()
        self.quiet.clear()
        self.clients = [Client(self, n, random.Random(self._rng.random())) for n in range(self._client_count)]
        nemesis = Nemesis(self, random.Random(self._rng.random()))
        threads = [threading.Thread(target=self._guarded, args=(client.work,)) for client in self.clients]
        threads.append(threading.Thread(target=self._guarded, args=(nemesis.work,)))
        began_s = time.monotonic()
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self.quiet.set()
        for thread in threads:
            thread.join(30)
        self.load_s += time.monotonic() - began_s
        self.loads.append((began_s, began_s + seconds))
        nemesis.heal()
        self.note("healed")
        self._quiesce()
        for i in self.tally.troubles:
            self.tally.trouble_ends(i)
        self._judge()
        for client in self.clients:
            for session in [client.session, *client.aside]:
                session.close()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as exc:  # a bug of the soak itself must not pass for a good run
            self.problem(f"{type(exc).__name__} in {work}: {exc}")
            raise

    def _quiesce(self) -> None:
        """Wait until all replicas are equal and serve every session."""
        healed_s = time.monotonic()
        deadline = healed_s + STEP_LIMIT_S
        dead = [i for i in range(len(self.cluster.addresses)) if not self.cluster.is_running(i)]
        for i in dead:
            code = self.cluster.exit_code(i)
            self.problem(f"replica {i} has ended by itself, exit code {code}:\n{self.cluster.log(i)[-2000:]}")
            self.cluster.start_one(i)
        while not self._in_step():
            if time.monotonic() > deadline:
                self.problem(f"not in step {STEP_LIMIT_S:g} s after the heal: {self._differences()}")
                break
            time.sleep(0.05)
        self.slowest_step_s = max(self.slowest_step_s, time.monotonic() - healed_s)
        for client in self.clients:
            for session in [client.session, *client.aside]:
                self._must_be_served(session)

    def _must_be_served(self, session: CountingSession) -> None:
        for i, url in enumerate(session.replicas):
            for attempt in itertools.count():
                try:
                    with session.fork() as only_here:
                        only_here.replicas = (url,)
                        only_here.stick_to(url)
                        only_here.get(f"{self.prefix}00")
                    break
                except ClientError as exc:
                    if attempt >= STEP_LIMIT_S / 3:
                        self.problem(f"replica {i} does not serve session {session.name} after the heal: {exc}")
                        return

    def _in_step(self) -> bool:
        try:
            return in_step(self.cluster)
        except requests.RequestException:
            return False

    def _differences(self) -> str:
        parts = []
        for i in range(len(self.cluster.addresses)):
            try:
                state = status(self.cluster, i)
                (self.directory / f"status-{i}.json").write_text(json.dumps(state, indent=1))
                lacks = {member["address"]: member["state"] for member in state["view"]}
                parts.append(
                    f"{i}: {state['state']}, sum of clock {sum(state['clock'].values())}, "
                    f"pending {state['pending_count']}, view {lacks}"
                )
            except requests.RequestException as exc:
                parts.append(f"{i}: {exc}")
        return "; ".join(parts)

    # -- judging ---------------------------------------------------------------------------------------

    def _judge(self) -> None:
        states = [self._state(i) for i in range(len(self.cluster.addresses))]
        clock = status(self.cluster, 0)["clock"]
        operations = [msgspec.convert(each, history.Operation) for each in self.recorder.operations]
        operations = self._mark_lost(operations, clock)
        path = self.directory / f"round-{self.round}"
        path.mkdir()
        (path / "history.jsonl").write_bytes(history.dump(operations))
        (path / "final.json").write_text(json.dumps(states))
        found = judge_records(operations, states)
        self.judged += found
        for verdict in found:
            if not verdict.ok:
                self.problem(str(verdict))

    def _state(self, i: int) -> dict[str, list[str]]:
        """Return key -> values, the winner first, of this round's keys at replica ``i``."""
        state: dict[str, list[str]] = {}
        for n in range(KEYS):
            key = f"{self.prefix}{n:02}"
            body = get(self.cluster, i, key, query="?siblings=true").body
            if "value" in body:
                state[key] = [each["value"] for each in body["siblings"]]
        return state

    def _mark_lost(self, operations: Sequence[history.Operation], clock: Mapping[str, int]) -> list[history.Operation]:
        """Return the operations, those marked "lost" whose update no replica has; a problem where none could be."""
        readers: dict[str, list[tuple[int, float]]] = {}  # update -> (replica that showed it, when)
        for operation in operations:
            if operation.replica is not None:
                i = self._index(operation.replica)
                for update in operation.versions:
                    if update:
                        readers.setdefault(update, []).append((i, self.recorder.ended_s[operation.id]))
        marked = []
        for operation in operations:
            if operation.status == "ok" and operation.writes and operation.update:
                replica, _, counter = operation.update.rpartition(":")
                is_gone = int(counter) > clock.get(replica, 0)
                if is_gone:
                    self.lost_updates += 1
                    self._must_be_losable(operation, readers.get(operation.update, ()))
                if is_gone or self._was_told(replica, int(counter), operation):
                    operation = msgspec.structs.replace(operation, status="lost")
            marked.append(operation)
        return marked

    def _was_told(self, replica: str, counter: int, operation: history.Operation) -> bool:
        """Whether a client was told that this update is lost; a problem where its replica was fine."""
        told_s = [at_s for told, first, last, at_s in self.tally.told if told == replica and first <= counter <= last]
        i = self._index(operation.replica or "")
        ends = [*self.tally.kills.get(i, ()), *self.tally.removals.get(i, ())]
        if told_s and not any(end_s <= told_s[0] for end_s in ends):
            self.problem(f"told as lost: {operation.update}, but replica {i} was neither killed nor removed before")
        return bool(told_s)

    def _must_be_losable(self, operation: history.Operation, readers: Iterable[tuple[int, float]]) -> None:
        tally, i = self.tally, self._index(operation.replica or "")
        answered_s = self.recorder.ended_s[operation.id]
        what = f"lost: {operation.update} ({operation.id})"
        for holder, at_s in [(i, answered_s), *readers]:
            if not _after(at_s, tally.kills.get(holder), tally.drains.get(holder)):
                self.problem(f"{what}, but replica {holder} had it, and has lived ever since")
                return
        # The last one that had it was killed; by then it would have been everywhere, had everybody been reachable.
        killed = _after(answered_s, tally.kills.get(i))
        drained = _after(answered_s, tally.drains.get(i))
        if drained and (not killed or drained[0] < killed[0]):
            killed = _after(answered_s, *(kills for j, kills in tally.kills.items() if j != i))
        if not any(
            killed_s - answered_s < SPREAD_S or tally.somebody_unreachable(answered_s, killed_s, besides=i)
            for killed_s in killed
        ):
            self.problem(f"{what}, but it could have spread to everybody; kills after it: {len(killed)}")

    def _index(self, url: str) -> int:
        return [self.cluster.url(i) for i in range(len(self.cluster.addresses))].index(url)

    # -- telling ---------------------------------------------------------------------------------------

    def _windows(self) -> list[int]:
        """Return how many operations were acknowledged in each ``WINDOW_S`` seconds under load, sliding."""
        ends = [(began_s, ended_s - WINDOW_S) for began_s, ended_s in self.loads]
        return [
            sum(self.tally.per_second[at_s + n] for n in range(WINDOW_S))
            for first, last in ends
            for at_s in range(int(first) + 1, int(last))
        ]

    def report(self) -> str:
        """Return what happened, for people."""
        tally = self.tally
        counts = tally.requests
        fine = sum(counts[name] for name in ("answered", "deferred too long", "given up", "error"))
        without_refusals = counts["answered"] + counts["error"]
        mean, worst = tally.acknowledged / max(1.0, self.load_s), min(self._windows(), default=0) / WINDOW_S
        elsewhere = ((name.split(",")[0], n) for name, n in sorted(counts.items()) if "trouble" in name)
        judged = [sum(getattr(each, what) for each in self.judged) for what in ("judged", "reads", "conflicts")]
        lines = [
            f"rounds                {self.round}, {self.load_s:.0f} s under load",
            f"faults                {_listed(tally.faults.items())}",
            f"acknowledged          {tally.acknowledged} operations",
            f"  a second            {mean:.0f}; {worst:.0f} in the worst {WINDOW_S} s",
            f"at serving replicas   {fine} requests, {counts['answered']} of them answered",
            f"  refused             {counts['deferred too long']}, as their past could not be reached",
            f"  given up            {counts['given up']}, by the client, while the replica could still wait for that",
            f"  errors              {counts['error']}",
            f"success               {counts['answered'] / max(1, without_refusals):.2%}",
            f"  refusals counted    {counts['answered'] / max(1, fine):.2%}",
            f"at replicas in trouble {_listed(elsewhere)}",
            f"lost with a crash     {self.lost_updates} updates; told to clients {tally.told_lost} times",
            f"in step after a heal  {self.slowest_step_s:.1f} s at most",
            f"judged                {judged[0]} operations, {judged[1]} reads, {judged[2]} conflicts",
        ]
        lines += [f"error                 {n} x {why}" for why, n in tally.errors.most_common(8)]
        return "\n".join(lines)


def _after(at_s: float, *times: Sequence[float] | None) -> list[float]:
    """Return those of ``times`` that are not well before ``at_s``, the first one first."""
    return sorted(each for some in times if some for each in some if each >= at_s - SPREAD_S)


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts)) or "none"


def judge_records(
    operations: Sequence[history.Operation], states: Sequence[Mapping[str, Sequence[str]]]
) -> list[history.Verdict]:
    """Judge one round: what clients saw, what became of their writes, and whether replicas ended equal."""
    by_name = {f"replica {i}": dict(state) for i, state in enumerate(states)}
    return [
        history.judge(operations),
        history.check_durability(operations, states[0]),
        history.check_convergence(by_name),
    ]


def judge_again(directory: Path, say: Callable[[str], None]) -> int:
    """Judge the records of an earlier run; return the exit code."""
    code = 0
    for path in sorted(directory.glob("round-*")):
        operations = history.load((path / "history.jsonl").read_bytes())
        for verdict in judge_records(operations, json.loads((path / "final.json").read_text())):
            say(f"{path.name}: {verdict}")
            code = code if verdict.ok else 1
    return code


def soak(
    seconds: float,
    *,
    replicas: int = 5,
    clients: int = CLIENTS,
    seed: int | None = None,
    round_s: float = 60.0,
    directory: Path | None = None,
    say: Callable[[str], None] = print,
) -> Run:
    """Run for about ``seconds``; records and logs go to ``directory``."""
    directory = directory or Path(tempfile.mkdtemp(prefix="causeway-soak-"))
    directory.mkdir(parents=True, exist_ok=True)
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    say(f"{replicas} replicas, {clients} clients, seed {seed} (of the faults; timing is the machine's), in {directory}")
    end_s = time.monotonic() + seconds
    with NetnsCluster(replicas, SETTINGS, directory) as cluster:
        run = Run(cluster, directory, clients=clients, seed=seed)
        while (left_s := end_s - time.monotonic()) > 5 or run.round == 0:
            run.one_round(min(round_s, max(5.0, left_s)))
            verdict = "ok" if not run.problems else f"{len(run.problems)} problems"
            say(f"round {run.round}: {run.tally.acknowledged} operations acknowledged so far, {verdict}")
            if run.problems:
                break
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to run (10)")
    parser.add_argument("--replicas", type=int, default=5)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seed", type=int, help="of the choice of faults and operations")
    parser.add_argument("--directory", type=Path, help="where records and logs go (default: a temporary one)")
    parser.add_argument("--judge", type=Path, metavar="DIRECTORY", help="judge the records of an earlier run again")
    options = parser.parse_args(arguments)

    def say(text: str) -> None:
        print(text, flush=True)  # noqa: T201  # a command

    if options.judge:
        return judge_again(options.judge, say)
    run = soak(
        options.minutes * 60,
        replicas=options.replicas,
        clients=options.clients,
        seed=options.seed,
        directory=options.directory,
        say=say,
    )
    say(run.report())
    if not run.problems:
        say("verdict               no violation")
        return 0
    say(f"verdict               {len(run.problems)} problems")
    for problem in run.problems:
        say(f"- {problem}")
    say(f"Records and logs are kept in {run.directory}. To judge them again:")
    say(f"  python -m tests.cluster.soak --judge {run.directory}")
    say(f"  python manage.py check_history {run.directory}/round-{run.round}/history.jsonl")
    return 1


if __name__ == "__main__":
    sys.exit(main())

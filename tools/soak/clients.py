"""The clients of a soak. They read and write at random replicas, and count each request and each call."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from causeway_client import (
    Attempt,
    ClientError,
    Delete,
    DependenciesMissing,
    Put,
    Rejected,
    Session,
    Unavailable,
    Uncertain,
)
from tools.soak.counts import Counts, Recorder
from tools.soak.reachability import JUST_HEALED, NO_EXCUSE, RELAYED, Reachability
from tools.soak.timeline import Timeline

CALL_TIMEOUT_S = 5.0
"""Time limit of one call, in which it may try several replicas. (The client's default is 10 s.)"""

ATTEMPT_TIMEOUT_S = 1.5
"""Time limit of one request. The client requires that it is longer than ``KV_DEFER_TIMEOUT``."""

OPERATIONS_PER_S = 6.0
"""Highest rate of one client. The soak tests faults, not speed. See ``run.CLIENTS``."""

WAITS_AFTER_S = 0.3
"""A call that takes longer counts as waiting: for a silent replica, or for missing dependencies."""

KEYS = 30

ANSWERED = "answered"
GIVEN_UP = "given up"
REJECTED = "rejected: "
ERROR = "error"
BAD = "error at a serving replica"
EXCUSED, NOT_EXCUSED = ", excused", ", not excused"

GOOD = frozenset({200, 201, 202, 304, 404, 412})


@dataclass(frozen=True)
class RoundContext:
    """What all clients of a round share.

    ``note`` writes a line to the log, and ``problem`` records a violation. ``is_over``: the load of the round ends.
    """

    replicas: Sequence[str]
    prefix: str
    timeline: Timeline
    counts: Counts
    reachability: Reachability
    recorder: Recorder
    note: Callable[[str], None]
    problem: Callable[[str], None]
    is_over: Callable[[], bool]
    clients: list[Client] = field(default_factory=list)


def uncounted_session(
    context: RoundContext, replicas: Sequence[str], name: str, recorder: Callable[[Mapping[str, Any]], None]
) -> Session:
    """Return a session whose requests do not count, whichever replica answers. Reports of losses do."""
    return Session(
        replicas,
        timeout_s=CALL_TIMEOUT_S,
        attempt_timeout_s=ATTEMPT_TIMEOUT_S,
        recorder=recorder,
        on_attempt=lambda attempt: context.counts.note_losses(attempt.body, attempt.ended_s),
        name=name,
    )


class CountingSession(Session):
    """A session that counts each of its requests, and records transactions with the id of their update.

    ``record``: what records its operations; by default the recorder of the round.
    """

    def __init__(
        self, context: RoundContext, name: str, record: Callable[[Mapping[str, Any]], None] | None = None
    ) -> None:
        super().__init__(
            context.replicas,
            timeout_s=CALL_TIMEOUT_S,
            attempt_timeout_s=ATTEMPT_TIMEOUT_S,
            recorder=self._record_call,
            on_attempt=self._count_attempt,
            name=name,
        )
        self._context = context
        self._record_operation = record or context.recorder
        self._counts = context.counts
        self._indexes = {url: i for i, url in enumerate(self.replicas)}
        self._last_metadata: Mapping[str, int] = {}
        """The metadata of the last response."""
        self.last_successful_operation = ""
        self.attempt_outcomes: list[str] = []
        """Outcomes of the requests of the current call. The caller clears it before the call."""

    def fork_to(self, url: str) -> Session:
        """Return a session that continues this one at one replica only. Its requests are recorded but not counted."""
        child = Session(
            [url],
            metadata=self.metadata,
            timeout_s=CALL_TIMEOUT_S,
            attempt_timeout_s=ATTEMPT_TIMEOUT_S,
            recorder=self._context.recorder,
        )
        child.follow({}, after=self.last_operation)
        return child

    def _count_attempt(self, attempt: Attempt) -> None:
        """Count a request, and record what its response says about the clock of the replica and about losses."""
        i, body = self._indexes[attempt.replica], attempt.body
        if attempt.status is None:
            is_cut_short = attempt.timeout_s < ATTEMPT_TIMEOUT_S + attempt.wait_s
            if is_cut_short and attempt.ended_s - attempt.began_s >= attempt.timeout_s:
                self._count(i, attempt, GIVEN_UP)
            else:
                self._count(i, attempt, ERROR, f"broken: {attempt.error}")
        elif attempt.status in GOOD:
            self._last_metadata = body.get("causal-metadata") or {}
            self._context.reachability.record_clock(i, attempt.began_s, self._last_metadata)
            self._counts.note_losses(body, attempt.ended_s)
            with self._counts.lock:
                self._counts.longest_metadata = max(self._counts.longest_metadata, len(self._last_metadata))
            self._count(i, attempt, ANSWERED)
        elif attempt.status == 503 and "missing" in body:
            needs = {id_: int(each["needs"]) for id_, each in body["missing"].items()}
            self._count_rejection(i, attempt, needs)
        else:
            self._count(i, attempt, ERROR, f"{attempt.status} {body.get('error', '')}")

    def _count_rejection(self, i: int, attempt: Attempt, needs: Mapping[str, int]) -> None:
        reachability = self._context.reachability
        reason = reachability.reason(i, attempt.began_s, attempt.ended_s, needs)
        if reason in {JUST_HEALED, RELAYED, NO_EXCUSE}:
            connected_s = reachability.connected_for_s(i, attempt.began_s, attempt.ended_s, needs)
            if reason == JUST_HEALED:
                with self._counts.lock:
                    self._counts.rejected_after_heal_s.append(connected_s)
            self._count(i, attempt, REJECTED + reason, f"{reason}, connected for {connected_s:.2f} s: {dict(needs)}")
        else:
            self._count(i, attempt, REJECTED + reason)

    def _count(self, i: int, attempt: Attempt, outcome: str, details: str = "") -> None:
        is_serving = self._context.timeline.is_serving(i, attempt.began_s, attempt.ended_s)
        is_error = is_serving and outcome in {ERROR, REJECTED + NO_EXCUSE}
        with self._counts.lock:
            (self._counts.requests if is_serving else self._counts.requests_to_unavailable)[outcome] += 1
            if is_error:
                self._counts.errors[f"replica {i}: {details[:100]}"] += 1
        self.attempt_outcomes.append(BAD if is_error else outcome)
        if details and is_serving:
            seconds = attempt.ended_s - attempt.began_s
            self._context.note(f"{outcome} at serving replica {i} after {seconds:.2f} s: {details[:300]}")

    def _record_call(self, operation: Mapping[str, Any]) -> None:
        """Record a call, and count it if it succeeded."""
        recorded = dict(operation)
        is_successful = recorded.get("status", "ok") == "ok"
        if is_successful and recorded.get("writes") and "update" not in recorded:
            # A response to a transaction has no ETag. Its update is the last one of its replica in the metadata.
            address = recorded["replica"].partition("://")[2]
            own = max((id_ for id_ in self._last_metadata if id_.rpartition("@")[0] == address), default="")
            recorded["update"] = f"{own}:{self._last_metadata[own]}" if own else None
        self._record_operation(recorded)
        if is_successful:
            self.last_successful_operation = recorded["id"]
            self._counts.acknowledge()


class Client:
    """A client with its own thread, which uses one session after another."""

    def __init__(self, context: RoundContext, name: str, rng: random.Random) -> None:
        self._context = context
        self._name = name
        self._rng = rng
        self._values = itertools.count()
        self._sessions = itertools.count()
        self._called_s: float | None = None
        """When the current call began, None between calls."""
        self.session = self._new_session()
        self.stuck_sessions: list[CountingSession] = []
        """Sessions whose dependencies no replica had. They must be served after the heal."""

    @property
    def is_waiting(self) -> bool:
        """Whether the current call of this client has taken longer than ``WAITS_AFTER_S``."""
        called_s = self._called_s
        return called_s is not None and time.monotonic() - called_s > WAITS_AFTER_S

    def _new_session(self) -> CountingSession:
        return CountingSession(self._context, f"{self._name}.{next(self._sessions)}")

    def work(self) -> None:
        """Make calls until the load of the round ends."""
        while not self._context.is_over():
            began_s, session = time.monotonic(), self.session
            self._called_s = began_s
            session.attempt_outcomes.clear()
            self._count(self._step(), session.attempt_outcomes)
            self._called_s = None
            time.sleep(max(0.0, self._rng.uniform(0.5, 1.5) / OPERATIONS_PER_S - (time.monotonic() - began_s)))

    def _step(self) -> str:
        """Make one call and return its outcome. Replace the session if no replica had its dependencies."""
        try:
            self.operate()
        except Rejected as exc:
            self._context.problem(f"a request was rejected: {exc}")
            return "rejected"
        except Uncertain:
            return "outcome unknown"
        except DependenciesMissing:
            self.stuck_sessions.append(self.session)
            self.session = self._new_session()
            return "dependencies missing"
        except Unavailable:
            return "no answer"
        return ANSWERED

    def _count(self, outcome: str, attempt_outcomes: Sequence[str]) -> None:
        if outcome != ANSWERED:
            outcome += NOT_EXCUSED if BAD in attempt_outcomes else EXCUSED
        with self._context.counts.lock:
            self._context.counts.calls[outcome] += 1

    def operate(self) -> None:
        """Make one call. Sometimes change the replica first, or take over the metadata of another client."""
        rng, session = self._rng, self.session
        if rng.random() < 0.1:
            session.stick_to(self._likely_replica())
        if rng.random() < 0.03:
            other = rng.choice(self._context.clients).session
            # Read the operation before the metadata: then the metadata covers the operation.
            last = other.last_successful_operation
            if last:
                session.follow(other.metadata, after=last)
        key, chance = self._key(), rng.random()
        # Half of the calls wait as long as the replica does (KV_DEFER_TIMEOUT). The others try the next replica soon.
        wait_s = None if rng.random() < 0.5 else 0.2
        if chance < 0.35:
            session.put(key, self._value(), wait_s=wait_s)
        elif chance < 0.42:
            session.delete(key, wait_s=wait_s)
        elif chance < 0.72:
            session.get(key, siblings=rng.random() < 0.3, wait_s=wait_s)
        elif chance < 0.92:
            reads, keys = {self._key() for _ in range(3)}, {self._key() for _ in range(rng.randrange(4))}
            # Begin with a put: a transaction that only deletes absent keys makes no update and has no id.
            writes: list[Put | Delete] = [Put(each, self._value()) for each in sorted(keys)]
            if len(writes) > 1 and rng.random() < 0.5:
                writes[-1] = Delete(writes[-1].key)
            session.transaction(sorted(reads), writes, wait_s=wait_s)
        else:
            session.list(prefix=f"{self._context.prefix}{rng.randrange(3)}", values=True, wait_s=wait_s)

    def check_served_everywhere(self, timeout_s: float) -> bool:
        """Return whether each replica serves each session, also the stuck ones, within ``timeout_s``.

        If one does not, record a problem.
        """
        for session in [self.session, *self.stuck_sessions]:
            for i, url in enumerate(session.replicas):
                deadline = time.monotonic() + timeout_s
                while (problem := self._rejection(session, url)) is not None:
                    if time.monotonic() > deadline:
                        name = session.name
                        self._context.problem(f"replica {i} does not serve session {name} after the heal: {problem}")
                        return False
        return True

    def _rejection(self, session: CountingSession, url: str) -> ClientError | None:
        with session.fork_to(url) as only_here:
            try:
                only_here.get(f"{self._context.prefix}00")
            except ClientError as exc:
                return exc
        return None

    def close(self) -> None:
        """Close the connections of all sessions."""
        for session in [self.session, *self.stuck_sessions]:
            session.close()

    def _likely_replica(self) -> str:
        """Return a random replica. Like a load balancer, prefer one that is serving."""
        order = self._rng.sample(range(len(self.session.replicas)), len(self.session.replicas))
        now_s = time.monotonic()
        serving = [i for i in order if self._context.timeline.is_serving(i, now_s, now_s)]
        chosen = serving[0] if serving and self._rng.random() < 0.9 else order[0]
        return self.session.replicas[chosen]

    def _key(self) -> str:
        return f"{self._context.prefix}{self._rng.randrange(KEYS):02}"

    def _value(self) -> str:
        return f"{self.session.name}:{next(self._values)}"

"""The clients of a soak: reads and writes at replicas chosen at random, each request and each call counted."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from store.client import ClientError, Delete, DependenciesMissing, Put, Rejected, Session, Unavailable, Uncertain
from tools.soak.reach import JUST_HEALED, NO_EXCUSE, OVER_OTHERS, Reach
from tools.soak.tally import Recorder, Tally

CALL_TIMEOUT_S = 5.0
"""A user's patience: until then a call goes from replica to replica. (The client's own default is 10 s.)"""

ATTEMPT_TIMEOUT_S = 1.5
"""How long one replica may be silent: a little more than ``KV_DEFER_TIMEOUT``, as the client's documentation says."""

OPERATIONS_PER_S = 6.0
"""Of one client at most: faults are what is tested here, not speed. See ``run.CLIENTS``."""

WAITS_AFTER_S = 0.3
"""A call that takes longer waits: for a replica that is silent, or for one that has the session's causal past."""

KEYS = 30

ANSWERED = "answered"
GIVEN_UP = "given up"
REFUSED = "refused: "
ERROR = "error"
BAD = "error at a serving replica"
EXCUSED, NOT_EXCUSED = ", excused", ", not excused"

GOOD = frozenset({200, 201, 202, 304, 404, 412})


@dataclass(frozen=True)
class Setting:
    """What all clients of a round share. ``note`` writes to the log, ``problem`` tells that something is wrong."""

    replicas: Sequence[str]
    prefix: str
    tally: Tally
    reach: Reach
    recorder: Recorder
    note: Callable[[str], None]
    problem: Callable[[str], None]
    is_over: Callable[[], bool]
    clients: list[Client] = field(default_factory=list)


class CountingSession(Session):
    """A session whose every single request is counted, and whose transactions are recorded with their update's id."""

    last_certain = ""
    _last_metadata: Mapping[str, int] = {}

    def __init__(self, setting: Setting, name: str) -> None:
        super().__init__(
            setting.replicas,
            timeout_s=CALL_TIMEOUT_S,
            attempt_timeout_s=ATTEMPT_TIMEOUT_S,
            recorder=setting.recorder,
            name=name,
        )
        self._setting = setting
        self._tally = setting.tally
        self._indexes = {url: i for i, url in enumerate(self.replicas)}
        self.met: list[str] = []
        """What the attempts of the present call met; emptied by whoever makes the call."""

    def fork_to(self, url: str) -> Session:
        """Return a session that follows this one and asks one replica only; it is recorded, and not counted."""
        child = self.fork()
        child.replicas = (url,)
        child.stick_to(url)
        return child

    def _attempt(self, replica: str, request: Any, timeout_s: float) -> Any:
        i, began_s = self._indexes[replica], time.monotonic()
        life = self._setting.reach.life(i)
        try:
            answered = super()._attempt(replica, request, timeout_s)
        except Exception as exc:
            is_cut_short = timeout_s < ATTEMPT_TIMEOUT_S + request.hold_s
            if is_cut_short and time.monotonic() - began_s >= timeout_s:
                self._count(i, began_s, GIVEN_UP)
            else:
                self._count(i, began_s, ERROR, f"broken: {exc}")
            raise
        response, body = answered
        if response.status_code in GOOD:
            self._setting.reach.has(i, life, body.get("causal-metadata") or {})
            self._count(i, began_s, ANSWERED)
        elif response.status_code == 503 and "missing" in body:
            needs = {id_: int(each["needs"]) for id_, each in body["missing"].items()}
            self._count_refusal(i, began_s, needs)
        else:
            self._count(i, began_s, ERROR, f"{response.status_code} {body.get('error', '')}")
        return answered

    def _count_refusal(self, i: int, began_s: float, needs: Mapping[str, int]) -> None:
        now_s, reach = time.monotonic(), self._setting.reach
        reason = reach.why(i, began_s, now_s, needs)
        if reason in {JUST_HEALED, OVER_OTHERS, NO_EXCUSE}:
            whole_s = reach.whole_for_s(i, began_s, now_s, needs)
            if reason == JUST_HEALED:
                with self._tally.lock:
                    self._tally.late_s.append(whole_s)
            self._count(i, began_s, REFUSED + reason, f"{reason}, whole for {whole_s:.2f} s: {dict(needs)}")
        else:
            self._count(i, began_s, REFUSED + reason)

    def _count(self, i: int, began_s: float, outcome: str, why: str = "") -> None:
        now_s = time.monotonic()
        is_serving = self._tally.is_serving(i, began_s, now_s)
        is_error = is_serving and outcome in {ERROR, REFUSED + NO_EXCUSE}
        with self._tally.lock:
            (self._tally.requests if is_serving else self._tally.in_trouble)[outcome] += 1
            if is_error:
                self._tally.errors[f"replica {i}: {why[:100]}"] += 1
        self.met.append(BAD if is_error else outcome)
        if why and is_serving:
            self._setting.note(f"{outcome} at serving replica {i} after {now_s - began_s:.2f} s: {why[:300]}")

    def _take_in(self, base: Any, reply: Any) -> None:
        super()._take_in(base, reply)
        self._last_metadata = reply.metadata or {}
        if reply.lost:
            with self._tally.lock:
                for replica, span in reply.lost.items():
                    self._tally.told_lost.append((replica, *span, time.monotonic()))

    def _tell(self, kind: str, operation: Mapping[str, Any]) -> None:
        told = dict(operation)
        is_certain = told.get("status", "ok") == "ok"
        if is_certain and told.get("writes") and "update" not in told:
            # The answer to a transaction has no ETag. Its metadata names its update: the last one of its replica.
            address = told["replica"].partition("://")[2]
            own = max((id_ for id_ in self._last_metadata if id_.rpartition("@")[0] == address), default="")
            told["update"] = f"{own}:{self._last_metadata[own]}" if own else None
        super()._tell(kind, told)
        if is_certain:
            self.last_certain = self.last_operation
            self._tally.acknowledge()


class Client:
    """One thread's worth of work, in one session after another."""

    def __init__(self, setting: Setting, name: str, rng: random.Random) -> None:
        self._setting = setting
        self._name = name
        self._rng = rng
        self._values = itertools.count()
        self._sessions = itertools.count()
        self._called_s: float | None = None  # when the call began that is under way
        self.session = self._new_session()
        self.aside: list[CountingSession] = []
        """Sessions whose causal past could not be reached: they must be served after the heal."""

    @property
    def is_waiting(self) -> bool:
        """Whether a call of this client has taken long already."""
        called_s = self._called_s
        return called_s is not None and time.monotonic() - called_s > WAITS_AFTER_S

    def _new_session(self) -> CountingSession:
        return CountingSession(self._setting, f"{self._name}.{next(self._sessions)}")

    def work(self) -> None:
        """Go on until the round's load is to end."""
        while not self._setting.is_over():
            began_s, session = time.monotonic(), self.session
            self._called_s = began_s
            session.met.clear()
            self._count(self._step(), session.met)
            self._called_s = None
            time.sleep(max(0.0, self._rng.uniform(0.5, 1.5) / OPERATIONS_PER_S - (time.monotonic() - began_s)))

    def _step(self) -> str:
        """One operation; return its outcome in the user's eyes. A session that finds no past is left aside."""
        try:
            self.operate()
        except Rejected as exc:
            self._setting.problem(f"a request was rejected: {exc}")
            return "rejected"
        except Uncertain:
            return "outcome unknown"
        except DependenciesMissing:
            self.aside.append(self.session)
            self.session = self._new_session()
            return "past not reached"
        except Unavailable:
            return "no answer"
        return ANSWERED

    def _count(self, outcome: str, met: Sequence[str]) -> None:
        if outcome != ANSWERED:
            outcome += NOT_EXCUSED if BAD in met else EXCUSED
        with self._setting.tally.lock:
            self._setting.tally.calls[outcome] += 1

    def operate(self) -> None:
        """Make one call; before it sometimes a hop, or metadata handed over by another client."""
        rng, session = self._rng, self.session
        if rng.random() < 0.1:
            session.stick_to(self._likely_replica())
        if rng.random() < 0.03:
            other = rng.choice(self._setting.clients).session
            # In this order: the metadata is then at least as new as the operation that stands for it.
            last = other.last_certain
            if last:
                session.follow(other.metadata, after=last)
        key, chance = self._key(), rng.random()
        # Some leave it to the replica (KV_DEFER_TIMEOUT); others would rather ask another one soon.
        wait_s = None if rng.random() < 0.5 else 0.2
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
            session.list(prefix=f"{self._setting.prefix}{rng.randrange(3)}", values=True, wait_s=wait_s)

    def must_be_served(self, within_s: float) -> None:
        """Each session, those left aside too, has to be served by each replica."""
        for session in [self.session, *self.aside]:
            for i, url in enumerate(session.replicas):
                deadline = time.monotonic() + within_s
                while (problem := self._refusal(session, url)) is not None:
                    if time.monotonic() > deadline:
                        name = session.name
                        self._setting.problem(f"replica {i} does not serve session {name} after the heal: {problem}")
                        return

    def _refusal(self, session: CountingSession, url: str) -> ClientError | None:
        with session.fork_to(url) as only_here:
            try:
                only_here.get(f"{self._setting.prefix}00")
            except ClientError as exc:
                return exc
        return None

    def close(self) -> None:
        """Close the connections of all sessions."""
        for session in [self.session, *self.aside]:
            session.close()

    def _likely_replica(self) -> str:
        """A replica at random; one that is in trouble less often, as a load balancer would have it."""
        order = self._rng.sample(range(len(self.session.replicas)), len(self.session.replicas))
        now_s = time.monotonic()
        fine = [i for i in order if self._setting.tally.is_serving(i, now_s, now_s)]
        chosen = fine[0] if fine and self._rng.random() < 0.9 else order[0]
        return self.session.replicas[chosen]

    def _key(self) -> str:
        return f"{self._setting.prefix}{self._rng.randrange(KEYS):02}"

    def _value(self) -> str:
        return f"{self.session.name}:{next(self._values)}"

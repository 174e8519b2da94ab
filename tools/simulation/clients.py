"""Clients that hop between replicas, and record what they saw.

Each is a session: it carries its metadata from answer to request, and goes to another replica whenever it
likes or is refused. What it does is recorded for the judge (tools/history) and, with full knowledge, for
the oracle. Every written value is unique.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from replication.replica import Replica
from store.causal import LostUpdates
from store.clock import Clock, Dot, join
from store.errors import DependenciesMissing, NotServing
from store.versions import Change, Update, Versions
from tools.history import Kind, Operation
from tools.simulation.oracle import Oracle
from tools.simulation.world import Host, World

DEFER_S = 1.0


@dataclass(frozen=True, slots=True)
class Habits:
    """What clients do. Probabilities of each operation (the rest are reads of one key); times in seconds.

    ``burst``: how many operations a client does at one replica, one right after the other, before it pauses.
    """

    keys: int = 8
    pause_s: float = 0.01
    burst: int = 1
    put: float = 0.36
    delete: float = 0.08
    transaction: float = 0.06
    listing: float = 0.03
    hop: float = 0.25
    hand_over: float = 0.02
    forget: float = 0.01
    lose_answer: float = 0.01


@dataclass(slots=True)
class Client:
    """One session. ``past``: the metadata that it carries; ``count``: operations recorded."""

    name: str
    at: str
    past: Clock = field(default_factory=dict)
    count: int = 0
    generation: int = 0
    after: tuple[str, ...] = ()

    @property
    def session(self) -> str:
        return f"{self.name}.{self.generation}"

    @property
    def last(self) -> str | None:
        """The name of the last recorded operation."""
        return f"{self.session}#{self.count - 1}" if self.count else None


class Clients:
    """All clients of one run. ``history``: what they saw, in the order of the answers."""

    def __init__(self, world: World, oracle: Oracle, count: int, habits: Habits, budget: int) -> None:
        self.world = world
        self.oracle = oracle
        self.habits = habits
        self.budget = budget
        self.history: list[Operation] = []
        self.acknowledged: dict[Dot, None] = {}
        self.lost: LostUpdates = {}
        self._keys = [f"k{number}" for number in range(habits.keys)]
        self._addresses = list(world.hosts)
        self._value = 0
        self.all = [Client(f"c{n}", world.rng.choice(self._addresses)) for n in range(count)]

    def begin(self) -> None:
        """Let all clients start, each at a moment of its own."""
        for client in self.all:
            self.world.at(self.world.now_s + self.world.rng.random() * self.habits.pause_s, self._act, client)

    # -- acting ----------------------------------------------------------------------------------------

    def _act(self, client: Client) -> None:
        if self.budget <= 0:
            # The end has begun: who was told by then that something is lost must not hear of it from another client.
            return
        rng, habits = self.world.rng, self.habits
        if rng.random() < habits.hop:
            client.at = rng.choice(self._addresses)
        if rng.random() < habits.hand_over:
            self._hear_from(client, rng.choice(self.all))
        if rng.random() < habits.forget:
            client.generation, client.count, client.past, client.after = client.generation + 1, 0, {}, ()
        self._continue(client, habits.burst)

    def _continue(self, client: Client, left: int) -> None:
        """Do the rest of a burst, until one operation has to wait or is refused."""
        while left and self.budget > 0:
            left -= 1
            self.budget -= 1
            self.world.counts["operations"] += 1
            if not self._attempt(client, self._choose(client), self.world.now_s + DEFER_S, None):
                return
        if self.budget > 0:
            self._rest(client)

    def _choose(self, client: Client) -> Callable[[Host], None]:
        rng, habits = self.world.rng, self.habits
        dice = rng.random()
        key = rng.choice(self._keys)
        if dice < habits.put:
            value = self._new_value()
            return lambda host: self._write(client, host, "put", [Change(key, value)])
        dice -= habits.put
        if dice < habits.delete:
            return lambda host: self._write(client, host, "delete", [Change(key, None)])
        dice -= habits.delete
        if dice < habits.transaction:
            reads = rng.sample(self._keys, 2)
            changes = [
                Change(k, None if rng.random() < 0.2 else self._new_value())
                for k in rng.sample(self._keys, rng.randint(1, 3))
            ]
            return lambda host: self._transact(client, host, reads, changes)
        dice -= habits.transaction
        if dice < habits.listing:
            return lambda host: self._list(client, host)
        siblings = rng.random() < 0.1
        return lambda host: self._get(client, host, key, all_siblings=siblings)

    def _attempt(self, client: Client, action: Callable[[Host], None], deadline_s: float, token: int | None) -> bool:
        """Try; where the causal past is not there, wait for it at that replica as its engine would.

        Returns True when it was answered; else the client goes on by itself, later.
        """
        host = self.world.hosts[client.at]
        replica = host.replica
        if replica is None or self.world.now_s < host.paused_until_s:
            self.world.counts["unreachable"] += 1
        else:
            if token is not None:
                self.drop_lost(client, replica, replica.loss.unrecoverable(client.past, token))
            try:
                action(host)
            except NotServing:
                self.world.counts["refused"] += 1
            except DependenciesMissing:
                if self.world.now_s < deadline_s:
                    self._defer(client, host, action, deadline_s, token)
                    return False
                self.world.counts["gave_up"] += 1
            else:
                return True
        client.at = self.world.rng.choice(self._addresses)
        self._rest(client)
        return False

    def _defer(
        self, client: Client, host: Host, action: Callable[[Host], None], deadline_s: float, token: int | None
    ) -> None:
        assert host.replica is not None
        if token is None:
            self.world.counts["deferrals"] += 1
            token = host.replica.loss.ask(client.past)
            self.world.poke(host)
        boot = host.boots
        done = False

        def retry() -> None:
            nonlocal done
            if done:
                return
            replica = host.replica if host.boots == boot else None
            if replica is not None and self.world.now_s < deadline_s and not self._is_due(replica, client.past, token):
                host.retries.append(retry)
                return
            done = True
            # A process that died while the request waited has not answered it: the client goes elsewhere.
            if self._attempt(client, action, deadline_s if replica else 0.0, token if replica else None):
                self._rest(client)

        host.retries.append(retry)
        self.world.at(deadline_s, retry)

    @staticmethod
    def _is_due(replica: Replica, past: Clock, token: int) -> bool:
        """Whether an engine would wake a request that waits for ``past``."""
        store = replica.store
        return (
            store.not_serving_reason is not None
            or store.is_causal(past)
            or bool(replica.loss.unrecoverable(past, token))
        )

    def drop_lost(self, client: Client, teller: Replica, lost: LostUpdates) -> None:
        """Let ``client`` go on without what ``teller`` says is lost."""
        self.oracle.told_lost(teller, lost)
        for replica, (first, last) in lost.items():
            client.past = {other: n for other, n in client.past.items() if other != replica}
            if first > 1:
                client.past[replica] = first - 1
            known = self.lost.get(replica, (first, last))
            self.lost[replica] = (min(first, known[0]), max(last, known[1]))
            self.world.counts["lost"] += 1

    def _rest(self, client: Client) -> None:
        pause_s = self.world.rng.expovariate(1.0) * self.habits.pause_s
        self.world.at(self.world.now_s + pause_s, self._act, client)

    def _hear_from(self, client: Client, other: Client) -> None:
        if other is not client and other.last is not None:
            client.past = join(client.past, other.past)
            client.after = (*client.after, other.last)

    def _new_value(self) -> bytes:
        self._value += 1
        return b"%d" % self._value

    # -- operations ------------------------------------------------------------------------------------

    def _get(self, client: Client, host: Host, key: str, *, all_siblings: bool) -> None:
        assert host.replica is not None
        found = host.replica.store.get(key, client.past, self.world.clocks(host), all_siblings=all_siblings)
        siblings = {key: found.versions[1:]} if all_siblings else None
        self._record(client, host, "get", found.metadata, reads={key: found.versions}, siblings=siblings)

    def _list(self, client: Client, host: Host) -> None:
        assert host.replica is not None
        listed = host.replica.store.list_keys("", client.past, self.world.clocks(host), limit=1000)
        reads = {key: host.replica.store.table.get(key)[:1] for key in self._keys}
        assert [key for key in sorted(self._keys) if reads[key]] == listed.keys
        self._record(client, host, "list", listed.metadata, reads=reads)

    def _write(self, client: Client, host: Host, kind: Kind, changes: list[Change]) -> None:
        assert host.replica is not None
        wrote = host.replica.store.put(changes[0], client.past, self.world.clocks(host))
        if wrote.update is None:
            self._record(client, host, "get", wrote.metadata, reads={changes[0].key: ()})
        else:
            self._issued(client, host, kind, wrote.metadata, wrote.update, {})

    def _transact(self, client: Client, host: Host, reads: list[str], changes: list[Change]) -> None:
        assert host.replica is not None
        table = host.replica.store.table
        shown = {key: table.get(key)[:1] for key in reads}
        done = host.replica.store.transact(reads, changes, client.past, self.world.clocks(host))
        if done.update is None:
            self._record(client, host, "txn", done.metadata, reads=shown)
        else:
            self._issued(client, host, "txn", done.metadata, done.update, shown)

    def _issued(
        self, client: Client, host: Host, kind: Kind, metadata: Clock, update: Update, reads: dict[str, Versions]
    ) -> None:
        self.oracle.issued(update)
        self.world.counts["updates"] += 1
        self.world.poke(host)
        if self.world.rng.random() < self.habits.lose_answer:
            self._record(client, host, kind, client.past, update=update, status_unknown=True)
            return
        self.acknowledged[update.dot] = None
        self._record(client, host, kind, metadata, reads=reads, update=update)

    def _record(
        self,
        client: Client,
        host: Host,
        kind: Kind,
        metadata: Clock,
        *,
        reads: dict[str, Versions] | None = None,
        siblings: dict[str, Versions] | None = None,
        update: Update | None = None,
        status_unknown: bool = False,
    ) -> None:
        assert host.replica is not None
        if host.replica.state != "serving":
            self.oracle.violations.append(
                f"Gate: {host.replica.id} answered a client while it was {host.replica.state}"
            )
        values: list[tuple[str, int | None]] = []
        names: list[str | None] = []
        for key, versions in reads.items() if reads else ():
            version = versions[0] if versions else None
            values.append((key, None if version is None else int(version.value)))
            names.append(None if version is None else f"{version.origin}:{version.counter}")
        operation = Operation(
            client.session,
            kind,
            tuple(values),
            after=client.after,
            versions=tuple(names),
            replica=host.replica.id,
        )
        if siblings:
            operation.siblings = tuple([(key, int(v.value)) for key, versions in siblings.items() for v in versions])
        if update is not None:
            operation.status = "unknown" if status_unknown else "ok"
            operation.update = _name(update.dot)
            operation.writes = tuple(
                [(write.key, int(write.value) if write.value else None) for write in update.writes]
            )
            operation.replaces = tuple([(w.key, _name(dot)) for w in update.writes for dot in w.replaces])
        self.history.append(operation)
        client.count += 1
        client.after = ()
        client.past = metadata

    # -- the end ---------------------------------------------------------------------------------------

    def read_everything(self) -> list[str]:
        """Let each client read every key at every serving replica; return who was refused what it must be given."""
        refused = []
        for client in self.all:
            for host in self.world.live():
                if host.replica is None or host.replica.state != "serving":
                    continue
                try:
                    self._list(client, host)
                except DependenciesMissing as exc:
                    refused.append(f"Refused: {client.session} at {host.replica.id} misses {exc.missing}")
        return refused


def _name(dot: Dot) -> str:
    return f"{dot[0]}:{dot[1]}"

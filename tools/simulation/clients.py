"""Simulated clients: sessions that hop between replicas and record what they see.

Each client carries its metadata from response to request, and goes to another replica whenever it likes or is rejected.
What it sees is recorded for the history checker (tools/history), and compared at once with the oracle, which knows
every update. Every written value is unique. Keys that start with ``t`` are only written with a ttl. Keys that start
with ``m`` hold values that merge, and at times plain ones; the oracle checks them, and they are in no history. The
others never expire.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from msgspec import structs

from replication.replica import Replica
from store.clock import Clock, Dot, join
from store.errors import DependenciesMissing, KeyAbsent, NotServing, PreconditionFailed, WrongKind
from store.merging import Increment, MapChange, SetChange
from store.merging import Operation as PatchOperation
from store.results import LostUpdates
from store.table import KeyRange
from store.values import merging_kind, state_of
from store.versions import ABSENT_ETAG, Change, Patch, Update, Versions
from tools.history import Kind, Operation
from tools.simulation.oracle import Oracle
from tools.simulation.world import Host, World

DEFER_S = 1.0
"""How long a request waits for its causal past, or a write for acknowledgements."""

SLOW_PAUSE_S = 5.0
"""The mean pause of each client in ``Clients.begin_slowly``."""

CROSSINGS, CROSSING_S = 6, 0.3
"""How many changes of the same key follow a fold at random replicas, and within which time."""

Action = Callable[[Host, Replica], None]


@dataclass(frozen=True, slots=True)
class Habits:
    """What clients do.

    ``keys``: number of keys that do not expire.
    ``burst``: operations that a client makes at one replica without a pause. ``pause_s``: mean pause after a burst.
    ``put``, ``delete``, ``transaction``, ``listing``: probability of each operation; all others read one key.
    ``hop``, ``hand_over``, ``forget``: probability that, before a burst, a client goes to another replica, follows what
    another client has seen, or starts a new session.
    ``lose_response``: probability that a client does not get the response to a write that was applied.
    ``conditional``: share of puts, deletes and changes of a transaction with a precondition.
    ``patch``: share of operations that concern keys with values that merge.
    ``concern``: share of puts that wait for acknowledgements. ``expiring``: share of puts and reads of keys with a ttl.
    """

    keys: int = 8
    pause_s: float = 0.01
    burst: int = 1
    put: float = 0.36
    delete: float = 0.08
    transaction: float = 0.06
    listing: float = 0.05
    hop: float = 0.25
    hand_over: float = 0.02
    forget: float = 0.01
    lose_response: float = 0.01
    conditional: float = 0.15
    patch: float = 0.12
    concern: float = 0.1
    expiring: float = 0.08


@dataclass(slots=True)
class Client:
    """One session. ``past``: the metadata that it carries. ``count``: operations recorded. ``etags``: key -> etag of
    the last winner that it read, None for an absent key."""

    name: str
    at: str
    past: Clock = field(default_factory=dict)
    count: int = 0
    generation: int = 0
    after: tuple[str, ...] = ()
    etags: dict[str, str] = field(default_factory=dict)

    @property
    def session(self) -> str:
        return f"{self.name}.{self.generation}"

    @property
    def last(self) -> str | None:
        """The name of the last recorded operation."""
        return f"{self.session}#{self.count - 1}" if self.count else None


class Clients:
    """All clients of one run. ``history``: what they saw, in the order of the responses."""

    def __init__(self, world: World, oracle: Oracle, count: int, habits: Habits, budget: int) -> None:
        self.world = world
        self.oracle = oracle
        self.habits = habits
        self.budget = budget
        self.history: list[Operation] = []
        self.acknowledged: dict[Dot, None] = {}
        self.lost: LostUpdates = {}
        self._keys = [f"k{number}" for number in range(habits.keys)]
        self._expiring_keys = ["t0", "t1"]
        self._merging_keys = ["m0", "m1", "m2", "m3"]
        self._addresses = list(world.hosts)
        self._folded: tuple[str, Dot] | None = None  # the latest fold: key and dot of the PATCH that made it
        self._value = 0
        self.all = [Client(f"c{n}", world.rng.choice(self._addresses)) for n in range(count)]

    def begin(self) -> None:
        """Start every client, each at a random time."""
        for client in self.all:
            self.world.at(self.world.now_s + self.world.rng.random() * self.habits.pause_s, self._act, client)

    def begin_slowly(self, budget: int) -> None:
        """Let the clients make ``budget`` operations on values that merge, with enough time between them to fold."""
        self.habits = replace(self.habits, patch=1.0, burst=1, pause_s=SLOW_PAUSE_S)
        self.budget = budget
        self.begin()

    # -- acting ----------------------------------------------------------------------------------------

    def _act(self, client: Client) -> None:
        if self.budget <= 0:
            # The run is ending. A client that has dropped a lost update must not get it back from another client.
            return
        rng, habits = self.world.rng, self.habits
        if rng.random() < habits.hop:
            client.at = rng.choice(self._addresses)
        if rng.random() < habits.hand_over:
            self._hear_from(client, rng.choice(self.all))
        if rng.random() < habits.forget:
            client.generation, client.count, client.past, client.after = client.generation + 1, 0, {}, ()
            client.etags.clear()
        self._continue(client, habits.burst)

    def _continue(self, client: Client, left: int) -> None:
        """Make up to ``left`` operations of a burst, until one has to wait or is rejected."""
        while left and self.budget > 0:
            left -= 1
            self.budget -= 1
            self.world.counts["operations"] += 1
            if not self._attempt(client, self._choose(client), self.world.now_s + DEFER_S, None):
                return
        if self.budget > 0:
            self._pause(client)

    def _choose(self, client: Client) -> Action:
        rng, habits = self.world.rng, self.habits
        if rng.random() < habits.patch:
            return self._choose_merging(client)
        dice = rng.random()
        key = rng.choice(self._keys)
        if dice < habits.put:
            if rng.random() < habits.expiring:
                ttl_us = rng.randint(200_000, 4_000_000)
                change = Change(rng.choice(self._expiring_keys), self._new_value(), ttl_us=ttl_us)
            else:
                change = self._conditional(client, Change(key, self._new_value()))
            concern = rng.choice(["majority", "all"]) if rng.random() < habits.concern else ""
            return lambda host, replica: self._write(client, host, replica, "put", change, concern)
        dice -= habits.put
        if dice < habits.delete:
            change = self._conditional(client, Change(key, None))
            return lambda host, replica: self._write(client, host, replica, "delete", change, "")
        dice -= habits.delete
        if dice < habits.transaction:
            reads = rng.sample(self._keys, 2)
            changes = [
                self._conditional(client, Change(k, None if rng.random() < 0.2 else self._new_value()))
                for k in rng.sample(self._keys, rng.randint(1, 3))
            ]
            return lambda host, replica: self._transact(client, host, replica, reads, changes)
        dice -= habits.transaction
        if dice < habits.listing:
            prefix, after = rng.choice(["", "", "k", "k1", "t"]), rng.choice(["", key])
            limit = rng.choice([1, 3, 1000])
            return lambda host, replica: self._list(client, host, replica, prefix, after, limit)
        if rng.random() < habits.expiring:
            key = rng.choice(self._expiring_keys)
        siblings = rng.random() < 0.1
        return lambda host, replica: self._get(client, host, replica, key, all_siblings=siblings)

    def _choose_merging(self, client: Client) -> Action:
        """Return an operation on keys with values that merge: mostly a PATCH, or several as one transaction."""
        rng = self.world.rng
        if rng.random() < 0.1:
            keys = rng.sample(self._merging_keys, 2)
            changes = [self._conditional(client, self._merging_change(key)) for key in keys]
            return lambda host, replica: self._transact(client, host, replica, [], changes)
        change = self._conditional(client, self._merging_change(rng.choice(self._merging_keys)))
        return lambda host, replica: self._write(client, host, replica, "put", change, "")

    def _merging_change(self, key: str) -> Change:
        """Return a change of ``key``: nearly always of the kind that belongs to it."""
        rng = self.world.rng
        dice = rng.random()
        if dice < 0.06:
            return Change(key, None)
        if dice < 0.08:
            return Change(key, self._new_value())
        kind = self._merging_keys.index(key) if rng.random() < 0.98 else rng.randrange(4)
        operation: PatchOperation | None = None
        if dice < 0.97:
            names = rng.sample("abc", 2)
            if kind in (0, 1):
                operation = Increment(rng.randint(-3, 9))
            elif kind == 2:
                cut = rng.choice([0, 1, 1, 2])
                operation = SetChange(tuple(names[:cut]), tuple(names[cut:]))
            else:
                cut = rng.choice([0, 1, 1, 2])
                operation = MapChange(tuple((name, self._new_value()) for name in names[:cut]), tuple(names[cut:]))
        keeps_ttl = rng.random() > 0.06 and operation is not None
        ttl_us = None if keeps_ttl or rng.random() < 0.5 else rng.randint(200_000, 4_000_000)
        return Change(key, None, ttl_us, patch=Patch(operation, keeps_ttl, 1_000_000))

    def _conditional(self, client: Client, change: Change) -> Change:
        """Return ``change``, at times with a precondition on what the client has read."""
        if change.key not in client.etags or self.world.rng.random() >= self.habits.conditional:
            return change
        etag = client.etags[change.key]
        if etag == ABSENT_ETAG:
            return structs.replace(change, if_none_match=True)
        return structs.replace(change, if_match=(etag,))

    def _attempt(self, client: Client, action: Action, deadline_s: float, token: int | None) -> bool:
        """Make a request. Return True if the client got a response.

        Otherwise the client continues by itself later: if the replica lacks the client's causal past, the request waits
        there until ``deadline_s``, as in an engine; in all other cases the client goes to another replica after a
        pause. ``token``: of the loss query that the waiting request started; None at the first attempt.
        """
        host = self.world.hosts[client.at]
        replica = host.replica
        if replica is None or self.world.now_s < host.paused_until_s:
            self.world.counts["unreachable"] += 1
        else:
            if token is not None:
                self.drop_lost(client, replica, replica.loss.unrecoverable(client.past, token))
            try:
                action(host, replica)
            except NotServing:
                self.world.counts["refused"] += 1
            except DependenciesMissing:
                if self.world.now_s < deadline_s:
                    self._defer(client, host, replica, action, deadline_s, token)
                    return False
                self.world.counts["gave_up"] += 1
            else:
                return True
        client.at = self.world.rng.choice(self._addresses)
        self._pause(client)
        return False

    def _defer(
        self, client: Client, host: Host, replica: Replica, action: Action, deadline_s: float, token: int | None
    ) -> None:
        if token is None:
            self.world.counts["deferrals"] += 1
            token = replica.loss.fetch(client.past)
            self.world.schedule_pump(host)
        boot = host.boots
        done = False

        def retry() -> None:
            nonlocal done
            if done:
                return
            present = host.replica if host.boots == boot else None
            if present is not None and self.world.now_s < deadline_s and not self._is_due(present, client.past, token):
                host.retries.append(retry)
                return
            done = True
            # A process that died while the request waited has not answered it: the client goes elsewhere.
            if self._attempt(client, action, deadline_s if present else 0.0, token if present else None):
                self._pause(client)

        host.retries.append(retry)
        self.world.at(deadline_s, retry)

    @staticmethod
    def _is_due(replica: Replica, past: Clock, token: int) -> bool:
        """Return whether an engine would wake a request that waits for ``past``."""
        store = replica.store
        is_served = store.not_serving_reason is not None or store.is_causal(past)
        return is_served or bool(replica.loss.unrecoverable(past, token))

    def drop_lost(self, client: Client, replica: Replica, lost: LostUpdates) -> None:
        """Remove the updates that ``replica`` reports as lost from the metadata of ``client``."""
        self.oracle.check_loss(replica, lost)
        for origin, (first, last) in lost.items():
            client.past = {other: n for other, n in client.past.items() if other != origin}
            if first > 1:
                client.past[origin] = first - 1
            known = self.lost.get(origin, (first, last))
            self.lost[origin] = (min(first, known[0]), max(last, known[1]))
            self.world.counts["lost"] += 1

    def _pause(self, client: Client) -> None:
        pause_s = self.world.rng.expovariate(1.0) * self.habits.pause_s
        self.world.at(self.world.now_s + pause_s, self._act, client)

    def _hear_from(self, client: Client, other: Client) -> None:
        if other is not client and other.last is not None:
            client.past = join(client.past, other.past)
            client.after = (*client.after, other.last)

    def _note_etag(self, client: Client, key: str, etag: str, versions: Versions) -> None:
        """Let ``client`` use ``etag`` in conditions; ``versions``: all that the replica had."""
        client.etags[key] = etag
        self.oracle.note_etag(key, etag, versions)

    def _new_value(self) -> bytes:
        self._value += 1
        return b"%d" % self._value

    # -- operations ------------------------------------------------------------------------------------

    def _get(self, client: Client, host: Host, replica: Replica, key: str, *, all_siblings: bool) -> None:
        found = replica.store.get(key, client.past, self.world.now(host), all_siblings=all_siblings)
        self.oracle.check_read(host, key, found.versions)
        self._note_etag(client, key, found.etag, found.versions)
        siblings = {key: found.versions[1:]} if all_siblings else None
        self._record(client, replica, "get", found.metadata, reads={key: found.versions}, siblings=siblings)

    def _list(self, client: Client, host: Host, replica: Replica, prefix: str, after: str, limit: int) -> None:
        now = self.world.now(host)
        listed = replica.store.list_keys(KeyRange(prefix, after), client.past, now, limit=limit)
        self.oracle.check_page(host, prefix, after, limit, listed)
        self.world.counts["pages"] += listed.next is not None
        # A key that the page passes over was read as absent.
        passed = [key for key in [*self._keys, *self._expiring_keys] if key.startswith(prefix) and key > after]
        passed = [key for key in passed if listed.next is None or key <= listed.next]
        reads = {key: replica.store.table.get(key)[:1] for key in passed}
        self._record(client, replica, "list", listed.metadata, reads=reads)

    def _write(self, client: Client, host: Host, replica: Replica, kind: Kind, change: Change, concern: str) -> None:
        replica.store.admit(client.past, self.world.now(host))  # expires versions, so that ``current`` is what is met
        current = replica.store.table.get(change.key)
        try:
            wrote = replica.store.put(change, client.past, self.world.now(host))
        except PreconditionFailed as failed:
            self._note_failed(client, replica, change, current, failed)
            return
        except (KeyAbsent, WrongKind):
            self._note_rejected(client, replica, [change])
            return
        if change.patch is not None and wrote.update is not None:
            self._note_patched(host, change, wrote.update, current)
        if change.conditional:
            self.oracle.check_precondition(replica, change, current, was_made=True)
        if self._folded is not None and change.key == self._folded[0] and change.patch is None and current:
            origin, counter = self._folded[1]
            self.world.counts["deletes_beside_folds"] += replica.store.clock.get(origin, 0) < counter
        if wrote.update is None:
            reads: dict[str, Versions] = {} if change.key in self._merging_keys else {change.key: ()}
            self._record(client, replica, "get", wrote.metadata, reads=reads)
            return
        self._issued(client, host, replica, kind, wrote.metadata, wrote.update, {})
        if concern:
            self._wait_for_acks(host, replica, wrote.update.dot, concern)

    def _note_rejected(self, client: Client, replica: Replica, changes: Sequence[Change]) -> None:
        """Check that a PATCH was rejected for what the key holds, and not without reason."""
        self.world.counts["patches_rejected"] += 1
        table = replica.store.table
        patches = [change for change in changes if change.patch is not None]
        if all(self.oracle.may_patch(change, table.get(change.key)) for change in patches):
            self.oracle.violations.append(f"Patch: {replica.id} rejected {patches}, which it had to make")

    def _note_patched(self, host: Host, change: Change, update: Update, current: Versions) -> None:
        self.world.counts["patches"] += 1
        if not self.oracle.may_patch(change, current):
            self.oracle.violations.append(f"Patch: {change} was made on {current}")
        self.oracle.patched(change, update, current)
        [value] = [write.value for write in update.writes if write.key == change.key]
        if value is not None and _has_base(value) and not any(_has_base(version.value) for version in current):
            self.world.counts["folds"] += 1
            self._folded = change.key, update.dot
            self._isolate(host)
            for _ in range(CROSSINGS):
                self.world.at(self.world.now_s + self.world.rng.random() * CROSSING_S, self._cross, change.key)

    def _isolate(self, host: Host) -> None:
        """Cut a host off for a moment, mostly: otherwise, others have what it wrote before they can cross it."""
        if self.world.rng.random() < 0.7:
            others = [address for address in self._addresses if address != host.address]
            cuts = [pair for other in others for pair in ((host.address, other), (other, host.address))]
            self.world.cuts.update(cuts)
            self.world.at(self.world.now_s + CROSSING_S, self.world.cuts.difference_update, cuts)

    def _cross(self, key: str) -> None:
        """Let a client delete or change a key that was folded a moment ago at some replica: rare if left to chance."""
        if self.budget <= 0:
            return
        client = self.world.rng.choice(self.all)
        client.at = self.world.rng.choice(self._addresses)
        change = Change(key, None) if self.world.rng.random() < 0.3 else self._merging_change(key)
        kind: Kind = "delete" if change.patch is None else "put"
        self._attempt(
            client,
            lambda host, replica: self._write(client, host, replica, kind, change, ""),
            self.world.now_s + DEFER_S,
            None,
        )

    def _note_failed(
        self, client: Client, replica: Replica, change: Change, current: Versions, failed: PreconditionFailed
    ) -> None:
        self.world.counts["preconditions_failed"] += 1
        self.oracle.check_precondition(replica, change, current, was_made=False)
        self._note_etag(client, change.key, failed.etag, current)
        reads = {} if change.key in self._merging_keys else {change.key: current[:1]}
        self._record(client, replica, "get", dict(failed.metadata), reads=reads)

    def _transact(self, client: Client, host: Host, replica: Replica, reads: list[str], changes: list[Change]) -> None:
        replica.store.admit(client.past, self.world.now(host))
        table = replica.store.table
        found = {key: table.get(key) for key in reads}
        returned = {key: versions[:1] for key, versions in found.items()}
        current = {change.key: table.get(change.key) for change in changes}
        conditional = [change for change in changes if change.conditional]
        try:
            done = replica.store.transact(reads, changes, client.past, self.world.now(host))
        except PreconditionFailed as failed:
            self.world.counts["preconditions_failed"] += 1
            if all(self.oracle.condition_holds(change, current[change.key]) for change in conditional):
                self.oracle.violations.append(f"Precondition: {replica.id} rejected a transaction that it had to make")
            self._record(client, replica, "get", dict(failed.metadata), reads={})
            return
        except (KeyAbsent, WrongKind):
            self._note_rejected(client, replica, changes)
            return
        for change in changes:
            if change.patch is not None and done.update is not None:
                self._note_patched(host, change, done.update, current[change.key])
        for change in conditional:
            self.oracle.check_precondition(replica, change, current[change.key], was_made=True)
        for key, etag in done.etags.items():
            self._note_etag(client, key, etag, found[key])
        if done.update is None:
            self._record(client, replica, "txn", done.metadata, reads=returned)
        else:
            self._issued(client, host, replica, "txn", done.metadata, done.update, returned)

    def _issued(
        self,
        client: Client,
        host: Host,
        replica: Replica,
        kind: Kind,
        metadata: Clock,
        update: Update,
        reads: dict[str, Versions],
    ) -> None:
        self.oracle.issued(update)
        self.world.counts["updates"] += 1
        self.world.schedule_pump(host)
        if self.world.rng.random() < self.habits.lose_response:
            self._record(client, replica, kind, client.past, update=update, status_unknown=True)
            return
        self.acknowledged[update.dot] = None
        self._record(client, replica, kind, metadata, reads=reads, update=update)

    def _wait_for_acks(self, host: Host, replica: Replica, dot: Dot, concern: str) -> None:
        """Wait as an engine does until enough members have acknowledged ``dot``; the oracle checks each count."""
        boot, deadline_s = host.boots, self.world.now_s + DEFER_S
        replica.acks.expect(dot, replica.acks.required(concern), self.world.now(host).mono_s)
        self.world.schedule_pump(host)

        def look() -> None:
            if host.boots != boot or host.replica is not replica or self.world.now_s >= deadline_s:
                self.world.counts["acks_missed"] += 1
            elif replica.acks.count(dot) < replica.acks.required(concern):
                host.retries.append(look)
            else:
                self.world.counts["acks_met"] += 1
                self.oracle.check_acks(replica, dot)

        look()

    def _record(
        self,
        client: Client,
        replica: Replica,
        kind: Kind,
        metadata: Clock,
        *,
        reads: dict[str, Versions] | None = None,
        siblings: dict[str, Versions] | None = None,
        update: Update | None = None,
        status_unknown: bool = False,
    ) -> None:
        if replica.state != "serving":
            self.oracle.violations.append(f"Gate: {replica.id} answered a client while it was {replica.state}")
        values: list[tuple[str, int | None]] = []
        names: list[str | None] = []
        for key, versions in reads.items() if reads else ():
            version = versions[0] if versions else None
            values.append((key, None if version is None else int(version.value)))
            names.append(None if version is None else f"{version.origin}:{version.counter}")
        operation = Operation(
            client.session, kind, tuple(values), after=client.after, versions=tuple(names), replica=replica.id
        )
        if siblings:
            operation.siblings = tuple([(key, int(v.value)) for key, versions in siblings.items() for v in versions])
        if update is not None:
            operation.status = "unknown" if status_unknown else "ok"
            operation.update = _name(update.dot)
            recorded = [write for write in update.writes if write.key not in self._merging_keys]
            operation.writes = tuple([(write.key, int(write.value) if write.value else None) for write in recorded])
            operation.expiring = any(write.expires is not None for write in recorded)
            operation.replaces = tuple([(w.key, _name(dot)) for w in recorded for dot in w.replaces])
        self.history.append(operation)
        client.count += 1
        client.after = ()
        client.past = metadata

    # -- the end ---------------------------------------------------------------------------------------

    def read_everything(self) -> list[str]:
        """Let each client list all keys at every serving replica; return the requests that a replica deferred."""
        deferred = []
        for client in self.all:
            for host in self.world.live():
                replica = host.replica
                if replica is None or replica.state != "serving":
                    continue
                try:
                    self._list(client, host, replica, "", "", 1000)
                except DependenciesMissing as exc:
                    deferred.append(f"Deferred: {client.session} at {replica.id} misses {exc.missing}")
        return deferred


def _name(dot: Dot) -> str:
    return f"{dot[0]}:{dot[1]}"


def _has_base(value: bytes) -> bool:
    """Return whether a stored value is a counter into which entries of ended processes were folded."""
    return merging_kind(value) == "counter" and any(name.is_base for name in state_of(value).entries)

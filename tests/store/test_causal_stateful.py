"""Several CausalStores, compared with a model that keeps every update and recomputes what a clock must show.

The stores receive updates, snapshots and deltas in any order, twice, late, or never. Stores die and return empty under
a new id. Clients move between stores. The model knows which versions a set of updates leaves, and on which updates the
results of a client were really based. It contains no delete clocks, queues, logs, joins or markers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from replication.messages import SnapshotPiece, decode, encode
from replication.snapshots import SnapshotPull, cut
from store.causal import CausalStore
from store.clock import Clock, Dot, Instant, covers, join, missing, replica_id
from store.errors import DependenciesMissing, PreconditionFailed
from store.log import ENTRY_OVERHEAD_BYTES
from store.settings import StoreSettings
from store.snapshot import Snapshot
from store.table import KeyRange
from store.values import merging_kind
from store.versions import ABSENT_ETAG, Change, Update, Version, decode_update, encode_update, state_etag
from tests.support.updates import logged_updates

STORES = 3
CLIENTS = 2
KEYS = ("a", "b")
SETTINGS = StoreSettings(max_log_bytes=700, log_segment_bytes=150, max_pending=4)
"""A log for about six updates and a short queue: updates are dropped from the log and rejected by the queue often."""


@dataclass
class Client:
    """``past``: the metadata that it sends. ``true_past``: the updates on which its results were really based.

    ``removed``: key -> dots of versions that were removed when the client read the key, and that would have won if
    they were still there. The client must never read one of them later.
    """

    past: Clock = field(default_factory=dict)
    true_past: Clock = field(default_factory=dict)
    removed: dict[str, set[Dot]] = field(default_factory=dict)


class Model:
    """All updates ever issued, and the updates on which each of them was really based."""

    def __init__(self) -> None:
        self.updates: dict[Dot, Update] = {}
        self.pasts: dict[Dot, Clock] = {}

    def add(self, update: Update, past: Clock) -> None:
        self.updates[update.dot] = update
        self.pasts[update.dot] = join(past, {update.origin: update.counter})

    def covered(self, clock: Clock) -> list[Update]:
        return [update for (origin, counter), update in self.updates.items() if counter <= clock.get(origin, 0)]

    def visible(self, clock: Clock, key: str) -> list[Dot]:
        """Return the dots of the versions of ``key`` after the updates in ``clock``, the winner first."""
        writes = [(update, write) for update in self.covered(clock) for write in update.writes if write.key == key]
        replaced = {tuple(dot) for _, write in writes for dot in write.replaces}
        remaining = [u for u, write in writes if write.value is not None and u.dot not in replaced]
        return [u.dot for u in sorted(remaining, key=lambda u: (u.timestamp, u.origin), reverse=True)]

    def outranking(self, clock: Clock, key: str, winner: Dot | None) -> set[Dot]:
        """Return the removed versions that the updates in ``clock`` wrote and that would win against ``winner``."""
        rank = (0, "") if winner is None else (self.updates[winner].timestamp, winner[0])
        visible = set(self.visible(clock, key))
        return {
            update.dot
            for update in self.covered(clock)
            for write in update.writes
            if write.key == key and write.value is not None
            if update.dot not in visible and (update.timestamp, update.origin) > rank
        }


def fingerprint(store: CausalStore) -> Any:
    pending = sorted(item.update.dot for item in store.pending)
    return (
        dict(store.clock),
        store.table.copy(),
        dict(store.delete_clock),
        pending,
        store.log.count,
        store.clock_changes,
    )


VALUES = st.binary(max_size=3).filter(lambda value: merging_kind(value) is None)
"""Plain values. tests/store/test_merging.py has the others."""


class Stores(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.clients = [Client() for _ in range(CLIENTS)]
        self.snapshots: list[Snapshot] = []
        self.stores: list[CausalStore] = []
        self.boots = 0
        self.time_s = 0.0
        self.skews = [0] * STORES

    @initialize(skews=st.lists(st.integers(-5, 5), min_size=STORES, max_size=STORES))
    def start(self, skews: list[int]) -> None:
        self.skews = skews
        self.stores = [self.new_store(at) for at in range(STORES)]
        self.set_present_ids()

    def new_store(self, at: int) -> CausalStore:
        self.boots += 1
        return CausalStore(replica_id(f"r{at}:80", self.boots), SETTINGS)

    def set_present_ids(self) -> None:
        for store in self.stores:
            store.present_ids = frozenset(other.replica_id for other in self.stores)

    def now(self, at: int) -> Instant:
        self.time_s += 0.001
        return Instant(self.time_s, round((self.time_s + self.skews[at] * 0.01) * 1e6) + 10**9)

    # -- clients ---------------------------------------------------------------------------------------

    def admitted(self, client: Client, at: int) -> bool:
        """Check admission against what the client has really seen. Return whether the store serves the client."""
        store = self.stores[at]
        before = fingerprint(store)
        if covers(store.clock, client.past):
            assert covers(store.clock, client.true_past), (
                "served without the updates on which earlier results were based"
            )
            return True
        with pytest.raises(DependenciesMissing) as error:
            store.get("a", client.past, self.now(at))
        assert error.value.missing == missing(store.clock, client.past)
        with pytest.raises(DependenciesMissing):
            store.put(Change("a", b"rejected"), client.past, self.now(at))
        assert fingerprint(store) == before
        return False

    def record_result(self, client: Client, at: int, metadata: Clock, true_past: Clock) -> None:
        """Record a result: every store that covers its metadata has the updates on which it was really based."""
        assert covers(self.stores[at].clock, metadata)
        client.true_past = join(client.true_past, true_past)
        client.past = metadata
        for store in self.stores:
            if covers(store.clock, metadata):
                assert covers(store.clock, client.true_past)

    def read(self, client: Client, at: int, key: str, versions: tuple[Version, ...]) -> Clock:
        """Check the versions that were read of a key. Return the updates on which they are based."""
        clock = self.stores[at].clock
        dots = [version.dot for version in versions]
        assert dots == self.model.visible(clock, key)[: len(dots)]
        winner = dots[0] if dots else None
        assert winner not in client.removed.get(key, ()), "read a version that was removed before"
        client.removed.setdefault(key, set()).update(self.model.outranking(clock, key, winner))
        based_on: Clock = {}
        for dot in dots:
            based_on = join(based_on, self.model.pasts[dot])
        return based_on

    @rule(
        client_index=st.integers(0, CLIENTS - 1),
        route=st.lists(st.integers(0, STORES - 1), min_size=1, max_size=3),
        key=st.sampled_from(KEYS),
        siblings=st.booleans(),
    )
    def get(self, client_index: int, route: list[int], key: str, siblings: bool) -> None:
        client = self.clients[client_index]
        for at in route:
            if self.admitted(client, at):
                found = self.stores[at].get(key, client.past, self.now(at), all_siblings=siblings)
                assert len(found.versions) == len(self.model.visible(self.stores[at].clock, key))
                based_on = self.read(client, at, key, found.versions if siblings else found.versions[:1])
                self.record_result(client, at, found.metadata, based_on)

    @rule(
        client_index=st.integers(0, CLIENTS - 1),
        at=st.integers(0, STORES - 1),
        limit=st.integers(1, 4),
        conflicts=st.booleans(),
    )
    def list_keys(self, client_index: int, at: int, limit: int, conflicts: bool) -> None:
        client, store = self.clients[client_index], self.stores[at]
        if self.admitted(client, at):
            listed = store.list_keys(KeyRange(), client.past, self.now(at), limit=limit, conflicts=conflicts)
            least = 2 if conflicts else 1
            expected = [key for key in KEYS if len(self.model.visible(store.clock, key)) >= least]
            assert listed.keys == expected[:limit]
            assert listed.next == (expected[limit - 1] if len(expected) > limit else None)
            based_on: Clock = {}
            for key in listed.keys:
                assert listed.items[key] == store.table.get(key)[0].value
                based_on = join(based_on, self.read(client, at, key, store.table.get(key)[:1]))
            self.record_result(client, at, listed.metadata, based_on)

    changes = st.dictionaries(st.sampled_from(KEYS), st.one_of(st.none(), VALUES), max_size=2)

    @rule(
        client_index=st.integers(0, CLIENTS - 1),
        at=st.integers(0, STORES - 1),
        reads=st.lists(st.sampled_from(KEYS), unique=True, max_size=2),
        writes=changes,
    )
    def transact(self, client_index: int, at: int, reads: list[str], writes: dict[str, bytes | None]) -> None:
        client, store = self.clients[client_index], self.stores[at]
        if not self.admitted(client, at):
            return
        visible = {key: self.model.visible(store.clock, key) for key in KEYS}
        based_on: Clock = {}
        for key in reads:
            based_on = join(based_on, self.read(client, at, key, store.table.get(key)[:1]))
        done = store.transact(reads, [Change(k, v) for k, v in writes.items()], client.past, self.now(at))
        assert done.missing_keys == [key for key in reads if not visible[key]]
        self.check_issued(client, at, done.update, visible, writes, join(client.true_past, based_on))
        own = done.update.past if done.update else {}
        self.record_result(client, at, done.metadata, join(based_on, own))

    @rule(
        client_index=st.integers(0, CLIENTS - 1),
        at=st.integers(0, STORES - 1),
        key=st.sampled_from(KEYS),
        value=st.one_of(st.none(), VALUES),
        condition=st.sampled_from(["", "", "", "matches", "winner", "other", "absent", "any"]),
    )
    def write(self, client_index: int, at: int, key: str, value: bytes | None, condition: str) -> None:
        client, store = self.clients[client_index], self.stores[at]
        if not self.admitted(client, at):
            return
        visible = {key: self.model.visible(store.clock, key)}
        etag = state_etag(store.table.get(key))
        winner = store.table.get(key)[0].etag if visible[key] else ABSENT_ETAG
        if_match: tuple[str, ...] | None = {
            "matches": (etag,),
            "winner": (winner,),
            "other": ('"none"',),
            "any": ("*",),
        }.get(condition)
        change = Change(key, value, None, if_match, condition == "absent")
        holds = {
            "matches": True,
            "winner": len(store.table.get(key)) <= 1,
            "other": False,
            "any": bool(visible[key]),
            "absent": not visible[key],
            "": True,
        }
        if not holds[condition]:
            before = fingerprint(store)
            with pytest.raises(PreconditionFailed) as failed:
                store.put(change, client.past, self.now(at))
            assert fingerprint(store) == before
            assert failed.value.etag == etag
            self.record_result(client, at, failed.value.metadata, self.read(client, at, key, store.table.get(key)[:1]))
            return
        written = store.put(change, client.past, self.now(at))
        assert written.existed == bool(visible[key])
        self.check_issued(client, at, written.update, visible, {key: value}, client.true_past)
        self.record_result(client, at, written.metadata, written.update.past if written.update else {})
        if written.update is None:
            self.read(client, at, key, ())

    @rule(key=st.sampled_from(KEYS), deletes=st.lists(st.booleans(), min_size=STORES, max_size=STORES))
    def write_everywhere(self, key: str, deletes: list[bool]) -> None:
        """New clients write the same key at every store, so that the writes are concurrent."""
        for at, is_delete in enumerate(deletes):
            self.clients.append(Client())
            self.write(len(self.clients) - 1, at, key, None if is_delete else b"%d" % at, "")
            self.clients.pop()

    @rule(client_index=st.integers(0, CLIENTS - 1))
    def replace_client(self, client_index: int) -> None:
        self.clients[client_index] = Client()

    @rule(client_index=st.integers(0, CLIENTS - 1), at=st.integers(0, STORES - 1), key=st.sampled_from(KEYS))
    def delete(self, client_index: int, at: int, key: str) -> None:
        self.write(client_index, at, key, None, "")

    def check_issued(
        self,
        client: Client,
        at: int,
        update: Update | None,
        visible: dict[str, list[Dot]],
        writes: dict[str, bytes | None],
        true_past: Clock,
    ) -> None:
        """Check a new update: it has the next dot, all effective writes, and replaces all visible versions."""
        effective = {key: value for key, value in writes.items() if value is not None or visible[key]}
        if update is None:
            assert not effective
            return
        store = self.stores[at]
        assert {write.key: write.value for write in update.writes} == effective
        for write in update.writes:
            assert [tuple(dot) for dot in write.replaces] == visible[write.key]
            for dot in visible[write.key]:
                true_past = join(true_past, self.model.pasts[dot])
                assert self.model.updates[dot].timestamp < update.timestamp
        assert update.dot == (store.replica_id, store.clock[store.replica_id])
        assert update.dot not in self.model.updates
        assert covers(join(store.clock, {}), true_past)
        self.model.add(update, true_past)

    # -- replication -----------------------------------------------------------------------------------

    @rule(
        at=st.integers(0, STORES - 1),
        news=st.lists(st.integers(0, 10**6), max_size=4),
        old=st.lists(st.integers(0, 10**6), max_size=2),
    )
    def receive_any_updates(self, at: int, news: list[int], old: list[int]) -> None:
        """Updates arrive in any order, after gaps, and repeatedly."""
        store = self.stores[at]
        foreign = [update for update in self.model.updates.values() if update.origin != store.replica_id]
        unseen = [update for update in foreign if store.clock.get(update.origin, 0) < update.counter]
        chosen = [pool[pick % len(pool)] for pool, picks in ((unseen, news), (foreign, old)) if pool for pick in picks]
        store.receive(chosen, self.now(at))

    @rule(source=st.integers(0, STORES - 1), at=st.integers(0, STORES - 1), limit=st.integers(1, 10))
    def receive_delta(self, source: int, at: int, limit: int) -> None:
        """Every update of a delta can be applied in the order of the delta, unless the log was truncated."""
        if source == at:
            return
        sender, receiver = self.stores[source], self.stores[at]
        delta = sender.log.delta(
            receiver.clock,
            sender.clock,
            own=sender.replica_id,
            relay_before_s=float("inf"),
            limit=limit,
            limit_bytes=10**6,
        )
        before = receiver.applied_count
        receiver.receive([decode_update(encoded) for encoded in delta.batch], self.now(at))
        if not delta.truncated:
            assert receiver.applied_count - before >= len(delta.batch)
            assert delta.more or covers(receiver.clock, sender.clock)

    @rule(source=st.integers(0, STORES - 1), at=st.integers(0, STORES - 1), by_snapshot=st.booleans())
    def sync(self, source: int, at: int, by_snapshot: bool) -> None:
        """One store receives everything that another one has."""
        if source == at:
            return
        if by_snapshot:
            self.stores[at].join(self.stores[source].snapshot(self.now(source)), self.now(at))
        else:
            self.receive_delta(source, at, 1000)

    @rule(source=st.integers(0, STORES - 1))
    def take_snapshot(self, source: int) -> None:
        self.snapshots = [*self.snapshots[-3:], self.stores[source].snapshot(self.now(source))]

    @rule(at=st.integers(0, STORES - 1), pick=st.integers(0, 3), pieces=st.booleans())
    def join_snapshot(self, at: int, pick: int, pieces: bool) -> None:
        """A snapshot of any age adds all that it contains. It removes nothing that its store had never applied."""
        if not self.snapshots:
            return
        snapshot = self.snapshots[pick % len(self.snapshots)]
        store = self.stores[at]
        before = dict(store.clock)
        store.join(over_the_wire(snapshot._replace(table=snapshot.table.copy())) if pieces else snapshot, self.now(at))
        assert covers(store.clock, before)
        assert covers(store.clock, snapshot.clock)

    @rule(at=st.integers(0, STORES - 1), dies=st.sampled_from([False, False, True]))
    def restart(self, at: int, dies: bool) -> None:
        """A store loses its memory, gets a new id, and serves again after it has joined snapshots of all others."""
        if not dies:
            return
        self.stores[at] = self.new_store(at)
        self.set_present_ids()
        for other in range(STORES):
            if other != at:
                self.stores[at].join(self.stores[other].snapshot(self.now(other)), self.now(at))
        assert not self.stores[at].delete_clock or covers(self.stores[at].clock, self.stores[at].delete_clock)

    # -- markers ---------------------------------------------------------------------------------------

    @rule(
        at=st.integers(0, STORES - 1),
        receivers=st.lists(st.sampled_from(range(STORES)), max_size=STORES),
        informed=st.lists(st.sampled_from(range(STORES)), max_size=STORES),
    )
    def mark(self, at: int, receivers: list[int], informed: list[int]) -> None:
        """A store issues a marker. Some stores apply it, and some learn which updates every store has."""
        store = self.stores[at]
        past = dict(store.clock)
        update = store.issue_marker(self.now(at))
        assert not update.writes
        self.model.add(update, past)
        for other in receivers:
            self.sync(at, other, False)
        self.promote_markers(informed)

    @rule(informed=st.lists(st.sampled_from(range(STORES)), max_size=STORES))
    def promote_markers(self, informed: list[int]) -> None:
        clocks = [store.clock for store in self.stores]
        for store in (self.stores[at] for at in informed):
            common_clock = {id_: min(clock.get(id_, 0) for clock in clocks) for id_ in store.clock}
            store.markers.promote(common_clock, store.present_ids)
            store.simplify_delete_clock()

    # -- invariants ------------------------------------------------------------------------------------

    @invariant()
    def table_shows_what_the_clock_contains(self) -> None:
        for store in self.stores:
            actual = {key: [version.dot for version in versions] for key, versions in store.table.copy().items()}
            expected = {key: self.model.visible(store.clock, key) for key in KEYS}
            assert actual == {key: dots for key, dots in expected.items() if dots}
            for versions in store.table.copy().values():
                for version in versions:
                    update = self.model.updates[version.dot]
                    assert version.timestamp == update.timestamp
                    assert version.past == update.past
            assert store.table.conflicts == sum(len(dots) > 1 for dots in expected.values())

    @invariant()
    def simplified_metadata_is_covered_by_the_same_stores(self) -> None:
        pasts = [*(client.past for client in self.clients), *(dict(store.clock) for store in self.stores)]
        for store in self.stores:
            for past in (past for past in pasts if covers(store.clock, past)):
                simplified = store.markers.simplify(past)
                if simplified is not past:
                    for other in self.stores:
                        assert covers(other.clock, simplified) == covers(other.clock, past)

    @invariant()
    def at_most_one_sibling_of_each_replica(self) -> None:
        for store in self.stores:
            for versions in store.table.copy().values():
                assert len({version.origin for version in versions}) == len(versions)

    @invariant()
    def clocks_are_exact_and_causally_closed(self) -> None:
        for store in self.stores:
            for update in self.model.covered(store.clock):
                assert covers(store.clock, self.model.pasts[update.dot])
                assert covers(store.clock, update.deps)
            for origin, last in store.clock.items():
                assert all((origin, counter) in self.model.updates for counter in range(1, last + 1))

    @invariant()
    def pending_updates_wait_for_missing_dots(self) -> None:
        for store in self.stores:
            assert len(store.pending) <= SETTINGS.max_pending
            for item in store.pending:
                origin, counter = item.waits_for
                assert store.clock.get(origin, 0) < counter
                assert store.clock.get(item.update.origin, 0) < item.update.counter

    @invariant()
    def delete_clock_covers_the_cause_of_every_absence(self) -> None:
        for store in self.stores:
            assert covers(store.clock, store.delete_clock)
            at_others = [other.clock for other in self.stores if covers(other.clock, store.delete_clock)]
            for update in self.model.covered(store.clock):
                if any(write.value is None for write in update.writes):
                    assert all(clock.get(update.origin, 0) >= update.counter for clock in at_others)

    @invariant()
    def logs_have_no_gaps_and_end_at_the_clock(self) -> None:
        for store in self.stores:
            sizes = 0
            for origin in store.log.origins():
                updates = logged_updates(store.log, origin)
                last = store.clock[origin]
                counters = [update.counter for update in updates]
                assert counters == list(range(last - len(updates) + 1, last + 1))
                assert all(self.model.updates[update.dot] == update for update in updates)
                sizes += sum(len(encode_update(update)) + ENTRY_OVERHEAD_BYTES for update in updates)
            assert store.log.bytes == sizes <= SETTINGS.max_log_bytes

    def teardown(self) -> None:
        """At the end, stores that have received all updates, in any order, show the same versions."""
        for at, store in enumerate(self.stores):
            for _ in range(len(self.model.updates)):
                missed = [u for u in self.model.updates.values() if store.clock.get(u.origin, 0) < u.counter]
                store.receive([u for u in reversed(missed) if u.origin != store.replica_id], self.now(at))
            assert len(store.pending) == 0
        for store in self.stores[1:]:
            assert store.clock == self.stores[0].clock
            assert store.table.copy() == self.stores[0].table.copy()


def over_the_wire(snapshot: Snapshot) -> Snapshot:
    """Return ``snapshot`` after it was cut into pieces, encoded, decoded and put together again."""
    pull = SnapshotPull("r9:80")
    for piece in cut("sender:1@0000000000000001", "name", snapshot, 600):
        assert pull.stage(decode(encode(piece), SnapshotPiece))
    return pull.snapshot()


TestStores = Stores.TestCase
TestStores.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)

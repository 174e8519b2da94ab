"""Several CausalStores against a model that keeps every update for ever and recomputes what a clock must show.

Updates, snapshots and deltas reach the stores in any order, twice, late, or not at all; stores die and come back
empty under a new id; clients hop. The model knows two things of its own: which versions a set of updates leaves, and
what a client's answers were really made of. It knows nothing of delete clocks, queues, logs, joins and markers.
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
from store.versions import Change, Update, Version, decode_update, encode_update

STORES = 3
CLIENTS = 2
KEYS = ("a", "b")
SETTINGS = StoreSettings(max_log_bytes=700, log_segment_bytes=150, max_pending=4)
"""A log of about six updates and a short queue: cutting and turning away happen all the time."""


@dataclass
class Client:
    """``past``: what it carries; ``true_past``: what its answers were made of; ``gone``: key -> dots of versions
    that were gone, and would have been shown, when it read the key: it must never be shown one of them again."""

    past: Clock = field(default_factory=dict)
    true_past: Clock = field(default_factory=dict)
    gone: dict[str, set[Dot]] = field(default_factory=dict)


class Model:
    """All updates ever issued, and what their issuing was really based on."""

    def __init__(self) -> None:
        self.updates: dict[Dot, Update] = {}
        self.pasts: dict[Dot, Clock] = {}

    def add(self, update: Update, past: Clock) -> None:
        self.updates[update.dot] = update
        self.pasts[update.dot] = join(past, {update.origin: update.counter})

    def covered(self, clock: Clock) -> list[Update]:
        return [update for (origin, counter), update in self.updates.items() if counter <= clock.get(origin, 0)]

    def visible(self, clock: Clock, key: str) -> list[Dot]:
        """Return the dots of the versions that the updates in ``clock`` leave under ``key``, the winner first."""
        writes = [(update, write) for update in self.covered(clock) for write in update.writes if write.key == key]
        replaced = {tuple(dot) for _, write in writes for dot in write.replaces}
        left = [u for u, write in writes if write.value is not None and u.dot not in replaced]
        return [u.dot for u in sorted(left, key=lambda u: (u.timestamp, u.origin), reverse=True)]

    def outranking(self, clock: Clock, key: str, winner: Dot | None) -> set[Dot]:
        """Return the versions in ``clock`` that do not show, and would outrank ``winner`` if they did."""
        rank = (0, "") if winner is None else (self.updates[winner].timestamp, winner[0])
        shown = set(self.visible(clock, key))
        return {
            update.dot
            for update in self.covered(clock)
            for write in update.writes
            if write.key == key and write.value is not None
            if update.dot not in shown and (update.timestamp, update.origin) > rank
        }


def fingerprint(store: CausalStore) -> Any:
    pending = sorted(waiting.update.dot for waiting in store.pending)
    return (
        dict(store.clock),
        store.table.copy(),
        dict(store.delete_clock),
        pending,
        store.log.count,
        store.clock_changes,
    )


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
        self.tell_who_is_present()

    def new_store(self, at: int) -> CausalStore:
        self.boots += 1
        return CausalStore(replica_id(f"r{at}:80", self.boots), SETTINGS)

    def tell_who_is_present(self) -> None:
        for store in self.stores:
            store.present_ids = frozenset(other.replica_id for other in self.stores)

    def now(self, at: int) -> Instant:
        self.time_s += 0.001
        return Instant(self.time_s, round((self.time_s + self.skews[at] * 0.01) * 1e6) + 10**9)

    # -- clients ---------------------------------------------------------------------------------------

    def admitted(self, client: Client, at: int) -> bool:
        """Check admission against what the client has really seen, and return whether it is let in."""
        store = self.stores[at]
        before = fingerprint(store)
        if covers(store.clock, client.past):
            assert covers(store.clock, client.true_past), "let in without what its earlier answers were made of"
            return True
        with pytest.raises(DependenciesMissing) as unreached:
            store.get("a", client.past, self.now(at))
        assert unreached.value.missing == missing(store.clock, client.past)
        with pytest.raises(DependenciesMissing):
            store.put(Change("a", b"refused"), client.past, self.now(at))
        assert fingerprint(store) == before
        return False

    def told(self, client: Client, at: int, metadata: Clock, true_past: Clock) -> None:
        """Note an answer. Its metadata names what the store has, and stands for all that the answer was made of."""
        assert covers(self.stores[at].clock, metadata)
        client.true_past = join(client.true_past, true_past)
        client.past = metadata
        for store in self.stores:
            if covers(store.clock, metadata):
                assert covers(store.clock, client.true_past)

    def read(self, client: Client, at: int, key: str, versions: tuple[Version, ...]) -> Clock:
        """Check what was shown of a key; return what it was made of."""
        clock = self.stores[at].clock
        dots = [version.dot for version in versions]
        assert dots == self.model.visible(clock, key)[: len(dots)]
        winner = dots[0] if dots else None
        assert winner not in client.gone.get(key, ()), "shown again what was gone"
        client.gone.setdefault(key, set()).update(self.model.outranking(clock, key, winner))
        made_of: Clock = {}
        for dot in dots:
            made_of = join(made_of, self.model.pasts[dot])
        return made_of

    @rule(
        who=st.integers(0, CLIENTS - 1),
        route=st.lists(st.integers(0, STORES - 1), min_size=1, max_size=3),
        key=st.sampled_from(KEYS),
        siblings=st.booleans(),
    )
    def get(self, who: int, route: list[int], key: str, siblings: bool) -> None:
        client = self.clients[who]
        for at in route:
            if self.admitted(client, at):
                found = self.stores[at].get(key, client.past, self.now(at), all_siblings=siblings)
                assert len(found.versions) == len(self.model.visible(self.stores[at].clock, key))
                made_of = self.read(client, at, key, found.versions if siblings else found.versions[:1])
                self.told(client, at, found.metadata, made_of)

    @rule(
        who=st.integers(0, CLIENTS - 1), at=st.integers(0, STORES - 1), limit=st.integers(1, 4), conflicts=st.booleans()
    )
    def list_keys(self, who: int, at: int, limit: int, conflicts: bool) -> None:
        client, store = self.clients[who], self.stores[at]
        if self.admitted(client, at):
            listed = store.list_keys("", client.past, self.now(at), limit=limit, conflicts=conflicts)
            least = 2 if conflicts else 1
            expected = [key for key in KEYS if len(self.model.visible(store.clock, key)) >= least]
            assert listed.keys == expected[:limit]
            assert listed.next == (expected[limit - 1] if len(expected) > limit else None)
            made_of: Clock = {}
            for key in listed.keys:
                assert listed.items[key] == store.table.get(key)[0].value
                made_of = join(made_of, self.read(client, at, key, store.table.get(key)[:1]))
            self.told(client, at, listed.metadata, made_of)

    changes = st.dictionaries(st.sampled_from(KEYS), st.one_of(st.none(), st.binary(max_size=3)), max_size=2)

    @rule(
        who=st.integers(0, CLIENTS - 1),
        at=st.integers(0, STORES - 1),
        reads=st.lists(st.sampled_from(KEYS), unique=True, max_size=2),
        writes=changes,
    )
    def transact(self, who: int, at: int, reads: list[str], writes: dict[str, bytes | None]) -> None:
        client, store = self.clients[who], self.stores[at]
        if not self.admitted(client, at):
            return
        held = {key: self.model.visible(store.clock, key) for key in KEYS}
        made_of: Clock = {}
        for key in reads:
            made_of = join(made_of, self.read(client, at, key, store.table.get(key)[:1]))
        done = store.transact(reads, [Change(k, v) for k, v in writes.items()], client.past, self.now(at))
        assert done.missing_keys == [key for key in reads if not held[key]]
        self.issued(client, at, done.update, held, writes, join(client.true_past, made_of))
        own = done.update.past if done.update else {}
        self.told(client, at, done.metadata, join(made_of, own))

    @rule(
        who=st.integers(0, CLIENTS - 1),
        at=st.integers(0, STORES - 1),
        key=st.sampled_from(KEYS),
        value=st.one_of(st.none(), st.binary(max_size=3)),
        condition=st.sampled_from(["", "", "", "matches", "other", "absent", "any"]),
    )
    def write(self, who: int, at: int, key: str, value: bytes | None, condition: str) -> None:
        client, store = self.clients[who], self.stores[at]
        if not self.admitted(client, at):
            return
        held = {key: self.model.visible(store.clock, key)}
        etag = store.table.get(key)[0].etag if held[key] else None
        asked: tuple[str, ...] | None = {"matches": (etag or '"none"',), "other": ('"none"',), "any": ("*",)}.get(
            condition
        )
        change = Change(key, value, None, asked, condition == "absent")
        holds = {"matches": bool(held[key]), "other": False, "any": bool(held[key]), "absent": not held[key], "": True}
        if not holds[condition]:
            before = fingerprint(store)
            with pytest.raises(PreconditionFailed) as mismatch:
                store.put(change, client.past, self.now(at))
            assert fingerprint(store) == before
            assert mismatch.value.etag == etag
            self.told(client, at, mismatch.value.metadata, self.read(client, at, key, store.table.get(key)[:1]))
            return
        wrote = store.put(change, client.past, self.now(at))
        assert wrote.existed == bool(held[key])
        self.issued(client, at, wrote.update, held, {key: value}, client.true_past)
        self.told(client, at, wrote.metadata, wrote.update.past if wrote.update else {})
        if wrote.update is None:
            self.read(client, at, key, ())

    @rule(key=st.sampled_from(KEYS), deletes=st.lists(st.booleans(), min_size=STORES, max_size=STORES))
    def write_everywhere(self, key: str, deletes: list[bool]) -> None:
        """Clients without a past write one key at every store."""
        for at, is_delete in enumerate(deletes):
            self.clients.append(Client())
            self.write(len(self.clients) - 1, at, key, None if is_delete else b"%d" % at, "")
            self.clients.pop()

    @rule(who=st.integers(0, CLIENTS - 1))
    def another_client(self, who: int) -> None:
        self.clients[who] = Client()

    @rule(who=st.integers(0, CLIENTS - 1), at=st.integers(0, STORES - 1), key=st.sampled_from(KEYS))
    def delete(self, who: int, at: int, key: str) -> None:
        self.write(who, at, key, None, "")

    def issued(
        self,
        client: Client,
        at: int,
        update: Update | None,
        held: dict[str, list[Dot]],
        writes: dict[str, bytes | None],
        true_past: Clock,
    ) -> None:
        """Check an update that was just issued: the next dot, all writes that do something, replacing all held."""
        effective = {key: value for key, value in writes.items() if value is not None or held[key]}
        if update is None:
            assert not effective
            return
        store = self.stores[at]
        assert {write.key: write.value for write in update.writes} == effective
        for write in update.writes:
            assert [tuple(dot) for dot in write.replaces] == held[write.key]
            for dot in held[write.key]:
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
        """Updates arrive in any order, with gaps before them, and again."""
        store = self.stores[at]
        foreign = [update for update in self.model.updates.values() if update.origin != store.replica_id]
        unseen = [update for update in foreign if store.clock.get(update.origin, 0) < update.counter]
        chosen = [pool[pick % len(pool)] for pool, picks in ((unseen, news), (foreign, old)) if pool for pick in picks]
        store.receive(chosen, self.now(at))

    @rule(source=st.integers(0, STORES - 1), at=st.integers(0, STORES - 1), limit=st.integers(1, 10))
    def receive_delta(self, source: int, at: int, limit: int) -> None:
        """What a log offers is applicable in the order in which it comes, up to what the log no longer has."""
        if source == at:
            return
        giver, taker = self.stores[source], self.stores[at]
        delta = giver.log.delta(
            taker.clock, giver.clock, own=giver.replica_id, relay_before_s=float("inf"), limit=limit, limit_bytes=10**6
        )
        before = taker.applied_count
        taker.receive([decode_update(encoded) for encoded in delta.batch], self.now(at))
        if not delta.truncated:
            assert taker.applied_count - before >= len(delta.batch)
            assert delta.more or covers(taker.clock, giver.clock)

    @rule(source=st.integers(0, STORES - 1), at=st.integers(0, STORES - 1), whole=st.booleans())
    def sync(self, source: int, at: int, whole: bool) -> None:
        """One store takes over all that another has."""
        if source == at:
            return
        if whole:
            self.stores[at].join(self.stores[source].snapshot(self.now(source)), self.now(at))
        else:
            self.receive_delta(source, at, 1000)

    @rule(source=st.integers(0, STORES - 1))
    def take_snapshot(self, source: int) -> None:
        self.snapshots = [*self.snapshots[-3:], self.stores[source].snapshot(self.now(source))]

    @rule(at=st.integers(0, STORES - 1), pick=st.integers(0, 3), pieces=st.booleans())
    def join_snapshot(self, at: int, pick: int, pieces: bool) -> None:
        """A snapshot, however old, brings all that it has and takes nothing away that it has not seen."""
        if not self.snapshots:
            return
        snapshot = self.snapshots[pick % len(self.snapshots)]
        store = self.stores[at]
        before = dict(store.clock)
        store.join(over_the_wire(snapshot) if pieces else snapshot, self.now(at))
        assert covers(store.clock, before)
        assert covers(store.clock, snapshot.clock)

    @rule(at=st.integers(0, STORES - 1), dies=st.sampled_from([False, False, True]))
    def restart(self, at: int, dies: bool) -> None:
        """A store dies with its memory, comes back under a new id, and serves once it has what all others have."""
        if not dies:
            return
        self.stores[at] = self.new_store(at)
        self.tell_who_is_present()
        for other in range(STORES):
            if other != at:
                self.stores[at].join(self.stores[other].snapshot(self.now(other)), self.now(at))
        assert not self.stores[at].delete_clock or covers(self.stores[at].clock, self.stores[at].delete_clock)

    # -- markers ---------------------------------------------------------------------------------------

    @rule(
        at=st.integers(0, STORES - 1),
        reaches=st.lists(st.sampled_from(range(STORES)), max_size=STORES),
        knows=st.lists(st.sampled_from(range(STORES)), max_size=STORES),
    )
    def mark(self, at: int, reaches: list[int], knows: list[int]) -> None:
        """A store issues a marker, which reaches some; some come to know what everybody has."""
        store = self.stores[at]
        past = dict(store.clock)
        update = store.issue_marker(self.now(at))
        assert not update.writes
        self.model.add(update, past)
        for other in reaches:
            self.sync(at, other, False)
        self.promote_markers(knows)

    @rule(knows=st.lists(st.sampled_from(range(STORES)), max_size=STORES))
    def promote_markers(self, knows: list[int]) -> None:
        clocks = [store.clock for store in self.stores]
        for store in (self.stores[at] for at in knows):
            everybody = {id_: min(clock.get(id_, 0) for clock in clocks) for id_ in store.clock}
            store.markers.promote(everybody, store.present_ids)
            store.simplify_delete_clock()

    # -- invariants ------------------------------------------------------------------------------------

    @invariant()
    def what_shows_is_what_the_clock_says(self) -> None:
        for store in self.stores:
            shown = {key: [version.dot for version in versions] for key, versions in store.table.copy().items()}
            expected = {key: self.model.visible(store.clock, key) for key in KEYS}
            assert shown == {key: dots for key, dots in expected.items() if dots}
            for versions in store.table.copy().values():
                for version in versions:
                    update = self.model.updates[version.dot]
                    assert version.timestamp == update.timestamp
                    assert version.past == update.past
            assert store.table.conflicts == sum(len(dots) > 1 for dots in expected.values())

    @invariant()
    def simple_metadata_demands_the_same_of_every_member_as_in_full(self) -> None:
        pasts = [*(client.past for client in self.clients), *(dict(store.clock) for store in self.stores)]
        for store in self.stores:
            for past in (past for past in pasts if covers(store.clock, past)):
                simple = store.markers.simplify(past)
                if simple is not past:
                    for other in self.stores:
                        assert covers(other.clock, simple) == covers(other.clock, past)

    @invariant()
    def there_is_at_most_one_sibling_of_each_replica(self) -> None:
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
    def what_waits_waits_for_something_that_is_missing(self) -> None:
        for store in self.stores:
            assert len(store.pending) <= SETTINGS.max_pending
            for waiting in store.pending:
                origin, counter = waiting.waits_for
                assert store.clock.get(origin, 0) < counter
                assert store.clock.get(waiting.update.origin, 0) < waiting.update.counter

    @invariant()
    def the_delete_clock_stands_for_every_absence(self) -> None:
        for store in self.stores:
            assert covers(store.clock, store.delete_clock)
            at_others = [other.clock for other in self.stores if covers(other.clock, store.delete_clock)]
            for update in self.model.covered(store.clock):
                if any(write.value is None for write in update.writes):
                    assert all(clock.get(update.origin, 0) >= update.counter for clock in at_others)

    @invariant()
    def logs_have_no_gap_and_reach_up_to_the_clock(self) -> None:
        for store in self.stores:
            sizes = 0
            for origin in store.log.origins():
                updates = store.log.updates(origin)
                last = store.clock[origin]
                counters = [update.counter for update in updates]
                assert counters == list(range(last - len(updates) + 1, last + 1))
                assert all(self.model.updates[update.dot] == update for update in updates)
                sizes += sum(len(encode_update(update)) + ENTRY_OVERHEAD_BYTES for update in updates)
            assert store.log.bytes == sizes <= SETTINGS.max_log_bytes

    def teardown(self) -> None:
        """Whatever has happened: stores that get the same updates, in whatever order, show the same."""
        for at, store in enumerate(self.stores):
            for _ in range(len(self.model.updates)):
                missed = [u for u in self.model.updates.values() if store.clock.get(u.origin, 0) < u.counter]
                store.receive([u for u in reversed(missed) if u.origin != store.replica_id], self.now(at))
            assert len(store.pending) == 0
        for store in self.stores[1:]:
            assert store.clock == self.stores[0].clock
            assert store.table.copy() == self.stores[0].table.copy()


def over_the_wire(snapshot: Snapshot) -> Snapshot:
    """Return ``snapshot`` as it arrives: cut in pieces, encoded, decoded, staged."""
    pull = SnapshotPull("r9:80")
    for piece in cut("giver", "name", snapshot, 600):
        assert pull.stage(decode(encode(piece), SnapshotPiece))
    return pull.snapshot()


TestStores = Stores.TestCase
TestStores.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)

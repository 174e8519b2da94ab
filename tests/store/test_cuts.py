"""Cuts: whatever the store does between the steps of the reader, it reads what the table had at one moment."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store import cuts
from store.causal import CausalStore
from store.clock import Instant
from store.cuts import OVERTAKEN, REPLACED, Cut
from store.snapshot import Snapshot
from store.versions import Change, Update, Versions
from tests.support.wire import EPOCH_US, write

KEYS = ("a/1", "a/2", "a/3", "a/4", "b/1", "b/2", "b/3")

steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["write", "write", "delete", "expiring", "both", "receive", "receive", "join", "time", "begin", "step"]
        ),
        st.integers(0, 2),
        st.sampled_from(KEYS),
        st.integers(0, 2),
    ),
    max_size=60,
)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reader look at two keys at a time."""
    monkeypatch.setattr(cuts, "STEP_KEYS", 2)


def begin(store: CausalStore, prefix: str = "", has_room: Callable[[int], bool] = lambda _: True) -> Cut:
    return store.begin_cut(prefix, {}, Instant(1000.0, EPOCH_US), has_room=has_room).cut


class Reading:
    """A cut of ``store``, and what it has to return."""

    def __init__(self, store: CausalStore, prefix: str) -> None:
        self._store = store
        self.cut = begin(store, prefix)
        self.expected = {key: each for key, each in store.table.copy().items() if key.startswith(prefix)}
        self.read: dict[str, Versions] = {}

    def step(self) -> None:
        for key, versions in self.cut.step(self._store.table, 1):
            assert key not in self.read, "read twice"
            self.read[key] = versions

    def finish(self) -> None:
        while not self.cut.is_over:
            self.step()
        assert not self.cut.failure
        assert self.read == self.expected
        assert len(self.read) == self.cut.count
        assert not self.cut._preserved
        assert not self.cut._reduced


class Run:
    """Three stores that write, exchange updates and snapshots, and let versions expire, while cuts are read."""

    def __init__(self) -> None:
        self.stores = [CausalStore(name) for name in "abc"]
        self.updates: list[Update] = []
        self.readings: list[Reading] = []
        self.wall_us = EPOCH_US

    def do(self, number: int, what: str, at: int, key: str, other: int) -> None:
        store, now = self.stores[at], Instant(1000.0, self.wall_us)
        value = b"%d" % number
        if what in ("write", "delete", "expiring"):
            ttl_us = 10 if what == "expiring" else None
            change = Change(key, None) if what == "delete" else Change(key, value, ttl_us)
            self.note(store.put(change, {}, now).update)
        elif what == "both":
            self.note(store.transact([], [Change(each, value) for each in KEYS[::2]], {}, now).update)
        elif what == "receive" and other != at:
            sender = self.stores[other]
            store.receive([u for u in self.updates if sender.clock.get(u.origin, 0) >= u.counter], now)
        elif what == "join" and other != at and store.clock:
            self.join_partial(store, self.stores[other], now)
        elif what == "time":
            self.wall_us += 4
            store.expire(Instant(1000.0, self.wall_us))
        elif what == "begin":
            self.readings.append(Reading(store, ("", "a/", "b/")[other]))
        elif what == "step":
            for reading in self.readings:
                reading.step()

    def join_partial(self, store: CausalStore, sender: CausalStore, now: Instant) -> None:
        """Join what the sender has above the common past, as a partial snapshot does."""
        snapshot = sender.snapshot(now)
        since = {o: min(n, store.clock[o]) for o, n in snapshot.clock.items() if o in store.clock}
        if since:
            store.join(Snapshot(*snapshot[:5], since, {}, rest_unchanged=False), now)

    def note(self, update: Update | None) -> None:
        if update is not None:
            self.updates.append(update)


@settings(max_examples=150, deadline=None)
@given(drawn=steps)
def test_a_cut_is_what_the_table_had_when_it_began(drawn: list[tuple[str, int, str, int]]) -> None:
    run = Run()
    for number, step in enumerate(drawn):
        run.do(number, *step)
    for reading in run.readings:
        reading.finish()
    for store in run.stores:
        store.put(Change("z", b"1"), {}, Instant(1000.0, run.wall_us))
        assert store.table._readers == (), "a reader that is over stays"


def test_the_property_above_meets_every_kind_of_change() -> None:
    """Long random runs reach what few of the small ones do: keys that lose one of several versions, and come back."""
    kinds = ["write", "delete", "expiring", "both", "receive", "receive", "join", "time", "begin", "step"]
    seen = {"reduced": 0, "preserved": 0, "read": 0}
    for seed in range(30):
        random, run = Random(seed), Run()
        for number in range(120):
            run.do(number, random.choice(kinds), random.randrange(3), random.choice(KEYS), random.randrange(3))
            for reading in run.readings:
                seen["reduced"] += bool(reading.cut._reduced)
                seen["preserved"] += bool(reading.cut._preserved)
        for reading in run.readings:
            reading.finish()
            seen["read"] += len(reading.read)
    assert min(seen.values()) > 100, seen


def conflicting_store() -> tuple[CausalStore, Update, Update]:
    """Return a store with two versions of the key k, and their updates."""
    store, other = CausalStore("a"), CausalStore("b")
    first, second = write(store, "k", b"1"), write(other, "k", b"2")
    store.receive([second], Instant(1000.0, EPOCH_US))
    return store, first, second


def test_a_key_that_loses_one_of_two_versions_is_read_as_it_was() -> None:
    store, first, second = conflicting_store()
    cut = begin(store)
    before = store.table.get("k")
    other = CausalStore("c")
    other.receive([first], Instant(1000.0, EPOCH_US))
    store.receive([write(other, "k", None)], Instant(1000.0, EPOCH_US))
    assert [version.dot for version in store.table.get("k")] == [second.dot]
    assert cut.step(store.table, 1) == [("k", before)]
    while not cut.is_over:
        assert cut.step(store.table, 1) == []


def test_a_key_whose_new_version_goes_again_is_read_once() -> None:
    """Nothing in the versions that the key has at the end shows that it has changed."""
    store, first, second = conflicting_store()
    cut = begin(store)
    other = CausalStore("c")
    other.receive([first], Instant(1000.0, EPOCH_US))
    replaces_first = write(other, "k", b"3")
    store.receive([replaces_first], Instant(1000.0, EPOCH_US))
    store.receive([write(other, "k", None)], Instant(1000.0, EPOCH_US))
    assert [version.dot for version in store.table.get("k")] == [second.dot]
    read: list[Any] = []
    while not cut.is_over:
        read += cut.step(store.table, 1)
    assert [(key, {version.dot for version in versions}) for key, versions in read] == [("k", {first.dot, second.dot})]


def test_what_changes_is_preserved_only_until_the_reader_takes_it() -> None:
    store = CausalStore("a")
    for n in range(100):
        write(store, f"{n:03}", b"v" * 1000)
    sizes: list[int] = []

    def has_room(size: int) -> bool:
        sizes.append(size)
        return True

    cut = begin(store, has_room=has_room)
    for n in range(99, -1, -1):
        write(store, f"{n:03}", b"new")
        cut.step(store.table, 1)
    assert 0 < max(sizes) < 4_000
    assert cut.bytes < 2_000
    while not cut.is_over:
        cut.step(store.table, 1)


def test_a_cut_that_may_keep_no_more_fails_and_lets_go() -> None:
    store = CausalStore("a")
    for n in range(10):
        write(store, f"{n}", b"v" * 1000)
    cut = begin(store, has_room=lambda size: size < 5_000)
    for n in range(10):
        write(store, f"{n}", b"new")
    assert [cut.failure, cut.is_over] == [OVERTAKEN, True]
    assert not cut._preserved
    assert cut.step(store.table, 1) == []
    assert store.table._readers == ()


def test_keys_outside_of_the_prefix_and_keys_that_were_read_cost_nothing() -> None:
    store = CausalStore("a")
    for key in KEYS:
        write(store, key, b"1")
    cut = begin(store, "a/", has_room=lambda _: False)
    cut.step(store.table, 1)
    write(store, "b/1", b"2")
    write(store, "a/1", b"2")
    write(store, "a/0", b"2")
    write(store, "a/9", b"2")
    failures = [cut.failure]
    write(store, "a/4", b"2")
    assert [*failures, cut.failure] == ["", OVERTAKEN]


def test_a_whole_snapshot_ends_a_cut_that_is_not_read_yet() -> None:
    store, other = CausalStore("a"), CausalStore("b")
    write(other, "k", b"1")
    write(store, "x", b"1")
    cut, done = begin(store), begin(store)
    while not done.is_over:
        done.step(store.table, 1)
    store.join(other.snapshot(Instant(1000.0, EPOCH_US)), Instant(1000.0, EPOCH_US))
    assert (cut.failure, cut.is_over) == (REPLACED, True)
    assert not done.failure

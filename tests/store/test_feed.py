"""The change feed: what one response tells, and followers that move between stores (contract 2.9)."""

from __future__ import annotations

import base64
import random
import zlib
from collections.abc import Callable
from functools import partial

import msgspec
import pytest

from store.causal import CausalStore
from store.clock import Instant, replica_id
from store.errors import DependenciesMissing
from store.feed import (
    MAX_UNKNOWN_ENTRIES,
    BadToken,
    FeedToken,
    adopt,
    begin_search,
    decode_token,
    encode_token,
    needs_search,
)
from store.settings import StoreSettings
from store.versions import Change, Versions, state_etag
from tools.simulation.followers import Follower

NOW = Instant(0.0, 1_000_000)
MANY = 1 << 20


def make(name: str = "a:1", feed_bytes: int = 1 << 20) -> CausalStore:
    store = CausalStore(replica_id(name, 1), settings=StoreSettings(max_feed_bytes=feed_bytes))
    store.not_serving_reason = None
    return store


def read(
    store: CausalStore,
    follower: Follower,
    now: Instant = NOW,
    max_bytes: int = MANY,
    meanwhile: Callable[[], Instant] | None = None,
) -> None:
    """Read once. ``meanwhile``: search first, and call this after the search; it returns the time then."""
    token = None if follower.token is None else adopt(store, follower.token, now)
    past = {} if token is None else token.clock
    search = None
    if meanwhile is not None and token is not None and token.since is not None:
        search = begin_search(store, token, follower.prefix, now)
        if search is not None:
            search.run()
        now = meanwhile()
    follower.take(store.changes(token, follower.prefix, past, now, max_bytes=max_bytes, search=search))


def read_until_snapshot(store: CausalStore, follower: Follower, now: Instant, max_bytes: int) -> None:
    for _ in range(500):
        read(store, follower, now, max_bytes)
        if follower.is_snapshot:
            return
    raise AssertionError("the feed does not end")


def listing(store: CausalStore, prefix: str = "") -> dict[str, Versions]:
    return {key: versions for key, versions in store.table.copy().items() if key.startswith(prefix)}


def test_the_first_response_lists_everything_and_later_ones_what_changed() -> None:
    store = make()
    for key in ("p/a", "p/b", "q"):
        store.put(Change(key, b"1"), {}, NOW)
    first = store.changes(None, "p/", {}, NOW, max_bytes=MANY)
    assert (list(first.keys), first.is_reset, first.more) == (["p/a", "p/b"], True, False)
    store.put(Change("p/b", None), {}, NOW)
    store.put(Change("p/c", b"2"), {}, NOW)
    store.put(Change("q", b"2"), {}, NOW)
    second = store.changes(first.token, "p/", {}, NOW, max_bytes=MANY)
    assert ({key: bool(versions) for key, versions in second.keys.items()}, second.is_reset) == (
        {"p/b": False, "p/c": True},
        False,
    )
    assert store.changes(second.token, "p/", {}, NOW, max_bytes=MANY).keys == {}


def test_the_token_moves_on_when_nothing_matches() -> None:
    store = make(feed_bytes=65536)
    follower = Follower("p/")
    read(store, follower)
    for number in range(2000):
        store.put(Change(f"q{number}", b"1"), {}, NOW)
        if number % 50 == 0:
            read(store, follower)
            assert follower.is_snapshot
    assert follower.token is not None
    assert not store.changes(follower.token, "p/", {}, NOW, max_bytes=MANY).is_reset


def test_a_token_older_than_what_is_remembered_resets() -> None:
    store = make(feed_bytes=65536)
    store.put(Change("gone", b"1"), {}, NOW)
    follower = Follower("")
    read(store, follower)
    store.put(Change("gone", None), {}, NOW)
    for number in range(1000):
        store.put(Change(f"k{number}", b"1"), {}, NOW)
    assert follower.token is not None
    assert store.changes(follower.token, "", {}, NOW, max_bytes=MANY).is_reset
    read(store, follower)
    assert follower.copy == listing(store)


def test_a_key_that_changes_during_a_reset_is_told_again() -> None:
    store = make()
    for number in range(10):
        store.put(Change(f"k{number}", b"1"), {}, NOW)
    follower = Follower("")
    read(store, follower, max_bytes=1500)
    assert not follower.is_snapshot
    store.put(Change("k0", b"2"), {}, NOW)
    store.put(Change("k1", None), {}, NOW)
    store.put(Change("k9", None), {}, NOW)
    read_until_snapshot(store, follower, NOW, max_bytes=1500)
    assert follower.copy == listing(store)


def test_an_expiry_is_a_change() -> None:
    store = make()
    store.put(Change("x", b"1", ttl_us=50), {}, NOW)
    follower = Follower("")
    read(store, follower)
    assert set(follower.copy) == {"x"}
    read(store, follower, Instant(0.0, NOW.wall_us + 50))
    assert follower.copy == {}


def test_a_token_works_at_another_replica_which_waits_for_its_clock() -> None:
    a, b = make("a:1"), make("b:1")
    first = a.put(Change("x", b"1"), {}, NOW).update
    follower = Follower("")
    read(a, follower)
    with pytest.raises(DependenciesMissing):
        read(b, follower)
    assert first is not None
    b.receive([first], NOW)
    b.put(Change("y", b"2"), {}, NOW)
    read(b, follower)
    assert follower.copy == listing(b)


def test_after_a_snapshot_that_skips_changes_the_feed_resets() -> None:
    a, b = make("a:1"), make("b:1")
    follower = Follower("")
    a.put(Change("x", b"1"), {}, NOW)
    b.join(a.snapshot(NOW), NOW)
    read(b, follower)
    a.put(Change("x", None), {}, NOW)
    a.put(Change("y", b"1"), {}, NOW)
    b.join(a.snapshot(NOW), NOW)
    token = follower.token
    assert token is not None
    assert b.changes(token, "", {}, NOW, max_bytes=MANY).is_reset
    read(b, follower)
    assert follower.copy == listing(b)


def test_a_search_finds_what_the_response_would_find_and_the_response_adds_what_came_later() -> None:
    store = make()
    for number in range(3000):
        store.put(Change(f"{'pq'[number % 2]}/{number:04}", b"1"), {}, NOW)
    old = Follower("p/")
    read(store, old)
    for number in range(0, 3000, 3):
        store.put(Change(f"{'pq'[number % 2]}/{number:04}", b"2"), {}, NOW)
    token = old.token
    assert token is not None
    assert not needs_search(store, token)
    store.put(Change("p/another", b"2"), {}, NOW)
    assert needs_search(store, token)
    search = begin_search(store, token, "p/", NOW)
    assert search is not None
    search.run()
    store.put(Change("p/later", b"3"), {}, NOW)
    store.put(Change("p/0000", None), {}, NOW)
    found = store.changes(token, "p/", token.clock, NOW, max_bytes=MANY, search=search)
    assert found.keys == store.changes(token, "p/", token.clock, NOW, max_bytes=MANY).keys
    assert (len(found.keys), found.keys["p/0000"], found.more) == (502, (), False)


def test_a_search_is_of_no_use_if_changes_are_forgotten_meanwhile() -> None:
    store = make(feed_bytes=200_000)
    store.put(Change("gone", b"1"), {}, NOW)
    follower = Follower("")
    read(store, follower)
    store.put(Change("gone", None), {}, NOW)

    def forget() -> Instant:
        for number in range(2000):
            store.put(Change(f"k{number}", b"1"), {}, NOW)
        return NOW

    read(store, follower, meanwhile=forget)
    assert not follower.is_snapshot or follower.copy == listing(store)
    read_until_snapshot(store, follower, NOW, MANY)
    assert follower.copy == listing(store)


# -- tokens --------------------------------------------------------------------------------------------


def token(**fields: object) -> FeedToken:
    return FeedToken("p/", {"a:1@1": 7}, {"a:1@1": 3}, 5, "a:1@1", 0, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("each", [token(), token(position="p/x", pass_clock={"a:1@1": 6}, is_reset=True)])
def test_a_token_survives_its_text(each: FeedToken) -> None:
    text = encode_token(each)
    assert decode_token(text, "p/") == each
    assert text.isascii()
    assert not set(text) & set("+/=&?# ")


def test_a_token_of_many_ids_fits_into_a_url() -> None:
    clock = {replica_id(f"10.0.0.{n % 256}:8090", n << 40 | 12345 * n): 10**6 + n for n in range(1024)}
    assert len(encode_token(FeedToken("p/", clock, clock, 5, "a:1@1", 0))) < 48 * 1024


BOMB = base64.urlsafe_b64encode(zlib.compress(b"\0" * 50_000_000)).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    ["x", "=", "é", "AAAA", "a" * 10_000, BOMB, encode_token(token())[:-4], encode_token(token()) + "AAAA"],
    ids=lambda text: text[:12],
)
def test_texts_that_are_no_tokens(text: str) -> None:
    with pytest.raises(BadToken):
        decode_token(text, "p/")


def test_a_token_cannot_name_more_replicas_than_there_can_be() -> None:
    """A request keeps its token while it waits, so this bounds what waiting requests hold."""
    store = make()
    allowed = FeedToken("", {f"x{n}": 1 for n in range(MAX_UNKNOWN_ENTRIES)}, {}, 0, "", 0)
    adopt(store, allowed, NOW)
    too_many = FeedToken("", {f"x{n}": 1 for n in range(MAX_UNKNOWN_ENTRIES + 1)}, {}, 0, "", 0)
    with pytest.raises(BadToken):
        adopt(store, too_many, NOW)


def test_a_token_names_only_updates_that_exist() -> None:
    """Otherwise it could name many replicas, and its request would be served and watch with all of them."""
    with pytest.raises(BadToken):
        decode_token(encode_token(msgspec.structs.replace(token(), clock={"a:1@1": 7, "b:1@1": 0})), "p/")


@pytest.mark.parametrize("field", ["since", "pass_clock"])
def test_the_clocks_of_a_token_name_the_same_replicas(field: str) -> None:
    forged = msgspec.structs.replace(token(), **{field: {"b:1@1": 1}})
    with pytest.raises(BadToken):
        decode_token(encode_token(forged), "p/")


def test_a_token_belongs_to_its_prefix() -> None:
    with pytest.raises(BadToken, match="another prefix"):
        decode_token(encode_token(token()), "q/")


# -- many stores ---------------------------------------------------------------------------------------


class World:
    """Three stores that exchange updates and snapshots at random, and followers that move between them.

    Wall clocks differ by up to ``SKEW_US``, and may be set back. The feed of each store remembers little.
    """

    SKEW_US = 400

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.wall_us = 1_000_000
        self.skew_us = [self.rng.randint(-self.SKEW_US, self.SKEW_US) for _ in range(3)]
        self.stores = [make(f"{name}:1", self.rng.choice([3000, 10_000, 100_000])) for name in "abc"]
        self.followers = [Follower(self.rng.choice(["", "p", "p1"])) for _ in range(3)]
        self.keys = [f"{prefix}{n}" for prefix in ("p", "q") for n in range(12)]
        self.joins = self.rng.choice([0.0, 0.0, 0.1])

    def now(self, i: int) -> Instant:
        return Instant(0.0, self.wall_us + self.skew_us[i])

    def write(self) -> None:
        i, rng = self.rng.randrange(3), self.rng
        ttl_us = rng.choice([None, None, rng.randint(1, 500)])
        if rng.random() < 0.2:
            changes = [Change(key, rng.choice([b"1", None])) for key in rng.sample(self.keys, 3)]
            self.stores[i].transact([], changes, {}, self.now(i))
        else:
            value = None if rng.random() < 0.3 else b"%d" % rng.randrange(1000)
            self.stores[i].put(Change(rng.choice(self.keys), value, None if value is None else ttl_us), {}, self.now(i))

    def exchange(self) -> None:
        i, j = self.rng.sample(range(3), 2)
        source, target = self.stores[i], self.stores[j]
        if self.rng.random() < self.joins:
            target.join(source.snapshot(self.now(i)), self.now(j))
            return
        for origin, last in list(source.clock.items()):
            for counter in range(target.clock.get(origin, 0) + 1, last + 1):
                update = source.log.get((origin, counter))
                if update is None or self.rng.random() < 0.1:
                    break
                target.receive([update], self.now(j))

    def poll(self, follower: Follower) -> None:
        i = self.rng.randrange(3)
        store, now = self.stores[i], self.now(i)
        try:
            max_bytes = self.rng.choice([1, 1500, MANY])
            read(store, follower, now, max_bytes, partial(self.meanwhile, i) if self.rng.random() < 0.4 else None)
        except DependenciesMissing:
            return
        if follower.is_snapshot:
            self.check(follower, store, exact=False)

    def meanwhile(self, i: int) -> Instant:
        """Let something happen between the search for a response and the response. Return the time at store ``i``."""
        for _ in range(self.rng.randrange(4)):
            self.wall_us += self.rng.randint(0, 20)
            self.rng.choice((self.write, self.exchange))()
        return self.now(i)

    def check(self, follower: Follower, store: CausalStore, *, exact: bool) -> None:
        """Compare the copy with a listing. Versions that expire may differ: replicas judge that by their own clocks."""
        expected = listing(store, follower.prefix)
        for key in expected.keys() | follower.copy.keys():
            there, here = expected.get(key, ()), follower.copy.get(key, ())
            if exact or all(version.expires is None for version in (*there, *here)):
                assert state_etag(here) == state_etag(there), key

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.wall_us += self.rng.randint(0, 20)
            action = self.rng.choices((self.write, self.exchange, self.roam, self.step_clock), (5, 4, 6, 0.1))[0]
            action()
        self.wall_us += 10 * self.SKEW_US + 1000
        for _ in range(60):
            self.exchange()
        for i, store in enumerate(self.stores):
            for j, other in enumerate(self.stores):
                if not store.is_causal(other.clock):
                    store.join(other.snapshot(self.now(j)), self.now(i))
            store.expire(self.now(i))
        for follower in self.followers:
            i = self.rng.randrange(3)
            read_until_snapshot(self.stores[i], follower, self.now(i), max_bytes=3000)
            self.check(follower, self.stores[i], exact=True)

    def roam(self) -> None:
        self.poll(self.rng.choice(self.followers))

    def step_clock(self) -> None:
        self.skew_us[self.rng.randrange(3)] = self.rng.randint(-self.SKEW_US, self.SKEW_US)


@pytest.mark.parametrize("block", range(10))
def test_a_copy_is_a_snapshot_whenever_no_more_follows(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the runs leave each further pass with more than two changes to the next response."""
    if block % 2:
        monkeypatch.setattr("store.feed.MAX_DIRECT", 2)
    for seed in range(block * 20, block * 20 + 20):
        World(seed).run(300)

"""Limits: each is a documented setting or a constant, and each has a defined behaviour.

Limits that clients meet are tested over HTTP, limits between replicas with replicas that the test drives step by step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from kvsite.cluster import LocalCluster
from kvsite.config import Config
from replication.errors import BadMessage
from replication.messages import Exchange, MembershipEntry, SnapshotPiece, encode
from replication.node import Node
from replication.peer_client import PeerClientSettings
from replication.replica import Replica
from replication.settings import ReplicationSettings
from store.engine import Engine, read_clocks
from store.environment import settings_of
from store.errors import OutOfMemory
from store.settings import RequestLimits, StoreSettings
from store.versions import Change
from tests.long_life.object_memory import size_bytes
from tests.long_life.support import cluster_of, report, send, status, transact
from tests.support.api import Api
from tests.support.http import Response
from tests.support.waiting import wait_until
from tests.support.wire import Wire, address, run
from tools.paths import REPOSITORY

DOCS = REPOSITORY / "docs" / "settings.md"
NAMES = ("r1", "r2", "r3")


# -- settings ----------------------------------------------------------------------------------------------------------

BOUNDS = {
    "KV_MAX_BODY_BYTES": 8 << 20,
    "KV_MAX_KEY_BYTES": 512,
    "KV_MAX_VALUE_BYTES": 1 << 20,
    "KV_MAX_CLOCK_ENTRIES": 1024,
    "KV_MAX_BATCH": 1000,
    "KV_MAX_WATCHERS": 512,
    "KV_MAX_DEFERRED": 512,
    "KV_MAX_LOG_BYTES": 64 << 20,
    "KV_MAX_MEMORY": 0,
    "KV_MAX_PENDING": 100_000,
    "KV_MAX_FEED_BYTES": 16 << 20,
    "KV_MAX_STREAMS": 256,
}


@pytest.mark.parametrize("variable", BOUNDS)
def test_each_bound_is_a_setting_with_its_default_in_the_documentation(variable: str) -> None:
    row = re.search(rf"^\| `{variable}` \| `(\d+)`", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert row is not None
    assert int(row[1]) == BOUNDS[variable]
    setting = next(setting for setting in settings_of(Config) if setting.variable == variable)
    assert setting.default == BOUNDS[variable]


def test_all_packages_have_the_same_defaults() -> None:
    """A replica that a test constructs has the limits of a server."""
    for config in (Config(), Config.from_env({})):
        assert config.store == StoreSettings()
        assert config.limits == RequestLimits()
        assert config.replication == ReplicationSettings()


# -- limits for clients ------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "KV_MAX_BODY_BYTES": 4096,
    "KV_MAX_KEY_BYTES": 8,
    "KV_MAX_VALUE_BYTES": 1000,
    "KV_MAX_CLOCK_ENTRIES": 3,
    "KV_MAX_BATCH": 4,
    "KV_MAX_MEMORY": 12_000,
    "KV_MAX_WATCHERS": 2,
    "KV_MAX_DEFERRED": 2,
    "KV_MAX_LOG_BYTES": 65_536,
    "KV_DEFER_TIMEOUT": 0,
    "KV_SYNC_INTERVAL": 0.2,
    "KV_DOWN_AFTER": 1,
}


@pytest.fixture(scope="module")
def two() -> Iterator[LocalCluster]:
    """Two replicas with limits that a test reaches quickly."""
    with cluster_of(2, **SMALL) as cluster:
        yield cluster


@pytest.fixture
def pair(two: LocalCluster) -> Iterator[LocalCluster]:
    """The two replicas without keys. After the test nothing is waiting, and both have the same clock."""
    empty(two)
    yield two
    for i in (0, 1):
        state = status(two, i)
        assert (state["deferred_requests"], state["watchers"]) == (0, 0)
    wait_until(lambda: status(two, 0)["clock"] == status(two, 1)["clock"], timeout_s=5)


def empty(cluster: LocalCluster) -> None:
    while keys := send(cluster, 0, "GET", "/kvs?limit=4").body["keys"]:
        transact(cluster, 0, dict.fromkeys(keys), w=2, w_timeout=20)
    wait_until(lambda: status(cluster, 1)["keys"] == 0, timeout_s=5)


def put(cluster: LocalCluster, i: int, key: str, value: Any, **fields: Any) -> Response:
    return send(cluster, i, "PUT", f"/kvs/{key}", {"value": value, **fields})


@pytest.mark.processes
def test_a_request_at_a_limit_is_served_and_one_above_it_gets_a_4xx_and_changes_nothing(
    pair: LocalCluster,
) -> None:
    def body_of(size: int) -> bytes:
        frame = b'{"value": 1}'
        return frame + b" " * (size - len(frame))

    def batch_of(size: int) -> Any:
        return {"reads": ["a"], "writes": [{"key": f"b{n}", "value": n} for n in range(size - 1)]}

    def past_of(entries: int) -> Any:
        return {"value": 1, "causal-metadata": {f"nobody{n}:1@000000000000000{n}": 0 for n in range(entries)}}

    table: list[tuple[str, str, Any, Any, int, str]] = [
        ("PUT", "/kvs/a", body_of(4096), body_of(4097), 413, "Body is too large: at most 4096 bytes"),
        ("PUT", "/kvs/a", {"value": "x" * 998}, {"value": "x" * 999}, 413, "Value is too large: at most 1000 bytes"),
        ("POST", "/kvs", batch_of(4), batch_of(5), 400, "A transaction has at most 4 keys"),
        ("PUT", "/kvs/a", past_of(3), past_of(4), 400, "causal-metadata has more than 3 entries"),
    ]
    for method, path, fits, exceeds, code, error in table:
        assert send(pair, 0, method, path, fits).status in (200, 201), error
        before = status(pair, 0)["clock"], send(pair, 0, "GET", "/kvs?values=true").body["items"]
        rejected = send(pair, 0, method, path, exceeds)
        assert (rejected.status, rejected.body["error"]) == (code, error)
        assert (status(pair, 0)["clock"], send(pair, 0, "GET", "/kvs?values=true").body["items"]) == before
    assert put(pair, 0, quote("ü") * 4, 1).status == 201  # 8 bytes
    rejected = put(pair, 0, quote("ü") * 4 + "x", 1)
    assert (rejected.status, rejected.body["error"]) == (400, "Key is too long")


@pytest.mark.processes
def test_a_body_far_above_the_limit_is_rejected_without_being_stored(pair: LocalCluster) -> None:
    before = status(pair, 0)["memory_bytes"]
    rejected = send(pair, 0, "PUT", "/kvs/a", b'{"value": "' + b"x" * (48 << 20) + b'"}')
    after = status(pair, 0)["memory_bytes"]
    report(f"48 MiB sent, limit 4 KiB: {rejected.status}; resident {before >> 20} -> {after >> 20} MiB")
    assert rejected.status == 413
    assert after < before + (24 << 20)


@pytest.mark.processes
def test_above_the_limits_of_deferred_requests_and_watchers_the_longest_wait_ends_early_and_others_are_served(
    pair: LocalCluster,
) -> None:
    etag = put(pair, 0, "w", 1).headers["etag"]
    unknown = {"causal-metadata": {"nobody": 1}}

    def defer(wait_s: int) -> Response:
        return send(pair, 0, "GET", f"/kvs/w?wait={wait_s}", unknown)

    def watch(wait_s: int) -> Response:
        return send(pair, 0, "GET", f"/kvs/w?wait={wait_s}", headers={"If-None-Match": etag})

    def waiting() -> tuple[int, int]:
        counts = status(pair, 0)
        return counts["deferred_requests"], counts["watchers"]

    with ThreadPoolExecutor(6) as pool:
        longest = [pool.submit(call, 50) for call in (defer, watch)]
        wait_until(lambda: waiting() == (1, 1))
        others = [pool.submit(call, 3) for call in (defer, watch)]
        wait_until(lambda: waiting() == (2, 2))
        assert not any(one.done() for one in longest)
        others += [pool.submit(call, 3) for call in (defer, watch)]
        early = [one.result(timeout=10) for one in longest]
        assert [one.status for one in early] == [503, 304]
        assert max(one.took_s for one in early) < 25
        assert int(early[0].headers["retry-after"]) >= 1
        assert waiting() <= (2, 2)
        assert send(pair, 0, "GET", "/kvs/w").body["value"] == 1
        assert put(pair, 0, "other", 1).took_s < 1
        assert [one.result().status for one in others] == [503, 304, 503, 304]
    assert send(pair, 0, "GET", "/kvs/w?wait=0.1", headers={"If-None-Match": etag}).status == 304


@pytest.mark.processes
def test_above_max_memory_writes_get_507_and_reads_deletes_and_smaller_values_succeed(pair: LocalCluster) -> None:
    past: dict[str, int] = {}
    stored = 0
    while (response := put(pair, 0, f"m{stored}", "x" * 900, **{"causal-metadata": past})).status == 201:
        past, stored = response.past, stored + 1
        assert stored < 30
    data = status(pair, 0)["data_bytes"]
    report(f"{stored} values of 902 bytes fit into 12,000; data_bytes {data}")
    assert response.status == 507
    assert "KV_MAX_MEMORY" in response.body["error"]
    assert response.past == past
    assert data <= 12_000
    assert send(pair, 0, "GET", "/kvs/m0").body["value"] == "x" * 900
    assert len(send(pair, 0, "GET", "/kvs").body["keys"]) == stored
    # A transaction is rejected as a whole.
    rejected = send(pair, 0, "POST", "/kvs", {"writes": [{"key": "m0", "value": 1}, *_large(2)]})
    assert rejected.status == 507
    assert send(pair, 0, "GET", "/kvs/m0").body["value"] == "x" * 900
    # Writes that free memory succeed, and so do writes that replace a value by one of the same size.
    assert put(pair, 0, "m1", "y" * 900).status == 200
    assert put(pair, 0, "m1", "small").status == 200
    assert put(pair, 0, "m2", "z" * 901).status == 200  # m1 freed memory
    assert send(pair, 0, "DELETE", "/kvs/m3").status == 200
    swap = [{"key": "m4", "delete": True}, {"key": "m9x", "value": "x" * 500}]
    assert send(pair, 0, "POST", "/kvs", {"writes": swap}).status == 200
    assert put(pair, 0, "new", "x" * 900).status == 201


def _large(count: int) -> list[dict[str, Any]]:
    return [{"key": f"big{n}", "value": "x" * 900} for n in range(count)]


@pytest.mark.processes
def test_a_replica_above_max_memory_still_applies_updates_of_others() -> None:
    """Otherwise replicas would not converge. A full replica rejects only the writes of its clients."""
    small, quick = {"KV_MAX_MEMORY": "12000"}, {"KV_SYNC_INTERVAL": "0.2", "KV_DOWN_AFTER": "1"}
    with cluster_of(2, start=0, **quick) as cluster:
        cluster.start_one(0)
        cluster.start_one(1, small)
        cluster.wait_ready()
        for n in range(40):
            assert put(cluster, 0, f"m{n}", "x" * 900, w=2, **{"w-timeout": 5}).status == 201
        state = status(cluster, 1)
        assert state["keys"] == 40
        assert state["data_bytes"] > 12_000
        assert put(cluster, 1, "mine", 1).status == 507
        assert put(cluster, 1, "m0", "small").status == 200
        assert send(cluster, 1, "DELETE", "/kvs/m1", {"w": 2, "w-timeout": 5}).status == 200
        # Restarted without data, it applies a snapshot of all of them.
        cluster.kill(1)
        cluster.start_one(1, small)
        cluster.wait_ready()
        assert status(cluster, 1)["keys"] == 39


@pytest.mark.processes
def test_a_member_that_lacks_more_than_the_log_contains_gets_a_snapshot(pair: LocalCluster) -> None:
    pair.kill(1)
    for n in range(600):
        assert put(pair, 0, f"k{n % 8}", n).status in (200, 201)
    log = status(pair, 0)["log"]
    report(f"600 writes into a log of 65,536 bytes: {log}")
    assert log["bytes"] <= 65_536
    assert log["updates"] < 600
    pair.start_one(1)
    pair.wait_ready()
    pair.wait_logged(1, "keys taken over")
    assert [send(pair, 1, "GET", f"/kvs/k{n}").body["value"] for n in range(8)] == list(range(592, 600))


# -- limits between replicas -------------------------------------------------------------------------------------------


def test_above_max_pending_updates_stay_at_their_sender_until_there_is_room() -> None:
    wire = Wire(store_settings=StoreSettings(max_pending=10))
    r1, r2, r3 = wire.cluster(*NAMES)
    wire.cut("r1", "r3")
    first = wire.issue("r1", "cause", b"1")
    wire.exchange("r1", "r2")
    # 50 updates of r2 follow one of r1. r3 cannot get that one from r1, and r2 relays it only after a sync interval.
    for number in range(50):
        wire.issue("r2", f"effect/{number}", b"1", first.past)
    wire.round_trip("r2", "r3")
    assert len(r3.store.pending) == 10
    assert len(r3.store.table) == 0
    for _ in range(20):
        wire.round_trip("r2", "r3")
        assert len(r3.store.pending) <= 10
    wire.flow(3.0)
    assert len(r3.store.pending) == 0
    assert r3.store.table.copy() == r2.store.table.copy() == r1.store.table.copy()
    assert len(r3.store.table) == 51


def test_a_full_pending_queue_does_not_block_updates_that_can_be_applied() -> None:
    wire = Wire(store_settings=StoreSettings(max_pending=5))
    _, _, r3 = wire.cluster(*NAMES)
    wire.start("r4", *NAMES)
    wire.flow(0.5)
    wire.cut("r1", "r3")
    wire.cut("r1", "r4")
    first = wire.issue("r1", "cause", b"1")
    wire.exchange("r1", "r2")
    for number in range(20):
        wire.issue("r2", f"effect/{number}", b"1", first.past)
    wire.round_trip("r2", "r3")
    assert len(r3.store.pending) == 5
    free = wire.issue("r4", "free", b"1")
    wire.round_trip("r4", "r3")
    assert wire.has("r3", free.dot)
    assert wire.put("r3", "own", b"1").created
    assert len(r3.store.pending) == 5
    wire.heal()
    wire.flow(3.0)
    assert {len(wire[name].store.table) for name in (*NAMES, "r4")} == {23}
    assert {len(wire[name].store.pending) for name in (*NAMES, "r4")} == {0}


def test_a_message_contains_at_most_batch_updates_and_about_batch_bytes() -> None:
    settings = ReplicationSettings(pace_s=0.0, batch_updates=100, batch_bytes=50_000)
    wire = Wire(settings=settings)
    wire.cluster("r1", "r2")
    wire.isolate("r2")
    for number in range(1_000):
        wire.issue("r1", f"k{number}", b"x" * (10 if number < 500 else 2_000))
    wire.heal()
    sizes: list[tuple[int, int]] = []
    for _ in range(300):
        request, reply = wire.exchange("r1", "r2")
        sizes += [(len(half.updates), len(encode(half))) for half in (request, reply)]
        if wire["r2"].store.clock == wire["r1"].store.clock:
            break
    report(f"most updates and bytes in a message: {max(n for n, _ in sizes)}, {max(size for _, size in sizes)}")
    assert wire["r2"].store.clock == wire["r1"].store.clock
    assert max(n for n, _ in sizes) == 100
    assert max(size for _, size in sizes) < 60_000


def test_an_update_larger_than_a_message_is_sent_alone() -> None:
    settings = ReplicationSettings(pace_s=0.0, batch_bytes=1_000)
    wire = Wire(settings=settings)
    wire.cluster("r1", "r2")
    for number in range(5):
        wire.issue("r1", f"k{number}", b"x" * 10_000)
    wire.flow(0.5)
    assert len(wire["r2"].store.table) == 5


def test_a_snapshot_is_sent_in_pieces_of_about_the_limit() -> None:
    settings = ReplicationSettings(pace_s=0.0, snapshot_piece_bytes=20_000)
    wire = Wire(settings=settings, store_settings=StoreSettings(max_log_bytes=3_000))
    wire.start("r1")
    for number in range(500):
        wire.issue("r1", f"k{number}", b"x" * 200)
    wire.start("r2", "r1")
    wire.exchange("r2", "r1")
    pieces: list[SnapshotPiece] = []
    while not (pieces and pieces[-1].last):
        _, piece = wire.pull("r2", "r1")
        assert piece is not None
        pieces.append(piece)
    sizes = [len(encode(piece)) for piece in pieces]
    report(f"{len(pieces)} pieces, at most {max(sizes)} bytes and {max(len(piece.items) for piece in pieces)} keys")
    assert sum(len(piece.items) for piece in pieces) == 500
    assert max(sizes) < 22_000


def test_at_most_max_snapshots_receivers_are_served_at_a_time() -> None:
    settings = ReplicationSettings(pace_s=0.0, snapshot_piece_bytes=2_000, max_snapshots=2)
    wire = Wire(settings=settings, store_settings=StoreSettings(max_log_bytes=1_500))
    r1 = wire.start("r1")
    for number in range(100):
        wire.issue("r1", f"k{number}", b"1")
    receivers = [f"j{number}" for number in range(6)]
    for name in receivers:
        wire.start(name, "r1")
        wire.exchange(name, "r1")
    pieces = [wire.pull(name, "r1")[1] for name in receivers]
    assert [bool(piece and piece.snapshot) for piece in pieces] == [True, True, False, False, False, False]
    assert len(r1.snapshots._transfers) == 2
    most = 0
    for _ in range(100):
        wire.flow(0.1)
        most = max(most, sum(not transfer.is_complete for transfer in r1.snapshots._transfers.values()))
    assert most <= 2
    assert [wire.state(name) for name in receivers] == ["serving"] * 6
    assert {len(wire[name].store.table) for name in receivers} == {100}
    wire.flow(40.0, step_s=1.0)
    assert len(r1.snapshots._transfers) == 0


def test_a_receiver_that_dies_during_a_snapshot_blocks_its_place_for_at_most_half_a_minute() -> None:
    settings = ReplicationSettings(pace_s=0.0, snapshot_piece_bytes=2_000, max_snapshots=1)
    wire = Wire(settings=settings, store_settings=StoreSettings(max_log_bytes=1_500))
    wire.start("r1")
    for number in range(100):
        wire.issue("r1", f"k{number}", b"1")
    wire.start("j1", "r1")
    wire.exchange("j1", "r1")
    wire.pull("j1", "r1")
    wire.crash("j1")
    wire.start("j2", "r1")
    wire.flow(35.0, step_s=0.5)
    assert wire.state("j2") == "serving"
    assert len(wire["j2"].store.table) == 100


def test_the_membership_table_has_at_most_max_members_addresses() -> None:
    """More are rejected, in PUT /view and in a message of a peer. The replica keeps those that it has."""
    wire = Wire(settings=ReplicationSettings(pace_s=0.0, max_members=10))
    r1, r2 = wire.cluster("r1", "r2")
    for number in range(8):
        assert r1.add_replica_from_view(f"n{number}:80", wire.now("r1"))
    before = dict(r1.membership.table.entries)
    with pytest.raises(BadMessage, match="more than 10 addresses"):
        r1.add_replica_from_view("one-more:80", wire.now("r1"))
    assert r1.membership.table.entries == before
    outgoing = wire.begin("r2", "r1")
    assert isinstance(outgoing.message, Exchange)
    table = {**r2.membership.table.entries, "x:80": MembershipEntry(1, 1, True), "y:80": MembershipEntry(1, 1, True)}
    with pytest.raises(BadMessage, match="more than 10 addresses"):
        run(r1.receive(msgspec.structs.replace(outgoing.message, membership=table), wire.now("r1")), wire.now("r1"))
    assert r1.membership.table.entries == before
    wire.send("r2", outgoing)
    update = wire.issue("r1", "x", b"1")
    wire.flow(0.5)
    assert wire.has("r2", update.dot)
    # A removal makes room, because the table forgets the oldest ones if it is full.
    assert r1.remove_replica_from_view("n0:80", wire.now("r1"))
    assert r1.add_replica_from_view("one-more:80", wire.now("r1"))
    assert len(r1.membership.table.entries) == 10


def test_a_view_change_for_which_the_membership_table_has_no_room_is_a_400(caplog: pytest.LogCaptureFixture) -> None:
    """The removal of an unknown address needs room, too. That of a member does not."""
    settings = ReplicationSettings(max_members=2)
    replica = Replica("127.0.0.1:21500", [], now=read_clocks(), rng=Random(1), settings=settings)
    node = Node(replica, Engine(replica.store), PeerClientSettings(), on_fatal=pytest.fail)
    api = Api(replica.store, engine=node.engine, node=node)
    assert api.ask("PUT", "/view", {"socket-address": "127.0.0.1:21501"}).status == 201
    before = contents(replica)
    full = "more than 2 addresses in the membership table"
    for method, outcome in (("PUT", "Not added"), ("DELETE", "The removal is not recorded")):
        rejected = api.ask(method, "/view", {"socket-address": "127.0.0.1:21502"})
        error = f"{outcome}: {full}; remove addresses that are not used"
        assert (rejected.status, rejected.body["error"]) == (400, error)
        assert "DELETE /view" in rejected.body["hint"]
    assert contents(replica) == before
    warnings = [f"127.0.0.1:21502 is {outcome}: {full}" for outcome in ("not added", "not recorded as removed")]
    logged = [line for line in caplog.messages if "127.0.0.1:21502" in line]
    assert logged == warnings, "nothing says that it was removed"
    assert api.ask("DELETE", "/view", {"socket-address": "127.0.0.1:21501"}).status == 200
    assert api.ask("PUT", "/view", {"socket-address": "127.0.0.1:21502"}).status == 201
    assert api.ask("DELETE", "/view", {"socket-address": "127.0.0.1:21503"}).status == 400
    assert api.ask("DELETE", "/view", {"socket-address": "127.0.0.1:21502"}).status == 200
    assert api.ask("DELETE", "/view", {"socket-address": "127.0.0.1:21503"}).status == 404, "recorded"


def contents(replica: Replica) -> tuple[dict[str, MembershipEntry], int]:
    return dict(replica.membership.table.entries), len(replica.event_log.events)


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 10, 100])
def test_the_log_uses_about_as_much_memory_as_its_limit_says(batch: int) -> None:
    """At the writer and at a receiver, with small values, for which the estimate is the hardest."""
    limit = 2_000_000
    wire = Wire(store_settings=StoreSettings(max_log_bytes=limit))
    wire.cluster(*NAMES)
    keys = [f"key-{number:04}" for number in range(1000)]
    for key in keys:
        wire.put("r1", key, b"%030d" % 0)
    wire.flow(3.0)
    before = {name: size_bytes(wire[name], without=(wire.rng,)) for name in ("r1", "r2")}
    wire.isolate("r3")
    for start in range(0, 20_000, batch):
        changes = [Change(keys[number % 1000], b"%030d" % number) for number in range(start, start + batch)]
        wire["r1"].store.transact([], changes, {}, wire.now("r1"))
        if start % 500 == 0:
            wire.flow(0.05)
    wire.flow(1.0)
    taken: dict[str, str] = {}
    ratios: list[float] = []
    for name in ("r1", "r2"):
        log = wire[name].store.log
        assert log.bytes <= limit
        assert log.bytes > limit / 3
        ratios.append((size_bytes(wire[name], without=(wire.rng,)) - before[name]) / log.bytes)
        taken[name] = f"{ratios[-1]:.2f}"
    report(f"{batch} writes per update: bytes used per byte that the log counts: {taken}")
    assert max(ratios) < 1.5


@pytest.mark.parametrize("value_bytes", [10, 1000])
def test_the_data_uses_about_as_much_memory_as_max_memory_counts(value_bytes: int) -> None:
    wire = Wire()
    wire.cluster("r1", "r2", "r3")
    others = [wire[name].id for name in ("r2", "r3")]
    for number in range(200):
        wire.put(("r2", "r3")[number % 2], "other", b"%d" % number)
    wire.flow(3.0)
    before = {name: size_bytes(wire[name], without=(wire.rng,)) for name in ("r1", "r2")}
    for number in range(5_000):
        past = {others[0]: 1 + number % 100, others[1]: 1 + 7 * number % 100}  # Equal pasts would share memory.
        wire.put("r1", f"key-{number:06}", b"%0*d" % (value_bytes, number), past)
        if number % 100 == 0:
            wire.flow(0.01)
    wire.flow(3.0)
    for name in ("r1", "r2"):
        ratio = (size_bytes(wire[name], without=(wire.rng,)) - before[name]) / wire[name].store.table.bytes
        report(f"values of {value_bytes}: {ratio:.2f} bytes used per byte that the table counts, at {name}")
        assert 0.5 < ratio < 1.2


def test_max_memory_counts_siblings_and_the_memory_that_replacing_them_frees() -> None:
    wire = Wire(store_settings=StoreSettings(max_memory_bytes=6_000))
    r1, _ = wire.cluster("r1", "r2")
    wire.isolate("r1")
    for number in range(3):
        wire.put("r1", f"k{number}", b"x" * 1_000)
        wire.put("r2", f"k{number}", b"y" * 1_000)
    wire.heal()
    wire.flow(1.5)
    assert r1.store.table.bytes > 6_000
    assert r1.store.table.conflicts == 3
    with pytest.raises(OutOfMemory):
        wire.put("r1", "new", b"1")
    clock = dict(r1.store.clock)
    wrote = wire.put("r1", "k0", b"z" * 2_000)
    assert [version.value for version in wire.get("r1", "k0", wrote.metadata).versions] == [b"z" * 2_000]  # of two
    assert sum(r1.store.clock.values()) == sum(clock.values()) + 1


def test_the_event_log_has_a_limit() -> None:
    wire = Wire(settings=ReplicationSettings(pace_s=0.0))
    r1 = wire.start("r1")
    for number in range(400):
        r1.add_replica_from_view(f"n{number % 5}:80", wire.now("r1"))
        r1.remove_replica_from_view(f"n{number % 5}:80", wire.now("r1"))
    assert len(r1.event_log.events) == 500
    assert r1.event_log.events[-1].number > 800
    assert address("r1") in r1.membership.table.members

"""Long partitions: each side writes more than the log holds.

Each test prints its measurements (``pytest -s``). The time limits that it asserts are much larger.
"""

from __future__ import annotations

import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from store.clock import Dot, covers
from store.versions import Update
from tests.long_life.support import EVERYBODY, NAMES, SMALL_LOG, items_at, report, transact
from tests.support.waiting import wait_until
from tests.support.wire import Wire
from tools.netns import client as netns_client
from tools.netns.cluster import NetnsCluster


def write_on_both_sides(wire: Wire, writes: int) -> list[Update]:
    """Put and delete on both sides of a partition (r1 and r2 | r3), half of it in shared keys, half in own keys."""
    rng = random.Random(11)
    updates: list[Update] = []
    for number in range(writes):
        for name, side in ((("r2" if number % 3 == 0 else "r1"), "left"), ("r3", "right")):
            kind = rng.random()
            key = f"shared/{rng.randrange(1000)}" if kind < 0.5 else f"{side}/{rng.randrange(3000)}"
            deletes = kind > 0.9 and bool(wire.values(name, key))
            updates.append(wire.issue(name, key, None if deletes else b'"%s %d"' % (side.encode(), number)))
        if number % 10 == 0:
            wire.flow(0.01)
        if number % 1000 == 999:
            wire.tick(1.0)
    return updates


def test_a_partition_with_10000_writes_on_each_side_past_the_log_heals_with_every_write_accounted_for() -> None:
    """Each write is there, or a later write of its key replaced it; the same on all replicas."""
    wire = Wire(store_settings=SMALL_LOG)
    replicas = wire.cluster(*NAMES)
    for number in range(1000):
        wire.issue(NAMES[number % 3], f"shared/{number}", b"0")
        wire.flow()
    wire.flow(3.0)
    wire.isolate("r3")
    updates = write_on_both_sides(wire, 10_000)
    assert all(replica.store.log.bytes <= SMALL_LOG.max_log_bytes for replica in replicas)
    assert replicas[0].store.log.count < 5_000
    wire.heal()
    began_s = wire.now_s
    while len({frozenset(replica.store.clock.items()) for replica in replicas}) > 1:
        wire.flow(0.1)
        assert wire.now_s < began_s + 10
    report(f"healed after {wire.now_s - began_s:.1f} s; conflicts: {replicas[0].store.table.conflicts}")
    assert sum(event.kind == "snapshot" for replica in replicas for event in replica.event_log.events) >= 2

    table = replicas[0].store.table.copy()
    assert all(replica.store.table.copy() == table for replica in replicas)
    present = {version.dot for versions in table.values() for version in versions}
    replaced: set[Dot] = set()
    for update in updates:
        for write in update.writes:
            replaced |= {(origin, counter) for origin, counter in write.replaces}
    for update in updates:
        assert covers(replicas[2].store.clock, update.past)
        write = update.writes[0]
        if write.value is not None:
            assert (update.dot in present) != (update.dot in replaced), update
        else:
            assert update.dot not in present
    assert replicas[0].store.table.conflicts > 300
    for key, versions in table.items():
        for one, other in itertools.combinations(versions, 2):
            assert not covers(one.past, {other.origin: other.counter}), key
            assert not covers(other.past, {one.origin: one.counter}), key


@pytest.mark.netns
@pytest.mark.slow
def test_a_real_partition_with_10000_writes_on_each_side_past_the_log_heals_with_all_of_them(
    trio: NetnsCluster,
) -> None:
    """Each side writes 5,000 own keys and 5,000 shared ones."""
    trio.isolate(2)

    def write(i: int, side: str) -> float:
        began_s = time.monotonic()
        for start in range(0, 5000, 10):
            own = {f"heal/{side}/{n:04}": f"{side} {n}" for n in range(start, start + 10)}
            transact(trio, i, {**own, **{f"heal/shared/{n:04}": f"{side} {n}" for n in range(start, start + 10)}})
        return time.monotonic() - began_s

    with ThreadPoolExecutor(2) as pool:
        sides = [pool.submit(write, i, side) for i, side in ((0, "left"), (2, "right"))]
        wrote_s = max(side.result() for side in sides)
    assert all(netns_client.status(trio, i)["log"]["bytes"] <= 256 * 1024 for i in EVERYBODY)
    trio.heal()
    healed_s = time.monotonic()
    wait_until(lambda: netns_client.has_converged(trio), timeout_s=30)
    took_s = time.monotonic() - healed_s
    report(f"10,000 writes per side in {wrote_s:.1f} s; converged {took_s:.1f} s after the heal")
    kept = []
    for i in EVERYBODY:
        assert [len(items_at(trio, i, f"heal/{side}/")) for side in ("left", "right", "shared")] == [5000, 5000, 5000]
        assert len(items_at(trio, i, "heal/shared/", conflicts=True)) == 5000
        kept.append(items_at(trio, i, "heal/"))
        for n in range(0, 5000, 499):
            siblings = netns_client.get(trio, i, f"heal/shared/{n:04}", query="?siblings=true").body["siblings"]
            assert sorted(sibling["value"] for sibling in siblings) == [f"left {n}", f"right {n}"]
    assert kept[0] == kept[1] == kept[2]
    assert all(kept[0][f"heal/{side}/{n:04}"] == f"{side} {n}" for side in ("left", "right") for n in range(5000))
    assert took_s < 15


def delete_existing(cluster: NetnsCluster, i: int, key: str, past: netns_client.Past) -> None:
    assert netns_client.delete(cluster, i, key, past).status == 200


@pytest.mark.netns
def test_concurrent_writes_of_two_clients_at_two_cut_off_replicas_converge(trio: NetnsCluster) -> None:
    """All replicas return the same winner and both siblings, until a PUT or DELETE with their metadata."""
    keys = ["put", "settle", "delete", "put-delete", "delete-delete", "new"]
    past: netns_client.Past = {}
    for key in keys[:-1]:
        past = netns_client.put(trio, 0, key, "before", past, w="all").past
    trio.partition([0], [1], [2])
    for i in (0, 1):
        for key in ("put", "settle", "delete", "new"):
            netns_client.put(trio, i, key, f"of {i}", past)
    netns_client.put(trio, 0, "put-delete", "stays", past)
    delete_existing(trio, 1, "put-delete", past)
    delete_existing(trio, 0, "delete-delete", past)
    delete_existing(trio, 1, "delete-delete", past)
    trio.heal()
    healed_s = time.monotonic()
    wait_until(lambda: netns_client.has_converged(trio), timeout_s=15)
    report(f"converged {time.monotonic() - healed_s:.2f} s after the heal")
    for key in ("put", "settle", "delete", "new"):
        read = [netns_client.get(trio, i, key, query="?siblings=true") for i in EVERYBODY]
        assert len({response.value for response in read}) == 1
        for response in read:
            assert response.body["conflicts"] == 2
            assert sorted(sibling["value"] for sibling in response.body["siblings"]) == ["of 0", "of 1"]
            assert response.body["siblings"] == read[0].body["siblings"]
            assert response.body["siblings"][0]["value"] == response.value
    assert {netns_client.get(trio, i, "put-delete").value for i in EVERYBODY} == {"stays"}
    assert {netns_client.get(trio, i, "delete-delete").status for i in EVERYBODY} == {404}
    assert {"delete", "new", "put", "settle"} <= items_at(trio, 1, "", conflicts=True).keys()

    seen = netns_client.get(trio, 2, "settle", query="?siblings=true")
    netns_client.put(trio, 1, "settle", "one", seen.past, w="all")
    deleted = netns_client.get(trio, 0, "delete", query="?siblings=true")
    delete_existing(trio, 2, "delete", deleted.past)
    wait_until(lambda: netns_client.has_converged(trio), timeout_s=5)
    for i in EVERYBODY:
        settled = netns_client.get(trio, i, "settle", query="?siblings=true")
        assert (settled.value, "conflicts" in settled.body) == ("one", False)
        assert [sibling["value"] for sibling in settled.body["siblings"]] == ["one"]
        assert netns_client.get(trio, i, "delete").status == 404

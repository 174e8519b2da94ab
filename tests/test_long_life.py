"""Long life: what a store must still be after 200,000 writes, 1,000 restarts, long partitions and dead replicas.

Each test prints what it measured (``pytest -s``); what it asserts of times is far looser than that.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvsite.cluster import LocalCluster
from replication.messages import encode
from replication.settings import ReplicationSettings
from store.clock import Clock, Dot, covers
from store.settings import StoreSettings
from store.versions import Change, Update
from tests.cluster import support as faults
from tests.cluster.netns import NetnsCluster
from tests.cluster_long.support import Past, ask, cluster_of, in_step, quantile, soon, status, transact
from tests.cluster_long.weight import traces, weight
from tests.wire import Wire

REPOSITORY = Path(__file__).resolve().parent.parent
NAMES = ("r1", "r2", "r3")

SMALL_LOG = StoreSettings(max_log_bytes=256 * 1024)
"""Some 600 updates: whoever was away for longer needs a snapshot."""


# -- 200,000 puts and deletes over 100 keys ----------------------------------------------------------------------

OPERATIONS = 200_000
KEYS = [f"gone-{number:03}" for number in range(100)]


class Clients:
    """One client per replica, each with a history of its own, that put and delete at random."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.rng = random.Random(7)
        self.pasts: dict[str, Clock] = dict.fromkeys(NAMES, {})
        self.done = 0

    def work(self, until: int) -> None:
        """Go on until ``until`` operations are done, at whatever replicas are up."""
        while self.done < until:
            for _ in range(200):
                name = self.rng.choice([name for name in NAMES if name in self.wire.processes])
                value = b'"gone-value-%020d"' % self.done if self.rng.random() < 0.6 else None
                ttl_us = self.rng.choice([None, None, 2_000_000]) if value else None
                change = Change(self.rng.choice(KEYS), value, ttl_us)
                self.pasts[name] = self.wire[name].store.put(change, self.pasts[name], self.wire.now(name)).metadata
                self.done += 1
            self.wire.flow(0.1)

    def rest_at_100_keys(self) -> dict[str, int]:
        """Let every key have one value of one size, everywhere; return how much each replica holds then."""
        for key in KEYS:
            self.wire.put("r1", key, b'"gone-value-%020d"' % 0)
        self.wire.flow(6.0)
        assert all(len(self.wire[name].store.table) == 100 for name in NAMES)
        return {name: weight(self.wire[name], but=(self.wire.rng,)) for name in NAMES}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "settings"),
    [("cut off", StoreSettings()), ("crashed", SMALL_LOG)],
    ids=["cut off, back by log", "crashed, back by snapshot"],
)
def test_after_200000_puts_and_deletes_memory_is_back_and_no_trace_of_a_deleted_key_remains(
    fault: str, settings: StoreSettings
) -> None:
    """Three replicas, one of them down for half of it: memory within 10% of what it was after the first 10,000."""
    wire = Wire(store_settings=settings)
    wire.cluster(*NAMES)
    clients = Clients(wire)
    clients.work(10_000)
    early = clients.rest_at_100_keys()
    clients.work(50_000)
    if fault == "crashed":
        wire.crash("r3")
    else:
        wire.isolate("r3")
    clients.work(150_000)
    away = {name: weight(wire[name], but=(wire.rng,)) for name in ("r1", "r2")}
    assert all(wire[name].store.log.bytes <= settings.max_log_bytes for name in ("r1", "r2"))
    wire.heal()
    if fault == "crashed":
        wire.start("r3", "r1", "r2")
        wire.flow(0.3)
    clients.work(OPERATIONS)
    late = clients.rest_at_100_keys()
    print(f"\nbytes held after 10,000: {early}; while r3 was {fault}: {away}; after 200,000: {late}")
    for name in NAMES:
        assert late[name] <= 1.1 * early[name], name

    for key in KEYS:
        wire.put("r2", key, None, wire["r2"].store.clock)
    wire.flow(6.0)
    for name in NAMES:
        store = wire[name].store
        assert (len(store.table), store.table.bytes, store.table.conflicts) == (0, 0, 0)
        assert list(store.table.keys("", "")) == []
        assert store.table.next_deadline == float("inf")
        assert (store.log.count, store.log.bytes, len(store.pending)) == (0, 0, 0)
        assert len(store.delete_clock) <= 4
        assert len(store.markers.all()) <= 3
        assert traces(wire[name], "gone-", but=(wire.rng,)) == []


def test_deadlines_of_keys_that_were_deleted_long_before_their_time_do_not_pile_up() -> None:
    wire = Wire()
    r1, r2, _ = wire.cluster(*NAMES)
    year_us = 365 * 86_400 * 1_000_000
    for number in range(10_000):
        r1.store.put(Change(f"k{number}", b"1", year_us), {}, wire.now("r1"))
        wire.put("r1", f"k{number}", None)
        if number % 100 == 0:
            wire.flow()
    wire.flow(3.0)
    held = [len(replica.store.table._deadlines) for replica in (r1, r2)]
    print(f"\ndeadlines kept of 10,000 deleted keys: {held}")
    assert max(held) <= 1_001


# -- restarts ------------------------------------------------------------------------------------------------------


def words(clock: Clock | Past) -> int:
    """Return how long a client's metadata is: the bytes of it as JSON, each counter as one digit."""
    return len(json.dumps(dict.fromkeys(clock, 1), separators=(",", ":")))


@pytest.mark.slow
def test_after_1000_restarts_metadata_and_idle_exchanges_are_no_longer_than_after_10() -> None:
    """Spread over three replicas; each incarnation writes and deletes. What was written long ago is told shortly."""
    wire = Wire()
    wire.cluster(*NAMES)
    wire.issue("r1", "first", b"1")
    wire.flow()
    client: Clock = {}
    took_s: list[float] = []
    measured: dict[int, dict[str, int]] = {}
    reads_us: dict[int, float] = {}

    def measure(restarts: int) -> None:
        wire.flow(4.0)
        old = [f"old/{number}" for number in range(0, restarts, max(1, restarts // 100))]
        fresh = [wire.get(name, key).metadata for name in NAMES for key in ("first", "gone", *old)]
        held = [wire.get(name, "first", client).metadata for name in NAMES]
        written = wire.put("r2", "new", b"1", client).metadata
        wire.flow(4.0)
        request, reply = wire.talk("r1", "r2")
        measured[restarts] = {
            "fresh client": max(map(words, fresh)),
            "client of old": max(map(words, [*held, written])),
            "entries": max(map(len, [*fresh, *held, written])),
            "exchange": len(encode(request)) + len(encode(reply)),
            "markers": max(len(wire[name].store.markers.all()) for name in NAMES),
            "log": max(wire[name].store.log.count for name in NAMES),
        }
        began_s = time.perf_counter()
        for _ in range(200):
            wire.get("r1", "first")
        reads_us[restarts] = (time.perf_counter() - began_s) / 200 * 1e6

    for number in range(1, 1001):
        name = NAMES[number % 3]
        began_s = time.perf_counter()
        wire.crash(name)
        wire.start(name, *NAMES)
        wire.flow(0.6)
        assert wire.state(name) == "serving"
        client = wire.get(name, "first", client).metadata if number % 50 else client
        client = wire.put(name, f"old/{number - 1}", b"1", client).metadata
        wire.put(name, "gone", b"1")
        client = wire.put(name, "gone", None, client).metadata
        wire.flow(0.6)
        took_s.append(time.perf_counter() - began_s)
        if number in (10, 100, 1000):
            measure(number)
    assert len(wire["r1"].store.clock) > 900
    first, last = took_s[10:60], took_s[-50:]
    print(f"\nafter restarts: {measured}")
    print(f"one restart: {1e3 * sum(first) / 50:.1f} ms at first, {1e3 * sum(last) / 50:.1f} ms at last")
    print(f"one read: {', '.join(f'{us:.1f} us after {n}' for n, us in reads_us.items())}")
    for what in ("fresh client", "client of old", "entries", "markers", "log"):
        assert measured[1000][what] <= measured[10][what], what
    # Counters and beats have a few more digits.
    assert measured[1000]["exchange"] <= measured[10]["exchange"] + 60
    assert sum(last) < 20 * sum(first) + 5

"""A replica joins without data: latency of the sender, and snapshots without part of a transaction.

Each test prints its measurements (``pytest -s``). The time limits that it asserts are much larger.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvsite.cluster import LocalCluster
from tests.long_life.support import EVERYBODY, cluster_of, has_converged, report, send, status, transact
from tests.support.waiting import wait_until
from tools.benchmark.stats import percentile
from tools.paths import REPOSITORY

JOINED_KEYS = 100_000
BEFORE_S, AFTER_S = 8.0, 4.0
"""How long latency is measured before the new replica starts, and after it is ready."""


@pytest.mark.processes
@pytest.mark.slow
def test_a_snapshot_of_100000_keys_hardly_slows_clients_of_the_sender() -> None:
    """Compares the p99 latency at the sender during the snapshot with the one before, under constant load."""
    with cluster_of(2, start=1, KV_MAX_LOG_BYTES=300 << 10) as cluster:
        for start in range(0, JOINED_KEYS, 1000):
            transact(cluster, 0, {f"k{n:06}": f"{n:064}" for n in range(start, start + 1000)})
        load = subprocess.Popen(
            [sys.executable, "-m", "tests.long_life.load", cluster.addresses[0], "300", str(JOINED_KEYS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        try:
            time.sleep(BEFORE_S)
            started_s = time.monotonic()
            cluster.start_one(1)
            wait_until(lambda: send(cluster, 1, "GET", "/healthz").status == 200, timeout_s=30)
            answered_s = time.monotonic()
            cluster.wait_ready(60)
            ready_s = time.monotonic()
            time.sleep(AFTER_S)
            output, _ = load.communicate(b"", timeout=30)
        finally:
            load.kill()
        assert load.returncode == 0
        samples = [(due, took) for due, took, _ in json.loads(output)]
        windows = {
            "before": (samples[0][0] + 2, started_s),
            "process starts": (started_s, answered_s),
            "snapshot": (answered_s, ready_s),
            "after": (ready_s + 0.5, ready_s + 4),
        }
        p99: dict[str, float] = {}
        report(f"ready {ready_s - started_s:.1f} s after its start, {ready_s - answered_s:.1f} s after it answered")
        for name, (begin_s, end_s) in windows.items():
            took = [took for due, took in samples if begin_s <= due < end_s]
            p50, p99[name] = percentile(took, 0.5), percentile(took, 0.99)
            quantiles = f"p50 {p50 * 1e3:.1f} ms, p99 {p99[name] * 1e3:.1f} ms, max {max(took) * 1e3:.0f} ms"
            report(f"{name}: {len(took)} requests, {quantiles}")
        cluster.wait_logged(1, "keys taken over")
        assert p99["snapshot"] < 5 * p99["before"] + 0.020
        wait_until(lambda: has_converged(cluster, 2), timeout_s=10)
        assert status(cluster, 1)["keys"] == JOINED_KEYS
        for n in range(0, JOINED_KEYS, 9973):
            assert send(cluster, 1, "GET", f"/kvs/k{n:06}").body == send(cluster, 0, "GET", f"/kvs/k{n:06}").body


@pytest.mark.processes
def test_no_joining_replica_and_no_listing_shows_part_of_a_transaction_of_1000_keys() -> None:
    """Each transaction writes every key of tx/, while clients list and read them at two replicas and a joining one."""
    keys = [f"tx/{n:03}" for n in range(1000)]
    stop = threading.Event()
    written = 0
    seen_values: dict[int, set[int]] = {i: set() for i in EVERYBODY}

    def write(cluster: LocalCluster) -> None:
        nonlocal written
        while not stop.is_set():
            written += 1
            transact(cluster, written % 2, dict.fromkeys(keys, written))

    def read(cluster: LocalCluster, i: int) -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            try:
                if number % 2:
                    response = send(cluster, i, "GET", "/kvs?prefix=tx/&limit=1000&values=true")
                    values = response.body.get("items")
                else:
                    response = send(cluster, i, "POST", "/kvs", {"reads": keys})
                    values = response.body.get("values")
            except OSError:
                stop.wait(0.01)  # replica 2 is not running
                continue
            if response.status == 503 and i == 2:
                continue
            assert response.status == 200, response
            assert len(values) == 1000, f"{len(values)} of 1000 keys at replica {i}"
            assert len(set(values.values())) == 1, f"mixed at replica {i}: {sorted(set(values.values()))}"
            seen_values[i].add(values["tx/000"])

    with cluster_of(3, start=2, KV_MAX_LOG_BYTES=80 << 10) as cluster, ThreadPoolExecutor(4) as pool:
        for start in range(0, 20_000, 1000):
            transact(cluster, 0, {f"k{n:06}": f"{n:064}" for n in range(start, start + 1000)})
        transact(cluster, 0, dict.fromkeys(keys, 0), w=2, w_timeout=20)
        tasks = [pool.submit(write, cluster), *(pool.submit(read, cluster, i) for i in EVERYBODY)]
        try:
            for _ in range(2):
                cluster.start_one(2)
                cluster.wait_ready()
                before = len(seen_values[2])
                wait_until(lambda: len(seen_values[2]) > before + 3, timeout_s=20)  # noqa: B023  # called before the next turn
                cluster.wait_logged(2, "keys taken over")
                cluster.kill(2)
        finally:
            stop.set()
        for task in tasks:
            task.result()
    seen = [len(seen_values[i]) for i in EVERYBODY]
    report(f"{written} transactions of 1,000 keys; seen complete at each replica: {seen}")
    assert min(seen) > 3

"""A replica joins while clients write faster than the log can remember: it catches up with few snapshots.

The log has room for about a quarter of a second of the writes. So when the new replica has pulled the first snapshot,
no log would reach back to it any more.
"""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from kvsite.cluster import LocalCluster
from replication.settings import ReplicationSettings
from tests.long_life.support import cluster_of, has_converged, report, status, transact
from tests.support.waiting import wait_until

LOG_BYTES = 1 << 20
VALUE_BYTES = 4096
KEYS = 15_000
WRITES = 20
"""Keys in one transaction of the load."""

BYTES_PER_S = 3_900_000
READS_OWN_WRITES = 30


def snapshots(cluster: LocalCluster, i: int) -> tuple[int, int]:
    """Return how many snapshots replica ``i`` has taken and given."""
    text = requests.get(f"{cluster.url(i)}/metrics", timeout=30).text
    values = {
        sample.name: int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("causeway_snapshots_")
    }
    return values["causeway_snapshots_taken_total"], values["causeway_snapshots_given_total"]


def write_at_rate(cluster: LocalCluster, i: int, stop: threading.Event, written: list[int]) -> None:
    """Overwrite keys at replica ``i``, in transactions, at half of ``BYTES_PER_S``."""
    rate = BYTES_PER_S / 2 / (WRITES * VALUE_BYTES)
    begin_s = time.monotonic()
    with requests.Session() as session:
        for number in itertools.count():
            if stop.wait(max(0.0, begin_s + number / rate - time.monotonic())):
                return
            first = (number * WRITES * 7 + i * 5) % KEYS
            writes = [
                {"key": f"k{(first + n) % KEYS:05}", "value": f"{i}-{number}-".ljust(VALUE_BYTES, "x")}
                for n in range(WRITES)
            ]
            assert session.post(f"{cluster.url(i)}/kvs", json={"writes": writes}, timeout=30).status_code == 200
            written[i] += WRITES * VALUE_BYTES


@pytest.mark.processes
@pytest.mark.slow
def test_a_replica_that_joins_under_writes_at_full_speed_needs_few_snapshots() -> None:
    with cluster_of(3, start=2, KV_MAX_LOG_BYTES=LOG_BYTES) as cluster, ThreadPoolExecutor(2) as pool:
        for start in range(0, KEYS, 50):
            transact(cluster, 0, {f"k{n:05}": "v" * VALUE_BYTES for n in range(start, start + 50)}, w=2, w_timeout=30)
        stop = threading.Event()
        written = [0, 0]
        load = [pool.submit(write_at_rate, cluster, i, stop, written) for i in range(2)]
        try:
            wait_until(lambda: min(written) > BYTES_PER_S / 2, timeout_s=30)
            begun_s, begun_bytes = time.monotonic(), sum(written)
            cluster.start_one(2)
            cluster.wait_ready(30)
            ready_s = time.monotonic() - begun_s
            taken_when_ready, _ = snapshots(cluster, 2)
            read = [0, 0]
            for number in range(READS_OWN_WRITES):
                at = number % 2
                key = f"own-{number}"
                put = requests.put(f"{cluster.url(at)}/kvs/{key}", json={"value": number}, timeout=30).json()
                past = {"causal-metadata": put["causal-metadata"]}
                got = requests.get(f"{cluster.url(2)}/kvs/{key}?wait=5", json=past, timeout=30)
                read[got.status_code == 200 and got.json()["value"] == number] += 1
                stop.wait(0.1)
            log_bytes = max(status(cluster, i)["log"]["bytes"] for i in range(3))
            took_s, wrote = time.monotonic() - begun_s, sum(written) - begun_bytes
        finally:
            stop.set()
        for task in load:
            task.result()
        taken, _ = snapshots(cluster, 2)
        given = sum(snapshots(cluster, i)[1] for i in range(2))
        wait_until(lambda: has_converged(cluster, 3), timeout_s=30)
    rate = f"{wrote / took_s / 1e6:.1f} MB/s for {took_s:.1f} s"
    report(
        f"{rate}; ready after {ready_s:.1f} s with {taken_when_ready} snapshots; {taken} taken, {given} given in all"
    )
    report(f"read-your-writes at the new replica: {read[True]} answered, {read[False]} not")
    assert wrote / took_s > BYTES_PER_S / 2, "the load was too low to prove anything"
    assert taken_when_ready <= 3
    assert taken <= 5
    assert log_bytes <= LOG_BYTES + ReplicationSettings().max_reserve_bytes
    assert given >= taken
    assert read == [0, READS_OWN_WRITES]


def peak_mib(cluster: LocalCluster, i: int) -> int:
    """Return the highest resident memory that replica ``i`` has ever had."""
    text = Path(f"/proc/{cluster.pid(i)}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:")) // 1024


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.linux
def test_the_documented_pod_stays_below_its_limit_while_a_replica_joins_under_load() -> None:
    """Contract 6: KV_MAX_MEMORY of 512 MiB in a container with 1280 MiB (docs/kubernetes.md)."""
    with cluster_of(3, start=2, KV_MAX_MEMORY=512 << 20) as cluster, ThreadPoolExecutor(2) as pool:
        keys = 512 * 1024 * 1024 // (VALUE_BYTES + 750)
        for start in range(0, keys, 250):
            transact(cluster, 0, {f"k{n:05}": "v" * VALUE_BYTES for n in range(start, start + 250)})
        assert status(cluster, 0)["data_bytes"] > 490 << 20
        stop = threading.Event()
        written = [0, 0]
        load = [pool.submit(write_at_rate, cluster, i, stop, written) for i in range(2)]
        try:
            wait_until(lambda: min(written) > BYTES_PER_S / 2, timeout_s=30)
            cluster.start_one(2)
            cluster.wait_ready(120)
            taken = status(cluster, 2)["snapshots"]["taken"]
            peaks = [peak_mib(cluster, i) for i in range(3)]
        finally:
            stop.set()
        for task in load:
            task.result()
    report(f"{keys} keys; {taken} snapshots; highest memory {peaks} MiB")
    assert taken >= 1
    assert max(peaks) < 1280 - 3 * 64, "the rest is for bodies, responses and pending updates"

"""Sixteen real replicas on one machine: five are killed and return, and an idle cluster needs little of the machine.

The test prints its measurements (``pytest -s``). The limits that it asserts are much larger.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from kvsite.cluster import LocalCluster
from tests.long_life.support import cluster_of, report, send, status
from tests.support.waiting import wait_until

REPLICAS = 16
KILLED = range(3, 8)
"""In the middle: all positions above theirs change as they return."""

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(cluster: LocalCluster, i: int) -> float:
    """Return the CPU time that replica ``i`` has used since its start."""
    fields = Path(f"/proc/{cluster.pid(i)}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def memory_mb(cluster: LocalCluster, i: int) -> float:
    return float(status(cluster, i)["memory_bytes"]) / 2**20


def wait_for_views(cluster: LocalCluster, replicas: Iterable[int], timeout_s: float) -> None:
    """Wait until the view of each of ``replicas`` is all of them."""
    replicas = list(replicas)
    expected = sorted(cluster.addresses[i] for i in replicas)
    deadline_s = time.monotonic() + timeout_s
    for i in replicas:
        wait_until(
            lambda i=i: sorted(send(cluster, i, "GET", "/view").body["view"]) == expected,  # type: ignore[misc]
            timeout_s=deadline_s - time.monotonic(),
            what=f"the view of {i}",
        )


def put(cluster: LocalCluster, i: int, key: str) -> None:
    assert send(cluster, i, "PUT", f"/kvs/{key}", {"value": key}).status == 201


@pytest.mark.linux
@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.alone
def test_sixteen_replicas_lose_five_and_get_them_back() -> None:
    everybody = range(REPLICAS)
    rest = [i for i in everybody if i not in KILLED]
    with cluster_of(REPLICAS) as cluster:
        wait_for_views(cluster, everybody, 30)
        began_s, before_s = time.monotonic(), [cpu_s(cluster, i) for i in everybody]
        memory = [memory_mb(cluster, i) for i in everybody]
        keys = [f"before/{i}" for i in everybody]
        for i, key in enumerate(keys):
            put(cluster, i, key)
        for i in KILLED:
            cluster.kill(i)
        killed_s = time.monotonic()
        wait_for_views(cluster, rest, 30)
        shrunk_s = time.monotonic() - killed_s
        for i in rest:
            keys.append(f"meanwhile/{i}")
            put(cluster, i, keys[-1])
        for i in KILLED:
            cluster.start_one(i)
        cluster.wait_ready(60)
        wait_for_views(cluster, everybody, 30)
        healed_s = time.monotonic() - killed_s
        for i in everybody:
            keys.append(f"after/{i}")
            put(cluster, i, keys[-1])
        held = sorted(key for key in keys if key not in {f"before/{i}" for i in KILLED})
        for i in everybody:
            wait_until(lambda i=i: set(held) <= listed(cluster, i), timeout_s=20, what=f"replica {i} has all keys")  # type: ignore[misc]
        assert len({frozenset(listed(cluster, i)) for i in everybody}) == 1
        used = [cpu_s(cluster, i) - before_s[i] for i in rest]
        share = sum(used) / len(used) / (time.monotonic() - began_s)
        growth = max(memory_mb(cluster, i) - memory[i] for i in rest)
        report(f"views shrunk after {shrunk_s:.1f} s, all back after {healed_s:.1f} s")
        report(f"CPU of a replica {share:.1%} of a core; memory {max(memory):.0f} MB, grown by {growth:.1f} MB")
        assert share < 0.3
        assert growth < 30


def listed(cluster: LocalCluster, i: int) -> set[str]:
    return set(send(cluster, i, "GET", "/kvs?limit=1000").body["keys"])

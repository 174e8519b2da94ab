"""Filling a real replica up to KV_MAX_MEMORY, and the memory and threads of its process."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

from kvsite.cluster import LocalCluster
from store.address import split_address

MIB = 1 << 20
VALUE_BYTES = MIB - 100


def _process_status(cluster: LocalCluster, field: str) -> int:
    """Return one number of ``/proc/<pid>/status`` of replica 0."""
    status = Path(f"/proc/{cluster.pid(0)}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{field}:"))


def peak_mib(cluster: LocalCluster) -> int:
    """Return the highest resident memory that replica 0 has ever had."""
    return _process_status(cluster, "VmHWM") // 1024


def thread_count(cluster: LocalCluster) -> int:
    """Return the number of threads of replica 0."""
    return _process_status(cluster, "Threads")


def fill(cluster: LocalCluster) -> int:
    """Write values of 1 MiB until the replica answers 507. Return how many it has."""
    connection = http.client.HTTPConnection(*split_address(cluster.addresses[0]), timeout=20)
    headers = {"Content-Type": "application/json"}
    for n in range(10_000):
        value = f"{n:06}" + "v" * (VALUE_BYTES - 6)
        connection.request("PUT", f"/kvs/key{n:05}", json.dumps({"value": value}), headers)
        response = connection.getresponse()
        response.read()
        if response.status == 507:
            connection.close()
            return n
        assert response.status == 201
    raise AssertionError("KV_MAX_MEMORY was never reached")

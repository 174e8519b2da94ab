"""Addresses that are gone, over HTTP: after the loss of all replicas, and thousands that come and go."""

from __future__ import annotations

import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvsite.cluster import LocalCluster
from replication.settings import ReplicationSettings
from store.clock import INCARNATION_RANDOM_BITS, replica_id
from tests.long_life.support import cluster_of, report, send, status
from tests.support.http import Response
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

QUICK: dict[str, Any] = {"KV_SYNC_INTERVAL": 0.2, "KV_DOWN_AFTER": 0.6}
ADDRESSES = 2_000
KEPT = ReplicationSettings().kept_removed


def kill_all_and_start(cluster: LocalCluster, *returning: int) -> None:
    """Kill all replicas; start some again, with every address in VIEW, and wait until they serve."""
    for i in range(len(cluster.addresses)):
        cluster.kill(i)
    for i in returning:
        cluster.start_one(i)
    cluster.wait_ready()


def read(cluster: LocalCluster, i: int, past: dict[str, int]) -> Response:
    return send(cluster, i, "GET", "/kvs/x?wait=5", {"causal-metadata": past})


def view(cluster: LocalCluster, i: int, method: str, address: str) -> Response:
    return send(cluster, i, method, "/view", {"socket-address": address})


def test_after_the_loss_of_all_replicas_old_clients_are_served_once_the_gone_one_is_removed() -> None:
    """A client has read a write of replica 2. All are killed; only 0 and 1 return, with all three in VIEW."""
    with cluster_of(3, **QUICK) as cluster:
        wrote = send(cluster, 2, "PUT", "/kvs/x", {"value": 1})
        origin = status(cluster, 2)["replica_id"]
        past = read(cluster, 0, wrote.body["causal-metadata"]).body["causal-metadata"]
        kill_all_and_start(cluster, 0, 1)
        waiting = send(cluster, 0, "GET", "/kvs/x?wait=1.5", {"causal-metadata": past})
        assert waiting.status == 503, "replica 2 may come back"
        assert view(cluster, 0, "DELETE", cluster.addresses[2]).status == 200
        for i in (0, 1):
            served = read(cluster, i, past)
            assert (served.status, served.body["lost"]) == (404, {origin: [1, 1]})
            assert origin not in served.body["causal-metadata"]


def test_after_the_loss_of_all_replicas_a_removal_of_an_address_that_nothing_names_serves_its_clients() -> None:
    """The client depends on a replica that started, at an address that no test uses, before this cluster was set up."""
    gone = "127.0.0.250:8090"
    origin = replica_id(gone, int(time.time() * 1000) << INCARNATION_RANDOM_BITS)
    past = {origin: 1}
    with cluster_of(2, **QUICK) as cluster:
        assert send(cluster, 0, "GET", "/kvs/x?wait=1.5", {"causal-metadata": past}).status == 503
        removed = view(cluster, 0, "DELETE", gone)
        assert (removed.status, removed.body["error"]) == (404, "View has no such replica")
        for i in (0, 1):
            served = read(cluster, i, past)
            assert (served.status, served.body["lost"]) == (404, {origin: [1, 1]})


def test_thousands_of_addresses_come_and_go_and_a_new_replica_joins() -> None:
    """At most 256 removed addresses stay, the others are forgotten within 20 s, here and at the other replica."""
    with cluster_of(3, start=2, **QUICK) as cluster:
        wait_until(lambda: len(status(cluster, 0)["view"]) == 2, timeout_s=10)
        threads_before = threads_of(cluster, 0)
        began_s = time.monotonic()
        connection = HTTPConnection(cluster.addresses[0], timeout=10)
        for number in range(ADDRESSES):
            address = f"127.9.{number // 250}.{number % 250 + 1}:9"
            for method, expected in (("PUT", 201), ("DELETE", 200)):
                body = msgspec.json.encode({"socket-address": address})
                connection.request(method, "/view", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
                assert response.status == expected
        connection.close()
        took_s = time.monotonic() - began_s
        report(f"{ADDRESSES} addresses came and went in {took_s:.1f} s")
        for i in (0, 1):
            wait_until(lambda i=i: len(left(cluster, i)) <= KEPT, timeout_s=20)  # type: ignore[misc]
            assert len(left(cluster, i)) == KEPT
            latest = f"127.9.{(ADDRESSES - 1) // 250}.{(ADDRESSES - 1) % 250 + 1}:9"
            assert latest in left(cluster, i)
        # The server starts threads for requests as it needs them; those for peers have ended.
        wait_until(lambda: threads_of(cluster, 0) < threads_before + ADDRESSES / 20, timeout_s=10)
        cluster.start_one(2)
        cluster.wait_ready()
        wrote = send(cluster, 2, "PUT", "/kvs/x", {"value": 1, "w": "all", "w-timeout": 5})
        assert (wrote.status, wrote.body["acks"]) == (201, 3)
        assert sorted(send(cluster, 0, "GET", "/view").body["view"]) == sorted(cluster.addresses)


def left(cluster: LocalCluster, i: int) -> list[str]:
    members: list[dict[str, Any]] = status(cluster, i)["view"]
    return [member["address"] for member in members if member["state"] == "left"]


def threads_of(cluster: LocalCluster, i: int) -> int:
    """Return the number of threads of a replica's process."""
    lines = Path(f"/proc/{cluster.pid(i)}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Threads:"))

"""Clients whose causal past is lost or out of reach are served in time.

Each test prints its measurements (``pytest -s``). The time limits that it asserts are much larger.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.long_life.support import EVERYBODY, cluster_of, report, send
from tests.support.http import Past
from tests.support.waiting import wait_until
from tools.netns import client as netns_client
from tools.netns.cluster import NetnsCluster

ANY_REQUEST: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/kvs/lost?wait=20", {}),
    ("GET", "/kvs?prefix=lost&wait=20", {}),
    ("PUT", "/kvs/after?wait=20", {"value": 1}),
    ("DELETE", "/kvs/after?wait=20", {}),
    ("POST", "/kvs?wait=20", {"reads": ["lost"], "writes": [{"key": "after", "value": 1}]}),
]


def assert_rejected(cluster: NetnsCluster, replicas: list[int], past: netns_client.Past) -> None:
    """Fail unless ``replicas`` reject requests that follow ``past``, without a report that it is lost."""
    for i in replicas:
        response = netns_client.get(cluster, i, "lost", past)
        assert response.status == 503, response
        assert "lost" not in response.body


@pytest.mark.netns
def test_clients_with_a_lost_past_are_served_within_10_s_of_the_restart_of_the_crashed_replica(
    trio: NetnsCluster,
) -> None:
    """Every kind of request at every replica: 503 before, then a response that reports what is lost."""
    netns_client.put(trio, 2, "lost", "old", w="all")
    trio.isolate(2)
    wrote = [netns_client.put(trio, 2, "lost", f"dead {n}") for n in range(3)]
    replica, last = wrote[-1].dot
    trio.kill(2)
    trio.heal()
    assert_rejected(trio, [0, 1], wrote[-1].past)
    trio.start_one(2)
    returned_s = time.monotonic()
    trio.wait_ready_one(2)
    ready_s = time.monotonic() - returned_s

    def served(i: int, request: tuple[str, str, dict[str, Any]]) -> netns_client.Response:
        method, path, body = request
        return netns_client.send(trio, i, method, path, {**body, "causal-metadata": wrote[-1].past}, timeout_s=30)

    with ThreadPoolExecutor(15) as pool:
        futures = [pool.submit(served, i, request) for i in EVERYBODY for request in ANY_REQUEST]
        responses = [future.result() for future in futures]
    served_s = time.monotonic() - returned_s
    report(f"ready {ready_s:.2f} s after the restart; all 15 requests served after {served_s:.2f} s")
    for response in responses:
        assert response.status in (200, 201, 404), response
        assert response.body["lost"] == {replica: [wrote[0].dot[1], last]}
        assert response.past.get(replica, 0) < wrote[0].dot[1]
    assert served_s < 10
    assert {netns_client.get(trio, i, "lost").value for i in EVERYBODY} == {"old"}


@pytest.mark.netns
def test_no_update_is_reported_lost_while_a_paused_member_has_it(trio: NetnsCluster) -> None:
    netns_client.put(trio, 2, "lost", "old", w="all")
    trio.partition([0], [1, 2])
    wrote = netns_client.put(trio, 2, "lost", "kept", w=2)
    assert wrote.body["acks"] == 2
    trio.pause(1)
    trio.kill(2)
    trio.heal()
    trio.start_one(2)
    wait_until(lambda: trio.is_ready(2), timeout_s=15)
    ends_s = time.monotonic() + 5  # well past KV_DOWN_AFTER
    while time.monotonic() < ends_s:
        assert_rejected(trio, [0, 2], wrote.past)
    trio.resume(1)
    resumed_s = time.monotonic()
    for i in EVERYBODY:
        response = netns_client.get(trio, i, "lost", wrote.past, query="?wait=10", timeout_s=20)
        assert (response.value, response.body.get("lost")) == ("kept", None)
    report(f"served by all {time.monotonic() - resumed_s:.2f} s after the holder resumed")


@pytest.mark.processes
def test_after_a_crash_of_all_replicas_old_clients_are_served_within_10_s_of_the_restart() -> None:
    """All data is lost. The metadata of earlier clients must not be rejected for ever."""
    with cluster_of(3) as cluster:
        past: Past = {}
        for i in EVERYBODY:
            past |= send(cluster, i, "PUT", "/kvs/x", {"value": i, "causal-metadata": past}).past
            past |= send(cluster, i, "DELETE", "/kvs/y", {"causal-metadata": past}).past
        for i in EVERYBODY:
            cluster.kill(i)
        cluster.start()
        returned_s = time.monotonic()
        cluster.wait_ready()
        for i in EVERYBODY:
            response = send(cluster, i, "GET", "/kvs/x?wait=20", {"causal-metadata": past})
            assert response.status == 404, response
            assert response.body["lost"].keys() == past.keys()
            assert not response.past.keys() & past.keys()
        served_s = time.monotonic() - returned_s
        report(f"served {served_s:.2f} s after all restarted")
        assert served_s < 10

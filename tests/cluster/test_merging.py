"""Values that merge, under faults (contract 2.10)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.support import concurrently, heal_and_converge
from tests.support.waiting import wait_until
from tools.netns.client import Response, get, has_converged, send
from tools.netns.cluster import NetnsCluster
from tools.netns.quick import QUICK

INCREMENTS = 3000
CLIENTS = 4


@pytest.fixture(scope="module")
def shared_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetnsCluster]:
    with NetnsCluster(3, QUICK, tmp_path_factory.mktemp("three")) as cluster:
        yield cluster


@pytest.fixture
def three(shared_three: NetnsCluster) -> NetnsCluster:
    """Three replicas that have no faults and have converged."""
    heal_and_converge(shared_three)
    return shared_three


def patch(cluster: NetnsCluster, i: int, key: str, **body: Any) -> Response:
    response = send(cluster, i, "PATCH", f"/kvs/{key}", body)
    assert response.status in (200, 201), response
    return response


def test_what_two_sides_of_a_partition_write_merges(three: NetnsCluster) -> None:
    """Contract 2.10, and 2.3 for a PUT beside a PATCH."""
    patch(three, 0, "votes", increment=5, w="all")
    patch(three, 0, "tags", add=["red", "blue"], w="all")
    patch(three, 0, "user", set={"name": "Ann", "city": "Rome", "old": 1}, w="all")
    patch(three, 0, "deleted", increment=5, w="all")
    patch(three, 0, "plain", increment=5, w="all")
    three.partition([0], [1, 2])
    patch(three, 0, "votes", increment=2)
    patch(three, 1, "votes", increment=3)
    patch(three, 0, "tags", remove=["red", "blue"])
    patch(three, 1, "tags", add=["red", 3])
    patch(three, 0, "user", set={"city": "Oslo", "both": "earlier"})
    patch(three, 1, "user", set={"name": "Eve", "both": "later"}, unset=["old"])
    assert send(three, 0, "DELETE", "/kvs/deleted", {}).status == 200
    patch(three, 1, "deleted", increment=1)
    assert send(three, 0, "PUT", "/kvs/plain", {"value": "text"}).status == 200
    patch(three, 1, "plain", increment=1)
    three.heal()
    wait_until(lambda: has_converged(three), timeout_s=20)
    for i in range(3):
        assert get(three, i, "votes").value == 10
        assert get(three, i, "tags").value == [3, "red"]
        assert get(three, i, "user").value == {"both": "later", "city": "Oslo", "name": "Eve"}
        assert get(three, i, "deleted").value == 6
        assert all("conflicts" not in get(three, i, key).body for key in ("votes", "tags", "user", "deleted"))
        siblings = get(three, i, "plain", query="?siblings=true").body["siblings"]
        assert sorted((each.get("type"), each["value"]) for each in siblings if "type" in each) == [("counter", 6)]
        assert [each["value"] for each in siblings if "type" not in each] == ["text"]
    assert send(three, 2, "PATCH", "/kvs/plain", {"increment": 1}).status == 409


def increments(cluster: NetnsCluster, i: int, count: int) -> int:
    """Increment at replica ``i``, ten counters in a request. Return how many increments were acknowledged."""
    acknowledged = 0
    for _ in range(count // 10):
        writes = [{"key": f"n{n}", "increment": 1} for n in range(10)]
        acknowledged += 10 * (send(cluster, i, "POST", "/kvs", {"writes": writes}).status == 200)
    return acknowledged


def test_three_replicas_cut_apart_count_9000_increments_and_lose_none(three: NetnsCluster) -> None:
    """Then one is killed whose increments a majority has acknowledged. Every sum is exact, without a conflict."""
    three.partition([0], [1], [2])
    calls = [lambda i=i: increments(three, i, INCREMENTS // CLIENTS) for i in range(3) for _ in range(CLIENTS)]
    assert sum(concurrently(*calls)) == 3 * INCREMENTS
    three.heal()
    for _ in range(20):
        assert patch(three, 2, "n0", increment=1, w="majority", **{"w-timeout": 20}).body["acks"] >= 2
    three.kill(2)
    wanted = [3 * INCREMENTS // 10] * 10
    wanted[0] += 20
    wait_until(lambda: [get(three, 0, f"n{n}").value for n in range(10)] == wanted, timeout_s=20)
    three.start_one(2)
    three.wait_ready_one(2)
    wait_until(lambda: has_converged(three), timeout_s=20)
    for i in range(3):
        found = [get(three, i, f"n{n}").body for n in range(10)]
        assert [body["value"] for body in found] == wanted
        assert all("conflicts" not in body for body in found)

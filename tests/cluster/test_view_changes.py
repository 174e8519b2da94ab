"""The view API with real replicas. Changes reach all replicas and lose no update."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.support import NOT_IN_VIEW, SLACK_S, wait_for_value, wait_until_at
from tests.support.waiting import wait_until
from tools.netns.client import change_view, delete, get, put, readiness, send, status, view
from tools.netns.cluster import NetnsCluster
from tools.netns.quick import DOWN_AFTER_S

ALL = {0, 1, 2}


def rejects_clients(cluster: NetnsCluster, i: int) -> bool:
    """Return whether replica ``i`` rejects clients because it was removed."""
    response = get(cluster, i, "anything")
    return response.status == 503 and response.body["error"] == NOT_IN_VIEW


def wait_for_value_elsewhere(cluster: NetnsCluster, removed: int, key: str, value: str) -> None:
    wait_until_at(ALL - {removed}, lambda i: get(cluster, i, key).value == value, timeout_s=DOWN_AFTER_S)


def test_a_removed_replica_leaves_all_views_rejects_clients_and_rejoins_after_a_put(trio: NetnsCluster) -> None:
    """Contract 3, P5: its writes are not lost, and it has what it missed when it serves again."""
    put(trio, 2, "view/of-2", "before")
    removed = change_view(trio, 0, "DELETE", 2)
    assert (removed.status, removed.body["result"]) == (200, "deleted")
    wait_until_at((0, 1), lambda i: view(trio, i) == {0, 1}, timeout_s=DOWN_AFTER_S)
    wait_until(lambda: rejects_clients(trio, 2), timeout_s=DOWN_AFTER_S)
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("PUT", "/kvs/view/of-2", {"value": 1}),
        ("DELETE", "/kvs/view/of-2", {}),
        ("GET", "/kvs", {}),
        ("POST", "/kvs", {"reads": ["view/of-2"], "writes": []}),
    ]
    for method, path, body in requests:
        rejected = send(trio, 2, method, path, body)
        assert (rejected.status, rejected.body["error"]) == (503, NOT_IN_VIEW), (method, path)
    code, text = readiness(trio, 2)
    assert code == 503
    assert NOT_IN_VIEW in text
    assert 2 not in view(trio, 2)
    assert status(trio, 2)["state"] == "removed"
    wait_for_value_elsewhere(trio, 2, "view/of-2", "before")
    # A second DELETE, at any replica: the view does not contain it.
    again = change_view(trio, 1, "DELETE", 2)
    assert (again.status, again.body["error"]) == (404, "View has no such replica")

    meanwhile = put(trio, 1, "view/meanwhile", "missed").past
    id_before = status(trio, 2)["replica_id"]
    added = change_view(trio, 1, "PUT", 2)
    assert (added.status, added.body["result"]) == (201, "added")
    wait_until_at(range(3), lambda i: view(trio, i) == ALL, timeout_s=DOWN_AFTER_S)
    wait_until(lambda: trio.is_ready(2), timeout_s=DOWN_AFTER_S)
    assert get(trio, 2, "view/meanwhile", meanwhile).value == "missed"
    assert get(trio, 2, "view/of-2").value == "before"
    assert status(trio, 2)["replica_id"] == id_before, "the same process continues with its counters"
    put(trio, 2, "view/after", "a member again")
    wait_for_value(trio, "view/after", "a member again")


def test_a_put_of_a_member_is_already_present_also_if_it_is_down_and_an_unknown_one_is_not_deleted(
    trio: NetnsCluster,
) -> None:
    """Contract 3: a member that is down is still a member."""
    assert change_view(trio, 0, "PUT", 1).body == {"result": "already present"}
    trio.kill(1)
    wait_until(lambda: view(trio, 0) == {0, 2}, timeout_s=DOWN_AFTER_S + SLACK_S)
    down = change_view(trio, 0, "PUT", 1)
    assert (down.status, down.body["result"]) == (200, "already present")
    unknown = send(trio, 0, "DELETE", "/view", {"socket-address": "10.77.255.77:8090"})
    assert (unknown.status, unknown.body["error"]) == (404, "View has no such replica")
    for bad in ("nonsense", "", 7, None):
        assert send(trio, 0, "PUT", "/view", {"socket-address": bad}).status == 400
    assert view(trio, 0) == {0, 2}


def test_a_replica_removed_while_down_rejoins_when_it_starts(trio: NetnsCluster) -> None:
    """Contract 3: a removed replica stays out until a PUT names it or it starts again."""
    past = put(trio, 1, "view/started", 1, w="all").past
    trio.kill(2)
    assert change_view(trio, 0, "DELETE", 2).body["result"] == "deleted"
    wait_until_at((0, 1), lambda i: view(trio, i) == {0, 1}, timeout_s=DOWN_AFTER_S)
    trio.start_one(2)
    trio.wait_ready_one(2)
    wait_until_at(range(3), lambda i: view(trio, i) == ALL, timeout_s=DOWN_AFTER_S)
    assert get(trio, 2, "view/started", past).value == 1


def test_a_running_replica_that_was_removed_sends_its_updates_and_rejoins_after_a_restart(trio: NetnsCluster) -> None:
    """Contract 3. Only the removed replica has one of the updates; it sends it to the others first."""
    trio.isolate(2)
    only = put(trio, 2, "view/only-2", "mine")
    assert change_view(trio, 0, "DELETE", 2).body["result"] == "deleted"
    assert get(trio, 2, "view/only-2").value == "mine", "it is cut off, so it does not know of its removal yet"
    trio.heal()
    wait_until(lambda: rejects_clients(trio, 2), timeout_s=DOWN_AFTER_S)
    # Without metadata: with it, a report as lost would be correct until the removed replica has sent the update (2.8).
    wait_for_value_elsewhere(trio, 2, "view/only-2", "mine")
    assert get(trio, 0, "view/only-2", only.past).value == "mine"
    trio.restart(2)
    wait_until_at(range(3), lambda i: view(trio, i) == ALL, timeout_s=DOWN_AFTER_S)
    assert get(trio, 2, "view/only-2").value == "mine"


def test_view_changes_on_two_sides_of_a_partition_converge(trio: NetnsCluster) -> None:
    """Of two membership entries the higher (incarnation, stamp) wins, in whatever order they arrive."""
    trio.partition([0], [1, 2])
    assert change_view(trio, 0, "DELETE", 2).status == 200
    assert change_view(trio, 1, "DELETE", 2).status == 200
    assert change_view(trio, 1, "PUT", 2).status == 201
    trio.heal()
    wait_until_at(range(3), lambda i: view(trio, i) == ALL, timeout_s=DOWN_AFTER_S * 2)


def test_a_replica_accepts_its_own_removal(trio: NetnsCluster) -> None:
    """Contract 3: DELETE /view at the named replica itself loses no update, and a PUT there adds it again."""
    put(trio, 2, "view/itself", "kept")
    assert change_view(trio, 2, "DELETE", 2).body["result"] == "deleted"
    assert rejects_clients(trio, 2)
    wait_until_at((0, 1), lambda i: view(trio, i) == {0, 1}, timeout_s=DOWN_AFTER_S)
    delete(trio, 0, "view/itself")
    assert change_view(trio, 2, "PUT", 2).body["result"] == "added"
    wait_until_at(range(3), lambda i: view(trio, i) == ALL, timeout_s=DOWN_AFTER_S)
    wait_for_value(trio, "view/itself", None, timeout_s=DOWN_AFTER_S)


@pytest.mark.parametrize("survivor", [0, 1])
def test_a_replica_that_removes_all_others_serves_alone(trio: NetnsCluster, survivor: int) -> None:
    """Contract 3, P4."""
    for other in ALL - {survivor}:
        assert change_view(trio, survivor, "DELETE", other).status == 200
    assert view(trio, survivor) == {survivor}
    past = put(trio, survivor, "view/one", survivor).past
    assert get(trio, survivor, "view/one", past).value == survivor
    wait_until_at(ALL - {survivor}, lambda i: rejects_clients(trio, i), timeout_s=DOWN_AFTER_S)

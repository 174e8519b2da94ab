"""What users try first: reads at other replicas, replicas that are cut off, and replicas that are killed."""

from __future__ import annotations

import threading

import pytest
import requests

from tests.cluster.support import AT_ONCE_S, NOT_REACHED, SLACK_S, wait_for_value, wait_until_at
from tests.support.waiting import wait_until
from tools.netns.client import delete, get, put, view
from tools.netns.cluster import NetnsCluster
from tools.netns.quick import DOWN_AFTER_S

OTHERS = (1, 2)


def test_all_replicas_return_a_write_at_once_with_the_writers_metadata_and_soon_without(trio: NetnsCluster) -> None:
    """Contract 2.1, P2."""
    created = put(trio, 0, "first/seen", "old")
    assert (created.status, created.body["result"]) == (201, "created")
    for i in OTHERS:
        assert get(trio, i, "first/seen", created.past).value == "old"
    replaced = put(trio, 1, "first/seen", "new", created.past)
    assert (replaced.status, replaced.body["result"]) == (200, "replaced")
    for i in range(3):
        assert get(trio, i, "first/seen", replaced.past).value == "new"
    put(trio, 2, "first/seen", "newest")
    wait_for_value(trio, "first/seen", "newest")


def test_a_deleted_key_is_absent_at_all_replicas_and_can_be_created_again(trio: NetnsCluster) -> None:
    """Contract P3: a delete removes the versions that it follows, and no later ones."""
    past = put(trio, 0, "first/deleted", 1).past
    deleted = delete(trio, 1, "first/deleted", past)
    assert (deleted.status, deleted.body["result"]) == (200, "deleted")
    for i in range(3):
        absent = get(trio, i, "first/deleted", deleted.past)
        assert (absent.status, absent.body["error"]) == (404, "Key does not exist")
    assert delete(trio, 2, "first/deleted", deleted.past).status == 404
    again = put(trio, 2, "first/deleted", 2, deleted.past)
    assert (again.status, again.body["result"]) == (201, "created")
    for i in range(3):
        assert get(trio, i, "first/deleted", again.past).value == 2


@pytest.mark.parametrize("fault", ["cut", "paused", "killed"])
def test_while_two_of_three_are_unreachable_the_third_serves_without_delay(trio: NetnsCluster, fault: str) -> None:
    """Contract P4: as long as the others are in its view, and after they have left it."""
    past = put(trio, 0, f"alone/{fault}", "before").past
    if fault == "cut":
        trio.partition([0], [1, 2])
    for i in OTHERS if fault != "cut" else ():
        trio.pause(i) if fault == "paused" else trio.kill(i)
    values: list[int] = []

    def others_left_the_view() -> bool:
        nonlocal past
        values.append(len(values))
        wrote = put(trio, 0, f"alone/{fault}", values[-1], past)
        read = get(trio, 0, f"alone/{fault}", wrote.past)
        past = read.past
        assert read.value == values[-1]
        assert max(wrote.took_s, read.took_s) < AT_ONCE_S
        return view(trio, 0) == {0}

    wait_until(others_left_the_view, timeout_s=DOWN_AFTER_S + SLACK_S, every_s=0.05)
    assert len(values) > 5
    last = put(trio, 0, f"alone/{fault}", "alone", past)
    assert last.took_s < AT_ONCE_S
    assert get(trio, 0, f"alone/{fault}", last.past).value == "alone"


def test_a_killed_replica_leaves_the_views_and_has_all_data_after_its_restart(trio: NetnsCluster) -> None:
    """Contract 3, P5, P6: it leaves within KV_DOWN_AFTER. Restarted, it also has the writes made meanwhile."""
    kept: dict[str, object] = {f"killed/{n}": n for n in range(50)}
    for key, value in kept.items():
        past = put(trio, 2, key, value, w="all").past
    trio.kill(2)
    wait_until_at((0, 1), lambda i: view(trio, i) == {0, 1}, timeout_s=DOWN_AFTER_S + SLACK_S)
    with pytest.raises(requests.ConnectionError):
        view(trio, 2)
    past = put(trio, 0, "killed/0", "meanwhile", past).past
    trio.start_one(2)
    trio.wait_ready_one(2)
    kept["killed/0"] = "meanwhile"
    for key, value in kept.items():
        # Without metadata and without waiting: a replica that is ready has everything.
        assert get(trio, 2, key).value == value
    wait_until_at(range(3), lambda i: view(trio, i) == {0, 1, 2}, timeout_s=DOWN_AFTER_S)
    assert get(trio, 2, "killed/0", past).value == "meanwhile"


def test_a_cut_off_replica_rejects_newer_metadata_serves_older_metadata_and_catches_up(trio: NetnsCluster) -> None:
    """Contract P2, 2.1: newer metadata gets 503 with ``missing`` after KV_DEFER_TIMEOUT, older gets the old value."""
    old = put(trio, 0, "cut/key", "old")
    assert get(trio, 2, "cut/key", old.past).value == "old"
    trio.isolate(2)
    new = put(trio, 0, "cut/key", "new", old.past)
    replica, counter = new.dot
    rejected = get(trio, 2, "cut/key", new.past)
    assert (rejected.status, rejected.body["error"]) == (503, NOT_REACHED)
    assert rejected.body["missing"] == {replica: {"has": counter - 1, "needs": counter}}
    assert rejected.past == new.past
    assert float(rejected.headers["Retry-After"]) >= 0
    assert 0.9 < rejected.took_s < 2  # KV_DEFER_TIMEOUT is 1 s
    assert put_status(trio, 2, "cut/other", new.past) == 503
    assert get(trio, 2, "cut/other").status == 404, "a rejected write was applied"
    for past in (old.past, None):
        assert get(trio, 2, "cut/key", past).value == "old"
    assert put(trio, 2, "cut/mine", "cut off", old.past).took_s < AT_ONCE_S
    wait_until(lambda: view(trio, 0) == {0, 1} and view(trio, 2) == {2}, timeout_s=DOWN_AFTER_S + SLACK_S)
    trio.heal()
    wait_for_value(trio, "cut/key", "new", timeout_s=DOWN_AFTER_S)
    wait_for_value(trio, "cut/mine", "cut off", timeout_s=DOWN_AFTER_S)
    assert get(trio, 2, "cut/key", new.past).value == "new"


def put_status(cluster: NetnsCluster, i: int, key: str, past: object) -> int:
    return requests.put(
        f"{cluster.url(i)}/kvs/{key}", json={"value": 1, "causal-metadata": past}, timeout=5
    ).status_code


def test_a_deferred_request_is_answered_as_soon_as_its_causal_past_arrives(trio: NetnsCluster) -> None:
    """Contract 2.6: ``wait`` replaces KV_DEFER_TIMEOUT. The cut ends while the request waits."""
    put(trio, 0, "deferred", "old", w="all")
    trio.isolate(2)
    new = put(trio, 0, "deferred", "new")
    later = threading.Timer(0.7, trio.heal)
    later.start()
    response = get(trio, 2, "deferred", new.past, query="?wait=10", timeout_s=15)
    later.join()
    assert response.value == "new"
    assert 0.7 <= response.took_s < 0.7 + DOWN_AFTER_S


def test_concurrent_writes_on_both_sides_of_a_partition_are_siblings_everywhere(trio: NetnsCluster) -> None:
    """Contract P3, 2.3: every replica returns the same winner, and keeps the other until a write follows both."""
    past = put(trio, 0, "both", "before", w="all").past
    trio.partition([0], [1, 2])
    left = put(trio, 0, "both", "left", past)
    right = put(trio, 1, "both", "right", past)
    trio.heal()

    def siblings(i: int) -> list[str]:
        return [each["value"] for each in get(trio, i, "both", query="?siblings=true").body.get("siblings", [])]

    wait_until_at(range(3), lambda i: len(siblings(i)) == 2, timeout_s=DOWN_AFTER_S)
    assert {tuple(siblings(i)) for i in range(3)} == {("right", "left")}, "the later write wins, at every replica"
    both = {**left.past, **right.past}
    settled = put(trio, 2, "both", "settled", both)
    for i in range(3):
        response = get(trio, i, "both", settled.past, query="?siblings=true")
        assert [each["value"] for each in response.body["siblings"]] == ["settled"]
    assert max(len(get(trio, i, "both").past) for i in range(3)) <= 3

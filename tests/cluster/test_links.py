"""Partly broken networks: one-way cuts, rings, packet loss. Updates arrive wherever a path exists."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.support import SLACK_S, heal_and_converge, wait_for_value, wait_until_at
from tests.support.waiting import assert_stays, wait_until
from tools.netns.client import change_view, get, put, view
from tools.netns.cluster import NetnsCluster
from tools.netns.quick import DOWN_AFTER_S, QUICK, SYNC_INTERVAL_S


@pytest.fixture(scope="module")
def shared_five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetnsCluster]:
    with NetnsCluster(5, QUICK, tmp_path_factory.mktemp("five")) as cluster:
        yield cluster


@pytest.fixture
def five(shared_five: NetnsCluster) -> NetnsCluster:
    """Five replicas that have no faults and have converged."""
    heal_and_converge(shared_five)
    return shared_five


EVERYBODY = set(range(5))


def relay_limit_s(n: int) -> float:
    """Return the time limit for an update that ``n`` replicas relay: each of them may wait for two sync intervals."""
    return (n + 1) * 2 * SYNC_INTERVAL_S + 1


def test_in_a_ring_every_update_reaches_every_replica_and_no_view_changes(five: NetnsCluster) -> None:
    """Contract 3: a replica stays in a view if any member can reach it."""
    five.ring()
    for i in EVERYBODY:
        put(five, i, f"ring/{i}", i)
    for i in EVERYBODY:
        wait_for_value(five, f"ring/{i}", i, timeout_s=relay_limit_s(2))
    assert_stays(lambda: [view(five, i) for i in EVERYBODY] == [EVERYBODY] * 5, for_s=DOWN_AFTER_S * 1.5)
    past = put(five, 0, "ring/last", "once around").past
    assert get(five, 2, "ring/last", past, query="?wait=8", timeout_s=10).value == "once around"
    assert get(five, 3, "ring/last", past, query="?wait=8", timeout_s=10).value == "once around"


def test_in_a_line_updates_travel_from_end_to_end(five: NetnsCluster) -> None:
    """The five replicas form a line: an update needs four hops."""
    five.ring()
    five.partition([0], [4])
    put(five, 0, "line", "from 0")
    put(five, 4, "line/back", "from 4")
    wait_for_value(five, "line", "from 0", timeout_s=relay_limit_s(3))
    wait_for_value(five, "line/back", "from 4", timeout_s=relay_limit_s(3))


def test_view_changes_reach_replicas_through_a_third_one(five: NetnsCluster) -> None:
    """Contract 3: view changes reach every replica, on any path."""
    five.ring()
    assert change_view(five, 0, "DELETE", 2).status == 200
    wait_until_at((1, 3, 4, 0), lambda i: view(five, i) == EVERYBODY - {2}, timeout_s=relay_limit_s(2))
    assert change_view(five, 3, "PUT", 2).status == 201
    wait_until_at(EVERYBODY, lambda i: view(five, i) == EVERYBODY, timeout_s=relay_limit_s(2) + DOWN_AFTER_S)


@pytest.mark.parametrize("kind", ["packets", "requests"])
def test_after_a_one_way_cut_all_updates_arrive(five: NetnsCluster, kind: str) -> None:
    """Contract 3, P5. Nothing from replica 0 arrives; or no request, while its replies still carry all updates."""
    for other in (1, 2, 3, 4):
        five.cut(0, other, "packets" if kind == "packets" else "requests")
    put(five, 0, "oneway/out", kind)
    put(five, 1, "oneway/in", kind)
    if kind == "requests":
        wait_for_value(five, "oneway/out", kind, timeout_s=relay_limit_s(0))
        wait_for_value(five, "oneway/in", kind, timeout_s=relay_limit_s(0))
        assert_stays(lambda: [view(five, i) for i in EVERYBODY] == [EVERYBODY] * 5, for_s=DOWN_AFTER_S)
    else:
        wait_until_at((1, 2, 3, 4), lambda i: view(five, i) == {1, 2, 3, 4}, timeout_s=DOWN_AFTER_S + SLACK_S)
        assert get(five, 1, "oneway/out").value != kind
    five.heal()
    wait_for_value(five, "oneway/out", kind, timeout_s=DOWN_AFTER_S)
    wait_for_value(five, "oneway/in", kind, timeout_s=DOWN_AFTER_S)
    wait_until_at(EVERYBODY, lambda i: view(five, i) == EVERYBODY, timeout_s=DOWN_AFTER_S)


def test_updates_go_around_a_link_that_is_cut_one_way(five: NetnsCluster) -> None:
    """Replicas 0 and 1 cannot exchange. All others reach both, so no view changes and one relay is enough."""
    five.cut(0, 1)
    put(five, 0, "around", "from 0")
    put(five, 1, "around/back", "from 1")
    wait_for_value(five, "around", "from 0", timeout_s=relay_limit_s(1))
    wait_for_value(five, "around/back", "from 1", timeout_s=relay_limit_s(1))
    assert_stays(lambda: [view(five, i) for i in EVERYBODY] == [EVERYBODY] * 5, for_s=DOWN_AFTER_S)


def test_with_30_percent_packet_loss_all_updates_arrive_and_no_write_is_delayed(five: NetnsCluster) -> None:
    """Contract P4, P5."""
    five.drop_packets(0.3)
    slowest_s = 0.0
    for n in range(100):
        slowest_s = max(slowest_s, put(five, n % 5, f"loss/{n}", n).took_s)
    assert slowest_s < 1
    for n in range(100):
        wait_for_value(five, f"loss/{n}", n, timeout_s=10)
    five.heal()
    wait_until_at(EVERYBODY, lambda i: view(five, i) == EVERYBODY, timeout_s=DOWN_AFTER_S)


def test_minority_and_majority_both_serve_and_converge_after_the_partition(five: NetnsCluster) -> None:
    """Contract P3, P4."""
    five.partition([0, 1], [2, 3, 4])
    for n in range(20):
        put(five, n % 5, f"sides/{n % 7}/{n % 5}", n)
    wait_until(lambda: get(five, 1, "sides/0/0").status == 200)
    wait_until_at((0, 1), lambda i: view(five, i) == {0, 1}, timeout_s=DOWN_AFTER_S + SLACK_S)
    wait_until_at((2, 3, 4), lambda i: view(five, i) == {2, 3, 4}, timeout_s=SLACK_S)
    five.heal()
    for n in range(20):
        wait_for_value(five, f"sides/{n % 7}/{n % 5}", n, timeout_s=DOWN_AFTER_S + 1)
    wait_until_at(EVERYBODY, lambda i: view(five, i) == EVERYBODY, timeout_s=DOWN_AFTER_S)

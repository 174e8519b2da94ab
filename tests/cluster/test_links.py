"""Networks that are broken in part: one way, in a ring, with loss. Replication finds its way where there is one."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.cluster.support import (
    DOWN_AFTER_S,
    QUICK,
    SLACK_S,
    SYNC_INTERVAL_S,
    heal_and_converge,
    wait_for_value,
    wait_until_at,
)
from tests.support.waiting import wait_until
from tools.netns.client import change_view, get, put, view
from tools.netns.cluster import NetnsCluster


@pytest.fixture(scope="module")
def shared_five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetnsCluster]:
    with NetnsCluster(5, QUICK, tmp_path_factory.mktemp("five")) as cluster:
        yield cluster


@pytest.fixture
def five(shared_five: NetnsCluster) -> NetnsCluster:
    """Five replicas without a fault, and in step."""
    heal_and_converge(shared_five)
    return shared_five


EVERYBODY = set(range(5))


def hops(n: int) -> float:
    """Seconds in which an update that is relayed ``n`` times has arrived: each relay may wait for two syncs."""
    return (n + 1) * 2 * SYNC_INTERVAL_S + 1


def test_in_a_ring_nobody_sees_everybody_and_all_is_replicated(five: NetnsCluster) -> None:
    """DESIGN 4: an update reaches everybody through any connected path; SPEC 3: nobody leaves a view, by hearsay."""
    five.ring()
    for i in EVERYBODY:
        put(five, i, f"ring/{i}", i)
    for i in EVERYBODY:
        wait_for_value(five, f"ring/{i}", i, timeout_s=hops(2))
    deadline = time.monotonic() + DOWN_AFTER_S * 1.5
    while time.monotonic() < deadline:
        assert [view(five, i) for i in EVERYBODY] == [EVERYBODY] * 5
        time.sleep(0.2)
    past = put(five, 0, "ring/last", "once around").past
    assert get(five, 2, "ring/last", past, query="?wait=8", timeout_s=10).value == "once around"
    assert get(five, 3, "ring/last", past, query="?wait=8", timeout_s=10).value == "once around"


def test_a_broken_ring_still_replicates_from_end_to_end(five: NetnsCluster) -> None:
    """DESIGN 4: a line of five, four hops."""
    five.ring()
    five.partition([0], [4])
    put(five, 0, "line", "from 0")
    put(five, 4, "line/back", "from 4")
    wait_for_value(five, "line", "from 0", timeout_s=hops(3))
    wait_for_value(five, "line/back", "from 4", timeout_s=hops(3))


def test_members_cut_from_each_other_settle_a_view_change_through_a_third(five: NetnsCluster) -> None:
    """SPEC 3: view changes reach every replica, on any path."""
    five.ring()
    assert change_view(five, 0, "DELETE", 2).status == 200
    wait_until_at((1, 3, 4, 0), lambda i: view(five, i) == EVERYBODY - {2}, timeout_s=hops(2))
    assert change_view(five, 3, "PUT", 2).status == 201
    wait_until_at(EVERYBODY, lambda i: view(five, i) == EVERYBODY, timeout_s=hops(2) + DOWN_AFTER_S)


@pytest.mark.parametrize("what", ["packets", "requests"])
def test_a_one_way_cut_neither_loses_nor_delays_for_ever_and_heals(five: NetnsCluster, what: str) -> None:
    """SPEC 3, P5: 0 is heard by nobody. Of requests only: its answers to others' requests carry everything."""
    for other in (1, 2, 3, 4):
        five.cut(0, other, "packets" if what == "packets" else "requests")
    put(five, 0, "oneway/out", what)
    put(five, 1, "oneway/in", what)
    if what == "requests":
        wait_for_value(five, "oneway/out", what, timeout_s=hops(0))
        wait_for_value(five, "oneway/in", what, timeout_s=hops(0))
        time.sleep(DOWN_AFTER_S)
        assert [view(five, i) for i in EVERYBODY] == [EVERYBODY] * 5
    else:
        wait_until_at((1, 2, 3, 4), lambda i: view(five, i) == {1, 2, 3, 4}, timeout_s=DOWN_AFTER_S + SLACK_S)
        assert get(five, 1, "oneway/out").value != what
    five.heal()
    wait_for_value(five, "oneway/out", what, timeout_s=DOWN_AFTER_S)
    wait_for_value(five, "oneway/in", what, timeout_s=DOWN_AFTER_S)
    wait_until_at(EVERYBODY, lambda i: view(five, i) == EVERYBODY, timeout_s=DOWN_AFTER_S)


def test_one_link_cut_one_way_is_gone_around(five: NetnsCluster) -> None:
    """DESIGN 4: 0 and 1 cannot talk, all others can with both: nobody leaves, and updates take one relay."""
    five.cut(0, 1)
    put(five, 0, "around", "from 0")
    put(five, 1, "around/back", "from 1")
    wait_for_value(five, "around", "from 0", timeout_s=hops(1))
    wait_for_value(five, "around/back", "from 1", timeout_s=hops(1))
    time.sleep(DOWN_AFTER_S)
    assert [view(five, i) for i in EVERYBODY] == [EVERYBODY] * 5


def test_with_a_third_of_all_packets_lost_all_is_replicated(five: NetnsCluster) -> None:
    """SPEC P5, P4: 30% loss in each direction; clients notice nothing."""
    five.drop_packets(0.3)
    slowest_s = 0.0
    for n in range(100):
        slowest_s = max(slowest_s, put(five, n % 5, f"loss/{n}", n).seconds)
    assert slowest_s < 1
    for n in range(100):
        wait_for_value(five, f"loss/{n}", n, timeout_s=10)
    five.heal()
    wait_until_at(EVERYBODY, lambda i: view(five, i) == EVERYBODY, timeout_s=DOWN_AFTER_S)


def test_a_minority_and_a_majority_go_on_and_meet_again(five: NetnsCluster) -> None:
    """SPEC P4, P3: both sides of a partition serve; after it all replicas hold the same."""
    five.partition([0, 1], [2, 3, 4])
    for n in range(20):
        put(five, n % 5, f"sides/{n % 7}/{n % 5}", n)
    wait_until(lambda: get(five, 1, "sides/0/0").status == 200, timeout_s=2)
    wait_until_at((0, 1), lambda i: view(five, i) == {0, 1}, timeout_s=DOWN_AFTER_S + SLACK_S)
    wait_until_at((2, 3, 4), lambda i: view(five, i) == {2, 3, 4}, timeout_s=SLACK_S)
    five.heal()
    for n in range(20):
        wait_for_value(five, f"sides/{n % 7}/{n % 5}", n, timeout_s=DOWN_AFTER_S + 1)
    wait_until_at(EVERYBODY, lambda i: view(five, i) == EVERYBODY, timeout_s=DOWN_AFTER_S)

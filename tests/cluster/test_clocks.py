"""Wall clocks that are wrong by minutes, or that jump. They order concurrent writes and break no promise."""

from __future__ import annotations

import time

from tests.cluster.support import wait_for_value, wait_until_at
from tests.support.waiting import assert_stays
from tools.netns.client import change_view, get, put, status, view
from tools.netns.cluster import NetnsCluster
from tools.netns.quick import DOWN_AFTER_S

MINUTE_S = 60.0


def test_a_later_write_wins_although_the_earlier_ones_clock_is_minutes_ahead(trio: NetnsCluster) -> None:
    """Contract P1, P3: causal order, and the order of writes at one replica, beat any clock."""
    trio.skew(0, 10 * MINUTE_S)
    trio.skew(1, -10 * MINUTE_S)
    ahead = put(trio, 0, "clock/key", "ahead")
    stamped = get(trio, 0, "clock/key", ahead.past, query="?siblings=true").body["siblings"][0]["timestamp"]
    assert stamped / 1e6 - time.time() > 9 * MINUTE_S, "the clock of replica 0 was not moved"
    after = put(trio, 1, "clock/key", "after", ahead.past)
    for i in range(3):
        assert get(trio, i, "clock/key", after.past).value == "after"
    # Its replica has applied the other write, so this one follows both.
    put(trio, 2, "clock/key", "last", after.past)
    wait_for_value(trio, "clock/key", "last")
    assert all(get(trio, i, "clock/key").body.get("conflicts", 1) == 1 for i in range(3))


def test_a_clock_that_jumps_back_loses_no_write(trio: NetnsCluster) -> None:
    """Contract P2, P3: writes after the jump follow and replace those before it, on all replicas."""
    past = put(trio, 1, "clock/step", "before", w="all").past
    for n, offset_s in enumerate((5 * MINUTE_S, -5 * MINUTE_S, 60 * MINUTE_S, -60 * MINUTE_S, 0.0)):
        trio.skew(1, offset_s)
        past = put(trio, 1, "clock/step", n, past).past
        for i in range(3):
            assert get(trio, i, "clock/step", past).value == n
    wait_until_at(range(3), lambda i: view(trio, i) == {0, 1, 2})


def test_a_jump_of_the_wall_clock_changes_no_view(trio: NetnsCluster) -> None:
    """Replicas detect failures with the monotonic clock."""
    for offset_s in (30 * MINUTE_S, -30 * MINUTE_S):
        for i in range(3):
            trio.skew(i, offset_s * (i + 1))
        assert_stays(lambda: [view(trio, i) for i in range(3)] == [{0, 1, 2}] * 3, for_s=DOWN_AFTER_S)


def test_a_view_change_takes_effect_although_the_clock_of_its_replica_is_behind(trio: NetnsCluster) -> None:
    """Stamps of the membership table are hybrid: each is higher than the one it replaces."""
    trio.skew(0, 10 * MINUTE_S)
    trio.skew(1, -10 * MINUTE_S)
    assert change_view(trio, 0, "DELETE", 2).status == 200
    wait_until_at((0, 1), lambda i: view(trio, i) == {0, 1}, timeout_s=DOWN_AFTER_S)
    assert change_view(trio, 1, "PUT", 2).status == 201
    wait_until_at(range(3), lambda i: view(trio, i) == {0, 1, 2}, timeout_s=DOWN_AFTER_S)
    assert change_view(trio, 1, "DELETE", 2).status == 200
    wait_until_at((0, 1), lambda i: view(trio, i) == {0, 1}, timeout_s=DOWN_AFTER_S)


def test_a_replica_that_starts_with_a_clock_hours_behind_joins(trio: NetnsCluster) -> None:
    """It raises its incarnation above every one that a peer knows for its address."""
    before = status(trio, 2)["incarnation"]
    trio.kill(2)
    trio.skew(2, -10 * 60 * MINUTE_S)
    trio.start_one(2)
    trio.wait_ready_one(2)
    wait_until_at(range(3), lambda i: view(trio, i) == {0, 1, 2}, timeout_s=DOWN_AFTER_S)
    assert status(trio, 2)["incarnation"] > before
    put(trio, 2, "clock/back", 1)
    wait_for_value(trio, "clock/back", 1)

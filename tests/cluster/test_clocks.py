"""Wall clocks that are wrong by minutes, and that step: they order concurrent writes, and break no promise."""

from __future__ import annotations

import time

from tests.cluster.support import DOWN_AFTER_S, wait_for_value, wait_until_at
from tools.netns.client import change_view, get, put, status, view
from tools.netns.cluster import NetnsCluster

MINUTE_S = 60.0


def test_what_follows_wins_over_a_clock_that_is_minutes_ahead(trio: NetnsCluster) -> None:
    """SPEC P1, P3: causal order, and the later write of clients of one replica, beat any clock."""
    trio.skew(0, 10 * MINUTE_S)
    trio.skew(1, -10 * MINUTE_S)
    ahead = put(trio, 0, "clock/key", "ahead")
    stamped = get(trio, 0, "clock/key", ahead.past, query="?siblings=true").body["siblings"][0]["timestamp"]
    assert stamped / 1e6 - time.time() > 9 * MINUTE_S, "the clock of replica 0 was not moved"
    after = put(trio, 1, "clock/key", "after", ahead.past)
    for i in range(3):
        assert get(trio, i, "clock/key", after.past).value == "after"
    # No history, but its replica holds the other: it follows that too.
    put(trio, 2, "clock/key", "last", after.past)
    wait_for_value(trio, "clock/key", "last", timeout_s=1)
    assert all(get(trio, i, "clock/key").body.get("conflicts", 1) == 1 for i in range(3))


def test_a_clock_that_steps_back_while_it_runs_loses_no_write(trio: NetnsCluster) -> None:
    """SPEC P2, P3: writes after the step still follow, and win over, those before it; on all replicas."""
    past = put(trio, 1, "clock/step", "before", w="all").past
    for n, offset_s in enumerate((5 * MINUTE_S, -5 * MINUTE_S, 60 * MINUTE_S, -60 * MINUTE_S, 0.0)):
        trio.skew(1, offset_s)
        past = put(trio, 1, "clock/step", n, past).past
        for i in range(3):
            assert get(trio, i, "clock/step", past).value == n
    wait_until_at(range(3), lambda i: view(trio, i) == {0, 1, 2}, timeout_s=1)


def test_a_step_of_the_wall_clock_takes_nobody_out_of_the_view(trio: NetnsCluster) -> None:
    """DESIGN 5: who is reachable is judged by the monotonic clock."""
    for offset_s in (30 * MINUTE_S, -30 * MINUTE_S):
        for i in range(3):
            trio.skew(i, offset_s * (i + 1))
        deadline = time.monotonic() + DOWN_AFTER_S
        while time.monotonic() < deadline:
            assert [view(trio, i) for i in range(3)] == [{0, 1, 2}] * 3
            time.sleep(0.1)


def test_a_view_change_by_a_replica_whose_clock_is_behind_still_counts(trio: NetnsCluster) -> None:
    """DESIGN 5: stamps are hybrid and rise above the one that they follow."""
    trio.skew(0, 10 * MINUTE_S)
    trio.skew(1, -10 * MINUTE_S)
    assert change_view(trio, 0, "DELETE", 2).status == 200
    wait_until_at((0, 1), lambda i: view(trio, i) == {0, 1}, timeout_s=DOWN_AFTER_S)
    assert change_view(trio, 1, "PUT", 2).status == 201
    wait_until_at(range(3), lambda i: view(trio, i) == {0, 1, 2}, timeout_s=DOWN_AFTER_S)
    assert change_view(trio, 1, "DELETE", 2).status == 200
    wait_until_at((0, 1), lambda i: view(trio, i) == {0, 1}, timeout_s=DOWN_AFTER_S)


def test_a_replica_started_with_a_clock_far_back_is_taken_in(trio: NetnsCluster) -> None:
    """DESIGN 2: its incarnation is raised above any that a peer knows."""
    before = status(trio, 2)["incarnation"]
    trio.kill(2)
    trio.skew(2, -24 * 60 * MINUTE_S)
    trio.start_one(2)
    trio.wait_ready_one(2)
    wait_until_at(range(3), lambda i: view(trio, i) == {0, 1, 2}, timeout_s=DOWN_AFTER_S)
    assert status(trio, 2)["incarnation"] > before
    put(trio, 2, "clock/back", 1)
    wait_for_value(trio, "clock/back", 1, timeout_s=1)

"""How replicas end and begin: draining, SIGSTOP, empty restarts, and that no dot is used twice."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.cluster.support import (
    AT_ONCE_S,
    CATCHING_UP,
    DOWN_AFTER_S,
    SLACK_S,
    SYNC_INTERVAL_S,
    concurrently,
    wait_for_value,
    wait_until_at,
)
from tests.support.waiting import wait_until
from tools.netns.client import change_view, get, put, readiness, status, view
from tools.netns.cluster import NetnsCluster

# -- draining ----------------------------------------------------------------------------------------------------------


def test_sigterm_hands_over_what_was_just_written_and_exits_0(trio: NetnsCluster) -> None:
    """SPEC 4: stop taking requests, hand all unsent updates to a peer, leave, exit 0 in 10 s."""
    for n in range(20):
        past = put(trio, 2, f"drain/{n}", n).past
    began_s = time.monotonic()
    assert trio.terminate(2) == 0
    assert time.monotonic() - began_s < 10
    for n in range(20):
        for i in (0, 1):
            assert get(trio, i, f"drain/{n}", past).value == n
    # It said that it leaves: nobody has to find out by its silence.
    wait_until_at((0, 1), lambda i: view(trio, i) == {0, 1}, timeout_s=SYNC_INTERVAL_S + 0.3)


def test_every_write_that_a_stopping_replica_acknowledged_is_on_the_others(trio: NetnsCluster) -> None:
    """SPEC 4, P5: clients write on until it refuses them; no answer between yes and no."""

    def write_until_refused(writer: int) -> list[str]:
        acknowledged: list[str] = []
        for n in range(2000):
            key = f"drain/{writer}/{n}"
            try:
                answer = requests.put(f"{trio.url(2)}/kvs/{key}", json={"value": n}, timeout=5)
            except requests.ConnectionError:
                break
            if answer.status_code == 503:
                break
            assert answer.status_code == 201, answer.text
            acknowledged.append(key)
        return acknowledged

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write_until_refused, writer) for writer in range(3)]
        time.sleep(0.5)
        assert trio.terminate(2) == 0
        acknowledged = [key for writer in writers for key in writer.result()]
    assert len(acknowledged) > 20
    for i in (0, 1):
        missing = [key for key in acknowledged if get(trio, i, key).status != 200]
        assert missing == []


def test_sigterm_exits_1_with_the_number_of_updates_that_die_when_no_peer_can_be_reached(trio: NetnsCluster) -> None:
    """SPEC 4."""
    trio.isolate(2)
    for n in range(5):
        put(trio, 2, "drain/alone", n)
    began_s = time.monotonic()
    assert trio.terminate(2) == 1
    assert time.monotonic() - began_s < 10
    assert "5 updates die with this replica" in trio.log(2)


def test_a_replica_whose_peers_are_all_removed_ends_with_0(trio: NetnsCluster) -> None:
    """SPEC 4: exit 1 is for where other members belong. The others are out here, and hand over nothing of theirs."""
    put(trio, 0, "drain/last", 1, w="all")
    for other in (1, 2):
        change_view(trio, 0, "DELETE", other)
        trio.kill(other)
    put(trio, 0, "drain/last", 2)
    assert trio.terminate(0) == 0


# -- pauses ------------------------------------------------------------------------------------------------------------


def test_a_replica_stopped_for_longer_than_down_after_is_back_and_in_step_when_it_goes_on(trio: NetnsCluster) -> None:
    """SPEC 3: it leaves the views, delays nobody (P4), and comes back within KV_DOWN_AFTER by itself."""
    pid = trio.pid(1)
    put(trio, 1, "pause/before", "before")
    trio.pause(1)
    slowest_s = 0.0
    paused_s = time.monotonic()
    while view(trio, 0) != {0, 2} or view(trio, 2) != {0, 2}:
        assert time.monotonic() - paused_s < DOWN_AFTER_S + SLACK_S
        slowest_s = max(slowest_s, put(trio, 0, "pause/during", "during").seconds)
        time.sleep(0.02)
    past = put(trio, 2, "pause/during", "last").past
    time.sleep(0.5)
    trio.resume(1)
    assert get(trio, 1, "pause/during", past, query="?wait=5", timeout_s=8).value == "last"
    wait_until_at(range(3), lambda i: view(trio, i) == {0, 1, 2}, timeout_s=DOWN_AFTER_S)
    assert slowest_s < AT_ONCE_S
    put(trio, 1, "pause/after", "after")
    wait_for_value(trio, "pause/after", "after", timeout_s=1)
    time.sleep(1.2)  # it must not think, a little later, that it was asked to end
    assert trio.is_running(1), trio.log(1)[-800:]
    assert trio.pid(1) == pid


def test_requests_sent_to_a_stopped_replica_are_answered_rightly_when_it_goes_on(trio: NetnsCluster) -> None:
    """SPEC P2: it woke up with an old state and a new request; it must not answer from before its past."""
    past = put(trio, 0, "pause/asked", "old", w="all").past
    trio.pause(1)
    past = put(trio, 0, "pause/asked", "new", past).past

    def resume() -> None:
        time.sleep(DOWN_AFTER_S + 0.3)
        trio.resume(1)

    answer, _ = concurrently(lambda: get(trio, 1, "pause/asked", past, query="?wait=5", timeout_s=15), resume)
    assert answer is not None
    assert answer.value == "new"


# -- empty restarts ----------------------------------------------------------------------------------------------------


def test_no_dot_is_ever_used_again_over_crashes_and_clocks_going_back(trio: NetnsCluster) -> None:
    """SPEC P6: restarted with peers, without, and with the clock hours back, it has a higher incarnation."""
    dots: list[tuple[str, int]] = []
    seen: list[str] = []
    for life, (clock_s, cut_off) in enumerate([(0.0, False), (-3600.0, False), (-7200.0, True), (0.0, False)]):
        if life:
            trio.kill(2)
            trio.skew(2, clock_s)
            trio.heal()
            if cut_off:
                trio.isolate(2)
            trio.start_one(2)
            trio.wait_ready_one(2)
        dots += [put(trio, 2, f"dots/{life}", n).dot for n in range(5)]
        if cut_off:
            # Only now it hears of the incarnation before it, which had a higher number.
            trio.heal()
            wait_for_value(trio, f"dots/{life}", 4, timeout_s=DOWN_AFTER_S + 1)
            dots += [put(trio, 2, f"dots/{life}/b", n).dot for n in range(5)]
        seen.append(status(trio, 2)["replica_id"])
        wait_for_value(trio, f"dots/{life}", 4, timeout_s=DOWN_AFTER_S + 1)
    assert len(set(dots)) == len(dots)
    assert len(set(seen)) == 4
    for life in range(4):
        wait_for_value(trio, f"dots/{life}", 4, timeout_s=1)
    incarnations = [int(replica.rpartition("@")[2], 16) for replica in seen]
    assert incarnations == sorted(incarnations), "a later life has the higher incarnation"


def test_metadata_stays_small_over_restarts(trio: NetnsCluster) -> None:
    """DESIGN 6: what a client carries names present incarnations only, soon after everybody is back."""
    past = put(trio, 0, "small", 0, w="all").past
    for n in range(3):
        past = put(trio, 2, f"small/{n}", n, past, w="all").past
        trio.restart(2)
    ids = {status(trio, i)["replica_id"] for i in range(3)}

    def carried() -> set[str]:
        return set(get(trio, 0, "small/2", past, query="?wait=5").past)

    wait_until(lambda: carried() <= ids, timeout_s=10 * SYNC_INTERVAL_S)


def test_a_replica_cut_off_at_its_start_serves_alone_after_down_after_and_loses_nothing(trio: NetnsCluster) -> None:
    """SPEC P6: where nobody answers within KV_DOWN_AFTER it serves alone, and not before."""
    put(trio, 2, "lone/old", "old", w="all")
    trio.kill(2)
    trio.isolate(2)
    trio.start_one(2)
    started_s = time.monotonic()
    wait_until(lambda: readiness(trio, 2)[0] == 503, timeout_s=5)
    assert CATCHING_UP in readiness(trio, 2)[1]
    refused = get(trio, 2, "lone/old")
    assert (refused.status, refused.body["error"]) == (503, CATCHING_UP)
    trio.wait_ready_one(2)
    assert DOWN_AFTER_S * 0.8 < time.monotonic() - started_s < 2 * DOWN_AFTER_S + 1.5  # the process's start counts in
    assert get(trio, 2, "lone/old").status == 404
    put(trio, 2, "lone/new", "new")
    trio.heal()
    wait_for_value(trio, "lone/new", "new", timeout_s=DOWN_AFTER_S)
    wait_for_value(trio, "lone/old", "old", timeout_s=DOWN_AFTER_S)


def test_all_but_one_crash_at_once_and_come_back_with_everything(trio: NetnsCluster) -> None:
    """SPEC P5: one that has it lives, so nothing is lost."""
    for n in range(30):
        put(trio, n % 3, f"crash/{n}", n)
    wait_until(lambda: all(get(trio, 1, f"crash/{n}").status == 200 for n in range(30)), timeout_s=2)
    trio.kill(0)
    trio.kill(2)
    trio.start_one(0)
    trio.start_one(2)
    for i in (0, 2):
        trio.wait_ready_one(i)
        assert all(get(trio, i, f"crash/{n}").value == n for n in range(30))


@pytest.mark.parametrize("holder", ["nobody", "cut off"])
def test_a_past_that_died_is_told_lost_but_not_while_a_cut_off_member_holds_it(trio: NetnsCluster, holder: str) -> None:
    """SPEC 2.8: served again within 10 s of the crashed one's return; never "lost" while a member may have it."""
    put(trio, 2, f"lost/{holder}", "old", w="all")
    # Replica 2 writes; nobody hears of it, or replica 1 alone does.
    trio.partition([0], [1, 2]) if holder == "cut off" else trio.isolate(2)
    wrote = put(trio, 2, f"lost/{holder}", "dead", w=1 if holder == "nobody" else 2)
    replica, counter = wrote.dot
    if holder == "cut off":
        assert wrote.body["acks"] == 2
    trio.kill(2)
    if holder == "cut off":
        trio.heal()
        trio.isolate(1)
        trio.start_one(2)
        trio.wait_ready_one(2)
        for i in (0, 2):
            for _ in range(2):
                refused = get(trio, i, f"lost/{holder}", wrote.past)
                assert refused.status == 503, f"replica 1 still has it, but replica {i} answered {refused}"
        trio.heal()
        for i in range(3):
            answer = get(trio, i, f"lost/{holder}", wrote.past, query="?wait=8", timeout_s=10)
            assert (answer.value, answer.body.get("lost")) == ("dead", None)
        return
    refused = get(trio, 0, f"lost/{holder}", wrote.past)
    assert refused.status == 503, "it may come back with what it has"
    trio.heal()
    trio.start_one(2)
    trio.wait_ready_one(2)
    for i in range(3):
        answer = get(trio, i, f"lost/{holder}", wrote.past, query="?wait=8", timeout_s=10)
        assert answer.value == "old"
        assert answer.body["lost"] == {replica: [counter, counter]}
        # What it had told before it died is here, and stays in the past until a marker stands for it.
        assert answer.past.get(replica, 0) < counter

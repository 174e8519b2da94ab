"""How replicas stop and start: draining, pauses (SIGSTOP), and restarts without data."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.cluster.support import AT_ONCE_S, CATCHING_UP, SLACK_S, concurrently, wait_for_value, wait_until_at
from tests.support.waiting import assert_stays, wait_until
from tools.netns.client import change_view, get, put, readiness, status, view
from tools.netns.cluster import NetnsCluster
from tools.netns.quick import DOWN_AFTER_S, SYNC_INTERVAL_S

# -- draining ----------------------------------------------------------------------------------------------------------


def test_sigterm_sends_the_last_writes_to_a_peer_and_exits_0(trio: NetnsCluster) -> None:
    """Contract 4: it stops serving, sends all unsent updates to a peer, leaves, and exits 0 within 10 s."""
    for n in range(20):
        past = put(trio, 2, f"drain/{n}", n).past
    began_s = time.monotonic()
    assert trio.terminate(2) == 0
    assert time.monotonic() - began_s < 10
    assert "with this replica" not in trio.log(2)
    for n in range(20):
        for i in (0, 1):
            assert get(trio, i, f"drain/{n}", past).value == n
    # It announced that it leaves, so the others need not wait for a timeout.
    wait_until_at((0, 1), lambda i: view(trio, i) == {0, 1}, timeout_s=SYNC_INTERVAL_S + 0.3)


def test_every_write_that_a_stopping_replica_acknowledged_is_on_the_others(trio: NetnsCluster) -> None:
    """Contract 4, P5: clients write until it rejects them. Every response is a 201 or a rejection."""
    acknowledged: list[str] = []

    def write_until_rejected(writer: int) -> None:
        for n in range(2000):
            key = f"drain/{writer}/{n}"
            try:
                response = requests.put(f"{trio.url(2)}/kvs/{key}", json={"value": n}, timeout=5)
            except requests.ConnectionError:
                break
            if response.status_code == 503:
                break
            assert response.status_code == 201, response.text
            acknowledged.append(key)

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write_until_rejected, writer) for writer in range(3)]
        wait_until(lambda: len(acknowledged) > 50)
        assert trio.terminate(2) == 0
        for writer in writers:
            writer.result()
    for i in (0, 1):
        missing = [key for key in acknowledged if get(trio, i, key).status != 200]
        assert missing == []


def test_sigterm_exits_1_and_logs_how_many_updates_are_lost_if_no_peer_is_reachable(trio: NetnsCluster) -> None:
    """Contract 4."""
    trio.isolate(2)
    for n in range(5):
        put(trio, 2, "drain/alone", n)
    began_s = time.monotonic()
    assert trio.terminate(2) == 1
    assert time.monotonic() - began_s < 10
    assert "5 updates may be lost: no other member acknowledged all within 7 s" in trio.log(2)


def test_a_replica_whose_peers_are_all_removed_exits_0(trio: NetnsCluster) -> None:
    """Contract 4: it exits 1 only if there are other members."""
    put(trio, 0, "drain/last", 1, w="all")
    for other in (1, 2):
        change_view(trio, 0, "DELETE", other)
        trio.kill(other)
    put(trio, 0, "drain/last", 2)
    assert trio.terminate(0) == 0
    assert "keys end with this replica: it reaches no other member, and data is in memory only" in trio.log(0)


# -- pauses ------------------------------------------------------------------------------------------------------------


def test_a_replica_paused_for_longer_than_down_after_rejoins_by_itself(trio: NetnsCluster) -> None:
    """Contract 3: it leaves the views, delays no request (P4), and is back within KV_DOWN_AFTER after the pause."""
    pid = trio.pid(1)
    put(trio, 1, "pause/before", "before")
    trio.pause(1)
    took_s: list[float] = []

    def it_left_both_views() -> bool:
        took_s.append(put(trio, 0, "pause/during", "during").took_s)
        return view(trio, 0) == {0, 2} and view(trio, 2) == {0, 2}

    wait_until(it_left_both_views, timeout_s=DOWN_AFTER_S + SLACK_S)
    past = put(trio, 2, "pause/during", "last").past
    trio.resume(1)
    assert get(trio, 1, "pause/during", past, query="?wait=5", timeout_s=8).value == "last"
    wait_until_at(range(3), lambda i: view(trio, i) == {0, 1, 2}, timeout_s=DOWN_AFTER_S)
    assert max(took_s) < AT_ONCE_S
    put(trio, 1, "pause/after", "after")
    wait_for_value(trio, "pause/after", "after")
    # It must not take the pause for a request to stop, also not a little later.
    assert_stays(lambda: trio.is_running(1) and trio.pid(1) == pid, for_s=1.2)


def test_a_request_sent_to_a_paused_replica_gets_a_correct_response_after_the_pause(trio: NetnsCluster) -> None:
    """Contract P2: the replica resumes with an old state, and must not return a value from before the client's past."""
    past = put(trio, 0, "pause/asked", "old", w="all").past
    trio.pause(1)
    past = put(trio, 0, "pause/asked", "new", past).past

    def resume() -> None:
        wait_until_at((0, 2), lambda i: view(trio, i) == {0, 2}, timeout_s=DOWN_AFTER_S + SLACK_S)
        trio.resume(1)

    response, _ = concurrently(lambda: get(trio, 1, "pause/asked", past, query="?wait=5", timeout_s=15), resume)
    assert response is not None
    assert response.value == "new"


# -- empty restarts ----------------------------------------------------------------------------------------------------


def test_no_dot_is_used_twice_after_crashes_and_clocks_that_go_back(trio: NetnsCluster) -> None:
    """Contract P6: with or without peers, and with a clock hours behind, each restart has a higher incarnation."""
    dots: list[tuple[str, int]] = []
    seen: list[str] = []
    for restarts, (clock_s, cut_off) in enumerate([(0.0, False), (-3600.0, False), (-7200.0, True), (0.0, False)]):
        if restarts:
            trio.kill(2)
            trio.skew(2, clock_s)
            trio.heal()
            if cut_off:
                trio.isolate(2)
            trio.start_one(2)
            trio.wait_ready_one(2)
        dots += [put(trio, 2, f"dots/{restarts}", n).dot for n in range(5)]
        if cut_off:
            # Now it learns of the incarnation before it, which had a higher number.
            trio.heal()
            wait_for_value(trio, f"dots/{restarts}", 4, timeout_s=DOWN_AFTER_S + 1)
            dots += [put(trio, 2, f"dots/{restarts}/b", n).dot for n in range(5)]
        seen.append(status(trio, 2)["replica_id"])
        wait_for_value(trio, f"dots/{restarts}", 4, timeout_s=DOWN_AFTER_S + 1)
    assert len(set(dots)) == len(dots)
    assert len(set(seen)) == 4
    for restarts in range(4):
        wait_for_value(trio, f"dots/{restarts}", 4)
    incarnations = [int(replica.rpartition("@")[2], 16) for replica in seen]
    assert incarnations == sorted(incarnations), "a later process has the higher incarnation"


def test_metadata_stays_small_after_restarts(trio: NetnsCluster) -> None:
    """A client's metadata soon names current incarnations only, once all replicas are back."""
    past = put(trio, 0, "small", 0, w="all").past
    for n in range(3):
        past = put(trio, 2, f"small/{n}", n, past, w="all").past
        trio.restart(2)
    ids = {status(trio, i)["replica_id"] for i in range(3)}

    def carried() -> set[str]:
        return set(get(trio, 0, "small/2", past, query="?wait=5").past)

    wait_until(lambda: carried() <= ids, timeout_s=10 * SYNC_INTERVAL_S)


def test_a_replica_cut_off_at_its_start_serves_alone_after_down_after_and_loses_no_update(trio: NetnsCluster) -> None:
    """Contract P6: if no peer answers within KV_DOWN_AFTER it serves alone, and not before."""
    put(trio, 2, "lone/old", "old", w="all")
    trio.kill(2)
    trio.isolate(2)
    trio.start_one(2)
    started_s = time.monotonic()
    wait_until(lambda: readiness(trio, 2).status == 503, timeout_s=5)
    assert CATCHING_UP in readiness(trio, 2).text
    rejected = get(trio, 2, "lone/old")
    assert (rejected.status, rejected.body["error"]) == (503, CATCHING_UP)
    trio.wait_ready_one(2)
    assert (
        DOWN_AFTER_S * 0.8 < time.monotonic() - started_s < 2 * DOWN_AFTER_S + 1.5
    )  # includes the start of the process
    assert get(trio, 2, "lone/old").status == 404
    put(trio, 2, "lone/new", "new")
    trio.heal()
    wait_for_value(trio, "lone/new", "new", timeout_s=DOWN_AFTER_S)
    wait_for_value(trio, "lone/old", "old", timeout_s=DOWN_AFTER_S)


def test_if_all_but_one_crash_together_they_have_everything_after_their_restart(trio: NetnsCluster) -> None:
    """Contract P5: one replica that has every update is alive."""
    for n in range(30):
        put(trio, n % 3, f"crash/{n}", n)
    wait_until(lambda: all(get(trio, 1, f"crash/{n}").status == 200 for n in range(30)))
    trio.kill(0)
    trio.kill(2)
    trio.start_one(0)
    trio.start_one(2)
    for i in (0, 2):
        trio.wait_ready_one(i)
        assert all(get(trio, i, f"crash/{n}").value == n for n in range(30))


@pytest.mark.parametrize("holder", ["none", "cut-off"])
def test_a_dead_update_is_reported_lost_unless_a_cut_off_member_has_it(trio: NetnsCluster, holder: str) -> None:
    """Contract 2.8: clients are served again within 10 s after the crashed replica is back.

    No replica reports an update as lost while a member may have it.
    """
    put(trio, 2, f"lost/{holder}", "old", w="all")
    # Replica 2 writes. No other replica receives the update, or only replica 1 does.
    trio.partition([0], [1, 2]) if holder == "cut-off" else trio.isolate(2)
    wrote = put(trio, 2, f"lost/{holder}", "dead", w=1 if holder == "none" else 2)
    replica, counter = wrote.dot
    if holder == "cut-off":
        assert wrote.body["acks"] == 2
    trio.kill(2)
    if holder == "cut-off":
        trio.heal()
        trio.isolate(1)
        trio.start_one(2)
        trio.wait_ready_one(2)
        for i in (0, 2):
            for _ in range(2):
                rejected = get(trio, i, f"lost/{holder}", wrote.past)
                assert rejected.status == 503, f"replica 1 has the update, but replica {i} returned {rejected}"
        trio.heal()
        for i in range(3):
            response = get(trio, i, f"lost/{holder}", wrote.past, query="?wait=8", timeout_s=10)
            assert (response.value, response.body.get("lost")) == ("dead", None)
        return
    rejected = get(trio, 0, f"lost/{holder}", wrote.past)
    assert rejected.status == 503, "the killed replica is down, not removed: it may still have the update"
    trio.heal()
    trio.start_one(2)
    trio.wait_ready_one(2)
    for i in range(3):
        response = get(trio, i, f"lost/{holder}", wrote.past, query="?wait=8", timeout_s=10)
        assert response.value == "old"
        assert response.body["lost"] == {replica: [counter, counter]}
        # Earlier updates of the dead process are here. The past names them until a marker replaces them.
        assert response.past.get(replica, 0) < counter

"""One poll of the cluster for all pages, and the statuses of members that are slow or hang."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest

from kvsite.dashboard.cluster_state import ClusterState
from kvsite.dashboard.polling import FRESH_S, MAX_STALE_S, ClusterPoller
from kvsite.dashboard.status_fetcher import FETCH_TIMEOUT_S, UNRESPONSIVE_TIMEOUT_S, StatusFetcher
from replication.node import Node
from tests.kvsite.dashboard.support import A, B, C, FakeClock, FakeMember, state_of
from tests.support.statuses import cluster_of
from tests.support.waiting import wait_until


def test_the_cluster_is_polled_at_most_twice_a_second_for_any_number_of_pages() -> None:
    clock, polls = FakeClock(), itertools.count()
    poller = ClusterPoller(lambda _: replace(state_of(cluster_of(1)), wall_us=next(polls)), clock)
    results = [poller.latest(None) for _ in range(50)]
    assert all(result is results[0] for result in results)
    clock.now_s += FRESH_S
    assert [poll.cluster.wall_us for poll in (results[0], poller.latest(None))] == [0, 1]


def test_one_thread_polls_while_the_others_get_the_last_poll_at_once() -> None:
    clock, gate, polling_again = FakeClock(), threading.Event(), threading.Event()
    polls = 0

    def poll(_: object) -> ClusterState:
        nonlocal polls
        polls += 1
        if polls > 1:
            polling_again.set()
            gate.wait(10)
        return state_of(cluster_of(1))

    poller = ClusterPoller(poll, clock)
    first = poller.latest(None)
    clock.now_s += FRESH_S
    slow = threading.Thread(target=poller.latest, args=(None,))
    slow.start()
    assert polling_again.wait(10)
    assert [poller.latest(None) for _ in range(20)] == [first] * 20
    clock.now_s += MAX_STALE_S
    waiters = [threading.Thread(target=poller.latest, args=(None,)) for _ in range(5)]
    for waiter in waiters:
        waiter.start()
    gate.set()
    for thread in (slow, *waiters):
        thread.join(10)
        assert not thread.is_alive()
    assert polls == 2, "the threads that waited used the result of the first one"


def test_the_age_of_a_poll_counts_from_its_request() -> None:
    """A member that hangs must not make the statuses of the others look newer than they are."""
    clock, polls = FakeClock(), itertools.count()

    def poll(_: object) -> ClusterState:
        clock.now_s += FRESH_S
        return replace(state_of(cluster_of(1)), wall_us=next(polls))

    poller = ClusterPoller(poll, clock)
    assert [poller.latest(None).cluster.wall_us for _ in range(2)] == [0, 1]


def duration_s(call: Callable[[], object]) -> float:
    started_s = time.monotonic()
    call()
    return time.monotonic() - started_s


def test_a_member_that_hangs_gets_the_full_timeout_only_once(fake_node: FakeMember) -> None:
    fetcher, node = StatusFetcher(), cast("Node", fake_node)
    known = fetcher.fetch_all(node)
    assert {address: each["reachable"] for address, each in known.items()} == {A: True, B: True, C: True}
    fake_node.late_s[C] = None
    first_s, second_s = duration_s(lambda: fetcher.fetch_all(node)), duration_s(lambda: fetcher.fetch_all(node))
    assert first_s >= FETCH_TIMEOUT_S
    assert UNRESPONSIVE_TIMEOUT_S <= second_s < FETCH_TIMEOUT_S
    silent = fetcher.fetch_all(node)
    assert [each["reachable"] for each in silent.values()] == [True, True, False]
    assert silent[C]["status"] == known[C]["status"]
    assert silent[C]["age_s"] > first_s + second_s
    assert silent[B]["age_s"] < UNRESPONSIVE_TIMEOUT_S + 0.2


def test_a_slow_member_gets_the_full_timeout_again_after_a_late_response(fake_node: FakeMember) -> None:
    fetcher, node = StatusFetcher(), cast("Node", fake_node)
    fake_node.late_s[C] = FETCH_TIMEOUT_S + 0.05
    assert not fetcher.fetch_all(node)[C]["reachable"]
    fake_node.late_s[C] = UNRESPONSIVE_TIMEOUT_S + 0.15
    wait_until(lambda: C not in fetcher._unresponsive)  # The late response to the first request has arrived.
    assert fetcher.fetch_all(node)[C]["reachable"], "it gets the full timeout again"


def test_the_last_known_status_has_the_parts_that_were_requested(fake_node: FakeMember) -> None:
    """The space-time diagram requests more than the overview. Each finds what it needs in the last known status."""
    fetcher, node = StatusFetcher(), cast("Node", fake_node)
    known = fetcher.fetch_all(node, recent=7)
    assert (C, "recent=7") in fake_node.requests
    fake_node.late_s[C] = 0.01
    fetcher.fetch_all(node)
    fake_node.late_s[C] = None
    silent, silent_in_overview = fetcher.fetch_all(node, recent=7)[C], fetcher.fetch_all(node)[C]
    assert (silent["reachable"], silent["status"]) == (False, known[C]["status"])
    assert silent["age_s"] >= FETCH_TIMEOUT_S
    assert silent_in_overview["status"] == {"of": C, "late_s": 0.01}


def test_only_members_receive_status_requests(fake_node: FakeMember) -> None:
    assert StatusFetcher().fetch(cast("Node", fake_node), ["10.9.9.9:1", B]) == {B: {"of": B, "late_s": 0.0}}


def test_a_failed_poll_does_not_block_the_next() -> None:
    failures = [ValueError("no")]

    def poll(_: object) -> ClusterState:
        if failures:
            raise failures.pop()
        return state_of(cluster_of(1))

    poller = ClusterPoller(poll, FakeClock())
    with pytest.raises(ValueError, match="no"):
        poller.latest(None)
    assert poller.latest(None).cluster.local_address == A

"""Helpers of the fault tests: time limits, and waiting for a cluster. See also ``tools.netns.client``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from tests.support.waiting import wait_until
from tools.netns.client import change_view, get, has_converged, readiness
from tools.netns.cluster import NetnsCluster

SLACK_S = 3.0
"""Added to a limit: the replica's tick, a round trip, and delays of a busy machine."""

AT_ONCE_S = 1.0
"""A request that does not wait takes milliseconds. It takes this long only if it waits for a peer."""

NOT_IN_VIEW = "Replica is not in the view"
CATCHING_UP = "Replica is catching up"
NOT_REACHED = "Causal dependencies not satisfied; try again later"

T = TypeVar("T")


def wait_until_at(replicas: Iterable[int], condition: Callable[[int], T], *, timeout_s: float = 10.0) -> list[T]:
    """Wait until ``condition`` is true at each of ``replicas``. ``timeout_s`` is for all of them together."""
    deadline_s = time.monotonic() + timeout_s
    return [
        wait_until(partial(condition, i), timeout_s=deadline_s - time.monotonic(), what=f"at replica {i}")
        for i in replicas
    ]


def wait_for_value(cluster: NetnsCluster, key: str, value: Any, *, timeout_s: float = 10.0) -> None:
    """Wait until every running replica returns ``value`` (None: absent) to a client without metadata."""
    running = [i for i in range(len(cluster.addresses)) if cluster.is_running(i) and i not in cluster.paused]
    wait_until_at(running, lambda i: returns(cluster, i, key, value), timeout_s=timeout_s)


def returns(cluster: NetnsCluster, i: int, key: str, value: Any) -> bool:
    """Return whether replica ``i`` returns ``value`` (None: absent) for ``key``."""
    response = get(cluster, i, key)
    return response.status in (200, 404) and response.value == value


def heal_and_converge(cluster: NetnsCluster, timeout_s: float = 20) -> None:
    """End every fault, and wait until all replicas have converged."""
    cluster.heal()
    everybody = range(len(cluster.addresses))
    for i in list(cluster.paused):
        cluster.resume(i)
    for i in everybody:
        if cluster.skew_of(i):
            cluster.skew(i, 0)
        if not cluster.is_running(i):
            cluster.start_one(i)
    # Any answer will do, 503 too: a removed replica is ready again only after it has been added below.
    wait_until(lambda: [readiness(cluster, i) for i in everybody], timeout_s=timeout_s, what="all replicas answer")
    for i in everybody:
        for j in everybody:
            change_view(cluster, i, "PUT", j)
    wait_until(lambda: has_converged(cluster), timeout_s=timeout_s)


def concurrently(*calls: Callable[[], T]) -> list[T]:
    """Run all calls at the same time, each in a thread; return their results in order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]

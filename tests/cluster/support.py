"""What the tests of faults share: requests of a client, waiting for what must come true, and a cluster at rest."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import requests

from tests.support.waiting import wait_until
from tools.netns.cluster import NetnsCluster

DOWN_AFTER_S = 2.0
SYNC_INTERVAL_S = 0.4
QUICK = {"KV_DOWN_AFTER": f"{DOWN_AFTER_S:g}", "KV_SYNC_INTERVAL": f"{SYNC_INTERVAL_S:g}"}
"""Shorter than the defaults, so that tests need not wait; with room for a machine that others use as well."""

SLACK_S = 0.7
"""What is measured from outside comes this much later: the replica's tick, a round trip, and a busy machine."""

AT_ONCE_S = 1.0
"""A request that waits for nothing takes milliseconds; this much is only reached by waiting for a peer."""

NOT_IN_VIEW = "Replica is not in the view"
CATCHING_UP = "Replica is catching up"
NOT_REACHED = "Causal dependencies not satisfied; try again later"

Past = Mapping[str, int]
T = TypeVar("T")

_http = requests.Session()
_http.trust_env = False


class Reply(NamedTuple):
    """One answer, and how many seconds it took."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str]
    seconds: float

    @property
    def past(self) -> Past:
        """Its metadata."""
        past: Past = self.body["causal-metadata"]
        return past

    @property
    def value(self) -> Any:
        """The value that was found, None where none was; anything but 200 and 404 fails."""
        assert self.status in (200, 404), self
        return self.body.get("value")

    @property
    def dot(self) -> tuple[str, int]:
        """The update that its ETag names."""
        replica, _, counter = self.headers["ETag"].strip('"').rpartition(":")
        return replica, int(counter)


def send(
    cluster: NetnsCluster,
    i: int,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = 5.0,
) -> Reply:
    """Send one request to replica ``i``; no retries. Raises requests' errors."""
    began_s = time.monotonic()
    # Not through a pool: a kept connection to a replica that was killed meanwhile fails for reasons of its own.
    response = _http.request(
        method,
        f"{cluster.url(i)}{path}",
        data=None if body is None else json.dumps(body),
        headers={"Content-Type": "application/json", "Connection": "close"},
        timeout=timeout_s,
    )
    return Reply(response.status_code, response.json(), response.headers, time.monotonic() - began_s)


def put(cluster: NetnsCluster, i: int, key: str, value: Any, past: Past | None = None, **fields: Any) -> Reply:
    reply = send(cluster, i, "PUT", f"/kvs/{key}", {"value": value, "causal-metadata": past, **fields})
    assert reply.status in (200, 201, 202), reply
    return reply


def get(
    cluster: NetnsCluster, i: int, key: str, past: Past | None = None, *, query: str = "", timeout_s: float = 5.0
) -> Reply:
    return send(cluster, i, "GET", f"/kvs/{key}{query}", {"causal-metadata": past}, timeout_s=timeout_s)


def delete(cluster: NetnsCluster, i: int, key: str, past: Past | None = None) -> Reply:
    return send(cluster, i, "DELETE", f"/kvs/{key}", {"causal-metadata": past})


def view(cluster: NetnsCluster, i: int) -> set[int]:
    """Return the replicas in the view of replica ``i``, as numbers."""
    reply = send(cluster, i, "GET", "/view")
    assert reply.status == 200, reply
    return {cluster.addresses.index(address) for address in reply.body["view"]}


def change_view(cluster: NetnsCluster, i: int, method: str, member: int) -> Reply:
    """PUT or DELETE ``member`` at replica ``i``."""
    return send(cluster, i, method, "/view", {"socket-address": cluster.addresses[member]})


def status(cluster: NetnsCluster, i: int) -> dict[str, Any]:
    return send(cluster, i, "GET", "/replication/status").body


def readiness(cluster: NetnsCluster, i: int) -> tuple[int, str]:
    """Return what /readyz says: its status, and its text as it is."""
    response = _http.get(f"{cluster.url(i)}/readyz", timeout=5, headers={"Connection": "close"})
    return response.status_code, response.text


def wait_until_at(replicas: Iterable[int], what: Callable[[int], T], *, timeout_s: float) -> list[T]:
    """Wait until ``what`` is true at each of ``replicas``: ``timeout_s`` seconds for all of them together."""
    deadline = time.monotonic() + timeout_s
    return [wait_until(partial(what, i), timeout_s=deadline - time.monotonic()) for i in replicas]


def wait_for_value(cluster: NetnsCluster, key: str, value: Any, *, timeout_s: float) -> None:
    """Wait until every running replica shows ``value`` (None: absent) to a client without metadata."""
    up = [i for i in range(len(cluster.addresses)) if cluster.is_running(i) and i not in cluster.paused]
    wait_until_at(up, lambda i: shows(cluster, i, key, value), timeout_s=timeout_s)


def shows(cluster: NetnsCluster, i: int, key: str, value: Any) -> bool:
    reply = get(cluster, i, key)
    return reply.status in (200, 404) and reply.value == value


def converged(cluster: NetnsCluster) -> bool:
    """Whether all replicas serve, see each other, and have the same updates and none waiting."""
    everybody = set(range(len(cluster.addresses)))
    if any(readiness(cluster, i)[0] != 200 or view(cluster, i) != everybody for i in everybody):
        return False
    states = [status(cluster, i) for i in everybody]
    clocks = [state["clock"] for state in states]
    return all(clock == clocks[0] for clock in clocks) and not any(state["pending_count"] for state in states)


def heal_and_converge(cluster: NetnsCluster, timeout_s: float = 20) -> None:
    """End every fault, and wait until all replicas are back in step."""
    cluster.heal()
    everybody = range(len(cluster.addresses))
    for i in list(cluster.paused):
        cluster.resume(i)
    for i in everybody:
        if cluster.skew_of(i):
            cluster.skew(i, 0)
        if not cluster.is_running(i):
            cluster.start_one(i)
    wait_until(lambda: all(readiness(cluster, i)[1] for i in everybody), timeout_s=timeout_s)
    for i in everybody:
        for j in everybody:
            change_view(cluster, i, "PUT", j)
    wait_until(lambda: converged(cluster), timeout_s=timeout_s)


def concurrently(*calls: Callable[[], T]) -> list[T]:
    """Make all calls at the same time, each in a thread; return their results in order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]

"""Helpers of the long-life tests: clusters on free ports, single requests, and measurements."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kvsite.cluster import LocalCluster
from store.settings import StoreSettings
from tests.support.http import Response, send_request
from tests.support.ports import free_ports

NAMES = ("r1", "r2", "r3")
SMALL_LOG = StoreSettings(max_log_bytes=80 * 1024)
"""About 600 updates. A replica that missed more than that needs a snapshot."""

KEYS = [f"gone-{number:03}" for number in range(100)]
EVERYBODY = range(3)


@contextmanager
def cluster_of(replicas: int, *, start: int | None = None, **environment: Any) -> Iterator[LocalCluster]:
    """Yield a cluster with ``replicas`` addresses. The first ``start`` of them (default: all) are running and ready."""
    made = LocalCluster(
        replicas, free_ports(replicas), environment={name: str(value) for name, value in environment.items()}
    )
    try:
        for i in range(replicas if start is None else start):
            made.start_one(i)
        made.wait_ready()
        yield made
    finally:
        made.stop(0)


def send(cluster: LocalCluster, i: int, method: str, path: str, body: Any = None, **options: Any) -> Response:
    """Send one request to replica ``i``; see ``tests.support.http.send_request``."""
    return send_request(cluster.addresses[i], method, path, body, **options)


def transact(cluster: LocalCluster, i: int, writes: Mapping[str, Any], **fields: Any) -> Response:
    """Write (None: delete) many keys as one update. Fails unless the status is 200. ``w_timeout`` becomes w-timeout."""
    changes = [
        {"key": key, "delete": True} if value is None else {"key": key, "value": value} for key, value in writes.items()
    ]
    response = send(
        cluster, i, "POST", "/kvs", {"writes": changes, **{n.replace("_", "-"): v for n, v in fields.items()}}
    )
    assert response.status == 200, response
    return response


def status(cluster: LocalCluster, i: int) -> dict[str, Any]:
    body: dict[str, Any] = send(cluster, i, "GET", "/replication/status").body
    return body


def has_converged(cluster: LocalCluster, replicas: int) -> bool:
    """Return whether the first ``replicas`` have applied the same updates, and their logs are empty."""
    states = [status(cluster, i) for i in range(replicas)]
    clocks = [state["clock"] for state in states]
    return all(clock == clocks[0] for clock in clocks) and not any(
        state["log"]["updates"] or state["pending_count"] for state in states
    )


def report(text: str) -> None:
    """Print a measurement. pytest shows it with ``-s``, and for a test that fails."""
    sys.stdout.write(f"\n  {text}")


def items_at(cluster: LocalCluster, i: int, prefix: str, *, conflicts: bool = False) -> dict[str, Any]:
    """Return all keys that start with ``prefix``, with their values, page by page."""
    items: dict[str, Any] = {}
    after = ""
    while True:
        query = f"prefix={prefix}&after={after}&limit=1000&values=true" + ("&conflicts=true" if conflicts else "")
        page = send(cluster, i, "GET", f"/kvs?{query}").body
        items |= page["items"]
        after = page["next"]
        if after is None:
            return items

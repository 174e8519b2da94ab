"""Fetches what pages need beyond the overview: the history of one replica, recent updates, keys.

The history and the recent updates come from the members. They are cached for ``FRESH_S``, so that many browsers on one
page cost the members as much as one (see ``ClusterPoller``). Keys and explanations come from the local replica and are
not cached.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kvsite.dashboard.cluster_state import ClusterState, ObservedReplica, parse_cluster
from kvsite.dashboard.polling import FRESH_S, poll_cluster
from kvsite.dashboard.status_fetcher import member_addresses, status_fetcher
from replication.node import Node

RECENT_UPDATES = 60
"""Recent updates requested from each replica for the space-time diagram.

This is more than the diagram shows, because the replicas do not apply the same updates last.
"""


class FetchCache:
    """Caches what ``fetch(node, key)`` returns, by key, while it is fresh. One thread fetches, the others wait."""

    def __init__(
        self, fetch: Callable[[Node | None, str], Any], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch = fetch
        self._monotonic = monotonic
        self._locks: dict[str, threading.Lock] = {}
        self._results: dict[str, tuple[float, Any]] = {}

    def get(self, node: Node | None, key: str) -> Any:
        """Return the result for ``key``, at most ``FRESH_S`` old."""
        with self._locks.setdefault(key, threading.Lock()):
            at_s, result = self._results.get(key, (float("-inf"), None))
            if self._monotonic() - at_s >= FRESH_S:
                at_s, result = self._monotonic(), self._fetch(node, key)
                self._results[key] = (at_s, result)
            return result


def _fetch_history(node: Node | None, address: str) -> Any:
    if node is None:
        return None
    return status_fetcher.fetch(node, [address], history=True).get(address)


def _fetch_recent(node: Node | None, _key: str) -> ClusterState:
    return poll_cluster(node, recent=RECENT_UPDATES)


_history_cache = FetchCache(_fetch_history)
_recent_cache = FetchCache(_fetch_recent)


def with_history(node: Node | None, replica: ObservedReplica, cluster: ClusterState) -> ObservedReplica:
    """Return ``replica`` (of ``cluster``) with a new status that includes its history, or unchanged if that fails."""
    status = _history_cache.get(node, replica.address) if replica.is_reachable else None
    if status is None:
        return replica
    result = {"status": status, "age_s": 0.0, "reachable": True}
    observed = parse_cluster({replica.address: result}, cluster.local_address, 0).replicas[0]
    return replace(observed, member=replica.member)


def cluster_with_recent_updates(node: Node | None) -> ClusterState:
    """Return the cluster state in which each status includes its recent updates."""
    cluster: ClusterState = _recent_cache.get(node, "")
    return cluster


def known_members(node: Node | None) -> list[str]:
    """Return the addresses of the members that the local replica knows; empty if no replica runs in this process."""
    return [] if node is None else member_addresses(node)


def keys(node: Node | None, prefix: str, after: str, limit: int, *, conflicts: bool) -> list[dict[str, Any]] | None:
    """Return keys of the local replica; None if no replica runs in this process."""
    return None if node is None else node.inspector.keys(prefix, after, limit, conflicts=conflicts)


def explanation(node: Node | None, key: str) -> dict[str, Any] | None:
    """Return what the local replica knows about ``key``; None if no replica runs in this process."""
    return None if node is None else node.inspector.explain(key)

"""Fetches what pages need beyond the overview: the history of one replica, recent updates, keys.

The history and the recent updates come from the members. They are cached for ``FRESH_S``, so that many browsers on one
page cost the members as much as one (see ``ClusterPoller``). Keys and explanations come from the local replica and are
not cached.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kvsite.dashboard.charts import HISTORIES
from kvsite.dashboard.cluster_state import ClusterState, ObservedReplica, parse_cluster
from kvsite.dashboard.keys_page import PAGE_SIZE, FoundKeys, KeySearch
from kvsite.dashboard.polling import FRESH_S, poll_cluster
from kvsite.dashboard.status_fetcher import member_addresses, status_fetcher
from replication.node import Node
from store.clock import Dot

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


class KeyMemory:
    """Remembers the first keys of the updates that are shown, after the logs of the replicas have dropped them.

    It keeps no key of an update that no status reports any more. Thread-safe.
    """

    def __init__(self) -> None:
        self._keys: dict[Dot, str] = {}

    def learn(self, cluster: ClusterState) -> Mapping[Dot, str]:
        """Add the keys in ``cluster``, whose statuses include recent updates. Return all keys of these updates."""
        keys: dict[Dot, str] = {}
        known = self._keys
        for replica in cluster.replicas:
            if replica.status:
                reported = [(each.dot, each.key) for each in replica.status.recent]
                reported += [(each.dot, each.keys[0] if each.keys else None) for each in replica.status.pending]
                for dot, key in reported:
                    found = key if key is not None else known.get(dot)
                    if found is not None:
                        keys[dot] = found
        self._keys = keys
        return keys


def _fetch_history(node: Node | None, key: str) -> Any:
    """Fetch the status with the history of a replica. ``key``: the name of the window, a space, its address."""
    if node is None:
        return None
    window, _, address = key.partition(" ")
    return status_fetcher.fetch(node, [address], history=HISTORIES[window]).get(address)


def _fetch_recent(node: Node | None, _key: str) -> tuple[ClusterState, Mapping[Dot, str]]:
    cluster = poll_cluster(node, recent=RECENT_UPDATES)
    return cluster, _key_memory.learn(cluster)


_key_memory = KeyMemory()
_history_cache = FetchCache(_fetch_history)
_recent_cache = FetchCache(_fetch_recent)


def with_history(node: Node | None, replica: ObservedReplica, cluster: ClusterState, window: str) -> ObservedReplica:
    """Return ``replica`` (of ``cluster``) with a new status that includes its history, or unchanged if that fails.

    ``window``: a name in ``HISTORIES``.
    """
    status = _history_cache.get(node, f"{window} {replica.address}") if replica.is_reachable else None
    if status is None:
        return replica
    result = {"status": status, "age_s": 0.0, "reachable": True}
    observed = parse_cluster({replica.address: result}, cluster.local_address, 0).replicas[0]
    return replace(observed, member=replica.member)


def cluster_with_recent_updates(node: Node | None) -> tuple[ClusterState, Mapping[Dot, str]]:
    """Return the cluster state in which each status includes its recent updates, and the first keys of these."""
    found: tuple[ClusterState, Mapping[Dot, str]] = _recent_cache.get(node, "")
    return found


def known_members(node: Node | None) -> list[str]:
    """Return the addresses of the members that the local replica knows; empty if no replica runs in this process."""
    return [] if node is None else member_addresses(node)


def keys(node: Node | None, search: KeySearch) -> FoundKeys | None:
    """Return keys of the local replica; None if no replica runs in this process.

    One key more than a page has tells whether there is another page.
    """
    if node is None:
        return None
    inspector, conflicts = node.inspector, search.conflicts
    total = inspector.count_keys(search.prefix, conflicts=conflicts)
    if search.order == "name":
        found = inspector.keys(search.prefix, search.after, PAGE_SIZE + 1, conflicts=conflicts, before=search.before)
        return FoundKeys(found, total)
    ranked, is_whole = inspector.ranked_keys(search.prefix, search.order, PAGE_SIZE, conflicts=conflicts)
    return FoundKeys(ranked, total, is_whole=is_whole)


def wrote(node: Node | None, dot: Dot, key: str) -> bool:
    """Return whether a present version of ``key`` at the local replica is of the update ``dot``."""
    if node is None or not key:
        return False
    return any(tuple(version["dot"]) == dot for version in node.inspector.explain(key, 0)["versions"])


def explanation(node: Node | None, key: str) -> dict[str, Any] | None:
    """Return what the local replica knows about ``key``; None if no replica runs in this process."""
    return None if node is None else node.inspector.explain(key)

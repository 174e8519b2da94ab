"""More than the overview asks for, when a page wants it: one replica's history, the updates applied last, keys.

What is found out is kept for a moment, so that many browsers on one page cost as much as one (see ``keeper``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kvsite.dashboard.cluster_state import Replica, Snapshot, read
from kvsite.dashboard.members import addresses_of, members
from kvsite.dashboard.polling import FRESH_S
from replication.api import context

RECENT = 60
"""Updates asked of each replica for the picture: more than it shows, as replicas do not apply the same ones last."""


class Kept:
    """Keeps what ``ask(key)`` returned, by key, while it is fresh; one thread asks, the others wait for it."""

    def __init__(self, ask: Callable[[str], Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._locks: dict[str, threading.Lock] = {}
        self._found: dict[str, tuple[float, Any]] = {}

    def get(self, key: str) -> Any:
        """Return what was found of ``key``, at most half a second ago."""
        with self._locks.setdefault(key, threading.Lock()):
            at_s, found = self._found.get(key, (float("-inf"), None))
            if self._clock() - at_s >= FRESH_S:
                at_s, found = self._clock(), self._ask(key)
                self._found[key] = (at_s, found)
            return found


def _ask_history(address: str) -> Any:
    if not context.bound():
        return None
    return members.statuses(context.node(), [address], history=True).get(address)


def _ask_latest(_key: str) -> Snapshot:
    wall_us = time.time_ns() // 1000
    if not context.bound():
        return Snapshot("", wall_us)
    node = context.node()
    return read(members.cluster(node, recent=RECENT), node.replica.address, wall_us)


_histories = Kept(_ask_history)
_latest = Kept(_ask_latest)


def with_history(replica: Replica, snapshot: Snapshot) -> Replica:
    """Return ``replica`` (of ``snapshot``) with its history, as of now where it answers; else as it is."""
    told = _histories.get(replica.address) if replica.answers else None
    if told is None:
        return replica
    fresh = read({replica.address: {"status": told, "age_s": 0.0, "reachable": True}}, snapshot.asked, 0).replicas[0]
    return replace(fresh, seen=replica.seen)


def latest() -> Snapshot:
    """Return the cluster with the updates that each replica applied last."""
    snapshot: Snapshot = _latest.get("")
    return snapshot


def known_members() -> list[str]:
    """Return the addresses of the members that the replica of this process knows; empty where there is none."""
    return addresses_of(context.node()) if context.bound() else []


def keys(prefix: str, after: str, limit: int, *, conflicts: bool) -> list[dict[str, Any]] | None:
    """Return keys of the replica of this process; None where there is none."""
    return context.node().keys(prefix, after, limit, conflicts=conflicts) if context.bound() else None


def explanation(key: str) -> dict[str, Any] | None:
    """Return what the replica of this process knows of ``key``; None where there is none."""
    return context.node().explain(key) if context.bound() else None
